"""Download published collections: resume, verify and unpack, all files or none.

`OFFERS` has the collections with a public address, a licence for downloads by programs, and a
known size and sha256 for every file. `MANUAL_DOWNLOADS` says how to get the rest. Proxies and
certificates come from the environment, as in Python's `urllib`.
"""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mtil.download.archive import unpack_archive
from mtil.download.fetching import DownloadProgress, fetch_file
from mtil.download.offers import MANUAL_DOWNLOADS, OFFERS, Offer, RemoteFile, find_offer
from mtil.errors import DataError, StorageError

__all__ = [
    "MANUAL_DOWNLOADS",
    "OFFERS",
    "Offer",
    "RemoteFile",
    "download_collection",
    "find_offer",
    "unpack_archive",
]


def download_collection(offer: Offer, out: Path, *, progress: DownloadProgress) -> int:
    """Download and unpack a collection, or resume an interrupted download.

    Received bytes stay in a hidden folder beside `out`. `out` appears once all files are complete.
    The common top folder of an archive, if any, is dropped.

    Args:
        offer: the collection.
        out: an empty or new folder.
        progress: called after each received chunk.

    Returns:
        The number of files in `out`.

    Raises:
        DataError: if `out` is not empty, or a file differs from the published file.
        NotFoundError: if an address no longer exists.
        StorageError: if a server is out of reach or breaks off, or the disk cannot be written.
    """
    out = out.expanduser().absolute()
    partial = out.parent / f".{out.name}.partial-{offer.name}"
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise DataError(f"{out} must be an empty or new folder; choose another folder.")
        partial.mkdir(parents=True, exist_ok=True)
        with _lock_folder(partial):
            fetched = [fetch_file(file, offer, partial, progress) for file in offer.files]
            # Unpack from the start: an interrupted call may have left half of the files.
            tree = partial / "tree"
            shutil.rmtree(tree, ignore_errors=True)
            tree.mkdir()
            for path in fetched:
                if path.suffix == ".zip":
                    unpack_archive(path, tree)
                else:
                    shutil.copyfile(path, tree / path.name)
            num_files = sum(path.is_file() for path in tree.rglob("*"))
            # The rename makes all files appear at once. It may replace an empty folder.
            tree.replace(out)
            shutil.rmtree(partial)
    except OSError as error:
        raise StorageError(
            f"{out} cannot be written: {error.strerror}; solve the problem, then run the "
            "command again to resume."
        ) from None
    return num_files


@contextmanager
def _lock_folder(folder: Path) -> Iterator[None]:
    """Lock the folder against other processes while the block runs."""
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StorageError(
                f"{folder} is in use by another `mtil download`; wait or choose another folder."
            ) from None
        yield
