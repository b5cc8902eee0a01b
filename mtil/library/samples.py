"""Sources of batches for training: a protocol, and two sources without Ray."""

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import chain
from typing import Protocol

import pyarrow as pa

from mtil.config import DataConfig
from mtil.data.dataset.batches import Batch, EpochPlan, TableRows
from mtil.data.dataset.epochs import (
    iterate_epoch_shards,
    iterate_resident_epoch,
    iterate_resident_rows,
    iterate_streamed_epochs,
    iterate_streamed_rows,
)
from mtil.data.dataset.manifest import Manifest
from mtil.data.dataset.shards import row_bytes
from mtil.run.priors import PriorMaps, read_training_table

Epochs = Iterator[tuple[int, Iterator[Batch]]]
"""Pairs of the index of an epoch and the batches of the epoch."""


class Samples(Protocol):
    """A source of batches. All sources yield equal batches for equal plans."""

    def epochs(self, plan: EpochPlan, epochs: range, first: int = 0) -> Epochs:
        """Yield the index and the batches of each epoch.

        Args:
            plan: training rows of this worker and row order.
            epochs: indices of the epochs.
            first: first step of the first epoch.
        """

    def validation(self, plan: EpochPlan, batch_size: int) -> Callable[[], Iterator[Batch]]:
        """Return a function; every call iterates over this worker's validation rows from the start.

        Args:
            plan: validation rows of this worker.
            batch_size: images in a batch; the last batch of a shard may have fewer.
        """


def fits_in_memory(manifest: Manifest, config: DataConfig) -> bool:
    """Return whether training holds the data set in memory.

    With `data.mode: auto`, a data set of up to `data.resident_gib` GiB is held in memory.
    """
    size_gib = manifest.num_rows * row_bytes(manifest.image_size) / 2**30
    if config.mode == "auto":
        return size_gib <= config.resident_gib
    return config.mode == "resident"


class ResidentSamples:
    """Batches from tables of all shards in memory."""

    def __init__(self, tables: Sequence[pa.Table]) -> None:
        """Hold the tables of all shards, in manifest order."""
        self._tables = tables

    def epochs(self, plan: EpochPlan, epochs: range, first: int = 0) -> Epochs:
        """See `Samples.epochs`."""
        rows = TableRows(self._tables, plan.selection)
        for epoch in epochs:
            yield epoch, iterate_resident_epoch(rows, plan, epoch, first)
            first = 0

    def validation(self, plan: EpochPlan, batch_size: int) -> Callable[[], Iterator[Batch]]:
        """See `Samples.validation`."""
        rows = TableRows(self._tables, plan.selection)
        return lambda: iterate_resident_rows(rows, plan, batch_size)


class StoredSamples:
    """Batches from shards in storage. Every epoch reads the shards anew, one shard ahead."""

    def __init__(self, data_uri: str, priors: PriorMaps | None = None) -> None:
        self._data_uri, self._priors = data_uri, priors

    def epochs(self, plan: EpochPlan, epochs: range, first: int = 0) -> Epochs:
        """See `Samples.epochs`."""
        shards = chain.from_iterable(iterate_epoch_shards(plan, epochs, first))
        with closing(self._tables(plan, shards)) as tables:
            yield from zip(
                epochs, iterate_streamed_epochs(tables, plan, epochs, first), strict=True
            )

    def validation(self, plan: EpochPlan, batch_size: int) -> Callable[[], Iterator[Batch]]:
        """See `Samples.validation`."""

        def batches() -> Iterator[Batch]:
            with closing(self._tables(plan, iter(plan.shards()))) as tables:
                selected = (table.take(pa.array(plan.selection.rows(table))) for table in tables)
                yield from iterate_streamed_rows(selected, plan, batch_size)

        return batches

    def _tables(self, plan: EpochPlan, shards: Iterator[int]) -> Generator[pa.Table, None, None]:
        # One thread reads the next shard during the training; more would take the training's cores.
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
