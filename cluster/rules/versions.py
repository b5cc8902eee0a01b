"""Rules on a common image and on the package versions of constraints.txt."""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from cluster import files, reading
from cluster.commands import split_statements
from cluster.errors import UsageError
from cluster.files import RAY_UP_KINDS, ClusterFile, MachineGroup
from cluster.rules.starting import resolve_local_path

_RAY_PIN = re.compile(r"^ray==(\S+)$", re.MULTILINE)
_INSTALLERS = {"pip", "pip3", "conda", "mamba", "uv", "pipx", "poetry", "easy_install"}
_SYSTEM_INSTALLERS = {"apt", "apt-get", "dnf", "yum"}
_SCRIPT = "cluster/install.sh"
_CONSTRAINTS = "constraints.txt"


def check_common_image(file: ClusterFile) -> Iterator[str]:
    """Require a common image for all machines, with a fixed tag."""
    images = {group.image for group in file.groups}
    if len(images) > 1:
        listing = ", ".join(f"{group.name}: {group.image}" for group in file.groups)
        yield f"All machines must have one image, but got {listing}; use the head's for all."
    for image in sorted(image for image in images if image and _is_container(file)):
        tag = image.removeprefix("docker:").rpartition("/")[2].partition(":")[2]
        if "@" not in image and tag in ("", "latest"):
            yield (
                "Images must have a fixed tag, or machines started on different days differ, but "
                f"{image} has none; name a version or a digest."
            )
        if tag == "cpu" and any(group.gpus for group in file.groups):
            yield f"GPU machines must have an image for a GPU, but have {image}; see Dockerfile."


def _is_container(file: ClusterFile) -> bool:
    if file.kind == "skypilot":
        return str(file.head.image).startswith("docker:")
    types = file.document.get("available_node_types") or {}
    return file.kind == "kuberay" or any(
        "docker" in node for node in (file.document, *types.values())
    )


def check_container_name(file: ClusterFile) -> Iterator[str]:
    """Require a container name beside an image, without which Ray fails at once."""
    docker = file.document.get("docker") if file.kind in RAY_UP_KINDS else None
    if docker and not docker.get("container_name"):
        yield "`docker.container_name` must be given beside an image, but is missing."


def check_pinned_versions(file: ClusterFile) -> Iterator[str]:
    """Require the versions of constraints.txt, above all of Ray."""
    pin = _RAY_PIN.search((files.ROOT / _CONSTRAINTS).read_text())
    assert pin is not None
    version = pin[1]
    if file.kind == "kuberay":
        ray_version = files.find_ray_cluster_spec(file.document).get("rayVersion")
        if ray_version != version:
            yield f"`rayVersion` must be constraints.txt's {version}, but is {ray_version}."
    for group in file.groups:
        image_version = re.search(r"rayproject/ray(?:-ml)?:(\d[\d.]*\d)", group.image or "")
        if image_version and image_version[1] != version:
            yield f"The image of {group.name} must have Ray {version}, but is {group.image}."
        yield from _find_unpinned_installs(group)


def _find_unpinned_installs(group: MachineGroup) -> Iterator[str]:
    for command in group.setup + group.start:
        for words in split_statements(command):
            programs = {PurePosixPath(word).name for word in words}
            if not programs & _INSTALLERS or not programs & {"install", "add", "sync"}:
                continue
            if programs & _SYSTEM_INSTALLERS:
                continue
            constraint_files = [PurePosixPath(word.rpartition("=")[2]).name for word in words]
            has_flag = any(word.startswith(("-c", "--constraint")) for word in words)
            if not (has_flag and _CONSTRAINTS in constraint_files):
                yield (
                    f"Packages must come from {_SCRIPT}, or with --constraint {_CONSTRAINTS}, but "
                    f"{group.name} runs `{' '.join(words)}`, which may install different versions; "
                    "add the packages to pyproject.toml."
                )


def check_installation(file: ClusterFile) -> Iterator[str]:
    """Require machines without containers to install this checkout into a common folder."""
    if _is_container(file):
        return
    targets: dict[str, list[str]] = {}
    for group in file.groups:
        folders = [
            words[-1]
            for command in group.setup
            for words in split_statements(command)
            if any(word.endswith(_SCRIPT) for word in words)
        ]
        if not folders:
            yield (
                f"The set-up of {group.name} must run {_SCRIPT}, which installs the versions of "
                f"{_CONSTRAINTS}, but does not."
            )
        for folder in folders:
            targets.setdefault(folder, []).append(group.name)
    if len(targets) > 1:
        listing = ", ".join(f"{' and '.join(names)}: {path}" for path, names in targets.items())
        yield f"All machines must install into one folder, but got {listing}."
    if targets and file.kind in RAY_UP_KINDS:
        yield from _check_constraints_mount(file)


def _check_constraints_mount(file: ClusterFile) -> Iterator[str]:
    constraints = (files.ROOT / _CONSTRAINTS).resolve()
    mounts: dict[str, str] = file.document.get("file_mounts", {})
    if any(
        resolve_local_path(str(local)).resolve() == files.ROOT.resolve()
        for local in mounts.values()
    ):
        return
    sources = [local for remote, local in mounts.items() if remote.endswith(f"/{_CONSTRAINTS}")]
    if not sources:
        yield f"`file_mounts` must have {_CONSTRAINTS}, which {_SCRIPT} reads, but does not."
    for local in sources:
        if resolve_local_path(str(local)).resolve() != constraints:
            yield (
                f"`file_mounts` must take {_CONSTRAINTS} from this checkout, but takes {local} "
                "instead."
            )


def check_no_job_packages(file: ClusterFile) -> Iterator[str]:
    """Refuse packages in a job, which each machine would install at a different time."""
    job = files.find_job_spec(file.document) if file.kind == "kuberay" else None
    text = "" if job is None else job.get("runtimeEnvYAML") or ""
    name = f"`{files.find_job_key(file.document)}.runtimeEnvYAML`"
    try:
        (runtime_env,) = reading.parse_yaml_documents(text, f"{name} must be YAML, but is not") or [
            {}
        ]
    except UsageError as error:
        yield str(error)
        return
    except ValueError:
        yield f"{name} must be a single YAML document, but has several."
        return
    for key in ("pip", "uv", "conda", "image_uri", "container"):
        if isinstance(runtime_env, dict) and key in runtime_env:
            yield f"{name} must bring no packages, but has `{key}`; put packages into the image."


RULES = (
    check_common_image,
    check_container_name,
    check_pinned_versions,
    check_installation,
    check_no_job_packages,
)
