"""What each training process does: one fold, epoch by epoch, from its latest checkpoint."""

import logging
import math
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import ray
import ray.train
import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mtil.circle.inputs import (
    initial_weights,
    own_judges,
    steps_per_epoch,
    training_rows,
)
from mtil.data.dataset.batches import Batch, Plan
from mtil.data.dataset.order import local_batch
from mtil.data.dataset.selection import NORMAL, Role, select, total
from mtil.distributed.data.ingest import (
    resident,
    resident_epoch,
    resident_rows,
    streaming_epochs,
    streaming_rows,
)
from mtil.distributed.runtime.cluster import to_foreground
from mtil.distributed.runtime.gauges import TRAINING, Gauges
from mtil.distributed.training.job import FoldJob
from mtil.errors import DataError
from mtil.metrics import calibrated, fit_temperature, steady_threshold
from mtil.prediction.predictor import Predictor, in_passes
from mtil.process.logs import to_stderr
from mtil.run.checkpoint import Model
from mtil.run.folder import Run
from mtil.run.plan import Train
from mtil.training.engine import Engine, Scored, Step, validation_metrics
from mtil.training.progress import Begun, Best, TrainingProgress
from mtil.training.randomness import of_round

_log = logging.getLogger(__name__)

_VALIDATION_BATCH = 16
_SAY_EVERY_S = 2.0
_LOOK_EVERY = 16
"""Steps after which the processes ask whether a machine of theirs is about to be taken away."""
_SAVE_EVERY_LOOKS = 4
"""After the first such warning a checkpoint is written, and then one after so many looks."""
PREEMPTION_WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
"""Ray Train's switch, which it hands on to its workers."""


@dataclass(frozen=True)
class Place:
    """Where a process stands in the group that trains together."""

    rank: int = 0
    num_workers: int = 1
    report: Callable[[dict[str, Any]], None] = lambda figures: None
    """Takes figures from every process; returns when all have come so far."""
    is_leaving: Callable[[], bool] | None = None
    """Asked by every process: whether a machine of theirs is about to be taken away."""


def train_fold(job: FoldJob) -> None:
    """Train a fold; every process of a group of Ray Train's runs this."""
    context = ray.train.get_context()
    place = Place(
        context.get_world_rank(),
        context.get_world_size(),
        ray.train.report,
        _is_leaving if os.environ.get(PREEMPTION_WATCHER) != "0" else None,
    )
    _Worker(job, place, _reserved_device()).run()


def _reserved_device() -> torch.device:
    """Return the GPU that Ray has given to this process, now the present one; else the CPU."""
    if not ray.get_gpu_ids():
        return torch.device("cpu")
    from ray.train.torch import get_device  # which takes a second, and much memory

    device = get_device()
    torch.cuda.set_device(device)
    return device


def _is_leaving() -> bool:
    return ray.train.get_preemption_info() is not None


def train_alone(job: FoldJob, gpus: float) -> None:
    """Train a fold in the calling process, on its GPU if it has reserved one, or a part of one."""
    _Worker(job, Place(), torch.device("cuda" if gpus else "cpu")).run()


class _Worker:
    def __init__(self, job: FoldJob, place: Place, device: torch.device) -> None:
        to_foreground()
        self.rank, self.num_workers, self.report = place.rank, place.num_workers, place.report
        self.is_leaving = place.is_leaving
        self.device = device
        self.job = job
        self.run_record = Run.open(job.run_uri)
        self.config = self.run_record.config
        if self.device.type == "cpu" and job.num_threads is not None:
            torch.set_num_threads(job.num_threads)
        self.manifest = self.run_record.manifest(job.data_uri)
        self.checkpoints = self.run_record.checkpoints(job.train)
        self.judges = own_judges(self.run_record, job.train)
        of = {"run": job.run_uri, **asdict(job.train)}
        to_stderr(**of, rank=self.rank)
        self.gauges = Gauges(TRAINING, **of) if self.rank == 0 else None
        self.is_unseen = False
        self.plan = self._plan("train")
        self.batch_size = self.config.train.batch_size
        self.local_batch = local_batch(self.batch_size, self.rank, self.num_workers)
        self.hosts = self._everywhere(socket.gethostname())
        self.steps = steps_per_epoch(self.config, self.manifest, job.train)

    def run(self) -> None:
        if self.run_record.result(self.job.train) is not None:
            return  # a process died after the result was written
        engine = self._engine()
        progress = TrainingProgress.load(self.checkpoints, engine)
        validation = self._validation()
        going = self._goes_on(progress.history)
        where = {"epoch": progress.next_epoch, "step": progress.begun.steps}
        _log.info("training", extra={"fields": where | {"workers": self.num_workers}})
        for epoch, batches in self._epochs(progress.next_epoch):
            if not going or progress.has_stalled(self.config.train.patience):
                break
            record = self._train_epoch(engine, progress, epoch, batches)
            scored = self._gather(engine.validate(validation()))
            figures = validation_metrics(scored, self.config.train.dice_weight)
            progress.add(record, figures, engine)
            if self.rank == 0:
                progress.save(self.checkpoints, engine)
                self._show(self.run_record.write_history, progress.history)
                _log.info("epoch done", extra={"fields": progress.history[-1]})
            self.report({"epoch": epoch, **figures})
            going = self._goes_on(progress.history)
        assert progress.best is not None
        model = self._model(progress.best, validation())
        if self.rank == 0:
            self.run_record.write_history(self.job.train, progress.history)
            self.run_record.commit(
                self.job.train,
                model,
                num_epochs=len(progress.history),
                seconds=round(progress.seconds, 3),
                metrics=progress.best.metrics,
            )
        _log.info("trained", extra={"fields": {"best_epoch": progress.best.epoch}})
        self.report({"epoch": progress.next_epoch})  # nobody leaves before the result is there

    def _everywhere(self, host: str) -> list[str]:
        """Return the machines that train together."""
        if self.num_workers == 1:
            return [host]
        hosts = [""] * self.num_workers
        torch.distributed.all_gather_object(hosts, host)
        return sorted(set(hosts))

    def _goes_on(self, history: Sequence[Mapping[str, Any]]) -> bool:
        """Ask whether to train another epoch; every process gets the one answer."""
        if self.job.goes_on is None or not history:
            return True
        answer = [self.job.goes_on(history) if self.rank == 0 else None]
        if self.num_workers > 1:
            torch.distributed.broadcast_object_list(answer)
        return bool(answer[0])

    def _engine(self) -> Engine:
        tumours = [total(self.manifest, self.plan.selection, label) for label in (0, 1)]
        normals = total(self.manifest, self.plan.selection, 2)
        return Engine(
            self.config,
            steps_per_epoch=self.steps,
            malignant_share=tumours[1] / (sum(tumours) + normals),
            device=self.device,
            wrap=self._wrap,
            num_passes=len(self.judges),
            earlier=[model.network() for model in self._earlier()],
            initial=initial_weights(self.run_record, self.job.train),
            share=self.local_batch * self.num_workers / self.batch_size,
            number=self.job.train.round,
        )

    def _wrap(self, module: nn.Module) -> nn.Module:
        if self.num_workers == 1:
            return module
        on_cpu = self.device.type == "cpu"
        return DistributedDataParallel(
            module,
            device_ids=None if on_cpu else [self.device.index],
            # Looking for unused parameters keeps the gradient buckets as they are built. Without
            # it the second step orders them anew, and a resumed run would add in another order.
            find_unused_parameters=on_cpu,
        )

    def _plan(self, role: Role) -> Plan:
        normals = self.config.data.normals
        return Plan(
            manifest=self.manifest,
            selection=(
                training_rows(self.config, self.manifest, self.job.train)
                if role == "train"
                else select(self.manifest, self.job.train.fold, role, normals=normals)
            ),
            seed=of_round(self.config.seed, self.job.train.round),
            rank=self.rank,
            num_workers=self.num_workers,
            shuffle_shards=self.config.data.shuffle_shards,
            batch_size=self.config.train.batch_size,
        )

    def _epochs(self, first: int) -> Iterator[tuple[int, Iterator[Batch]]]:
        epochs = range(first, self.config.train.num_epochs)
        if self.job.held is None:
            yield from zip(
                epochs,
                streaming_epochs(
                    self.job.data_uri, self.plan, epochs, self.local_batch, self.job.priors
                ),
                strict=True,
            )
            return
        rows = resident(self.job.held, self.plan)
        for epoch in epochs:
            yield epoch, resident_epoch(rows, self.plan, epoch, self.local_batch)

    def _validation(self) -> Callable[[], Iterator[Batch]]:
        plan = self._plan("validation")
        if self.job.held is None:
            return lambda: streaming_rows(self.job.data_uri, plan, _VALIDATION_BATCH)
        rows = resident(self.job.held, plan)
        return lambda: resident_rows(rows, plan, _VALIDATION_BATCH)

    def _train_epoch(
        self, engine: Engine, progress: TrainingProgress, epoch: int, batches: Iterator[Batch]
    ) -> dict[str, Any]:
        begun = progress.begun
        clock = _Clock(islice(batches, begun.steps, self.steps))
        steps: list[Step] = []
        started = said = time.monotonic()
        num_warned = 0
        for step in engine.train_epoch(
            clock,
            epoch=epoch,
            rank=self.rank,
            first=begun.steps,
            randomness=self._own_randomness(begun),
        ):
            steps.append(step)
            done = begun.steps + len(steps)
            if self.rank == 0 and time.monotonic() - said > _SAY_EVERY_S:
                said = time.monotonic()
                where = {"epoch": epoch, "step": done, "steps": self.steps, "hosts": self.hosts}
                self._show(self.run_record.write_step, where)
                self._gauge(epoch + done / self.steps, steps, clock.waited, said - started)
            if self.is_leaving and done % _LOOK_EVERY == 0 and done < self.steps:
                num_warned = num_warned + 1 if self.is_leaving() else 0
                if num_warned % _SAVE_EVERY_LOOKS == 1:
                    self._save_within(engine, progress, _terms(begun, steps))
        if begun.steps + len(steps) != self.steps:
            raise DataError(
                f"An epoch must have {self.steps} steps, but the data gave "
                f"{begun.steps + len(steps)}."
            )
        terms = _terms(begun, steps)  # waits until a GPU has done the steps
        seconds = time.monotonic() - started
        self._gauge(epoch + 1, steps, clock.waited, seconds)
        return {
            "epoch": epoch,
            "fold": self.job.train.fold,
            "steps": self.steps,
            "num_workers": self.num_workers,
            **{name: float(np.mean(values)) for name, values in terms.items()},
            **{f"learning_rate_{name}": rate for name, rate in engine.rates().items()},
            "seconds": seconds,
            "images": self.steps * self.batch_size,
            "images_per_second": len(steps) * self.batch_size / seconds,
            "data_wait_share": clock.waited / seconds,
        }

    def _show(self, write: Callable[[Train, Any], None], values: Any) -> None:
        """Write what only shows the progress: its failure ends no training, and is logged once."""
        try:
            write(self.job.train, values)
        except Exception:  # noqa: BLE001
            if not self.is_unseen:
                _log.exception("The progress cannot be written to the run; the training goes on")
            self.is_unseen = True
        else:
            self.is_unseen = False

    def _gauge(self, epoch: float, steps: Sequence[Step], waited: float, seconds: float) -> None:
        if self.gauges is None:
            return
        self.gauges.set(
            images_per_second=len(steps) * self.batch_size / seconds,
            step_seconds=seconds / len(steps),
            data_wait_share=waited / seconds,
            loss=sum(float(term) for term in steps[-1].terms.values()),
            epoch=epoch,
            workers=self.num_workers,
        )

    def _own_randomness(self, begun: Begun) -> dict[str, Tensor] | None:
        """Return where this process stood within an epoch, if as many processes go on."""
        same = len(begun.randomness) == self.num_workers
        return begun.randomness[self.rank] if same else None

    def _save_within(
        self, engine: Engine, progress: TrainingProgress, terms: dict[str, list[float]]
    ) -> None:
        """Commit a checkpoint between two steps; every process is asked to at the same one."""
        randomness = [engine.randomness()]
        if self.num_workers > 1:
            parts: list[Any] = [None] * self.num_workers
            torch.distributed.all_gather_object(parts, randomness[0])
            randomness = parts
        if self.rank == 0:
            begun = Begun(len(terms["gradient_norm"]), terms, randomness)
            progress.save(self.checkpoints, engine, begun)
            _log.info("checkpoint before a machine goes", extra={"fields": {"step": begun.steps}})

    def _gather(self, scored: list[Scored]) -> list[Scored]:
        if self.num_workers > 1:
            parts: list[list[Scored]] = [[] for _ in range(self.num_workers)]
            torch.distributed.all_gather_object(parts, scored)
            scored = [row for part in parts for row in part]
        expected = total(self.manifest, self._plan("validation").selection)
        if len({row.sample_id for row in scored}) != expected or len(scored) != expected:
            raise DataError(
                f"Validation must see each of {expected} images once, but saw {len(scored)}."
            )
        return sorted(scored, key=lambda row: row.sample_id)

    def _model(self, best: Best, batches: Iterator[Batch]) -> Model:
        """Return the best epoch's model, calibrated on what it says of the validation rows."""
        model = Model(
            config=self.config,
            weights=best.weights,
            fingerprint=self.manifest.fingerprint,
            fold=self.job.train.fold,
            source_size=self.manifest.image_size,
            epoch=best.epoch,
            temperature=1.0,
            threshold=0.5,
            num_passes=sum(of == self.job.train for of in self.judges),
        )
        own = Predictor(model, self.device)
        chain = [Predictor(one, self.device) for one in self._earlier()] + [own] * model.num_passes
        seen: list[Scored] = []
        for batch in batches:
            logits = in_passes(chain, batch.image)[-1].logit.tolist()
            rows = zip(batch.sample_id, batch.label.tolist(), logits, strict=True)
            seen += [Scored(name, label, math.nan, logit) for name, label, logit in rows]
        tumours = [row for row in self._gather(seen) if row.label != NORMAL]
        logit = np.array([row.logit for row in tumours])
        label = np.array([row.label for row in tumours])
        temperature = fit_temperature(logit, label)
        threshold = steady_threshold(calibrated(logit, temperature), label)
        return replace(model, temperature=temperature, threshold=threshold)

    def _earlier(self) -> list[Model]:
        """Return the models of earlier rounds that look at a test image before this one's."""
        earlier = [of for of in self.judges if of != self.job.train]
        return [self.run_record.model(of) for of in earlier]


def _terms(begun: Begun, steps: Sequence[Step]) -> dict[str, list[float]]:
    """Return the loss terms and the gradient norm at each step of an epoch so far."""
    here = {f"loss_{name}": [float(step.terms[name]) for step in steps] for name in steps[0].terms}
    here["gradient_norm"] = [float(step.gradient_norm) for step in steps]
    return {name: [*begun.terms.get(name, ()), *values] for name, values in here.items()}


class _Clock(Iterator[Batch]):
    """Batches, and how long they were waited for."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches, self.waited = batches, 0.0

    def __next__(self) -> Batch:
        start = time.monotonic()
        try:
            return next(self._batches)
        finally:
            self.waited += time.monotonic() - start
