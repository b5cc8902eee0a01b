"""Records in chunks: staged in parallel, then written as shards and facts."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Protocol

import pyarrow as pa

from mtil.data.audit import duplicates
from mtil.data.dataset.manifest import FileDigest, Shard
from mtil.data.folds.assign import SamplePlace
from mtil.data.layouts.record import Collection, Record, format_refusals
from mtil.data.parallel import JobRunner
from mtil.data.prepare import changes, staging
from mtil.data.prepare.samples import READING_VERSION, RefusedImage
from mtil.data.prepare.staging import FinishJob, StageJob
from mtil.errors import DataError
from mtil.storage import Store


class Progress(Protocol):
    """Callback for progress."""

    def __call__(self, activity: str, num_done: int, total: int, /) -> None:
        """Report an activity like `reading`, the images done and the images in total."""


def ignore_progress(activity: str, num_done: int, total: int, /) -> None:
    """Ignore progress."""


@dataclass(frozen=True)
class WrittenChunks:
    """Files written from staged chunks."""

    shards: tuple[Shard, ...]
    facts: tuple[str, ...]
    files: Mapping[str, FileDigest]
    """Size and digest of the facts files, by name."""


@dataclass(frozen=True, kw_only=True)
class Chunks:
    """Images to stage, chunk by chunk."""

    records: Sequence[Record]
    """Sorted by sample id."""
    stores: Mapping[str, str]
    """URI of the files, by source."""
    image_size: int
    rows_per_chunk: int
    runner: JobRunner
    progress: Progress

    def key(self, *more: object) -> str:
        """Return a key of the staged chunks: content, file locations and staging formats.

        Args:
            more: further JSON values on which the staged chunks depend.
        """
        values = [
            staging.SEAL_VERSION,
            READING_VERSION,
            duplicates.DESCRIPTION_VERSION,
            list(self.stores.values()),
            *more,
        ]
        return self._key((asdict(record) for record in self.records), values)

    def make_content_key(self, *more: object) -> str:
        """Return a key of the images, independent of the location of files.

        Args:
            more: further JSON values on which the images depend.
        """
        files = {"image", "masks", "refused"}
        entries = ({k: v for k, v in asdict(r).items() if k not in files} for r in self.records)
        return self._key(entries, more)

    def _key(self, records: Iterable[Mapping[str, Any]], more: Sequence[object]) -> str:
        values = [staging.STAGING_VERSION, self.image_size, self.rows_per_chunk, *more]
        # Hashed record by record: the JSON of a large collection is never in memory as a whole.
        sha256 = hashlib.sha256(json.dumps(values).encode())
        for record in records:
            sha256.update(json.dumps(record).encode())
        return sha256.hexdigest()[:16]

    def stage(
        self, store: Store, folder: str, *, keep_rows: bool = True, what: str = "reading"
    ) -> None:
        """Decode and stage the chunks not staged yet.

        Args:
            store: store for the staged chunks.
            folder: folder for the staged chunks, relative to the store.
            keep_rows: whether to stage rows and facts, or facts only.
            what: activity reported as progress.
        """
        parts = self._parts()
        jobs = [
            StageJob(
                name=name,
                records=tuple(part),
                stores=self.stores,
                target=store.uri,
                folder=folder,
                image_size=self.image_size,
                keep_rows=keep_rows,
            )
            for name, part in zip(self._names, parts, strict=True)
        ]
        self._run(what, staging.stage_chunk, jobs, [len(part) for part in parts])

    def facts(self, store: Store, folder: str) -> Iterator[pa.Table]:
        """Yield the facts of the staged images, one table per chunk."""
        for name in self._names:
            yield staging.read_facts(store, folder, name)

    def refused(self, store: Store, folder: str) -> list[RefusedImage]:
        """Return the unusable images of all chunks."""
        return [item for name in self._names for item in staging.read_refused(store, folder, name)]

    def finish(
        self,
        store: Store,
        folder: str,
        places: Mapping[str, SamplePlace],
        *,
        audit: str,
        first_shard: int = 0,
        mark: str = "",
    ) -> WrittenChunks:
        """Write the shards of all placed images, and the facts of all images.

        Args:
            store: store with the staged chunks, and target of the shards.
            folder: folder of the staged chunks.
            places: group, fold and part, by sample id.
            audit: folder for the facts.
            first_shard: index of the first shard.
            mark: suffix of the shard names, before the extension.
        """
        jobs: list[FinishJob] = []
        # Chunk and shard indices differ: a chunk without a placed image gets no shard.
        shard_index = first_shard
        for chunk_index, part in enumerate(self._parts()):
            chunk_places = {r.sample_id: places[r.sample_id] for r in part if r.sample_id in places}
            jobs.append(
                FinishJob(
                    name=self._names[chunk_index],
                    shard=f"shards/part-{shard_index:05d}{mark}.parquet" if chunk_places else None,
                    facts=f"{audit}/facts-{chunk_index:05d}.parquet",
                    places=chunk_places,
                    target=store.uri,
                    folder=folder,
                    image_size=self.image_size,
                )
            )
            shard_index += bool(chunk_places)
        finished = self._run(
            "writing", staging.finish_chunk, jobs, [len(job.places) for job in jobs]
        )
        return WrittenChunks(
            tuple(chunk.shard for chunk in finished if chunk.shard is not None),
            tuple(job.facts for job in jobs),
            {job.facts: chunk.facts for job, chunk in zip(jobs, finished, strict=True)},
        )

    @cached_property
    def _names(self) -> tuple[str, ...]:
        """Names of the chunks: index of the chunk and state of the files."""
        # A changed file gives the chunk a new name, and the chunk is decoded again.
        state = changes.make_state_lookup(self.stores, self.records)
        return tuple(
            f"{index:05d}-{changes.digest_file_states(state, part)}"
            for index, part in enumerate(self._parts())
        )

    def _parts(self) -> list[Sequence[Record]]:
        step = self.rows_per_chunk
        return [self.records[start : start + step] for start in range(0, len(self.records), step)]

    def _run(self, what: str, function: Any, jobs: Sequence[Any], sizes: Sequence[int]) -> Any:
        if not jobs:
            return []
        num_done, total = 0, sum(sizes)

        def listen(num_images: int) -> None:
            nonlocal num_done
            num_done += num_images
            self.progress(what, num_done, total)

        return self.runner(function, jobs, sizes, listen)


def raise_refused(refused: Sequence[RefusedImage], collections: Sequence[Collection]) -> None:
    """Raise an error naming the refused images, in the order of the collections.

    Raises:
        DataError: if an image is refused; the message gives the reasons.
    """
    if refused:
        why = {item.sample_id: item.why for item in refused}
        ids = [record.sample_id for collection in collections for record in collection.records]
        raise DataError(format_refusals([why[name] for name in ids if name in why], len(ids)))


def map_source_uris(collections: Sequence[Collection]) -> dict[str, str]:
    """Return the URI of the files of every collection, by source."""
    return {c.records[0].source: c.store.uri for c in collections}
