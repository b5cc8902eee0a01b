"""The local store: objects whole or not at all, and names that stay inside."""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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
    store.delete("a/d")  # a missing one is no error
    assert store.names() == []


def test_clearing_a_folder_takes_what_interrupted_writes_left(store: LocalStore) -> None:
    for name in ("a/b/one", "a/b/c/two", "a/three"):
        store.write(name, b"x")
    (store.root / "a" / "b" / ".partial-x").write_bytes(b"half")
    store.clear("a/b", ANY)
    assert store.names() == ["a/three"]
    assert not (store.root / "a" / "b").exists()
    store.clear("a/b", ANY)  # it has gone already
    store.write("a/b/one", b"x")
    store.delete("a/three")
    store.clear("a/b", ANY)
    assert not store.root.exists()


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
