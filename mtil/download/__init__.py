"""Fetch a published collection: resumed, verified, unpacked, whole or not at all.

Only what may be fetched by a program is offered: the address is public, the licence allows it, and
size and sha256 of every file are known. The other collections come with a sentence on how to get
them. Proxies and certificates are taken from the environment, as Python's `urllib` does.
"""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mtil.download.archive import unpack
from mtil.download.fetching import Progress, fetch
from mtil.download.offers import BY_HAND, OFFERS, File, Offer, find
from mtil.errors import DataError, StorageError

__all__ = ["BY_HAND", "OFFERS", "File", "Offer", "download", "find", "unpack"]


def download(offer: Offer, out: Path, *, progress: Progress) -> int:
    """Fetch and unpack a collection, or go on where an earlier call broke off.

    What has arrived is kept beside `out`, which appears when everything is there. A folder that
    holds all of an archive is left out of the names.

    Args:
        offer: what to fetch.
        out: a folder that is empty or does not exist.
        progress: called with each piece that arrives.

    Returns:
        How many files are in `out`.

    Raises:
        DataError: if `out` holds something, or what came is not what was published.
        NotFoundError: if an address does not exist any more.
        StorageError: if a server cannot be reached or breaks off, or the disk cannot be written.
    """
    out = out.expanduser().absolute()
    partial = out.parent / f".{out.name}.partial-{offer.name}"
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise DataError(f"{out} must be an empty or new folder; empty it or choose another.")
        partial.mkdir(parents=True, exist_ok=True)
        with _alone(partial):
            fetched = [fetch(file, offer, partial, progress) for file in offer.files]
            tree = partial / "tree"
            shutil.rmtree(tree, ignore_errors=True)
            tree.mkdir()
            for path in fetched:
                if path.suffix == ".zip":
                    unpack(path, tree)
                else:
                    shutil.copyfile(path, tree / path.name)
            num_files = sum(path.is_file() for path in tree.rglob("*"))
            tree.replace(out)
            shutil.rmtree(partial)
    except OSError as error:
        raise StorageError(
            f"{out} cannot be written: {error.strerror}; put that right, and the same command goes "
            "on where it was."
        ) from None
    return num_files


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep another process out of the folder while the block runs."""
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StorageError(
                f"{folder} must have one writer, but another `mtil download` is at work; wait for "
                "it or choose another folder."
            ) from None
        yield
