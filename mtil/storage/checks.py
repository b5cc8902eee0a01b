"""Whether a place can hold what mtil keeps: every operation of preparations and runs is tried."""

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
"""Size of the object that is written to test a storage."""
_PROBES = ("probe", "claim", "parts", "some/0", "some/1", "link", "second-link")
_FEW_BYTES = 2**30
"""With less room than this a place is called almost full."""


def round_trip(store: "Store", folder: str) -> dict[str, float]:
    """Use a storage as mtil does, below a folder of its own, and return milliseconds a step.

    Raises:
        StorageError: if a step fails, or its answer is not what a run relies on.
    """
    timed = _Timer()
    was_there = isinstance(store, LocalStore) and store.root.exists()
    try:
        _try(store, folder, timed)
    finally:
        if timed.ms or isinstance(store, LocalStore):  # else a bucket that did not answer
            for name in _PROBES:
                with suppress(StorageError, OSError):
                    store.delete(f"{folder}/{name}")
        if isinstance(store, LocalStore) and not was_there:
            with suppress(OSError):
                store.root.rmdir()
    return timed.ms


def notes(store: "Store", folder: str) -> list[str]:
    """Return what a storage lacks that mtil can do without, each as half a sentence.

    Args:
        store: a storage that `round_trip` has been through.
        folder: a folder of its own to try things in.
    """
    found = []
    if isinstance(store, S3Store) and store.lacks_multi_delete is not None:
        found.append(
            f"several objects are not deleted at once ({store.lacks_multi_delete}), so mtil "
            "deletes them one by one"
        )
    if isinstance(store, LocalStore):
        lacking = _lacks_links(store, folder)
        if lacking:
            found.append(f"there are no hard links ({lacking}), so mtil renames instead")
        above = next(path for path in (store.root, *store.root.parents) if path.exists())
        free = shutil.disk_usage(above).free
        if free < _FEW_BYTES:
            found.append(f"only {free // 2**20} MiB are free")
    return found


class _Timer:
    """Measures the steps of a trial."""

    def __init__(self) -> None:
        self.ms: dict[str, float] = {}
        """Milliseconds by step."""

    def __call__(self, step: str, call: Callable[[], T]) -> T:
        start = perf_counter()
        answer = call()
        self.ms[step] = (perf_counter() - start) * 1000
        return answer


def _try(store: "Store", folder: str, timed: _Timer) -> None:
    data, other = os.urandom(PROBE_BYTES), os.urandom(16)
    probe, claim = f"{folder}/probe", f"{folder}/claim"
    timed("write", lambda: store.write(probe, data))
    _require(timed("read", lambda: store.read(probe)) == data, "give back what was written")
    store.write(probe, data[::-1])
    _require(store.read(probe) == data[::-1], "replace an object that exists")
    _require(timed("create", lambda: store.create(claim, data)), "create a new object")
    again = [timed("create again", lambda: store.create(claim, other)) for _ in range(2)]
    kept = store.read(claim) == data
    _require(not any(again) and kept, "refuse to create an object that exists (If-None-Match)")
    _require(timed("list", lambda: store.names(folder)) == [claim, probe], "list what was written")
    if not isinstance(store, LocalStore):  # a disk knows no parts
        large, parts = os.urandom(PROBE_BYTES) * (PART_BYTES // PROBE_BYTES + 1), f"{folder}/parts"
        timed("write in parts", lambda: store.write(parts, large))
        _require(store.read(parts) == large, "give back an object that was written in parts")
        store.delete(parts)
    timed("delete", lambda: store.delete(probe))
    _require(not store.exists(probe), "delete an object")
    some = [f"{folder}/some/{number}" for number in range(2)]
    for name in some:
        store.write(name, other)
    timed("delete several", lambda: store.clear(f"{folder}/some", re.compile(r"\d")))
    _require(not any(store.exists(name) for name in some), "delete several objects")


def _lacks_links(store: LocalStore, folder: str) -> str:
    """Return why a disk makes no hard link; empty if it does."""
    one, other = "link", "second-link"
    try:
        store.write(f"{folder}/{one}", b"")
        with folders.opened(store.root, folder.split("/")) as held:
            os.link(one, other, src_dir_fd=held[-1], dst_dir_fd=held[-1], follow_symlinks=False)
    except OSError as error:
        return error.strerror or type(error).__name__
    finally:
        store.delete(f"{folder}/{one}")
        store.delete(f"{folder}/{other}")
    return ""


def _require(held: bool, rule: str) -> None:
    if not held:
        raise StorageError(f"A storage must {rule}, but this one does not; use another.")
