"""Shards in object storage to a training worker's batches, through Ray.

Two ways, the same batches: *resident* keeps every shard in Ray's object store, once a node, where
workers see it without a copy; *streaming* has Ray Data read each shard when its turn comes.
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
"""Shards that one execution of Ray Data reads, about; more follow in another."""

_PREFETCHED_SHARDS = 4

_READING_TASKS = 3
"""Shards that are read at a time for one stream: more take the cores from each other, and each
is a process that has to start."""


class ReadShard:
    """A task of Ray Data: number of a shard in, its rows out, whole or those of a selection.

    The maps of the round before join their rows here, within the task that reads the shard.
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
        """Read the one shard that the block names."""
        (number,) = block.column("id").to_pylist()
        table = read_whole(self.data_uri, self.manifest.shards[number], self.priors)
        if self.selection is None:
            return table
        return table.take(pa.array(self.selection.rows(table)))


def resident(refs: Sequence[ray.ObjectRef[Any]], plan: Plan) -> Rows:
    """Look at held tables as the rows of a plan's selection, without a copy.

    Raises:
        RunError: if the held rows are not those of the manifest.
    """
    tables = ray.get(list(refs))
    held, wanted = sum(table.num_rows for table in tables), plan.manifest.num_rows
    if held != wanted:
        raise RunError(f"The object store must hold {wanted} rows, but holds {held}.")
    return Rows(tables, plan.selection)


def resident_epoch(rows: Rows, plan: Plan, epoch: int, batch_size: int) -> Iterator[Batch]:
    """Yield one epoch's batches from held rows."""
    windows = plan.windows(epoch)
    parts = ((rows, rows.picked(w.shards[w.picks[:, 0]], w.picks[:, 1])) for w in windows)
    return cut(parts, batch_size, whole=True)


def streaming_epochs(
    data_uri: str, plan: Plan, epochs: range, batch_size: int, priors: PriorMaps | None = None
) -> Generator[Iterator[Batch], None, None]:
    """Yield, for each epoch, its batches as they arrive from storage.

    The shards of all epochs are one stream, so that the next epoch's are read ahead while this
    one's are trained on. Each epoch must be used up before the next is asked for.
    """
    task = ReadShard(data_uri, plan.manifest, priors=priors)
    with closing(_shard_tables(task, plan, epochs)) as tables:
        for epoch in epochs:
            parts = _parts(tables, plan, plan.windows(epoch))
            yield cut(parts, batch_size, whole=True)
            for _ in parts:  # what a short epoch left behind
                pass


def resident_rows(rows: Rows, plan: Plan, batch_size: int) -> Iterator[Batch]:
    """Yield this worker's share of a selection's batches from held rows, each row once in all."""
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
    """Yield the batches of a selection that lie in this worker's shards, each row once in all.

    They are those of `resident_rows`: a batch holds rows of one shard, so that neither the way nor
    the number of workers decides which rows a network sees together.
    """
    mine = plan.shards()
    if not mine:
        return
    task = ReadShard(data_uri, plan.manifest, selection=plan.selection)
    with closing(_blocks(_one_task_each(mine, task))) as tables:
        for shard in mine:
            rows = Rows([_whole(tables, plan.selection.count(plan.manifest.shards[shard]))])
            yield from cut([(rows, rows.everything())], batch_size, whole=False)


def _parts(tables: Iterator[pa.Table], plan: Plan, windows: Sequence[Window]) -> Iterator[Part]:
    for window in windows:
        shards = [_whole(tables, plan.manifest.shards[shard].rows) for shard in window.shards]
        rows = Rows(shards, plan.selection)
        yield rows, rows.picked(window.picks[:, 0], window.picks[:, 1])


def _shard_tables(task: ReadShard, plan: Plan, epochs: range) -> Generator[pa.Table, None, None]:
    """Yield the tables of every shard of every window of the epochs, one stream."""
    waiting: list[int] = []
    for epoch in epochs:
        waiting += [int(shard) for window in plan.windows(epoch) for shard in window.shards]
        if len(waiting) >= _MAX_TASKS or epoch == epochs[-1]:
            yield from _blocks(_one_task_each(waiting, task))
            waiting = []


def _whole(tables: Iterator[pa.Table], num_rows: int) -> pa.Table:
    """Take a shard off a stream of tables; Ray may have handed it over in several blocks."""
    found: list[pa.Table] = []
    missing = num_rows
    while missing > 0:
        table = next(tables, None)
        if table is None:
            break
        found.append(table)
        missing -= table.num_rows
    if missing:
        raise RunError(
            f"Ray Data must hand over a shard's {num_rows} rows, but gave {num_rows - missing}."
        )
    return pa.concat_tables(found)


def _blocks(dataset: Dataset) -> Generator[pa.Table, None, None]:
    """Yield a data set's blocks; when this is closed, so is what reads them."""
    yield from iter(
        dataset.iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=_PREFETCHED_SHARDS
        )
    )


def _one_task_each(shards: Sequence[int], task: ReadShard) -> Dataset:
    context = DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # From items, not from a range: reading a range takes whole CPUs, which workers may not leave.
    numbers = [{"id": shard} for shard in shards]
    return ray.data.from_items(numbers, override_num_blocks=len(numbers)).map_batches(
        task,
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=DATA_TASK_CPUS,
        concurrency=_READING_TASKS,
    )
