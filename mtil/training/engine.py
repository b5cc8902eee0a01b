"""One fold's training: network, losses and optimiser stepping through batches. No Ray.

The caller supplies batches, wraps the step for several processes, saves checkpoints and reports.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from mtil.config import Config, TrainConfig
from mtil.data.dataset.batches import Batch
from mtil.metrics import auc, f1
from mtil.models import TwoTaskNetwork
from mtil.models.devices import wants_bf16
from mtil.training.augment import Augment
from mtil.training.averaging import MovingAverage
from mtil.training.losses import Objective
from mtil.training.randomness import EpochRandomness, of_round
from mtil.training.tensors import TensorBatch, to_tensors


class TrainingStep(nn.Module):
    """Network and losses as one module, so that one wrapper synchronises the gradients of both."""

    def __init__(self, network: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.network, self.objective = network, objective

    def forward(
        self,
        image: Tensor,
        mask: Tensor,
        label: Tensor,
        prior: Tensor | None = None,
        num_passes: int = 1,
    ) -> dict[str, Tensor]:
        """Return the named, weighted loss terms, averaged over the passes.

        The first pass is given the prior map, every other one the map of the pass before. No
        gradient flows from pass to pass: each learns to make the best of the map that it is given.
        """
        output = self.network(image, prior)
        passes: list[dict[str, Tensor]] = [self.objective(output, mask, label)]
        for _ in range(num_passes - 1):
            output = self.network(image, output.as_prior())
            passes.append(self.objective(output, mask, label))
        if num_passes == 1:
            return passes[0]
        return {name: torch.stack([terms[name] for terms in passes]).mean() for name in passes[0]}


@dataclass(frozen=True)
class Step:
    """What a training step did. Its values stay on the device until somebody asks."""

    index: int
    terms: Mapping[str, Tensor]
    gradient_norm: Tensor


@dataclass(frozen=True)
class Scored:
    """One validation image: its id, label, Dice (NaN without a lesion) and malignancy logit."""

    sample_id: str
    label: int
    dice: float
    logit: float
    earlier: tuple[tuple[float, float], ...] = ()
    """Dice and logit of the passes before the last."""


class Engine:
    """The state of one fold's training, and what can be done with it."""

    def __init__(
        self,
        config: Config,
        *,
        steps_per_epoch: int,
        malignant_share: float,
        device: torch.device,
        wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
        num_passes: int = 1,
        earlier: Sequence[nn.Module] = (),
        initial: Mapping[str, Tensor] | None = None,
        share: float = 1.0,
        number: int = 0,
    ) -> None:
        """Build network, losses, optimiser and schedule.

        Args:
            config: the run's configuration.
            steps_per_epoch: optimiser steps of each epoch.
            malignant_share: share of malignant images among the training rows.
            device: where to compute.
            wrap: makes the training step one of several processes' (DDP).
            num_passes: how often a validation image is looked at, each time with the map of the
                time before; with `circle.maps: recycle` also the most often in a training step.
            earlier: networks of former rounds that take the first of these passes, each one.
            initial: weights to start from, such as those of a former round's model.
            share: of how many times its even share of a step's images this process takes.
            number: the round, which decides how its epochs differ from those of other rounds.
        """
        torch.manual_seed(config.seed)
        self.config, self.device = config, device
        self._steps_per_epoch = steps_per_epoch
        self._layout = (
            torch.channels_last if config.train.channels_last else torch.contiguous_format
        )
        self._num_passes, self._earlier = num_passes, [one.to(device).eval() for one in earlier]
        self._most_passes = num_passes if config.circle.maps == "recycle" else 1
        self._share, self._seed = share, of_round(config.seed, number)
        self._random: EpochRandomness | None = None
        self.network = TwoTaskNetwork(config.model).to(device)
        if initial is not None:
            self.network.load_state_dict(initial)
        self.network.to(memory_format=self._layout)  # type: ignore[call-overload]
        self._objective = Objective(config.loss, malignant_share).to(device)
        self._augment = Augment(config.augment, config.model.prior)
        self._average = MovingAverage(self.network, config.train.ema_decay)
        self._optimizer = make_optimizer(self.network, self._objective, config.train)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer,
            lambda step: rate_factor(
                step / steps_per_epoch, config.train.warmup_epochs, config.train.num_epochs
            ),
        )
        self._step = wrap(TrainingStep(compiled(self.network, config.train), self._objective))
        self._autocast = wants_bf16(config.train, device)

    def train_epoch(
        self,
        batches: Iterable[Batch],
        *,
        epoch: int,
        rank: int = 0,
        first: int = 0,
        randomness: Mapping[str, Tensor] | None = None,
    ) -> Iterator[Step]:
        """Take one optimiser step per batch and yield it.

        All randomness of the epoch comes from (seed, round, epoch, rank): one that is run again
        after a restart is the same epoch. Where the network's output is recycled, every rank
        makes the same number of passes in a step, as the exchange of gradients needs.

        Args:
            batches: this process's batches, from the first step's on.
            epoch: number of the epoch, from 0.
            rank: this process among those that train together.
            first: the step to begin with, where the steps before it have been taken already.
            randomness: what `randomness` said after these, in the process of that rank.
        """
        self._random = random = EpochRandomness(
            self._seed,
            epoch,
            rank,
            self.device,
            first=first,
            most_passes=self._most_passes,
            state=randomness,
        )
        self._step.train()
        for index, batch in enumerate(batches, start=first):
            image, mask, label, prior = self._to_device(batch)
            image, mask, prior = self._augment(image, mask, prior, random.degrading)
            num_passes = random.num_passes()
            self._optimizer.zero_grad(set_to_none=True)
            if self.config.train.cuda_graphs:
                torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
                terms = self._step(self._laid_out(image), mask, label, prior, num_passes)
            loss = torch.stack(list(terms.values())).sum() * self._share
            loss.backward()  # type: ignore[no-untyped-call]
            norm = nn.utils.clip_grad_norm_(self._step.parameters(), self.config.train.clip_norm)
            self._optimizer.step()
            self._schedule.step()
            self._average.update(self.network)
            yield Step(index, {name: term.detach() for name, term in terms.items()}, norm.detach())

    def validate(self, batches: Iterable[Batch]) -> list[Scored]:
        """Score images with the averaged weights, at the network's input size.

        The first pass has a zero map and every other one the map of the pass before, as on test
        images; a stored map is not looked at.
        """
        own = self.averaged().eval()
        networks = [*self._earlier, *[own] * (self._num_passes - len(self._earlier))]
        scored = []
        for batch in batches:
            image, mask, *_ = self._to_device(batch)
            image, prior = self._laid_out(image), None
            passes = []
            for network in networks:
                with (
                    torch.inference_mode(),
                    torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast),
                ):
                    output = network(image, prior)
                    prior = output.as_prior()
                dice = dice_per_image(output.mask.float() > 0, mask > 0.5)
                passes.append((dice.tolist(), output.malignant.float().tolist()))
            for index, sample_id in enumerate(batch.sample_id):
                *earlier, (last_dice, logit) = [(d[index], m[index]) for d, m in passes]
                label = int(batch.label[index])
                scored.append(Scored(sample_id, label, last_dice, logit, tuple(earlier)))
        return scored

    def randomness(self) -> dict[str, Tensor]:
        """Return where this process's random numbers stand between two steps of an epoch."""
        assert self._random is not None
        return self._random.state()

    def averaged(self) -> nn.Module:
        """Return the network with the averaged weights, or itself where there are none."""
        averaged = bool(self.config.train.ema_decay) and int(self._average.n_averaged) > 0
        return self._average.module if averaged else self.network

    def weights(self) -> dict[str, Tensor]:
        """Return a copy of the averaged weights on the CPU."""
        return {
            name: value.detach().cpu().clone()
            for name, value in self.averaged().state_dict().items()
        }

    def rates(self) -> dict[str, float]:
        """Return the present learning rates of encoder and rest."""
        groups = {group["name"]: float(group["lr"]) for group in self._optimizer.param_groups}
        return {"encoder": groups["encoder"], "rest": groups["rest"]}

    def state(self) -> dict[str, Any]:
        """Return what a later process needs to go on: tensors and plain values only."""
        return {
            "network": self.network.state_dict(),
            "objective": self._objective.state_dict(),
            "average": self._average.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": {"last_epoch": self._schedule.last_epoch},
            "rng": {"seed": self.config.seed, "state": torch.get_rng_state()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.network.load_state_dict(state["network"])
        self._objective.load_state_dict(state["objective"])
        self._average.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.last_epoch = state["schedule"]["last_epoch"]
        torch.set_rng_state(state["rng"]["state"])

    def _to_device(self, batch: Batch) -> TensorBatch:
        return to_tensors(batch, self.config.data.image_size, self.device)

    def _laid_out(self, image: Tensor) -> Tensor:
        return image.contiguous(memory_format=self._layout)


def compiled(network: nn.Module, config: TrainConfig) -> nn.Module:
    """Return the network as the configuration wants it run: as it is, compiled, in CUDA graphs."""
    if config.compile:
        mode = "reduce-overhead" if config.cuda_graphs else None
        return cast(nn.Module, torch.compile(network, mode=mode))
    if config.cuda_graphs:
        return cast(nn.Module, torch.compile(network, backend="cudagraphs"))
    return network


class _AdamW(torch.optim.AdamW):
    """PyTorch's, without loading its compiler, which takes 1.5 s and 70 MiB.

    PyTorch wraps these methods in functions that load it to be left alone by it.
    """

    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    load_state_dict = inspect.unwrap(torch.optim.AdamW.load_state_dict)
    state_dict = inspect.unwrap(torch.optim.AdamW.state_dict)
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


def make_optimizer(
    network: TwoTaskNetwork, objective: nn.Module, config: TrainConfig
) -> torch.optim.AdamW:
    """Return AdamW with the encoder's own rate, and no decay on vectors (biases, normalisation)."""
    encoder = {id(parameter) for parameter in network.encoder.parameters()}
    groups: dict[str, list[nn.Parameter]] = {
        "encoder": [], "encoder_vectors": [], "rest": [], "rest_vectors": []
    }  # fmt: skip
    for parameter in [*network.parameters(), *objective.parameters()]:
        if not parameter.requires_grad:
            continue
        part = "encoder" if id(parameter) in encoder else "rest"
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


def rate_factor(epochs: float, warmup: float, total: int) -> float:
    """Return the share of the peak rate after so many epochs: a linear rise, then a cosine fall."""
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


def validation_metrics(scored: Iterable[Scored], dice_weight: float) -> dict[str, float]:
    """Return Dice, AUC and F1 over the tumour images, and the score that picks the epoch.

    All are those of the last pass; of the passes before, Dice and AUC follow as `dice_pass_0` and
    so on. F1 calls malignant what is likelier than not, before any calibration. A figure that the
    rows do not define (no tumour image, one class only) is left out; the score is a weighted sum
    of Dice and AUC, or the one of them that there is.
    """
    rows = [row for row in scored if row.label < 2]
    labels = [row.label for row in rows]
    figures = _dice_and_auc([(row.dice, row.logit) for row in rows], labels)
    weights = {"dice": dice_weight, "auc": 1 - dice_weight}
    total = sum(weights[name] for name in figures)
    figures["score"] = (
        sum(weights[name] * value for name, value in figures.items()) / total if total else 0.0
    )
    if "auc" in figures:
        figures["f1"] = f1([row.logit for row in rows], labels, threshold=0.0)
    for number, of_pass in enumerate(zip(*(row.earlier for row in rows), strict=True)):
        for name, value in _dice_and_auc(of_pass, labels).items():
            figures[f"{name}_pass_{number}"] = value
    return figures


def _dice_and_auc(
    of_pass: Sequence[tuple[float, float]], labels: Sequence[int]
) -> dict[str, float]:
    if not labels:
        return {}
    figures = {"dice": float(np.mean([dice for dice, _ in of_pass]))}
    area = auc(np.array([logit for _, logit in of_pass]), np.array(labels))
    if not math.isnan(area):
        figures["auc"] = area
    return figures
