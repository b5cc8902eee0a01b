"""More images for a data set, as a new version of it: nothing that was written before changes.

New shards, facts and audit go beside the old ones under names that no other attempt has, so that
an interrupted or overtaken one leaves the data set whole (see `mtil.data.prepare.versions`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Literal

from mtil.data import parallel
from mtil.data.append import existing as known_images
from mtil.data.append.existing import Content, Known
from mtil.data.append.placement import Growth, grow
from mtil.data.audit import drops
from mtil.data.audit import findings as audits
from mtil.data.dataset.account import Account
from mtil.data.dataset.manifest import Dropped, Manifest, SourceInfo, file_of
from mtil.data.folds import splits
from mtil.data.folds.assign import GIVEN, is_by_size
from mtil.data.layouts.record import Collection, Record
from mtil.data.parallel import Runner
from mtil.data.prepare import staging, tally, versions
from mtil.data.prepare.chunks import Chunks, Progress, refuse, silent, stores_of
from mtil.data.prepare.pipeline import MAX_SHARD_BYTES, account_of
from mtil.data.prepare.samples import Refused
from mtil.data.prepare.sources import Source, gather_more
from mtil.errors import DataError, StorageError, UserError
from mtil.storage import Store, open_store


@dataclass(frozen=True, kw_only=True)
class AppendSettings:
    """How images are appended. What the data set has decided may be left away or must agree."""

    image_size: int | None = None
    """Side of the stored images."""
    num_folds: int | None = None
    """How many folds there are."""
    seed: int | None = None
    """The folds' seed."""
    protocol: Literal["grouped", "paper", "official"] | None = None
    """The folds' protocol."""
    stratify: Literal["class", "class-and-size"] | None = None
    """What is spread evenly over the folds."""
    skip_invalid: bool = False
    """Whether images that cannot be used are skipped and listed, instead of refused."""
    allow_drops: float | None = None
    """Share of the new images, 0 to 1, that may be dropped, and of all images that may lie in one
    group of near-copies; by default that of `mtil.data.audit.drops`."""
    max_shard_bytes: int = MAX_SHARD_BYTES
    """About how large a shard may get."""


@dataclass(frozen=True)
class Appended:
    """What came of an append."""

    manifest: Manifest
    """The newest version; the one from before if no image was added."""
    num_added: int
    num_known: int
    """Images that the data set had already."""
    dropped: tuple[Dropped, ...] = ()
    """New images that were not kept."""
    invalid: tuple[Dropped, ...] = ()
    """New images that cannot be used."""
    account: Account | None = field(default=None, compare=False)
    """The files and images of these collections."""


def append(
    sources: Sequence[Source],
    to: str,
    settings: AppendSettings | None = None,
    *,
    runner: Runner = parallel.processes,
    progress: Progress | None = None,
) -> Appended:
    """Add the images of collections that a data set does not have yet, as a new version of it.

    Without a new image that can be kept, nothing is written.

    Args:
        sources: the collections, which may hold images that the data set has.
        to: where the data set is.
        settings: how to append.
        runner: what does the work on the pixels.
        progress: called with what is being done, the images done and their number.

    Raises:
        DataError: if a source is wrong, an image that the data set has differs, or the settings
            do.
    """
    settings = settings or AppendSettings()
    limit = drops.limits(settings.allow_drops)
    target = open_store(to)
    before = versions.newest(target)
    _check(settings, before)
    known = known_images.read(target, before)
    collections = gather_more(sources, before.sources, known.records, to)
    chunks = Chunks(
        records=_sorted(collections),
        stores=stores_of(collections),
        image_size=before.image_size,
        rows_per_chunk=staging.rows_per_chunk(before.image_size, settings.max_shard_bytes),
        runner=runner,
        progress=progress or silent,
    )
    job = _Append(target, known, collections, chunks, settings.skip_invalid, limit)
    try:
        return job.run()
    except UserError as error:
        if not isinstance(error, StorageError):  # the same command would fail again
            target.clear(job.folder, versions.STAGED)
        raise


@dataclass(frozen=True)
class _Append:
    target: Store
    known: Known
    collections: Sequence[Collection]
    chunks: Chunks
    skip_invalid: bool
    limit: drops.Limits

    @cached_property
    def tag(self) -> str:
        """What the files of this append are called: its version, and what it appends to what."""
        before = self.known.manifest
        key = self.chunks.key(before.version, before.fingerprint)
        return versions.tag(before.version + 1, key)

    @property
    def folder(self) -> str:
        """Where chunks are staged."""
        return f"{staging.FOLDER}/{self.tag}"

    def run(self) -> Appended:
        """Compare, stage, audit and write."""
        records, known = self.chunks.records, self.known.records
        again = [record for record in records if record.sample_id in known]
        unlike = self._compare(again)
        fresh = [record for record in records if record.sample_id not in known]
        chunks = replace(self.chunks, records=fresh)
        folder = f"{self.folder}/new"
        chunks.stage(self.target, folder)
        refused = chunks.refused(self.target, folder)
        if not self.skip_invalid:
            refuse([*unlike, *refused], self.collections)
        made = Appended(
            self.known.manifest,
            num_added=0,
            num_known=len(again),
            invalid=tuple(Dropped(sample_id=item.sample_id, why=item.why) for item in refused),
        )
        invalid = {item.sample_id for item in refused}
        usable = [record for record in fresh if record.sample_id not in invalid]
        if usable:
            said = [record for record in again if record.refused is None]
            growth = grow(self.known, usable, said, chunks.facts(self.target, folder))
            self._check_drops(fresh, growth, made.invalid)
            kept = [record.sample_id for record in growth.kept]
            account = self._account(growth.dropped, refused, kept)
            made = replace(
                made, dropped=growth.dropped, num_added=len(growth.kept), account=account
            )
            if growth.kept:
                written = self._write(chunks, folder, growth, refused, account)
                return replace(made, manifest=written)
        else:
            made = replace(made, account=self._account((), refused, ()))
        self.target.clear(self.folder, versions.STAGED)
        return made

    def _check_drops(
        self, fresh: Sequence[Record], growth: Growth, invalid: Sequence[Dropped]
    ) -> None:
        new = {record.sample_id for record in fresh}
        joined = audits.joined(growth.audit.pairs)
        before = [record for name, record in self.known.records.items() if name not in new]
        grouped = self.known.manifest.protocol != "paper"
        drops.check(
            fresh,
            growth.dropped,
            invalid,
            joined if grouped else [],
            self.limit,
            {c.records[0].source: c.name for c in self.collections},
            before=before,
        )

    def _account(
        self, dropped: Sequence[Dropped], refused: Sequence[Refused], kept: Sequence[str]
    ) -> Account:
        return account_of(self.collections, dropped, refused, kept, self.known.records)

    def _compare(self, again: Sequence[Record]) -> list[Refused]:
        """Refuse images that the data set has otherwise; return those that cannot be used."""
        chunks = replace(self.chunks, records=again)
        folder = f"{self.folder}/known"
        chunks.stage(self.target, folder, keep_rows=False, what="comparing")
        by_id = {record.sample_id: record for record in again}
        for table in chunks.facts(self.target, folder):
            rows = table.select(["sample_id", "sha256", "mask_sha256"]).to_pylist()
            for row in rows:
                record = by_id[row["sample_id"]]
                content = Content(row["sha256"], row["mask_sha256"])
                known_images.check_same(
                    self.known, record, content, self.chunks.stores[record.source]
                )
        return chunks.refused(self.target, folder)

    def _write(
        self,
        chunks: Chunks,
        folder: str,
        growth: Growth,
        refused: Sequence[Refused],
        account: Account,
    ) -> Manifest:
        before = self.known.manifest
        audit = f"audit/{self.tag}"
        done = chunks.finish(
            self.target,
            folder,
            {record.sample_id: growth.places[record.sample_id] for record in growth.kept},
            audit=audit,
            first_shard=len(before.shards),
            mark=f"-{self.tag}",
        )
        files = {n: file for n, file in before.files.items() if n in before.facts}
        files |= {**done.files}
        files |= audits.write(self.target, audit, growth.audit, growth.places)
        kept = [*(self.known.records[name] for name in self.known.places), *growth.kept]
        grouped = before.protocol != "paper"
        counts = tally.count(kept, growth.places, before.num_folds, whole_groups=grouped)
        sources = self._sources(chunks.records)
        made = replace(
            before,
            name=_name(before, sources),
            sources=sources,
            read=sum(source.read for source in sources),
            dropped=_by_id(before.dropped, growth.dropped),
            invalid=self._invalid(chunks.records, refused),
            shards=(*before.shards, *done.shards),
            fingerprint=tally.fingerprint(growth.audit.facts, growth.places, before.image_size),
            version=before.version + 1,
            audit=audit,
            facts=(*before.facts, *done.facts),
            account=account,
            **vars(counts),
        )
        text = versions.splits_text(made, growth.places)
        files[splits.FILE_NAME] = file_of(text)
        made = replace(made, files=files)
        versions.commit(self.target, before, made)
        return made

    def _sources(self, fresh: Sequence[Record]) -> tuple[SourceInfo, ...]:
        """Return the sources with the images that they have now."""
        before = self.known.manifest
        counted = {item.sample_id for item in before.invalid}
        found = {source.prefix: source for source in before.sources}
        for collection in self.collections:
            prefix = collection.records[0].source
            read = sum(r.source == prefix and r.sample_id not in counted for r in fresh)
            if prefix in found:
                found[prefix] = replace(found[prefix], read=found[prefix].read + read)
            else:
                found[prefix] = SourceInfo(
                    name=collection.name,
                    prefix=prefix,
                    licence=collection.licence,
                    citation=collection.citation,
                    read=read,
                )
        return tuple(found.values())

    def _invalid(self, fresh: Sequence[Record], refused: Sequence[Refused]) -> tuple[Dropped, ...]:
        """Return the images that cannot be used, without those that can be by now."""
        looked_at = {record.sample_id for record in fresh}
        left = [i for i in self.known.manifest.invalid if i.sample_id not in looked_at]
        return _by_id(left, [Dropped(sample_id=i.sample_id, why=i.why) for i in refused])


def _check(settings: AppendSettings, before: Manifest) -> None:
    fixed = {
        "image_size": before.image_size,
        "num_folds": before.num_folds,
        "seed": before.seed,
        "protocol": before.protocol,
        "stratify": "class-and-size" if is_by_size(before.fold_rule) else "class",
    }
    for name, value in fixed.items():
        asked = getattr(settings, name)
        given = name == "protocol" and before.fold_rule == GIVEN and asked != "paper"
        if asked is not None and asked != value and not given:
            option = f"--{name.replace('_', '-')}"
            raise DataError(
                f"Images are appended as those before were prepared, with {option} {value}, but "
                f"got {asked}; leave it away, or prepare all images again."
            )


def _sorted(collections: Sequence[Collection]) -> list[Record]:
    records = sorted(
        (record for collection in collections for record in collection.records),
        key=lambda record: record.sample_id,
    )
    for one, other in pairwise(records):
        if one.sample_id == other.sample_id:
            raise DataError(
                f"Sample ids must be unique, but two sources have {one.sample_id!r}; rename one."
            )
    return records


def _name(before: Manifest, sources: Sequence[SourceInfo]) -> str:
    """Return what the data set is called: its sources' names, unless it has a name of its own."""
    if before.name != " + ".join(source.name for source in before.sources):
        return before.name
    return " + ".join(source.name for source in sources)


def _by_id(*items: Sequence[Dropped]) -> tuple[Dropped, ...]:
    return tuple(sorted((d for some in items for d in some), key=lambda item: item.sample_id))
