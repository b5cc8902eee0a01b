"""A collection to a data set: stage the pixels, audit, group and fold, then shards and manifest.

The manifest is written last, and without it there is no data set. What was staged stays in the
target when something outside fails, so that the same command goes on where it was; it is deleted
when the command cannot succeed.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from tempfile import TemporaryDirectory
from typing import Any, Literal

from mtil.data import audit as audits
from mtil.data import folds as fold_rules
from mtil.data import manifest as manifests
from mtil.data import running, splits, staging
from mtil.data.audit import Audit
from mtil.data.folds import HOLDOUT, Assignment
from mtil.data.layouts.record import Collection, Record
from mtil.data.manifest import FILE_NAME, Dropped, Manifest, SourceInfo
from mtil.data.running import Runner
from mtil.data.samples import Refused
from mtil.data.shards import LABELS
from mtil.data.sources import Source, gather
from mtil.data.staging import FinishJob, Place, StageJob
from mtil.errors import DataError, StorageError, UserError
from mtil.storage import Store, open_store

MAX_SHARD_BYTES = 64 * 2**20
SIZE_STEP = 32
MAX_IMAGE_SIZE = 2048
MAX_REASONS = 100
"""Wrong images that are named before the rest is not looked at."""
PROTOCOLS = ("grouped", "paper")
SETTINGS = (
    "image_size", "protocol", "fold_rule", "num_folds", "num_parts", "seed", "num_groups", "kept",
)  # fmt: skip
"""What must agree, beside the fingerprint, for a target to hold the same data."""

_MEANWHILE = "Another data set was written to {} meanwhile; choose another target."

Progress = Callable[[str, int, int], None]


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
    stratify: Literal["class", "class-and-size"] = "class"
    """What is spread evenly over the folds: classes, or terciles of lesion size within them too."""
    splits: str | None = None
    """A `splits.json` whose folds and parts to take."""
    skip_invalid: bool = False
    """Whether images that cannot be used are skipped and listed, instead of refused."""
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
        if self.seed < 0:
            raise DataError(f"A seed must not be negative, but got {self.seed}.")
        if self.protocol not in PROTOCOLS:
            raise DataError(
                f"A protocol must be one of {', '.join(PROTOCOLS)}, but got {self.protocol!r}."
            )
        if self.splits is not None and self.holdout is not None:
            raise DataError("A splits file already says what is held out; leave --holdout away.")


def prepare(
    sources: Sequence[Source],
    to: str,
    settings: Settings | None = None,
    *,
    runner: Runner = running.processes,
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
    target = open_store(to)
    collections = gather(sources)
    records = sorted(
        (record for collection in collections for record in collection.records),
        key=lambda record: record.sample_id,
    )
    job = _Preparation(settings, collections, records, runner, progress or _silent)
    folder = f"{staging.FOLDER}/{job.key()}"
    existing = _existing(target, folder)
    with ExitStack() as stack:
        if existing is not None:  # look again, write nothing
            scratch = stack.enter_context(TemporaryDirectory(prefix="mtil-prepare-"))
            here = replace(job, runner=running.processes)  # other machines do not see the scratch
            made = here.decide(open_store(scratch), folder, keep_rows=False)
            _refuse_other(target, existing, made.manifest)
            target.clear(folder)
            return _whole(target, existing)
        try:
            made = job.decide(target, folder, keep_rows=True)
            return job.commit(target, folder, made)
        except UserError as error:
            if not isinstance(error, StorageError):  # the same command would fail again
                target.clear(folder)
            raise


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
    records: Sequence[Record]
    runner: Runner
    progress: Progress

    def key(self) -> str:
        """Return what tells this preparation's staged chunks from another's."""
        values = [
            staging.FORMAT,
            self.settings.image_size,
            self._rows_per_chunk(),
            [collection.store.uri for collection in self.collections],
        ]
        found = hashlib.sha256(json.dumps(values).encode())
        for record in self.records:
            found.update(json.dumps(asdict(record)).encode())
        return found.hexdigest()[:16]

    def decide(self, store: Store, folder: str, *, keep_rows: bool) -> _Decided:
        """Stage every chunk, then audit, group and fold."""
        chunks = self._chunks()
        stores = {c.records[0].source: c.store.uri for c in self.collections}
        jobs = [
            StageJob(
                number=number,
                records=tuple(chunk),
                stores=stores,
                target=store.uri,
                folder=folder,
                image_size=self.settings.image_size,
                keep_rows=keep_rows,
            )
            for number, chunk in enumerate(chunks)
        ]
        self._run("reading", staging.stage, jobs, [len(chunk) for chunk in chunks])
        refused = self._refused(store, folder, len(chunks))
        invalid = {item.sample_id for item in refused}
        usable = [record for record in self.records if record.sample_id not in invalid]
        facts = (staging.read_facts(store, folder, number) for number in range(len(chunks)))
        audit = audits.audit(usable, facts, len(usable))
        kept, dropped = self._kept(usable, audit)
        assignment = self._assignment(kept, audit)
        places = {
            sample_id: Place(audit.grouping.family[sample_id], fold, part)
            for sample_id, (fold, part) in assignment.place.items()
        }
        manifest = self._manifest(kept, dropped, refused, assignment, places)
        digests = [
            staging.digest(row, places[row["sample_id"]], self.settings.image_size)
            for batch in audit.facts.to_batches()
            for row in batch.to_pylist()
            if row["sample_id"] in places
        ]
        manifest = replace(manifest, fingerprint=staging.fingerprint(digests))
        return _Decided(manifest, audit, assignment, places)

    def commit(self, target: Store, folder: str, made: _Decided) -> Manifest:
        """Write the shards, the audit, the splits and, last, the manifest."""
        if target.exists(FILE_NAME):
            raise DataError(_MEANWHILE.format(target.uri))
        target.clear("shards")  # of an attempt that was interrupted
        jobs: list[FinishJob] = []
        for number, chunk in enumerate(self._chunks()):
            ids = [record.sample_id for record in chunk]
            places = {name: made.places[name] for name in ids if name in made.places}
            if places:
                jobs.append(
                    FinishJob(
                        number=number,
                        shard=len(jobs),
                        places=places,
                        target=target.uri,
                        folder=folder,
                        image_size=self.settings.image_size,
                    )
                )
        shards = self._run("writing", staging.finish, jobs, [len(job.places) for job in jobs])
        fold = {sample_id: place.fold for sample_id, place in made.places.items()}
        audits.write(target, made.audit, fold)
        target.write(splits.FILE_NAME, splits.to_json(made.assignment, made.audit.grouping.family))
        manifest = replace(made.manifest, shards=tuple(shards))
        data = manifests.to_json(manifest)
        if not target.create(FILE_NAME, data) and target.read(FILE_NAME) != data:
            raise DataError(_MEANWHILE.format(target.uri))
        target.clear(folder)
        return manifest

    def _rows_per_chunk(self) -> int:
        return staging.rows_per_chunk(self.settings.image_size, self.settings.max_shard_bytes)

    def _chunks(self) -> list[Sequence[Record]]:
        step = self._rows_per_chunk()
        return [self.records[at : at + step] for at in range(0, len(self.records), step)]

    def _run(self, what: str, function: Any, jobs: Sequence[Any], sizes: Sequence[int]) -> Any:
        done, of = 0, sum(sizes)

        def listen(images: int) -> None:
            nonlocal done
            done += images
            self.progress(what, done, of)

        return self.runner(function, jobs, sizes, listen)

    def _refused(self, store: Store, folder: str, num_chunks: int) -> list[Refused]:
        """Return the images that cannot be used, or raise if they may not be skipped."""
        found = [
            item
            for number in range(num_chunks)
            for item in staging.read_refused(store, folder, number)
        ]
        if not found or self.settings.skip_invalid:
            if len(found) == len(self.records):
                raise DataError(f"No image can be used; the first says: {found[0].why}")
            return found
        if len(found) == 1:
            raise DataError(found[0].why)
        shown = "\n".join(f"- {item.why}" for item in found[:MAX_REASONS])
        raise DataError(
            f"{len(found)} of {len(self.records)} images cannot be used; correct them or add "
            f"--skip-invalid:\n{shown}"
            + (f"\n- and {len(found) - MAX_REASONS} more" if len(found) > MAX_REASONS else "")
        )

    def _kept(self, usable: Sequence[Record], audit: Audit) -> tuple[list[Record], list[Dropped]]:
        if self.settings.protocol == "grouped":
            kept = [record for record in usable if record.sample_id in audit.grouping.group]
            return kept, list(audit.grouping.dropped)
        why = "the paper protocol is about tumour images"
        kept = [record for record in usable if record.label in fold_rules.TUMOURS]
        left = [record for record in usable if record.label not in fold_rules.TUMOURS]
        return kept, [Dropped(sample_id=record.sample_id, why=why) for record in left]

    def _assignment(self, kept: Sequence[Record], audit: Audit) -> Assignment:
        settings = self.settings
        grouped = settings.protocol == "grouped"
        group = audit.grouping.family if grouped else {r.sample_id: r.sample_id for r in kept}
        if settings.splits is not None:
            return splits.read_file(settings.splits, kept, group, whole_groups=grouped)
        by_size = settings.stratify == "class-and-size"
        area = audit.area() if by_size else None
        holdout: set[str] = set()
        if settings.holdout is not None:
            share = _share(settings.holdout)
            holdout = (
                splits.read_holdout(settings.holdout, kept, group)
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
            rule=("grouped" if grouped else "image-level")
            + (" stratified by class and size" if by_size else " stratified"),
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
        names = [str(fold) for fold in range(assignment.num_folds)]
        folds = {name: dict.fromkeys(LABELS, 0) for name in names}
        held = dict.fromkeys(LABELS, 0)
        fold_of: dict[str, int] = {}
        for record in kept:
            place = places[record.sample_id]
            counts = held if place.fold == HOLDOUT else folds[str(place.fold)]
            counts[LABELS[record.label]] += 1
            before = fold_of.setdefault(place.group, place.fold)
            assert before == place.fold or settings.protocol == "paper", "a group in two folds"
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
            protocol=settings.protocol,
            fold_rule=assignment.rule,
            num_folds=assignment.num_folds,
            num_parts=assignment.num_parts,
            seed=settings.seed,
            num_groups=len(fold_of),
            read=len(self.records),
            kept={name: held[name] + sum(fold[name] for fold in folds.values()) for name in LABELS},
            folds=folds,
            holdout=held,
            dropped=tuple(dropped),
            invalid=tuple(Dropped(sample_id=item.sample_id, why=item.why) for item in refused),
            shards=(),
            fingerprint="",
        )


def _silent(what: str, done: int, of: int) -> None:
    """Take progress that nobody wants to see."""


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
    for setting in (*SETTINGS, "fingerprint"):
        old, new = getattr(existing, setting), getattr(made, setting)
        if old != new:
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
    return existing
