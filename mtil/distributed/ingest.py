"""Shards in object storage to a training worker's batches, through Ray Data.

Two ways, the same batches: *resident* keeps every shard in Ray's object store, once a node, where
workers see it without a copy; *streaming* reads each window of shards when its turn comes.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import DataContext, Dataset

from mtil.data.manifest import Manifest
from mtil.data.order import rows_per_worker
from mtil.data.rows import (
    ROLE_COLUMNS,
    TRAINING_COLUMNS,
    Batch,
    Plan,
    Resident,
    cut,
    read_window,
)
from mtil.data.shards import read
from mtil.distributed.preflight import DATA_TASK_CPUS
from mtil.errors import RunError
from mtil.storage import open_store

_MAX_TASKS = 2048
"""Windows that one execution of Ray Data covers; more follow in another."""


class ReadShard:
    """A task of Ray Data: shard number in, its rows out."""

    def __init__(self, data_uri: str, manifest: Manifest) -> None:
        self.data_uri, self.manifest = data_uri, manifest

    def __call__(self, block: pa.Table) -> pa.Table:
        """Read the one shard that the block names."""
        (number,) = block.column("id").to_pylist()
        columns = (*TRAINING_COLUMNS, *ROLE_COLUMNS)
        return read(
            open_store(self.data_uri), self.manifest.shards[number], columns
        ).combine_chunks()


class ReadSelected:
    """A task of Ray Data: number of one of a worker's shards in, its selected rows out."""

    def __init__(self, data_uri: str, plan: Plan) -> None:
        self.read, self.plan = ReadShard(data_uri, plan.manifest), plan

    def __call__(self, block: pa.Table) -> pa.Table:
        """Read the shard that the block names and keep the selection's rows."""
        (number,) = block.column("id").to_pylist()
        shard = self.plan.rank + number * self.plan.num_workers
        table = self.read(pa.table({"id": [shard]}))
        return table.select(TRAINING_COLUMNS).take(pa.array(self.plan.selection.rows(table)))


class ReadWindow:
    """A task of Ray Data: number of a window in, its rows in order out."""

    def __init__(
        self, data_uri: str, plan: Plan, first_epoch: int, windows_per_epoch: Sequence[int]
    ) -> None:
        self.data_uri, self.plan, self.first_epoch = data_uri, plan, first_epoch
        self.starts = [0, *itertools.accumulate(windows_per_epoch)]

    def __call__(self, block: pa.Table) -> pa.Table:
        """Read the one window that the block names."""
        (number,) = block.column("id").to_pylist()
        epoch = max(e for e, start in enumerate(self.starts) if start <= number)
        window = self.plan.windows(self.first_epoch + epoch)[number - self.starts[epoch]]
        return read_window(open_store(self.data_uri), self.plan, window)


def hold(data_uri: str, manifest: Manifest) -> list[ray.ObjectRef[Any]]:
    """Read every shard once into the object store and return references to its tables, in order.

    Raises:
        DataError: wrapped by Ray, if a shard is missing or not the one that the manifest names.
    """
    dataset = _one_task_each(len(manifest.shards), ReadShard(data_uri, manifest)).materialize()
    refs: list[ray.ObjectRef[Any]] = dataset.to_arrow_refs()
    return refs


def resident(refs: Sequence[ray.ObjectRef[Any]], plan: Plan) -> Resident:
    """Look at held tables as the rows of a plan's selection, without a copy.

    Raises:
        RunError: if the held rows are not those of the manifest.
    """
    rows = pa.concat_tables(ray.get(list(refs)))
    shards = plan.manifest.shards
    if rows.num_rows != plan.manifest.num_rows:
        raise RunError(
            f"The object store must hold {plan.manifest.num_rows} rows, but holds {rows.num_rows}."
        )
    starts = [0, *itertools.accumulate(shard.rows for shard in shards)]
    return Resident(
        [rows.slice(start, shard.rows) for start, shard in zip(starts, shards, strict=False)],
        plan.selection,
    )


def resident_epoch(rows: Resident, plan: Plan, epoch: int, batch_size: int) -> Iterator[Batch]:
    """Yield one epoch's batches from held rows."""
    return rows.batches(rows.ordered(plan.windows(epoch)), batch_size, whole=True)


def streaming_epochs(
    data_uri: str, plan: Plan, epochs: range, batch_size: int
) -> Iterator[Iterator[Batch]]:
    """Yield, for each epoch, its batches as they arrive from storage.

    The windows of all epochs are one stream, so that the next epoch's are read ahead while this
    one's are trained on. Each epoch must be used up before the next is asked for.
    """
    counts = [plan.selection.count(shard) for shard in plan.manifest.shards]
    num_rows = rows_per_worker(counts, plan.num_workers)
    tables = _window_tables(data_uri, plan, epochs)
    for _ in epochs:
        current = _Rows(tables, num_rows)
        yield cut(current, batch_size, whole=True)
        for _ in current:  # what a short epoch left behind
            pass
        tables = current.rest()


def streaming_rows(data_uri: str, plan: Plan, batch_size: int) -> Iterator[Batch]:
    """Yield every row of a selection that is in this worker's shards, once, in their order."""
    mine = len(plan.manifest.shards[plan.rank :: plan.num_workers])
    if not mine:
        return iter(())
    dataset = _one_task_each(mine, ReadSelected(data_uri, plan))
    tables = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)
    return cut(tables, batch_size, whole=False)


def _window_tables(data_uri: str, plan: Plan, epochs: range) -> Iterator[pa.Table]:
    first = epochs.start
    while first < epochs.stop:
        sizes: list[int] = []
        while first + len(sizes) < epochs.stop:
            size = len(plan.windows(first + len(sizes)))
            if sizes and sum(sizes) + size > _MAX_TASKS:
                break
            sizes.append(size)
        dataset = _one_task_each(sum(sizes), ReadWindow(data_uri, plan, first, sizes))
        yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)
        first += len(sizes)


def _one_task_each(num_tasks: int, task: Callable[[pa.Table], pa.Table]) -> Dataset:
    context = DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    options: dict[str, Any] = {
        "batch_size": None,
        "batch_format": "pyarrow",
        "num_cpus": DATA_TASK_CPUS,
    }
    # From items, not from a range: reading a range takes whole CPUs, which workers may not leave.
    numbers = [{"id": number} for number in range(num_tasks)]
    return ray.data.from_items(numbers, override_num_blocks=num_tasks).map_batches(task, **options)


class _Rows(Iterator[pa.Table]):
    """The first `num_rows` rows of a stream of tables; the rest can be had afterwards."""

    def __init__(self, tables: Iterator[pa.Table], num_rows: int) -> None:
        self._tables, self._wanted = tables, num_rows
        self._over: pa.Table | None = None

    def __next__(self) -> pa.Table:
        if not self._wanted:
            raise StopIteration
        table = next(self._tables)
        kept = table.slice(0, self._wanted)
        self._wanted -= kept.num_rows
        if kept.num_rows < table.num_rows:
            self._over = table.slice(kept.num_rows)
        return kept

    def rest(self) -> Iterator[pa.Table]:
        """Return the tables behind the first rows."""
        return self._tables if self._over is None else itertools.chain([self._over], self._tables)
