"""Unneeded files of a run: found, listed, deleted on request, and no further files."""

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mtil.circle import heartbeat, retention
from mtil.circle.inputs import find_map_source, find_prior_maps, load_model_chains
from mtil.circle.ledger import Ledger
from mtil.circle.state import ActionFailed, ActionStarted
from mtil.cli import main
from mtil.cli.commands.retention import format_size
from mtil.config import Config
from mtil.data.dataset import shards
from mtil.data.dataset.manifest import Manifest
from mtil.errors import DataError, LedgerError, MapError
from mtil.run.checkpoint import TrainedModel
from mtil.run.folder import Run
from mtil.run.plan import Evaluate, Train, WriteMaps
from mtil.storage import LocalStore, is_partial

CircleRun = Callable[..., Run]
FIGURES = {"num_epochs": 5, "seconds": 1.5, "metrics": {"dice": 0.75}}


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """Restore the SIGTERM handler replaced by a command."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "HEARTBEAT_INTERVAL_S", 0.03)
    monkeypatch.setattr(heartbeat, "_SILENCE_S", 0.3)


@pytest.fixture
def plain(
    tmp_path: Path, make_config: Callable[..., Config], make_model: Callable[..., TrainedModel]
) -> Run:
    """Return a run of `mtil train`: fold 0 has finished, fold 1 has not."""
    run = Run.create(str(tmp_path / "plain"), make_config(), "data", "f" * 64)
    run.commit(Train(0, 0), make_model(), **FIGURES)
    for fold in (0, 1):
        run.checkpoints(Train(0, fold)).save(2, {"fold": fold})
        run.write_step(Train(0, fold), {"epoch": 3, "step": 1, "steps": 9})
        run.store.write(f"rounds/0/fold-{fold}/model-0123456789ab.pt", b"half a model")
    return run


def found(run: Run) -> dict[str, str]:
    """Return the reason for every superseded file."""
    return {
        name: one.why
        for one in retention.find_superseded_files(run).superseded
        for name in one.files
    }


def files(run: Run) -> dict[str, bytes]:
    return {name: run.store.read(name) for name in run.store.sizes()}


def shards_of(run: Run, folder: str) -> list[str]:
    return [name for name in run.store.names(folder) if str(Path(name).parent) == folder]


def begin(run: Run, *started: Train | WriteMaps | Evaluate) -> Ledger:
    ledger = Ledger.open(run.store, session="later")
    ledger.boot()
    for action in started:
        ledger.append(ActionStarted(action=action, attempt=1))
    return ledger


# Maps


def test_maps_that_every_reader_has_read_are_superseded(
    circle_run: CircleRun, manifest: Manifest
) -> None:
    run = circle_run()
    expected = {f"maps/{number}/fold-{fold}" for number in (0, 1) for fold in (0, 1)}
    superseded = retention.find_superseded_files(run).superseded
    assert {one.folder for one in superseded} == expected
    for one in superseded:
        assert one.why == "maps that were read"
        assert list(one.files) == shards_of(run, one.folder)
        assert len(one.files) == len(manifest.shards)
        assert one.bytes == sum(len(run.store.read(name)) for name in one.files)


@pytest.mark.parametrize(
    ("until", "superseded"),
    [
        (Train(1, 0), set()),  # no action has read the maps of round 0
        # Round 1 of fold 0 is trained. Writing the maps of round 1 still reads the maps of round 0.
        (WriteMaps(1, 0), set()),
        (Evaluate(1, 0), {"maps/0/fold-0"}),
        (Train(2, 0), {"maps/0/fold-0", "maps/0/fold-1"}),
        (Train(2, 1), {"maps/0/fold-0", "maps/0/fold-1", "maps/1/fold-0"}),
    ],
)
def test_maps_that_an_action_still_reads_are_kept(
    circle_run: CircleRun, until: Train | WriteMaps | Evaluate, superseded: set[str]
) -> None:
    run = circle_run(until=until)
    # In the plan's order, Evaluate(2, 0) comes between the trainings of round 2.
    assert {one.folder for one in retention.find_superseded_files(run).superseded} == superseded
    begin(run, until)
    assert {one.folder for one in retention.find_superseded_files(run).superseded} == superseded


def test_cross_fit_a_part_s_maps_are_kept_while_one_training_reads_them(
    circle_run: CircleRun,
) -> None:
    run = circle_run([0], maps="cross_fit", num_parts=2, until=Train(1, 0, 1))
    # Done in round 1: main training, and inner training without part 0 (reads maps of part 1).
    assert found(run) == {}
    run = circle_run([0], name="other", maps="cross_fit", num_parts=2, until=WriteMaps(1, 0, 1))
    # All trainings and the maps of part 0 are done. WriteMaps(1, 0, 1) still reads part 1.
    assert {one.folder for one in retention.find_superseded_files(run).superseded} == {
        "maps/0/fold-0/part-0"
    }


def test_the_maps_of_a_failed_fold_are_kept(circle_run: CircleRun) -> None:
    run = circle_run([0], max_attempts=1, num_rounds=2, until=Train(1, 0))
    ledger = begin(run, Train(1, 0))
    ledger.append(ActionFailed(action=Train(1, 0), attempt=1, cause="No memory."))
    assert found(run) == {}


# Trainings


def _checkpoint(run: Run) -> str:
    """Return the name of the only checkpoint of fold 0."""
    folder = "rounds/0/fold-0/checkpoints"
    (name,) = (name for name in run.store.names(folder) if name.endswith(".pt"))
    return name


def test_of_a_run_without_a_ledger_only_ended_trainings_are_looked_at(plain: Run) -> None:
    plain.store.write("ledger-probe/0123", b"first")
    Path(plain.uri, "rounds/0/fold-0/.partial-abc").write_bytes(b"x")
    assert found(plain) == {
        _checkpoint(plain): "ended training",
        "rounds/0/fold-0/checkpoints/latest.json": "ended training",
        "rounds/0/fold-0/step.json": "ended training",
        "rounds/0/fold-0/model-0123456789ab.pt": "unnamed model",
    }
    retention.delete_superseded_files(plain, retention.find_superseded_files(plain))
    assert found(plain) == {}
    assert plain.model(Train(0, 0)).fold == 0
    assert plain.checkpoints(Train(0, 1)).load() == {"fold": 1}
    assert plain.store.exists("rounds/0/fold-1/model-0123456789ab.pt")


def test_what_interrupted_work_has_left_in_a_circle_is_superseded(
    circle_run: CircleRun,
) -> None:
    run = circle_run([0], num_rounds=2, until=Train(1, 0))
    left = {
        "ledger-probe/0123456789abcdef": "ledger probe",
        "rounds/0/fold-0/model-ba9876543210.pt": "unnamed model",
        "rounds/0/fold-0/checkpoints/epoch-0001.pt": "ended training",
        "maps/0/fold-0/.partial-0abc": "interrupted write",
        "rounds/0/.partial-1abc": "interrupted write",
    }
    for name in left:
        path = Path(run.uri, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"left")
    # The training has not ended: no result names a different model.
    run.store.write("rounds/1/fold-0/model-0123456789ab.pt", b"left")
    run.checkpoints(Train(1, 0)).save(0, {"weights": 1})  # the training resumes from the checkpoint
    run.store.write("coordinator.json", json.dumps({"session": "dead", "count": 3}).encode())
    assert found(run) == left
    finding = retention.find_superseded_files(run)
    assert (finding.num_files, finding.bytes) == (5, 20)

    begin(run, Train(1, 0))  # a silent writer may still be active
    assert found(run) == {name: why for name, why in left.items() if why != "interrupted write"}
    Ledger.open(run.store).stop()
    assert found(run) == left
    before = files(run)
    retention.delete_superseded_files(run, retention.find_superseded_files(run))
    assert files(run) == {name: data for name, data in before.items() if name not in left}
    assert not any(is_partial(name) for name in run.store.sizes())
    assert run.checkpoints(Train(1, 0)).load() == {"weights": 1}


def test_a_model_that_the_ledger_names_is_kept(circle_run: CircleRun) -> None:
    run = circle_run([0], num_rounds=1)
    run.store.delete("rounds/0/fold-0/result.json")
    assert found(run) == {}


def test_nothing_is_found_where_the_files_cannot_be_trusted(circle_run: CircleRun) -> None:
    run = circle_run([0], num_rounds=2)
    run.store.write("rounds/0/fold-0/result.json", b"{}")
    with pytest.raises(DataError, match=r"result\.json is wrong at `round`"):
        retention.find_superseded_files(run)
    run.store.write("ledger/000004.json", b"{")
    with pytest.raises(LedgerError, match="Event 4 of"):
        retention.find_superseded_files(run)


# Deleting


def test_a_tidied_run_works_as_before(
    circle_run: CircleRun, manifest: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    run = circle_run()
    before = files(run)
    digests = [model.digest for model in load_model_chains(run, 2, 1)[0]]
    assert main(["status", "--run", run.uri, "--json"]) == 0
    stdout = capsys.readouterr().out
    assert main(["gc", "--run", run.uri, "--yes"]) == 0
    capsys.readouterr()
    kept = {name: data for name, data in before.items() if not name.startswith("maps/")}
    assert files(run) == kept
    assert main(["status", "--run", run.uri, "--json"]) == 0
    assert capsys.readouterr().out == stdout
    assert [model.digest for model in load_model_chains(run, 2, 1)[0]] == digests
    # A later read reports the missing maps. Writing equal maps again repairs the run.
    priors = find_prior_maps(run, manifest, Train(2, 0))
    assert priors is not None
    source = find_map_source(run, manifest, WriteMaps(1, 0))
    table = shards.read_shard(LocalStore(run.data_uri), manifest.shards[0])
    with pytest.raises(MapError, match="is missing; it must be written again"):
        priors.join(table, manifest.shards[0])
    name = source.name(manifest.shards[0])
    run.store.write(name, before[name])
    assert priors.join(table, manifest.shards[0]).num_rows == table.num_rows


def test_a_run_that_goes_on_meanwhile_is_left_alone(circle_run: CircleRun) -> None:
    run = circle_run(num_rounds=3, until=Train(2, 1))
    finding = retention.find_superseded_files(run)
    assert finding.num_files > 0
    begin(run)
    before = files(run)
    with pytest.raises(
        DataError, match=r"Cannot clean up .*: the run has continued since the search"
    ):
        retention.delete_superseded_files(run, finding)
    assert files(run) == before


def test_what_is_gone_already_is_no_error(circle_run: CircleRun) -> None:
    run = circle_run()
    finding = retention.find_superseded_files(run)
    retention.delete_superseded_files(run, finding)
    retention.delete_superseded_files(run, finding)
    assert retention.find_superseded_files(run).superseded == ()


# Foreign and doubtful files


def _tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


@pytest.mark.parametrize(
    "link",
    [
        "ledger-probe", "ledger-probe/0123456789abcdef", "maps", "maps/0", "maps/0/fold-0",
        "rounds/0/fold-0/checkpoints", "rounds/0/fold-0/model-0123456789ab.pt", "rounds/7",
    ],
)  # fmt: skip
@pytest.mark.parametrize("target", ["victim", "sibling", "up"])
def test_nothing_is_deleted_through_a_link(
    circle_run: CircleRun,
    tmp_path: Path,
    link: str,
    target: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = circle_run([0], num_rounds=2)
    root, other = Path(run.uri), circle_run([0], name="other", num_rounds=2)
    victim = {"victim": Path(other.uri), "sibling": root / "kept", "up": root}[target]
    (root / "kept").mkdir()
    for name in ("maps", "maps/0", "maps/0/fold-0", "rounds/0/fold-0/checkpoints"):
        (root / "kept" / name).mkdir(parents=True, exist_ok=True)
        (root / "kept" / name / "part-00000.parquet").write_bytes(b"mine")
        (root / "kept" / name / "0123456789abcdef").write_bytes(b"mine")
    path = root / link
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        path.rename(tmp_path / "moved")
    inside = victim / link
    path.symlink_to(inside if inside.exists() and target != "up" else victim)
    before = _tree(Path(other.uri)), _tree(root / "kept")
    assert main(["gc", "--run", run.uri, "--yes"]) == 0
    assert f"{link} is a link or no regular file. mtil follows no link" in capsys.readouterr().out
    assert path.is_symlink()
    assert (_tree(Path(other.uri)), _tree(root / "kept")) == before


def test_the_files_of_other_runs_and_data_sets_below_a_run_are_left_alone(
    circle_run: CircleRun,
) -> None:
    run = circle_run([0], num_rounds=2)
    root = Path(run.uri)
    for name in (
        "other/.partial-abc", "data/staging/.partial-abc", "rounds/0/fold-0/mine/.partial-abc",
        "notes/rounds/0/fold-0/.partial-abc", "maps/mine/.partial-abc", "rounds/.partial-abc",
        "ledger-probe/inner/0123456789abcdef", "ledger-probe/notes.txt",
        "rounds/0/fold-0/checkpoints/thesis.pt", "rounds/0/fold-0/checkpoints/x/epoch-0001.pt",
        "rounds/0/fold-0/model-of-mine.pt", "maps/0/fold-0/notes.parquet",
        "rounds/9/run.json", "rounds/9/.partial-abc", "rounds/9/fold-0/.partial-abc",
    ):  # fmt: skip
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"mine")
    mine = {name for name, data in _tree(root).items() if data == b"mine"}
    assert mine.isdisjoint(found(run))
    assert "maps that were read" in found(run).values()


def _damage(run: Run, sha256: str) -> None:
    path = Path(run.uri, "rounds/0/fold-0/result.json")
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"model_sha256": sha256}))


@pytest.mark.parametrize("digit", [0, 11, 12, 63])
@pytest.mark.parametrize("kind", ["train", "circle"])
def test_no_model_is_deleted_where_the_named_one_is_not_there(
    plain: Run,
    circle_run: CircleRun,
    kind: str,
    digit: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = plain if kind == "train" else circle_run([0], num_rounds=1)
    result = run.result(Train(0, 0))
    assert result is not None
    run.write_step(Train(0, 0), {"epoch": 0, "step": 1, "steps": 2, "hosts": []})
    other = "0" if result.model_sha256[digit] != "0" else "1"
    _damage(run, result.model_sha256[:digit] + other + result.model_sha256[digit + 1 :])
    before = files(run)
    assert main(["gc", "--run", run.uri, "--yes", "--json"]) == 0
    (reason,) = json.loads(capsys.readouterr().out)["left"]
    assert "is missing or has not the sha256 named in the run" in reason
    assert files(run) == before


def test_no_model_is_deleted_where_the_named_one_is_damaged_or_none_is_named(plain: Run) -> None:
    result = plain.result(Train(0, 0))
    assert result is not None
    name = plain.model_name(Train(0, 0), result)
    plain.store.write(name, plain.store.read(name)[:-1])
    assert found(plain) == {}
    plain.store.delete("rounds/0/fold-0/result.json")
    assert found(plain) == {}


# The command


def command(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[dict[str, Any], str]:
    assert main(["gc", *words, "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    return json.loads(captured.out), captured.err


def test_the_command_lists_first_and_deletes_when_it_is_told_to(
    plain: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(plain)
    values, seen = command(capsys, "--run", plain.uri)
    assert files(plain) == before
    checkpoint = len(before[_checkpoint(plain)])
    checkpoint += len(before["rounds/0/fold-0/checkpoints/latest.json"])
    step = len(before["rounds/0/fold-0/step.json"])
    listed = [
        ("ended training", "rounds/0/fold-0", ["rounds/0/fold-0/step.json"], step),
        ("unnamed model", "rounds/0/fold-0", ["rounds/0/fold-0/model-0123456789ab.pt"], 12),
        (
            "ended training",
            "rounds/0/fold-0/checkpoints",
            [
                _checkpoint(plain),
                "rounds/0/fold-0/checkpoints/latest.json",
            ],
            checkpoint,
        ),
    ]
    assert values == {
        "run": plain.uri,
        "deleted": False,
        "files": 4,
        "bytes": checkpoint + step + 12,
        "left": [],
        "superseded": [
            dict(zip(("why", "folder", "files", "bytes"), one, strict=True)) for one in listed
        ],
    }
    assert f"`mtil gc --run {plain.uri} --yes` deletes them." in seen
    assert ["unnamed", "model", "rounds/0/fold-0", "1", "12", "B"] in [
        line.split() for line in seen.splitlines()
    ]

    deleted, seen = command(capsys, "--run", plain.uri, "--yes")
    assert deleted == values | {"deleted": True}
    assert "Deleted 4 files, " in seen
    gone = {name for _, _, names, _ in listed for name in names}
    assert files(plain) == {name: data for name, data in before.items() if name not in gone}

    values, seen = command(capsys, "--run", plain.uri, "--yes")
    assert (values["files"], values["bytes"], values["superseded"]) == (0, 0, [])
    assert seen == f"{plain.uri} has no superseded files.\n"


@pytest.mark.parametrize("words", [[], ["--yes"]])
def test_a_run_with_a_coordinator_at_work_is_refused(
    circle_run: CircleRun,
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(heartbeat, "_SILENCE_S", 60.0)  # long enough for a busy machine
    run = circle_run(num_rounds=2)
    run.store.write("coordinator.json", json.dumps({"session": "one", "count": -1}).encode())
    with heartbeat.HeartbeatThread(run.store, "one"):
        before = set(run.store.names("maps"))
        assert main(["gc", "--run", run.uri, *words]) == 2
    assert capsys.readouterr().err == (
        f"mtil: Cannot clean up {run.uri} while a coordinator is active. Wait for the end of the "
        f"run, or stop it with `mtil stop --run {run.uri}`.\n"
    )
    assert set(run.store.names("maps")) == before
    assert before


def test_what_is_no_run_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_bytes(b"x")
    assert main(["gc", "--run", str(tmp_path), "--yes"]) == 2
    assert "must have a run.json" in capsys.readouterr().err
    assert (tmp_path / "file").exists()


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (5 * 2**20, "5.0 MiB"),
        (3 * 2**40, "3.0 TiB"), (2**51, "2048.0 TiB"),
    ],
)  # fmt: skip
def test_sizes_are_told_in_the_unit_that_fits(number: int, text: str) -> None:
    assert format_size(number) == text


def test_a_store_tells_sizes_with_what_interrupted_writes_left(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    store.write("a/b", b"123")
    store.write("c", b"")
    (tmp_path / "a" / ".partial-x").write_bytes(b"12345")
    assert store.sizes() == {"a/.partial-x": 5, "a/b": 3, "c": 0}
    assert store.sizes("a") == {"a/.partial-x": 5, "a/b": 3}
    assert store.sizes("none") == {}
    assert store.names() == ["a/b", "c"]
    assert [name for name in store.sizes() if is_partial(name)] == ["a/.partial-x"]
