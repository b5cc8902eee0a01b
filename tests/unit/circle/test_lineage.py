"""Lineage of an image: read from the files of a run and checked."""

import dataclasses
import hashlib
import io
import json
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtil import __version__
from mtil.circle import retention
from mtil.circle.lineage.history import trace_lineage
from mtil.circle.lineage.links import Lineage, MapLink, ModelLink
from mtil.cli import main
from mtil.config import Config, compute_config_digest
from mtil.data.dataset import shards
from mtil.data.dataset.manifest import Manifest
from mtil.data.prepare.pipeline import Settings, prepare
from mtil.data.prepare.sources import CollectionSource
from mtil.errors import DataError
from mtil.prediction.scoring import PREDICTIONS_SCHEMA
from mtil.run.checkpoint import TrainedModel
from mtil.run.folder import Run
from mtil.run.plan import Evaluate, Train, WriteMaps
from mtil.storage import LocalStore

pytestmark = pytest.mark.slow

CircleRun = Callable[..., Run]
Pick = Callable[..., dict[str, Any]]
FIGURES = {"num_epochs": 5, "seconds": 1.5, "metrics": {"dice": 0.75}}


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """Restore the SIGTERM handler replaced by a command."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def pick(data_uri: str, manifest: Manifest) -> Pick:
    """Find an image of a fold and part outside the first shard; see `Manifest` on parts."""
    rows = [
        row | {"number": number, "shard": PurePosixPath(shard.path).name}
        for number, shard in enumerate(manifest.shards)
        for row in shards.read_shard(
            LocalStore(data_uri), shard, ["sample_id", "fold", "part"]
        ).to_pylist()
    ]

    def find(fold: int, *, part: int | None = None, other_than: int = -1) -> dict[str, Any]:
        return next(
            row
            for row in rows
            if row["fold"] == fold
            and row["number"] > 0
            and part in (None, row["part"])
            and row["part"] != other_than
        )

    return find


def model_of(run: Run, folder: str) -> str:
    """Return the model file of a training, named by the digest in the result."""
    result = json.loads(run.store.read(f"{folder}/result.json"))
    return f"{folder}/model-{result['model_sha256'][:12]}.pt"


def brief(found: Lineage) -> list[tuple[str, int, int, int | None]]:
    return [
        ("map" if isinstance(link, MapLink) else "model", link.round, link.fold, link.part)
        for link in found.chain
    ]


def link(found: Lineage, kind: type, number: int) -> Any:
    (one,) = [link for link in found.chain if isinstance(link, kind) and link.round == number]
    return one


# Chains


def test_in_sample_a_map_goes_back_through_every_round_to_the_shard(
    circle_run: CircleRun, pick: Pick, manifest: Manifest, data_uri: str
) -> None:
    run = circle_run()
    image = pick(0, other_than=1)  # a training image of fold 1, a test image of fold 0
    found = trace_lineage(run, image["sample_id"])
    assert found.disagreements == ()
    assert found.folds == (1,)
    assert brief(found) == [
        ("map", 1, 1, None), ("model", 1, 1, None), ("map", 0, 1, None), ("model", 0, 1, None),
    ]  # fmt: skip
    name = image["shard"]
    first, second = (f"rounds/{number}/fold-1" for number in (0, 1))
    latest = link(found, MapLink, 1)
    assert latest.file == f"maps/1/fold-1/{name}"
    assert latest.given == f"maps/0/fold-1/{name}"
    assert latest.model == model_of(run, second)
    assert not latest.is_removed
    sha256 = hashlib.sha256(run.store.read(latest.model)).hexdigest()
    assert dataclasses.asdict(latest.origin) == {
        "fingerprint": manifest.fingerprint,
        "shard": f"shards/{name}",
        "model_sha256": sha256,
        "config_digest": compute_config_digest(run.config),
        "round": 1,
        "fold": 1,
        "part": None,
        "size": 16,
        "version": __version__,
    }
    assert link(found, ModelLink, 1) == ModelLink(
        round=1,
        fold=1,
        part=None,
        file=model_of(run, second),
        sha256=sha256,
        fingerprint=manifest.fingerprint,
        config_digest=compute_config_digest(run.config),
        version=__version__,
        is_readable=True,
        starts_from=model_of(run, first),
        has_seen=True,
        reads=f"maps/0/fold-1/{name}",
    )
    earliest = link(found, ModelLink, 0)
    assert (earliest.starts_from, earliest.reads, earliest.has_seen) == (None, None, True)
    assert link(found, MapLink, 0).given is None
    data = found.data
    assert (data.uri, data.version, data.file) == (data_uri, 1, f"shards/{name}")
    assert data.sha256 == hashlib.sha256(LocalStore(data_uri).read(data.file)).hexdigest()
    assert (data.fingerprint, data.fold, data.part) == (manifest.fingerprint, 0, image["part"])


def test_cross_fit_a_map_is_that_of_the_model_that_has_not_seen_the_image(
    circle_run: CircleRun, pick: Pick
) -> None:
    run = circle_run([1], maps="cross_fit", num_parts=2)
    # Fold 1 trains on the parts 0, 2, 3, …; the third, part 3, is in the first division.
    image = pick(2, part=3)
    found = trace_lineage(run, image["sample_id"])
    assert found.disagreements == ()
    assert brief(found) == [
        ("map", 1, 1, 0), ("model", 1, 1, 0), ("map", 0, 1, 0), ("model", 0, 1, 0),
    ]  # fmt: skip
    name = image["shard"]
    for number in (0, 1):
        of_round = link(found, ModelLink, number)
        assert not of_round.has_seen
        assert of_round.reads is None
        assert of_round.file == model_of(run, f"rounds/{number}/fold-1/part-0")
    assert link(found, MapLink, 1).given == f"maps/0/fold-1/part-0/{name}"
    assert link(found, ModelLink, 1).starts_from == model_of(run, "rounds/0/fold-1/part-0")
    assert link(found, MapLink, 1).origin.part == 0
    assert brief(trace_lineage(run, pick(0, part=4)["sample_id"]))[0] == ("map", 1, 1, 1)


@pytest.mark.parametrize("circle", [{"maps": "recycle"}, {"until": WriteMaps(0, 1)}])
def test_without_maps_the_chain_is_that_of_the_latest_training(
    circle_run: CircleRun, pick: Pick, circle: dict[str, Any]
) -> None:
    run = circle_run([1], **circle)
    found = trace_lineage(run, pick(0, other_than=1)["sample_id"])
    rounds = [0] if "until" in circle else [2, 1, 0]
    assert brief(found) == [("model", number, 1, None) for number in rounds]
    assert found.disagreements == ()
    assert found.prediction is None


def test_from_scratch_a_model_starts_from_nothing_but_reads_the_maps(
    circle_run: CircleRun, pick: Pick
) -> None:
    run = circle_run([1], warm_start=False, num_rounds=3)
    found = trace_lineage(run, pick(0, other_than=1)["sample_id"])
    assert link(found, ModelLink, 1).starts_from is None
    assert link(found, ModelLink, 1).reads is not None
    assert len(found.chain) == 4


def test_the_latest_map_counts_or_that_of_the_fold_that_is_named(
    circle_run: CircleRun, pick: Pick
) -> None:
    run = circle_run(until=WriteMaps(1, 1))
    image = pick(2, part=3)["sample_id"]
    found = trace_lineage(run, image)
    assert found.folds == (0, 1)
    assert brief(found)[0] == ("map", 1, 0, None)
    assert brief(trace_lineage(run, image, 1))[0] == ("map", 0, 1, None)
    assert trace_lineage(run, image, 0) == found


def test_a_run_without_a_ledger_has_a_lineage_too(
    make_config: Callable[..., Config],
    make_model: Callable[..., TrainedModel],
    manifest: Manifest,
    data_uri: str,
    pick: Pick,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = make_config()
    run = Run.create(str(tmp_path / "run"), config, data_uri, manifest.fingerprint)
    run.commit(Train(0, 0), make_model(fingerprint=manifest.fingerprint, config=config), **FIGURES)
    image = pick(1, other_than=0)["sample_id"]
    found = trace_lineage(run, image)
    assert brief(found) == [("model", 0, 0, None)]
    assert found.disagreements == ()
    assert found.chain[0].is_readable
    assert main(["status", "--run", run.uri, "--lineage", image]) == 0
    seen = capsys.readouterr().out
    assert (
        f"{image}: trained on by fold 0\nNo map of the image has been written.\nModel of round 0"
        in seen
    )

    # A committed model file of a different version has the right digest but is unreadable.
    other = b"another format"
    name = "rounds/0/fold-0/result.json"
    values = json.loads(run.store.read(name)) | {"model_sha256": hashlib.sha256(other).hexdigest()}
    run.store.write(name, json.dumps(values).encode())
    run.store.write(model_of(run, "rounds/0/fold-0"), other)
    found = trace_lineage(run, image)
    assert not found.chain[0].is_readable
    assert found.disagreements == ()


def test_maps_that_were_removed_are_told_as_that(
    circle_run: CircleRun, pick: Pick, capsys: pytest.CaptureFixture[str]
) -> None:
    run = circle_run()
    image = pick(0, other_than=1)["sample_id"]
    before = trace_lineage(run, image)
    retention.delete_superseded_files(run, retention.find_superseded_files(run))
    found = trace_lineage(run, image)
    assert brief(found) == brief(before)
    assert found.disagreements == ()
    assert [one.is_removed for one in found.chain if isinstance(one, MapLink)] == [True, True]
    assert link(found, MapLink, 1).origin is None
    assert link(found, MapLink, 1).model == link(before, MapLink, 1).model
    assert main(["status", "--run", run.uri, "--lineage", image]) == 0
    assert capsys.readouterr().out.count("was removed; will be written again if needed") == 2


# Predictions


@pytest.mark.parametrize(
    ("circle", "rounds"), [({}, [2, 2]), ({"test": "chain"}, [0, 1, 2]), ({"num_rounds": 1}, [0])]
)
def test_a_prediction_goes_back_to_the_models_that_judged(
    circle_run: CircleRun, pick: Pick, circle: dict[str, Any], rounds: list[int]
) -> None:
    run = circle_run([0], **circle)
    image = pick(0, other_than=0)["sample_id"]
    found = trace_lineage(run, image)
    assert (found.folds, found.chain, found.disagreements) == ((), (), ())  # test image: no chain
    prediction = found.prediction
    assert prediction is not None
    last = rounds[-1]
    assert (prediction.round, prediction.fold) == (last, 0)
    assert prediction.file == f"rounds/{last}/fold-0/predictions.parquet"
    assert prediction.sha256 == hashlib.sha256(run.store.read(prediction.file)).hexdigest()
    assert prediction.as_in_ledger is True
    assert [one.number for one in prediction.passes] == list(range(len(rounds)))
    assert [one.models for one in prediction.passes] == [
        (model_of(run, f"rounds/{number}/fold-0"),) for number in rounds
    ]
    assert prediction.passes[0].probability == 0.25
    assert prediction.passes[0].config_digest == compute_config_digest(run.config)
    assert [one.round for one in found.judges] == list(range(last, -1, -1))
    assert not any(one.has_seen or one.reads for one in found.judges)
    assert trace_lineage(run, image, 0) == found


def test_a_prediction_that_was_written_again_is_told_as_that(
    circle_run: CircleRun, pick: Pick, capsys: pytest.CaptureFixture[str]
) -> None:
    run = circle_run([0], num_rounds=1)
    rewrite(run, "rounds/0/fold-0/predictions.parquet", lambda table: table)
    image = pick(0, other_than=0)["sample_id"]
    found = trace_lineage(run, image)
    assert found.prediction is not None
    assert found.prediction.as_in_ledger is False
    assert found.disagreements == ()
    assert main(["status", "--run", run.uri, "--lineage", image]) == 0
    assert "rewritten since the ledger" in capsys.readouterr().out


def test_the_only_predictions_of_an_image_being_damaged_is_no_lack_of_them(
    circle_run: CircleRun, pick: Pick, capsys: pytest.CaptureFixture[str]
) -> None:
    run = circle_run([0], num_rounds=1)
    run.store.write("rounds/0/fold-0/predictions.parquet", b"")
    image = pick(0, other_than=0)["sample_id"]
    assert main(["status", "--run", run.uri, "--lineage", image]) == 1
    assert capsys.readouterr().err == (
        "mtil: rounds/0/fold-0/predictions.parquet is damaged: the file holds no readable "
        "predictions.\n"
    )


def test_an_image_of_the_holdout_is_judged_by_all_folds_together(
    make_config: Callable[..., Config],
    make_model: Callable[..., TrainedModel],
    phantoms: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = str(tmp_path / "data")
    source = CollectionSource(uri=str(phantoms), layout="busi")
    manifest = prepare([source], data, Settings(image_size=64, num_folds=3, holdout="0.2"))
    table = shards.read_shard(LocalStore(data), manifest.shards[0], ["sample_id", "fold"])
    image = next(row["sample_id"] for row in table.to_pylist() if row["fold"] == -1)
    config = make_config()
    run = Run.create(str(tmp_path / "run"), config, data, manifest.fingerprint)
    for fold in (0, 2):
        model = make_model(fold, fingerprint=manifest.fingerprint, config=config, fold=fold)
        run.commit(Train(0, fold), model, **FIGURES)
    with pytest.raises(
        DataError, match=r"in the holdout: .* has not trained on or tested the image"
    ):
        trace_lineage(run, image)
    sha256 = [run.model(Train(0, fold)).digest for fold in (0, 2)]
    row = dict.fromkeys(PREDICTIONS_SCHEMA.names) | {
        "sample_id": image,
        "fold": -1,
        "pass": 0,
        "probability": 0.5,
        "model_sha256": ";".join(sha256),
        "fingerprint": manifest.fingerprint,
        "config_digest": compute_config_digest(config),
        "version": __version__,
    }
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([row], schema=PREDICTIONS_SCHEMA), sink)
    run.store.write("rounds/0/holdout/predictions.parquet", sink.getvalue().to_pybytes())
    found = trace_lineage(run, image)
    assert found.disagreements == ()
    assert (found.folds, found.chain) == ((), ())
    assert found.prediction is not None
    assert found.prediction.as_in_ledger is None
    files = tuple(model_of(run, f"rounds/0/fold-{fold}") for fold in (0, 2))
    assert found.prediction.passes[0].models == files
    assert tuple(one.file for one in found.judges) == files
    assert main(["status", "--run", run.uri, "--lineage", image]) == 0
    assert f"by {files[0]}, {files[1]}" in capsys.readouterr().out


def rewrite(run: Run, name: str, change: Callable[[pa.Table], pa.Table]) -> None:
    table = pq.read_table(io.BytesIO(run.store.read(name)))
    sink = pa.BufferOutputStream()
    pq.write_table(change(table), sink, compression="zstd")
    run.store.write(name, sink.getvalue().to_pybytes())


def claiming(column: str, value: str) -> Callable[[pa.Table], pa.Table]:
    """Return a function that sets a column to a value in all rows."""

    def change(table: pa.Table) -> pa.Table:
        at = table.schema.get_field_index(column)
        values = pa.array([value] * table.num_rows, table.schema.field(column).type)
        return table.set_column(at, table.schema.field(column), values)

    return change


# Disagreements


def change_result(run: Run, **changes: Any) -> None:
    name = "rounds/1/fold-1/result.json"
    values = json.loads(run.store.read(name)) | changes
    run.store.write(name, json.dumps(values).encode())


def damage_map(run: Run, shard: str) -> None:
    name = f"maps/1/fold-1/{shard}"
    run.store.write(name, run.store.read(name)[:-1])


def swap_map(run: Run, shard: str) -> None:
    run.store.write(f"maps/1/fold-1/{shard}", run.store.read(f"maps/0/fold-1/{shard}"))


def change_model(run: Run, shard: str) -> None:
    name = model_of(run, "rounds/0/fold-1")
    run.store.write(name, run.store.read(name)[:-1])


def predict_with(folder: str) -> Callable[[Run, str], None]:
    def change(run: Run, shard: str) -> None:
        sha256 = json.loads(run.store.read(f"{folder}/result.json"))["model_sha256"]
        name = "rounds/2/fold-0/predictions.parquet"
        rewrite(run, name, claiming("model_sha256", sha256))

    return change


def claim(column: str, value: str) -> Callable[[Run, str], None]:
    name = "rounds/2/fold-0/predictions.parquet"
    return lambda run, _: rewrite(run, name, claiming(column, value))


@pytest.mark.parametrize(
    ("change", "sentences"),
    [
        (
            damage_map,
            [r"Map shard maps/1/fold-1/part-[\w-]+\.parquet of .* is damaged; "],
        ),
        (swap_map, [r"Map shard maps/1/.* must have the model_sha256 '\w+', but has '\w+'"]),
        (change_model, [r"/rounds/0/fold-1/model-\w+\.pt is not the file that result\.json"]),
        (
            lambda run, _: change_result(run, config_digest="c" * 64),
            [
                "The config digest differs: result of the training of round "
                r"1, fold 1 has c{12}… and run\.json has",
                r"The config digest differs: rounds/1/fold-1/model-\w+\.pt has",
            ],
        ),
        (
            lambda run, _: change_result(run, fingerprint="e" * 64),
            [
                r"The fingerprint differs: .* fold 1 has e{12}… and run\.json has",
                r"The fingerprint differs: rounds/1/fold-1/model-\w+\.pt has",
            ],
        ),
        (
            lambda run, _: change_result(run, version="9.9"),
            [r"The version .* rounds/1/fold-1/model-\w+\.pt has .* round 1, fold 1 has 9\.9"],
        ),
        (
            lambda run, _: run.store.write("rounds/1/fold-1/result.json", b"{}"),
            [
                r"rounds/1/fold-1/result\.json is wrong at `round`: it is missing",
                "The training of round 1, fold 1 has no result, but the maps of round 1, fold 1",
            ],
        ),
        (
            lambda run, _: run.store.delete("rounds/1/fold-1/result.json"),
            ["The training of round 1, fold 1 has no result, but the maps of round 1, fold 1"],
        ),
        (
            claim("model_sha256", "d" * 64),
            [
                r"No training of the run made model d{12}…, named in pass 0 of rounds/2/fold-0/",
                r"No training of the run made model d{12}…, named in pass 1 of rounds/2/fold-0/",
            ],
        ),
        (
            predict_with("rounds/2/fold-1"),
            [
                "The training of round 2, fold 1, named in pass 0 of .*, has trained on the image",
                "named in pass 1 of .* must not have seen a test image",
            ],
        ),
        (
            claim("config_digest", "c" * 64),
            [r"config digest .* pass 0 of .* c{12}… and run\.json", "config digest .* pass 1 of"],
        ),
        (
            claim("fingerprint", "e" * 64),
            [r"fingerprint .* pass 0 of .* e{12}… and run\.json", "fingerprint .* pass 1 of"],
        ),
        (
            lambda run, _: run.store.write("rounds/2/fold-0/predictions.parquet", b"PAR1"),
            [r"rounds/2/fold-0/predictions\.parquet is damaged: the file holds no readable"],
        ),
        (
            lambda run, _: rewrite(
                run, "rounds/2/fold-0/predictions.parquet", lambda table: table.slice(0, 0)
            ),
            [r"rounds/2/fold-0/predictions\.parquet has no prediction of the image\."],
        ),
    ],
)
def test_what_does_not_agree_is_a_sentence_each(
    circle_run: CircleRun,
    pick: Pick,
    change: Callable[[Run, str], None],
    sentences: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = circle_run()
    image = pick(0, other_than=1)
    change(run, image["shard"])
    assert main(["status", "--run", run.uri, "--lineage", image["sample_id"], "--json"]) == 1
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    values = json.loads(captured.out)
    assert values["verified"] is False
    disagreements = values["disagreements"]
    assert len(disagreements) == len(sentences), disagreements
    for sentence, pattern in zip(disagreements, sentences, strict=True):
        assert re.search(pattern, sentence), sentence
        assert f"Contradiction: {sentence}" in captured.err
    assert captured.err.endswith(
        f"mtil: The run's files contradict in {len(disagreements)} points about "
        f"{image['sample_id']!r}: {disagreements[0]}\n"
    )


def test_a_ledger_that_names_other_models_does_not_agree(
    circle_run: CircleRun, pick: Pick, make_model: Callable[..., TrainedModel]
) -> None:
    run = circle_run([1], num_rounds=2)
    run.store.delete("rounds/0/fold-1/result.json")
    model = make_model(config=run.config, fingerprint=run.fingerprint, fold=1)
    run.commit(Train(0, 1), model, **FIGURES)
    disagreements = trace_lineage(run, pick(0, other_than=1)["sample_id"]).disagreements
    assert len(disagreements) == 3
    assert "The model differs: ledger on the maps of round 0, fold 1" in disagreements[1]
    assert "must have the model_sha256" in disagreements[0]
    assert "The model differs: ledger has" in disagreements[2]


# The command


def test_the_command_prints_the_chain(
    circle_run: CircleRun, pick: Pick, capsys: pytest.CaptureFixture[str], data_uri: str
) -> None:
    run = circle_run(num_rounds=2)
    image = pick(0, other_than=1)
    words = ["status", "--run", run.uri, "--lineage", image["sample_id"]]
    assert main(words) == 0
    seen = capsys.readouterr().out
    name = image["shard"]
    model = model_of(run, "rounds/0/fold-1")
    judges = [model_of(run, f"rounds/{number}/fold-0") for number in (0, 1)]
    found = trace_lineage(run, image["sample_id"])
    assert found.prediction is not None
    shown = {key: value[:12] for key, value in dataclasses.asdict(found.data).items() if key in
             ("sha256", "fingerprint")}  # fmt: skip
    config = compute_config_digest(run.config)[:12]
    sha = [hashlib.sha256(run.store.read(one)).hexdigest()[:12] for one in (model, *judges)]
    assert seen.splitlines() == [
        f"{image['sample_id']}: trained on by fold 1",
        f"Map of round 0, fold 1: maps/0/fold-1/{name}",
        f"  by mtil {__version__}, 16 pixels square",
        f"  by model {model}",
        f"Model of round 0, fold 1: {model}",
        f"  sha256 {sha[0]}…, config {config}…, mtil {__version__}",
        "  started from scratch",
        "Prediction of round 1: rounds/1/fold-0/predictions.parquet",
        f"  sha256 {found.prediction.sha256[:12]}…, as in the ledger",
        f"  pass 0: malignant 0.250, by {judges[1]}",
        f"  pass 1: malignant 0.750, by {judges[1]}",
        f"Model of round 1, fold 0: {judges[1]}",
        f"  sha256 {sha[2]}…, config {config}…, mtil {__version__}",
        f"  started from {judges[0]}",
        "  has not seen the image",
        f"Model of round 0, fold 0: {judges[0]}",
        f"  sha256 {sha[1]}…, config {config}…, mtil {__version__}",
        "  started from scratch",
        "  has not seen the image",
        f"Data: shards/{name} of {data_uri}, version 1",
        f"  sha256 {shown['sha256']}…, fingerprint {shown['fingerprint']}…",
    ]
    assert main([*words, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values.keys() == {
        "run", "verified", "sample_id", "folds", "chain", "prediction", "judges", "data",
        "disagreements",
    }  # fmt: skip
    assert values["verified"] is True
    assert [one["kind"] for one in values["chain"]] == ["map", "model"]
    assert values["chain"][0]["origin"]["shard"] == f"shards/{name}"


def test_what_has_no_lineage_is_one_sentence(
    circle_run: CircleRun, pick: Pick, capsys: pytest.CaptureFixture[str], data_uri: str
) -> None:
    run = circle_run([0], num_rounds=1)
    validated = pick(1, part=0)["sample_id"]
    trained, tested = pick(1, part=1)["sample_id"], pick(0, part=1)["sample_id"]
    cases = {
        ("none",): f"The data set {data_uri} has no image 'none'. See splits.json there for all "
        "ids.",
        (validated,): f"No lineage for {validated!r} in fold 1: {run.uri} has not trained on or "
        "tested the image.",
        (trained, "--fold", "2"): "No lineage in fold 2: the fold has not trained on "
        f"{trained!r} in {run.uri}. Folds [0] have.",
        (tested, "--fold", "1"): "No lineage in fold 1: the fold has not trained on "
        f"{tested!r} in {run.uri}. No fold has.",
    }
    for words, sentence in cases.items():
        assert main(["status", "--run", run.uri, "--json", "--lineage", *words]) == 2
        captured = capsys.readouterr()
        assert (captured.out, captured.err) == ("", f"mtil: {sentence}\n")


def test_a_damaged_ledger_or_shard_is_one_sentence(
    circle_run: CircleRun, pick: Pick, capsys: pytest.CaptureFixture[str], data_uri: str
) -> None:
    run = circle_run([0], num_rounds=1, until=Evaluate(0, 0))
    image = pick(1, part=1)["sample_id"]
    run.store.write("ledger/000002.json", b"{")
    assert main(["status", "--run", run.uri, "--lineage", image, "--json"]) == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out)["verified"] is False
    assert "Event 2 of" in captured.err
    run.data_uri = f"{run.uri}/nowhere"
    with pytest.raises(DataError, match=r"must have a dataset\.json"):
        trace_lineage(run, image)
