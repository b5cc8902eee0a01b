"""Size, price and number of the machines in a cluster file."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from cluster import machine_types, prices
from cluster.files import (
    ROOT,
    describe_workers,
    find_ray_cluster_spec,
    load_cluster_file,
    parse_cluster_file,
)
from tests.unit.documents import Document, node_type, read


@pytest.mark.slow
def test_types_of_machines_have_what_aws_says_of_them() -> None:
    """Compare with moto's copy of EC2's answers."""
    from moto.ec2.models.instance_types import INSTANCE_TYPES

    ours = {
        name: found
        for (cloud, name), found in machine_types.load_machine_types().items()
        if cloud == "aws"
    }
    assert len(ours) > 200
    for name, found in ours.items():
        theirs = INSTANCE_TYPES[name]
        gpus = theirs.get("GpuInfo", {}).get("Gpus", [])
        counts = (theirs["VCpuInfo"]["DefaultVCpus"], sum(gpu["Count"] for gpu in gpus))
        assert (found.cpus, found.gpus) == counts, name
        assert {gpu["Name"] for gpu in gpus} <= {str(found.accelerator).partition("-")[0]}, name


def test_every_machine_with_a_price_is_known() -> None:
    assert prices.load_prices().keys() <= machine_types.load_machine_types().keys()


def test_the_cost_of_the_aws_file_is_that_of_its_machines() -> None:
    kind, document = load_cluster_file(ROOT / "cluster.yaml")
    found = prices.estimate_cost(parse_cluster_file(ROOT / "cluster.yaml", kind, document))
    # m6i.large at 0.096; `max_workers` allows four g6.xlarge at 0.8048.
    assert found.idle == pytest.approx(0.096)
    assert found.most == pytest.approx(0.096 + 4 * 0.8048)
    assert found.unknown == ()


def test_the_dearest_workers_count_first(tmp_path: Path) -> None:
    document = read("cluster")
    document["max_workers"] = 3
    node_type(document, "gpu")["node_config"]["InstanceType"] = "g6.4xlarge"
    found = prices.estimate_cost(parse_cluster_file(tmp_path, "aws", document))
    assert found.most == pytest.approx(0.096 + 2 * 1.3232 + 1 * 0.8048)


@pytest.mark.parametrize(
    ("change", "unknown"),
    [
        (
            lambda d: node_type(d, "gpu")["node_config"].update(InstanceType="p9.xlarge"),
            ("p9.xlarge",),
        ),
        (lambda d: d["provider"].update(region="sa-east-1"), ("m6i.large", "g6.xlarge")),
    ],
)
def test_a_price_that_is_not_known_is_not_guessed(
    change: Callable[[Document], object], unknown: tuple[str, ...], tmp_path: Path
) -> None:
    document = read("cluster")
    change(document)
    found = prices.estimate_cost(parse_cluster_file(tmp_path, "aws", document))
    assert (found.idle, found.most, found.unknown) == (None, None, unknown)


def test_every_price_has_a_source_with_a_page_and_a_day() -> None:
    table = yaml.safe_load((ROOT / "cluster" / "prices.yaml").read_text())
    for source in table["sources"].values():
        assert "https://" in source["page"]
        assert source["date"].year >= 2026
    assert {row["source"] for row in table["machines"]} == set(table["sources"])
    assert all(price > 0 for row in table["machines"] for price in row["prices"].values())


def test_what_a_file_can_start_is_told_to_its_jobs() -> None:
    gpu = {"cpus": 4, "gpus": 1, "most": 2}
    description = describe_workers(ROOT / "cluster.yaml")
    assert description is not None
    assert json.loads(description) == {"most": 4, "kinds": [gpu, gpu | {"most": 4}]}
    assert (
        describe_workers(ROOT / "cluster" / "templates" / "on-prem.yaml") is None
    )  # all machines already exist


@pytest.mark.parametrize("name", ["kuberay-cluster", "kuberay-job"])
def test_pods_are_told_what_their_groups_may_grow_to(name: str) -> None:
    spec = find_ray_cluster_spec(read(name))
    (variable,) = spec["headGroupSpec"]["template"]["spec"]["containers"][0]["env"]
    assert variable["name"] == "MTIL_MACHINES"
    assert variable["value"] == describe_workers(ROOT / "cluster" / "templates" / f"{name}.yaml")
