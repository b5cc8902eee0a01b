"""What a data set holds and what its audit found, from the files that were written with it."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from mtil.data.audit import findings
from mtil.data.audit.marks import NOTES
from mtil.data.dataset import account, manifest
from mtil.data.dataset.manifest import Manifest
from mtil.data.dataset.shards import LABELS
from mtil.data.folds.assign import TUMOURS
from mtil.data.prepare import versions
from mtil.documents import shown
from mtil.errors import DataError
from mtil.storage import Store

_MOST = 0.5
"""A source more of whose masks are odd may have inverted ones."""
_DRAWS = 200
_MOST_WORK = 20_000_000
"""Images times draws; large sets need fewer draws for the same precision."""
_NOTES = "notes"
_MASK_FLAGS = {
    "several components": "num_components",
    "touching the border": "touches_border",
    "implausible area": "implausible",
    "holes": "num_holes",
}


@dataclass(frozen=True)
class Leak:
    """What folds of single images would share, on average over random stratified folds."""

    twins: float
    """Share of the tumour images that have a near-copy in another fold."""
    family: float
    """The same, counting images of the same patient too."""


@dataclass(frozen=True)
class OddMasks:
    """A source most of whose tumour masks look wrong, as inverted ones do."""

    source: str
    implausible: int
    """Masks whose lesion is implausibly small or large."""
    touching: int
    """Masks whose lesion touches the border."""
    of: int
    """Tumour images of the source."""


@dataclass(frozen=True)
class Inspection:
    """A data set's manifest and audit in figures."""

    manifest: Manifest
    pairs: Mapping[str, int]
    """Pairs that show the same, by decision."""
    cross_class: tuple[tuple[str, str], ...]
    """Pairs of two classes."""
    parted: tuple[tuple[str, str], ...]
    """Pairs that lie in two folds: what a published file, given folds or the protocol lets leak."""
    duplicate_groups: int
    """Groups of near-copies with more than one image."""
    duplicate_images: int
    mixed_patients: int
    """Patients with images of two classes, which share a fold all the same."""
    marks: Mapping[str, Mapping[str, float]]
    """Share of the images with burnt-in text and with calipers, by class."""
    masks: Mapping[str, int]
    """Images whose mask looks unusual, by what is unusual."""
    notes: Mapping[str, int]
    """Images whose files are odd, by the keys of `mtil.data.audit.marks.NOTES`."""
    odd_masks: tuple[OddMasks, ...]
    """Sources whose masks may be inverted."""
    leak: Leak


def inspect(store: Store, fingerprint: str | None = None) -> Inspection:
    """Read what a data set's audit says.

    Args:
        store: the data set's.
        fingerprint: which version's; the newest if none is given.

    Raises:
        DataError: if there is no such data set, or its audit or `splits.json` are not those that
            were written with it.
    """
    made = manifest.load(store, fingerprint)
    pairs, images = (findings.read(store, made, name) for name in (findings.PAIRS, findings.IMAGES))
    versions.check_splits(store)
    labels = images.column("label").to_numpy()
    _, sizes = np.unique(images.column("twins").to_numpy(zero_copy_only=False),
                             return_counts=True)  # fmt: skip
    fold = dict(
        zip(*(images.column(name).to_pylist() for name in ("sample_id", "fold")), strict=True)
    )
    unknown = {name for pair in _ids(pairs) for name in pair} - fold.keys()
    if unknown:
        raise DataError(
            f"The audit of {store.uri} must list the images of its pairs, but lacks "
            f"{shown(min(unknown))}; prepare the data again."
        )
    different = pairs.filter(pa.compute.not_equal(pairs["class_a"], pairs["class_b"]))
    tumours = np.isin(labels, TUMOURS)
    return Inspection(
        manifest=made,
        pairs=dict(sorted(Counter(pairs.column("decision").to_pylist()).items())),
        cross_class=_ids(different),
        parted=tuple(
            (one, other)
            for one, other in _ids(pairs)
            if fold[one] is not None and fold[other] is not None and fold[one] != fold[other]
        ),
        duplicate_groups=int((sizes > 1).sum()),
        duplicate_images=int(sizes[sizes > 1].sum()),
        mixed_patients=_mixed_patients(images),
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
            name: int((values > (column == "num_components")).sum())
            for name, column in _MASK_FLAGS.items()
            for values in [images.column(column).to_numpy()[tumours].astype(np.int64)]
        },
        notes=_notes(images),
        odd_masks=_odd_masks(made, images.filter(pa.array(tumours))),
        leak=Leak(
            *(
                leakage(_codes(images, column)[tumours], labels[tumours], made.num_folds)
                for column in ("twins", "group")
            )
        ),
    )


def leakage(
    group: npt.NDArray[np.int64], label: npt.NDArray[np.int8], num_folds: int, seed: int = 0
) -> float:
    """Return the share of images with one of their group in another fold of single images.

    An average over random folds that are stratified by class.

    Args:
        group: (n,) number of each image's group.
        label: (n,) class.
        num_folds: how many folds.
        seed: of the random folds.
    """
    if not len(group):
        return 0.0
    _, group, sizes = np.unique(group, return_inverse=True, return_counts=True)
    fold = np.empty(len(group), np.int64)
    shares = []
    rng = np.random.default_rng(seed)
    for _ in range(max(1, min(_DRAWS, _MOST_WORK // len(group)))):
        for kind in np.unique(label):
            rows = np.flatnonzero(label == kind)
            fold[rng.permutation(rows)] = np.arange(len(rows)) % num_folds
        here = np.bincount(group * num_folds + fold, minlength=len(sizes) * num_folds)
        alone = here[group * num_folds + fold] == sizes[group]
        shares.append(1 - alone.mean())
    return float(np.mean(shares))


def to_dict(found: Inspection) -> dict[str, Any]:
    """Return the inspection as what JSON can hold."""
    made = found.manifest
    return {
        "name": made.name,
        "version": made.version,
        "fingerprint": made.fingerprint,
        "protocol": made.protocol,
        "fold_rule": made.fold_rule,
        "read": made.read,
        "kept": made.kept,
        "groups": made.num_groups,
        "dropped": len(made.dropped),
        "invalid": len(made.invalid),
        "folds": made.folds,
        "holdout": made.holdout,
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
        "account": None if made.account is None else account.to_dict(made.account),
    }


def _notes(images: pa.Table) -> dict[str, int]:
    if _NOTES not in images.column_names:  # an audit of an earlier version of this program
        return dict.fromkeys(NOTES, 0)
    said = pa.compute.list_flatten(images.column(_NOTES)).to_pylist()
    return dict.fromkeys(NOTES, 0) | Counter(said)


def _odd_masks(made: Manifest, tumours: pa.Table) -> tuple[OddMasks, ...]:
    """Return the sources more than half of whose masks are implausible or touch the border."""
    ids = tumours.column("sample_id").to_pylist()
    prefixes = sorted((source.prefix for source in made.sources), key=len, reverse=True)
    names = {source.prefix: source.name for source in made.sources}
    of = np.array(
        [next((p for p in prefixes if not p or name.startswith(f"{p}/")), "") for name in ids],
        dtype=object,
    )
    implausible, touching = (
        tumours.column(flag).to_numpy().astype(np.bool_)
        for flag in ("implausible", "touches_border")
    )
    odd = []
    for prefix in prefixes:
        here = of == prefix
        if (implausible | touching)[here].sum() > _MOST * here.sum():
            counts = int(implausible[here].sum()), int(touching[here].sum()), int(here.sum())
            odd.append(OddMasks(names[prefix], *counts))
    return tuple(odd)


def _mixed_patients(images: pa.Table) -> int:
    if "patient" not in images.column_names:  # an audit of an earlier version of this program
        return 0
    known = images.select(["patient", "label"]).drop_null()
    classes = known.group_by("patient").aggregate([("label", "count_distinct")])
    return int(pa.compute.sum(pa.compute.greater(classes["label_count_distinct"], 1)).as_py() or 0)


def _ids(pairs: pa.Table) -> tuple[tuple[str, str], ...]:
    names = (pairs.column(f"sample_id_{which}").to_pylist() for which in "ab")
    return tuple(zip(*names, strict=True))


def _codes(images: pa.Table, column: str) -> npt.NDArray[np.int64]:
    encoded = images.column(column).combine_chunks().dictionary_encode()
    return np.asarray(encoded.indices.to_numpy(), dtype=np.int64)
