"""Summarise a data set and its audit from the stored manifest and audit tables."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from mtil.data.audit import findings
from mtil.data.audit.marks import NOTE_TEXTS
from mtil.data.dataset import account, manifest
from mtil.data.dataset.manifest import Manifest
from mtil.data.dataset.shards import LABELS
from mtil.data.folds.assign import TUMOURS
from mtil.data.prepare import versions
from mtil.documents import format_value
from mtil.errors import DataError
from mtil.storage import Store

_MAX_ODD_SHARE = 0.5
"""Share of odd masks in a source above which the masks may be inverted."""
_NUM_DRAWS = 200
_MAX_IMAGE_DRAWS = 20_000_000
"""Bound on images times draws: large data sets need fewer draws for the same precision."""
_NOTES = "notes"
_MASK_FLAGS = {
    "several components": "num_components",
    "touching the border": "touches_border",
    "implausible area": "implausible",
    "holes": "num_holes",
}


@dataclass(frozen=True)
class LeakageShares:
    """Leakage of image-level folds, averaged over random stratified folds."""

    twins: float
    """Share of the tumour images with a near-copy in a different fold."""
    family: float
    """Share of the tumour images with a group member in a different fold. Groups include
    patients."""


@dataclass(frozen=True)
class OddMasks:
    """A source with mostly odd tumour masks, as inverted masks would be."""

    source: str
    implausible: int
    """Number of masks with an implausibly small or large lesion."""
    touching: int
    """Number of masks with a lesion touching the border."""
    of: int
    """Number of tumour images of the source."""


@dataclass(frozen=True)
class Inspection:
    """Manifest and audit of a data set, summarised in counts and shares."""

    manifest: Manifest
    pairs: Mapping[str, int]
    """Number of near-copy pairs by decision."""
    cross_class: tuple[tuple[str, str], ...]
    """Sample ids of near-copy pairs with different classes."""
    parted: tuple[tuple[str, str], ...]
    """Sample ids of near-copy pairs in different folds: leaks left by a published file, given folds
    or the protocol."""
    duplicate_groups: int
    """Number of near-copy groups with at least two images."""
    duplicate_images: int
    """Number of images in the groups of `duplicate_groups`."""
    mixed_patients: int
    """Number of patients with images of two classes. All images of a patient still share a fold."""
    marks: Mapping[str, Mapping[str, float]]
    """Share of images with burnt-in `text` and with `calipers`, by mark and class."""
    masks: Mapping[str, int]
    """Number of tumour images with an unusual mask, by kind of oddity."""
    notes: Mapping[str, int]
    """Number of images with odd files, by key of `mtil.data.audit.marks.NOTE_TEXTS`."""
    odd_masks: tuple[OddMasks, ...]
    """Sources with masks that may be inverted."""
    leak: LeakageShares


def inspect_dataset(store: Store, fingerprint: str | None = None) -> Inspection:
    """Read a data set's manifest and audit, and summarise both.

    Args:
        store: the store of the data set.
        fingerprint: fingerprint of the version; None for the newest version.

    Raises:
        DataError: if there is no data set or no version with the fingerprint, or if the audit or
            `splits.json` differ from the manifest.
    """
    dataset = manifest.load_manifest(store, fingerprint)
    pairs, images = (
        findings.read_audit_table(store, dataset, name)
        for name in (findings.PAIRS_FILE, findings.IMAGES_FILE)
    )
    versions.check_splits(store)
    labels = images.column("label").to_numpy()
    _, sizes = np.unique(images.column("twins").to_numpy(zero_copy_only=False),
                             return_counts=True)  # fmt: skip
    fold = dict(
        zip(*(images.column(name).to_pylist() for name in ("sample_id", "fold")), strict=True)
    )
    unknown = {name for pair in _pair_ids(pairs) for name in pair} - fold.keys()
    if unknown:
        raise DataError(
            f"The audit of {store.uri} must list the images of its pairs, but lacks "
            f"{format_value(min(unknown))}. Prepare the data again."
        )
    class_pairs = pairs.filter(pa.compute.not_equal(pairs["class_a"], pairs["class_b"]))
    tumours = np.isin(labels, TUMOURS)
    return Inspection(
        manifest=dataset,
        pairs=dict(sorted(Counter(pairs.column("decision").to_pylist()).items())),
        cross_class=_pair_ids(class_pairs),
        parted=tuple(
            (a, b)
            for a, b in _pair_ids(pairs)
            if fold[a] is not None and fold[b] is not None and fold[a] != fold[b]
        ),
        duplicate_groups=int((sizes > 1).sum()),
        duplicate_images=int(sizes[sizes > 1].sum()),
        mixed_patients=_count_mixed_patients(images),
        marks={
            mark: {
                name: float(flags[labels == label].mean())
                for label, name in enumerate(LABELS)
                if (labels == label).any()
            }
            for mark in ("text", "calipers")
            for flags in [images.column(mark).to_numpy()]
        },
        masks={
            # A single component is usual, so `num_components` counts from 2, other columns from 1.
            name: int((values > (column == "num_components")).sum())
            for name, column in _MASK_FLAGS.items()
            for values in [images.column(column).to_numpy()[tumours].astype(np.int64)]
        },
        notes=_count_notes(images),
        odd_masks=_find_odd_masks(dataset, images.filter(pa.array(tumours))),
        leak=LeakageShares(
            *(
                estimate_leakage(
                    _integer_codes(images, column)[tumours], labels[tumours], dataset.num_folds
                )
                for column in ("twins", "group")
            )
        ),
    )


def estimate_leakage(
    group: npt.NDArray[np.int64], label: npt.NDArray[np.int8], num_folds: int, seed: int = 0
) -> float:
    """Return the share of images with a group member in a different image-level fold.

    The share is averaged over random folds of single images, stratified by class.

    Args:
        group: (n,) group index of each image.
        label: (n,) class of each image.
        num_folds: number of folds.
        seed: seed of the random folds.
    """
    if not len(group):
        return 0.0
    _, group, sizes = np.unique(group, return_inverse=True, return_counts=True)
    fold = np.empty(len(group), np.int64)
    shares = []
    rng = np.random.default_rng(seed)
    for _ in range(max(1, min(_NUM_DRAWS, _MAX_IMAGE_DRAWS // len(group)))):
        for label_value in np.unique(label):
            rows = np.flatnonzero(label == label_value)
            fold[rng.permutation(rows)] = np.arange(len(rows)) % num_folds
        group_fold_sizes = np.bincount(group * num_folds + fold, minlength=len(sizes) * num_folds)
        # An image leaks unless its fold holds its whole group.
        is_whole = group_fold_sizes[group * num_folds + fold] == sizes[group]
        shares.append(1 - is_whole.mean())
    return float(np.mean(shares))


def inspection_to_dict(found: Inspection) -> dict[str, Any]:
    """Convert an inspection to a JSON-compatible dict."""
    dataset = found.manifest
    return {
        "name": dataset.name,
        "version": dataset.version,
        "fingerprint": dataset.fingerprint,
        "protocol": dataset.protocol,
        "fold_rule": dataset.fold_rule,
        "read": dataset.read,
        "kept": dataset.kept,
        "groups": dataset.num_groups,
        "dropped": len(dataset.dropped),
        "invalid": len(dataset.invalid),
        "folds": dataset.folds,
        "holdout": dataset.holdout,
        "pairs": dict(found.pairs),
        "cross_class_pairs": [list(pair) for pair in found.cross_class],
        "parted_pairs": [list(pair) for pair in found.parted],
        "duplicate_groups": found.duplicate_groups,
        "duplicate_images": found.duplicate_images,
        "patients_of_two_classes": found.mixed_patients,
        "marks": {name: dict(shares) for name, shares in found.marks.items()},
        "masks": dict(found.masks),
        "notes": dict(found.notes),
        "odd_masks": [asdict(odd) for odd in found.odd_masks],
        "image_level_leakage": {"twins": found.leak.twins, "group": found.leak.family},
        "account": None if dataset.account is None else account.account_to_dict(dataset.account),
    }


def _count_notes(images: pa.Table) -> dict[str, int]:
    # Audits of earlier versions of mtil have no notes.
    if _NOTES not in images.column_names:
        return dict.fromkeys(NOTE_TEXTS, 0)
    notes = pa.compute.list_flatten(images.column(_NOTES)).to_pylist()
    return dict.fromkeys(NOTE_TEXTS, 0) | Counter(notes)


def _find_odd_masks(dataset: Manifest, tumours: pa.Table) -> tuple[OddMasks, ...]:
    """Return the sources with more than half of the masks implausible or touching the border."""
    ids = tumours.column("sample_id").to_pylist()
    # The longest matching prefix wins. The empty prefix, of a single collection, matches every
    # image.
    prefixes = sorted((source.prefix for source in dataset.sources), key=len, reverse=True)
    names = {source.prefix: source.name for source in dataset.sources}
    prefix_of = np.array(
        [next((p for p in prefixes if not p or name.startswith(f"{p}/")), "") for name in ids],
        dtype=object,
    )
    implausible, touching = (
        tumours.column(flag).to_numpy().astype(np.bool_)
        for flag in ("implausible", "touches_border")
    )
    odd = []
    for prefix in prefixes:
        in_source = prefix_of == prefix
        if (implausible | touching)[in_source].sum() > _MAX_ODD_SHARE * in_source.sum():
            counts = (
                int(implausible[in_source].sum()),
                int(touching[in_source].sum()),
                int(in_source.sum()),
            )
            odd.append(OddMasks(names[prefix], *counts))
    return tuple(odd)


def _count_mixed_patients(images: pa.Table) -> int:
    # Audits of earlier versions of mtil have no patients.
    if "patient" not in images.column_names:
        return 0
    known = images.select(["patient", "label"]).drop_null()
    classes = known.group_by("patient").aggregate([("label", "count_distinct")])
    return int(pa.compute.sum(pa.compute.greater(classes["label_count_distinct"], 1)).as_py() or 0)


def _pair_ids(pairs: pa.Table) -> tuple[tuple[str, str], ...]:
    names = (pairs.column(f"sample_id_{which}").to_pylist() for which in "ab")
    return tuple(zip(*names, strict=True))


def _integer_codes(images: pa.Table, column: str) -> npt.NDArray[np.int64]:
    encoded = images.column(column).combine_chunks().dictionary_encode()
    return np.asarray(encoded.indices.to_numpy(), dtype=np.int64)
