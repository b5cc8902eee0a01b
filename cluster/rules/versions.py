"""Machines of one cluster have one image, and the versions of constraints.txt."""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from cluster import files, reading
from cluster.commands import statements
from cluster.errors import UsageError
from cluster.files import LAUNCHED, ClusterFile, Group
from cluster.rules.starting import local_path

_PIN = re.compile(r"^ray==(\S+)$", re.MULTILINE)
_INSTALLERS = {"pip", "pip3", "conda", "mamba", "uv", "pipx", "poetry", "easy_install"}
_OF_THE_SYSTEM = {"apt", "apt-get", "dnf", "yum"}
_SCRIPT = "cluster/install.sh"
_CONSTRAINTS = "constraints.txt"


def one_image(file: ClusterFile) -> Iterator[str]:
    """Machines of one cluster start from one image, which stays what it is."""
    images = {group.image for group in file.groups}
    if len(images) > 1:
        told = ", ".join(f"{group.name}: {group.image}" for group in file.groups)
        yield f"All machines must have one image, but got {told}; give all of them the head's."
    for image in sorted(image for image in images if image and _is_container(file)):
        tag = image.removeprefix("docker:").rpartition("/")[2].partition(":")[2]
        if "@" not in image and tag in ("", "latest"):
            yield (
                "Images must have a tag that stays what it is, or machines of two days differ, but "
                f"{image} has none; name a version or a digest."
            )
        if tag == "cpu" and any(group.gpus for group in file.groups):
            yield f"GPU machines must have an image for a GPU, but have {image}; see Dockerfile."


def _is_container(file: ClusterFile) -> bool:
    if file.kind == "skypilot":
        return str(file.head.image).startswith("docker:")
    types = file.document.get("available_node_types") or {}
    return file.kind == "kuberay" or any(
        "docker" in one for one in (file.document, *types.values())
    )


def named_container(file: ClusterFile) -> Iterator[str]:
    """Ray ends at once where an image has no name for its container."""
    docker = file.document.get("docker") if file.kind in LAUNCHED else None
    if docker and not docker.get("container_name"):
        yield "`docker.container_name` must be given beside an image, but is missing."


def pinned_versions(file: ClusterFile) -> Iterator[str]:
    """Machines of one cluster have the versions of constraints.txt, Ray's above all."""
    found = _PIN.search((files.ROOT / _CONSTRAINTS).read_text())
    assert found is not None
    version = found[1]
    if file.kind == "kuberay":
        told = files.ray_cluster_spec(file.document).get("rayVersion")
        if told != version:
            yield f"`rayVersion` must be constraints.txt's {version}, but is {told}."
    for group in file.groups:
        named = re.search(r"rayproject/ray(?:-ml)?:(\d[\d.]*\d)", group.image or "")
        if named and named[1] != version:
            yield f"The image of {group.name} must have Ray {version}, but is {group.image}."
        yield from _loose(group)


def _loose(group: Group) -> Iterator[str]:
    for command in group.setup + group.start:
        for words in statements(command):
            programs = {PurePosixPath(word).name for word in words}
            if not programs & _INSTALLERS or not programs & {"install", "add", "sync"}:
                continue
            if programs & _OF_THE_SYSTEM:
                continue
            limits = [PurePosixPath(word.rpartition("=")[2]).name for word in words]
            flagged = any(word.startswith(("-c", "--constraint")) for word in words)
            if not (flagged and _CONSTRAINTS in limits):
                yield (
                    f"Packages must come from {_SCRIPT}, or with --constraint {_CONSTRAINTS}, but "
                    f"{group.name} runs `{' '.join(words)}`, which machines may do differently; "
                    "add them to pyproject.toml."
                )


def one_installation(file: ClusterFile) -> Iterator[str]:
    """Machines without a container install this checkout, into one and the same folder."""
    if _is_container(file):
        return
    targets: dict[str, list[str]] = {}
    for group in file.groups:
        found = [
            words[-1]
            for command in group.setup
            for words in statements(command)
            if any(word.endswith(_SCRIPT) for word in words)
        ]
        if not found:
            yield (
                f"The set-up of {group.name} must run {_SCRIPT}, which has the versions of "
                f"{_CONSTRAINTS}, but does not."
            )
        for target in found:
            targets.setdefault(target, []).append(group.name)
    if len(targets) > 1:
        told = ", ".join(f"{' and '.join(names)}: {target}" for target, names in targets.items())
        yield f"All machines must install into one folder, but got {told}."
    if targets and file.kind in LAUNCHED:
        yield from _constraints_mounted(file)


def _constraints_mounted(file: ClusterFile) -> Iterator[str]:
    ours = (files.ROOT / _CONSTRAINTS).resolve()
    mounts: dict[str, str] = file.document.get("file_mounts", {})
    if any(local_path(str(local)).resolve() == files.ROOT.resolve() for local in mounts.values()):
        return
    found = [local for remote, local in mounts.items() if remote.endswith(f"/{_CONSTRAINTS}")]
    if not found:
        yield f"`file_mounts` must have {_CONSTRAINTS}, which {_SCRIPT} reads, but has not."
    for local in found:
        if local_path(str(local)).resolve() != ours:
            yield (
                f"`file_mounts` must take {_CONSTRAINTS} from this checkout, but takes {local} for "
                "it."
            )


def no_packages_for_jobs(file: ClusterFile) -> Iterator[str]:
    """A job brings no packages of its own: each machine would install them when it likes."""
    job = files.job_spec(file.document) if file.kind == "kuberay" else None
    text = "" if job is None else job.get("runtimeEnvYAML") or ""
    name = f"`{files.job_key(file.document)}.runtimeEnvYAML`"
    try:
        (told,) = reading.documents(text, f"{name} must be YAML, but is not") or [{}]
    except UsageError as error:
        yield str(error)
        return
    except ValueError:
        yield f"{name} must be one YAML document, but is more."
        return
    for key in ("pip", "uv", "conda", "image_uri", "container"):
        if isinstance(told, dict) and key in told:
            yield (f"{name} must bring no packages, but has `{key}`; put them into the image.")


RULES = (one_image, named_container, pinned_versions, one_installation, no_packages_for_jobs)
