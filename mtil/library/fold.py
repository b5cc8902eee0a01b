"""The training loop of one fold, from the latest checkpoint to the committed model. No Ray.

Ray workers and `mtil train --local` run the same loop, so both write the same files.
"""

import logging
import math
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

from mtil.circle.inputs import (
    count_steps_per_epoch,
    list_own_test_models,
    load_initial_weights,
    make_source_weights,
    select_training_rows,
)
from mtil.config import Config
from mtil.data.dataset.batches import Batch, EpochPlan
from mtil.data.dataset.manifest import Manifest
from mtil.data.dataset.selection import NORMAL, Role, count_rows, select_rows
from mtil.errors import DataError
from mtil.library.calibration import (
    ValidationPrediction,
    calibrate_model,
    predict_validation,
)
from mtil.library.samples import Samples
from mtil.models.devices import describe_device
from mtil.models.memory import explain_lack_of_memory
from mtil.prediction.predictor import Predictor
from mtil.run.checkpoint import TrainedModel
from mtil.run.folder import Run
from mtil.run.plan import Train
from mtil.run.teacher import read_teacher_outputs
from mtil.training.engine import StepResult, TrainingEngine, ValidationScore, summarise_validation
from mtil.training.group import Group
from mtil.training.progress import BestEpoch, PartialEpoch, TrainingProgress
from mtil.training.randomness import derive_round_seed

History = Sequence[Mapping[str, Any]]
Row = TypeVar("Row", ValidationScore, ValidationPrediction)

_log = logging.getLogger(__name__)

_VALIDATION_BATCH = 16
_STEP_INTERVAL_S = 2.0
"""Seconds between two writes of `step.json`."""
_PREEMPTION_CHECK_STEPS = 16
"""Steps between two checks for a preemption warning."""
_PREEMPTION_SAVE_CHECKS = 4
"""Checks between two checkpoints while a warning lasts; the first warning saves at once."""


class FoldTraining:
    """Train the model of one fold, or an inner model, as one worker of a group."""

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
        """Select the rows and check that the rows fill a batch.

        Args:
            run: holds configuration, checkpoints and results.
            training: round, fold and part.
            manifest: manifest of the data-set version used by the run.
            samples: source of the batches.
            device: device of this process.
            group: the workers of the training; by default this process alone.
            should_continue: called on rank 0 with the history after each epoch. False ends the
                training and commits the best epoch so far.
            set_gauges: called on rank 0 with figures of the current epoch as keyword arguments.

        Raises:
            DataError: if the training has no rows, or too few for one batch.
        """
        self.run, self.training, self.manifest = run, training, manifest
        self.samples, self.device = samples, device
        self.group = group or Group()
        self.should_continue, self.set_gauges = should_continue, set_gauges
        self.config = run.config
        self.checkpoints = run.checkpoints(training)
        self.pass_trainings = list_own_test_models(run, training)
        self.has_write_failed = False
        self.plan = self._make_plan("train")
        self.batch_size = self.config.train.batch_size
        self.hosts = sorted(set(self.group.gather(socket.gethostname())))
        self.hardware = Counter(self.group.gather(describe_device(device)))
        self.steps = count_steps_per_epoch(self.config, manifest, training)

    def finish(self) -> None:
        """Train to the last epoch, or until the score stalls, then commit the best model.

        Do nothing if the training has a result.

        Raises:
            DataError: if the samples differ from the rows of the plan.
            CheckpointError: if the latest checkpoint is damaged or of another training.
            OutOfMemoryError: if the memory is too small for the network and a step's images.
        """
        # A worker may die after the result is written, and Ray then restarts the group.
        if self.run.result(self.training) is None:
            with explain_lack_of_memory(self.device, *_describe_memory(self.config)):
                self._train()

    def _train(self) -> None:
        engine = self._make_engine()
        progress = TrainingProgress.load(self.checkpoints, engine)
        validation = self.samples.validation(self._make_plan("validation"), _VALIDATION_BATCH)
        is_continuing = self._decide_to_continue(progress.history)
        position = {"epoch": progress.next_epoch, "step": progress.partial.steps}
        _log.info("training", extra={"fields": position | {"workers": self.group.num_workers}})
        epochs = range(progress.next_epoch, self.config.train.num_epochs)
        first = progress.partial.steps
        for epoch, batches in self.samples.epochs(self.plan, epochs, first):
            if not is_continuing or progress.has_stalled(self.config.train.patience):
                break
            record = self._train_epoch(engine, progress, epoch, batches)
            scored = self._gather_rows(engine.validate(validation()))
            figures = summarise_validation(scored, self.config.train.dice_weight)
            progress.add(record, figures, engine)
            if self.group.is_first:
                progress.save(self.checkpoints, engine)
                self._write_progress(self.run.write_history, progress.history)
                _log.info("epoch done", extra={"fields": progress.history[-1]})
            self.group.report({"epoch": epoch, **figures})
            is_continuing = self._decide_to_continue(progress.history)
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
                hardware=dict(self.hardware),
            )
        _log.info("trained", extra={"fields": {"best_epoch": progress.best.epoch}})
        # Every worker waits here: none may exit before the result is written.
        self.group.report({"epoch": progress.next_epoch})

    def _decide_to_continue(self, history: History) -> bool:
        """Return rank 0's decision whether to train another epoch."""
        should_continue = self.should_continue
        if should_continue is None or not history:
            return True
        # Rank 0 decides for all workers: workers in disagreement would wait forever.
        return bool(self.group.from_first(lambda: should_continue(history)))

    def _make_engine(self) -> TrainingEngine:
        tumours = [count_rows(self.manifest, self.plan.selection, label) for label in (0, 1)]
        return TrainingEngine(
            self.config,
            steps_per_epoch=self.steps,
            malignant_share=tumours[1] / (sum(tumours) + self._num_normals()),
            device=self.device,
            group=self.group,
            num_passes=len(self.pass_trainings),
            earlier=[model.network() for model in self._earlier_models()],
            initial=load_initial_weights(self.run, self.training),
            number=self.training.round,
            weights=make_source_weights(self.config, self.manifest),
            teacher=(
                read_teacher_outputs(self.run, self.training.fold)
                if self.config.loss.teacher
                else None
            ),
        )

    def _make_plan(self, role: Role) -> EpochPlan:
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
            batch_size=self.config.train.batch_size,
            num_micro_batches=self.config.train.num_micro_batches,
            streams=self.config.data.streams,
            shuffle_shards=self.config.data.shuffle_shards,
        )

    def _train_epoch(
        self,
        engine: TrainingEngine,
        progress: TrainingProgress,
        epoch: int,
        batches: Iterator[Batch],
    ) -> dict[str, Any]:
        """Train one epoch, or the rest of a partial epoch. Return the record for the history."""
        partial = progress.partial
        timed_batches = _TimedBatches(batches)
        steps: list[StepResult] = []
        start = last_write = time.monotonic()
        num_warnings = 0
        for step in engine.train_epoch(timed_batches, epoch=epoch, first=partial.steps):
            steps.append(step)
            done = partial.steps + len(steps)
            if self.group.is_first and time.monotonic() - last_write > _STEP_INTERVAL_S:
                last_write = time.monotonic()
                position = {"epoch": epoch, "step": done, "steps": self.steps, "hosts": self.hosts}
                self._write_progress(self.run.write_step, position)
                self._report_gauges(
                    epoch + done / self.steps, steps, timed_batches.waited_s, last_write - start
                )
            is_preempted = self.group.is_leaving
            # Not after the last step: the checkpoint after the epoch follows.
            if is_preempted and done % _PREEMPTION_CHECK_STEPS == 0 and done < self.steps:
                num_warnings = num_warnings + 1 if is_preempted() else 0
                if num_warnings % _PREEMPTION_SAVE_CHECKS == 1:
                    self._save_within_epoch(engine, progress, _join_terms(partial, steps))
        num_steps = partial.steps + len(steps)
        if num_steps != self.steps:
            raise DataError(
                f"An epoch must have {self.steps} steps, but the data set yielded {num_steps}."
            )
        # Reading the losses waits for the GPU, so the time below covers all steps.
        terms = _join_terms(partial, steps)
        seconds = time.monotonic() - start
        self._report_gauges(epoch + 1, steps, timed_batches.waited_s, seconds)
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
            "data_wait_share": timed_batches.waited_s / seconds,
        }

    def _write_progress(self, write: Callable[[Train, Any], None], values: Any) -> None:
        """Write progress into the run. A failure does not end the training.

        Repeated failures are logged once.
        """
        try:
            write(self.training, values)
        except Exception:  # noqa: BLE001
            if not self.has_write_failed:
                _log.exception("Cannot write the progress to the run. The training continues.")
            self.has_write_failed = True
        else:
            self.has_write_failed = False

    def _report_gauges(
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

    def _save_within_epoch(
        self, engine: TrainingEngine, progress: TrainingProgress, terms: dict[str, list[float]]
    ) -> None:
        """Commit a checkpoint between two steps, on rank 0."""
        if self.group.is_first:
            partial = PartialEpoch(len(terms["gradient_norm"]), terms)
            progress.save(self.checkpoints, engine, partial)
            _log.info("checkpoint before a machine goes", extra={"fields": {"step": partial.steps}})

    def _gather_rows(self, scored: list[Row]) -> list[Row]:
        """Return the inner validation rows of all workers, sorted by sample id.

        Raises:
            DataError: unless every validation row was scored exactly once.
        """
        rows = [row for part in self.group.gather(scored) for row in part]
        expected = count_rows(self.manifest, self._make_plan("validation").selection)
        if len({row.sample_id for row in rows}) != expected or len(rows) != expected:
            raise DataError(
                f"Validation must score each of {expected} images once, but scored {len(rows)}."
            )
        # Sorted, so sums do not depend on which worker scored a row.
        return sorted(rows, key=lambda row: row.sample_id)

    def _calibrated_model(self, best: BestEpoch, batches: Iterator[Batch]) -> TrainedModel:
        """Return the model of the best epoch, calibrated on the validation rows."""
        model = TrainedModel(
            config=self.config,
            weights=best.weights,
            fingerprint=self.manifest.fingerprint,
            fold=self.training.fold,
            source_size=self.manifest.image_size,
            epoch=best.epoch,
            temperature=1.0,
            threshold=0.5,
            num_passes=sum(training == self.training for training in self.pass_trainings),
        )
        own = Predictor(model, self.device)
        chain = [Predictor(earlier, self.device) for earlier in self._earlier_models()]
        chain += [own] * model.num_passes
        rows = self._gather_rows(list(predict_validation(chain, batches)))
        knows_normals = self.config.loss.presence > 0 and self._num_normals() > 0
        return calibrate_model(model, rows, knows_normals=knows_normals)

    def _num_normals(self) -> int:
        """Return the number of training images without a lesion."""
        return count_rows(self.manifest, self.plan.selection, NORMAL)

    def _earlier_models(self) -> list[TrainedModel]:
        """Return the models of earlier rounds, which do the first passes over an image."""
        return [
            self.run.model(training)
            for training in self.pass_trainings
            if training != self.training
        ]


def _join_terms(partial: PartialEpoch, steps: Sequence[StepResult]) -> dict[str, list[float]]:
    """Return loss terms and gradient norm by name, a value per step since the epoch began."""
    terms = {f"loss_{name}": [float(step.terms[name]) for step in steps] for name in steps[0].terms}
    terms["gradient_norm"] = [float(step.gradient_norm) for step in steps]
    return {name: [*partial.terms.get(name, ()), *values] for name, values in terms.items()}


def _describe_memory(config: Config) -> tuple[str, str]:
    """Return the use of the memory, and ways to need less, as parts of a sentence."""
    train, side = config.train, config.data.image_size
    num_images = math.ceil(train.batch_size / train.num_micro_batches)
    ways = []
    if num_images > train.num_workers:
        ways.append(f"`train.micro_batch_size` {max(num_images // 2, train.num_workers)}")
    if 0 < train.gpus_per_worker < 1:
        ways.append(f"`train.gpus_per_worker` above {train.gpus_per_worker:g}")
    ways.append(f"`data.image_size` below {side}")
    images = f"{num_images} image{'s' * (num_images > 1)}"
    purpose = f"for a forward pass over {images} of {side} pixels"
    return purpose, f"begin a new run with {' or '.join(ways)}"


class _TimedBatches(Iterator[Batch]):
    """An iterator of batches that sums the seconds spent waiting for batches."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches, self.waited_s = batches, 0.0

    def __next__(self) -> Batch:
        start = time.monotonic()
        try:
            return next(self._batches)
        finally:
            self.waited_s += time.monotonic() - start
