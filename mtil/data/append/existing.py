"""The images that a data set has already, by the facts and the audit that were written with it."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from mtil.data.audit import findings as audits
from mtil.data.audit.findings import Pair
from mtil.data.dataset.manifest import Dropped, Manifest
from mtil.data.folds.assign import Place
from mtil.data.layouts.record import Record
from mtil.data.prepare import staging, tally
from mtil.documents import shown
from mtil.errors import DataError
from mtil.storage import Store

_DECIDED = ("sample_id", "group", "twins", "fold", "part", "dropped")
_OF_RECORDS = ("sample_id", "label", "source", "patient", "published", "given")
_OF_CONTENT = ("sha256", "mask_sha256")


@dataclass(frozen=True, slots=True)
class Content:
    """What an image's file and its masks hold."""

    sha256: bytes
    mask_sha256: bytes


@dataclass(frozen=True)
class Known:
    """What is known of the images of a data set's version; mappings are by sample id."""

    store: Store
    manifest: Manifest
    records: Mapping[str, Record]
    """All that were usable, kept or not, without their files."""
    content: Mapping[str, Content]
    family: Mapping[str, str]
    """The group, also of images that were dropped."""
    twins: Mapping[str, str]
    places: Mapping[str, Place]
    """Of the images that are kept."""
    dropped: tuple[Dropped, ...]
    """Those that the audit dropped."""
    pairs: tuple[Pair, ...]

    def facts(self) -> Iterator[pa.Table]:
        """Yield what the images are like, file by file."""
        for name in self.manifest.facts:
            yield staging.read_kept_facts(self.store, name, self.manifest.files)


def read(store: Store, manifest: Manifest) -> Known:
    """Read what is known of a version's images.

    Raises:
        DataError: if it was not written, or not all of it is there any more.
    """
    if not manifest.facts:
        raise DataError(
            f"Images are compared with what was noted of those before, but {store.uri} was "
            "prepared before that was kept; prepare all images again, to another target."
        )
    images = audits.read(store, manifest, audits.IMAGES)
    ids, *decided = (images.column(name).to_pylist() for name in _DECIDED)
    groups, twins, folds, parts, dropped = decided
    records: dict[str, Record] = {}
    content: dict[str, Content] = {}
    small: list[pa.Table] = []
    for name in manifest.facts:
        table = staging.read_kept_facts(store, name, manifest.files, (*_OF_RECORDS, *_OF_CONTENT))
        small.append(table)
        for row in table.to_pylist():
            records[row["sample_id"]] = _record(row)
            content[row["sample_id"]] = Content(row["sha256"], row["mask_sha256"])
    places = {
        name: Place(group, fold, part)
        for name, group, fold, part in zip(ids, groups, folds, parts, strict=True)
        if fold is not None
    }
    made = tally.fingerprint(pa.concat_tables(small), places, manifest.image_size)
    if made != manifest.fingerprint or set(ids) != records.keys():
        raise DataError(
            f"The audit of {store.uri} must be that of its images, but it has changed; prepare all "
            "images again."
        )
    return Known(
        store=store,
        manifest=manifest,
        records=records,
        content=content,
        family=dict(zip(ids, groups, strict=True)),
        twins=dict(zip(ids, twins, strict=True)),
        places=places,
        dropped=tuple(
            Dropped(sample_id=name, why=why)
            for name, why in zip(ids, dropped, strict=True)
            if why is not None
        ),
        pairs=tuple(
            Pair(
                row["sample_id_a"],
                row["sample_id_b"],
                row["distance"],
                row["correlation"],
                row["kind"],
                row["decision"],
            )
            for row in audits.read(store, manifest, audits.PAIRS).to_pylist()
        ),
    )


def _record(row: Mapping[str, Any]) -> Record:
    return Record(
        sample_id=row["sample_id"],
        label=row["label"],
        image="",
        masks=(),
        patient=row["patient"],
        fold=None if row["given"] is None else _number(row["given"]),
        source=row["source"],
        published=row["published"],
    )


def _number(text: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,20}", text):
        raise DataError(f"A given fold must be a number, but the facts have {shown(text)}.")
    return int(text)


def check_same(known: Known, record: Record, found: Content, uri: str) -> None:
    """Refuse an image that a data set has under its sample id, if it is another.

    Args:
        known: what the data set has.
        record: the image.
        found: what its files hold.
        uri: where it lies.

    Raises:
        DataError: naming the image and what differs.
    """
    before, content = known.records[record.sample_id], known.content[record.sample_id]
    place = known.places.get(record.sample_id)
    differs = {
        "source": record.source != before.source,
        "pixels": found.sha256 != content.sha256,
        "class": record.label != before.label,
        "mask": found.mask_sha256 != content.mask_sha256,
        "patient": _other(record.patient, before.patient),
        "published group": _other(record.published, before.published),
        "given fold": place is not None and _other(record.fold, place.fold),
    }
    for what, other in differs.items():
        if other:
            raise DataError(
                f"An image that a data set has must stay as it is, but {record.sample_id!r} of "
                f"{uri} has another {what} than that of {known.store.uri}; give a new image "
                "another id, or prepare all images again."
            )


def _other(new: object, old: object) -> bool:
    """Say whether both are known and differ."""
    return new is not None and old is not None and new != old
