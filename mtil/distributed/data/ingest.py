"""Feed batches from shards in object storage to a training worker, through Ray.

Two modes give equal batches. *Resident*: every shard lies in Ray's object store, once per node, and
workers read without a copy. *Streaming*: Ray Data reads every shard when needed.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import chain, islice
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import DataContext, Dataset

from mtil.data.dataset.batches import Batch, EpochPlan
from mtil.data.dataset.epochs import (
    iterate_epoch_shards,
    iterate_streamed_epochs,
    iterate_streamed_rows,
)
from mtil.data.dataset.manifest import Manifest
from mtil.data.dataset.selection import RowSelection
from mtil.distributed.data.readers import measure_reading
from mtil.distributed.runtime.preflight import DATA_TASK_CPUS
from mtil.errors import RunError
from mtil.run.priors import PriorMaps, read_training_table

_MAX_TASKS = 2048
"""Approximate number of shards read by an execution of Ray Data. Further shards are read by further
executions."""

_PREFETCHED_SHARDS = 4

_MEASURED_SHARDS = 2
"""Shards that the training process reads itself, to measure the storage. The first of them also
waits for connections, and does not count if there is a second."""


class ShardReadTask:
    """Ray Data task: takes a shard index, returns all rows or the rows of a selection.

    Joins the maps of the previous round within the reading task.
    """

    def __init__(
        self,
        data_uri: str,
        manifest: Manifest,
        *,
        selection: RowSelection | None = None,
        priors: PriorMaps | None = None,
    ) -> None:
        self.data_uri, self.manifest = data_uri, manifest
        self.selection, self.priors = selection, priors

    def __call__(self, block: pa.Table) -> pa.Table:
        """Read the shard named in the block."""
        (shard_index,) = block.column("id").to_pylist()
        return self.read(shard_index)

    def read(self, shard_index: int) -> pa.Table:
        """Read a shard."""
        table = read_training_table(self.data_uri, self.manifest.shards[shard_index], self.priors)
        if self.selection is None:
            return table
        return table.take(pa.array(self.selection.rows(table)))


def get_resident_tables(refs: Sequence[ray.ObjectRef[Any]], manifest: Manifest) -> list[pa.Table]:
    """Return the resident shard tables from the object store, without a copy.

    Raises:
        RunError: if the number of resident rows differs from the manifest.
    """
    tables: list[pa.Table] = ray.get(list(refs))
    num_rows, expected = sum(table.num_rows for table in tables), manifest.num_rows
    if num_rows != expected:
        raise RunError(f"The object store holds {num_rows} rows instead of {expected}.")
    return tables


def iterate_streaming_epochs(
    data_uri: str,
    plan: EpochPlan,
    epochs: range,
    *,
    first: int = 0,
    priors: PriorMaps | None = None,
) -> Generator[Iterator[Batch], None, None]:
    """Yield an iterator of batches for every epoch, as the rows arrive from storage.

    The first epoch begins at step `first`.

    All epochs share a stream, so shards of the next epoch are prefetched while the current epoch
    trains. Exhaust an epoch before requesting the next.
    """
    task = ShardReadTask(data_uri, plan.manifest, priors=priors)
    shards = chain.from_iterable(iterate_epoch_shards(plan, epochs, first))
    with closing(_iterate_tables(shards, task, plan.num_workers)) as tables:
        yield from iterate_streamed_epochs(tables, plan, epochs, first)


def iterate_streaming_batches(data_uri: str, plan: EpochPlan, batch_size: int) -> Iterator[Batch]:
    """Yield the batches of `iterate_streamed_rows` as they arrive from storage."""
    shards = plan.shards()
    if not shards:
        return
    task = ShardReadTask(data_uri, plan.manifest, selection=plan.selection)
    with closing(_iterate_tables(iter(shards), task, plan.num_workers)) as tables:
        yield from iterate_streamed_rows(tables, plan, batch_size)


def _iterate_tables(
    shards: Iterator[int], task: ShardReadTask, num_workers: int
) -> Generator[pa.Table, None, None]:
    """Yield the tables of shards, in order: the first read here, the others by Ray Data.

    The number of reading tasks follows from this worker's share of the CPUs and from the time that
    the first shards take. Closing the generator stops the reading tasks.
    """
    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    cpus = resources.get("CPU", 1.0) / num_workers
    num_readers = 1
    for shard in islice(shards, _MEASURED_SHARDS):
        table, reading = measure_reading(partial(task.read, shard))
        num_readers = reading.num_readers(cpus)
        yield table
    while part := list(islice(shards, _MAX_TASKS)):
        with closing(_iterate_blocks(_read_shards(part, task, num_readers))) as tables:
            yield from tables


def _iterate_blocks(dataset: Dataset) -> Generator[pa.Table, None, None]:
    """Yield the blocks of a Ray data set."""
    yield from iter(
        dataset.iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=_PREFETCHED_SHARDS
        )
    )


def _read_shards(shards: Sequence[int], task: ShardReadTask, num_readers: int) -> Dataset:
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
        concurrency=min(num_readers, len(shards)),
    )
