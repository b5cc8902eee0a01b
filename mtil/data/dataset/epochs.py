"""The batches of an epoch, from tables in memory or from a stream of them. No Ray."""

from collections.abc import Generator, Iterator, Sequence

import numpy as np
import pyarrow as pa

from mtil.data.dataset.batches import Batch, EpochPlan, RowSlice, TableRows, cut_batches
from mtil.data.dataset.order import ShuffleWindow
from mtil.errors import RunError


def iterate_resident_epoch(
    rows: TableRows, plan: EpochPlan, epoch: int, batch_size: int
) -> Iterator[Batch]:
    """Yield one epoch's batches from rows in memory."""
    windows = plan.windows(epoch)
    parts = (
        (rows, rows.map_to_row_numbers(w.shards[w.picks[:, 0]], w.picks[:, 1])) for w in windows
    )
    return cut_batches(parts, batch_size, whole=True)


def iterate_resident_rows(rows: TableRows, plan: EpochPlan, batch_size: int) -> Iterator[Batch]:
    """Yield this worker's batches of a selection from rows in memory.

    The workers together see each row once.
    """
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

    The caller must use up an epoch's batches before the caller asks for the next epoch.

    Args:
        tables: the shards of all epochs, each epoch's as `shards_of` lists them.
        plan: the worker's rows and their order.
        epochs: which epochs.
        batch_size: images of this worker in a batch.

    Raises:
        RunError: if the stream ends early.
    """
    for epoch in epochs:
        parts = _parts(tables, plan, plan.windows(epoch))
        yield cut_batches(parts, batch_size, whole=True)
        for _ in parts:  # the rows that fill no batch still have to leave the stream
            pass


def iterate_streamed_rows(
    tables: Iterator[pa.Table], plan: EpochPlan, batch_size: int
) -> Generator[Batch, None, None]:
    """Yield the batches of `resident_rows` that lie in this worker's shards, from a stream.

    A batch holds rows of one shard, so that neither the source nor the number of workers decides
    which rows the network sees together.

    Args:
        tables: the selected rows of each shard of `plan.shards()`, in that order.
        plan: the worker's rows.
        batch_size: images in a batch; a shard's last batch may have fewer.

    Raises:
        RunError: if the stream ends early.
    """
    for shard in plan.shards():
        rows = TableRows([take_shard(tables, plan.selection.count(plan.manifest.shards[shard]))])
        yield from cut_batches([(rows, rows.all_row_numbers())], batch_size, whole=False)


def take_shard(tables: Iterator[pa.Table], num_rows: int) -> pa.Table:
    """Take one shard's rows from a stream, which may deliver a shard in several tables.

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
            f"A stream must deliver the {num_rows} rows of a shard, but gave {num_rows - missing}."
        )
    return pa.concat_tables(pieces)


def _parts(
    tables: Iterator[pa.Table], plan: EpochPlan, windows: Sequence[ShuffleWindow]
) -> Iterator[RowSlice]:
    for window in windows:
        shards = [take_shard(tables, plan.manifest.shards[shard].rows) for shard in window.shards]
        rows = TableRows(shards, plan.selection)
        yield rows, rows.map_to_row_numbers(window.picks[:, 0], window.picks[:, 1])
