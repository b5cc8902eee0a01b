"""Training objective: named loss terms and their weights."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mtil.config import LossConfig
from mtil.models.layers import average_to_height, widen
from mtil.models.network import NetworkOutput

MALIGNANT, NORMAL = 1, 2
SMOOTHING = 1e-5
BOUNDARY_TOLERANCE = 5
"""Side in pixels of the square around an outline pixel in which another outline matches."""


class StepCounts(NamedTuple):
    """Counts over all images of an optimiser step: of all workers and all micro-batches.

    Divisors of the loss terms. The terms of parts of a step then add up to the terms of the whole.
    With weights, sums of the images' weights instead of counts.
    """

    images: Float[Tensor, ""]
    tumours: Float[Tensor, ""]
    """Images with a lesion."""

    @classmethod
    def of(
        cls,
        label: Int[Tensor, "b"],
        dtype: torch.dtype = torch.float32,
        weight: Float[Tensor, "b"] | None = None,
    ) -> "StepCounts":
        """Count the images of one batch."""
        tumour = label != NORMAL
        if weight is not None:
            return cls(weight.sum().to(dtype), torch.where(tumour, weight, 0).sum().to(dtype))
        images = torch.full((), len(label), dtype=dtype, device=label.device)
        return cls(images, tumour.sum().to(dtype))


class TrainingObjective(nn.Module):
    """Compute the weighted loss terms of both tasks; the loss is their sum.

    With `weighting: uncertainty` the weight of each task is learned (Kendall et al. 2018; as in
    ACSNet): weight * (exp(-s) * loss + s / 2). s is the task's log-variance and starts at 0, so
    training starts from the fixed weights.
    """

    malignant_weight: Tensor
    other_weight: Tensor

    def __init__(self, config: LossConfig, malignant_share: float = 0.5) -> None:
        """Build the objective.

        Args:
            config: loss terms and weights.
            malignant_share: share of malignant images among the training rows. At 0 or 1 all
                images weigh the same.
        """
        super().__init__()
        self.config = config
        malignant, other = class_weights(malignant_share) if config.class_balance else (1.0, 1.0)
        self.register_buffer("malignant_weight", torch.tensor(malignant), persistent=False)
        self.register_buffer("other_weight", torch.tensor(other), persistent=False)
        self.log_variance = nn.ParameterDict()
        if config.weighting == "uncertainty":
            for name in ("segmentation", "classification"):
                self.log_variance[name] = nn.Parameter(torch.zeros(()))

    def forward(
        self,
        output: NetworkOutput,
        mask: Float[Tensor, "b 1 h w"],
        label: Int[Tensor, "b"],
        counts: StepCounts | None = None,
        weight: Float[Tensor, "b"] | None = None,
        malignant_target: Float[Tensor, "b"] | None = None,
    ) -> dict[str, Tensor]:
        """Return the weighted loss terms `segmentation`, `classification` and `presence`.

        `presence` is missing if its weight is 0.

        The terms of the parts of a step add up to the terms of the whole step.

        Args:
            output: output of the network.
            mask: 1 in the lesion, 0 elsewhere, or a probability.
            label: 0 benign, 1 malignant, 2 normal.
            counts: counts over the whole step; by default the counts of this batch.
            weight: weight of each image in all terms; None equals all ones.
            malignant_target: probability of malignant as the target of the class; by default 1 for
                malignant and 0 for other images.
        """
        config = self.config
        # Autocast computes logits in bf16; sums over pixels need more digits.
        malignant = widen(output.malignant)
        if counts is None:
            counts = StepCounts.of(label, malignant.dtype, weight)
        terms = {
            "segmentation": self.segmentation(output, mask, label != NORMAL, counts, weight),
            "classification": self.classification(
                malignant, label == MALIGNANT, counts, weight, malignant_target
            ),
        }
        weights = {"segmentation": config.segmentation, "classification": config.classification}
        share = (len(label) if weight is None else weight.sum()) / counts.images
        weighted = {
            name: weights[name] * self.weigh_by_uncertainty(name, term, share)
            for name, term in terms.items()
        }
        if config.presence > 0:
            presence = binary_loss(
                widen(output.presence), label != NORMAL, smoothing=0.0, gamma=0.0
            )
            weighted["presence"] = config.presence * weigh(presence, weight).sum() / counts.images
        return weighted

    def weigh_by_uncertainty(
        self, name: str, term: Float[Tensor, ""], share: Float[Tensor, ""]
    ) -> Float[Tensor, ""]:
        """Weigh a term by the learned uncertainty of the task; fixed weights leave it unchanged.

        Args:
            name: name of the task.
            term: loss of the task.
            share: share of the step's images in this batch.
        """
        if name not in self.log_variance:
            return term
        log_variance: Tensor = self.log_variance[name]
        return torch.exp(-log_variance) * term + share * log_variance / 2

    def segmentation(
        self,
        output: NetworkOutput,
        mask: Float[Tensor, "b 1 h w"],
        tumour: Tensor,
        counts: StepCounts,
        image_weight: Float[Tensor, "b"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return region losses over all outputs plus the boundary loss of the final output."""
        config = self.config
        logits = (output.mask, *reversed(output.side))  # finest first
        weights = supervision_weights(len(logits), config.deep_supervision)
        total = mask.new_zeros(())
        for weight, level_logits in zip(weights, logits, strict=True):
            target = average_to_height(mask, level_logits.shape[-2])
            total = total + weight * region_loss(
                widen(level_logits), target, tumour, counts, config, image_weight
            )
        if config.boundary > 0:
            boundary = weigh(boundary_loss(widen(output.mask), mask), image_weight)
            total = total + config.boundary * mean_over(boundary, tumour, counts.tumours)
        return total

    def classification(
        self,
        logits: Float[Tensor, "b"],
        malignant: Tensor,
        counts: StepCounts,
        image_weight: Float[Tensor, "b"] | None = None,
        target: Float[Tensor, "b"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the class-balanced classification loss; normal images count as not malignant."""
        config = self.config
        gamma = config.focal_gamma if config.classification_kind == "focal" else 0.0
        loss = binary_loss(
            logits, malignant, smoothing=config.label_smoothing, gamma=gamma, target=target
        )
        weight = torch.where(malignant, self.malignant_weight, self.other_weight)
        return (weight * weigh(loss, image_weight)).sum() / counts.images


def weigh(values: Float[Tensor, "b"], weight: Float[Tensor, "b"] | None) -> Float[Tensor, "b"]:
    """Multiply a value of each image by the image's weight; None changes nothing."""
    return values if weight is None else weight * values


def class_weights(malignant_share: float) -> tuple[float, float]:
    """Return the weights of malignant and of other images, by inverse frequency.

    The mean weight over the training rows is 1.
    """
    if not 0 < malignant_share < 1:
        return 1.0, 1.0
    return 0.5 / malignant_share, 0.5 / (1 - malignant_share)


def supervision_weights(count: int, coarsest: float) -> list[float]:
    """Return one weight an output, finest first: linear from 1 to `coarsest`, sum 1."""
    weights = torch.linspace(1, coarsest, count, dtype=torch.float64)
    return [float(weight) for weight in weights / weights.sum()]


def region_loss(
    logits: Float[Tensor, "b 1 h w"],
    target: Float[Tensor, "b 1 h w"],
    tumour: Tensor,
    counts: StepCounts,
    config: LossConfig,
    weight: Float[Tensor, "b"] | None = None,
) -> Float[Tensor, ""]:
    """Mix Dice over tumour images with cross-entropy over all images, weighted by `dice`."""
    per_image = dice_loss(logits, target, config.recall)
    if config.focus != 1:
        # The slope of a power below 1 has no bound at 0.
        per_image = per_image.clamp_min(SMOOTHING) ** config.focus
    dice = mean_over(weigh(per_image, weight), tumour, counts.tumours)
    pixels = logits.shape[-2] * logits.shape[-1]
    if weight is None:
        cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="sum")
    else:
        by_pixel = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        cross_entropy = weigh(by_pixel.flatten(1).sum(dim=1), weight).sum()
    cross_entropy = cross_entropy / (counts.images * pixels)
    return config.dice * dice + (1 - config.dice) * cross_entropy


def dice_loss(
    logits: Float[Tensor, "b 1 h w"], target: Float[Tensor, "b 1 h w"], recall: float = 0.5
) -> Float[Tensor, "b"]:
    """Return 1 minus the soft Tversky index of each image; with `recall` 0.5 the soft Dice score.

    Args:
        logits: lesion logits.
        target: 1 in the lesion, 0 elsewhere.
        recall: weight of missed pixels; falsely found ones have the rest.
    """
    prob, target = logits.sigmoid().flatten(1), target.flatten(1)
    overlap = (prob * target).sum(dim=1)
    total = 2 * ((1 - recall) * prob.sum(dim=1) + recall * target.sum(dim=1))
    return 1 - (2 * overlap + SMOOTHING) / (total + SMOOTHING)


def boundary_loss(
    logits: Float[Tensor, "b 1 h w"], target: Float[Tensor, "b 1 h w"]
) -> Float[Tensor, "b"]:
    """Return 1 minus the soft F1 score of each image's outline (Bokhovkin & Burnaev 2019).

    Outlines are morphological gradients, computed by max-pooling. An outline pixel is correct if
    the other outline passes within `BOUNDARY_TOLERANCE`.
    """
    predicted_line, target_line = (
        extract_soft_outline(logits.sigmoid()),
        extract_soft_outline(target),
    )
    precision = share_within_tolerance(predicted_line, target_line)
    recall = share_within_tolerance(target_line, predicted_line)
    return 1 - (2 * precision * recall + SMOOTHING) / (precision + recall + SMOOTHING)


def extract_soft_outline(prob: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 h w"]:
    """Return the inner edge of a soft mask: the mask minus its erosion."""
    outside = 1 - prob
    return F.max_pool2d(outside, 3, stride=1, padding=1) - outside


def share_within_tolerance(
    line: Float[Tensor, "b 1 h w"], reference: Float[Tensor, "b 1 h w"]
) -> Float[Tensor, "b"]:
    """Return the share of a line within `BOUNDARY_TOLERANCE` of a second line."""
    band = F.max_pool2d(reference, BOUNDARY_TOLERANCE, stride=1, padding=BOUNDARY_TOLERANCE // 2)
    hits, length = (line * band).flatten(1).sum(dim=1), line.flatten(1).sum(dim=1)
    return (hits + SMOOTHING) / (length + SMOOTHING)


def binary_loss(
    logits: Float[Tensor, "b"],
    positive: Tensor,
    *,
    smoothing: float,
    gamma: float,
    target: Float[Tensor, "b"] | None = None,
) -> Float[Tensor, "b"]:
    """Return the cross-entropy of each image; focal if `gamma` > 0 (Lin et al. 2017).

    Args:
        logits: logits of the positive class.
        positive: True for images of the positive class.
        smoothing: label smoothing, 0 to 1; 0.5 moves every target to 0.5.
        gamma: exponent of the focal factor 1 - p, where p is the probability of the true class.
        target: probability of the positive class; by default 1 where `positive`, else 0.
    """
    target = positive.to(logits.dtype) if target is None else target.to(logits.dtype)
    smoothed = target * (1 - 2 * smoothing) + smoothing
    loss = F.binary_cross_entropy_with_logits(logits, smoothed, reduction="none")
    if gamma > 0:
        missed = torch.sigmoid(torch.where(positive, -logits, logits))
        loss = loss * missed**gamma
    return loss


def mean_over(
    values: Float[Tensor, "b"], chosen: Tensor, count: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """Return the sum over the chosen images, divided by their number in the whole step, or 0."""
    return torch.where(chosen, values, 0).sum() / count.clamp_min(SMOOTHING)
