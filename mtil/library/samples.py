"""Where a training's batches come from: a protocol, and two sources that need no Ray."""

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Protocol

import pyarrow as pa

from mtil.config import DataConfig
from mtil.data.dataset.batches import Batch, EpochPlan, TableRows
from mtil.data.dataset.epochs import (
    iterate_resident_epoch,
    iterate_resident_rows,
    iterate_streamed_epochs,
    iterate_streamed_rows,
    list_epoch_shards,
)
from mtil.data.dataset.manifest import Manifest
from mtil.data.dataset.shards import row_bytes
from mtil.run.priors import PriorMaps, read_training_table

Epochs = Iterator[tuple[int, Iterator[Batch]]]


class Samples(Protocol):
    """A source of batches. Every source yields the same batches for the same plan."""

    def epochs(self, plan: EpochPlan, epochs: range, batch_size: int) -> Epochs:
        """Yield each epoch's index and its batches.

        Args:
            plan: this worker's training rows and their order.
            epochs: which epochs.
            batch_size: images of this worker in a batch.
        """

    def validation(self, plan: EpochPlan, batch_size: int) -> Callable[[], Iterator[Batch]]:
        """Return a function whose calls yield this worker's validation rows, each time anew."""


def fits_in_memory(manifest: Manifest, config: DataConfig) -> bool:
    """Say whether training keeps the data set in memory, by `data.mode` and `data.resident_gib`."""
    size_gib = manifest.num_rows * row_bytes(manifest.image_size) / 2**30
    if config.mode == "auto":
        return size_gib <= config.resident_gib
    return config.mode == "resident"


class ResidentSamples:
    """Tables of all shards, in memory."""

    def __init__(self, tables: Sequence[pa.Table]) -> None:
        """Take the tables of the data set's shards, in the manifest's order."""
        self._tables = tables

    def epochs(self, plan: EpochPlan, epochs: range, batch_size: int) -> Epochs:
        """See `Samples.epochs`."""
        rows = TableRows(self._tables, plan.selection)
        for epoch in epochs:
            yield epoch, iterate_resident_epoch(rows, plan, epoch, batch_size)

    def validation(self, plan: EpochPlan, batch_size: int) -> Callable[[], Iterator[Batch]]:
        """See `Samples.validation`."""
        rows = TableRows(self._tables, plan.selection)
        return lambda: iterate_resident_rows(rows, plan, batch_size)


class StoredSamples:
    """Shards read from storage again in each epoch, one ahead of the training."""

    def __init__(self, data_uri: str, priors: PriorMaps | None = None) -> None:
        self._data_uri, self._priors = data_uri, priors

    def epochs(self, plan: EpochPlan, epochs: range, batch_size: int) -> Epochs:
        """See `Samples.epochs`."""
        shards = (shard for epoch in epochs for shard in list_epoch_shards(plan, epoch))
        with closing(self._tables(plan, shards)) as tables:
            yield from zip(
                epochs, iterate_streamed_epochs(tables, plan, epochs, batch_size), strict=True
            )

    def validation(self, plan: EpochPlan, batch_size: int) -> Callable[[], Iterator[Batch]]:
        """See `Samples.validation`."""

        def batches() -> Iterator[Batch]:
            with closing(self._tables(plan, iter(plan.shards()))) as tables:
                selected = (table.take(pa.array(plan.selection.rows(table))) for table in tables)
                yield from iterate_streamed_rows(selected, plan, batch_size)

        return batches

    def _tables(self, plan: EpochPlan, shards: Iterator[int]) -> Generator[pa.Table, None, None]:
        # One thread reads the next shard while the training computes; more would take its cores.
        with ThreadPoolExecutor(1) as pool:
            ahead = None
            for shard in shards:
                read = pool.submit(
                    read_training_table, self._data_uri, plan.manifest.shards[shard], self._priors
                )
                if ahead is not None:
                    yield ahead.result()
                ahead = read
            if ahead is not None:
                yield ahead.result()
