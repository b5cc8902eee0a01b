"""Every template passes, and every mistake in a file is reported."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from cluster.__main__ import main
from cluster.check import check_aws_account, check_cluster_file, open_cluster_file
from cluster.errors import UsageError
from cluster.files import ROOT, load_cluster_file, parse_cluster_file
from tests.unit.documents import FILES, Document, Plain, node_type, read

Mistake = Callable[[Document], object]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with the files mounted by the templates: the token, and an ssh key."""
    folder = tmp_path / "home"
    for name in (".ray/auth_token", ".ssh/mtil"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("x")
        (folder / name).chmod(0o600)
    monkeypatch.setenv("HOME", str(folder))
    return folder


def _problems(document: Document, tmp_path: Path) -> tuple[str, ...]:
    path = tmp_path / "file.yaml"
    path.write_text(yaml.dump(document, Dumper=Plain))
    return check_cluster_file(path).problems


def test_there_is_a_template_for_each_kind() -> None:
    kinds = [load_cluster_file(path)[0] for path in FILES]
    assert kinds == ["aws", "gcp", "kuberay", "kuberay", "local", "skypilot"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_file_that_comes_along_passes(path: Path) -> None:
    report = check_cluster_file(path)
    assert report.problems == ()
    assert bool(report.blanks) == (path.name != "cluster.yaml")


def _spec(document: Document) -> Document:
    spec: Document = document["spec"]
    return spec


def _config(document: Document, name: str) -> Document:
    config: Document = node_type(document, name)["node_config"]
    return config


def _pod(document: Document) -> Document:
    pod: Document = _spec(document)["workerGroupSpecs"][0]["template"]
    return pod


def _container(document: Document) -> Document:
    container: Document = _pod(document)["spec"]["containers"][0]
    return container


def _in_start(document: Document, role: str, old: str, new: str) -> None:
    commands = document[f"{role}_start_ray_commands"]
    assert any(old in command for command in commands)
    document[f"{role}_start_ray_commands"] = [c.replace(old, new) for c in commands]


MISTAKES: list[tuple[str, Mistake, str]] = [
    ("cluster", lambda d: d.update(idle_minutes=5), "must fit the schema of aws"),
    ("cluster", lambda d: d.update(head_node_type="haed"), "must be one of `available_node_types`"),
    (
        "cluster",
        lambda d: node_type(d, "gpu")["node_config"].update(ImageId="ami-0123456789abcdef0"),
        "All machines must have one image",
    ),
    (
        "cluster",
        lambda d: d.update(worker_setup_commands=["~/venv/bin/pip install 'ray[default]==2.50.0'"]),
        "Packages must come from cluster/install.sh",
    ),
    ("cluster", lambda d: d.update(setup_commands=[]), "must run cluster/install.sh"),
    (
        "cluster",
        lambda d: d["provider"]["security_group"].update(
            IpPermissions=[
                {
                    "FromPort": 6379,
                    "ToPort": 6379,
                    "IpProtocol": "tcp",
                    "IpRanges": [{"CidrIp": "0.0.0.0/0"}],
                }
            ]
        ),
        "Ports must not be open to everybody, but `provider.security_group.IpPermissions[0]",
    ),
    (
        "cluster",
        lambda d: _in_start(d, "head", "host=127.0.0.1", "host=0.0.0.0"),
        "must listen on 127.0.0.1, but head has --dashboard-host=0.0.0.0",
    ),
    (
        "cluster",
        lambda d: d["provider"].pop("security_group"),
        "`provider.security_group.GroupName` must name a group of yours",
    ),
    (
        "cluster",
        lambda d: _in_start(d, "worker", "RAY_AUTH_MODE=token", ""),
        "must have RAY_AUTH_MODE=token, but lacks it in gpu",
    ),
    (
        "cluster",
        lambda d: d["setup_commands"].append("export AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7"),
        "must hold no secrets, but `setup_commands[3]`",
    ),
    (
        "cluster",
        lambda d: node_type(d, "gpu")["node_config"].pop("IamInstanceProfile"),
        "gpu must have an `IamInstanceProfile`",
    ),
    (
        "cluster",
        lambda d: node_type(d, "head")["resources"].update(CPU=2),
        "The head must offer no CPU (`CPU: 0`)",
    ),
    (
        "cluster",
        lambda d: node_type(d, "gpu").update(min_workers=2),
        "gpu must start from 0 workers",
    ),
    ("cluster", lambda d: d.pop("idle_timeout_minutes"), "but the idle timeout is missing"),
    (
        "cluster",
        lambda d: node_type(d, "gpu")["resources"].update(GPU=2),
        "gpu must have `GPU: 1`, the GPUs of g6.xlarge, but has 2",
    ),
    (
        "cluster",
        lambda d: node_type(d, "gpu")["node_config"].update(InstanceType="m6i.xlarge"),
        "gpu must have `GPU: 0`, the GPUs of m6i.xlarge, but has 1",
    ),
    (
        "cluster",
        lambda d: node_type(d, "gpu")["resources"].update(CPU=1),
        "a CPU for each GPU and a CPU for Ray Data, or Ray Data waits for ever, but has 1 for 1",
    ),
    (
        "cluster",
        lambda d: _in_start(d, "head", "--autoscaling-config=~/ray_bootstrap_config.yaml", ""),
        "must have --autoscaling-config",
    ),
    (
        "cluster",
        lambda d: d["file_mounts"].update({"/home/ubuntu/data": "no-such-folder"}),
        "must name paths that exist here, but no-such-folder does not.",
    ),
    ("cluster", lambda d: d["auth"].update(ssh_private_key="~/.ssh/no"), "but ~/.ssh/no does not"),
    ("gcp", lambda d: node_type(d, "gpu").update(min_workers=1), "gpu must start from 0 workers"),
    ("on-prem", lambda d: d["auth"].pop("ssh_private_key"), "must name a private key"),
    (
        "on-prem",
        lambda d: _in_start(d, "worker", "RAY_enable_autoscaler_v2=0", ""),
        "workers must start with RAY_enable_autoscaler_v2=0",
    ),
    ("on-prem", lambda d: d.update(max_workers=3), "must be 1, the number of `worker_ips`"),
    (
        "on-prem",
        lambda d: d["provider"]["worker_ips"].append(d["provider"]["head_ip"]),
        "`worker_ips` must not name the head",
    ),
    (
        "on-prem",
        lambda d: d.update(available_node_types={}),
        "`available_node_types` must be left out",
    ),
    (
        "kuberay-cluster",
        lambda d: _spec(d).update(rayVersion="2.9.0"),
        "`rayVersion` must be constraints.txt's 2.60.0, but is 2.9.0",
    ),
    (
        "kuberay-cluster",
        lambda d: _spec(d)["headGroupSpec"].update(serviceType="LoadBalancer"),
        "`spec.headGroupSpec.serviceType` must be ClusterIP, but is LoadBalancer",
    ),
    (
        "kuberay-cluster",
        lambda d: _spec(d).pop("authOptions"),
        "`authOptions.mode` must be token",
    ),
    (
        "kuberay-cluster",
        lambda d: _spec(d)["workerGroupSpecs"][0]["template"]["spec"]["containers"][0].update(
            env=[{"name": "AWS_SECRET_ACCESS_KEY", "value": "wJalrXUtnFEMI"}]
        ),
        "AWS_SECRET_ACCESS_KEY has a value in it",
    ),
    (
        "kuberay-cluster",
        lambda d: _spec(d).update(enableInTreeAutoscaling=False),
        "`enableInTreeAutoscaling` must be true",
    ),
    (
        "kuberay-job",
        lambda d: _spec(d).pop("entrypoint"),
        "must fit the schema of kuberay, but at `$.spec`: 'entrypoint' is a required property",
    ),
    (
        "skypilot",
        lambda d: d["resources"].update(accelerators="L5:1"),
        "must be of a known type, but is L5",
    ),
    ("skypilot", lambda d: d["resources"].update(ports=8265), "`resources.ports` must be left out"),
    ("skypilot", lambda d: d.update(envs={"HF_TOKEN": "abc"}), "but `envs.HF_TOKEN` looks like"),
    # Machines.
    (
        "cluster",
        lambda d: _config(d, "gpu").update(InstanceType="p99.24xlarge"),
        "gpu must be of a type in cluster/machine_types.yaml, but is p99.24xlarge",
    ),
    (
        "cluster",
        lambda d: node_type(d, "gpu")["resources"].update({"accelerator_type:L5": 1}),
        "must be of a known type, but is L5",
    ),
    (
        "cluster",
        lambda d: (
            _config(d, "gpu").update(InstanceType="g5.xlarge"),
            node_type(d, "gpu")["resources"].update(CPU=3, GPU=2),
        ),
        "gpu must have `GPU: 1`, the GPUs of g5.xlarge, but has 2",
    ),
    (
        "cluster",
        lambda d: node_type(d, "gpu")["resources"].update(CPU=99),
        "must have at most `CPU: 4`, the CPUs of g6.xlarge, but has 99",
    ),
    ("cluster", lambda d: node_type(d, "gpu")["resources"].pop("GPU"), "gpu must have GPU in its"),
    ("gcp", lambda d: _config(d, "gpu").update(machineType="g9-standard-4"), "is g9-standard-4"),
    (
        "gcp",
        lambda d: _config(d, "gpu").update(machineType="n2-standard-4"),
        "gpu must have `GPU: 0`, the GPUs of n2-standard-4",
    ),
    (
        "gcp",
        lambda d: _config(d, "gpu").update(
            machineType="n1-standard-4",
            guestAccelerators=[{"acceleratorType": "nvidia-l5", "acceleratorCount": 1}],
        ),
        "must be of a known type, but is nvidia-l5",
    ),
    ("gcp", lambda d: _config(d, "gpu").pop("scheduling"), "onHostMaintenance: TERMINATE"),
    (
        "kuberay-cluster",
        lambda d: _pod(d)["spec"].update(
            nodeSelector={"cloud.google.com/gke-accelerator": "nvidia-l5"}
        ),
        "must be of a known type, but is nvidia-l5",
    ),
    ("kuberay-cluster", lambda d: _container(d).pop("resources"), "gpu must have a limit of"),
    (
        "kuberay-cluster",
        lambda d: _container(d)["resources"]["requests"].update({"nvidia.com/gpu": "2"}),
        "gpu must request as many GPUs as its limit, but requests 2 with 1",
    ),
    (
        "kuberay-cluster",
        lambda d: _spec(d)["workerGroupSpecs"][0].update(replicas=9),
        "`replicas` of gpu must be at most `maxReplicas`, 4, but is 9",
    ),
    ("kuberay-cluster", lambda d: _spec(d).update(workerGroupSpecs=[]), "must have a group"),
    (
        "kuberay-cluster",
        lambda d: _spec(d)["workerGroupSpecs"][0].update(maxReplicas=8),
        "MTIL_MACHINES of the head must match its groups",
    ),
    ("cluster", lambda d: d.update(max_workers=0), "`max_workers` must be 1 or more"),
    ("cluster", lambda d: d.update(upscaling_speed=0), "`upscaling_speed` must be more than 0"),
    # Versions.
    (
        "cluster",
        lambda d: d.update(
            docker={"head_image": "a/b:1", "worker_image": "a/b:2", "container_name": "x"}
        ),
        "All machines must have one image, but got gpu: a/b:2, gpu: a/b:2, head: a/b:1",
    ),
    (
        "cluster",
        lambda d: (
            d.update(docker={"image": "a/b:1", "container_name": "x"}),
            node_type(d, "gpu").update(docker={"worker_image": "a/b:2"}),
        ),
        "All machines must have one image",
    ),
    (
        "cluster",
        lambda d: d.update(docker={"image": "a/b:latest", "container_name": "x"}),
        "Images must have a fixed tag",
    ),
    ("cluster", lambda d: d.update(docker={"image": "a/b:1"}), "`docker.container_name`"),
    (
        "cluster",
        lambda d: d["setup_commands"].append("~/venv/bin/pip install ray==2.9 # constraints.txt"),
        "Packages must come from cluster/install.sh",
    ),
    (
        "cluster",
        lambda d: d.update(
            setup_commands=[],
            head_setup_commands=["~/src/cluster/install.sh ~/venv"],
            worker_setup_commands=["~/src/cluster/install.sh ~/other"],
        ),
        "All machines must install into one folder, but got gpu and gpu: ~/other, head: ~/venv",
    ),
    (
        "cluster",
        lambda d: d["file_mounts"].pop("/home/ubuntu/src/constraints.txt"),
        "`file_mounts` must have constraints.txt",
    ),
    (
        "cluster",
        lambda d: d["file_mounts"].update({"/home/ubuntu/src/constraints.txt": "README.md"}),
        "must take constraints.txt from this checkout, but takes README.md",
    ),
    (
        "kuberay-job",
        lambda d: _spec(d).update(runtimeEnvYAML="pip:\n- ray==2.9\n"),
        "`spec.runtimeEnvYAML` must bring no packages, but has `pip`",
    ),
    # Secrets.
    (
        "cluster",
        lambda d: d["setup_commands"].append("aws configure set aws_secret_access_key wJalrXUtnFE"),
        "must hold no secrets, but `setup_commands[3]`",
    ),
    (
        "cluster",
        lambda d: d["setup_commands"].append("export WANDB_API_KEY='0123456789abcdef'"),
        "must hold no secrets, but `setup_commands[3]`",
    ),
    (
        "kuberay-cluster",
        lambda d: _container(d).update(env=[{"name": "API_KEY", "value": "0123456789"}]),
        "API_KEY has a value in it",
    ),
    (
        "cluster",
        lambda d: d["file_mounts"].update({"/home/ubuntu/.aws": "~/.ray"}),
        "`file_mounts` must not copy keys to the machines, but has ~/.ray",
    ),
    # Network access.
    (
        "cluster",
        lambda d: d["provider"]["security_group"].update(
            IpPermissions=[
                {
                    "FromPort": 0,
                    "ToPort": 65535,
                    "IpProtocol": "tcp",
                    "IpRanges": [{"CidrIp": "8.0.0.0/4"}],
                }
            ]
        ),
        "Ports must not be open to everybody",
    ),
    (
        "cluster",
        lambda d: _in_start(d, "head", "host=127.0.0.1", "host='0.0.0.0'"),
        "must listen on 127.0.0.1, but head has --dashboard-host=0.0.0.0",
    ),
    (
        "cluster",
        lambda d: _in_start(d, "head", "host=127.0.0.1", "host=$(curl -s ifconfig.me)"),
        "must listen on 127.0.0.1",
    ),
    (
        "kuberay-cluster",
        lambda d: _spec(d)["headGroupSpec"]["template"]["spec"].update(hostNetwork=True),
        "hostNetwork` must be false",
    ),
    (
        "kuberay-cluster",
        lambda d: _container(d).update(ports=[{"containerPort": 8265, "hostPort": 8265}]),
        "hostPort` must be left out, but opens 8265",
    ),
    (
        "kuberay-cluster",
        lambda d: _container(d).update(env=[{"name": "RAY_AUTH_MODE", "value": "disabled"}]),
        "gpu must not set RAY_AUTH_MODE",
    ),
    (
        "cluster",
        lambda d: _in_start(d, "head", "MODE=token", "MODE=tokens"),
        "must have RAY_AUTH_MODE=token, but lacks it in head",
    ),
    (
        "cluster",
        lambda d: _in_start(d, "head", "ray start", "RAY_AUTH_MODE=disabled ray start"),
        "must have RAY_AUTH_MODE=token, but lacks it in head",
    ),
    (
        "cluster",
        lambda d: d["file_mounts"].pop("/home/ubuntu/.ray/auth_token"),
        "`file_mounts` must have ~/.ray/auth_token",
    ),
    ("skypilot", lambda d: d.pop("file_mounts"), "`file_mounts` must have ~/.ray/auth_token"),
    ("cluster", lambda d: d["auth"].update(ssh_user="ec2-user"), "into the home of ec2-user"),
    (
        "on-prem",
        lambda d: d["provider"].update(head_ip="8.8.8.8"),
        "addresses of a private network, as Ray's ports are open there, but 8.8.8.8 is",
    ),
    (
        "skypilot",
        lambda d: d["envs"].update(AWS_ENDPOINT_URL="http://s3.example.com:9000"),
        "must be reached by https://, but http://s3.example.com:9000 is not encrypted",
    ),
    # Rules of the clouds.
    ("cluster", lambda d: d["provider"].pop("region"), "`provider.region` must be given"),
    ("cluster", lambda d: d["provider"].update(region="us-esat-1"), "must be a region of AWS"),
    (
        "cluster",
        lambda d: d["provider"].update(availability_zone="us-east-1a, eu-west-1a"),
        "must be of us-east-1, but is eu-west-1a",
    ),
    (
        "cluster",
        lambda d: _config(d, "gpu-spot").update(InstanceMarketOptions={"MarketType": "sport"}),
        "InstanceMarketOptions.MarketType is sport, not spot or",
    ),
    (
        "cluster",
        lambda d: _config(d, "gpu").update(ImagesId="ami-1"),
        '`node_config` of gpu must be valid for EC2, but: Unknown parameter in input: "ImagesId"',
    ),
    (
        "cluster",
        lambda d: _config(d, "gpu").update(IamInstanceProfile={"Name": "mtil-head"}),
        "gpu must have its own `IamInstanceProfile`, but has the head's",
    ),
    ("cluster", lambda d: _config(d, "gpu").pop("TagSpecifications"), "gpu must have a tag in"),
    (
        "cluster",
        lambda d: _config(d, "gpu").update(MetadataOptions={"HttpTokens": "optional"}),
        "`HttpTokens` of gpu must be required",
    ),
    (
        "cluster",
        lambda d: _config(d, "gpu")["BlockDeviceMappings"][0]["Ebs"].update(Encrypted=False),
        "Disks of gpu must be encrypted, but /dev/sda1 is not",
    ),
    ("gcp", lambda d: d["provider"].pop("project_id"), "`provider.project_id` must be given"),
    (
        "gcp",
        lambda d: d["provider"].update(availability_zone="europe-west1-b"),
        "must be of us-central1, but is europe-west1-b",
    ),
    ("gcp", lambda d: _config(d, "gpu").pop("serviceAccounts"), "gpu must have `serviceAccounts`"),
    ("cluster", lambda d: d.update(cluster_name="my cluster!"), "`cluster_name` must be of lower"),
    # Start commands.
    (
        "cluster",
        lambda d: _in_start(d, "worker", "IP:6379", "IP:6380"),
        "Workers must join the head's port 6379, but join 6380",
    ),
    (
        "cluster",
        lambda d: _in_start(d, "worker", "$RAY_HEAD_IP", "10.1.1.1"),
        "Workers must join $RAY_HEAD_IP:6379, but join 10.1.1.1:6379",
    ),
    (
        "cluster",
        lambda d: _in_start(d, "worker", "--address=$RAY_HEAD_IP:6379", "--head"),
        "Workers must join the head, but start their own cluster",
    ),
    ("cluster", lambda d: _in_start(d, "head", "--head ", ""), "`ray start` must have --head"),
    ("on-prem", lambda d: d["provider"].pop("head_ip"), "`provider.head_ip` must name the head"),
    ("on-prem", lambda d: d["provider"].pop("worker_ips"), "`provider.worker_ips` must name"),
    (
        "on-prem",
        lambda d: d["provider"].update(head_ip="10.0.0.300"),
        "must name hosts by an address or a name, but has 10.0.0.300",
    ),
    (
        "on-prem",
        lambda d: d["provider"].update(worker_ips=["10.0.0.2", "10.0.0.2"]),
        "must name each host once, but has 10.0.0.2 twice",
    ),
    (
        "on-prem",
        lambda d: d.update(docker={"image": "a/b:1", "container_name": "x"}),
        "`docker` must be left out",
    ),
    # Text read as options, or run, by local programs.
    *(
        (name, lambda d, user=user: d["auth"].update(ssh_user=user), "`auth.ssh_user` must be the")
        for name in ("cluster", "gcp")
        for user in ("-oProxyCommand=touch x", "-l", "a b", "a;b", "$(id)", "a'b", "%h", "a\nb")
    ),
    *(
        ("cluster", lambda d, at=at: d["auth"].update(ssh_proxy_command=at), "ssh -W %h:%p` and a")
        for at in ("touch /tmp/x", "ssh -oProxyCommand=id -W %h:%p x", "ssh -W %h:%p x; id", "-W")
    ),
    *(
        ("on-prem", lambda d, name=name: d.update(cluster_name=name), "`cluster_name` must be a")
        for name in ("../../home/x", "-x", "a/b", "a b", ".")
    ),
    *(
        (
            "on-prem",
            lambda d, host=host: d["provider"].update(head_ip=host),
            "`provider` must name hosts by an address or a name",
        )
        for host in ("-oProxyCommand=id", "x;id", "fe80::1%$(id)", "fe80::1%-l", "a@b", "a b")
    ),
    (
        "on-prem",
        lambda d: d["provider"].update(external_head_ip="-oProxyCommand=id"),
        "`provider.external_head_ip` must be an address or a name",
    ),
    (
        "cluster",
        lambda d: d.update(docker={"image": "me/mtil:gpu-1.0", "container_name": "x; id"}),
        "`docker.container_name` must be a name",
    ),
    (
        "cluster",
        lambda d: d.update(docker={"image": "me/mtil:$(id)", "container_name": "x"}),
        "`docker.image` must be the name of an image",
    ),
    (
        "cluster",
        lambda d: d["file_mounts"].update({"/home/ubuntu/$(id)": "./cluster"}),
        "`file_mounts` must name paths on the machines",
    ),
    # Automatic shutdown.
    (
        "kuberay-job",
        lambda d: _spec(d).pop("shutdownAfterJobFinishes"),
        "`spec.shutdownAfterJobFinishes` must be true",
    ),
    ("skypilot", lambda d: d["resources"].pop("autostop"), "or fewer, but is missing"),
    ("skypilot", lambda d: d["resources"].update(autostop="5h"), "or fewer, but is 5h"),
    # Misspelt fields.
    (
        "kuberay-cluster",
        lambda d: _spec(d).update(idleTimeoutSeconds=5),
        "('idleTimeoutSeconds' was unexpected)",
    ),
    ("kuberay-cluster", lambda d: _pod(d)["spec"].update(nodeSelctor={}), "'nodeSelctor' is not"),
    ("kuberay-cluster", lambda d: _container(d).update(volumMounts=[]), "'volumMounts' is not one"),
    ("skypilot", lambda d: d["resources"].update(accelerator="L4"), "'accelerator' is not one of"),
]


@pytest.mark.parametrize(
    ("name", "mistake", "message"), MISTAKES, ids=[m[2][:40] for m in MISTAKES]
)
def test_a_mistake_is_told_and_nothing_else_is(
    name: str, mistake: Mistake, message: str, tmp_path: Path
) -> None:
    document = read(name)
    mistake(document)
    # A mistake shared by both GPU groups is reported twice.
    problems = [problem.replace("gpu-spot", "gpu") for problem in _problems(document, tmp_path)]
    assert problems
    assert all(message in problem for problem in problems), problems


LEGITIMATE: list[tuple[str, Mistake]] = [
    ("skypilot", lambda d: d["resources"].update(accelerators={"L4": 1})),
    ("skypilot", lambda d: d["resources"].update(accelerators=["L4:1", "A10G:1"])),
    ("skypilot", lambda d: d["resources"].update(accelerators="A100-80GB:1")),
    ("skypilot", lambda d: d["resources"].update(autostop=10)),
    ("skypilot", lambda d: d["envs"].update(N=3)),
    ("skypilot", lambda d: d.update(workdir={"url": "https://example.com/mtil"})),
    ("skypilot", lambda d: (d.pop("setup"), d["resources"].update(image_id="docker:me/mtil:gpu"))),
    ("on-prem", lambda d: d["provider"].update(head_ip="desk-1", worker_ips=["desk-2.lab.edu"])),
    ("on-prem", lambda d: d["provider"].update(head_ip="fe80::1%eth0", worker_ips=["fd00::2"])),
    (
        "on-prem",
        lambda d: (
            d["auth"].update(ssh_user="ann@lab"),
            d.update(file_mounts={"/home/ann@lab/.ray/auth_token": "~/.ray/auth_token", "/s": "."}),
        ),
    ),
    (
        "cluster",
        lambda d: d["auth"].update(
            ssh_proxy_command="ssh -i ~/.ssh/jump -o StrictHostKeyChecking=no -W %h:%p me@bastion"
        ),
    ),
    ("on-prem", lambda d: d.update(min_workers=0)),
    (
        "on-prem",
        lambda d: d["setup_commands"].append("export AWS_ENDPOINT_URL=http://10.0.0.9:8333"),
    ),
    ("cluster", lambda d: _in_start(d, "head", " --dashboard-host=127.0.0.1", "")),
    ("cluster", lambda d: d["setup_commands"].append("sudo apt-get install --yes pipx")),
    (
        "cluster",
        lambda d: d["setup_commands"].append("~/venv/bin/pip install x -c ~/src/constraints.txt"),
    ),
    ("cluster", lambda d: _config(d, "gpu").update(SecurityGroupIds=["sg-1"], SubnetIds=["s-1"])),
    ("cluster", lambda d: d["provider"].update(availability_zone="us-east-1a,us-east-1b")),
    (
        "cluster",
        lambda d: d.update(docker={"image": "me/mtil:gpu-1.0", "container_name": "mtil"}),
    ),
    (
        "gcp",
        lambda d: _config(d, "gpu").update(
            machineType="n1-standard-4",
            guestAccelerators=[{"acceleratorType": "nvidia-tesla-t4", "acceleratorCount": 1}],
        ),
    ),
    (
        "kuberay-cluster",
        lambda d: _spec(d)["headGroupSpec"]["rayStartParams"].update({"dashboard-host": "0.0.0.0"}),
    ),
    ("kuberay-cluster", lambda d: _spec(d)["workerGroupSpecs"][0].update(idleTimeoutSeconds=60)),
]


@pytest.mark.parametrize(("name", "change"), LEGITIMATE)
def test_what_is_no_mistake_is_not_told(name: str, change: Mistake, tmp_path: Path) -> None:
    document = read(name)
    change(document)
    assert _problems(document, tmp_path) == ()


def test_an_endpoint_in_the_same_network_that_is_not_encrypted_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    document = read("on-prem")
    document["setup_commands"].append("export AWS_ENDPOINT_URL=http://10.0.0.9:8333")
    path = tmp_path / "file.yaml"
    path.write_text(yaml.dump(document))
    assert main(["check", str(path)]) == 0
    assert "!!  http://10.0.0.9:8333 sends images and maps in the clear" in capsys.readouterr().out


def test_buckets_that_a_job_names_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    job, task = read("kuberay-job"), read("skypilot")
    _spec(job)["entrypoint"] = "mtil circle --data s3://mine/data --run s3://mine/run"
    task["envs"] = {"DATA": "s3://other/data", "RUN": "s3://CHANGE-ME/run"}
    for document, bucket in ((job, "s3://mine"), (task, "s3://other")):
        (problem,) = _problems(document, tmp_path)
        assert problem.startswith(f"The bucket must be reachable from here, but {bucket} is not (")


def test_a_key_that_others_may_read_is_told(home: Path, tmp_path: Path) -> None:
    (home / ".ssh" / "mtil").chmod(0o644)
    (home / ".ray" / "auth_token").chmod(0o640)
    token, key = _problems(read("on-prem"), tmp_path)
    assert token.startswith("Nobody else may read ~/.ray/auth_token")
    assert key.startswith("Nobody else may read ~/.ssh/mtil")


def test_a_missing_token_is_told_how_to_make(home: Path, tmp_path: Path) -> None:
    (home / ".ray" / "auth_token").unlink()
    (problem,) = _problems(read("cluster"), tmp_path)
    assert problem.endswith("run `ray get-auth-token --generate`.")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "must be readable"),
        ("a: [", "must be YAML"),
        ("- 1", "must have a `provider.type`"),
        ("provider: {type: azure}", "must have a `provider.type`"),
        ("provider: null", "must have a `provider.type`"),
        (b"\xff\xfe\x00", "must be readable"),
    ],
)
def test_what_is_no_cluster_file_is_refused(
    text: str | bytes | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file.yaml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert main(["check", str(path)]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.startswith("cluster: ")
    assert err.count("\n") == 1


def test_check_prints_what_to_fill_in_and_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(ROOT / "cluster" / "templates" / "on-prem.yaml")]) == 0
    out = capsys.readouterr().out
    assert "to fill in: `provider.head_ip` is 192.0.2.11\n" in out
    assert "cost: none to a cloud\n" in out

    path = tmp_path / "file.yaml"
    path.write_text(yaml.dump(read("on-prem") | {"max_workers": 3}))
    assert main(["check", str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.out.startswith("NO  `max_workers` must be 1")
    assert "must pass every rule, but has 1 problem(s)" in captured.err


def test_only_whole_files_are_launched(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"must be filled in first, but `provider\.head_ip`"):
        open_cluster_file(ROOT / "cluster" / "templates" / "on-prem.yaml")
    with pytest.raises(UsageError, match="use `sky launch "):
        open_cluster_file(ROOT / "cluster" / "templates" / "skypilot.yaml")
    document = read("on-prem")
    document["provider"] |= {"head_ip": "10.0.0.1", "worker_ips": ["10.0.0.2"]}
    path = tmp_path / "file.yaml"
    path.write_text(yaml.dump(document))
    assert open_cluster_file(path).head.start[0] == "~/venv/bin/ray stop"


@pytest.mark.parametrize("bucket", ["mine", "s3://", "s3://My_Bucket!!", "https://mine", "gs://a"])
def test_a_bucket_must_be_named_as_one(bucket: str) -> None:
    (problem,) = check_cluster_file(ROOT / "cluster.yaml", bucket=bucket).problems
    assert problem == f"A bucket must be named as s3://BUCKET or gs://BUCKET, but got {bucket}."


def test_an_unreachable_bucket_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    (problem,) = check_cluster_file(ROOT / "cluster.yaml", bucket="s3://mine/data").problems
    assert problem.startswith("The bucket must be reachable from here, but s3://mine is not (")


def test_only_aws_has_an_account_to_ask() -> None:
    kind, document = load_cluster_file(ROOT / "cluster" / "templates" / "on-prem.yaml")
    assert check_aws_account(parse_cluster_file(ROOT, kind, document)) == []


@pytest.mark.slow
@pytest.mark.parametrize("by_id", [False, True])
def test_security_groups_of_the_account_are_looked_at(
    by_id: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3
    from moto import mock_aws

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        ec2 = boto3.client("ec2", region_name="us-east-1")
        (vpc,) = ec2.describe_vpcs()["Vpcs"]
        group = ec2.create_security_group(GroupName="mtil", Description="mtil", VpcId=vpc["VpcId"])[
            "GroupId"
        ]
        document = read("cluster")
        if by_id:
            del document["provider"]["security_group"]
            for node_type in document["available_node_types"].values():
                node_type["node_config"]["SecurityGroupIds"] = [group]
        file = parse_cluster_file(tmp_path, "aws", document)
        (empty,) = check_aws_account(file)
        assert "must exist in us-east-1 and have a rule" in empty
        for addresses, wide in (
            ("10.0.0.0/8", False),
            ("198.51.100.7/32", False),
            ("0.0.0.0/1", True),
        ):
            ec2.authorize_security_group_ingress(
                GroupId=group, IpProtocol="tcp", FromPort=22, ToPort=22, CidrIp=addresses
            )
            assert bool(check_aws_account(file)) == wide
