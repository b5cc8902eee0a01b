"""Read the existing images of a data set from the stored facts and audit."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from mtil.data.audit import findings as audits
from mtil.data.audit.findings import NearCopyPair
from mtil.data.dataset.manifest import DroppedImage, Manifest
from mtil.data.folds.assign import SamplePlace
from mtil.data.layouts.record import Record
from mtil.data.prepare import image_counts, staging
from mtil.documents import format_value
from mtil.errors import DataError
from mtil.storage import Store

_AUDIT_COLUMNS = ("sample_id", "group", "twins", "fold", "part", "dropped")
_RECORD_COLUMNS = ("sample_id", "label", "source", "patient", "published", "given")
_CONTENT_COLUMNS = ("sha256", "mask_sha256")


@dataclass(frozen=True, slots=True)
class ContentDigests:
    """SHA-256 digests of an image's pixels and mask."""

    sha256: bytes
    mask_sha256: bytes


@dataclass(frozen=True)
class ExistingImages:
    """Existing images of a data set version. All mappings are by sample id."""

    store: Store
    manifest: Manifest
    records: Mapping[str, Record]
    """Records of all usable images, kept or dropped, without file names."""
    content: Mapping[str, ContentDigests]
    family: Mapping[str, str]
    """Group of each image, including dropped images."""
    twins: Mapping[str, str]
    places: Mapping[str, SamplePlace]
    """Group, fold and part of the kept images."""
    dropped: tuple[DroppedImage, ...]
    """Images dropped by the audit."""
    pairs: tuple[NearCopyPair, ...]

    def facts(self) -> Iterator[pa.Table]:
        """Yield the facts of the images, file by file."""
        for name in self.manifest.facts:
            yield staging.read_kept_facts(self.store, name, self.manifest.files)


def read_existing_images(store: Store, manifest: Manifest) -> ExistingImages:
    """Read the existing images of a data set version.

    Raises:
        DataError: if the version has no facts, or if facts or audit are missing or changed.
    """
    if not manifest.facts:
        raise DataError(
            f"Appended images are compared with facts of the existing images, but {store.uri} was "
            "prepared without facts. Prepare all images again, to a new target."
        )
    images = audits.read_audit_table(store, manifest, audits.IMAGES_FILE)
    ids, *decisions = (images.column(name).to_pylist() for name in _AUDIT_COLUMNS)
    groups, twins, folds, parts, dropped = decisions
    records: dict[str, Record] = {}
    content: dict[str, ContentDigests] = {}
    fact_tables: list[pa.Table] = []
    for name in manifest.facts:
        table = staging.read_kept_facts(
            store, name, manifest.files, (*_RECORD_COLUMNS, *_CONTENT_COLUMNS)
        )
        fact_tables.append(table)
        for row in table.to_pylist():
            records[row["sample_id"]] = _make_record(row)
            content[row["sample_id"]] = ContentDigests(row["sha256"], row["mask_sha256"])
    places = {
        name: SamplePlace(group, fold, part)
        for name, group, fold, part in zip(ids, groups, folds, parts, strict=True)
        if fold is not None
    }
    # The fingerprint covers pixels, masks, classes and places, so a changed fact or place is
    # noticed here.
    fingerprint = image_counts.compute_fingerprint(
        pa.concat_tables(fact_tables), places, manifest.image_size
    )
    if fingerprint != manifest.fingerprint or set(ids) != records.keys():
        raise DataError(
            f"The audit of {store.uri} does not match the images. Prepare all images again."
        )
    return ExistingImages(
        store=store,
        manifest=manifest,
        records=records,
        content=content,
        family=dict(zip(ids, groups, strict=True)),
        twins=dict(zip(ids, twins, strict=True)),
        places=places,
        dropped=tuple(
            DroppedImage(sample_id=name, why=why)
            for name, why in zip(ids, dropped, strict=True)
            if why is not None
        ),
        pairs=tuple(
            NearCopyPair(
                row["sample_id_a"],
                row["sample_id_b"],
                row["distance"],
                row["correlation"],
                row["kind"],
                row["decision"],
            )
            for row in audits.read_audit_table(store, manifest, audits.PAIRS_FILE).to_pylist()
        ),
    )


def _make_record(row: Mapping[str, Any]) -> Record:
    return Record(
        sample_id=row["sample_id"],
        label=row["label"],
        image="",
        masks=(),
        patient=row["patient"],
        fold=None if row["given"] is None else _parse_fold(row["given"]),
        source=row["source"],
        published=row["published"],
    )


def _parse_fold(text: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,20}", text):
        raise DataError(
            f"A given fold must be an integer, but the facts have {format_value(text)}."
        )
    return int(text)


def check_unchanged(known: ExistingImages, record: Record, found: ContentDigests, uri: str) -> None:
    """Raise if an appended image differs from the existing image with its sample id.

    Args:
        known: the existing images.
        record: the appended image.
        found: digests of the appended image.
        uri: URI of the collection.

    Raises:
        DataError: if the images differ; names the image and the difference.
    """
    existing, existing_content = known.records[record.sample_id], known.content[record.sample_id]
    place = known.places.get(record.sample_id)
    differs = {
        "source": record.source != existing.source,
        "pixels": found.sha256 != existing_content.sha256,
        "class": record.label != existing.label,
        "mask": found.mask_sha256 != existing_content.mask_sha256,
        "patient": _both_known_and_differ(record.patient, existing.patient),
        "published group": _both_known_and_differ(record.published, existing.published),
        "given fold": place is not None and _both_known_and_differ(record.fold, place.fold),
    }
    for what, is_different in differs.items():
        if is_different:
            raise DataError(
                f"An existing image must not change, but {record.sample_id!r} of {uri} has another "
                f"{what} than in {known.store.uri}. Give a new image a new sample id, or prepare "
                "all images again."
            )


def _both_known_and_differ(new: object, old: object) -> bool:
    """Return whether both values are known and differ."""
    # A collection may leave out a patient, group or fold given before.
    return new is not None and old is not None and new != old
