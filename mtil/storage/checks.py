"""Test a storage: try every operation used by preparations and runs."""

import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from time import perf_counter
from typing import TYPE_CHECKING, TypeVar

from mtil.errors import StorageError
from mtil.storage import folders
from mtil.storage.local import LocalStore
from mtil.storage.s3 import PART_BYTES, S3Store

if TYPE_CHECKING:
    from mtil.storage import Store

T = TypeVar("T")

PROBE_BYTES = 2**20
"""Size of the test object."""
_PROBE_NAMES = ("probe", "claim", "parts", "some/0", "some/1", "link", "second-link")
_LOW_SPACE_BYTES = 2**30
"""Free space below which `find_missing_features` reports a disk as almost full."""


def probe_storage(store: "Store", folder: str) -> dict[str, float]:
    """Try every operation on a storage. Return milliseconds by step.

    Args:
        store: the storage.
        folder: name of an unused folder for test objects, which are deleted afterwards.

    Raises:
        StorageError: if a step fails or has a wrong result.
    """
    timer = _Timer()
    existed = isinstance(store, LocalStore) and store.root.exists()
    try:
        _try_operations(store, folder, timer)
    finally:
        # If not even the first write succeeded, a bucket is out of reach and holds no test objects.
        # Deletes would only wait for more timeouts.
        if timer.ms or isinstance(store, LocalStore):
            for name in _PROBE_NAMES:
                with suppress(StorageError, OSError):
                    store.delete(f"{folder}/{name}")
        if isinstance(store, LocalStore) and not existed:
            with suppress(OSError):
                store.root.rmdir()
    return timer.ms


def find_missing_features(store: "Store", folder: str) -> list[str]:
    """Return a storage's optional features that are missing, each as half a sentence.

    Args:
        store: a storage already tested by `probe_storage`.
        folder: name of an unused folder for test files.
    """
    gaps = []
    if isinstance(store, S3Store) and store.lacks_multi_delete is not None:
        gaps.append(
            f"several objects are not deleted at once ({store.lacks_multi_delete}), so mtil "
            "deletes them one by one"
        )
    if isinstance(store, LocalStore):
        reason = _find_link_problem(store, folder)
        if reason:
            gaps.append(f"there are no hard links ({reason}), so mtil renames instead")
        existing = next(path for path in (store.root, *store.root.parents) if path.exists())
        free = shutil.disk_usage(existing).free
        if free < _LOW_SPACE_BYTES:
            gaps.append(f"only {free // 2**20} MiB are free")
    return gaps


class _Timer:
    """Times the steps of a test."""

    def __init__(self) -> None:
        self.ms: dict[str, float] = {}
        """Milliseconds by step."""

    def __call__(self, step: str, call: Callable[[], T]) -> T:
        start = perf_counter()
        result = call()
        self.ms[step] = (perf_counter() - start) * 1000
        return result


def _try_operations(store: "Store", folder: str, timer: _Timer) -> None:
    data, other = os.urandom(PROBE_BYTES), os.urandom(16)
    probe, claim = f"{folder}/probe", f"{folder}/claim"
    timer("write", lambda: store.write(probe, data))
    _require(timer("read", lambda: store.read(probe)) == data, "give back what was written")
    store.write(probe, data[::-1])
    _require(store.read(probe) == data[::-1], "replace an object that exists")
    _require(timer("create", lambda: store.create(claim, data)), "create a new object")
    # A server that ignores If-None-Match replaces the object here.
    repeats = [timer("create again", lambda: store.create(claim, other)) for _ in range(2)]
    is_kept = store.read(claim) == data
    _require(not any(repeats) and is_kept, "refuse to create an object that exists (If-None-Match)")
    _require(timer("list", lambda: store.names(folder)) == [claim, probe], "list what was written")
    # Only buckets write large objects in parts.
    if not isinstance(store, LocalStore):
        large, parts = os.urandom(PROBE_BYTES) * (PART_BYTES // PROBE_BYTES + 1), f"{folder}/parts"
        timer("write in parts", lambda: store.write(parts, large))
        _require(store.read(parts) == large, "give back an object that was written in parts")
        store.delete(parts)
    timer("delete", lambda: store.delete(probe))
    _require(not store.exists(probe), "delete an object")
    names = [f"{folder}/some/{index}" for index in range(2)]
    for name in names:
        store.write(name, other)
    timer("delete several", lambda: store.clear(f"{folder}/some", re.compile(r"\d")))
    _require(not any(store.exists(name) for name in names), "delete several objects")


def _find_link_problem(store: LocalStore, folder: str) -> str:
    """Return why a disk cannot make a hard link, or an empty string."""
    first, second = "link", "second-link"
    try:
        store.write(f"{folder}/{first}", b"")
        with folders.open_folders(store.root, folder.split("/")) as fds:
            os.link(first, second, src_dir_fd=fds[-1], dst_dir_fd=fds[-1], follow_symlinks=False)
    except OSError as error:
        return error.strerror or type(error).__name__
    finally:
        store.delete(f"{folder}/{first}")
        store.delete(f"{folder}/{second}")
    return ""


def _require(is_met: bool, rule: str) -> None:
    if not is_met:
        raise StorageError(f"A storage must {rule}, but this storage does not; use another.")
