"""The local store: atomic writes, and no names outside the root."""

import contextlib
import errno
import json
import os
import platform
import re
import shutil
import socket
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mtil.errors import NotFoundError, StorageError, TooLargeError
from mtil.storage import LocalStore, local, open_store, split_uri

ANY = re.compile(".*")


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path / "root"))


def test_what_was_written_is_read(store: LocalStore) -> None:
    store.write("a/b (1).png", b"one")
    store.write("a/b (1).png", b"two")
    assert store.read("a/b (1).png") == b"two"
    assert store.exists("a/b (1).png")
    assert not store.exists("a")
    assert not store.exists("c")


def test_no_more_is_read_than_the_reader_takes(store: LocalStore) -> None:
    store.write("x", b"12345")
    assert store.read("x", max_bytes=5) == b"12345"
    with pytest.raises(TooLargeError, match=r"x must have at most 4 bytes, but has more"):
        store.read("x", max_bytes=4)


def test_names_are_sorted_relative_and_below_a_folder(store: LocalStore) -> None:
    assert store.names() == []
    for name in ("b", "a/2", "a/10", "a/c/1", "ab/1"):
        store.write(name, b"")
    assert store.names() == ["a/10", "a/2", "a/c/1", "ab/1", "b"]
    assert store.names("a") == ["a/10", "a/2", "a/c/1"]
    assert store.names("none") == []


def test_missing_objects_and_folders_are_not_found(store: LocalStore) -> None:
    store.write("a/b", b"")
    for name in ("x", "a", "a/b/c"):
        with pytest.raises(NotFoundError, match="does not exist"):
            store.read(name)


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "", ".", "a\0b"])
def test_names_stay_inside(store: LocalStore, name: str) -> None:
    for call in (store.read, store.exists, store.delete, lambda name: store.write(name, b"")):
        with pytest.raises(StorageError, match="must stay inside"):
            call(name)


def test_deleting_leaves_no_empty_folders_but_those_that_were_there(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for root in ("there", "there/made/too"):
        store = LocalStore(str(tmp_path / root))
        store.write("a/b/c", b"")
        store.write("d", b"")
        store.delete("a/b/c")
        assert [path.name for path in store.root.iterdir()] == ["d"]
        store.delete("d")
        assert list((tmp_path / "there").iterdir()) == []
        store.write("d", b"")
        assert store.names() == ["d"]
        store.delete("d")


def test_what_is_deleted_is_gone(store: LocalStore) -> None:
    store.write("a/b/c", b"")
    store.write("a/d", b"")
    store.delete("a/b/c")
    assert not (store.root / "a/b").exists()
    assert store.names() == ["a/d"]
    store.delete("a/d")
    store.delete("a/d")  # deleting a missing object is not an error
    assert store.names() == []


def test_clearing_a_folder_takes_what_interrupted_writes_left(store: LocalStore) -> None:
    for name in ("a/b/one", "a/b/c/two", "a/three"):
        store.write(name, b"x")
    (store.root / "a" / "b" / ".partial-x").write_bytes(b"half")
    store.clear("a/b", ANY)
    assert store.names() == ["a/three"]
    assert not (store.root / "a" / "b").exists()
    store.clear("a/b", ANY)  # the folder is already gone
    store.write("a/b/one", b"x")
    store.delete("a/three")
    store.clear("a/b", ANY)
    assert not store.root.exists()


def test_a_root_that_is_deleted_while_it_is_made_is_made_again(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`mkdir` sees the old folder, then no folder: FileExistsError despite `exist_ok`."""
    make = Path.mkdir
    raised = []

    def lose(path: Path, *args: Any, **kwargs: Any) -> None:
        if not raised:
            raised.append(path)
            raise FileExistsError(errno.EEXIST, "File exists", str(path))
        make(path, *args, **kwargs)

    shutil.rmtree(store.root, ignore_errors=True)
    monkeypatch.setattr(Path, "mkdir", lose)
    store.write("a/b", b"x")
    assert raised == [store.root]
    assert store.read("a/b") == b"x"


def test_deleting_and_writing_in_one_folder_do_not_disturb_each_other(store: LocalStore) -> None:
    def churn(worker: int) -> None:
        for index in range(100):
            store.write(f"a/b/{worker}-{index}", b"x")
            store.delete(f"a/b/{worker}-{index}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(churn, range(4)))
    assert store.names() == []


def test_only_one_of_many_creates_an_object(store: LocalStore) -> None:
    def create(worker: int) -> bool:
        return store.create("ledger/000001.json", str(worker).encode() * 10_000)

    with ThreadPoolExecutor(16) as pool:
        created = list(pool.map(create, range(10, 42)))
    assert created.count(True) == 1
    winner = created.index(True) + 10
    assert store.read("ledger/000001.json") == str(winner).encode() * 10_000
    assert os.listdir(store.root / "ledger") == ["000001.json"]  # noqa: PTH208


def test_a_reader_sees_whole_objects_only(store: LocalStore) -> None:
    versions = [bytes([value]) * 200_000 for value in range(20)]
    store.write("x", versions[0])

    def read(_: int) -> bool:
        return store.read("x") in versions

    with ThreadPoolExecutor(2) as pool:
        reads = pool.map(read, range(100))
        for version in versions:
            store.write("x", version)
        assert all(reads)


@pytest.mark.parametrize("way", ["write", "create"])
def test_a_failed_write_leaves_the_old_object_and_nothing_else(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    store.write("x", b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(local.os, "fsync", full)
    with pytest.raises(StorageError, match="cannot be written: No space left on device"):
        getattr(store, way)("x", b"new")
    assert [path.name for path in store.root.iterdir()] == ["x"]
    assert store.read("x") == b"old"


def test_half_written_objects_have_no_name(store: LocalStore) -> None:
    store.write("a/x", b"")
    (store.root / "a" / ".partial-abc").write_bytes(b"half")
    assert store.names() == ["a/x"]


def test_objects_have_ordinary_permissions(store: LocalStore) -> None:
    mask = os.umask(0)
    os.umask(mask)
    store.write("x", b"")
    assert (store.root / "x").stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_file_cannot_be_a_folder(store: LocalStore) -> None:
    store.write("x", b"")
    with pytest.raises(StorageError, match="cannot be written"):
        store.write("x/y", b"")


def test_links_are_followed_and_loops_are_not(store: LocalStore, tmp_path: Path) -> None:
    elsewhere = LocalStore(str(tmp_path / "elsewhere"))
    elsewhere.write("benign/1.png", b"x")
    store.write("a", b"")
    (store.root / "linked").symlink_to(elsewhere.root)
    (elsewhere.root / "benign" / "up").symlink_to(elsewhere.root)
    assert store.names() == ["a", "linked/benign/1.png"]


def _victim(folder: Path) -> Path:
    """Return a folder outside the store with two files."""
    victim = folder / "victim"
    (victim / "inner").mkdir(parents=True)
    (victim / "a.txt").write_text("mine")
    (victim / "inner" / "b.txt").write_text("mine")
    return victim


def _contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("nested", ["linked", "deep/down/linked"])
@pytest.mark.parametrize("to", ["victim", "sibling", "."])
def test_nothing_is_written_or_deleted_through_a_link_to_a_folder(
    store: LocalStore, tmp_path: Path, nested: str, to: str
) -> None:
    victim = _victim(tmp_path)
    store.write("sibling/a.txt", b"own")
    link = store.root / nested
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(victim if to == "victim" else store.root / to)
    before = _contents(victim), _contents(store.root / "sibling")
    for name in (f"{nested}/a.txt", f"{nested}/inner/b.txt", f"{nested}/sibling/a.txt"):
        with pytest.raises(StorageError, match=f"root/{nested} is a link, and mtil neither writes"):
            store.delete(name)
        with pytest.raises(StorageError, match="is a link"):
            store.write(name, b"other")
        with pytest.raises(StorageError, match="is a link"):
            store.create(name, b"other")
    with pytest.raises(StorageError, match="is a link"):
        store.clear(nested, ANY)
    store.clear("", ANY)
    assert link.is_symlink()
    assert _contents(victim) == before[0]
    assert not (store.root / "sibling").exists()  # deleted under the regular name


def test_a_link_to_a_file_is_deleted_or_replaced_itself(store: LocalStore, tmp_path: Path) -> None:
    victim = _victim(tmp_path)
    store.root.mkdir()
    for name in ("one", "two", "three"):
        (store.root / name).symlink_to(victim / "a.txt")
    assert store.read("one") == b"mine"
    store.delete("one")
    store.write("two", b"own")
    assert not store.create("three", b"own")
    store.clear("", ANY)
    assert store.deletable().left == ("three",)
    assert _contents(victim) == {"a.txt": "mine", "inner/b.txt": "mine"}
    assert sorted(os.listdir(store.root)) == ["three"]  # noqa: PTH208


def test_a_root_that_is_a_link_is_the_users(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "root").symlink_to(tmp_path / "real")
    store = LocalStore(str(tmp_path / "root"))
    store.write("a/b", b"x")
    assert store.deletable().sizes == {"a/b": 1}
    store.clear("a", ANY)
    assert os.listdir(tmp_path / "real") == []  # noqa: PTH208


def test_what_may_be_deleted_is_reached_through_no_link(store: LocalStore, tmp_path: Path) -> None:
    store.write("a/b", b"123")
    (store.root / "a" / ".partial-x").write_bytes(b"12")
    (store.root / "a" / "linked").symlink_to(_victim(tmp_path))
    (store.root / "a" / "file").symlink_to(tmp_path / "victim" / "a.txt")
    (store.root / "a" / "none").symlink_to(tmp_path / "nothing")
    os.mkfifo(store.root / "pipe")
    found = store.deletable()
    assert found.sizes == {"a/.partial-x": 2, "a/b": 3}
    assert found.left == ("a/file", "a/linked", "a/none", "pipe")
    assert store.deletable("none").sizes == {}


def test_clearing_takes_what_the_pattern_says(store: LocalStore) -> None:
    for name in ("a/one", "a/two", "a/b/one", "one"):
        store.write(name, b"x")
    store.clear("a", re.compile("one"))
    assert store.names() == ["a/b/one", "a/two", "one"]


@pytest.mark.parametrize("kind", ["a named pipe", "a socket", "a device", "a link to a device"])
def test_what_is_no_regular_file_is_one_sentence_and_never_waits(
    store: LocalStore, kind: str
) -> None:
    store.root.mkdir()
    path = store.root / "x"
    if kind == "a named pipe":
        os.mkfifo(path)
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(store.root):
            made.bind("x")
    elif kind == "a device":
        try:
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero
        except PermissionError:
            pytest.skip("only the superuser makes devices")
    else:
        path.symlink_to("/dev/zero")
    says = "x must be a regular file, but is " + kind.replace("a link to ", "")
    for call in (store.read, store.exists, lambda name: list(store.chunks(name))):
        with pytest.raises(StorageError, match=says):
            call("x")
    assert store.names() == ["x"]
    assert store.sizes().keys() == {"x"}
    if not path.is_symlink():
        for call in (store.delete, lambda n: store.write(n, b""), lambda n: store.create(n, b"")):
            with pytest.raises(StorageError, match=says):
                call("x")
    assert store.deletable().sizes == {}


def test_a_folder_named_like_a_file_is_one_sentence(store: LocalStore) -> None:
    store.write("x/y", b"")
    for call in (store.delete, lambda n: store.write(n, b""), lambda n: store.create(n, b"")):
        with pytest.raises(StorageError, match="x must be a regular file, but is a folder"):
            call("x")
    assert store.names() == ["x/y"]


def test_links_to_nothing_and_in_a_circle_are_listed_and_said(store: LocalStore) -> None:
    store.root.mkdir()
    (store.root / "none.png").symlink_to("nothing")
    (store.root / "round.png").symlink_to("round.png")
    assert store.names() == ["none.png", "round.png"]
    with pytest.raises(NotFoundError, match=r"none\.png does not exist"):
        store.read("none.png")
    for call in (store.read, store.exists):
        with pytest.raises(StorageError, match=r"round\.png cannot be read: Too many .* circle"):
            call("round.png")
    assert not store.exists("none.png")


def test_folders_that_link_to_one_another_are_not_walked_for_ever(store: LocalStore) -> None:
    for number in range(30):
        store.write(f"{number}/x", b"")
        for way in ("a", "b"):
            (store.root / str(number) / way).symlink_to(store.root / str(number + 1))
    with pytest.raises(StorageError, match="A folder may be reached by 64 paths"):
        store.names()


def test_a_file_that_grows_while_it_is_read_has_an_end(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_MAX_GROWTH_BYTES", 100)
    store.write("x", bytes(10))
    pieces = store.chunks("x")
    assert next(pieces) == bytes(10)
    with (store.root / "x").open("ab") as file:
        file.write(bytes(101))
    with pytest.raises(StorageError, match="x grows while it is read"):
        list(pieces)


NO_LINKS = """
import ctypes, errno, json, os, struct, sys
# a seccomp filter for this process: link, linkat and, on request, renameat2 fail
calls = {"link": 86, "linkat": 265, "renameat2": 316}
def refuse(names, error):
    code = struct.pack("HBBI", 0x20, 0, 0, 0)  # load the system call number
    for name in names:
        code += struct.pack("HBBI", 0x15, 0, 1, calls[name])
        code += struct.pack("HBBI", 0x06, 0, 0, 0x00050000 | error)
    code += struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000)
    held = ctypes.create_string_buffer(code)
    program = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(held))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, ctypes.create_string_buffer(program)) == 0, ctypes.get_errno()
refuse(["link", "linkat"], getattr(errno, sys.argv[1]))
if sys.argv[2] == "no rename":
    refuse(["renameat2"], errno.EINVAL)
from mtil.doctor import check_storage
from mtil.errors import StorageError
from mtil.storage import LocalStore
store = LocalStore(sys.argv[3])
try:
    made = [store.create("a/x", b"one"), store.create("a/x", b"two"), store.create("a/y", b"")]
except StorageError as error:
    made = str(error)
check = check_storage(sys.argv[3])
print(json.dumps([made, check.ok, check.detail, check.hint]))
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the calls have other numbers")
@pytest.mark.parametrize("error", ["EPERM", "ENOTSUP", "EMLINK"])
@pytest.mark.parametrize("rename", ["rename", "no rename"])
def test_where_there_are_no_hard_links_files_are_created_by_a_rename(
    tmp_path: Path, error: str, rename: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", NO_LINKS, error, rename, str(tmp_path / "root")],
        capture_output=True,
        text=True,
        check=True,
    )
    made, is_ok, detail, hint = json.loads(done.stdout)
    if rename == "rename":
        assert made == [True, False, True]
        assert (tmp_path / "root" / "a" / "x").read_bytes() == b"one"
        assert sorted(os.listdir(tmp_path / "root" / "a")) == ["x", "y"]  # noqa: PTH208
        assert is_ok
        assert "there are no hard links" in hint
    else:
        says = "mtil needs a file system with hard links, or with a rename that replaces nothing"
        assert says in made
        assert (is_ok, says in detail) == (False, True)
        assert not (tmp_path / "root").exists() or _contents(tmp_path / "root") == {}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a" * 256, "File name too long; most file systems allow 255 bytes"),
        ("\ud800.png", r"must be encodable on this system, but got '\\ud800\.png'"),
        ("x/" * 3000 + "y", "File name too long"),
    ],
)
def test_names_that_no_file_can_have_are_one_sentence(
    store: LocalStore, name: str, says: str
) -> None:
    store.root.mkdir()
    for call in (store.read, store.exists, lambda name: store.write(name, b"")):
        with pytest.raises(StorageError, match=says) as caught:
            call(name)
        str(caught.value).encode()


@pytest.mark.parametrize("uri", ["", "a\0b", "~nobody-of-that-name/x"])
def test_locations_that_are_none_are_one_sentence(uri: str) -> None:
    with pytest.raises(StorageError, match=r"A location must be|names no folder here"):
        open_store(uri)


def test_locations(tmp_path: Path) -> None:
    odd = tmp_path / "a b%20c"
    assert open_store(str(odd)).uri == open_store(odd.as_uri()).uri == str(odd)
    assert open_store("file://localhost/a%20b").uri == "/a b"
    with pytest.raises(StorageError, match="must be file:///PATH, but got 'file://host/a'"):
        open_store("file://host/a")
    assert open_store("s3://bucket/some/prefix/").uri == "s3://bucket/some/prefix"
    assert open_store("s3://bucket").uri == "s3://bucket"
    assert open_store("gs://bucket/some/prefix/").uri == "gs://bucket/some/prefix"
    with pytest.raises(StorageError, match="path, file://, s3:// or gs://, but got 'az://x'"):
        open_store("az://x")
    for scheme in ("s3", "gs"):
        with pytest.raises(StorageError, match="must name a bucket"):
            open_store(f"{scheme}:///x")


def test_uris_are_split_into_parent_and_name() -> None:
    assert split_uri("s3://bucket/a/t.csv") == ("s3://bucket/a", "t.csv")
    assert split_uri("/t.csv") == ("/", "t.csv")
    assert split_uri("t.csv") == (".", "t.csv")
    assert split_uri("a/b/") == ("a", "b")
    assert split_uri("file:///a%20b/c%20d.csv") == ("file:///a%20b", "c d.csv")
    assert split_uri("file:///x.csv") == ("file:///", "x.csv")
    assert split_uri("c%20d.csv") == (".", "c%20d.csv")
