"""A damaged value in a file of a data set or run ends a command in a single error sentence."""

import copy
import hashlib
import io
import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mtil.circle import heartbeat
from mtil.cli import main
from mtil.distributed.runtime import cluster
from mtil.errors import RunError
from mtil.run.folder import Run

pytestmark = pytest.mark.slow

RESULT = "rounds/1/fold-0/result.json"
FILES = ("data/dataset.json", "run/run.json", f"run/{RESULT}", "run/ledger/000001.json", "last")
_DELETED = object()
_DEEP: Any = []
for _ in range(40):
    _DEEP = [_DEEP]
VALUES = st.sampled_from(
    [
        _DELETED, None, True, False, 0, 1, -1, 300, 10**9, 10**15, 10**30, -(10**30), 0.5, -0.5,
        1e300, float("nan"), float("inf"), "", "x", "0" * 64, "../../etc", "/dev/zero", "a" * 5000,
        "\ud800", "\0", "[/foo]", [], {}, [0], {"x": 0}, _DEEP,
    ]
)  # fmt: skip
TEXTS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "cut at the end": lambda data: data.rstrip()[:-1],
    "nested": lambda data: b"[" * 200_000,
    "nested in a key": lambda data: data.replace(b":", b":" + b"[" * 100_000, 1),
    "many digits": lambda data: data.replace(b":", b":" + b"1" * 5000 + b',"x":', 1),
    "a key twice": lambda data: data.replace(b"{", b'{"data": 1, "data": 2, ', 1),
    "UTF-16": lambda data: data.decode().encode("utf-16"),
    "NUL": lambda data: data.replace(b":", b"\0:", 1),
    "no UTF-8": lambda data: data.replace(b":", b": \xff", 1),
    "another type": lambda data: b"[1, 2]",
    "null": lambda data: b"null",
}


class ReachedRayError(RunError):
    """Raised when a command would start Ray."""


@pytest.fixture(scope="module")
def places(data_uri: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder for a copy of the data set and a run, and the data set's sample ids."""
    folder = tmp_path_factory.mktemp("damaged")
    shutil.copytree(data_uri, folder / "data")
    splits = json.loads((folder / "data/splits.json").read_text())
    return folder, sorted(splits["images"])


@pytest.fixture
def whole(
    places: tuple[Path, list[str]],
    circle_run: Callable[..., Run],
    monkeypatch: pytest.MonkeyPatch,
    signals: None,
) -> Iterator[tuple[Path, str]]:
    """A healthy data set and run, and an image's id; Ray does not start."""

    def start(**_: object) -> None:
        raise ReachedRayError("Ray would start now.")

    monkeypatch.setattr(cluster, "connect_ray", start)
    monkeypatch.setattr(heartbeat, "is_coordinator_alive", lambda store: False)
    folder, ids = places
    run = circle_run([0, 1], num_rounds=2)
    values = json.loads(run.store.read("run.json"))
    run.store.write("run.json", json.dumps(values | {"data": str(folder / "data")}).encode())
    shutil.copytree(run.uri, folder / "run")
    yield folder, ids[0]
    shutil.rmtree(folder / "run")


def _commands(folder: Path, sample_id: str) -> dict[str, list[str]]:
    data, run = str(folder / "data"), str(folder / "run")
    config = folder / "config.json"
    asked = ["--data", data, "--run", run, "--config", str(config), "--folds", "0,1"]
    return {
        "inspect": ["inspect", data],
        "status": ["status", "--run", run],
        "lineage": ["status", "--run", run, "--lineage", sample_id],
        "gc": ["gc", "--run", run],
        "delete": ["gc", "--run", run, "--yes"],
        "evaluate": ["evaluate", "--run", run],
        "train": ["train", *asked],
        "circle": ["circle", *asked],
        "predict": ["predict", run, str(folder / "images"), str(folder / "out")],
    }


def _paths(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path to every value of a tree, containers included."""
    found = [path] if path else []
    if isinstance(node, list):
        node = dict(enumerate(node))
    for key, value in node.items() if isinstance(node, dict) else ():
        found += _paths(value, (*path, key))
    return found


def _damaged(values: Any, path: tuple[Any, ...], value: Any) -> Any:
    changed = copy.deepcopy(values)
    node = changed
    for key in path[:-1]:
        node = node[key]
    if value is _DELETED:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return changed


def _sealed(event: dict[str, Any]) -> bytes:
    """Recompute the digest of a changed event, as an attacker would."""
    event = {key: value for key, value in event.items() if key != "sha256"}
    text = json.dumps(event, indent=1) + "\n"
    event["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    return (json.dumps(event, indent=1) + "\n").encode()


def _run_command(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> tuple[int, str]:
    capsys.readouterr()
    code = main(arguments)
    captured = capsys.readouterr()
    assert code in (0, 1, 2), captured.err
    if code:
        (line,) = captured.err.strip().splitlines()[-1:]
        assert line.startswith("mtil: ")
        assert len(line) < 3000
    assert "Traceback" not in captured.err
    return code, captured.err


def _contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


class Case:
    """Healthy files, restored after every example."""

    def __init__(self, folder: Path, sample_id: str, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys = folder, capsys
        run_json = json.loads((folder / "run/run.json").read_text())
        (folder / "config.json").write_text(json.dumps(run_json["config"]))
        (folder / "images").mkdir(exist_ok=True)
        self.commands = _commands(folder, sample_id)
        self.last = sorted((folder / "run/ledger").iterdir())[-1]
        self.healthy = _contents(folder)
        assert _run_command(capsys, self.commands["delete"])[0] == 0
        self.kept = _contents(folder)
        self.restore()

    def file(self, name: str) -> Path:
        """Return the path of an entry of `FILES`."""
        return self.last if name == "last" else self.folder / name

    def restore(self) -> None:
        """Restore the files changed by an example."""
        for path, data in self.healthy.items():
            if not path.exists() or path.read_bytes() != data:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)

    def check(self, path: Path, data: bytes, command: str) -> str:
        """Write a damaged file and run a command. Return the text on stderr."""
        path.write_bytes(data)
        try:
            _, stderr = _run_command(self.capsys, self.commands[command])
            there = _contents(self.folder)
            lost = [name for name in self.kept if name not in there]
            assert not lost, lost
            return stderr
        finally:
            self.restore()


@pytest.fixture
def case(whole: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> Case:
    return Case(*whole, capsys)


QUICK = ("inspect", "status", "lineage", "gc", "delete", "evaluate", "train", "circle")
MANY = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def test_what_is_whole_is_read_by_every_command(case: Case) -> None:
    for name, arguments in case.commands.items():
        code, stderr = _run_command(case.capsys, arguments)
        case.restore()
        if name in ("evaluate", "train", "circle"):
            assert (code, stderr) == (1, "mtil: Ray would start now.\n")
        elif name == "predict":
            assert (code, "images" in stderr) == (2, True)  # an empty folder
        else:
            assert code == 0, stderr


@MANY
@given(data=st.data())
def test_a_damaged_value_is_one_sentence(case: Case, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(FILES))
    values = json.loads(case.file(name).read_bytes())
    path = data.draw(st.sampled_from(_paths(values)))
    changed = _damaged(values, path, data.draw(VALUES))
    is_forged = "ledger" in str(case.file(name)) and data.draw(st.booleans())
    text = _sealed(changed) if is_forged else json.dumps(changed, indent=1).encode()
    case.check(case.file(name), text, data.draw(st.sampled_from(QUICK)))


def test_a_file_that_is_no_document_is_one_sentence(case: Case) -> None:
    for name, (how, change) in itertools.product(FILES, TEXTS.items()):
        path = case.file(name)
        command = "inspect" if "data" in name else "evaluate" if RESULT in name else "circle"
        stderr = case.check(path, change(path.read_bytes()), command)
        number = int(path.stem) if path.parent.name == "ledger" else None
        assert (path.name if number is None else f"Event {number} of ") in stderr, (name, how)


@MANY
@given(data=st.data())
def test_damaged_metadata_of_a_model_are_one_sentence(case: Case, data: st.DataObject) -> None:
    result_path = case.folder / "run" / RESULT
    result = json.loads(result_path.read_text())
    old = result_path.parent / f"model-{result['model_sha256'][:12]}.pt"
    values = torch.load(io.BytesIO(old.read_bytes()), weights_only=True)
    about = {key: value for key, value in values.items() if key != "weights"}
    path = data.draw(st.sampled_from(_paths(about)))
    changed = _damaged(about, path, data.draw(VALUES))
    sink = io.BytesIO()
    torch.save(changed | {"weights": values["weights"]}, sink)
    digest = hashlib.sha256(sink.getvalue()).hexdigest()
    new = result_path.parent / f"model-{digest[:12]}.pt"
    new.write_bytes(sink.getvalue())
    try:
        text = json.dumps(result | {"model_sha256": digest}).encode()
        command = data.draw(st.sampled_from(("lineage", "evaluate", "predict")))
        case.check(result_path, text, command)
    finally:
        new.unlink(missing_ok=True)
