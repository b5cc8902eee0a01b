"""Feed batches from shards in object storage to a training worker, through Ray.

Two modes give equal batches. *Resident*: every shard lies in Ray's object store, once per node, and
workers read without a copy. *Streaming*: Ray Data reads every shard when needed.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data import DataContext, Dataset

from mtil.data.dataset.batches import Batch, Part, Plan, Rows, cut
from mtil.data.dataset.manifest import Manifest
from mtil.data.dataset.order import Window
from mtil.data.dataset.selection import Selection
from mtil.distributed.data.holding import read_whole
from mtil.distributed.runtime.preflight import DATA_TASK_CPUS
from mtil.errors import RunError
from mtil.run.priors import PriorMaps

_MAX_TASKS = 2048
"""Approximate number of shards read by an execution of Ray Data. Further shards are read by further
executions."""

_PREFETCHED_SHARDS = 4

_READING_TASKS = 3
"""Concurrent reading tasks per stream. More tasks compete for cores, and every task costs a process
start."""


class ReadShard:
    """Ray Data task: takes a shard index, returns all rows or the rows of a selection.

    Joins the maps of the previous round within the reading task.
    """

    def __init__(
        self,
        data_uri: str,
        manifest: Manifest,
        *,
        selection: Selection | None = None,
        priors: PriorMaps | None = None,
    ) -> None:
        self.data_uri, self.manifest = data_uri, manifest
        self.selection, self.priors = selection, priors

    def __call__(self, block: pa.Table) -> pa.Table:
        """Read the shard named in the block."""
        (shard_index,) = block.column("id").to_pylist()
        table = read_whole(self.data_uri, self.manifest.shards[shard_index], self.priors)
        if self.selection is None:
            return table
        return table.take(pa.array(self.selection.rows(table)))


def resident(refs: Sequence[ray.ObjectRef[Any]], plan: Plan) -> Rows:
    """Return a view of resident tables as the rows of a plan's selection, without a copy.

    Raises:
        RunError: if the number of resident rows differs from the manifest.
    """
    tables = ray.get(list(refs))
    num_rows, expected = sum(table.num_rows for table in tables), plan.manifest.num_rows
    if num_rows != expected:
        raise RunError(f"The object store holds {num_rows} rows instead of {expected}.")
    return Rows(tables, plan.selection)


def resident_epoch(rows: Rows, plan: Plan, epoch: int, batch_size: int) -> Iterator[Batch]:
    """Yield the batches of an epoch from resident rows."""
    windows = plan.windows(epoch)
    parts = ((rows, rows.picked(w.shards[w.picks[:, 0]], w.picks[:, 1])) for w in windows)
    return cut(parts, batch_size, whole=True)


def streaming_epochs(
    data_uri: str, plan: Plan, epochs: range, batch_size: int, priors: PriorMaps | None = None
) -> Generator[Iterator[Batch], None, None]:
    """Yield an iterator of batches for every epoch, as the rows arrive from storage.

    All epochs share a stream, so shards of the next epoch are prefetched while the current epoch
    trains. Exhaust an epoch before requesting the next.
    """
    task = ReadShard(data_uri, plan.manifest, priors=priors)
    with closing(_shard_tables(task, plan, epochs)) as tables:
        for epoch in epochs:
            parts = _window_parts(tables, plan, plan.windows(epoch))
            yield cut(parts, batch_size, whole=True)
            # Skip shards left unread by the epoch: the next epoch must start at its first shard.
            for _ in parts:
                pass


def resident_rows(rows: Rows, plan: Plan, batch_size: int) -> Iterator[Batch]:
    """Yield the worker's share of a selection's batches from resident rows, without repetition."""
    starts = [
        (index, start)
        for index, shard in enumerate(plan.manifest.shards)
        for start in range(0, plan.selection.count(shard), batch_size)
    ]
    for index, start in starts[plan.rank :: plan.num_workers]:
        stop = min(start + batch_size, plan.selection.count(plan.manifest.shards[index]))
        picks = np.arange(start, stop)
        yield rows.gather(rows.picked(np.full_like(picks, index), picks))


def streaming_rows(data_uri: str, plan: Plan, batch_size: int) -> Iterator[Batch]:
    """Yield the batches of a selection from the worker's own shards, without repetition.

    The batches equal those of `resident_rows`: a batch holds rows of a single shard, so neither
    mode nor worker count changes the rows that the network sees together.
    """
    own_shards = plan.shards()
    if not own_shards:
        return
    task = ReadShard(data_uri, plan.manifest, selection=plan.selection)
    with closing(_iterate_blocks(_read_shards(own_shards, task))) as tables:
        for shard in own_shards:
            rows = Rows([_take_shard(tables, plan.selection.count(plan.manifest.shards[shard]))])
            yield from cut([(rows, rows.everything())], batch_size, whole=False)


def _window_parts(
    tables: Iterator[pa.Table], plan: Plan, windows: Sequence[Window]
) -> Iterator[Part]:
    for window in windows:
        shards = [_take_shard(tables, plan.manifest.shards[shard].rows) for shard in window.shards]
        rows = Rows(shards, plan.selection)
        yield rows, rows.picked(window.picks[:, 0], window.picks[:, 1])


def _shard_tables(task: ReadShard, plan: Plan, epochs: range) -> Generator[pa.Table, None, None]:
    """Yield the tables of all shards of all windows of the epochs as one stream."""
    pending: list[int] = []
    for epoch in epochs:
        pending += [int(shard) for window in plan.windows(epoch) for shard in window.shards]
        if len(pending) >= _MAX_TASKS or epoch == epochs[-1]:
            yield from _iterate_blocks(_read_shards(pending, task))
            pending = []


def _take_shard(tables: Iterator[pa.Table], num_rows: int) -> pa.Table:
    """Join the blocks of the next shard in a stream: Ray may split a shard into several blocks."""
    blocks: list[pa.Table] = []
    missing_rows = num_rows
    while missing_rows > 0:
        table = next(tables, None)
        if table is None:
            break
        blocks.append(table)
        missing_rows -= table.num_rows
    if missing_rows:
        raise RunError(
            f"Ray Data delivered {num_rows - missing_rows} of {num_rows} rows of a shard."
        )
    return pa.concat_tables(blocks)


def _iterate_blocks(dataset: Dataset) -> Generator[pa.Table, None, None]:
    """Yield the blocks of a Ray data set. Closing the generator stops the reading tasks."""
    yield from iter(
        dataset.iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=_PREFETCHED_SHARDS
        )
    )


def _read_shards(shards: Sequence[int], task: ReadShard) -> Dataset:
    context = DataContext.get_current()
    # The order of shards is part of the epoch: seed and epoch determine every batch.
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # `from_items` instead of `range`: the read tasks of a range reserve whole CPUs, and the workers
    # may leave less.
    items = [{"id": shard} for shard in shards]
    return ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        task,
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=DATA_TASK_CPUS,
        concurrency=_READING_TASKS,
    )
