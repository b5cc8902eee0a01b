"""Preparation of a data set: stage pixels, audit, group, assign folds, write shards and manifest.

A target without a manifest holds no data set; the manifest is written after all shards. If storage
fails, staged files stay in the target, and a repeated command resumes. If the command cannot
succeed, staged files are deleted.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory
from typing import Literal

from mtil.data import parallel
from mtil.data.audit import drops
from mtil.data.audit import findings as audits
from mtil.data.audit.findings import Audit
from mtil.data.dataset import account as accounts
from mtil.data.dataset import manifest as manifests
from mtil.data.dataset.account import Account, SourceAccount
from mtil.data.dataset.manifest import FILE_NAME, DroppedImage, Manifest, SourceInfo, describe_file
from mtil.data.folds import assign as fold_rules
from mtil.data.folds import splits
from mtil.data.folds.assign import FoldAssignment, SamplePlace
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
from mtil.data.prepare.samples import RefusedImage
from mtil.data.prepare.sources import CollectionSource, scan_sources
from mtil.errors import DataError, StorageError, UserError
from mtil.storage import Store, open_store, split_uri

MAX_SHARD_BYTES = 64 * 2**20
"""Default of `Settings.max_shard_bytes`."""
SIZE_STEP = 32
"""Step between allowed image sizes in pixels."""
MAX_IMAGE_SIZE = 2048
"""Largest side of a stored image in pixels."""
PROTOCOLS = ("grouped", "paper")
SETTINGS = (
    "image_size", "protocol", "fold_rule", "num_folds", "num_parts", "seed", "num_groups", "kept",
)  # fmt: skip
"""Manifest fields compared, beside the fingerprint, to find out whether data sets are equal."""

_OVERTAKEN = "A different data set was written to {} in the meantime; choose another target."


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a preparation."""

    image_size: int = 256
    """Side of the stored images in pixels: a multiple of 32 from 32 to 2048."""
    num_folds: int = 5
    """Number of folds, unless the sources or a splits file give folds."""
    seed: int = 0
    """Seed of fold assignment and holdout, non-negative."""
    protocol: Literal["grouped", "paper"] = "grouped"
    """`grouped`, or `paper` for image-level folds of tumour images only, as in the literature."""
    holdout: str | None = None
    """Final test set: a share between 0 and 1, or a CSV file with the column `image_id`."""
    stratify: Literal["class", "class-and-size"] = "class-and-size"
    """Strata spread evenly over the folds: classes, or classes and terciles of lesion size."""
    splits: str | None = None
    """Path or URI of a `splits.json` with folds and parts."""
    skip_invalid: bool = False
    """Whether to skip and list unusable images instead of refusing the collection."""
    allow_drops: float | None = None
    """Largest share of images, 0 to 1, dropped or in a single group of near-copies; None for the
    limits of `mtil.data.audit.drops`."""
    name: str | None = None
    """Name of the data set; by default the names of the collections."""
    max_shard_bytes: int = MAX_SHARD_BYTES
    """Approximate size limit of a shard."""

    def __post_init__(self) -> None:
        if self.image_size % SIZE_STEP or not SIZE_STEP <= self.image_size <= MAX_IMAGE_SIZE:
            raise DataError(
                f"The image size must be a multiple of {SIZE_STEP} from {SIZE_STEP} to "
                f"{MAX_IMAGE_SIZE}, but got {self.image_size}."
            )
        if not 2 <= self.num_folds <= fold_rules.MAX_FOLDS:
            raise DataError(
                f"The number of folds must be 2 to {fold_rules.MAX_FOLDS}, "
                f"but num_folds is {self.num_folds}."
            )
        # Raises for a share out of range; the result is not needed here.
        drops.make_drop_limits(self.allow_drops)
        if self.seed < 0:
            raise DataError(f"A seed must not be negative, but got {self.seed}.")
        if self.protocol not in PROTOCOLS:
            raise DataError(
                f"A protocol must be one of {', '.join(PROTOCOLS)}, but got {self.protocol!r}."
            )
        share = None if self.holdout is None else _parse_share(self.holdout)
        if self.holdout == "" or (share is not None and not 0 < share < 1):
            raise DataError(
                f"A holdout must be a share between 0 and 1, or a file, but got {self.holdout!r}."
            )
        if self.splits is not None and self.holdout is not None:
            raise DataError(
                "A splits file already gives the holdout; remove --holdout or --splits."
            )


def prepare(
    sources: Sequence[CollectionSource],
    to: str,
    settings: Settings | None = None,
    *,
    runner: JobRunner = parallel.run_in_processes,
    progress: Progress | None = None,
) -> Manifest:
    """Prepare a data set from collections and return its manifest.

    If the target already holds equal data, write nothing and return the existing manifest.

    Args:
        sources: the collections.
        to: target, a folder or an `s3://` URI.
        settings: settings of the preparation; None for the defaults.
        runner: runs the jobs that decode images and write shards.
        progress: called with the activity, the images done and the images in total.

    Raises:
        DataError: if a source is invalid or the target holds different data.
    """
    settings = settings or Settings()
    _check_settings(settings, sources)
    target = open_store(to)
    collections = scan_sources(sources, to)
    records = sorted(
        (record for collection in collections for record in collection.records),
        key=lambda record: record.sample_id,
    )
    chunks = Chunks(
        records=records,
        stores=map_source_uris(collections),
        image_size=settings.image_size,
        rows_per_chunk=staging.rows_per_chunk(settings.image_size, settings.max_shard_bytes),
        runner=runner,
        progress=progress or ignore_progress,
    )
    official = any(source.official_folds is not None for source in sources)
    job = _Preparation(settings, collections, chunks, "official" if official else settings.protocol)
    folder = f"{staging.STAGING_FOLDER}/{chunks.key()}"
    existing = _load_existing(target, folder)
    made: _Decided | None = None
    if existing is None:
        try:
            made = job.decide(target, folder, keep_rows=True)
            return job.commit(target, folder, made)
        except UserError as error:
            if not target.exists(FILE_NAME):
                # After a storage error, a repeated command may succeed and reuse the staged chunks.
                # After any different error, the command would fail again.
                if not isinstance(error, StorageError):
                    target.clear(folder, versions.STAGED_NAMES)
                raise
        try:
            # A concurrent preparation was faster; the first manifest counts.
            existing = manifests.load_manifest(target)
        except DataError:
            job.withdraw(target, folder, made)
            raise DataError(_OVERTAKEN.format(target.uri)) from None
    return job.compare(target, folder, existing, made)


@dataclass(frozen=True)
class _Decided:
    """All decisions of a preparation, made before the shards are written."""

    manifest: Manifest
    audit: Audit
    assignment: FoldAssignment
    places: Mapping[str, SamplePlace]


@dataclass(frozen=True)
class _Preparation:
    """A preparation of collections with given settings."""

    settings: Settings
    collections: Sequence[Collection]
    chunks: Chunks
    protocol: str
    """Protocol as recorded in the manifest: `official`, `grouped` or `paper`."""

    @property
    def records(self) -> Sequence[Record]:
        """Records of all collections, sorted by sample id."""
        return self.chunks.records

    def decide(self, store: Store, folder: str, *, keep_rows: bool) -> _Decided:
        """Stage every chunk, then audit, group and assign folds."""
        self.chunks.stage(store, folder, keep_rows=keep_rows)
        refused = self.chunks.refused(store, folder)
        if not self.settings.skip_invalid:
            raise_refused(refused, self.collections)
        if len(refused) == len(self.records):
            raise DataError(f"No image can be used; the first says: {refused[0].why}")
        invalid = {item.sample_id for item in refused}
        usable = [record for record in self.records if record.sample_id not in invalid]
        given = (
            None if self.settings.splits is None else splits.read_splits_file(self.settings.splits)
        )
        audit = audits.audit_images(
            usable, self.chunks.facts(store, folder), None if given is None else given.place
        )
        kept, dropped = self._split_kept(usable, audit)
        self._check_drops(dropped, refused, audit)
        assignment = self._assign_folds(kept, dropped, audit, given)
        places = {
            sample_id: SamplePlace(audit.grouping.family[sample_id], fold, part)
            for sample_id, (fold, part) in assignment.place.items()
        }
        manifest = self._make_manifest(kept, dropped, refused, assignment, places)
        fingerprint = image_counts.compute_fingerprint(
            audit.facts, places, self.settings.image_size
        )
        return _Decided(replace(manifest, fingerprint=fingerprint), audit, assignment, places)

    def commit(self, target: Store, folder: str, made: _Decided) -> Manifest:
        """Write the shards, the audit, the manifest and, last, the splits.

        Raises:
            DataError: if a different data set was written to the target in the meantime.
        """
        # The tag is unique to the data: concurrent preparations never overwrite different data.
        tag = self._make_tag(made.manifest)
        audit = f"audit/{tag}"
        finished = self.chunks.finish(target, folder, made.places, audit=audit, mark=f"-{tag}")
        files = {
            **finished.files,
            **audits.write_audit_tables(target, audit, made.audit, made.places),
        }
        files[splits.SPLITS_FILE] = describe_file(
            versions.encode_splits(made.manifest, made.places)
        )
        manifest = replace(
            made.manifest, audit=audit, shards=finished.shards, facts=finished.facts, files=files
        )
        # `create` commits: of several concurrent preparations the first manifest counts.
        data = manifests.manifest_to_json(manifest)
        if not target.create(FILE_NAME, data) and target.read(FILE_NAME) != data:
            raise DataError(_OVERTAKEN.format(target.uri))
        versions.publish_version(target, manifest)
        target.clear(folder, versions.STAGED_NAMES)
        return manifest

    def compare(
        self, target: Store, folder: str, existing: Manifest, made: _Decided | None
    ) -> Manifest:
        """Check the target for the requested data set, and return the manifest.

        Args:
            target: the target.
            folder: folder of the staged chunks in the target.
            existing: manifest of the data set in the target.
            made: decisions of the preparation; None to decide again without writing to the target.

        Raises:
            DataError: if the target holds different data.
        """
        expected = made
        if expected is None:
            with TemporaryDirectory(prefix="mtil-prepare-") as scratch:
                # Local processes only: other machines cannot read the scratch folder.
                local = replace(self, chunks=replace(self.chunks, runner=parallel.run_in_processes))
                expected = local.decide(open_store(scratch), folder, keep_rows=False)
        # The data may be an older version of a data set with appended images.
        existing = manifests.find_manifest(target, expected.manifest.fingerprint) or existing
        try:
            _refuse_difference(target, existing, expected.manifest)
        except DataError:
            self.withdraw(target, folder, made)
            raise
        target.clear(folder, versions.STAGED_NAMES)
        # The stored account describes the first preparation; return the account of this command.
        return replace(_check_complete(target, existing), account=expected.manifest.account)

    def withdraw(self, target: Store, folder: str, made: _Decided | None) -> None:
        """Delete the files of the preparation from a target with different data.

        Args:
            target: the target.
            folder: folder of the staged chunks in the target.
            made: decisions of the preparation; None if only staged chunks were written.
        """
        target.clear(folder, versions.STAGED_NAMES)
        if made is not None:
            versions.delete_attempt(target, self._make_tag(made.manifest))

    def _make_tag(self, made: Manifest) -> str:
        """Return the tag in the file names of the preparation, unique to the data."""
        return versions.make_attempt_tag(
            1, self.chunks.make_content_key(manifests.manifest_to_json(made).decode())
        )

    def _split_kept(
        self, usable: Sequence[Record], audit: Audit
    ) -> tuple[list[Record], list[DroppedImage]]:
        if self.settings.protocol == "grouped":
            kept = [record for record in usable if record.sample_id in audit.grouping.group]
            return kept, list(audit.grouping.dropped)
        reason = fold_rules.NOT_IN_PAPER_PROTOCOL
        kept = [record for record in usable if record.label in fold_rules.TUMOURS]
        left_out = [record for record in usable if record.label not in fold_rules.TUMOURS]
        return kept, [DroppedImage(sample_id=record.sample_id, why=reason) for record in left_out]

    def _check_drops(
        self, dropped: Sequence[DroppedImage], refused: Sequence[RefusedImage], audit: Audit
    ) -> None:
        grouped = self.settings.protocol == "grouped"
        drops.check_drops(
            self.records,
            dropped,
            [DroppedImage(sample_id=item.sample_id, why=item.why) for item in refused],
            audits.select_joined_pairs(audit.pairs) if grouped else [],
            drops.make_drop_limits(self.settings.allow_drops),
            {c.records[0].source: c.name for c in self.collections},
        )

    def _assign_folds(
        self,
        kept: Sequence[Record],
        dropped: Sequence[DroppedImage],
        audit: Audit,
        given: FoldAssignment | None,
    ) -> FoldAssignment:
        settings = self.settings
        grouped = settings.protocol == "grouped"
        group = audit.grouping.family if grouped else {r.sample_id: r.sample_id for r in kept}
        if given is not None:
            assignment = splits.select_kept(given, kept, group, whole_groups=grouped)
            fold_rules.check_assignment(kept, group, assignment)
            return assignment
        by_size = settings.stratify == "class-and-size"
        area = audit.area() if by_size else None
        holdout: set[str] = set()
        if settings.holdout is not None:
            share = _parse_share(settings.holdout)
            holdout = (
                splits.read_holdout_file(settings.holdout, self.records, kept, group)
                if share is None
                else fold_rules.choose_holdout(kept, group, area, share=share, seed=settings.seed)
            )
        return fold_rules.assign_folds(
            kept,
            group,
            area,
            num_folds=settings.num_folds,
            seed=settings.seed,
            holdout=holdout,
            rule=fold_rules.name_fold_rule(grouped=grouped, by_size=by_size),
            dropped=dropped,
        )

    def _make_manifest(
        self,
        kept: Sequence[Record],
        dropped: Sequence[DroppedImage],
        refused: Sequence[RefusedImage],
        assignment: FoldAssignment,
        places: Mapping[str, SamplePlace],
    ) -> Manifest:
        settings = self.settings
        grouped = settings.protocol == "grouped"
        counts = image_counts.count_kept_images(
            kept, places, assignment.num_folds, whole_groups=grouped
        )
        return Manifest(
            name=settings.name or " + ".join(c.name for c in self.collections),
            sources=tuple(
                SourceInfo(
                    name=collection.name,
                    prefix=collection.records[0].source,
                    licence=collection.licence,
                    citation=collection.citation,
                    read=len(collection.records),
                )
                for collection in self.collections
            ),
            image_size=settings.image_size,
            protocol=self.protocol,
            fold_rule=assignment.rule,
            num_folds=assignment.num_folds,
            num_parts=assignment.num_parts,
            seed=settings.seed,
            read=len(self.records),
            **vars(counts),
            dropped=tuple(dropped),
            invalid=tuple(DroppedImage(sample_id=item.sample_id, why=item.why) for item in refused),
            shards=(),
            fingerprint="",
            account=build_account(self.collections, dropped, refused, [r.sample_id for r in kept]),
        )


def build_account(
    collections: Sequence[Collection],
    dropped: Sequence[DroppedImage],
    refused: Sequence[RefusedImage],
    kept: Sequence[str],
    known: Iterable[str] = (),
) -> Account:
    """Return the account of prepared collections: every file and image, by outcome.

    Args:
        collections: the collections as read.
        dropped: images that were not kept.
        refused: unusable images.
        kept: sample ids of the kept images.
        known: sample ids of images already in the data set.

    Raises:
        AssertionError: if the numbers of files or images do not add up.
    """
    why_dropped = {item.sample_id: item.why for item in dropped}
    invalid = {item.sample_id: item.why for item in refused}
    kept_ids, known_ids = frozenset(kept), frozenset(known)
    return Account(
        sources=tuple(
            SourceAccount(
                name=collection.name,
                prefix=collection.records[0].source,
                files=collection.files,
                images=accounts.count_images(
                    [record.sample_id for record in collection.records],
                    why_dropped, invalid, kept_ids, known_ids,
                ),
                notes=tuple(collection.notes),
                warnings=tuple(collection.warnings),
            )
            for collection in collections
        )
    )  # fmt: skip


def _check_settings(settings: Settings, sources: Sequence[CollectionSource]) -> None:
    """Raise `DataError` for contradictory settings or missing files, before decoding starts."""
    official = any(source.official_folds is not None for source in sources)
    if official and (settings.splits is not None or settings.protocol == "paper"):
        option = "--splits" if settings.splits is not None else "--protocol paper"
        raise DataError(f"Folds must come from one place, but {option} and official folds are both "
                        "requested; remove one of the options.")  # fmt: skip
    files = {"splits": settings.splits}
    if settings.holdout is not None and _parse_share(settings.holdout) is None:
        files["holdout"] = settings.holdout
    for role, uri in files.items():
        if uri is not None:
            parent, name = split_uri(uri)
            if not open_store(parent).exists(name):
                raise DataError(f"The {role} file must exist, but {uri} does not; check the path.")


def _parse_share(text: str) -> float | None:
    """Return the share of a holdout, or None if the text names a file."""
    try:
        return float(text)
    except ValueError:
        return None


def _load_existing(target: Store, folder: str) -> Manifest | None:
    """Return the manifest of the target, or None if the preparation may write to the target.

    Raises:
        DataError: if the target holds foreign files or an unfinished preparation of other data.
    """
    if target.exists(FILE_NAME):
        return manifests.load_manifest(target)
    names = target.names()
    is_resumed = any(name.startswith(f"{folder}/") for name in names)
    foreign = [name for name in names if not name.startswith(_DATA_SET_NAMES)]
    if foreign:
        raise DataError(
            f"A target must be empty, but {target.uri} holds {len(names)} files and no "
            f"{FILE_NAME}, such as {foreign[0]}; empty the target or choose another."
        )
    if names and not is_resumed:
        raise DataError(
            f"A target must be empty, but {target.uri} holds an unfinished preparation of other "
            "data; finish the preparation with the original command, or delete the files."
        )
    return None


# Beginnings of the file names written by a preparation before the manifest.
_DATA_SET_NAMES = (f"{staging.STAGING_FOLDER}/", "shards/", "audit/", splits.SPLITS_FILE)


def _refuse_difference(target: Store, existing: Manifest, made: Manifest) -> None:
    # Folds of a splits file do not depend on the seed, and may equal folds made by a rule.
    free = {"seed", "fold_rule"} if made.fold_rule == splits.SPLITS_RULE else set()
    if existing.fold_rule == made.fold_rule == fold_rules.GIVEN_RULE:
        # Manifests of earlier versions do not record `official`.
        free.add("protocol")
    for setting in (*SETTINGS, "fingerprint"):
        old, new = getattr(existing, setting), getattr(made, setting)
        if old != new and setting not in free:
            raise DataError(
                f"A target must be empty or hold the same data, but {target.uri} holds a data set "
                f"whose {setting} is {str(old)[:60]}, not the requested {str(new)[:60]}; "
                "choose another target."
            )


def _check_complete(target: Store, existing: Manifest) -> Manifest:
    """Raise `DataError` if a shard is missing; repair `splits.json`; return the manifest."""
    for shard in existing.shards:
        if not target.exists(shard.path):
            raise DataError(
                f"The data set at {target.uri} has lost {shard.path}; "
                "delete and prepare the data set again."
            )
    versions.repair_splits(target, existing)
    return existing
