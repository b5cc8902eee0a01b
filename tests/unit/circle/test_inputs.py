"""Inputs from the previous round: rows, weights and maps, on a small real data set."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from mtil.circle.inputs import (
    check_plan,
    find_map_source,
    find_prior_maps,
    list_own_test_models,
    list_test_models,
    load_initial_weights,
    load_model_chains,
    select_mapped_rows,
    select_training_rows,
)
from mtil.config import Config, compute_config_digest
from mtil.data.dataset import shards
from mtil.data.dataset.manifest import Manifest
from mtil.data.dataset.selection import RowSelection
from mtil.data.dataset.shards import HOLDOUT, pixels
from mtil.errors import DataError, MapError, RunError
from mtil.prediction.predictor import build_predictors
from mtil.run.checkpoint import TrainedModel
from mtil.run.folder import Run
from mtil.run.maps import MapOrigin, encode_maps
from mtil.run.plan import Evaluate, Train, WriteMaps, find_prerequisites, list_actions
from mtil.run.priors import PriorMaps
from mtil.storage import LocalStore

CircleRun = Callable[..., Run]


@pytest.fixture(scope="module")
def tables(data_uri: str, manifest: Manifest) -> list[pa.Table]:
    return [shards.read_shard(LocalStore(data_uri), shard) for shard in manifest.shards]


def ids(tables: list[pa.Table], rows: RowSelection) -> set[str]:
    found = [table.column("sample_id").take(pa.array(rows.rows(table))) for table in tables]
    return {name for column in found for name in column.to_pylist()}


def by_hand(tables: list[pa.Table], fold: int, *, parts: set[int] | None = None) -> set[str]:
    """Return the training rows of a fold: rows of different folds, outside the validation part.

    The remaining parts, in order, belong in turn to inner part 0 and to inner part 1.
    """
    found = set()
    for table in tables:
        for row in table.select(["sample_id", "fold", "part"]).to_pylist():
            rest = [part for part in range(8) if part != fold]
            if row["fold"] == fold or row["part"] == fold:
                continue
            if parts is None or rest.index(row["part"]) % 2 in parts:
                found.add(row["sample_id"])
    return found


def priors(tables: list[pa.Table], manifest: Manifest, found: PriorMaps) -> dict[str, int]:
    """Join the maps of all shards. Return the constant value of every map, by image."""
    values = {}
    for table, shard in zip(tables, manifest.shards, strict=True):
        joined = found.join(table, shard)
        assert joined.column("sample_id").equals(table.column("sample_id"))
        drawn = pixels(joined.column("prior"))
        assert (drawn == drawn[:, :1]).all()
        values |= dict(
            zip(joined.column("sample_id").to_pylist(), drawn[:, 0].tolist(), strict=True)
        )
    return values


# Rows


def test_in_sample_a_model_maps_the_rows_that_it_was_trained_on(
    make_config: Callable[..., Config], manifest: Manifest, tables: list[pa.Table]
) -> None:
    assert manifest.num_parts == 8
    config = make_config()
    for fold in range(3):
        trained = ids(tables, select_training_rows(config, manifest, Train(1, fold)))
        assert trained == by_hand(tables, fold)
        assert trained == ids(tables, select_mapped_rows(config, manifest, WriteMaps(1, fold)))
        assert 0 < len(trained) < 60


def test_cross_fit_an_inner_model_maps_the_rows_that_it_has_not_seen(
    make_config: Callable[..., Config], manifest: Manifest, tables: list[pa.Table]
) -> None:
    config = make_config(circle={"maps": "cross_fit", "num_parts": 2})
    whole = ids(tables, select_training_rows(config, manifest, Train(0, 1)))
    assert whole == by_hand(tables, 1)
    for part in (0, 1):
        seen = ids(tables, select_training_rows(config, manifest, Train(0, 1, part)))
        mapped = ids(tables, select_mapped_rows(config, manifest, WriteMaps(0, 1, part)))
        assert mapped == by_hand(tables, 1, parts={part})
        assert seen == whole - mapped
        assert seen
        assert mapped


def test_images_without_a_lesion_are_left_out_if_the_run_does_so(
    make_config: Callable[..., Config], manifest: Manifest, tables: list[pa.Table]
) -> None:
    normal = {
        row["sample_id"]
        for table in tables
        for row in table.select(["sample_id", "label"]).to_pylist()
        if row["label"] == 2
    }
    config = make_config(data={"normals": False, "image_size": 32})
    of_fold = by_hand(tables, 0)
    assert normal & of_fold
    assert ids(tables, select_training_rows(config, manifest, Train(0, 0))) == of_fold - normal
    assert ids(tables, select_mapped_rows(config, manifest, WriteMaps(0, 0))) == of_fold - normal


def test_a_plan_whose_divisions_have_no_rows_is_refused_before_it_starts(
    circle_run: CircleRun, manifest: Manifest, make_config: Callable[..., Config]
) -> None:
    run = circle_run(until=Train(0, 0))
    check_plan(run.plan([0, 1, 2]), run.config, manifest)
    config = make_config(circle={"maps": "cross_fit", "num_parts": 8})
    run = circle_run(name="other", until=Train(0, 0), maps="cross_fit", num_parts=8)
    with pytest.raises(DataError, match=r"at most 7 parts .* `circle\.num_parts` is 8"):
        check_plan(run.plan([0]), config, manifest)
    with pytest.raises(DataError, match="one of 0 to 2 in this data set, but got 3"):
        check_plan(circle_run(name="third", until=Train(0, 0)).plan([3]), make_config(), manifest)


@pytest.mark.parametrize(
    ("maps", "which"), [("in_sample", "fold 0"), ("cross_fit", "fold 0 without part 0")]
)
def test_a_training_that_cannot_fill_a_batch_is_refused_before_anything_starts(
    circle_run: CircleRun, manifest: Manifest, tables: list[pa.Table], maps: str, which: str
) -> None:
    run = circle_run([0], until=Train(0, 0), maps=maps, num_parts=2)
    parts = None if maps == "in_sample" else {1}
    count = len(by_hand(tables, 0, parts=parts))
    assert count < len(by_hand(tables, 0)) or parts is None
    for batch_size in (count, count + 1):
        config = replace(run.config, train=replace(run.config.train, batch_size=batch_size))
        if batch_size == count and maps == "cross_fit":
            other = len(by_hand(tables, 0, parts={0}))
            assert other >= count  # without part 1, no fewer rows remain
        if batch_size == count:
            check_plan(run.plan([0]), config, manifest)
            continue
        with pytest.raises(DataError, match=f"fill a batch of {count + 1} images, but {which} "):
            check_plan(run.plan([0]), config, manifest)


# Maps


def test_the_maps_of_a_shard_are_named_after_it_and_after_their_model(
    circle_run: CircleRun, manifest: Manifest
) -> None:
    run = circle_run([1], maps="cross_fit", num_parts=2, num_rounds=2, until=Evaluate(0, 1))
    source = find_map_source(run, manifest, WriteMaps(0, 1, 1))
    result = run.result(Train(0, 1, 1))
    assert result is not None
    shard = manifest.shards[2]
    assert source.name(shard) == shard.path.replace("shards/", "maps/0/fold-1/part-1/")
    assert source.origin_of(shard) == MapOrigin(
        fingerprint=manifest.fingerprint,
        shard=shard.path,
        model_sha256=result.model_sha256,
        config_digest=compute_config_digest(run.config),
        round=0,
        fold=1,
        part=1,
        size=16,
    )
    with pytest.raises(DataError, match="training of round 1, fold 1 must have ended before"):
        find_map_source(run, manifest, WriteMaps(1, 1))


def test_the_first_round_and_recycling_read_no_maps(
    circle_run: CircleRun, manifest: Manifest
) -> None:
    run = circle_run([0], until=Train(0, 0))
    assert find_prior_maps(run, manifest, Train(0, 0)) is None
    assert find_prior_maps(run, manifest, WriteMaps(0, 0)) is None
    run = circle_run([0], name="other", maps="recycle", until=Train(0, 0))
    assert find_prior_maps(run, manifest, Train(1, 0)) is None


def test_in_sample_every_row_comes_with_the_map_of_the_round_before(
    circle_run: CircleRun, manifest: Manifest, tables: list[pa.Table]
) -> None:
    run = circle_run([1], until=Evaluate(1, 1))
    of_fold = by_hand(tables, 1)
    for action, value in ((Train(1, 1), 101), (WriteMaps(1, 1), 101), (Train(2, 1), 111)):
        found = find_prior_maps(run, manifest, action)
        assert found is not None
        values = priors(tables, manifest, found)
        assert len(values) == 60
        assert {name for name, of_image in values.items() if of_image == value} == of_fold
        assert set(values.values()) == {0, value}  # further rows have no map


def test_cross_fit_every_row_comes_with_the_map_of_the_model_that_has_not_seen_it(
    circle_run: CircleRun, manifest: Manifest, tables: list[pa.Table]
) -> None:
    run = circle_run([0], maps="cross_fit", num_parts=2, until=Evaluate(0, 0))
    parts = [by_hand(tables, 0, parts={part}) for part in (0, 1)]
    wanted = {
        Train(1, 0): {1: parts[0], 2: parts[1]},
        Train(1, 0, 0): {2: parts[1]},
        Train(1, 0, 1): {1: parts[0]},
        WriteMaps(1, 0, 0): {1: parts[0]},
        WriteMaps(1, 0, 1): {2: parts[1]},
    }
    for action, drawn in wanted.items():
        found = find_prior_maps(run, manifest, action)
        assert found is not None
        values = priors(tables, manifest, found)
        assert set(values.values()) == {0, *drawn}
        for value, names in drawn.items():
            assert {name for name, of_image in values.items() if of_image == value} == names


def test_a_map_shard_that_is_not_what_it_must_be_is_named(
    circle_run: CircleRun, manifest: Manifest, tables: list[pa.Table]
) -> None:
    run = circle_run([0], until=Evaluate(0, 0))
    found = find_prior_maps(run, manifest, Train(1, 0))
    assert found is not None
    name, other_name = (
        shard.path.replace("shards", "maps/0/fold-0") for shard in manifest.shards[1:3]
    )
    whole, other = run.store.read(name), run.store.read(other_name)
    source = find_map_source(run, manifest, WriteMaps(0, 0))
    origin = source.origin_of(manifest.shards[1])
    fewer = encode_maps(["benign (1)"], np.zeros((1, 16, 16), np.uint8), origin)
    for data, why in (
        (whole[:-1], "is damaged"),
        (other, f"must have the shard '{manifest.shards[1].path}'"),
        (fewer, "must hold the maps of"),
    ):
        run.store.write(name, data)
        with pytest.raises(MapError, match=why) as caught:
            found.join(tables[1], manifest.shards[1])
        assert caught.value.path == name
    run.store.delete(name)
    with pytest.raises(MapError, match="is missing"):
        found.join(tables[1], manifest.shards[1])
    found.join(tables[2], manifest.shards[2])
    run.store.write(name, whole)
    found.join(tables[1], manifest.shards[1])


def test_maps_that_do_not_cover_the_rows_that_need_them_are_refused(
    circle_run: CircleRun, manifest: Manifest, tables: list[pa.Table]
) -> None:
    run = circle_run([0], maps="cross_fit", num_parts=2, until=Evaluate(0, 0))
    found = find_prior_maps(run, manifest, Train(1, 0))
    assert found is not None
    half = PriorMaps(found.run_uri, found.sources[:1], found.needed)
    with pytest.raises(RunError, match="must have a map of the round before"):
        priors(tables, manifest, half)


# Weights and models


def weight(run: Run, of: Train) -> torch.Tensor:
    return run.model(of).weights["logits.2.weight"]


def test_a_round_starts_from_the_weights_of_the_one_before(
    circle_run: CircleRun, make_model: Callable[..., TrainedModel]
) -> None:
    run = circle_run([0], until=Train(0, 0))
    for seed, of in enumerate([Train(0, 0), Train(0, 0, 1)]):
        model = make_model(seed, config=run.config, fingerprint=run.fingerprint)
        run.commit(of, model, num_epochs=1, seconds=0.0, metrics={})
    assert load_initial_weights(run, Train(0, 0)) is None
    for of in (Train(0, 0), Train(0, 0, 1)):
        found = load_initial_weights(run, Train(1, 0, of.part))
        assert found is not None
        assert torch.equal(found["logits.2.weight"], weight(run, of))
    assert not torch.equal(weight(run, Train(0, 0)), weight(run, Train(0, 0, 1)))
    with pytest.raises(DataError, match="round 0 has no result"):
        load_initial_weights(run, Train(1, 1))


def test_a_round_starts_from_scratch_if_it_is_asked_to(circle_run: CircleRun) -> None:
    run = circle_run([0], warm_start=False, until=Evaluate(0, 0))
    assert load_initial_weights(run, Train(1, 0)) is None


@pytest.mark.parametrize(
    ("circle", "expected"),
    [
        ({"num_passes": 3}, [[0], [1, 1, 1], [2, 2, 2]]),
        ({"num_passes": 3, "maps": "recycle"}, [[0, 0, 0], [1, 1, 1], [2, 2, 2]]),
        ({"num_passes": 3, "maps": "corrupted"}, [[0, 0, 0], [1, 1, 1], [2, 2, 2]]),
        ({"num_passes": 3, "maps": "cross_fit"}, [[0], [1, 1, 1], [2, 2, 2]]),
        ({"num_passes": 3, "test": "chain"}, [[0], [0, 1], [0, 1, 2]]),
    ],
)
def test_the_first_pass_is_judged_without_a_map(
    circle_run: CircleRun, circle: dict[str, object], expected: list[list[int]]
) -> None:
    run = circle_run([2], until=Train(0, 2), **circle)
    for number, rounds in enumerate(expected):
        assert list(list_test_models(run, number, 2)) == [Train(one, 2) for one in rounds]


@pytest.mark.parametrize("maps", ["in_sample", "cross_fit"])
@pytest.mark.parametrize("test", ["passes", "chain"])
def test_a_training_waits_for_the_models_that_look_at_its_validation_images(
    circle_run: CircleRun, maps: str, test: str
) -> None:
    """A worker reads the chain of models of the trained part. The trained model is the last."""
    run = circle_run([2], until=Train(0, 2), maps=maps, test=test, num_parts=2, warm_start=False)
    plan = run.plan([2])
    for of in [action for action in list_actions(plan) if isinstance(action, Train)]:
        *earlier, own = list_own_test_models(run, of)
        assert own == of
        assert {one for one in earlier if one != of} <= set(find_prerequisites(plan, of))
    assert len(list_own_test_models(run, Train(2, 2))) == (
        3 if test == "chain" else run.config.circle.num_passes
    )


def test_a_fold_is_judged_by_its_own_models_and_the_holdout_by_all(circle_run: CircleRun) -> None:
    run = circle_run([0, 2], num_rounds=2, test="chain")
    digests = {
        (number, fold): run.model(Train(number, fold)).digest
        for number in (0, 1)
        for fold in (0, 2)
    }
    (chain,) = load_model_chains(run, 1, 2)
    assert [model.digest for model in chain] == [digests[0, 2], digests[1, 2]]
    voters = load_model_chains(run, 1, HOLDOUT)
    assert [[model.digest for model in chain] for chain in voters] == [
        [digests[0, 0], digests[1, 0]],
        [digests[0, 2], digests[1, 2]],
    ]


@pytest.mark.parametrize(
    ("test", "main", "inner"), [("passes", [1, 1], [0, 0]), ("chain", [0, 1], [0, 0])]
)
def test_the_inner_models_of_the_round_before_take_part(
    circle_run: CircleRun, test: str, main: list[int], inner: list[int]
) -> None:
    run = circle_run([1], maps="cross_fit", num_parts=2, num_rounds=2, test=test)
    run.config = replace(run.config, predict=replace(run.config.predict, voters="all"))

    def digests(rounds: list[int], part: int | None) -> list[str]:
        return [run.model(Train(number, 1, part)).digest for number in rounds]

    found = [[model.digest for model in chain] for chain in load_model_chains(run, 1, 1)]
    assert found == [digests(main, None), digests(inner, 0), digests(inner, 1)]
    (first,) = load_model_chains(run, 0, 1)
    assert [model.digest for model in first] == digests([0], None)


def test_a_model_that_judges_every_pass_is_read_and_built_once(circle_run: CircleRun) -> None:
    run = circle_run([0], num_rounds=2, num_passes=3, until=Evaluate(1, 0), whole=True)
    (chain,) = load_model_chains(run, 1, 0)
    assert len(chain) == 3
    assert len({id(model) for model in chain}) == 1
    built = build_predictors(chain)
    assert len(built) == 3
    assert len({id(predictor) for predictor in built}) == 1


def test_a_round_that_nobody_has_trained_judges_nothing(circle_run: CircleRun) -> None:
    run = circle_run([0], until=Train(0, 0))
    with pytest.raises(DataError, match="must have a trained fold"):
        load_model_chains(run, 0, HOLDOUT)
    run = circle_run([0], name="other", num_rounds=2, until=Evaluate(0, 0))
    for fold, why in ((0, "round 1 has no result"), (HOLDOUT, "Round 1 of .* is not")):
        with pytest.raises(DataError, match=why):
            load_model_chains(run, 1, fold)
