"""Training loop of one fold: network, losses, optimiser and steps through batches. No Ray.

The caller supplies the batches, wraps the step for several processes, saves checkpoints and
reports.
"""

import inspect
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from mtil.config import Config, TrainConfig
from mtil.data.dataset.batches import Batch
from mtil.data.dataset.order import worker_positions
from mtil.data.dataset.source_weights import SourceWeights
from mtil.metrics import auc, f1
from mtil.models import TwoTaskNetwork
from mtil.models.devices import should_use_bf16
from mtil.models.windows import Window
from mtil.run.teacher import TeacherOutputs
from mtil.training.augment import BatchAugmentation
from mtil.training.averaging import MovingAverage
from mtil.training.batch_norm import synchronize_batch_norm
from mtil.training.corruption import corrupt_masks
from mtil.training.group import Group
from mtil.training.losses import StepCounts, TrainingObjective
from mtil.training.randomness import (
    EpochRandomness,
    ImageRandomness,
    Purpose,
    derive_round_seed,
)
from mtil.training.tensors import (
    TensorBatch,
    blend_teacher,
    move_to_device,
    to_tensors,
    unpack_masks,
)
from mtil.training.windows import draw_windows


class TrainingStep(nn.Module):
    """Hold network and losses in one module.

    One wrapper (DDP) then synchronises the gradients of both.
    """

    def __init__(self, network: nn.Module, objective: TrainingObjective) -> None:
        super().__init__()
        self.network, self.objective = network, objective

    def forward(
        self,
        image: Tensor,
        mask: Tensor,
        label: Tensor,
        prior: Tensor | None = None,
        num_passes: int = 1,
        draws: Tensor | None = None,
        counts: StepCounts | None = None,
        zoom: Tensor | None = None,
        weight: Tensor | None = None,
        malignant: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the named, weighted loss terms, averaged over the passes.

        The terms of the parts of a step add up to the terms of the whole step with `counts`.

        The first pass reads the prior map, each later pass the map of the previous pass. Gradients
        do not flow between passes: every pass learns to make the best of a given map.

        Args:
            image: gray values (b, 1, h, w) in [0, 1].
            mask: 1 in the lesion, 0 elsewhere, or a probability (b, 1, h, w).
            label: 0 benign, 1 malignant, 2 normal (b,).
            prior: prior map (b, 1, h, w) of the first pass; None equals all zeros.
            num_passes: number of passes, from 1.
            draws: uniform numbers (num_passes, b, num_draws) for the network's random layers; None
                leaves the choice to torch's global generator.
            counts: counts over the whole step; by default the counts of this batch.
            zoom: enlargement (b,) of the images in octaves; None equals all zeros.
            weight: weight (b,) of the images in the loss; None equals all ones.
            malignant: probability (b,) of malignant as the target; None stands for the labels.
        """
        passes: list[dict[str, Tensor]] = []
        for index in range(num_passes):
            output = self.network(
                image, prior, draws=None if draws is None else draws[index], zoom=zoom
            )
            passes.append(self.objective(output, mask, label, counts, weight, malignant))
            if index + 1 < num_passes:
                prior = output.as_prior()
        if num_passes == 1:
            return passes[0]
        return {name: torch.stack([terms[name] for terms in passes]).mean() for name in passes[0]}


@dataclass(frozen=True)
class StepResult:
    """Loss terms and gradient norm of a training step, over the images of all workers.

    The values stay on the device until read, and the next step does not wait for the GPU.
    """

    index: int
    terms: Mapping[str, Tensor]
    gradient_norm: Tensor


@dataclass(frozen=True)
class ValidationScore:
    """Scores of one validation image."""

    sample_id: str
    label: int
    dice: float
    """NaN without a lesion."""
    logit: float
    """Logit of malignant."""
    presence: float = 0.0
    """Logit of a lesion in the image."""
    earlier: tuple[tuple[float, float], ...] = ()
    """Dice and logit of the passes before the last pass."""


class TrainingEngine:
    """Hold the state of one fold's training: network, optimiser, schedule, average."""

    def __init__(
        self,
        config: Config,
        *,
        steps_per_epoch: int,
        malignant_share: float,
        device: torch.device,
        group: Group | None = None,
        num_passes: int = 1,
        earlier: Sequence[nn.Module] = (),
        initial: Mapping[str, Tensor] | None = None,
        number: int = 0,
        weights: SourceWeights | None = None,
        teacher: TeacherOutputs | None = None,
    ) -> None:
        """Build network, losses, optimiser and schedule.

        Args:
            config: the run's configuration.
            steps_per_epoch: optimiser steps of each epoch.
            malignant_share: share of malignant images among the training rows.
            device: device on which to train.
            group: the workers of the training; by default this process alone.
            num_passes: passes over a validation image, each with the map of the previous pass.
                With `circle.maps: recycle` also the maximum number of passes in a training step.
            earlier: networks of previous rounds for the first passes, with a network per pass.
            initial: weights to start from, for example of a previous round's model; other weights
                start as usual.
            number: index of the round; changes the random numbers of all epochs.
            weights: weights of the images in the loss; by default all images weigh the same.
            teacher: outputs of a teacher for the training images, with `loss.teacher`.
        """
        torch.manual_seed(config.seed)
        self._dtype = torch.float64 if config.train.precision == "fp64" else torch.float32
        self.config, self.device = config, device
        self._steps_per_epoch = steps_per_epoch
        self._layout = (
            torch.channels_last if config.train.channels_last else torch.contiguous_format
        )
        self._num_passes, self._earlier = (
            num_passes,
            [net.to(device, self._dtype).eval() for net in earlier],
        )
        self._most_passes = num_passes if config.circle.maps == "recycle" else 1
        self._weights, self._teacher = weights, teacher
        self._group, self._seed = group or Group(), derive_round_seed(config.seed, number)
        self.network = TwoTaskNetwork(config.model).to(device, self._dtype)
        if initial is not None:
            self.network.load_state_dict({**self.network.state_dict(), **initial})
        self.network.to(memory_format=self._layout)  # type: ignore[call-overload]
        self._objective = TrainingObjective(config.loss, malignant_share).to(device, self._dtype)
        self._augment = BatchAugmentation(config.augment, config.model.prior)
        self._average = MovingAverage(self.network, config.train.ema_decay)
        self._optimizer = make_optimizer(self.network, self._objective, config.train)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer,
            lambda step: learning_rate_factor(
                step / steps_per_epoch, config.train.warmup_epochs, config.train.num_epochs
            ),
        )
        # After the copy for the average, which only evaluates and exchanges nothing.
        if config.train.sync_batch_norm and self._group.num_workers > 1:
            synchronize_batch_norm(self.network, device, self._group.address)
        # The compiled network shares parameters with `self.network`. The state dict of
        # `self.network` keeps the plain names.
        self._step = self._group.wrap(
            TrainingStep(compile_network(self.network, config.train), self._objective),
            device,
        )
        self._autocast = should_use_bf16(config.train, device)

    def train_epoch(
        self,
        batches: Iterable[Batch],
        *,
        epoch: int,
        first: int = 0,
    ) -> Iterator[StepResult]:
        """Take one optimiser step a batch and yield each step.

        The random numbers of an image come from (seed, round, epoch, sample id). An epoch repeated
        or resumed after a restart is therefore identical. Dropout within an `hf:` encoder also
        depends on step and rank, see `EpochRandomness.seed_step`.

        Args:
            batches: batches of this worker, from step `first` on.
            epoch: index of the epoch, from 0.
            first: index of the first step to take; larger than 0 to resume within an epoch.
        """
        random = EpochRandomness(self._seed, epoch, self.device, most_passes=self._most_passes)
        self._step.train()
        for index, batch in enumerate(batches, start=first):
            random.seed_step(index, self._group.rank)
            images = random.for_images(batch.sample_id)
            windows = self._draw_windows(batch, images)
            drawn = self._to_device(batch, windows)
            if self._teacher is not None:
                drawn = blend_teacher(
                    drawn,
                    *self._teacher.select(batch.sample_id),
                    share=self.config.loss.teacher,
                    stored_size=batch.image.shape[-1],
                    windows=windows,
                )
            if self.config.circle.maps == "corrupted":
                drawn = drawn._replace(prior=corrupt_masks(drawn.mask, images))
            image, mask, prior = self._augment(drawn.image, drawn.mask, drawn.prior, images)
            # Equal on every rank: the exchange of gradients needs the same number of passes.
            num_passes = random.num_passes(index)
            draws = self._draw_layers(images, num_passes)
            self._optimizer.zero_grad(set_to_none=True)
            drawn = drawn._replace(
                image=image, mask=mask, prior=prior, weight=self._weigh(batch.sample_id)
            )
            terms = self._add_gradients(drawn, num_passes, draws)
            norm = nn.utils.clip_grad_norm_(self._step.parameters(), self.config.train.clip_norm)
            self._optimizer.step()
            self._schedule.step()
            if not self.config.train.sync_batch_norm:
                self._group.copy_buffers(self.network)
            self._average.update(self.network)
            yield StepResult(index, terms, norm.detach())

    def _add_gradients(
        self, batch: TensorBatch, num_passes: int, draws: Tensor | None
    ) -> dict[str, Tensor]:
        """Add the gradients of a step's loss over all workers, one micro-batch after the other.

        Args:
            batch: this worker's images of the step.
            num_passes: passes over each image.
            draws: uniform numbers (num_passes, b, num_draws) for the network's random layers.

        Returns:
            The loss terms of the whole step.
        """
        own = StepCounts.of(batch.label, self._dtype, batch.weight)
        counts = StepCounts(*self._group.sum(torch.stack(own)))
        slices = self._micro_batches(len(batch.label))
        parts: list[dict[str, Tensor]] = []
        for rows in slices:
            if self.config.train.cuda_graphs:
                torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            # DDP exchanges the gradients once, during the last backward pass.
            with (
                self._group.without_exchange(self._step, rows is not slices[-1]),
                torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast),
            ):
                terms = self._step(
                    self._in_layout(batch.image[rows]),
                    batch.mask[rows],
                    batch.label[rows],
                    None if batch.prior is None else batch.prior[rows],
                    num_passes,
                    None if draws is None else draws[:, rows],
                    counts,
                    None if batch.zoom is None else batch.zoom[rows],
                    None if batch.weight is None else batch.weight[rows],
                    None if batch.malignant is None else batch.malignant[rows],
                )
            # The group averages gradients over workers, but the terms of the workers add up.
            loss = torch.stack(list(terms.values())).sum() * self._group.num_workers
            loss.backward()  # type: ignore[no-untyped-call]
            parts.append({name: term.detach() for name, term in terms.items()})
        self._group.average_gradients(self._step)
        names = list(parts[0])
        sums = torch.stack([torch.stack([part[name] for part in parts]).sum() for name in names])
        return dict(zip(names, self._group.sum(sums), strict=True))

    def _micro_batches(self, num_images: int) -> list[slice]:
        """Return the micro-batches among this worker's images of a step."""
        train = self.config.train
        if train.num_micro_batches == 1:
            return [slice(0, num_images)]
        positions = worker_positions(
            train.batch_size, train.num_micro_batches, self._group.rank, self._group.num_workers
        )
        stops = list(accumulate(len(part) for part in positions))
        return [slice(start, stop) for start, stop in pairwise([0, *stops])]

    def validate(self, batches: Iterable[Batch]) -> list[ValidationScore]:
        """Score images with the averaged weights, at the network's input size.

        The first pass reads a zero map, each later pass the map of the previous pass, as on test
        images. Stored maps are not read.
        """
        averaged = self.averaged().eval()
        chain = [*self._earlier, *[averaged] * (self._num_passes - len(self._earlier))]
        scored = []
        for batch in batches:
            image, mask, *_ = self._to_device(batch)
            image, prior = self._in_layout(image), None
            passes = []
            for network in chain:
                with (
                    torch.inference_mode(),
                    torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast),
                ):
                    output = network(image, prior)
                    prior = output.as_prior()
                dice = dice_per_image(output.mask.float() > 0, mask > 0.5)
                passes.append((dice.tolist(), output.malignant.float().tolist()))
            presence = output.presence.float().tolist()
            for index, sample_id in enumerate(batch.sample_id):
                *earlier, (dice, logit) = [
                    (dices[index], logits[index]) for dices, logits in passes
                ]
                scored.append(
                    ValidationScore(
                        sample_id=sample_id,
                        label=int(batch.label[index]),
                        dice=dice,
                        logit=logit,
                        presence=presence[index],
                        earlier=tuple(earlier),
                    )
                )
        return scored

    def averaged(self) -> nn.Module:
        """Return the network with averaged weights, or the trained network without an average."""
        averaged = bool(self.config.train.ema_decay) and int(self._average.n_averaged) > 0
        return self._average.module if averaged else self.network

    def weights(self) -> dict[str, Tensor]:
        """Return a copy of the averaged weights on the CPU."""
        return {
            name: value.detach().to("cpu", _storage_dtype(value), copy=True)
            for name, value in self.averaged().state_dict().items()
        }

    def rates(self) -> dict[str, float]:
        """Return the current learning rates of `encoder` and `rest`."""
        groups = {group["name"]: float(group["lr"]) for group in self._optimizer.param_groups}
        return {"encoder": groups["encoder"], "rest": groups["rest"]}

    def state(self) -> dict[str, Any]:
        """Return the state to resume training from: tensors and plain values only."""
        return {
            "network": self.network.state_dict(),
            "objective": self._objective.state_dict(),
            "average": self._average.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": {"last_epoch": self._schedule.last_epoch},
            "rng": {"seed": self.config.seed, "state": torch.get_rng_state()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Load a state returned by `state`."""
        self.network.load_state_dict(state["network"])
        self._objective.load_state_dict(state["objective"])
        self._average.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.last_epoch = state["schedule"]["last_epoch"]
        torch.set_rng_state(state["rng"]["state"])

    def _draw_layers(self, images: ImageRandomness, num_passes: int) -> Tensor | None:
        """Return uniform numbers (num_passes, b, num_draws); None without random layers."""
        num_draws = self.network.num_draws
        if num_draws == 0:
            return None
        draws = images.uniforms(Purpose.LAYERS, num_passes * num_draws)
        by_pass = draws.view(-1, num_passes, num_draws).transpose(0, 1).contiguous()
        return move_to_device(by_pass, self.device)

    def _weigh(self, sample_ids: Sequence[str]) -> Tensor | None:
        """Return the weight of each image in the loss; None if all weigh the same."""
        if self._weights is None:
            return None
        weights = torch.from_numpy(self._weights(sample_ids)).to(self._dtype)
        return move_to_device(weights, self.device)

    def _draw_windows(self, batch: Batch, images: ImageRandomness) -> list[Window | None] | None:
        """Return the window of each image; None without a zoom pass."""
        zoom = self.config.zoom
        if not zoom.num_windows:
            return None
        return draw_windows(zoom, unpack_masks(batch), batch.prior, images)

    def _to_device(
        self, batch: Batch, windows: Sequence[Window | None] | None = None
    ) -> TensorBatch:
        size = self.config.data.image_size
        return to_tensors(batch, size, self.device, self._dtype, windows)

    def _in_layout(self, image: Tensor) -> Tensor:
        return image.contiguous(memory_format=self._layout)


def _storage_dtype(value: Tensor) -> torch.dtype:
    return torch.float32 if value.is_floating_point() else value.dtype


def compile_network(network: nn.Module, config: TrainConfig) -> nn.Module:
    """Return the network unchanged, compiled or in CUDA graphs, as configured."""
    if config.compile:
        mode = "reduce-overhead" if config.cuda_graphs else None
        return cast(nn.Module, torch.compile(network, mode=mode))
    if config.cuda_graphs:
        return cast(nn.Module, torch.compile(network, backend="cudagraphs"))
    return network


class _AdamW(torch.optim.AdamW):
    """AdamW without PyTorch's compiler."""

    # PyTorch decorates the methods below to prevent their compilation. The decorator imports the
    # compiler, which takes 1.5 s and 70 MiB. The undecorated methods do not.
    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    load_state_dict = inspect.unwrap(torch.optim.AdamW.load_state_dict)
    state_dict = inspect.unwrap(torch.optim.AdamW.state_dict)
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


def make_optimizer(
    network: TwoTaskNetwork, objective: nn.Module, config: TrainConfig
) -> torch.optim.AdamW:
    """Return AdamW with separate learning rates for the encoder and the rest.

    Vectors (biases, normalisation) have no weight decay. `rates_for_batch_size` scales both rates
    with the square root of the batch size.
    """
    encoder_ids = {id(parameter) for parameter in network.encoder.parameters()}
    groups: dict[str, list[nn.Parameter]] = {
        "encoder": [], "encoder_vectors": [], "rest": [], "rest_vectors": []
    }  # fmt: skip
    for parameter in [*network.parameters(), *objective.parameters()]:
        if not parameter.requires_grad:
            continue
        part = "encoder" if id(parameter) in encoder_ids else "rest"
        groups[part if parameter.ndim > 1 else f"{part}_vectors"].append(parameter)
    scale = math.sqrt(config.batch_size / (config.rates_for_batch_size or config.batch_size))
    on_gpu = next(network.parameters()).is_cuda
    return _AdamW(
        [
            {
                "name": name,
                "params": parameters,
                "lr": scale
                * (
                    config.encoder_learning_rate
                    if name.startswith("encoder")
                    else config.learning_rate
                ),
                "weight_decay": 0.0 if name.endswith("vectors") else config.weight_decay,
            }
            for name, parameters in groups.items()
            if parameters
        ],
        foreach=not on_gpu,
        fused=on_gpu,
    )


def learning_rate_factor(epochs: float, warmup: float, total: int) -> float:
    """Return the learning rate as a share of the peak: linear warm-up, then cosine decay to 0.01.

    Args:
        epochs: epochs trained so far, with the fraction of the current epoch.
        warmup: epochs of the warm-up.
        total: epochs of the whole training.
    """
    if epochs < warmup:
        return (epochs + 1e-3) / (warmup + 1e-3)
    progress = min((epochs - warmup) / max(total - warmup, 1e-9), 1.0)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))


def dice_per_image(prediction: Tensor, target: Tensor) -> Tensor:
    """Return Dice (b,) of boolean masks (b, 1, h, w); NaN where the target is empty."""
    overlap = (prediction & target).sum(dim=(1, 2, 3))
    total = prediction.sum(dim=(1, 2, 3)) + target.sum(dim=(1, 2, 3))
    dice = 2 * overlap / total.clamp_min(1)
    return torch.where(target.flatten(1).any(dim=1), dice, torch.nan)


def summarise_validation(scored: Iterable[ValidationScore], dice_weight: float) -> dict[str, float]:
    """Return Dice, AUC and F1 over the tumour images, and the score that selects the epoch.

    With normal images also `presence_auc`, of tumour images among all images.

    Metrics are of the last pass. Dice and AUC of earlier passes follow as `dice_pass_0`,
    `auc_pass_0`, `dice_pass_1`, … F1 predicts malignant where the logit is above 0, before any
    calibration. Undefined metrics are left out: Dice without a tumour image, AUC and F1 with a
    single class.

    Args:
        scored: scores of validation images. Normal images count for `presence_auc` only.
        dice_weight: weight of Dice in the score; AUC has the rest. A missing metric leaves the
            score to the other metric. Without both, the score is 0.
    """
    scored = list(scored)
    rows = [row for row in scored if row.label < 2]
    labels = [row.label for row in rows]
    metrics = _dice_and_auc([(row.dice, row.logit) for row in rows], labels)
    weights = {"dice": dice_weight, "auc": 1 - dice_weight}
    total = sum(weights[name] for name in metrics)
    metrics["score"] = (
        sum(weights[name] * value for name, value in metrics.items()) / total if total else 0.0
    )
    if "auc" in metrics:
        metrics["f1"] = f1([row.logit for row in rows], labels, threshold=0.0)
    for pass_index, pass_scores in enumerate(zip(*(row.earlier for row in rows), strict=True)):
        for name, value in _dice_and_auc(pass_scores, labels).items():
            metrics[f"{name}_pass_{pass_index}"] = value
    if rows and len(rows) < len(scored):
        presence = np.array([row.presence for row in scored])
        metrics["presence_auc"] = auc(presence, np.array([row.label < 2 for row in scored]))
    return metrics


def _dice_and_auc(
    pass_scores: Sequence[tuple[float, float]], labels: Sequence[int]
) -> dict[str, float]:
    if not labels:
        return {}
    metrics = {"dice": float(np.mean([dice for dice, _ in pass_scores]))}
    area = auc(np.array([logit for _, logit in pass_scores]), np.array(labels))
    if not math.isnan(area):
        metrics["auc"] = area
    return metrics
