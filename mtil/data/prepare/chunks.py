"""Records in chunks: staged by as many workers as there are, then finished as shards and facts."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Protocol

import pyarrow as pa

from mtil.data.audit import duplicates
from mtil.data.dataset.manifest import File, Shard
from mtil.data.folds.assign import Place
from mtil.data.layouts.record import Collection, Record, reasons
from mtil.data.parallel import Runner
from mtil.data.prepare import changes, staging
from mtil.data.prepare.samples import READING, Refused
from mtil.data.prepare.staging import FinishJob, StageJob
from mtil.errors import DataError
from mtil.storage import Store


class Progress(Protocol):
    """Is told how far the work is."""

    def __call__(self, what: str, done: int, of: int, /) -> None:
        """Take what is being done, the images done and their number."""


def silent(what: str, done: int, of: int, /) -> None:
    """Take progress that nobody wants to see."""


@dataclass(frozen=True)
class Finished:
    """What was written of staged chunks."""

    shards: tuple[Shard, ...]
    facts: tuple[str, ...]
    files: Mapping[str, File]
    """Size and digest of the facts, by name."""


@dataclass(frozen=True, kw_only=True)
class Chunks:
    """Images to be staged, chunk by chunk."""

    records: Sequence[Record]
    """Sorted by sample id."""
    stores: Mapping[str, str]
    """URI of each source's files."""
    image_size: int
    rows_per_chunk: int
    runner: Runner
    progress: Progress

    def key(self, *more: object) -> str:
        """Return what tells these staged chunks from others."""
        values = [staging.SEALED, READING, duplicates.VERSION, list(self.stores.values()), *more]
        return self._key((asdict(record) for record in self.records), values)

    def content_key(self, *more: object) -> str:
        """Return what tells the images from others, wherever their files are."""
        files = {"image", "masks", "refused"}
        said = ({k: v for k, v in asdict(r).items() if k not in files} for r in self.records)
        return self._key(said, more)

    def _key(self, records: Iterable[Mapping[str, Any]], more: Sequence[object]) -> str:
        values = [staging.FORMAT, self.image_size, self.rows_per_chunk, *more]
        found = hashlib.sha256(json.dumps(values).encode())
        for record in records:
            found.update(json.dumps(record).encode())
        return found.hexdigest()[:16]

    def stage(
        self, store: Store, folder: str, *, keep_rows: bool = True, what: str = "reading"
    ) -> None:
        """Decode what is not staged yet.

        Args:
            store: where chunks are staged.
            folder: the folder in it.
            keep_rows: whether rows are staged too, or only the facts.
            what: what to tell those who watch.
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
        self._run(what, staging.stage, jobs, [len(part) for part in parts])

    def facts(self, store: Store, folder: str) -> Iterator[pa.Table]:
        """Yield what the staged images are like, chunk by chunk."""
        for name in self._names:
            yield staging.read_facts(store, folder, name)

    def refused(self, store: Store, folder: str) -> list[Refused]:
        """Return the images that cannot be used."""
        return [item for name in self._names for item in staging.read_refused(store, folder, name)]

    def finish(
        self,
        store: Store,
        folder: str,
        places: Mapping[str, Place],
        *,
        audit: str,
        first_shard: int = 0,
        mark: str = "",
    ) -> Finished:
        """Write the shards of the images that have a place, and keep all images' facts.

        Args:
            store: where chunks are staged, and shards go.
            folder: where they are staged.
            places: by sample id.
            audit: the folder that the facts go to.
            first_shard: the first shard's number.
            mark: ends the shards' names.
        """
        jobs: list[FinishJob] = []
        at = first_shard
        for number, part in enumerate(self._parts()):
            here = {r.sample_id: places[r.sample_id] for r in part if r.sample_id in places}
            jobs.append(
                FinishJob(
                    name=self._names[number],
                    shard=f"shards/part-{at:05d}{mark}.parquet" if here else None,
                    facts=f"{audit}/facts-{number:05d}.parquet",
                    places=here,
                    target=store.uri,
                    folder=folder,
                    image_size=self.image_size,
                )
            )
            at += bool(here)
        done = self._run("writing", staging.finish, jobs, [len(job.places) for job in jobs])
        return Finished(
            tuple(one.shard for one in done if one.shard is not None),
            tuple(job.facts for job in jobs),
            {job.facts: one.facts for job, one in zip(jobs, done, strict=True)},
        )

    @cached_property
    def _names(self) -> tuple[str, ...]:
        """What the chunks are called, by number and by the state that their files are in."""
        state = changes.state_of(self.stores, self.records)
        return tuple(
            f"{number:05d}-{changes.digest(state, part)}"
            for number, part in enumerate(self._parts())
        )

    def _parts(self) -> list[Sequence[Record]]:
        step = self.rows_per_chunk
        return [self.records[at : at + step] for at in range(0, len(self.records), step)]

    def _run(self, what: str, function: Any, jobs: Sequence[Any], sizes: Sequence[int]) -> Any:
        if not jobs:
            return []
        done, of = 0, sum(sizes)

        def listen(images: int) -> None:
            nonlocal done
            done += images
            self.progress(what, done, of)

        return self.runner(function, jobs, sizes, listen)


def refuse(found: Sequence[Refused], collections: Sequence[Collection]) -> None:
    """Refuse images that cannot be used, in the order in which their collections have them.

    Raises:
        DataError: saying why, if there are any.
    """
    if found:
        why = {item.sample_id: item.why for item in found}
        ids = [record.sample_id for of in collections for record in of.records]
        raise DataError(reasons([why[name] for name in ids if name in why], len(ids)))


def stores_of(collections: Sequence[Collection]) -> dict[str, str]:
    """Return the URI of each collection's files by its source."""
    return {c.records[0].source: c.store.uri for c in collections}
