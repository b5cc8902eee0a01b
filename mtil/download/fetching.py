"""One file over HTTP: resumed where it broke off, and verified before it counts."""

import hashlib
import re
from collections.abc import Callable, Iterator
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import IO
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from mtil import __version__
from mtil.download.offers import File, Offer
from mtil.errors import DataError, NotFoundError, StorageError

_TIMEOUT_S = 60.0
"""How long a server may be silent."""
_CHUNK_BYTES = 2**18

_OK, _PARTIAL_CONTENT, _FORBIDDEN, _GONE, _NOT_SATISFIABLE = 200, 206, (401, 403), (404, 410), 416

Progress = Callable[[str, int, int], None]
"""Called with a file's name, how many of its bytes are here, and how many it has."""


def fetch(file: File, offer: Offer, folder: Path, progress: Progress) -> Path:
    """Return a file of the collection, whole and verified, fetching what is missing.

    Args:
        file: what to fetch.
        offer: the collection, for errors.
        folder: where it goes, and where what has arrived is kept.
        progress: called with each piece that arrives.

    Raises:
        DataError: if what came is not what was published.
        NotFoundError: if the address does not exist any more.
        StorageError: if the server cannot be reached or breaks off.
    """
    whole = folder / file.name
    if whole.exists():
        return whole
    partial = folder / f"{file.name}.partial"
    validator = folder / f"{file.name}.validator"
    here = partial.stat().st_size if partial.exists() else 0
    if here < file.num_bytes:
        here = _receive(file, offer, partial, validator, progress)
    if here < file.num_bytes:
        raise StorageError(
            f"{_host(file)} broke off after {here} of {file.num_bytes} bytes of {file.name}; the "
            "same command goes on from there, if the server lets it."
        )
    with partial.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    if sha256 != file.sha256:
        partial.unlink()
        raise DataError(
            f"{file.name} must have the sha256 {file.sha256}, but what {_host(file)} sent has "
            f"{sha256}: it was damaged on the way or replaced there; try again, and if it stays "
            f"so, see {offer.page}."
        )
    partial.replace(whole)
    validator.unlink(missing_ok=True)
    return whole


def _receive(file: File, offer: Offer, partial: Path, validator: Path, progress: Progress) -> int:
    """Append what the server sends, until it ends or breaks off; return how many bytes are here."""
    start = partial.stat().st_size if partial.exists() else 0
    known = validator.read_text() if validator.exists() else ""
    try:
        answer = _ask(file, start, known)
    except HTTPError as error:
        error.close()
        if error.code == _NOT_SATISFIABLE and start:  # the server's file is shorter than ours
            partial.unlink()
            return _receive(file, offer, partial, validator, progress)
        raise _refused(error.code, file, offer) from None
    except (HTTPException, OSError, ValueError) as error:
        raise _unreachable(error, file) from None
    with answer:
        start = _check_answer(answer, file, offer, start)
        with partial.open("ab" if start else "wb") as target:
            here = start
            if here == 0:
                validator.write_text(_validator(answer))
            for chunk in _chunks(answer, file, partial):
                target.write(chunk)
                here += len(chunk)
                progress(file.name, min(here, file.num_bytes), file.num_bytes)
                if here > file.num_bytes:
                    break
    if answer.chunked and here < file.num_bytes:  # such an answer says itself that it is complete
        partial.unlink()
        raise _replaced(file, offer, here)
    return here


def _ask(file: File, start: int, validator: str) -> HTTPResponse:
    headers = {"User-Agent": f"mtil/{__version__}", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if validator:
            headers["If-Range"] = validator
    answer: HTTPResponse = urlopen(Request(file.address, headers=headers), timeout=_TIMEOUT_S)
    return answer


def _validator(answer: HTTPResponse) -> str:
    """Return what tells this version of the file from the next; a weak ETag cannot."""
    etag = answer.headers.get("ETag", "")
    return etag if etag.startswith('"') else answer.headers.get("Last-Modified", "")


def _check_answer(answer: HTTPResponse, file: File, offer: Offer, start: int) -> int:
    """Return the byte at which the answer starts, which is the one asked for or the first."""
    if answer.status == _OK:
        start, total = 0, answer.length
    else:
        pattern = r"bytes (?P<start>\d+)-\d+/(?P<total>\d+)"
        sent = re.fullmatch(pattern, answer.headers.get("Content-Range", "").strip())
        if answer.status != _PARTIAL_CONTENT or sent is None or int(sent["start"]) != start:
            raise StorageError(
                f"{_host(file)} must send {file.name} from byte {start}, but answers with status "
                f"{answer.status} and range {answer.headers.get('Content-Range')!r}; see "
                f"{offer.page}."
            )
        total = int(sent["total"])
    if total is not None and total != file.num_bytes:
        raise _replaced(file, offer, total)
    return start


def _chunks(answer: IO[bytes], file: File, partial: Path) -> Iterator[bytes]:
    while True:
        try:
            chunk = answer.read(_CHUNK_BYTES)
        except (HTTPException, OSError) as error:
            raise _unreachable(error, file) from None
        if not chunk:
            return
        yield chunk


def _replaced(file: File, offer: Offer, num_bytes: int) -> DataError:
    return DataError(
        f"{file.name} must have {file.num_bytes} bytes, but has {num_bytes} at {_host(file)}: it "
        f"was replaced there; see {offer.page}."
    )


def _refused(status: int, file: File, offer: Offer) -> StorageError:
    by_hand = (
        f"get it by hand from {offer.page}, unpack it and give the folder to `mtil prepare "
        f"--layout {offer.layout}`."
    )
    if status in _GONE:
        return NotFoundError(f"{file.address} does not exist any more ({status}); {by_hand}")
    if status in _FORBIDDEN:
        return StorageError(f"{_host(file)} refuses {file.name} to programs ({status}); {by_hand}")
    return StorageError(
        f"{_host(file)} cannot send {file.name} now ({status}); later the same command goes on "
        "where it was."
    )


def _unreachable(error: Exception, file: File) -> StorageError:
    reason = " ".join(str(getattr(error, "reason", error)).split()).rstrip(".")
    return StorageError(
        f"{_host(file)} is out of reach for {file.name}: {reason or type(error).__name__}; check "
        "the connection, or the proxy in https_proxy, and the same command goes on where it was."
    )


def _host(file: File) -> str:
    return urlsplit(file.address).netloc
