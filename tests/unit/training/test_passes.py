"""Prior maps in training: missing maps are zeros, maps move with images, outputs are fed back."""

import copy
import dataclasses
import io
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed
from torch import Tensor, nn

from mtil.config import Config
from mtil.data.dataset.batches import Batch
from mtil.data.dataset.order import epoch_order
from mtil.models import NetworkOutput
from mtil.training.engine import (
    TrainingEngine,
    TrainingStep,
    ValidationScore,
    dice_per_image,
    summarise_validation,
)
from mtil.training.losses import StepCounts
from mtil.training.randomness import derive_round_seed

pytestmark = pytest.mark.slow

MakeConfig = Callable[..., Config]
ToyBatches = Callable[..., list[Batch]]
CPU = torch.device("cpu")

STILL = {
    "horizontal_flip": 0.0, "rotation": 0.0, "scale": 0.0, "translation": 0.0, "brightness": 0.0,
    "contrast": 0.0, "gamma": 0.0, "speckle": 0.0,
}  # fmt: skip
KEPT = {"prior": {"dropout": 0.0, "roughen": 0.0}}


def _engine(config: Config, **arguments: Any) -> TrainingEngine:
    return TrainingEngine(config, steps_per_epoch=2, malignant_share=0.5, device=CPU, **arguments)


def _with_prior(batches: list[Batch], value: int | None = None, side: int = 16) -> list[Batch]:
    """Give every image a random map, or a constant map."""
    rng = np.random.default_rng(1)
    return [
        dataclasses.replace(
            batch,
            prior=rng.integers(0, 256, (len(batch), side, side), np.uint8)
            if value is None
            else np.full((len(batch), side, side), value, np.uint8),
        )
        for batch in batches
    ]


def _train(engine: TrainingEngine, batches: list[Batch], epochs: range = range(2)) -> None:
    for epoch in epochs:
        list(engine.train_epoch(batches, epoch=epoch))


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _priors_given(engine: TrainingEngine) -> list[Tensor | None]:
    """Record the prior map of every network call."""
    given: list[Tensor | None] = []
    engine.network.register_forward_pre_hook(lambda _, inputs: given.append(inputs[1]))
    return given


def test_a_zero_map_trains_the_same_weights_as_no_map(
    make_config: MakeConfig, toy_batches: ToyBatches
) -> None:
    """All augmentations are on, and maps are dropped and roughened at random."""
    batches = toy_batches(2)
    without, zeros, maps = (_engine(make_config()) for _ in range(3))
    _train(without, batches)
    _train(zeros, _with_prior(batches, 0))
    _train(maps, _with_prior(batches))
    assert _equal(without.network.state_dict(), zeros.network.state_dict())
    assert _equal(without.weights(), zeros.weights())
    assert not _equal(without.weights(), maps.weights())


def test_a_map_that_is_always_dropped_is_no_map(
    make_config: MakeConfig, toy_batches: ToyBatches
) -> None:
    batches = toy_batches(2)
    config = make_config(model={"prior": {"dropout": 1.0}})
    without, dropped = _engine(config), _engine(config)
    _train(without, batches)
    _train(dropped, _with_prior(batches))
    assert _equal(without.weights(), dropped.weights())


def test_without_maps_the_paths_of_the_map_stay_closed(
    make_config: MakeConfig, toy_batches: ToyBatches
) -> None:
    batches = toy_batches(2)
    for given, is_open in ((batches, False), (_with_prior(batches), True)):
        engine = _engine(make_config())
        _train(engine, given)
        paths = {name: value for name, value in engine.weights().items() if "prior" in name}
        assert len(paths) > 5
        assert all(bool(value.any()) == is_open for value in paths.values())


@pytest.mark.parametrize("maps", ["in_sample", "cross_fit"])
def test_the_first_round_of_a_circle_is_an_ordinary_training(
    make_config: MakeConfig, toy_batches: ToyBatches, maps: str
) -> None:
    batches = toy_batches(2)
    config = make_config(circle={"maps": maps, "num_passes": 3})
    plain, first = _engine(config), _engine(config, num_passes=3)
    for engine in (plain, first):
        _train(engine, batches)
    assert _equal(plain.network.state_dict(), first.network.state_dict())
    assert _equal(plain.weights(), first.weights())
    for one, row in zip(plain.validate(batches), first.validate(batches), strict=True):
        assert one.earlier == ()
        assert row.earlier == ((row.dice, row.logit),) * 2  # untrained paths ignore the map
        assert dataclasses.replace(row, earlier=()) == one


def test_a_map_is_flipped_with_its_image(make_config: MakeConfig, toy_batches: ToyBatches) -> None:
    (batch,) = _with_prior(toy_batches(1), side=32)
    config = make_config(augment=STILL | {"horizontal_flip": 1.0}, model=KEPT)
    engine = _engine(config)
    shown: list[Tensor] = []
    engine.network.register_forward_pre_hook(lambda _, inputs: shown.extend(inputs))
    list(engine.train_epoch([batch], epoch=0))
    image, prior = (x[:, 0].numpy() for x in shown)
    np.testing.assert_allclose(image, batch.image[:, :, ::-1] / 255, atol=1e-4)
    np.testing.assert_allclose(prior, batch.prior[:, :, ::-1] / 255, atol=1e-4)
    assert np.abs(prior - batch.prior / 255).max() > 0.5


def test_a_map_moves_with_its_image_whatever_the_move(
    make_config: MakeConfig, toy_batches: ToyBatches
) -> None:
    """A map equal to the image stays equal to the image."""
    moved = {"horizontal_flip": 0.5, "rotation": 40.0, "scale": 0.3, "translation": 0.2}
    engine = _engine(make_config(augment=STILL | moved, model=KEPT))
    batches = [dataclasses.replace(batch, prior=batch.image) for batch in toy_batches(3)]
    shown: list[tuple[Tensor, Tensor]] = []
    engine.network.register_forward_pre_hook(lambda _, inputs: shown.append(inputs))
    _train(engine, batches, range(1))
    for (image, prior), batch in zip(shown, batches, strict=True):
        torch.testing.assert_close(image, prior, atol=1e-5, rtol=0)
        assert np.abs(image[:, 0].numpy() - batch.image / 255).mean() > 0.02


def test_epochs_degrade_maps_differently(make_config: MakeConfig, toy_batches: ToyBatches) -> None:
    """Some maps are dropped in every epoch, differently by epoch but reproducibly."""
    batches = _with_prior(toy_batches(4))
    config = make_config(augment=STILL, model={"prior": {"dropout": 0.5, "roughen": 0.0}})
    dropped = {}
    for name, epoch in (("a", 0), ("again", 0), ("epoch", 1)):
        engine = _engine(config)
        given = _priors_given(engine)
        torch.rand(3)
        list(engine.train_epoch(batches, epoch=epoch))
        dropped[name] = [not bool(one.any()) for prior in given for one in prior]
    assert dropped["a"] == dropped["again"]
    assert dropped["a"] != dropped["epoch"]
    assert all(2 < sum(flags) < 14 for flags in dropped.values())


class _Weighted(nn.Module):
    """A network of two weights, for the image and for the prior map."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.prior = (nn.Parameter(torch.tensor(value)) for value in (0.0, 4.0))

    def forward(
        self,
        image: Tensor,
        prior: Tensor | None = None,
        draws: Tensor | None = None,
        zoom: Tensor | None = None,
    ) -> NetworkOutput:
        mask = self.image * image
        if prior is not None:
            mask = mask + self.prior * prior
        return NetworkOutput(mask, (), mask.mean(dim=(1, 2, 3)), mask.mean(dim=(1, 2, 3)))


class _MeanLogit(nn.Module):
    def forward(
        self,
        output: NetworkOutput,
        mask: Tensor,
        label: Tensor,
        counts: StepCounts | None,
        weight: Tensor | None,
        malignant: Tensor | None,
    ) -> dict[str, Tensor]:
        return {"segmentation": output.mask.mean(), "classification": 2 * output.malignant.mean()}


def test_no_gradient_flows_from_pass_to_pass() -> None:
    """Worked by hand: the first pass predicts logits of 0; the second pass reads a map of 1/2.

    The logits are then 0 and 4 / 2 = 2. The gradient of the image's weight is 1 in both passes. A
    gradient through the sigmoid of the first pass would be 1 + 4 / 4 in the second pass.
    """
    network = _Weighted()
    step = TrainingStep(network, _MeanLogit())
    image = torch.ones(2, 1, 4, 4)
    terms = step(image, image, torch.zeros(2), None, 2)
    assert terms["segmentation"].item() == 1.0
    assert terms["classification"].item() == 2.0
    terms["segmentation"].backward()
    assert float(network.image.grad) == pytest.approx(1.0)
    assert float(network.prior.grad) == pytest.approx((0 + 0.5) / 2)


def test_each_pass_is_given_the_map_of_the_one_before() -> None:
    """Worked by hand: three passes from a map of 1 have logits 4, 4 s(4), 4 s(4 s(4))."""
    step = TrainingStep(_Weighted(), _MeanLogit())
    image = torch.ones(1, 1, 4, 4)

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    first = 4.0
    second = 4 * sigmoid(first)
    third = 4 * sigmoid(second)
    for num_passes, expected in (
        (1, first),
        (2, (first + second) / 2),
        (3, (first + second + third) / 3),
    ):
        terms = step(image, image, torch.zeros(1), image, num_passes)
        assert terms["segmentation"].item() == pytest.approx(expected)


class _Drawn(_Weighted):
    """A network with a record of the random numbers of every call."""

    num_draws = 3

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Tensor | None] = []

    def forward(
        self,
        image: Tensor,
        prior: Tensor | None = None,
        draws: Tensor | None = None,
        zoom: Tensor | None = None,
    ) -> NetworkOutput:
        self.given.append(draws)
        return super().forward(image, prior)


def test_each_pass_has_its_own_random_numbers() -> None:
    network = _Drawn()
    step, image = TrainingStep(network, _MeanLogit()), torch.ones(2, 1, 4, 4)
    draws = torch.rand(3, 2, 5)
    step(image, image, torch.zeros(2), None, 3, draws)
    assert all(map(torch.equal, network.given, draws))
    step(image, image, torch.zeros(2), None, 2)
    assert network.given[3:] == [None, None]


def test_the_random_numbers_of_a_pass_belong_to_the_image(
    make_config: MakeConfig, toy_batches: ToyBatches
) -> None:
    """Images of a reordered batch keep the random numbers, in every pass."""
    config = make_config(circle={"maps": "recycle", "num_passes": 3})
    batches = toy_batches(6, size=4)
    turned = [
        dataclasses.replace(
            batch,
            sample_id=batch.sample_id[::-1], image=batch.image[::-1], mask=batch.mask[::-1],
            label=batch.label[::-1].copy(),
        )
        for batch in batches
    ]  # fmt: skip
    given: list[list[Tensor]] = []
    for some in (batches, turned):
        engine = _engine(config, num_passes=3)
        shown: list[Tensor] = []
        engine.network.register_forward_pre_hook(
            lambda _, args, values, shown=shown: shown.append(values["draws"]), with_kwargs=True
        )
        list(engine.train_epoch(some, epoch=0))
        given.append(shown)
    first, second = given
    assert len(first) > 6  # some steps make several passes
    assert len({tuple(draws.flatten().tolist()) for draws in first}) == len(first)
    assert all(draws.shape == (4, engine.network.num_draws) for draws in first)
    assert all(torch.equal(one, other.flip(0)) for one, other in zip(first, second, strict=True))


def test_what_is_fed_back_is_a_probability_that_is_apart_from_the_network() -> None:
    mask = torch.tensor([[[[0.0, 2.0]]]], dtype=torch.bfloat16, requires_grad=True)
    prior = NetworkOutput(mask, (), torch.zeros(1), torch.zeros(1)).as_prior()
    assert prior.dtype == torch.float32
    assert not prior.requires_grad
    assert prior.flatten().tolist() == pytest.approx([0.5, 1 / (1 + math.exp(-2))])


def _passes_per_step(engine: TrainingEngine, batches: list[Batch], epoch: int) -> list[int]:
    given = _priors_given(engine)
    list(engine.train_epoch(batches, epoch=epoch))
    starts = [index for index, prior in enumerate(given) if prior is None]
    return np.diff([*starts, len(given)]).tolist()


def test_recycling_makes_a_random_number_of_passes(
    make_config: MakeConfig, toy_batches: ToyBatches
) -> None:
    config = make_config(circle={"maps": "recycle", "num_passes": 3})
    batches = toy_batches(9, size=2)
    counts = {
        name: _passes_per_step(_engine(config, num_passes=3), batches, epoch)
        for name, epoch in (("first", 0), ("again", 0), ("next", 1))
    }
    assert all(len(steps) == 9 for steps in counts.values())
    assert set(counts["first"]) == {1, 2, 3}
    assert counts["first"] == counts["again"]
    assert counts["first"] != counts["next"]


def test_only_recycling_makes_several_passes_in_a_step(
    make_config: MakeConfig, toy_batches: ToyBatches
) -> None:
    batches = toy_batches(3, size=2)
    recycle = make_config(circle={"maps": "recycle", "num_passes": 3})
    assert _passes_per_step(_engine(recycle), batches, 0) == [1] * 3
    stored = make_config(circle={"maps": "in_sample", "num_passes": 3})
    assert _passes_per_step(_engine(stored, num_passes=3), batches, 0) == [1] * 3
    plain, circle, single = (
        _engine(recycle),
        _engine(recycle, num_passes=3),
        _engine(make_config(circle={"maps": "recycle", "num_passes": 1}), num_passes=1),
    )
    for engine in (plain, circle, single):
        _train(engine, batches)
    assert _equal(plain.weights(), single.weights())
    assert not _equal(plain.weights(), circle.weights())
    assert plain.validate(batches)[0].earlier == ()
    assert len(circle.validate(batches)[0].earlier) == 2


def test_a_restored_recycling_training_ends_with_the_same_bits(
    make_config: MakeConfig, toy_batches: ToyBatches
) -> None:
    config, batches = make_config(circle={"maps": "recycle"}), toy_batches(2)
    whole = _engine(config, num_passes=3)
    _train(whole, batches, range(3))
    stopped = _engine(config, num_passes=3)
    _train(stopped, batches, range(1))
    file = io.BytesIO()
    torch.save(stopped.state(), file)
    file.seek(0)
    resumed = _engine(config, num_passes=3)
    resumed.restore(torch.load(file, weights_only=True))
    _train(resumed, batches, range(1, 3))
    assert _equal(resumed.weights(), whole.weights())
    assert _equal(resumed.network.state_dict(), whole.network.state_dict())


def test_validation_goes_over_the_images_in_passes_from_a_zero_map(
    make_config: MakeConfig, toy_batches: ToyBatches
) -> None:
    """Compare with plain calls of the network; a stored map is not read."""
    batches = _with_prior(toy_batches(2))
    engine = _engine(make_config(circle={"num_passes": 3}), num_passes=3)
    network = engine.network.eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "prior" in name or name.startswith(("head", "logits.2")):
                nn.init.normal_(parameter)
    results = engine.validate(batches)
    for start, batch in zip((0, 4), batches, strict=True):
        image = torch.from_numpy(batch.image / np.float32(255))[:, None]
        bits = np.unpackbits(batch.mask, axis=1).reshape(-1, 1, 32, 32)
        prior, dices, logits = torch.zeros_like(image), [], []
        with torch.no_grad():
            for _ in range(3):
                output = network(image, prior)
                prior = output.mask.sigmoid()
                dices.append(dice_per_image(output.mask > 0, torch.from_numpy(bits) > 0))
                logits.append(output.malignant)
        assert (logits[0] - logits[2]).abs().max() > 1e-3
        for index, row in enumerate(results[start : start + 4]):
            assert row.sample_id == batch.sample_id[index]
            passes = [*row.earlier, (row.dice, row.logit)]
            expected = [
                (float(d[index]), float(m[index])) for d, m in zip(dices, logits, strict=True)
            ]
            np.testing.assert_allclose(passes, expected, atol=1e-4)


def test_the_last_pass_picks_the_epoch_and_the_others_are_told() -> None:
    rows = [
        ValidationScore("a", 0, 0.5, -1.0, presence=1.0, earlier=((0.1, 0.0), (0.3, 0.0))),
        ValidationScore("b", 1, 0.7, 2.0, presence=3.0, earlier=((0.2, -5.0), (0.5, 9.0))),
        ValidationScore(
            "c", 2, math.nan, 9.0, presence=2.0, earlier=((math.nan, 9.0), (math.nan, 9.0))
        ),
    ]
    assert summarise_validation(rows, 0.25) == pytest.approx(
        {
            "dice": 0.6, "auc": 1.0, "f1": 1.0, "score": 0.25 * 0.6 + 0.75,
            "dice_pass_0": 0.15, "auc_pass_0": 0.0, "dice_pass_1": 0.4, "auc_pass_1": 1.0,
            "presence_auc": 0.5,
        }
    )  # fmt: skip
    one_class = [rows[1]]
    assert summarise_validation(one_class, 0.25) == pytest.approx(
        {"dice": 0.7, "score": 0.7, "dice_pass_0": 0.2, "dice_pass_1": 0.5}
    )
    assert summarise_validation(rows[2:], 0.25) == {"score": 0.0}


def test_a_round_starts_from_the_weights_that_it_is_given(
    make_config: MakeConfig, toy_batches: ToyBatches
) -> None:
    batches = toy_batches(2)
    before = _engine(make_config(seed=3))
    _train(before, batches)
    initial = before.weights()
    kept = copy.deepcopy(initial)
    warm, cold = _engine(make_config(), initial=initial), _engine(make_config())
    assert _equal(warm.weights(), initial)
    assert not _equal(cold.weights(), initial)
    expected = [(row.dice, row.logit) for row in before.validate(batches)]
    assert [(row.dice, row.logit) for row in warm.validate(batches)] == expected
    _train(warm, batches)
    assert not _equal(warm.weights(), kept)
    assert _equal(initial, kept)  # training leaves the initial weights unchanged


def test_a_later_round_changes_images_in_other_ways_and_the_first_as_ever(
    make_config: MakeConfig, toy_batches: ToyBatches
) -> None:
    """Weights and batches are equal. The first round has the random numbers of the seed."""
    batches, config = toy_batches(2), make_config()
    initial = _engine(config).weights()
    ends = []
    for arguments in ({}, {"number": 0}, {"number": 1}, {"number": 1}, {"number": 2}):
        engine = _engine(config, initial=initial, **arguments)
        _train(engine, batches)
        ends.append(engine.weights())
    assert _equal(ends[0], ends[1])
    assert _equal(ends[2], ends[3])
    assert not _equal(ends[1], ends[2])
    assert not _equal(ends[2], ends[4])


def test_the_first_round_has_the_seed_of_the_run_and_each_later_one_another() -> None:
    seeds = [derive_round_seed(7, number) for number in range(10)]
    assert seeds[0] == 7
    assert len(set(seeds)) == 10
    assert derive_round_seed(8, 1) != derive_round_seed(7, 1)
    orders = [
        epoch_order(
            [20],
            seed=seed,
            epoch=0,
            batch_size=4,
            streams=1,
            shuffle_shards=1,
            positions=[range(4)],
        ).tolist()
        for seed in seeds
    ]
    assert len({str(order) for order in orders}) == 10


def test_corrupted_references_teach_to_read_a_map(
    make_config: MakeConfig, toy_batches: ToyBatches
) -> None:
    """A training step has a single pass, always with a map; validation has all passes."""
    batches = toy_batches(3, size=2)
    config = make_config(circle={"maps": "corrupted", "num_passes": 2})
    reading = _engine(config, num_passes=2)
    given = _priors_given(reading)
    list(reading.train_epoch(batches, epoch=0))
    assert len(given) == 3
    assert all(prior is not None for prior in given)
    engine, blind = _engine(config, num_passes=2), _engine(make_config())
    for one in (engine, blind):
        _train(one, batches)
    weight = "prior_stem.weight"
    assert not blind.network.state_dict()[weight].any()
    assert engine.network.state_dict()[weight].any()
    assert len(engine.validate(batches)[0].earlier) == 1
