"""Shards in object storage to a training worker's batches, through Ray.

Two ways, the same batches: *resident* keeps every shard in Ray's object store, once a node, where
workers see it without a copy; *streaming* has Ray Data read each shard when its turn comes.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import DataContext, Dataset

from mtil.data.dataset.batches import Batch, Plan
from mtil.data.dataset.epochs import shards_of, streamed_epochs, streamed_rows
from mtil.data.dataset.manifest import Manifest
from mtil.data.dataset.selection import Selection
from mtil.distributed.runtime.preflight import DATA_TASK_CPUS
from mtil.errors import RunError
from mtil.run.priors import PriorMaps, read_with_priors

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
        table = read_with_priors(self.data_uri, self.manifest.shards[number], self.priors)
        if self.selection is None:
            return table
        return table.take(pa.array(self.selection.rows(table)))


def held_tables(refs: Sequence[ray.ObjectRef[Any]], manifest: Manifest) -> list[pa.Table]:
    """Return the shard tables that the object store holds, without a copy.

    Raises:
        RunError: if the tables do not have the manifest's number of rows.
    """
    tables: list[pa.Table] = ray.get(list(refs))
    num_held, num_rows = sum(table.num_rows for table in tables), manifest.num_rows
    if num_held != num_rows:
        raise RunError(f"The object store must hold {num_rows} rows, but holds {num_held}.")
    return tables


def streaming_epochs(
    data_uri: str, plan: Plan, epochs: range, batch_size: int, priors: PriorMaps | None = None
) -> Generator[Iterator[Batch], None, None]:
    """Yield, for each epoch, its batches as they arrive from storage.

    The shards of all epochs are one stream, so that the next epoch's are read ahead while this
    one's are trained on. Each epoch must be used up before the next is asked for.
    """
    task = ReadShard(data_uri, plan.manifest, priors=priors)
    with closing(_shard_tables(task, plan, epochs)) as tables:
        yield from streamed_epochs(tables, plan, epochs, batch_size)


def streaming_rows(data_uri: str, plan: Plan, batch_size: int) -> Iterator[Batch]:
    """Yield the batches of `streamed_rows` as they arrive from storage."""
    shards = plan.shards()
    if not shards:
        return
    task = ReadShard(data_uri, plan.manifest, selection=plan.selection)
    with closing(_blocks(_one_task_each(shards, task))) as tables:
        yield from streamed_rows(tables, plan, batch_size)


def _shard_tables(task: ReadShard, plan: Plan, epochs: range) -> Generator[pa.Table, None, None]:
    """Yield the tables of every shard of every window of the epochs, one stream."""
    waiting: list[int] = []
    for epoch in epochs:
        waiting += shards_of(plan, epoch)
        if len(waiting) >= _MAX_TASKS or epoch == epochs[-1]:
            yield from _blocks(_one_task_each(waiting, task))
            waiting = []


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
