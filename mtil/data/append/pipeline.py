"""Append images to a data set as a new version. Files of earlier versions stay unchanged.

New shards, facts and audit get names unique to the attempt, so an interrupted or overtaken attempt
leaves the data set intact (see `mtil.data.prepare.versions`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Literal

from mtil.data import parallel
from mtil.data.append import existing as known_images
from mtil.data.append.existing import ContentDigests, ExistingImages
from mtil.data.append.placement import AppendPlacement, place_new_images
from mtil.data.audit import drops
from mtil.data.audit import findings as audits
from mtil.data.dataset.account import Account
from mtil.data.dataset.manifest import DroppedImage, Manifest, SourceInfo, describe_file
from mtil.data.folds import splits
from mtil.data.folds.assign import GIVEN_RULE, is_stratified_by_size
from mtil.data.layouts.record import Collection, Record
from mtil.data.parallel import JobRunner
from mtil.data.prepare import image_counts, staging, versions
from mtil.data.prepare.chunks import (
    Chunks,
    Progress,
    ignore_progress,
    map_source_uris,
    raise_refused,
)
from mtil.data.prepare.pipeline import MAX_SHARD_BYTES, build_account
from mtil.data.prepare.samples import RefusedImage
from mtil.data.prepare.sources import CollectionSource, scan_appended_sources
from mtil.errors import DataError, StorageError, UserError
from mtil.storage import Store, open_store


@dataclass(frozen=True, kw_only=True)
class AppendSettings:
    """Settings for appending images. Settings fixed by the data set must be None or equal."""

    image_size: int | None = None
    """Side of the stored images, in pixels."""
    num_folds: int | None = None
    """Number of folds."""
    seed: int | None = None
    """Seed of the folds."""
    protocol: Literal["grouped", "paper", "official"] | None = None
    """Protocol of the folds."""
    stratify: Literal["class", "class-and-size"] | None = None
    """Property spread evenly over the folds."""
    skip_invalid: bool = False
    """Skip and list unusable images instead of raising."""
    allow_drops: float | None = None
    """Largest share of the new images dropped, and of all images in one group of near-copies, 0 to
    1; None for the defaults of `mtil.data.audit.drops`."""
    max_shard_bytes: int = MAX_SHARD_BYTES
    """Approximate largest size of a shard."""


@dataclass(frozen=True)
class AppendResult:
    """Result of an append."""

    manifest: Manifest
    """Manifest of the newest version; unchanged if no image was added."""
    num_added: int
    num_known: int
    """Number of images already in the data set."""
    dropped: tuple[DroppedImage, ...] = ()
    """New images dropped."""
    invalid: tuple[DroppedImage, ...] = ()
    """New images that are unusable."""
    account: Account | None = field(default=None, compare=False)
    """Account of the files and images of the appended collections."""


def append_images(
    sources: Sequence[CollectionSource],
    to: str,
    settings: AppendSettings | None = None,
    *,
    runner: JobRunner = parallel.run_in_processes,
    progress: Progress | None = None,
) -> AppendResult:
    """Append the new images of collections to a data set, as a new version.

    Writes nothing if no new image is kept.

    Args:
        sources: the collections; may hold images already in the data set.
        to: URI of the data set.
        settings: settings; the defaults if None.
        runner: runs the jobs on the pixels.
        progress: called with the name of the stage, the number of images done and the total.

    Raises:
        DataError: if a source is wrong, or an existing image or a fixed setting differs.
    """
    settings = settings or AppendSettings()
    limit = drops.make_drop_limits(settings.allow_drops)
    target = open_store(to)
    before = versions.load_newest(target)
    _check_settings(settings, before)
    known = known_images.read_existing_images(target, before)
    collections = scan_appended_sources(sources, before.sources, known.records, to)
    chunks = Chunks(
        records=_sort_records(collections),
        stores=map_source_uris(collections),
        image_size=before.image_size,
        rows_per_chunk=staging.rows_per_chunk(before.image_size, settings.max_shard_bytes),
        runner=runner,
        progress=progress or ignore_progress,
    )
    job = _AppendJob(target, known, collections, chunks, settings.skip_invalid, limit)
    try:
        return job.run()
    except UserError as error:
        # After a storage error the same command may succeed, and reuses the staged chunks. Other
        # errors would come again, so nothing stays behind.
        if not isinstance(error, StorageError):
            target.clear(job.folder, versions.STAGED_NAMES)
        raise


@dataclass(frozen=True)
class _AppendJob:
    target: Store
    known: ExistingImages
    collections: Sequence[Collection]
    chunks: Chunks
    skip_invalid: bool
    limit: drops.DropLimits

    @cached_property
    def tag(self) -> str:
        """Tag in new file names: the version, and a digest of old data set and new images."""
        before = self.known.manifest
        key = self.chunks.key(before.version, before.fingerprint)
        return versions.make_attempt_tag(before.version + 1, key)

    @property
    def folder(self) -> str:
        """Staging folder of this append."""
        return f"{staging.STAGING_FOLDER}/{self.tag}"

    def run(self) -> AppendResult:
        """Compare, stage, audit and write."""
        records, known = self.chunks.records, self.known.records
        existing = [record for record in records if record.sample_id in known]
        # Compare existing images first: a contradiction is found before new images are staged.
        unusable_existing = self._compare(existing)
        new = [record for record in records if record.sample_id not in known]
        chunks = replace(self.chunks, records=new)
        folder = f"{self.folder}/new"
        chunks.stage(self.target, folder)
        refused = chunks.refused(self.target, folder)
        if not self.skip_invalid:
            raise_refused([*unusable_existing, *refused], self.collections)
        result = AppendResult(
            self.known.manifest,
            num_added=0,
            num_known=len(existing),
            invalid=tuple(DroppedImage(sample_id=item.sample_id, why=item.why) for item in refused),
        )
        invalid = {item.sample_id for item in refused}
        usable = [record for record in new if record.sample_id not in invalid]
        if usable:
            usable_existing = [record for record in existing if record.refused is None]
            growth = place_new_images(
                self.known, usable, usable_existing, chunks.facts(self.target, folder)
            )
            self._check_drops(new, growth, result.invalid)
            kept = [record.sample_id for record in growth.kept]
            account = self._account(growth.dropped, refused, kept)
            result = replace(
                result, dropped=growth.dropped, num_added=len(growth.kept), account=account
            )
            if growth.kept:
                written = self._write(chunks, folder, growth, refused, account)
                return replace(result, manifest=written)
        else:
            result = replace(result, account=self._account((), refused, ()))
        self.target.clear(self.folder, versions.STAGED_NAMES)
        return result

    def _check_drops(
        self,
        new_records: Sequence[Record],
        growth: AppendPlacement,
        invalid: Sequence[DroppedImage],
    ) -> None:
        new_ids = {record.sample_id for record in new_records}
        joined = audits.select_joined_pairs(growth.audit.pairs)
        before = [record for name, record in self.known.records.items() if name not in new_ids]
        # The paper protocol ignores groups, so near-copies join nothing.
        is_grouped = self.known.manifest.protocol != "paper"
        drops.check_drops(
            new_records,
            growth.dropped,
            invalid,
            joined if is_grouped else [],
            self.limit,
            {c.records[0].source: c.name for c in self.collections},
            before=before,
        )

    def _account(
        self, dropped: Sequence[DroppedImage], refused: Sequence[RefusedImage], kept: Sequence[str]
    ) -> Account:
        return build_account(self.collections, dropped, refused, kept, self.known.records)

    def _compare(self, existing: Sequence[Record]) -> list[RefusedImage]:
        """Raise if existing images differ in the collections; return the unusable images."""
        chunks = replace(self.chunks, records=existing)
        folder = f"{self.folder}/known"
        chunks.stage(self.target, folder, keep_rows=False, what="comparing")
        by_id = {record.sample_id: record for record in existing}
        for table in chunks.facts(self.target, folder):
            rows = table.select(["sample_id", "sha256", "mask_sha256"]).to_pylist()
            for row in rows:
                record = by_id[row["sample_id"]]
                content = ContentDigests(row["sha256"], row["mask_sha256"])
                known_images.check_unchanged(
                    self.known, record, content, self.chunks.stores[record.source]
                )
        return chunks.refused(self.target, folder)

    def _write(
        self,
        chunks: Chunks,
        folder: str,
        growth: AppendPlacement,
        refused: Sequence[RefusedImage],
        account: Account,
    ) -> Manifest:
        before = self.known.manifest
        audit = f"audit/{self.tag}"
        finished = chunks.finish(
            self.target,
            folder,
            {record.sample_id: growth.places[record.sample_id] for record in growth.kept},
            audit=audit,
            first_shard=len(before.shards),
            mark=f"-{self.tag}",
        )
        # Facts stay with the version that wrote them. The audit and splits files are written anew
        # for all images.
        files = {n: file for n, file in before.files.items() if n in before.facts}
        files |= {**finished.files}
        files |= audits.write_audit_tables(self.target, audit, growth.audit, growth.places)
        kept = [*(self.known.records[name] for name in self.known.places), *growth.kept]
        is_grouped = before.protocol != "paper"
        counts = image_counts.count_kept_images(
            kept, growth.places, before.num_folds, whole_groups=is_grouped
        )
        sources = self._sources(chunks.records)
        made = replace(
            before,
            name=_make_name(before, sources),
            sources=sources,
            read=sum(source.read for source in sources),
            dropped=_merge_by_id(before.dropped, growth.dropped),
            invalid=self._invalid(chunks.records, refused),
            shards=(*before.shards, *finished.shards),
            fingerprint=image_counts.compute_fingerprint(
                growth.audit.facts, growth.places, before.image_size
            ),
            version=before.version + 1,
            audit=audit,
            facts=(*before.facts, *finished.facts),
            account=account,
            **vars(counts),
        )
        text = versions.encode_splits(made, growth.places)
        files[splits.SPLITS_FILE] = describe_file(text)
        made = replace(made, files=files)
        versions.commit_version(self.target, before, made)
        return made

    def _sources(self, new_records: Sequence[Record]) -> tuple[SourceInfo, ...]:
        """Return all sources, with the number of images read so far."""
        before = self.known.manifest
        # Earlier versions counted images unusable at the time as read.
        counted_ids = {item.sample_id for item in before.invalid}
        source_by_prefix = {source.prefix: source for source in before.sources}
        for collection in self.collections:
            prefix = collection.records[0].source
            read = sum(r.source == prefix and r.sample_id not in counted_ids for r in new_records)
            if prefix in source_by_prefix:
                source_by_prefix[prefix] = replace(
                    source_by_prefix[prefix], read=source_by_prefix[prefix].read + read
                )
            else:
                source_by_prefix[prefix] = SourceInfo(
                    name=collection.name,
                    prefix=prefix,
                    licence=collection.licence,
                    citation=collection.citation,
                    read=read,
                )
        return tuple(source_by_prefix.values())

    def _invalid(
        self, new_records: Sequence[Record], refused: Sequence[RefusedImage]
    ) -> tuple[DroppedImage, ...]:
        """Return the unusable images, without earlier unusable images that are usable now."""
        new_ids = {record.sample_id for record in new_records}
        earlier = [item for item in self.known.manifest.invalid if item.sample_id not in new_ids]
        return _merge_by_id(
            earlier, [DroppedImage(sample_id=item.sample_id, why=item.why) for item in refused]
        )


def _check_settings(settings: AppendSettings, before: Manifest) -> None:
    fixed = {
        "image_size": before.image_size,
        "num_folds": before.num_folds,
        "seed": before.seed,
        "protocol": before.protocol,
        "stratify": "class-and-size" if is_stratified_by_size(before.fold_rule) else "class",
    }
    for name, value in fixed.items():
        requested = getattr(settings, name)
        # A data set with given folds accepts both protocols that keep given folds.
        keeps_given_folds = (
            name == "protocol" and before.fold_rule == GIVEN_RULE and requested != "paper"
        )
        if requested is not None and requested != value and not keeps_given_folds:
            option = f"--{name.replace('_', '-')}"
            raise DataError(
                f"The data set was prepared with {option} {value}, but got {requested}. "
                f"Omit {option}, or prepare all images again."
            )


def _sort_records(collections: Sequence[Collection]) -> list[Record]:
    records = sorted(
        (record for collection in collections for record in collection.records),
        key=lambda record: record.sample_id,
    )
    for first, second in pairwise(records):
        if first.sample_id == second.sample_id:
            raise DataError(
                f"Sample ids must be unique, but two sources have {first.sample_id!r}. "
                "Rename an image."
            )
    return records


def _make_name(before: Manifest, sources: Sequence[SourceInfo]) -> str:
    """Return the data set's name: a custom name stays, a default name lists the sources."""
    if before.name != " + ".join(source.name for source in before.sources):
        return before.name
    return " + ".join(source.name for source in sources)


def _merge_by_id(*items: Sequence[DroppedImage]) -> tuple[DroppedImage, ...]:
    return tuple(
        sorted((item for group in items for item in group), key=lambda item: item.sample_id)
    )
