"""A collection to a data set: stage the pixels, audit, group and fold, then shards and manifest.

The manifest is written last, and without it there is no data set. What was staged stays in the
target when something outside fails, so that the same command goes on where it was; it is deleted
when the command cannot succeed.
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
from mtil.data.dataset.manifest import FILE_NAME, Dropped, Manifest, SourceInfo, file_of
from mtil.data.folds import assign as fold_rules
from mtil.data.folds import splits
from mtil.data.folds.assign import Assignment, Place
from mtil.data.layouts.record import Collection, Record
from mtil.data.parallel import Runner
from mtil.data.prepare import staging, tally, versions
from mtil.data.prepare.chunks import Chunks, Progress, refuse, silent, stores_of
from mtil.data.prepare.samples import Refused
from mtil.data.prepare.sources import Source, gather
from mtil.errors import DataError, StorageError, UserError
from mtil.storage import Store, open_store, split_uri

MAX_SHARD_BYTES = 64 * 2**20
SIZE_STEP = 32
MAX_IMAGE_SIZE = 2048
PROTOCOLS = ("grouped", "paper")
SETTINGS = (
    "image_size", "protocol", "fold_rule", "num_folds", "num_parts", "seed", "num_groups", "kept",
)  # fmt: skip
"""What must agree, beside the fingerprint, for a target to hold the same data."""

_MEANWHILE = "Another data set was written to {} meanwhile; choose another target."


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a data set is made."""

    image_size: int = 256
    """Side of the stored images."""
    num_folds: int = 5
    """How many folds to make, unless the sources or a splits file give them."""
    seed: int = 0
    """The folds' seed."""
    protocol: Literal["grouped", "paper"] = "grouped"
    """`grouped`, or `paper` for the literature's image-level folds of the tumour images."""
    holdout: str | None = None
    """A share, or a CSV file with `image_id`, of a final test set."""
    stratify: Literal["class", "class-and-size"] = "class-and-size"
    """What is spread evenly over the folds: classes, or terciles of lesion size within them too."""
    splits: str | None = None
    """A `splits.json` whose folds and parts to take."""
    skip_invalid: bool = False
    """Whether images that cannot be used are skipped and listed, instead of refused."""
    allow_drops: float | None = None
    """Share of the images, 0 to 1, that may be dropped or lie in one group of near-copies; by
    default that of `mtil.data.audit.drops`."""
    name: str | None = None
    """What to call the data set; its collections' names if none is given."""
    max_shard_bytes: int = MAX_SHARD_BYTES
    """About how large a shard may get."""

    def __post_init__(self) -> None:
        if self.image_size % SIZE_STEP or not SIZE_STEP <= self.image_size <= MAX_IMAGE_SIZE:
            raise DataError(
                f"The image size must be a multiple of {SIZE_STEP} from {SIZE_STEP} to "
                f"{MAX_IMAGE_SIZE}, but got {self.image_size}."
            )
        if not 2 <= self.num_folds <= fold_rules.MAX_FOLDS:
            raise DataError(
                f"There must be 2 to {fold_rules.MAX_FOLDS} folds, "
                f"but num_folds is {self.num_folds}."
            )
        drops.limits(self.allow_drops)  # refuses a share out of range
        if self.seed < 0:
            raise DataError(f"A seed must not be negative, but got {self.seed}.")
        if self.protocol not in PROTOCOLS:
            raise DataError(
                f"A protocol must be one of {', '.join(PROTOCOLS)}, but got {self.protocol!r}."
            )
        share = None if self.holdout is None else _share(self.holdout)
        if self.holdout == "" or (share is not None and not 0 < share < 1):
            raise DataError(
                f"A holdout must be a share between 0 and 1, or a file, but got {self.holdout!r}."
            )
        if self.splits is not None and self.holdout is not None:
            raise DataError("A splits file already says what is held out; leave --holdout away.")


def prepare(
    sources: Sequence[Source],
    to: str,
    settings: Settings | None = None,
    *,
    runner: Runner = parallel.processes,
    progress: Progress | None = None,
) -> Manifest:
    """Write collections as a data set and return its manifest.

    A target that already holds the same data is left alone, and its manifest returned.

    Args:
        sources: the collections.
        to: where the data set goes, a folder or an `s3://` URI.
        settings: how to make it.
        runner: what does the work on the pixels.
        progress: called with what is being done, the images done and their number.

    Raises:
        DataError: if a source is wrong or the target holds something else.
    """
    settings = settings or Settings()
    _check(settings, sources)
    target = open_store(to)
    collections = gather(sources, to)
    records = sorted(
        (record for collection in collections for record in collection.records),
        key=lambda record: record.sample_id,
    )
    chunks = Chunks(
        records=records,
        stores=stores_of(collections),
        image_size=settings.image_size,
        rows_per_chunk=staging.rows_per_chunk(settings.image_size, settings.max_shard_bytes),
        runner=runner,
        progress=progress or silent,
    )
    official = any(source.official_folds is not None for source in sources)
    job = _Preparation(settings, collections, chunks, "official" if official else settings.protocol)
    folder = f"{staging.FOLDER}/{chunks.key()}"
    existing = _existing(target, folder)
    made: _Decided | None = None
    if existing is None:
        try:
            made = job.decide(target, folder, keep_rows=True)
            return job.commit(target, folder, made)
        except UserError as error:
            if not target.exists(FILE_NAME):
                if not isinstance(error, StorageError):  # the same command would fail again
                    target.clear(folder, versions.STAGED)
                raise
        try:
            existing = manifests.load(target)  # of another process, which was faster
        except DataError:
            job.withdraw(target, folder, made)
            raise DataError(_MEANWHILE.format(target.uri)) from None
    return job.compare(target, folder, existing, made)


@dataclass(frozen=True)
class _Decided:
    """All but the shards."""

    manifest: Manifest
    audit: Audit
    assignment: Assignment
    places: Mapping[str, Place]


@dataclass(frozen=True)
class _Preparation:
    settings: Settings
    collections: Sequence[Collection]
    chunks: Chunks
    protocol: str
    """As the manifest says it."""

    @property
    def records(self) -> Sequence[Record]:
        """The images of all collections."""
        return self.chunks.records

    def decide(self, store: Store, folder: str, *, keep_rows: bool) -> _Decided:
        """Stage every chunk, then audit, group and fold."""
        self.chunks.stage(store, folder, keep_rows=keep_rows)
        refused = self.chunks.refused(store, folder)
        if not self.settings.skip_invalid:
            refuse(refused, self.collections)
        if len(refused) == len(self.records):
            raise DataError(f"No image can be used; the first says: {refused[0].why}")
        invalid = {item.sample_id for item in refused}
        usable = [record for record in self.records if record.sample_id not in invalid]
        given = None if self.settings.splits is None else splits.read_file(self.settings.splits)
        audit = audits.audit(
            usable, self.chunks.facts(store, folder), None if given is None else given.place
        )
        kept, dropped = self._kept(usable, audit)
        self._check_drops(dropped, refused, audit)
        assignment = self._assignment(kept, dropped, audit, given)
        places = {
            sample_id: Place(audit.grouping.family[sample_id], fold, part)
            for sample_id, (fold, part) in assignment.place.items()
        }
        manifest = self._manifest(kept, dropped, refused, assignment, places)
        made = tally.fingerprint(audit.facts, places, self.settings.image_size)
        return _Decided(replace(manifest, fingerprint=made), audit, assignment, places)

    def commit(self, target: Store, folder: str, made: _Decided) -> Manifest:
        """Write the shards, the audit, the manifest and, last, the splits.

        Shards and audit have names that no preparation of other data has, so that what another
        one writes to the target at the same time stays whole. The first manifest counts.

        Raises:
            DataError: if the target holds a data set meanwhile.
        """
        tag = self._tag(made.manifest)
        audit = f"audit/{tag}"
        done = self.chunks.finish(target, folder, made.places, audit=audit, mark=f"-{tag}")
        files = {**done.files, **audits.write(target, audit, made.audit, made.places)}
        files[splits.FILE_NAME] = file_of(versions.splits_text(made.manifest, made.places))
        manifest = replace(
            made.manifest, audit=audit, shards=done.shards, facts=done.facts, files=files
        )
        data = manifests.to_json(manifest)
        if not target.create(FILE_NAME, data) and target.read(FILE_NAME) != data:
            raise DataError(_MEANWHILE.format(target.uri))
        versions.publish(target, manifest)
        target.clear(folder, versions.STAGED)
        return manifest

    def compare(
        self, target: Store, folder: str, existing: Manifest, made: _Decided | None
    ) -> Manifest:
        """Make sure that the target's data set is the one that was asked for, and return it.

        Args:
            target: the target.
            folder: where chunks were staged in it.
            existing: the manifest of its data set.
            made: what was decided of the images, if that is known already.

        Raises:
            DataError: if the target holds other data.
        """
        found = made
        if found is None:  # look again, write nothing
            with TemporaryDirectory(prefix="mtil-prepare-") as scratch:
                # other machines do not see the scratch
                here = replace(self, chunks=replace(self.chunks, runner=parallel.processes))
                found = here.decide(open_store(scratch), folder, keep_rows=False)
        existing = manifests.find(target, found.manifest.fingerprint) or existing
        try:
            _refuse_other(target, existing, found.manifest)
        except DataError:
            self.withdraw(target, folder, made)
            raise
        target.clear(folder, versions.STAGED)
        return replace(_whole(target, existing), account=found.manifest.account)

    def withdraw(self, target: Store, folder: str, made: _Decided | None) -> None:
        """Delete what was staged and written in a target that holds other data by now.

        Args:
            target: the target.
            folder: where chunks were staged in it.
            made: what was decided of the images; None if nothing but staged chunks was written.
        """
        target.clear(folder, versions.STAGED)
        if made is not None:
            versions.withdraw(target, self._tag(made.manifest))

    def _tag(self, made: Manifest) -> str:
        """Return what the files of this preparation are called, and no other data's."""
        return versions.tag(1, self.chunks.content_key(manifests.to_json(made).decode()))

    def _kept(self, usable: Sequence[Record], audit: Audit) -> tuple[list[Record], list[Dropped]]:
        if self.settings.protocol == "grouped":
            kept = [record for record in usable if record.sample_id in audit.grouping.group]
            return kept, list(audit.grouping.dropped)
        why = fold_rules.NOT_IN_PAPER
        kept = [record for record in usable if record.label in fold_rules.TUMOURS]
        left = [record for record in usable if record.label not in fold_rules.TUMOURS]
        return kept, [Dropped(sample_id=record.sample_id, why=why) for record in left]

    def _check_drops(
        self, dropped: Sequence[Dropped], refused: Sequence[Refused], audit: Audit
    ) -> None:
        grouped = self.settings.protocol == "grouped"
        drops.check(
            self.records,
            dropped,
            [Dropped(sample_id=item.sample_id, why=item.why) for item in refused],
            audits.joined(audit.pairs) if grouped else [],
            drops.limits(self.settings.allow_drops),
            {c.records[0].source: c.name for c in self.collections},
        )

    def _assignment(
        self,
        kept: Sequence[Record],
        dropped: Sequence[Dropped],
        audit: Audit,
        given: Assignment | None,
    ) -> Assignment:
        settings = self.settings
        grouped = settings.protocol == "grouped"
        group = audit.grouping.family if grouped else {r.sample_id: r.sample_id for r in kept}
        if given is not None:
            taken = splits.of_kept(given, kept, group, whole_groups=grouped)
            fold_rules.check(kept, group, taken)
            return taken
        by_size = settings.stratify == "class-and-size"
        area = audit.area() if by_size else None
        holdout: set[str] = set()
        if settings.holdout is not None:
            share = _share(settings.holdout)
            holdout = (
                splits.read_holdout(settings.holdout, self.records, kept, group)
                if share is None
                else fold_rules.hold_out(kept, group, area, share=share, seed=settings.seed)
            )
        return fold_rules.assign(
            kept,
            group,
            area,
            num_folds=settings.num_folds,
            seed=settings.seed,
            holdout=holdout,
            rule=fold_rules.rule_name(grouped=grouped, by_size=by_size),
            dropped=dropped,
        )

    def _manifest(
        self,
        kept: Sequence[Record],
        dropped: Sequence[Dropped],
        refused: Sequence[Refused],
        assignment: Assignment,
        places: Mapping[str, Place],
    ) -> Manifest:
        settings = self.settings
        grouped = settings.protocol == "grouped"
        counts = tally.count(kept, places, assignment.num_folds, whole_groups=grouped)
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
            invalid=tuple(Dropped(sample_id=item.sample_id, why=item.why) for item in refused),
            shards=(),
            fingerprint="",
            account=account_of(self.collections, dropped, refused, [r.sample_id for r in kept]),
        )


def account_of(
    collections: Sequence[Collection],
    dropped: Sequence[Dropped],
    refused: Sequence[Refused],
    kept: Sequence[str],
    known: Iterable[str] = (),
) -> Account:
    """Return the account of collections that were prepared.

    Args:
        collections: what was read.
        dropped: images that were not kept.
        refused: images that cannot be used.
        kept: sample ids of the images that were.
        known: sample ids of images that the data set held before.

    Raises:
        AssertionError: if the files or the images do not add up.
    """
    why_dropped = {item.sample_id: item.why for item in dropped}
    invalid = {item.sample_id: item.why for item in refused}
    held, before = frozenset(kept), frozenset(known)
    return Account(
        sources=tuple(
            SourceAccount(
                name=collection.name,
                prefix=collection.records[0].source,
                files=collection.files,
                images=accounts.images_read(
                    [record.sample_id for record in collection.records],
                    why_dropped, invalid, held, before,
                ),
                notes=tuple(collection.notes),
                warnings=tuple(collection.warnings),
            )
            for collection in collections
        )
    )  # fmt: skip


def _check(settings: Settings, sources: Sequence[Source]) -> None:
    """Refuse what contradicts itself, and files that are not there, before an image is decoded."""
    official = any(source.official_folds is not None for source in sources)
    if official and (settings.splits is not None or settings.protocol == "paper"):
        other = "--splits" if settings.splits is not None else "--protocol paper"
        raise DataError(f"Folds must come from one place, but {other} and official folds are both "
                        "asked for; leave one away.")  # fmt: skip
    named = {"splits": settings.splits}
    if settings.holdout is not None and _share(settings.holdout) is None:
        named["holdout"] = settings.holdout
    for what, uri in named.items():
        if uri is not None:
            parent, name = split_uri(uri)
            if not open_store(parent).exists(name):
                raise DataError(f"The {what} file must exist, but {uri} does not; name another.")


def _share(text: str) -> float | None:
    """Return a holdout's share, or None if the text names a file."""
    try:
        return float(text)
    except ValueError:
        return None


def _existing(target: Store, folder: str) -> Manifest | None:
    if target.exists(FILE_NAME):
        return manifests.load(target)
    others = target.names()
    ours = any(name.startswith(f"{folder}/") for name in others)
    foreign = [name for name in others if not name.startswith(_OURS)]
    if foreign:
        raise DataError(
            f"A target must be empty, but {target.uri} holds {len(others)} files and no "
            f"{FILE_NAME}, such as {foreign[0]}; empty it or choose another."
        )
    if others and not ours:
        raise DataError(
            f"A target must be empty, but {target.uri} holds an unfinished preparation of other "
            "data; finish it with its own command, or delete it."
        )
    return None


_OURS = (f"{staging.FOLDER}/", "shards/", "audit/", splits.FILE_NAME)


def _refuse_other(target: Store, existing: Manifest, made: Manifest) -> None:
    free = {"seed", "fold_rule"} if made.fold_rule == splits.RULE else set()
    if existing.fold_rule == made.fold_rule == fold_rules.GIVEN:
        free.add("protocol")  # data sets of earlier versions do not say `official`
    for setting in (*SETTINGS, "fingerprint"):
        old, new = getattr(existing, setting), getattr(made, setting)
        if old != new and setting not in free:
            raise DataError(
                f"A target must be empty or hold the same data, but {target.uri} holds a data set "
                f"whose {setting} is {str(old)[:60]} where this one's is {str(new)[:60]}; "
                "choose another target."
            )


def _whole(target: Store, existing: Manifest) -> Manifest:
    for shard in existing.shards:
        if not target.exists(shard.path):
            raise DataError(
                f"The data set at {target.uri} has lost {shard.path}; "
                "delete it and prepare it again."
            )
    versions.repair(target, existing)
    return existing
