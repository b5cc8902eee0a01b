"""The batches of an epoch, from tables in memory or from a stream of tables. No Ray."""

from collections import deque
from collections.abc import Generator, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mtil.data.dataset.batches import Batch, EpochPlan, RowPlace, TableRows, gather_rows
from mtil.data.dataset.order import list_shard_reads
from mtil.errors import RunError


def iterate_resident_epoch(
    rows: TableRows, plan: EpochPlan, epoch: int, first: int = 0
) -> Iterator[Batch]:
    """Yield this worker's batches of an epoch from rows in memory, from step `first` on."""
    for step in plan.order(epoch)[first:]:
        yield rows.gather(rows.map_to_row_numbers(step[:, 0], step[:, 1]))


def iterate_resident_rows(rows: TableRows, plan: EpochPlan, batch_size: int) -> Iterator[Batch]:
    """Yield this worker's batches of a selection from rows in memory.

    The workers together get each row once. A batch holds rows of one shard.
    """
    # Batches must equal the batches of `iterate_streamed_rows`: the source must not change figures.
    starts = [
        (index, start)
        for index, shard in enumerate(plan.manifest.shards)
        for start in range(0, plan.selection.count(shard), batch_size)
    ]
    for index, start in starts[plan.rank :: plan.num_workers]:
        stop = min(start + batch_size, plan.selection.count(plan.manifest.shards[index]))
        picks = np.arange(start, stop)
        yield rows.gather(rows.map_to_row_numbers(np.full_like(picks, index), picks))


def iterate_epoch_shards(plan: EpochPlan, epochs: range, first: int = 0) -> Iterator[list[int]]:
    """Yield the shards that each epoch reads, in reading order.

    Args:
        plan: rows of this worker and row order.
        epochs: indices of the epochs.
        first: first step of the first epoch.
    """
    for epoch in epochs:
        yield list_shard_reads(plan.order(epoch)[first:]).shards.tolist()
        first = 0


def iterate_streamed_epochs(
    tables: Iterator[pa.Table], plan: EpochPlan, epochs: range, first: int = 0
) -> Generator[Iterator[Batch], None, None]:
    """Yield the batches of each epoch from a stream of shard tables.

    The caller must exhaust the batches of an epoch before asking for the next epoch.

    Args:
        tables: the shards of all epochs in reading order, from `iterate_epoch_shards`.
        plan: rows of this worker and row order.
        epochs: indices of the epochs.
        first: first step of the first epoch.

    Raises:
        RunError: if the stream ends early.
    """
    for epoch in epochs:
        yield _stream_steps(tables, plan, plan.order(epoch)[first:])
        first = 0


def iterate_streamed_rows(
    tables: Iterator[pa.Table], plan: EpochPlan, batch_size: int
) -> Generator[Batch, None, None]:
    """Yield the batches of a selection in this worker's shards from a stream.

    Batches equal the batches of `iterate_resident_rows`, but workers divide whole shards.

    Args:
        tables: the selected rows of the shards in the order of `plan.shards()`.
        plan: rows of this worker.
        batch_size: images in a batch; the last batch of a shard may have fewer.

    Raises:
        RunError: if the stream ends early.
    """
    # A batch holds rows of one shard. Neither the source nor the number of workers then changes the
    # rows of a batch.
    for shard in plan.shards():
        rows = TableRows([take_shard(tables, plan.selection.count(plan.manifest.shards[shard]))])
        numbers = rows.all_row_numbers()
        for start in range(0, len(numbers), batch_size):
            yield rows.gather(numbers[start : start + batch_size])


def take_shard(tables: Iterator[pa.Table], num_rows: int) -> pa.Table:
    """Take the rows of one shard from a stream that may split a shard into several tables.

    Raises:
        RunError: if the stream ends early.
    """
    pieces: list[pa.Table] = []
    missing = num_rows
    while missing > 0:
        table = next(tables, None)
        if table is None:
            break
        pieces.append(table)
        missing -= table.num_rows
    if missing:
        raise RunError(
            f"A stream must yield {num_rows} rows of a shard, but yielded {num_rows - missing}."
        )
    return pa.concat_tables(pieces)


def _stream_steps(
    tables: Iterator[pa.Table], plan: EpochPlan, order: npt.NDArray[np.int32]
) -> Iterator[Batch]:
    reads = list_shard_reads(order)
    last_steps = dict(zip(reads.shards.tolist(), reads.last_steps.tolist(), strict=True))
    coming = deque(zip(reads.first_steps.tolist(), reads.shards.tolist(), strict=True))
    held: dict[int, list[RowPlace]] = {}
    for step, picks in enumerate(order):
        while coming and coming[0][0] == step:
            _, shard = coming.popleft()
            held[shard] = _take_selected_rows(tables, plan, shard)
        batch = gather_rows([held[shard][pick] for shard, pick in picks.tolist()])
        # Before the batch is used: shards without a further row would take memory in the meantime.
        held = {shard: rows for shard, rows in held.items() if last_steps[shard] > step}
        yield batch


def _take_selected_rows(tables: Iterator[pa.Table], plan: EpochPlan, shard: int) -> list[RowPlace]:
    rows = TableRows([take_shard(tables, plan.manifest.shards[shard].rows)], plan.selection)
    return rows.locate(rows.all_row_numbers())
