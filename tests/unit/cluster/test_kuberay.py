"""KubeRay objects in common forms: beside further objects, and without optional fields."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.__main__ import main
from cluster.check import check_cluster_file
from cluster.files import load_cluster_file, parse_cluster_file
from tests.unit.documents import Document, Plain, read

CONFIG: Document = {
    "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "code"}, "data": {"x.py": "1\n"},
}  # fmt: skip
SERVICE: Document = {
    "apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": {"ports": []},
}  # fmt: skip


def _write(path: Path, *documents: Any) -> Path:
    path.write_text(yaml.dump_all(documents, Dumper=Plain))
    return path


def _problems(tmp_path: Path, *documents: Any) -> tuple[str, ...]:
    return check_cluster_file(_write(tmp_path / "file.yaml", *documents)).problems


@pytest.mark.parametrize("name", ["kuberay-cluster", "kuberay-job"])
def test_the_object_of_ray_s_among_others_is_checked(name: str, tmp_path: Path) -> None:
    document = read(name)
    for documents in ((CONFIG, document), (document, SERVICE, None), (None, CONFIG, document)):
        assert _problems(tmp_path, *documents) == ()
    cluster = document["spec"].get("rayClusterSpec", document["spec"])
    cluster["enableInTreeAutoscaling"] = False
    (problem,) = _problems(tmp_path, CONFIG, document, SERVICE)
    assert problem.startswith("`enableInTreeAutoscaling` must be true")


def test_what_the_definition_has_a_default_for_may_be_left_out(tmp_path: Path) -> None:
    document = read("kuberay-cluster")
    for group in document["spec"]["workerGroupSpecs"]:
        del group["minReplicas"]
        group.pop("replicas", None)
    assert _problems(tmp_path, document) == ()
    groups = parse_cluster_file(*[tmp_path, *load_cluster_file(tmp_path / "file.yaml")]).workers
    assert {group.smallest for group in groups} == {0}
    group["maxReplicas"] = None  # Kubernetes treats a null field as missing
    (problem,) = [one for one in _problems(tmp_path, document) if "MTIL_MACHINES" not in one]
    assert problem.startswith(f"{group['groupName']} must have `maxReplicas`, or workers")


def test_a_cluster_without_workers_is_told_so(tmp_path: Path) -> None:
    document = read("kuberay-cluster")
    del document["spec"]["workerGroupSpecs"]
    problems = _problems(tmp_path, document)
    assert any(one.startswith("`workerGroupSpecs` must have a group") for one in problems)


def test_a_job_in_interactive_mode_says_nothing_of_what_runs(tmp_path: Path) -> None:
    document = read("kuberay-job")
    del document["spec"]["entrypoint"]
    (problem,) = _problems(tmp_path, document)
    assert "'entrypoint' is a required property" in problem
    document["spec"]["submissionMode"] = "InteractiveMode"
    assert _problems(tmp_path, document) == ()
    document["spec"]["submissionMode"] = "Interactive"
    assert any("'Interactive' is not one of" in one for one in _problems(tmp_path, document))


def test_a_name_may_be_left_to_kubernetes(tmp_path: Path) -> None:
    document = read("kuberay-job")
    document["metadata"] = {"generateName": "mtil-"}
    assert _problems(tmp_path, document) == ()


def test_a_job_on_a_schedule_and_a_service_have_a_cluster_too(tmp_path: Path) -> None:
    document, job = read("kuberay-job"), read("kuberay-job")["spec"]
    document |= {"kind": "RayCronJob", "spec": {"schedule": "0 3 * * *", "jobTemplate": job}}
    assert _problems(tmp_path, document) == ()
    del job["shutdownAfterJobFinishes"]
    (problem,) = _problems(tmp_path, document)
    assert problem.startswith("`spec.jobTemplate.shutdownAfterJobFinishes` must be true")

    service = document | {"kind": "RayService", "spec": {"rayClusterConfig": job["rayClusterSpec"]}}
    assert _problems(tmp_path, service) == ()
    job["rayClusterSpec"]["rayVersion"] = "2.9.0"
    (problem,) = _problems(tmp_path, service)
    assert "`rayVersion` must be" in problem


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([CONFIG, SERVICE], "SkyPilot's, but {path} has none of these"),
        ([CONFIG], "SkyPilot's, but {path} is none of these"),
        (
            [read("kuberay-cluster"), read("kuberay-job")],
            "must have one Ray object, but {path} has 2 (RayCluster ",
        ),
        (
            [read("on-prem"), CONFIG],
            "of the kind local must be one YAML document, but {path} has 2",
        ),
        (
            [read("kuberay-job") | {"spec": {"entrypoint": "x", "clusterSelector": {"a": "b"}}}],
            "but the job of {path} runs on the existing cluster named in `clusterSelector`",
        ),
    ],
)
def test_what_cannot_be_checked_is_one_sentence(
    documents: list[Document], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _write(tmp_path / "file.yaml", *documents)
    assert main(["check", str(path)]) == 2
    err = capsys.readouterr().err
    assert message.format(path=path) in err
    assert err.count("\n") == 1


def test_a_job_beside_the_cluster_that_it_runs_on_leaves_the_cluster_to_check(
    tmp_path: Path,
) -> None:
    job = read("kuberay-job") | {"spec": {"entrypoint": "x", "clusterSelector": {"a": "b"}}}
    assert _problems(tmp_path, job, read("kuberay-cluster")) == ()


@pytest.mark.parametrize("text", ["[", "[" * 100_000, "a: 1\n---\nb: 2\n"])
def test_the_environment_of_a_job_that_is_no_yaml_is_told(text: str, tmp_path: Path) -> None:
    document = read("kuberay-job")
    document["spec"]["runtimeEnvYAML"] = text
    (problem,) = _problems(tmp_path, document)
    assert problem.startswith("`spec.runtimeEnvYAML` must be ")
