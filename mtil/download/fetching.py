"""Download a file over HTTP: resume after interruptions and verify by sha256."""

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
from mtil.download.offers import Offer, RemoteFile
from mtil.errors import DataError, NotFoundError, StorageError

_TIMEOUT_S = 60.0
"""Longest silence of a server, in seconds."""
_CHUNK_BYTES = 2**18

_OK, _PARTIAL_CONTENT, _FORBIDDEN, _GONE, _NOT_SATISFIABLE = 200, 206, (401, 403), (404, 410), 416

DownloadProgress = Callable[[str, int, int], None]
"""Called with a file's name, its number of bytes received, and its total number of bytes."""


def fetch_file(file: RemoteFile, offer: Offer, folder: Path, progress: DownloadProgress) -> Path:
    """Download the missing bytes of a file, verify the file and return its path.

    Args:
        file: the file.
        offer: the file's collection, for errors.
        folder: folder for the file and for incomplete downloads.
        progress: called after each received chunk.

    Raises:
        DataError: if the file differs from the published file.
        NotFoundError: if the address no longer exists.
        StorageError: if the server is out of reach or breaks off.
    """
    whole = folder / file.name
    if whole.exists():
        return whole
    partial = folder / f"{file.name}.partial"
    validator = folder / f"{file.name}.validator"
    num_received = partial.stat().st_size if partial.exists() else 0
    if num_received < file.num_bytes:
        num_received = _receive(file, offer, partial, validator, progress)
    if num_received < file.num_bytes:
        raise StorageError(
            f"{_host(file)} broke off after {num_received} of {file.num_bytes} bytes of "
            f"{file.name}; run the same command again to resume, if the server allows resuming."
        )
    with partial.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    if sha256 != file.sha256:
        # Damaged bytes are useless: the next attempt must start from the first byte.
        partial.unlink()
        raise DataError(
            f"{file.name} must have the sha256 {file.sha256}, but the file from {_host(file)} has "
            f"{sha256}: damaged on the way or replaced by the publisher; try again. If the error "
            f"stays, see {offer.page}."
        )
    partial.replace(whole)
    validator.unlink(missing_ok=True)
    return whole


def _receive(
    file: RemoteFile, offer: Offer, partial: Path, validator: Path, progress: DownloadProgress
) -> int:
    """Append the server's bytes to `partial` until the end or a break. Return its size."""
    start = partial.stat().st_size if partial.exists() else 0
    saved_validator = validator.read_text() if validator.exists() else ""
    try:
        answer = _request(file, start, saved_validator)
    except HTTPError as error:
        error.close()
        # The server's file is now shorter than the partial file, so start again.
        if error.code == _NOT_SATISFIABLE and start:
            partial.unlink()
            return _receive(file, offer, partial, validator, progress)
        raise _status_error(error.code, file, offer) from None
    except (HTTPException, OSError, ValueError) as error:
        raise _unreachable_error(error, file) from None
    with answer:
        start = _check_answer(answer, file, offer, start)
        with partial.open("ab" if start else "wb") as target:
            num_received = start
            # The bytes in `partial` come from one version of the file, known by its validator.
            if num_received == 0:
                validator.write_text(_validator(answer))
            for chunk in _chunks(answer, file, partial):
                target.write(chunk)
                num_received += len(chunk)
                progress(file.name, min(num_received, file.num_bytes), file.num_bytes)
                # More bytes than published: stop, and let the checksum refuse the file.
                if num_received > file.num_bytes:
                    break
    # A chunked answer marks the end of the file, so a short answer is complete.
    if answer.chunked and num_received < file.num_bytes:
        partial.unlink()
        raise _replaced_error(file, offer, num_received)
    return num_received


def _request(file: RemoteFile, start: int, validator: str) -> HTTPResponse:
    # identity: sizes and ranges must count the bytes of the file, not of a compressed body.
    headers = {"User-Agent": f"mtil/{__version__}", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        # If-Range: a server with another version sends the whole file instead of the rest.
        if validator:
            headers["If-Range"] = validator
    answer: HTTPResponse = urlopen(Request(file.address, headers=headers), timeout=_TIMEOUT_S)
    return answer


def _validator(answer: HTTPResponse) -> str:
    """Return the identifier of the file's version, or an empty string."""
    # A weak ETag does not promise equal bytes, and If-Range takes only strong ones.
    etag = answer.headers.get("ETag", "")
    return etag if etag.startswith('"') else answer.headers.get("Last-Modified", "")


def _check_answer(answer: HTTPResponse, file: RemoteFile, offer: Offer, start: int) -> int:
    """Return the answer's first byte position: the requested position, or 0."""
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
        raise _replaced_error(file, offer, total)
    return start


def _chunks(answer: IO[bytes], file: RemoteFile, partial: Path) -> Iterator[bytes]:
    while True:
        try:
            chunk = answer.read(_CHUNK_BYTES)
        except (HTTPException, OSError) as error:
            raise _unreachable_error(error, file) from None
        if not chunk:
            return
        yield chunk


def _replaced_error(file: RemoteFile, offer: Offer, num_bytes: int) -> DataError:
    return DataError(
        f"{file.name} must have {file.num_bytes} bytes, but has {num_bytes} at {_host(file)}: the "
        f"publisher replaced the file; see {offer.page}."
    )


def _status_error(status: int, file: RemoteFile, offer: Offer) -> StorageError:
    by_hand = (
        f"get it by hand from {offer.page}, unpack it and give the folder to `mtil prepare "
        f"--layout {offer.layout}`."
    )
    if status in _GONE:
        return NotFoundError(f"{file.address} no longer exists ({status}); {by_hand}")
    if status in _FORBIDDEN:
        return StorageError(f"{_host(file)} refuses {file.name} to programs ({status}); {by_hand}")
    return StorageError(
        f"{_host(file)} cannot send {file.name} now ({status}); run the same command again "
        "later to resume."
    )


def _unreachable_error(error: Exception, file: RemoteFile) -> StorageError:
    reason = " ".join(str(getattr(error, "reason", error)).split()).rstrip(".")
    return StorageError(
        f"{_host(file)} is out of reach for {file.name}: {reason or type(error).__name__}; check "
        "the connection, or the proxy in https_proxy, then run the same command again to resume."
    )


def _host(file: RemoteFile) -> str:
    return urlsplit(file.address).netloc
