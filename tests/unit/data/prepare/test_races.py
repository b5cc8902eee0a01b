"""Concurrent preparations of a target: the target holds a single, complete data set."""

import json
import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from mtil import phantom
from mtil.data import parallel
from mtil.data.append.pipeline import append_images
from mtil.data.dataset import manifest, shards
from mtil.data.inspection import inspect_dataset, inspection_to_dict
from mtil.data.prepare.pipeline import Settings, prepare
from mtil.data.prepare.sources import CollectionSource
from mtil.errors import DataError, MtilError
from mtil.storage import LocalStore

pytestmark = pytest.mark.slow

SIZE = 32
SETTINGS = Settings(image_size=SIZE, num_folds=2)
_CHANGES = ("write", "create", "delete")


@pytest.fixture(scope="module")
def collections(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return two collections of different images."""
    made = []
    for seed in (0, 1):
        out = tmp_path_factory.mktemp("phantoms") / f"busi-{seed}"
        phantom.write_phantoms(out, num_images=20, seed=seed, image_size=64)
        made.append(out)
    return made[0], made[1]


def _prepare(source: Path, to: Path, settings: Settings = SETTINGS) -> manifest.Manifest:
    return prepare(
        [CollectionSource(uri=str(source), layout="busi")],
        str(to),
        settings,
        runner=parallel.run_in_process,
    )


def _files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@dataclass
class Paused:
    """A separate process, waiting before a change to the target."""

    process: BaseProcess
    pipe: Connection

    def go_on(self) -> tuple[str, str]:
        """Continue the process. Return "done" and the fingerprint, or error class and message."""
        self.pipe.send("go")
        ended: tuple[str, str] = self.pipe.recv()
        self.process.join()
        return ended


@pytest.fixture
def paused() -> Iterator[Callable[..., Paused | None]]:
    """Start work and pause before change `number`. None if the work ends with fewer changes."""
    processes = []

    def start(number: int, work: Callable[[], Any]) -> Paused | None:
        ours, theirs = multiprocessing.Pipe()
        # a fork saves the imports
        process = multiprocessing.get_context("fork").Process(
            target=_work, args=(number, work, theirs)
        )
        process.start()
        processes.append(process)
        kind, _ = ours.recv()
        if kind == "paused":
            return Paused(process, ours)
        process.join()
        assert kind == "done"
        return None

    yield start
    for process in processes:
        process.kill()
        process.join()


def _work(number: int, work: Callable[[], Any], pipe: Connection) -> None:
    changes = 0

    def pausing(change: Callable[..., Any]) -> Callable[..., Any]:
        def wait_and_change(*words: Any) -> Any:
            nonlocal changes
            if changes == number:
                pipe.send(("paused", ""))
                pipe.recv()
            changes += 1
            return change(*words)

        return wait_and_change

    for name in _CHANGES:
        setattr(LocalStore, name, pausing(getattr(LocalStore, name)))
    try:
        pipe.send(("done", work().fingerprint))
    except MtilError as error:
        pipe.send((type(error).__name__, str(error)))


def _check_whole(to: Path, expected: dict[str, bytes]) -> None:
    """Check that a target holds exactly the expected files, and that shards match the manifest."""
    assert _files(to) == expected
    store = LocalStore(str(to))
    made = inspect_dataset(store).manifest
    for shard in made.shards:
        shards.read_shard(store, shard)


def _every_change(
    tmp_path: Path,
    paused: Callable[..., Paused | None],
    work: Callable[[Path], Any],
    meanwhile: Callable[[Path], Any],
) -> Iterator[tuple[Path, tuple[str, str]]]:
    """Run `meanwhile` before every change of `work`. Yield the target and the end of `work`."""
    for number in range(1000):
        to = tmp_path / str(number)
        waiting = paused(number, lambda to=to: work(to))
        if waiting is None:
            assert number > 8  # facts, rows, facts, shard, pairs, images, manifest, splits, ...
            return
        meanwhile(to)
        yield to, waiting.go_on()
    raise AssertionError


def test_of_two_preparations_of_other_images_one_counts(
    collections: tuple[Path, Path], tmp_path: Path, paused: Callable[..., Paused | None]
) -> None:
    mine, theirs = collections
    alone = {}
    for source in collections:
        _prepare(source, tmp_path / f"alone-{source.name}")
        alone[source] = _files(tmp_path / f"alone-{source.name}")
    outcomes = set()

    def meanwhile(to: Path) -> None:
        if not to.exists():
            _prepare(theirs, to)
            return
        with pytest.raises(DataError, match="must be empty"):
            _prepare(theirs, to)

    for to, (kind, message) in _every_change(
        tmp_path, paused, lambda to: _prepare(mine, to), meanwhile
    ):
        outcomes.add(kind)
        if kind == "done":
            _check_whole(to, alone[mine])
        else:
            assert (kind, "choose another target" in message) == ("DataError", True)
            _check_whole(to, alone[theirs])
    assert outcomes == {"done", "DataError"}


def test_a_preparation_between_staging_and_its_manifest_is_overtaken_without_harm(
    collections: tuple[Path, Path], tmp_path: Path, paused: Callable[..., Paused | None]
) -> None:
    """Both preparations start with an empty target."""
    mine, theirs = collections
    _prepare(theirs, tmp_path / "alone")
    alone = _files(tmp_path / "alone")
    ended = []
    for number in range(2, 100):
        to = tmp_path / str(number)
        other = paused(0, lambda to=to: _prepare(theirs, to))
        first = paused(number, lambda to=to: _prepare(mine, to))
        assert other is not None
        if first is None:
            other.go_on()
            break
        assert other.go_on()[0] in ("done", "DataError")
        kind, message = first.go_on()
        ended.append(kind)
        if kind == "DataError":
            assert "choose another target" in message
            _check_whole(to, alone)
    assert set(ended) == {"done", "DataError"}


def test_two_equal_preparations_are_both_told_of_the_one_data_set(
    collections: tuple[Path, Path], tmp_path: Path, paused: Callable[..., Paused | None]
) -> None:
    source = collections[0]
    made = _prepare(source, tmp_path / "alone")
    alone = _files(tmp_path / "alone")

    def meanwhile(to: Path) -> None:
        assert _prepare(source, to) == made

    for to, ended in _every_change(tmp_path, paused, lambda to: _prepare(source, to), meanwhile):
        assert ended == ("done", made.fingerprint)
        _check_whole(to, alone)


def test_other_settings_for_the_same_images_are_refused_by_the_first_data_set(
    collections: tuple[Path, Path], tmp_path: Path, paused: Callable[..., Paused | None]
) -> None:
    source, other = collections[0], Settings(image_size=SIZE, num_folds=2, seed=7)
    _prepare(source, tmp_path / "alone", other)
    alone = _files(tmp_path / "alone")
    kinds = []
    for to, (kind, message) in _every_change(
        tmp_path, paused, lambda to: _prepare(source, to), lambda to: _prepare(source, to, other)
        if not (to / "dataset.json").exists() else None,
    ):  # fmt: skip
        kinds.append(kind)
        if kind == "DataError":
            assert "seed is 7, not the requested 0" in message
            _check_whole(to, alone)
    assert set(kinds) == {"done", "DataError"}


def test_an_append_meanwhile_is_kept(
    collections: tuple[Path, Path], tmp_path: Path, paused: Callable[..., Paused | None]
) -> None:
    """The append starts once the manifest exists, even before the splits are written."""
    source, more = collections
    renamed = tmp_path / "more"
    for path in sorted(more.rglob("*.png")):
        kind = path.parent.name
        target = renamed / kind / path.name.replace(f"{kind} (", f"{kind} (9")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())

    def meanwhile(to: Path) -> None:
        if (to / "dataset.json").exists():
            append_images(
                [CollectionSource(uri=str(renamed), layout="busi")],
                str(to),
                runner=parallel.run_in_process,
            )

    versions = set()
    for to, ended in _every_change(tmp_path, paused, lambda to: _prepare(source, to), meanwhile):
        assert ended[0] == "done"
        store = LocalStore(str(to))
        newest = manifest.load_manifest(store)
        versions.add(newest.version)
        assert inspection_to_dict(inspect_dataset(store))["version"] == newest.version
        images = json.loads((to / "splits.json").read_text())["images"]
        assert len(images) == newest.num_rows
        assert not (to / "staging").exists()
    assert versions == {1, 2}
