"""The batches of an epoch, from tables in memory or from a stream of tables. No Ray."""

from collections.abc import Generator, Iterator, Sequence

import numpy as np
import pyarrow as pa

from mtil.data.dataset.batches import Batch, EpochPlan, RowSlice, TableRows, cut_batches
from mtil.data.dataset.order import ShuffleWindow
from mtil.errors import RunError


def iterate_resident_epoch(
    rows: TableRows, plan: EpochPlan, epoch: int, batch_size: int
) -> Iterator[Batch]:
    """Yield this worker's batches of an epoch from rows in memory."""
    windows = plan.windows(epoch)
    parts = (
        (rows, rows.map_to_row_numbers(window.shards[window.picks[:, 0]], window.picks[:, 1]))
        for window in windows
    )
    return cut_batches(parts, batch_size, whole=True)


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


def list_epoch_shards(plan: EpochPlan, epoch: int) -> list[int]:
    """Return the indices of the shards that an epoch reads, in reading order."""
    return [int(shard) for window in plan.windows(epoch) for shard in window.shards]


def iterate_streamed_epochs(
    tables: Iterator[pa.Table], plan: EpochPlan, epochs: range, batch_size: int
) -> Generator[Iterator[Batch], None, None]:
    """Yield the batches of each epoch from a stream of shard tables.

    The caller must exhaust the batches of an epoch before asking for the next epoch.

    Args:
        tables: the shards of all epochs in reading order, from `list_epoch_shards`.
        plan: rows of this worker and row order.
        epochs: indices of the epochs.
        batch_size: images of this worker in a batch.

    Raises:
        RunError: if the stream ends early.
    """
    for epoch in epochs:
        parts = _take_windows(tables, plan, plan.windows(epoch))
        yield cut_batches(parts, batch_size, whole=True)
        # Rows that fill no batch must leave the stream before the next epoch reads.
        for _ in parts:
            pass


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
        yield from cut_batches([(rows, rows.all_row_numbers())], batch_size, whole=False)


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


def _take_windows(
    tables: Iterator[pa.Table], plan: EpochPlan, windows: Sequence[ShuffleWindow]
) -> Iterator[RowSlice]:
    for window in windows:
        shards = [take_shard(tables, plan.manifest.shards[shard].rows) for shard in window.shards]
        rows = TableRows(shards, plan.selection)
        yield rows, rows.map_to_row_numbers(window.picks[:, 0], window.picks[:, 1])
