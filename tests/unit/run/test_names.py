"""The names of a run's files: all written names are recognised, and no other names."""

import pytest

from mtil.run import names
from mtil.run.plan import Train, WriteMaps

SHA256 = "0123456789abcdef" * 4
TRAININGS = [Train(0, 0), Train(12, 3), Train(1, 4, 7), Train(1, 4, 0)]


def test_names_are_these() -> None:
    """Runs of earlier versions contain files with the names below."""
    of = Train(1, 4, 7)
    assert names.training_folder(of) == "rounds/1/fold-4/part-7"
    assert names.history_name(of) == "rounds/1/fold-4/part-7/history.jsonl"
    assert names.step_name(of) == "rounds/1/fold-4/part-7/step.json"
    assert names.result_name(Train(0, 2)) == "rounds/0/fold-2/result.json"
    assert names.model_name(Train(0, 2), SHA256) == "rounds/0/fold-2/model-0123456789ab.pt"
    assert names.checkpoint_folder(Train(0, 2)) == "rounds/0/fold-2/checkpoints"
    assert names.checkpoint_name(3, SHA256) == "epoch-0003-0123456789ab.pt"
    assert names.predictions_name(0, 2) == "rounds/0/fold-2/predictions.parquet"
    assert names.predictions_name(0, -1) == "rounds/0/holdout/predictions.parquet"
    assert names.evaluation_name(3) == "rounds/3/evaluation.json"
    assert names.map_folder(WriteMaps(0, 2)) == "maps/0/fold-2"
    assert names.map_folder(WriteMaps(0, 2, 5)) == "maps/0/fold-2/part-5"


@pytest.mark.parametrize("of", TRAININGS, ids=str)
def test_a_training_knows_its_files(of: Train) -> None:
    checkpoints = [
        f"{names.checkpoint_folder(of)}/{name}"
        for name in (
            names.LATEST,
            names.checkpoint_name(0, SHA256),
            names.checkpoint_name(10_000, SHA256),
        )
    ]
    model, step = names.model_name(of, SHA256), names.step_name(of)
    kept = [names.result_name(of), names.history_name(of)]
    for name in (*checkpoints, model, step, *kept):
        assert names.parse_training(name) == of, name
        assert names.is_deletable(name) == (name not in kept), name
        assert names.is_model(name) == (name == model), name
        assert names.is_result(name) == (name == names.result_name(of)), name
        assert names.is_history(name) == (name == names.history_name(of)), name


@pytest.mark.parametrize(
    "name",
    [
        names.predictions_name(0, 2),
        names.predictions_name(0, -1),
        names.evaluation_name(0),
        names.RUN,
        "rounds/0/fold-2",
        "rounds/0/fold-x/result.json",
        "rounds/0/fold-2/a/b/c",
        "other/rounds/0/fold-2/result.json",
    ],
)
def test_other_files_are_of_no_training(name: str) -> None:
    assert names.parse_training(name) is None
    assert not names.is_deletable(name)
    assert not names.is_model(name)
    assert not names.is_result(name)
    assert not names.is_history(name)


@pytest.mark.parametrize(
    "name",
    [
        "model-0123456789AB.pt",
        "model-0123.pt",
        "model-0123456789ab.pt.txt",
        "checkpoints/notes.txt",
        "checkpoints/epoch-1.pt",
        "notes/step.json",
    ],
)
def test_what_no_training_writes_is_kept(name: str) -> None:
    assert not names.is_deletable(f"rounds/0/fold-2/{name}")


@pytest.mark.parametrize("of", [WriteMaps(0, 2), WriteMaps(11, 0, 5)], ids=str)
def test_map_shards_know_their_folder(of: WriteMaps) -> None:
    for shard in ("part-00000.parquet", "part-123456-000002-0123456789abcdef.parquet"):
        assert names.parse_map_folder(f"{names.map_folder(of)}/{shard}") == names.map_folder(of)
    for other in ("part-0.parquet", "part-00000.txt", "x/part-00000.parquet"):
        assert names.parse_map_folder(f"{names.map_folder(of)}/{other}") is None
