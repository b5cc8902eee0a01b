"""cluster.yaml through Ray's own AWS provider against a mock EC2, up to the head's machine.

The mock returns public-looking addresses, and `ray up` connects to them. The test therefore
runs in a network namespace with only loopback.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.files import ROOT

PROGRAM = """
import json, os, re, sys, threading
from pathlib import Path

import boto3
from moto import mock_aws
from moto.ec2.models.instances import InstanceBackend

from cluster.__main__ import main

os.environ |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
mock = mock_aws()
mock.start()
ec2 = boto3.client("ec2", region_name="us-east-1")
iam = boto3.client("iam")
for name in ("mtil-head", "mtil-worker"):
    iam.create_instance_profile(InstanceProfileName=name)

def machines():
    found = ec2.describe_instances()["Reservations"]
    return [machine for reservation in found for machine in reservation["Instances"]]

# The mock lacks AWS's public parameters: the test stores an image id under a new name.
ssm = boto3.client("ssm", region_name="us-east-1")
ssm.put_parameter(Name="/mtil/latest", Value="ami-11111111111111111", Type="String")
FILE = os.environ["FILE"]
text = Path("cluster.yaml").read_text()
Path(FILE).write_text(re.sub(r"resolve:ssm:\\S+", "resolve:ssm:/mtil/latest", text))

results = {"without_group": main(["up", FILE, "--yes"])}
(vpc,) = ec2.describe_vpcs()["Vpcs"]
made = ec2.create_security_group(GroupName="mtil", Description="mtil", VpcId=vpc["VpcId"])
group = made["GroupId"]
def allow(address, **more):
    rule = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": address}]}
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[rule])
    return rule
wide = allow("0.0.0.0/0")
results["open_group"] = main(["up", FILE, "--yes"])
ec2.revoke_security_group_ingress(GroupId=group, IpPermissions=[wide])
allow("10.1.2.3/32")
results["before"] = len(machines())

from cluster import launch
from ray.scripts.scripts import cli

# Run the launcher in the present process: a child process would not see the mock.
launch._run_ray = lambda name, words: cli(words, standalone_mode=False)
# Inspect the mock only after `run_instances` has returned: machine, disk and tags exist.
made, run_instances = threading.Event(), InstanceBackend.run_instances
def noted(*args, **more):
    answer = run_instances(*args, **more)
    made.set()
    return answer
InstanceBackend.run_instances = noted
threading.Thread(target=main, args=(["up", FILE, "--yes"],), daemon=True).start()
assert made.wait(120)
(head,) = machines()
(volume,) = ec2.describe_volumes()["Volumes"]
results["head"] = {
    "type": head["InstanceType"],
    "image": head["ImageId"],
    "profile": head["IamInstanceProfile"]["Arn"].rpartition("/")[2],
    "groups": [found["GroupId"] == group for found in head["SecurityGroups"]],
    "key": Path(f"~/.ssh/{head['KeyName']}.pem").expanduser().stat().st_mode & 0o777,
    "tags": {tag["Key"]: tag["Value"] for tag in head["Tags"]},
    "tokens": head["MetadataOptions"]["HttpTokens"],
    "disk": [volume["Size"], volume["Encrypted"], volume["VolumeType"]],
}
# A newer image does not reach a cluster whose head has an older one.
from cluster import files, machine_images
ssm.put_parameter(Name="/mtil/latest", Value="ami-22222222222222222", Type="String", Overwrite=True)
file = files.parse_cluster_file(Path(FILE), *files.load_cluster_file(Path(FILE)))
types = machine_images.fix_image_ids(file)["available_node_types"].values()
results["images_later"] = [kind["node_config"]["ImageId"] for kind in types]
rules = ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"][0]["IpPermissions"]
results["addresses"] = [found["CidrIp"] for rule in rules for found in rule["IpRanges"]]
Path(os.environ["TOLD"]).write_text(json.dumps(results))
os._exit(0)
"""


def _alone(*command: str) -> list[str]:
    script = 'ip link set lo up && exec "$@"'
    return ["unshare", "--net", "bash", "-c", script, "alone", *command]


@pytest.fixture(scope="module")
def reason() -> str | None:
    done = subprocess.run(_alone("true"), capture_output=True, text=True, check=False)
    return f"network namespaces are not allowed here: {done.stderr}" if done.returncode else None


def test_the_aws_file_asks_for_the_head_that_it_describes(
    reason: str | None, tmp_path: Path
) -> None:
    if reason is not None:
        pytest.skip(reason)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("x")
    (tmp_path / ".ray" / "auth_token").chmod(0o600)
    unset = ("AWS_ENDPOINT_URL", "AWS_PROFILE", "RAY_ADDRESS")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    done = subprocess.run(
        _alone(sys.executable, "-c", PROGRAM),
        cwd=ROOT,
        env=environment
        | {
            "HOME": str(tmp_path),
            "TOLD": str(tmp_path / "told.json"),
            "FILE": str(tmp_path / "aws.yaml"),
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "told.json").read_text())
    assert results["without_group"] == results["open_group"] == 2
    assert "The security group mtil must exist in us-east-1" in done.stderr
    assert "The security group mtil must not be open to everybody" in done.stderr
    assert results["before"] == 0
    head = results["head"]
    tags = head.pop("tags")
    assert head == {
        "type": "m6i.large",
        "image": "ami-11111111111111111",
        "profile": "mtil-head",
        "groups": [True],
        "key": 0o600,
        "tokens": "required",
        "disk": [100, True, "gp3"],
    }
    assert tags["project"] == "mtil"
    assert tags["ray-cluster-name"] == "mtil"
    assert tags["ray-node-type"] == "head"
    assert results["images_later"] == ["ami-11111111111111111"] * 3
    assert results["addresses"] == ["10.1.2.3/32"]  # Ray adds no address
