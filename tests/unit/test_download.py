"""Downloads of collections from a real server on loopback, with common server behaviour."""

import argparse
import fcntl
import hashlib
import io
import json
import re
import socket
import stat
import sys
import threading
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Any

import pytest

from mtil.cli.commands.download import run_download
from mtil.cli.console import CommandOutput
from mtil.download import (
    MANUAL_DOWNLOADS,
    OFFERS,
    Offer,
    RemoteFile,
    download_collection,
    find_offer,
    unpack_archive,
)
from mtil.errors import DataError, MtilError, NotFoundError, StorageError, UserError

PAGE = "https://doi.org/10.0/page"
SIZE = 300_000
"""More than a chunk of a download."""


@dataclass
class Shared:
    """A file on the server, and the behaviour of the server."""

    body: bytes
    etag: str | None = '"1"'
    modified: str | None = None
    ranges: bool = True
    cut_after: int | None = None
    """Bytes sent before the connection is closed; None for all."""
    status: int | None = None
    framing: str = "length"
    """`length`, `chunked`, or `close`: the body ends with the connection."""
    wrong_range: bool = False
    redirect: str | None = None
    asked: list[dict[str, str]] = field(default_factory=list)
    """The headers of every request."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        shared: Shared = self.server.files[self.path]  # type: ignore[attr-defined]
        shared.asked.append(dict(self.headers))
        if shared.status is not None:
            self.send_error(shared.status)
            return
        if shared.redirect is not None:
            self.send_response(302)
            self.send_header("Location", shared.redirect)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = self._start(shared)
        if start >= len(shared.body) and start:
            self.send_error(416)
            return
        self._send(shared, start)

    def _start(self, shared: Shared) -> int:
        asked = self.headers.get("Range")
        validator = self.headers.get("If-Range")
        if not shared.ranges or asked is None:
            return 0
        if validator is not None and validator not in (shared.etag, shared.modified):
            return 0
        return int(re.fullmatch(r"bytes=(\d+)-", asked)[1])  # type: ignore[index]

    def _send(self, shared: Shared, start: int) -> None:
        body, total = shared.body[start:], len(shared.body)
        self.send_response(206 if start else 200)
        if start:
            first = start + 1 if shared.wrong_range else start
            self.send_header("Content-Range", f"bytes {first}-{total - 1}/{total}")
        if shared.etag is not None:
            self.send_header("ETag", shared.etag)
        if shared.modified is not None:
            self.send_header("Last-Modified", shared.modified)
        if shared.framing == "length":
            self.send_header("Content-Length", str(len(body)))
        elif shared.framing == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
            body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        else:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body[: shared.cut_after])
        self.close_connection = shared.cut_after is not None or shared.framing == "close"

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        """Log nothing: tests inspect the recorded requests."""


class _Http(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # clients may disconnect
            super().handle_error(request, client_address)


class Server:
    """Files on loopback, and collections of files."""

    def __init__(self, http: ThreadingHTTPServer) -> None:
        self.files: dict[str, Shared] = {}
        http.files = self.files  # type: ignore[attr-defined]
        self.root = f"http://127.0.0.1:{http.server_port}"

    def share(self, name: str, body: bytes, **behaviour: object) -> Shared:
        self.files[f"/{name}"] = Shared(body, **behaviour)  # type: ignore[arg-type]
        return self.files[f"/{name}"]

    def offer(self, *names: str) -> Offer:
        """Return a collection of files with the current contents."""
        return Offer(
            name="small",
            title="SMALL",
            layout="busi",
            page=PAGE,
            licence="CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/)",
            citation="Doe J. Small. 2024.",
            files=tuple(self._file(name) for name in names),
        )

    def _file(self, name: str) -> RemoteFile:
        body = self.files[f"/{name}"].body
        digest = hashlib.sha256(body).hexdigest()
        address = f"{self.root}/{name}"
        return RemoteFile(name=name, address=address, num_bytes=len(body), sha256=digest)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    http = _Http(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield Server(http)
    http.shutdown()
    thread.join()
    http.server_close()


def noise(num_bytes: int = SIZE, seed: int = 0) -> bytes:
    return Random(seed).randbytes(num_bytes)


def archive(files: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, data in files.items():
            opened.writestr(name, data)
    return made.getvalue()


def fetch(offer: Offer, out: Path) -> int:
    return download_collection(offer, out, progress=lambda name, done, of: None)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_a_collection_is_fetched_and_unpacked_without_its_top_folder(
    server: Server, tmp_path: Path
) -> None:
    images = {"TOP/Images/a.png": noise(SIZE), "TOP/data.csv": b"ID\na\n", "__MACOSX/._a": b"fork"}
    server.share("images.zip", archive(images))
    server.share("clinical.xlsx", b"sheet")
    events: list[tuple[str, int, int]] = []
    offer = server.offer("images.zip", "clinical.xlsx")
    num_files = download_collection(
        offer, tmp_path / "new" / "out", progress=lambda *args: events.append(args)
    )
    expected = {"Images/a.png": noise(SIZE), "data.csv": b"ID\na\n", "clinical.xlsx": b"sheet"}
    assert contents(tmp_path / "new" / "out") == expected
    assert num_files == 3
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]
    assert events[0] == ("images.zip", 2**18, offer.files[0].num_bytes)
    assert events[-1] == ("clinical.xlsx", 5, 5)


def test_an_archive_without_a_top_folder_stays_as_it_is(server: Server, tmp_path: Path) -> None:
    server.share("images.zip", archive({"a/b.png": b"1", "c/d.png": b"2"}))
    fetch(server.offer("images.zip"), tmp_path / "out")
    server.share("images.zip", archive({"a/b.png": b"1", "a.csv": b"2"}))
    fetch(server.offer("images.zip"), tmp_path / "other")
    assert set(contents(tmp_path / "out")) == {"a/b.png", "c/d.png"}
    assert set(contents(tmp_path / "other")) == {"a/b.png", "a.csv"}


def test_an_empty_folder_is_filled(server: Server, tmp_path: Path) -> None:
    server.share("a.csv", b"x")
    (tmp_path / "out").mkdir()
    assert fetch(server.offer("a.csv"), tmp_path / "out") == 1


def test_a_broken_download_goes_on_where_it_was(server: Server, tmp_path: Path) -> None:
    shared = server.share("a.bin", noise(), cut_after=100_000)
    offer, out = server.offer("a.bin"), tmp_path / "out"
    with pytest.raises(StorageError, match=r"broke off after 100000 of 300000 bytes of a\.bin"):
        fetch(offer, out)
    assert not out.exists()
    with pytest.raises(StorageError, match="broke off after 200000 of 300000"):
        fetch(offer, out)
    shared.cut_after = None
    fetch(offer, out)
    assert contents(out) == {"a.bin": noise()}
    assert [(asked.get("Range"), asked.get("If-Range")) for asked in shared.asked] == [
        (None, None),
        ("bytes=100000-", '"1"'),
        ("bytes=200000-", '"1"'),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_server_without_ranges_sends_it_all_again(server: Server, tmp_path: Path) -> None:
    shared = server.share("a.bin", noise(), cut_after=100_000, ranges=False)
    with pytest.raises(StorageError, match="broke off"):
        fetch(server.offer("a.bin"), tmp_path / "out")
    shared.cut_after = None
    fetch(server.offer("a.bin"), tmp_path / "out")
    assert contents(tmp_path / "out") == {"a.bin": noise()}


def test_a_file_that_changed_meanwhile_is_fetched_from_its_start(
    server: Server, tmp_path: Path
) -> None:
    shared = server.share("a.bin", noise(seed=1), cut_after=100_000)
    with pytest.raises(StorageError, match="broke off"):
        fetch(server.offer("a.bin"), tmp_path / "out")
    shared.body, shared.etag, shared.cut_after = noise(seed=2), '"2"', 150_000
    with pytest.raises(StorageError, match="broke off after 150000"):
        fetch(server.offer("a.bin"), tmp_path / "out")
    shared.cut_after = None
    fetch(server.offer("a.bin"), tmp_path / "out")
    assert contents(tmp_path / "out") == {"a.bin": noise(seed=2)}
    assert [asked.get("If-Range") for asked in shared.asked] == [None, '"1"', '"2"']


@pytest.mark.parametrize(
    ("etag", "modified", "expected"),
    [
        ('W/"1"', "Mon, 01 Jan 2024 00:00:00 GMT", "Mon, 01 Jan 2024 00:00:00 GMT"),
        ('W/"1"', None, None),
        (None, None, None),
    ],
)
def test_what_goes_on_without_a_strong_etag(
    server: Server, tmp_path: Path, etag: str | None, modified: str | None, expected: str | None
) -> None:
    shared = server.share("a.bin", noise(), etag=etag, modified=modified, cut_after=1000)
    with pytest.raises(StorageError, match="broke off"):
        fetch(server.offer("a.bin"), tmp_path / "out")
    shared.cut_after = None
    fetch(server.offer("a.bin"), tmp_path / "out")
    assert contents(tmp_path / "out") == {"a.bin": noise()}
    assert shared.asked[1]["Range"] == "bytes=1000-"
    assert shared.asked[1].get("If-Range") == expected


def test_an_interrupted_download_goes_on_where_it_was(server: Server, tmp_path: Path) -> None:
    shared = server.share("a.bin", noise(2**19))

    def interrupt(name: str, done: int, of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download_collection(server.offer("a.bin"), tmp_path / "out", progress=interrupt)
    fetch(server.offer("a.bin"), tmp_path / "out")
    assert contents(tmp_path / "out") == {"a.bin": noise(2**19)}
    assert shared.asked[1]["Range"] == f"bytes={2**18}-"


def test_what_an_interrupted_unpacking_left_is_not_kept(server: Server, tmp_path: Path) -> None:
    server.share("a.zip", archive({"top/a.png": noise(100)}))
    left = tmp_path / ".out.partial-small" / "tree"
    left.mkdir(parents=True)
    (left / "a.png").write_bytes(b"half")
    (left / "b.png").write_bytes(b"of another attempt")
    fetch(server.offer("a.zip"), tmp_path / "out")
    assert contents(tmp_path / "out") == {"a.png": noise(100)}


def test_a_file_that_is_here_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    first = server.share("a.bin", noise())
    second = server.share("b.bin", noise(seed=1), status=503)
    offer = server.offer("a.bin", "b.bin")
    with pytest.raises(StorageError, match=r"cannot send b\.bin now \(503\); run the same comm"):
        fetch(offer, tmp_path / "out")
    second.status = None
    fetch(offer, tmp_path / "out")
    assert contents(tmp_path / "out") == {"a.bin": noise(), "b.bin": noise(seed=1)}
    assert len(first.asked) == 1


def test_an_address_may_lead_to_another(server: Server, tmp_path: Path) -> None:
    target = server.share("target", noise(), cut_after=1000)
    offer_body = server.share("a.bin", noise())
    offer = server.offer("a.bin")
    offer_body.redirect = f"{server.root}/target"
    with pytest.raises(StorageError, match="broke off after 1000"):
        fetch(offer, tmp_path / "out")
    target.cut_after = None
    fetch(offer, tmp_path / "out")
    assert contents(tmp_path / "out") == {"a.bin": noise()}
    assert target.asked[1]["Range"] == "bytes=1000-"


def test_a_missing_file_says_where_to_look(server: Server, tmp_path: Path) -> None:
    server.share("a.bin", noise(), status=404)
    with pytest.raises(NotFoundError) as caught:
        fetch(server.offer("a.bin"), tmp_path / "out")
    assert str(caught.value) == (
        f"{server.root}/a.bin no longer exists (404); get it by hand from {PAGE}, unpack it "
        "and give the folder to `mtil prepare --layout busi`."
    )
    assert not (tmp_path / "out").exists()


def test_a_server_that_refuses_programs_is_named(server: Server, tmp_path: Path) -> None:
    server.share("a.bin", noise(), status=403)
    with pytest.raises(StorageError, match=rf"refuses a\.bin to programs \(403\).*{PAGE}"):
        fetch(server.offer("a.bin"), tmp_path / "out")


def test_a_server_out_of_reach_is_named(server: Server, tmp_path: Path) -> None:
    server.share("a.bin", noise())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        server.root = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(StorageError) as caught:
            fetch(server.offer("a.bin"), tmp_path / "out")
    assert re.fullmatch(
        r"127\.0\.0\.1:\d+ is out of reach for a\.bin: \[Errno \d+\] Connection refused; check the "
        "connection, or the proxy in https_proxy, then run the same command again to resume.",
        str(caught.value),
    )


def test_a_senseless_proxy_is_a_sentence(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.share("a.bin", noise())
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("http_proxy", "http:/proxy")
    monkeypatch.setattr(urllib.request, "_opener", None)  # urllib reads the proxies once
    with pytest.raises(StorageError, match=r"out of reach for a\.bin: proxy URL with no authority"):
        fetch(server.offer("a.bin"), tmp_path / "out")


def test_a_wrong_checksum_is_refused_and_fetched_afresh(server: Server, tmp_path: Path) -> None:
    shared = server.share("a.bin", noise(seed=1))
    offer = server.offer("a.bin")
    shared.body = noise(seed=2)
    with pytest.raises(DataError) as caught:
        fetch(offer, tmp_path / "out")
    sent = hashlib.sha256(noise(seed=2)).hexdigest()
    assert str(caught.value).startswith(
        f"a.bin must have the sha256 {offer.files[0].sha256}, but the file from "
        f"{server.root[7:]} has {sent}: damaged on the way or replaced by the publisher; try again"
    )
    assert not (tmp_path / "out").exists()
    shared.body = noise(seed=1)
    fetch(offer, tmp_path / "out")
    assert contents(tmp_path / "out") == {"a.bin": noise(seed=1)}
    assert "Range" not in shared.asked[1]


@pytest.mark.parametrize("num_bytes", [SIZE - 1, SIZE + 1])
@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_a_file_of_another_size_is_refused(
    server: Server, tmp_path: Path, num_bytes: int, framing: str
) -> None:
    shared = server.share("a.bin", noise())
    offer = server.offer("a.bin")
    shared.body, shared.framing = noise(num_bytes), framing
    short = framing == "close" and num_bytes < SIZE  # looks like a broken connection
    with pytest.raises(StorageError if short else DataError) as caught:
        fetch(offer, tmp_path / "out")
    if framing == "length" or (framing == "chunked" and num_bytes < SIZE):
        assert f"must have {SIZE} bytes, but has {num_bytes} at" in str(caught.value)
    assert not (tmp_path / "out").exists()
    shared.body, shared.framing, shared.etag = noise(), "length", '"2"'
    fetch(offer, tmp_path / "out")
    assert contents(tmp_path / "out") == {"a.bin": noise()}


def test_no_more_than_a_file_should_have_is_taken(server: Server, tmp_path: Path) -> None:
    shared = server.share("a.bin", noise(1000))
    offer = server.offer("a.bin")
    shared.body, shared.framing = noise(2**24), "close"
    taken = []
    with pytest.raises(DataError, match="must have the sha256"):
        download_collection(
            offer, tmp_path / "out", progress=lambda name, done, of: taken.append(done)
        )
    assert taken == [1000]


def test_a_file_that_shrank_is_refused(server: Server, tmp_path: Path) -> None:
    shared = server.share("a.bin", noise(), cut_after=200_000, etag=None)
    offer = server.offer("a.bin")
    with pytest.raises(StorageError, match="broke off"):
        fetch(offer, tmp_path / "out")
    shared.body, shared.cut_after = noise(100), None
    with pytest.raises(DataError, match="must have 300000 bytes, but has 100"):
        fetch(offer, tmp_path / "out")
    assert ["Range" in asked for asked in shared.asked] == [False, True, False]


def test_an_answer_from_another_byte_is_refused(server: Server, tmp_path: Path) -> None:
    shared = server.share("a.bin", noise(), cut_after=1000, wrong_range=True)
    with pytest.raises(StorageError, match="broke off"):
        fetch(server.offer("a.bin"), tmp_path / "out")
    shared.cut_after = None
    with pytest.raises(StorageError, match=r"from byte 1000, but answers with status 206 and rang"):
        fetch(server.offer("a.bin"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_left_alone(server: Server, tmp_path: Path) -> None:
    shared = server.share("a.bin", noise())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    (tmp_path / "file").write_text("y")
    for out in ("out", "file"):
        with pytest.raises(DataError, match=f"{out} must be an empty or new folder"):
            fetch(server.offer("a.bin"), tmp_path / out)
    assert shared.asked == []
    assert contents(tmp_path) == {"out/mine": b"x", "file": b"y"}


def test_a_place_that_cannot_be_written_is_named(server: Server, tmp_path: Path) -> None:
    server.share("a.bin", noise())
    (tmp_path / "file").write_text("y")
    with pytest.raises(StorageError, match="file/out cannot be written: Not a directory; solve"):
        fetch(server.offer("a.bin"), tmp_path / "file" / "out")


def test_two_downloads_to_one_place_are_one_too_many(server: Server, tmp_path: Path) -> None:
    server.share("a.bin", noise())
    (tmp_path / ".out.partial-small").mkdir()
    with (tmp_path / ".out.partial-small" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        with pytest.raises(StorageError, match="is in use by another `mtil download`"):
            fetch(server.offer("a.bin"), tmp_path / "out")
    fetch(server.offer("a.bin"), tmp_path / "out")
    assert contents(tmp_path / "out") == {"a.bin": noise()}


def test_a_truncated_archive_is_refused_whole(server: Server, tmp_path: Path) -> None:
    server.share("a.zip", archive({"a.png": noise()})[:-100])
    with pytest.raises(
        DataError, match=r"a\.zip cannot be unpacked: File is not a zip file; the ar"
    ):
        fetch(server.offer("a.zip"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _entry(name: str = "a.png", *, mode: int = 0, flags: int = 0) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.create_system = 3
    entry.external_attr = mode << 16
    entry.flag_bits = flags
    return entry


@pytest.mark.parametrize(
    ("name", "mode", "message"),
    [
        ("../evil", 0, r"must name files inside its folder, but names '\.\./evil'"),
        ("a/../../evil", 0, "must name files inside its folder"),
        ("/evil", 0, "must name files inside its folder"),
        ("a\\..\\evil", 0, "must name files inside its folder"),
        ("link", stat.S_IFLNK | 0o777, "must hold ordinary files, but 'link' is a link"),
        ("fifo", stat.S_IFIFO | 0o666, "must hold ordinary files, but 'fifo' is a link or device"),
    ],
)
def test_an_archive_cannot_reach_outside_its_folder(
    server: Server, tmp_path: Path, name: str, mode: int, message: str
) -> None:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as opened:
        opened.writestr("a/good.png", b"1")
        opened.writestr(_entry(name, mode=mode), "../../evil")
    server.share("a.zip", made.getvalue())
    with pytest.raises(DataError, match=message):
        fetch(server.offer("a.zip"), tmp_path / "deep" / "out")
    assert not (tmp_path / "deep" / "out").exists()
    assert not [path for path in tmp_path.rglob("*") if path.name in (name, "evil")]


def test_ordinary_modes_are_accepted(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as opened:
        opened.writestr(_entry("a.png", mode=stat.S_IFREG | 0o644), b"1")
    (tmp_path / "out").mkdir()
    unpack_archive(tmp_path / "a.zip", tmp_path / "out")
    assert contents(tmp_path / "out") == {"a.png": b"1"}


def test_an_encrypted_archive_is_refused(tmp_path: Path) -> None:
    data = bytearray(archive({"a.png": b"1"}))
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the flags in the central directory
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(DataError, match=r"must not be encrypted, but 'a\.png' is"):
        unpack_archive(tmp_path / "a.zip", tmp_path)


def test_a_name_given_twice_is_refused(tmp_path: Path) -> None:
    data = archive({"top/a.png": b"1", "top/b.png": b"2"})
    (tmp_path / "a.zip").write_bytes(data.replace(b"b.png", b"a.png"))
    (tmp_path / "out").mkdir()
    with pytest.raises(
        DataError, match=r"a\.zip must name each file once, but names top/a\.png twice"
    ):
        unpack_archive(tmp_path / "a.zip", tmp_path / "out")


def test_an_archive_that_swells_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(archive({"a.png": bytes(10**7)}))
    (tmp_path / "out").mkdir()
    with pytest.raises(
        DataError, match="more than 20 times its size, but would take 10000000 bytes"
    ):
        unpack_archive(tmp_path / "a.zip", tmp_path / "out")
    assert contents(tmp_path / "out") == {}


def test_damage_anywhere_in_an_archive_is_a_sentence_or_harmless(tmp_path: Path) -> None:
    good = archive({"top/a.png": noise(50), "top/b.csv": b"ID,Case\n" * 9})
    outcomes: set[type] = set()
    for at in range(len(good)):
        (tmp_path / "a.zip").write_bytes(good[:at] + bytes([good[at] ^ 0x55]) + good[at + 1 :])
        (tmp_path / f"{at}").mkdir()
        try:
            unpack_archive(tmp_path / "a.zip", tmp_path / f"{at}")
        except MtilError as error:
            outcomes.add(type(error))
        else:
            outcomes.add(type(None))
    assert outcomes == {DataError, type(None)}


@pytest.mark.parametrize("name", list(OFFERS))
def test_every_offer_has_what_verifying_and_citing_need(name: str) -> None:
    offer = OFFERS[name]
    assert offer.name == name
    assert offer.page.startswith("https://doi.org/10.")
    assert offer.licence.startswith("CC BY 4.0 ")
    assert re.search(r"doi:10\.\S+$", offer.citation)
    assert len({file.name for file in offer.files}) == len(offer.files) > 0
    for file in offer.files:
        assert file.address.startswith("https://")
        assert file.num_bytes > 0
        assert re.fullmatch("[0-9a-f]{64}", file.sha256)
        assert "/" not in file.name


def test_a_collection_is_found_by_its_name_as_it_is_written() -> None:
    assert find_offer("BUS-BRA") is find_offer("bus_bra") is OFFERS["bus_bra"]
    assert find_offer("BrEaST") is OFFERS["breast"]


def test_the_others_come_with_how_to_get_them() -> None:
    assert set(MANUAL_DOWNLOADS) == {"busi", "udiat", "bus_uclm"}
    for name, how in MANUAL_DOWNLOADS.items():
        with pytest.raises(DataError, match=re.escape(how)):
            find_offer(name)
        assert re.search(rf"https://\S+.*`mtil prepare --layout {name}`\.$", how)
    with pytest.raises(
        DataError,
        match="must be one of bus_bra, breast, busi, udiat, bus_uclm, but got 'imagenet'",
    ):
        find_offer("imagenet")


Command = Callable[..., None]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run `mtil download` with options, and the parser's defaults for the rest."""
    unset = {"name": None, "out": None, "list": False, "accept_licence": False}

    def call(*, json: bool = False, **options: Any) -> None:
        run_download(argparse.Namespace(**{**unset, **options}), CommandOutput(as_json=json))

    return call


@pytest.fixture
def small(server: Server, monkeypatch: pytest.MonkeyPatch) -> Shared:
    """A collection `small` among the offered collections."""
    shared = server.share("a.zip", archive({"top/a.png": noise()}))
    monkeypatch.setitem(OFFERS, "small", server.offer("a.zip"))
    return shared


def test_without_an_accepted_licence_nothing_is_fetched(
    command: Command, small: Shared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError) as caught:
        command(name="small", out=str(tmp_path / "out"))
    assert str(caught.value) == (
        "The licence of SMALL must be accepted first; read it and give the same command with "
        "--accept-licence."
    )
    assert capsys.readouterr().out.splitlines() == [
        "Licence: CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/)",
        "Cite: Doe J. Small. 2024.",
    ]
    assert small.asked == []
    assert list(tmp_path.iterdir()) == []


def test_an_accepted_licence_fetches_and_says_what_comes_next(
    command: Command, small: Shared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    command(name="small", out=out, accept_licence=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:] == [
        f"1 file(s) in {out}, as published.",
        f"Next: mtil prepare {out} --layout busi --to URI",
    ]
    assert contents(tmp_path / "out") == {"a.png": noise()}


def test_json_is_one_object_and_the_licence_still_shows(
    command: Command, small: Shared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command(name="small", out=str(tmp_path / "out"), accept_licence=True, json=True)
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert (result["name"], result["layout"], result["num_files"]) == ("small", "busi", 1)
    assert result["files"][0]["sha256"] == hashlib.sha256(small.body).hexdigest()
    assert "Cite: Doe J." in captured.err


def test_the_list_names_all_collections(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    command(list=True)
    stdout = capsys.readouterr().out
    assert "bus_bra: BUS-BRA, 134 MB, CC BY 4.0 (https" in stdout
    assert "breast: BrEaST, 70 MB, CC BY 4.0 (https" in stdout
    assert all(f"{name}: {how}" in stdout for name, how in MANUAL_DOWNLOADS.items())
    command(list=True, json=True)
    listed = json.loads(capsys.readouterr().out)
    assert [offer["name"] for offer in listed["download"]] == ["bus_bra", "breast"]
    assert listed["download"][0]["num_bytes"] == 133_917_740
    assert set(listed["by_hand"]) == set(MANUAL_DOWNLOADS)


def test_a_name_and_a_local_folder_are_needed(command: Command) -> None:
    for given in ({}, {"name": "bus_bra"}):
        with pytest.raises(UserError, match="must be given NAME and OUT; `mtil download --list`"):
            command(**given)
    with pytest.raises(UserError, match="given out by its authors on request"):
        command(name="udiat")
    with pytest.raises(UserError, match="must be a local folder, but got 's3://bucket/x'"):
        command(name="bus_bra", out="s3://bucket/x")
