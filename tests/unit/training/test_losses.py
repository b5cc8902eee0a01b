import math
import warnings

import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from monai.losses import DiceLoss, FocalLoss, TverskyLoss

from mtil.config import LossConfig
from mtil.models import NetworkOutput
from mtil.training.losses import (
    StepCounts,
    TrainingObjective,
    binary_loss,
    boundary_loss,
    class_weights,
    dice_loss,
    extract_soft_outline,
    mean_over,
    supervision_weights,
)

SURE = 50.0  # a logit whose sigmoid is one


def output_of(mask, malignant):
    """Return an output with side logits from the mask at coarser strides."""
    side = tuple(torch.nn.functional.avg_pool2d(mask, stride) for stride in (16, 8, 4))
    return NetworkOutput(mask, side, malignant, malignant.flip(0))


def batch():
    torch.manual_seed(0)
    mask = torch.zeros(3, 1, 32, 32)
    mask[0, :, 0:16, 0:16], mask[1, :, 16:32, 0:32] = 1, 1
    return output_of(torch.randn(3, 1, 32, 32), torch.randn(3)), mask, torch.tensor([0, 1, 2])


def test_dice_worked_by_hand():
    """[1, 1, 1, 1] against [1, 1, 0, 0] has Dice 2 * 2 / (4 + 2)."""
    logits = torch.full((1, 1, 2, 2), SURE)
    target = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]])
    assert dice_loss(logits, target).item() == pytest.approx(1 / 3, abs=1e-4)


@pytest.mark.parametrize(("recall", "index"), [(0.5, 1 / 2.5), (0.8, 1 / 2.8)])
def test_missed_pixels_count_by_their_weight(recall, index):
    """The prediction has 1 true, 2 missed and 1 false pixel.

    The divisor is 1 + 0.5 * 1 + 0.5 * 2 with `recall` 0.5, and 1 + 0.2 * 1 + 0.8 * 2 with 0.8.
    """
    logits = torch.tensor([[[[SURE, -SURE, -SURE, SURE, -SURE]]]])
    target = torch.tensor([[[[1.0, 1.0, 1.0, 0.0, 0.0]]]])
    assert dice_loss(logits, target, recall).item() == pytest.approx(1 - index, abs=1e-4)


@pytest.mark.parametrize("recall", [0.3, 0.5, 0.7])
def test_tversky_agrees_with_monai(recall):
    output, mask, _ = batch()
    oracle = TverskyLoss(sigmoid=True, alpha=1 - recall, beta=recall, reduction="none")
    torch.testing.assert_close(
        dice_loss(output.mask, mask, recall), oracle(output.mask, mask).flatten()
    )


@pytest.mark.parametrize("focus", [0.5, 2.0])
def test_the_focus_is_an_exponent_of_each_image_s_loss(focus):
    output, mask, label = batch()
    config = LossConfig(dice=1.0, focus=focus, deep_supervision=0.0)
    only_final = NetworkOutput(output.mask, (), output.malignant, output.presence)
    found = TrainingObjective(config)(only_final, mask, label)["segmentation"]
    losses = dice_loss(output.mask, mask)[:2]  # the third image is normal
    assert found.item() == pytest.approx((losses**focus).mean().item(), rel=1e-5)


def test_dice_agrees_with_monai():
    output, mask, _ = batch()
    oracle = DiceLoss(sigmoid=True, reduction="none")
    torch.testing.assert_close(dice_loss(output.mask, mask), oracle(output.mask, mask).flatten())


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_agrees_with_monai(gamma):
    logits, positive = torch.tensor([-2.0, 0.3, 1.5, -0.1]), torch.tensor([1, 0, 1, 1]).bool()
    got = binary_loss(logits, positive, smoothing=0.0, gamma=gamma)
    oracle = FocalLoss(gamma=gamma, reduction="none")
    expected = oracle(logits[:, None], positive[:, None].float())[:, 0]
    torch.testing.assert_close(got, expected)


def test_smoothing_moves_the_target_towards_one_half():
    """At logit ln 4 (probability 0.8) with target 0.9: -(0.9 ln 0.8 + 0.1 ln 0.2)."""
    got = binary_loss(torch.tensor([math.log(4)]), torch.tensor([True]), smoothing=0.1, gamma=0.0)
    assert got.item() == pytest.approx(-(0.9 * math.log(0.8) + 0.1 * math.log(0.2)))


def test_focal_worked_by_hand():
    """Probability 0.8 of the truth: (1 - 0.8)^2 * -ln 0.8."""
    got = binary_loss(torch.tensor([-math.log(4)]), torch.tensor([False]), smoothing=0.0, gamma=2.0)
    assert got.item() == pytest.approx(0.04 * -math.log(0.8))


def test_an_outline_is_the_inner_edge():
    mask = torch.zeros(1, 1, 5, 5)
    mask[..., 1:4, 1:4] = 1
    expected = mask.clone()
    expected[..., 2, 2] = 0
    assert torch.equal(extract_soft_outline(mask), expected)


def test_the_boundary_term_knows_right_from_wrong_by_its_tolerance():
    def square(left):
        mask = torch.zeros(1, 1, 32, 32)
        mask[..., 8:20, left : left + 12] = 1
        return mask

    def loss(left):
        return boundary_loss((square(left) * 2 - 1) * SURE, square(8)).item()

    assert loss(8) == pytest.approx(0, abs=1e-4)
    assert loss(10) == pytest.approx(0, abs=1e-4)  # two pixels off: within the band
    assert 0.2 < loss(12) < loss(16) < 1
    assert boundary_loss(torch.full((1, 1, 32, 32), -SURE), square(8)).item() > 0.9


def test_class_weights_are_one_on_average():
    malignant, other = class_weights(0.25)
    assert (malignant, other) == (2.0, pytest.approx(2 / 3))
    assert 0.25 * malignant + 0.75 * other == pytest.approx(1)
    assert class_weights(0.0) == class_weights(1.0) == (1.0, 1.0)


def test_supervision_falls_evenly_from_the_final_output():
    assert supervision_weights(4, 0.4) == pytest.approx([1 / 2.8, 0.8 / 2.8, 0.6 / 2.8, 0.4 / 2.8])
    assert supervision_weights(4, 1.0) == pytest.approx([0.25] * 4)


def test_the_mean_of_nothing_is_zero():
    values = torch.tensor([1.0, 3.0, 100.0])
    assert mean_over(values, torch.tensor([True, True, False]), torch.tensor(2.0)).item() == 2.0
    assert mean_over(values, torch.zeros(3, dtype=torch.bool), torch.tensor(0.0)).item() == 0.0


def test_terms_are_weighed_once():
    args = batch()
    plain = TrainingObjective(LossConfig(segmentation=1.0, classification=1.0, presence=1.0))(*args)
    weighed = TrainingObjective(LossConfig(segmentation=0.3, classification=2.0, presence=0.5))(
        *args
    )
    assert list(weighed) == ["segmentation", "classification", "presence"]
    assert "presence" not in TrainingObjective(LossConfig(presence=0.0))(*args)
    torch.testing.assert_close(weighed["presence"], 0.5 * plain["presence"])
    torch.testing.assert_close(weighed["segmentation"], 0.3 * plain["segmentation"])
    torch.testing.assert_close(weighed["classification"], 2.0 * plain["classification"])


def test_classification_worked_by_hand():
    """All probabilities are 1/2: losses are ln 2, weighted 2, 2/3 and 2/3 at a share of 1/4."""
    output, mask, label = batch()
    output = output._replace(malignant=torch.zeros(3))
    config = LossConfig(classification=1.0, label_smoothing=0.0)
    term = TrainingObjective(config, malignant_share=0.25)(output, mask, label)["classification"]
    assert term.item() == pytest.approx(math.log(2) * (2 / 3 + 2 + 2 / 3) / 3)


def test_presence_worked_by_hand():
    """Lesion probabilities are 3/4 and 1/2 for two tumours, and 1/4 for a normal image."""
    output, mask, _ = batch()
    output = output._replace(presence=torch.tensor([math.log(3), 0.0, -math.log(3)]))
    term = TrainingObjective(LossConfig(presence=2.0))(output, mask, torch.tensor([0, 1, 2]))
    expected = 2 * (2 * math.log(4 / 3) + math.log(2)) / 3
    assert term["presence"].item() == pytest.approx(expected)


def test_a_normal_image_counts_as_not_malignant():
    output, mask, _ = batch()
    config = LossConfig()
    normal = TrainingObjective(config)(output, mask, torch.tensor([2, 2, 2]))["classification"]
    benign = TrainingObjective(config)(output, mask, torch.tensor([0, 0, 0]))["classification"]
    assert torch.equal(normal, benign)


def test_a_normal_image_adds_no_dice_but_cross_entropy():
    output, mask, label = batch()
    other = output.mask.clone()
    other[2] += 1
    changed = output_of(other, output.malignant)
    dice, cross_entropy = (
        TrainingObjective(LossConfig(dice=1.0)),
        TrainingObjective(LossConfig(dice=0.0)),
    )
    name = "segmentation"
    assert torch.equal(dice(output, mask, label)[name], dice(changed, mask, label)[name])
    assert cross_entropy(output, mask, label)[name] < cross_entropy(changed, mask, label)[name]


def test_segmentation_mixes_the_outputs_by_their_weights():
    """Only the finest output differs: only the weight of the finest output counts."""
    output, mask, label = batch()
    objective = TrainingObjective(LossConfig(dice=0.0, deep_supervision=0.4))
    cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits
    other = torch.zeros_like(output.mask)
    got = (
        objective(output, mask, label)["segmentation"]
        - objective(output._replace(mask=other), mask, label)["segmentation"]
    )
    expected = (cross_entropy(output.mask, mask) - math.log(2)) / 2.8
    torch.testing.assert_close(got, expected)


def test_the_boundary_term_is_added_inside_the_segmentation_task():
    output, mask, label = batch()
    plain = TrainingObjective(LossConfig(segmentation=0.5))(output, mask, label)["segmentation"]
    full = TrainingObjective(LossConfig(segmentation=0.5, boundary=0.3))(output, mask, label)
    extra = 0.5 * 0.3 * boundary_loss(output.mask, mask)[:2].mean()
    torch.testing.assert_close(full["segmentation"], plain + extra)


def test_a_batch_of_normals_has_finite_gradients():
    output, mask, _ = batch()
    logits = output.mask.requires_grad_()
    objective = TrainingObjective(LossConfig(boundary=1.0))
    sum(
        objective(output_of(logits, output.malignant), 0 * mask, torch.full((3,), 2)).values()
    ).backward()
    assert torch.isfinite(logits.grad).all()
    assert logits.grad.any()


def test_fixed_weights_have_no_parameters():
    assert list(TrainingObjective(LossConfig()).parameters()) == []


def test_uncertainty_starts_at_the_fixed_weights_and_is_learned():
    """s = 0: weight * loss, and d/ds (exp(-s) loss + s / 2) = 1/2 - loss, times the weight."""
    args = batch()
    fixed = TrainingObjective(LossConfig())(*args)
    objective = TrainingObjective(LossConfig(weighting="uncertainty"))
    terms = objective(*args)
    for name, weight in (("segmentation", 1.0), ("classification", 0.5)):
        torch.testing.assert_close(terms[name], fixed[name])
        terms[name].backward()
        expected = weight / 2 - fixed[name].item()
        assert objective.log_variance[name].grad.item() == pytest.approx(expected)


def test_uncertainty_worked_by_hand():
    objective = TrainingObjective(LossConfig(weighting="uncertainty"))
    with torch.no_grad():
        objective.log_variance["segmentation"].fill_(math.log(4))
    for share in (1.0, 0.25):
        got = objective.weigh_by_uncertainty(
            "segmentation", torch.tensor(3.0), torch.tensor(share)
        ).item()
        assert got == pytest.approx(3 / 4 + share * math.log(2))


@pytest.mark.parametrize("weighting", ["fixed", "uncertainty"])
def test_the_terms_of_the_parts_of_a_step_add_up(weighting):
    """A part of the step has only normal images."""
    output, mask, label = batch()
    objective = TrainingObjective(LossConfig(weighting=weighting, boundary=0.2), 0.3)
    whole = objective(output, mask, label)
    counts = StepCounts(torch.tensor(3.0), torch.tensor(2.0))
    parts = [
        objective(
            NetworkOutput(
                output.mask[rows],
                tuple(side[rows] for side in output.side),
                output.malignant[rows],
                output.presence[rows],
            ),
            mask[rows],
            label[rows],
            counts,
        )
        for rows in (slice(0, 2), slice(2, 3))
    ]
    for name, term in whole.items():
        assert sum(part[name] for part in parts).item() == pytest.approx(term.item(), rel=1e-6)


def test_half_precision_logits_are_scored_in_full():
    output, mask, label = batch()
    half = NetworkOutput(*(
        tuple(x.bfloat16() for x in part) if isinstance(part, tuple) else part.bfloat16()
        for part in output
    ))  # fmt: skip
    for term in TrainingObjective(LossConfig(boundary=0.1))(half, mask, label).values():
        assert term.dtype == torch.float32


@pytest.mark.parametrize("weighting", ["fixed", "uncertainty"])
def test_an_image_of_weight_two_counts_as_two_images(weighting):
    output, mask, label = batch()
    objective = TrainingObjective(LossConfig(weighting=weighting, boundary=0.3, focus=0.8), 0.4)
    rows = torch.tensor([0, 0, 1, 2, 2, 2])
    repeated = objective(
        NetworkOutput(
            output.mask[rows], tuple(side[rows] for side in output.side), output.malignant[rows],
            output.presence[rows],
        ),
        mask[rows],
        label[rows],
    )  # fmt: skip
    weighted = objective(output, mask, label, weight=torch.tensor([2.0, 1.0, 3.0]))
    for name, term in repeated.items():
        torch.testing.assert_close(weighted[name], term)


def test_equal_weights_change_nothing_and_an_image_of_weight_zero_does_not_count():
    output, mask, label = batch()
    objective = TrainingObjective(LossConfig(), 0.4)
    plain = objective(output, mask, label)
    equal = objective(output, mask, label, weight=torch.full((3,), 0.1))
    without = objective(output, mask, label, weight=torch.tensor([1.0, 1.0, 0.0]))
    rest = NetworkOutput(
        output.mask[:2], tuple(side[:2] for side in output.side), output.malignant[:2],
        output.presence[:2],
    )  # fmt: skip
    alone = objective(rest, mask[:2], label[:2])
    for name, term in plain.items():
        torch.testing.assert_close(equal[name], term)
        torch.testing.assert_close(without[name], alone[name])


def test_a_soft_target_of_the_class_worked_by_hand():
    """The cross-entropy against a target of 0.7 at the logit of 0.7 is the entropy of 0.7."""
    logit = math.log(0.7 / 0.3)
    config = LossConfig(classification=1.0, class_balance=False, label_smoothing=0.0, presence=0.0)
    output = output_of(torch.zeros(1, 1, 32, 32), torch.tensor([logit]))
    mask, label = torch.zeros(1, 1, 32, 32), torch.tensor([1])
    found = TrainingObjective(config)(output, mask, label, malignant_target=torch.tensor([0.7]))[
        "classification"
    ]
    entropy = -0.7 * math.log(0.7) - 0.3 * math.log(0.3)
    assert found.item() == pytest.approx(entropy, rel=1e-5)
    hard = TrainingObjective(config)(output, mask, label)["classification"]
    assert hard.item() == pytest.approx(-math.log(0.7), rel=1e-5)
