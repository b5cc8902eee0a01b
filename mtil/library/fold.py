"""One fold's training, epoch by epoch, from its latest checkpoint to its committed model. No Ray.

A Ray worker and `mtil train --local` run the same loop, so both write the same files.
"""

import logging
import math
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtil.circle.inputs import (
    count_steps_per_epoch,
    list_own_test_models,
    load_initial_weights,
    select_training_rows,
)
from mtil.data.dataset.batches import Batch, EpochPlan
from mtil.data.dataset.manifest import Manifest
from mtil.data.dataset.order import local_batch_size
from mtil.data.dataset.selection import NORMAL, Role, count_rows, select_rows
from mtil.errors import DataError
from mtil.library.samples import Samples
from mtil.metrics import calibrate_logits, find_steady_threshold, fit_temperature
from mtil.prediction.predictor import Predictor, predict_passes
from mtil.run.checkpoint import TrainedModel
from mtil.run.folder import Run
from mtil.run.plan import Train
from mtil.training.engine import StepResult, TrainingEngine, ValidationScore, summarise_validation
from mtil.training.group import Group
from mtil.training.progress import BestEpoch, PartialEpoch, TrainingProgress
from mtil.training.randomness import derive_round_seed

History = Sequence[Mapping[str, Any]]

_log = logging.getLogger(__name__)

_VALIDATION_BATCH = 16
_STEP_INTERVAL_S = 2.0
"""Seconds between two records of how far an epoch is."""
_PREEMPTION_CHECK_STEPS = 16
"""Steps after which the workers ask whether a machine of the group is about to be taken away."""
_PREEMPTION_SAVE_CHECKS = 4
"""After a first warning the workers write a checkpoint, and again after so many checks."""


class FoldTraining:
    """The training of one fold, or of one of its inner models, in this process."""

    def __init__(
        self,
        run: Run,
        training: Train,
        manifest: Manifest,
        samples: Samples,
        device: torch.device,
        *,
        group: Group | None = None,
        should_continue: Callable[[History], bool] | None = None,
        set_gauges: Callable[..., None] | None = None,
    ) -> None:
        """Select the rows and check that they fill a batch.

        Args:
            run: holds configuration, checkpoints and results.
            training: which round, fold and part.
            manifest: the run's version of the data set.
            samples: yields the batches.
            device: where this process computes.
            group: the workers that train together; by default this process alone.
            should_continue: called on rank 0 with the history after each epoch. False ends the
                training, and the best epoch so far is committed.
            set_gauges: called on rank 0 with figures of the running epoch, by name.

        Raises:
            DataError: if the training has no rows, or too few for one batch.
        """
        self.run, self.training, self.manifest = run, training, manifest
        self.samples, self.device = samples, device
        self.group = group or Group()
        self.should_continue, self.set_gauges = should_continue, set_gauges
        self.config = run.config
        self.checkpoints = run.checkpoints(training)
        self.judges = list_own_test_models(run, training)
        self.has_failed_to_show = False
        self.plan = self._plan("train")
        self.batch_size = self.config.train.batch_size
        self.local_batch = local_batch_size(
            self.batch_size, self.group.rank, self.group.num_workers
        )
        self.hosts = sorted(set(self.group.gather(socket.gethostname())))
        self.steps = count_steps_per_epoch(self.config, manifest, training)

    def finish(self) -> None:
        """Train until the last epoch or until progress stalls, then commit the best model.

        Does nothing if the training has a result.

        Raises:
            DataError: if the samples do not hold the rows of the plan.
            CheckpointError: if the latest checkpoint is damaged or of another training.
        """
        if self.run.result(self.training) is not None:
            return  # a worker died after the result was written
        engine = self._engine()
        progress = TrainingProgress.load(self.checkpoints, engine)
        validation = self.samples.validation(self._plan("validation"), _VALIDATION_BATCH)
        continues = self._continues(progress.history)
        position = {"epoch": progress.next_epoch, "step": progress.begun.steps}
        _log.info("training", extra={"fields": position | {"workers": self.group.num_workers}})
        epochs = range(progress.next_epoch, self.config.train.num_epochs)
        for epoch, batches in self.samples.epochs(self.plan, epochs, self.local_batch):
            if not continues or progress.has_stalled(self.config.train.patience):
                break
            record = self._train_epoch(engine, progress, epoch, batches)
            scored = self._gather(engine.validate(validation()))
            figures = summarise_validation(scored, self.config.train.dice_weight)
            progress.add(record, figures, engine)
            if self.group.is_first:
                progress.save(self.checkpoints, engine)
                self._show(self.run.write_history, progress.history)
                _log.info("epoch done", extra={"fields": progress.history[-1]})
            self.group.report({"epoch": epoch, **figures})
            continues = self._continues(progress.history)
        assert progress.best is not None
        model = self._calibrated_model(progress.best, validation())
        if self.group.is_first:
            self.run.write_history(self.training, progress.history)
            self.run.commit(
                self.training,
                model,
                num_epochs=len(progress.history),
                seconds=round(progress.seconds, 3),
                metrics=progress.best.metrics,
            )
        _log.info("trained", extra={"fields": {"best_epoch": progress.best.epoch}})
        # Every worker waits here: none may exit before the result is written.
        self.group.report({"epoch": progress.next_epoch})

    def _continues(self, history: History) -> bool:
        """Ask rank 0 whether to train another epoch."""
        should_continue = self.should_continue
        if should_continue is None or not history:
            return True
        return bool(self.group.from_first(lambda: should_continue(history)))

    def _engine(self) -> TrainingEngine:
        tumours = [count_rows(self.manifest, self.plan.selection, label) for label in (0, 1)]
        normals = count_rows(self.manifest, self.plan.selection, NORMAL)
        return TrainingEngine(
            self.config,
            steps_per_epoch=self.steps,
            malignant_share=tumours[1] / (sum(tumours) + normals),
            device=self.device,
            wrap=lambda module: self.group.wrap(module, self.device),
            num_passes=len(self.judges),
            earlier=[model.network() for model in self._earlier_models()],
            initial=load_initial_weights(self.run, self.training),
            share=self.local_batch * self.group.num_workers / self.batch_size,
            number=self.training.round,
        )

    def _plan(self, role: Role) -> EpochPlan:
        normals = self.config.data.normals
        return EpochPlan(
            manifest=self.manifest,
            selection=(
                select_training_rows(self.config, self.manifest, self.training)
                if role == "train"
                else select_rows(self.manifest, self.training.fold, role, normals=normals)
            ),
            seed=derive_round_seed(self.config.seed, self.training.round),
            rank=self.group.rank,
            num_workers=self.group.num_workers,
            shuffle_shards=self.config.data.shuffle_shards,
            batch_size=self.config.train.batch_size,
        )

    def _train_epoch(
        self,
        engine: TrainingEngine,
        progress: TrainingProgress,
        epoch: int,
        batches: Iterator[Batch],
    ) -> dict[str, Any]:
        """Train one epoch, or the rest of an epoch that was begun; return its record."""
        begun = progress.begun
        clock = _Clock(islice(batches, begun.steps, self.steps))
        steps: list[StepResult] = []
        start = shown = time.monotonic()
        num_warnings = 0
        for step in engine.train_epoch(
            clock,
            epoch=epoch,
            rank=self.group.rank,
            first=begun.steps,
            randomness=self._own_randomness(begun),
        ):
            steps.append(step)
            done = begun.steps + len(steps)
            if self.group.is_first and time.monotonic() - shown > _STEP_INTERVAL_S:
                shown = time.monotonic()
                position = {"epoch": epoch, "step": done, "steps": self.steps, "hosts": self.hosts}
                self._show(self.run.write_step, position)
                self._gauge(epoch + done / self.steps, steps, clock.waited_s, shown - start)
            is_leaving = self.group.is_leaving
            if is_leaving and done % _PREEMPTION_CHECK_STEPS == 0 and done < self.steps:
                num_warnings = num_warnings + 1 if is_leaving() else 0
                if num_warnings % _PREEMPTION_SAVE_CHECKS == 1:
                    self._save_within_epoch(engine, progress, _terms(begun, steps))
        if begun.steps + len(steps) != self.steps:
            raise DataError(
                f"An epoch must have {self.steps} steps, but the data gave "
                f"{begun.steps + len(steps)}."
            )
        terms = _terms(begun, steps)  # reads the losses, so it waits until a GPU has done the steps
        seconds = time.monotonic() - start
        self._gauge(epoch + 1, steps, clock.waited_s, seconds)
        return {
            "epoch": epoch,
            "fold": self.training.fold,
            "steps": self.steps,
            "num_workers": self.group.num_workers,
            **{name: float(np.mean(values)) for name, values in terms.items()},
            **{f"learning_rate_{name}": rate for name, rate in engine.rates().items()},
            "seconds": seconds,
            "images": self.steps * self.batch_size,
            "images_per_second": len(steps) * self.batch_size / seconds,
            "data_wait_share": clock.waited_s / seconds,
        }

    def _show(self, write: Callable[[Train, Any], None], values: Any) -> None:
        """Write progress into the run. A failure is logged once and does not end the training."""
        try:
            write(self.training, values)
        except Exception:  # noqa: BLE001
            if not self.has_failed_to_show:
                _log.exception("The progress cannot be written to the run; the training goes on")
            self.has_failed_to_show = True
        else:
            self.has_failed_to_show = False

    def _gauge(
        self, epoch: float, steps: Sequence[StepResult], waited_s: float, seconds: float
    ) -> None:
        if self.set_gauges is None or not self.group.is_first:
            return
        self.set_gauges(
            images_per_second=len(steps) * self.batch_size / seconds,
            step_seconds=seconds / len(steps),
            data_wait_share=waited_s / seconds,
            loss=sum(float(term) for term in steps[-1].terms.values()),
            epoch=epoch,
            workers=self.group.num_workers,
        )

    def _own_randomness(self, begun: PartialEpoch) -> dict[str, Tensor] | None:
        """Return this worker's random state within an epoch; None if the group has changed size."""
        is_same_size = len(begun.randomness) == self.group.num_workers
        return begun.randomness[self.group.rank] if is_same_size else None

    def _save_within_epoch(
        self, engine: TrainingEngine, progress: TrainingProgress, terms: dict[str, list[float]]
    ) -> None:
        """Commit a checkpoint between two steps. Every worker calls this after the same step."""
        randomness = self.group.gather(engine.randomness())
        if self.group.is_first:
            begun = PartialEpoch(len(terms["gradient_norm"]), terms, randomness)
            progress.save(self.checkpoints, engine, begun)
            _log.info("checkpoint before a machine goes", extra={"fields": {"step": begun.steps}})

    def _gather(self, scored: list[ValidationScore]) -> list[ValidationScore]:
        """Return the validation rows of all workers, by id.

        Raises:
            DataError: unless each row of the selection was scored once.
        """
        rows = [row for part in self.group.gather(scored) for row in part]
        expected = count_rows(self.manifest, self._plan("validation").selection)
        if len({row.sample_id for row in rows}) != expected or len(rows) != expected:
            raise DataError(
                f"Validation must see each of {expected} images once, but saw {len(rows)}."
            )
        return sorted(rows, key=lambda row: row.sample_id)

    def _calibrated_model(self, best: BestEpoch, batches: Iterator[Batch]) -> TrainedModel:
        """Return the best epoch's model, calibrated on its own predictions of validation rows."""
        model = TrainedModel(
            config=self.config,
            weights=best.weights,
            fingerprint=self.manifest.fingerprint,
            fold=self.training.fold,
            source_size=self.manifest.image_size,
            epoch=best.epoch,
            temperature=1.0,
            threshold=0.5,
            num_passes=sum(training == self.training for training in self.judges),
        )
        own = Predictor(model, self.device)
        chain = [Predictor(earlier, self.device) for earlier in self._earlier_models()]
        chain += [own] * model.num_passes
        scored: list[ValidationScore] = []
        for batch in batches:
            logits = predict_passes(chain, batch.image)[-1].logit.tolist()
            rows = zip(batch.sample_id, batch.label.tolist(), logits, strict=True)
            scored += [ValidationScore(name, label, math.nan, logit) for name, label, logit in rows]
        tumours = [row for row in self._gather(scored) if row.label != NORMAL]
        logit = np.array([row.logit for row in tumours])
        label = np.array([row.label for row in tumours])
        temperature = fit_temperature(logit, label)
        threshold = find_steady_threshold(calibrate_logits(logit, temperature), label)
        return replace(model, temperature=temperature, threshold=threshold)

    def _earlier_models(self) -> list[TrainedModel]:
        """Return the models of earlier rounds that look at a test image before this model."""
        return [self.run.model(training) for training in self.judges if training != self.training]


def _terms(begun: PartialEpoch, steps: Sequence[StepResult]) -> dict[str, list[float]]:
    """Return the loss terms and the gradient norm at each step of an epoch so far."""
    terms = {f"loss_{name}": [float(step.terms[name]) for step in steps] for name in steps[0].terms}
    terms["gradient_norm"] = [float(step.gradient_norm) for step in steps]
    return {name: [*begun.terms.get(name, ()), *values] for name, values in terms.items()}


class _Clock(Iterator[Batch]):
    """Batches, and the seconds spent waiting for them."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches, self.waited_s = batches, 0.0

    def __next__(self) -> Batch:
        start = time.monotonic()
        try:
            return next(self._batches)
        finally:
            self.waited_s += time.monotonic() - start
