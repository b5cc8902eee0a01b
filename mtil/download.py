"""Fetch a published collection: resumed, verified, unpacked, whole or not at all.

Only what may be fetched by a program is offered: the address is public, the licence allows it, and
size and sha256 of every file are known. The other collections come with a sentence on how to get
them. Proxies and certificates are taken from the environment, as Python's `urllib` does.
"""

import fcntl
import hashlib
import lzma
import re
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from mtil import __version__
from mtil.errors import DataError, NotFoundError, StorageError

_TIMEOUT_S = 60.0
"""How long a server may be silent."""
_CHUNK_BYTES = 2**18
_MAX_RATIO = 20
"""How many times its own size an archive may unpack to; images hardly shrink in one."""

_OK, _PARTIAL_CONTENT, _FORBIDDEN, _GONE, _NOT_SATISFIABLE = 200, 206, (401, 403), (404, 410), 416

_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    NotImplementedError,
    ValueError,
    OSError,
)
"""What reading a damaged archive raises, down to a seek to before its start."""

Progress = Callable[[str, int, int], None]
"""Called with a file's name, how many of its bytes are here, and how many it has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file of a collection; a `.zip` is unpacked, another is laid beside what was unpacked."""

    name: str
    address: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A collection that can be fetched."""

    name: str
    title: str
    layout: str
    """What `mtil prepare --layout` calls it."""
    page: str
    """Where a person reads about it, and finds it when an address below has gone."""
    licence: str
    citation: str
    files: tuple[File, ...]

    @property
    def num_bytes(self) -> int:
        """Size of all files."""
        return sum(file.num_bytes for file in self.files)


# Address, size and sha256 of all three files: release-manifest.json below
# inst/extdata/campaign/segmentation/provenance of github.com/isglobal-brge/dsFlowerClient, at
# 3f1f942e. The sha256 of BUSBRA.zip is also in torch_em/data/datasets/medical/busbra.py of
# github.com/constantinpape/torch-em, and its download matched the md5 that Zenodo publishes,
# 1f8b2be6476d58fc97bfb5e5a1ea9bab. TCIA publishes no checksums: those of BrEaST are of the files
# as they were on 2026-09-18. Licences: zenodo.org/records/8231412 and the page of the TCIA
# collection, by ATTRIBUTION.md beside the manifest.
OFFERS: dict[str, Offer] = {
    "bus_bra": Offer(
        name="bus_bra",
        title="BUS-BRA",
        layout="bus_bra",
        page="https://doi.org/10.5281/zenodo.8231412",
        licence="CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/); cite the article",
        citation=(
            "Gómez-Flores W, Gregorio-Calas MJ, Coelho de Albuquerque Pereira W. BUS-BRA: A "
            "breast ultrasound dataset for assessing computer-aided diagnosis systems. Medical "
            "Physics 51 (2024) 3110-3123. doi:10.1002/mp.16812"
        ),
        files=(
            File(
                name="BUSBRA.zip",
                address="https://zenodo.org/api/records/8231412/files/BUSBRA.zip/content",
                num_bytes=133_917_740,
                sha256="ba3e6ed19cc37c682d8d39e25435bbf8a555a12cb7e641b5f2117685c95580ff",
            ),
        ),
    ),
    "breast": Offer(
        name="breast",
        title="BrEaST",
        layout="breast",
        page="https://doi.org/10.7937/9WKK-Q141",
        licence=(
            "CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/) and the Data Usage Policy "
            "of The Cancer Imaging Archive; cite the data and the article"
        ),
        citation=(
            "Pawłowska A, Ćwierz-Pieńkowska A, Domalik A, Jaguś D, Kasprzak P, Matkowski R, Fura "
            "Ł, Nowicki A, Żołek N. A curated benchmark dataset for ultrasound based breast "
            "lesion analysis (Breast-Lesions-USG), version 1. The Cancer Imaging Archive (2024). "
            "doi:10.7937/9WKK-Q141; and Scientific Data 11 (2024) 148. "
            "doi:10.1038/s41597-024-02984-z"
        ),
        files=(
            File(
                name="BrEaST-Lesions_USG-images_and_masks-Dec-15-2023.zip",
                address=(
                    "https://www.cancerimagingarchive.net/wp-content/uploads/"
                    "BrEaST-Lesions_USG-images_and_masks-Dec-15-2023.zip"
                ),
                num_bytes=69_862_076,
                sha256="c32e49cdfa54042e065582d0cb35978b5fc5e5b5e461b33bf773fb50cfdad355",
            ),
            File(
                name="BrEaST-Lesions-USG-clinical-data-Dec-15-2023.xlsx",
                address=(
                    "https://www.cancerimagingarchive.net/wp-content/uploads/"
                    "BrEaST-Lesions-USG-clinical-data-Dec-15-2023.xlsx"
                ),
                num_bytes=40_173,
                sha256="89a8874496a6f1f93960390b963f7369b90f7e72ee08a738f2d17e37f5eff8bf",
            ),
        ),
    ),
}

# BUSI: its page asks for citation and states no standard licence. BUS-B: "request permission" at
# this address in github.com/hugofigueiras/Breast-Cancer-Imaging-Datasets. BUS-UCLM: the only direct
# address in print, in github.com/noeliavallez/BUS-UCLM-Dataset, is of version 1, which that
# repository calls both CC BY 4.0 and CC BY-NC 4.0; version 3 is CC BY 4.0 by its page, and
# docs/BUSUCLM_STEPS.md of github.com/surabhif/Breast-ultrasound-lesion-segmentation reports that
# programs are refused there with status 403.
BY_HAND: dict[str, str] = {
    "busi": (
        "BUSI states no standard licence and is not fetched automatically: get it from "
        "https://scholar.cu.edu.eg/?q=afahmy/pages/dataset, unpack it and give the folder to "
        "`mtil prepare --layout busi`."
    ),
    "udiat": (
        "BUS-B (UDIAT) is given out by its authors on request: ask for Breast Ultrasound Dataset "
        "B as https://helward.mmu.ac.uk/STAFF/M.Yap/dataset.php describes, unpack it and give the "
        "folder to `mtil prepare --layout udiat`."
    ),
    "bus_uclm": (
        "BUS-UCLM has no address open to programs: get version 3, which is CC BY 4.0, in a "
        "browser from https://doi.org/10.17632/7fvgj4jsp7.3, unpack it and give the folder to "
        "`mtil prepare --layout bus_uclm`."
    ),
}


def find(name: str) -> Offer:
    """Return a collection by its name, such as `bus_bra` or `BUS-BRA`.

    Raises:
        DataError: if it cannot be fetched, saying how to get it; or if there is none of that name.
    """
    key = name.lower().replace("-", "_")
    if key in OFFERS:
        return OFFERS[key]
    if key in BY_HAND:
        raise DataError(BY_HAND[key])
    raise DataError(
        f"A collection must be one of {', '.join([*OFFERS, *BY_HAND])}, but got {name!r}."
    )


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
            fetched = [_fetch(file, offer, partial, progress) for file in offer.files]
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


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip archive, without a top folder that holds all of it.

    Raises:
        DataError: if it is damaged, names a file outside itself or twice, holds a link or another
            special file, is encrypted, or is absurdly large unpacked.
    """
    with _open(archive) as opened:
        members = [
            (member, _parts(member, archive.name))
            for member in opened.infolist()
            if not member.is_dir() and not member.filename.startswith("__MACOSX/")
        ]
        num_bytes = sum(member.file_size for member, _ in members)
        if num_bytes > _MAX_RATIO * archive.stat().st_size:
            raise DataError(
                f"{archive.name} must not unpack to more than {_MAX_RATIO} times its size, but "
                f"would to {num_bytes} bytes; nothing was unpacked."
            )
        tops = {parts[0] if len(parts) > 1 else None for _, parts in members}
        num_dropped = 1 if len(tops) == 1 and None not in tops else 0
        for member, parts in members:
            path = folder.joinpath(*parts[num_dropped:])
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                target = path.open("xb")
            except FileExistsError:
                raise DataError(
                    f"{archive.name} must name each file once, but names {member.filename} twice."
                ) from None
            with target:
                for piece in _pieces(opened, member, archive):
                    target.write(piece)


def _open(archive: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(archive)
    except _DAMAGE as error:
        raise _damaged(archive, error) from None


def _pieces(opened: zipfile.ZipFile, member: zipfile.ZipInfo, archive: Path) -> Iterator[bytes]:
    try:
        with opened.open(member) as source:
            while piece := source.read(_CHUNK_BYTES):
                yield piece
    except _DAMAGE as error:
        raise _damaged(archive, error) from None


def _damaged(archive: Path, error: Exception) -> DataError:
    reason = str(error).rstrip(".") or type(error).__name__
    return DataError(f"{archive.name} cannot be unpacked: {reason}; it is damaged.")


def _parts(member: zipfile.ZipInfo, archive: str) -> tuple[str, ...]:
    """Return a member's path, which stays inside the folder and is an ordinary file."""
    path = PurePosixPath(member.filename)
    if path.is_absolute() or ".." in path.parts or "\\" in member.filename or not path.parts:
        raise DataError(f"{archive} must name files inside itself, but names {member.filename!r}.")
    if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
        raise DataError(
            f"{archive} must hold ordinary files, but {member.filename!r} is a link or device."
        )
    if member.flag_bits & 1:
        raise DataError(f"{archive} must not be encrypted, but {member.filename!r} is.")
    return path.parts


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


def _fetch(file: File, offer: Offer, folder: Path, progress: Progress) -> Path:
    """Return a file of the collection, whole and verified, fetching what is missing."""
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
