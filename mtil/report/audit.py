"""The page of a data set: content, near-copies, folds, marks and files."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from mtil.data.audit import findings
from mtil.data.audit.duplicates.description import THUMB_SIDE
from mtil.data.audit.marks import NOTE_TEXTS
from mtil.data.dataset.manifest import Manifest
from mtil.data.dataset.shards import LABELS, pixels
from mtil.data.inspection import Inspection
from mtil.data.prepare import staging
from mtil.report.charts.distributions import draw_histogram
from mtil.report.elements import Cell, Frame, Picture, Report, Section, Strip, Table
from mtil.report.gallery.layers import draw_outline, draw_thumbnail
from mtil.report.stored import StoredImage, read_images
from mtil.storage import Store

MAX_EXAMPLES = 7
"""Example images of each class."""
MAX_PAIRS = 60
"""Pairs of near-copies shown for each decision."""
MAX_ODD = 16
"""Images shown for each kind of odd mask."""
_ODD_MASKS = {
    "implausible": "implausible area",
    "touches_border": "touching the border",
    "num_holes": "holes",
    "num_components": "several components",
}
_KINDS = {"equal": "equal pixels", "edited": "edited copy"}


def build_audit(
    store: Store,
    inspection: Inspection,
    listen: Callable[[int, int], None] = lambda done, of: None,
) -> Report:
    """Return the page of a data set, made from manifest, audit and stored images.

    Args:
        store: the data set.
        inspection: manifest and audit of the data set, from `inspect_dataset`.
        listen: called with the numbers of images read and of all images.

    Raises:
        DataError: if a shard or a table of the audit is missing or damaged.
    """
    manifest = inspection.manifest
    pairs, images = (
        findings.read_audit_table(store, manifest, name)
        for name in (findings.PAIRS_FILE, findings.IMAGES_FILE)
    )
    by_id = {row["sample_id"]: row for row in images.to_pylist()}
    shown_pairs = _choose_pairs(pairs)
    odd = _choose_odd(by_id.values())
    examples = _choose_examples(row for row in by_id.values() if row["dropped"] is None)
    wanted = {name for pair in shown_pairs for name in (pair["sample_id_a"], pair["sample_id_b"])}
    wanted |= {name for names in (*odd.values(), *examples.values()) for name in names}
    pictures = _draw_dropped(store, manifest, wanted)
    rows: list[dict[str, Any]] = []
    for number, image in enumerate(read_images(store, manifest), start=1):
        rows.append(_measure(image))
        if image.sample_id in wanted:
            pictures[image.sample_id] = _draw(image)
        listen(number, manifest.num_rows)
    sections = (
        _make_content(inspection, rows, examples, pictures),
        _make_copies(inspection, shown_pairs, pairs, pictures),
        _make_folds(inspection),
        _make_marks(inspection, odd, pictures),
        _make_files(inspection),
    )
    return Report(
        title=f"Data set {manifest.name}",
        summary=_summarise(inspection),
        warnings=tuple(_list_warnings(inspection)),
        headline=None,
        sections=sections,
        footer=f"Version {manifest.version}, fingerprint {manifest.fingerprint}.",
    )


def _summarise(inspection: Inspection) -> str:
    manifest = inspection.manifest
    kept = ", ".join(f"{count} {name}" for name, count in manifest.kept.items())
    return (
        f"{manifest.read} images read, {len(manifest.dropped)} dropped; kept {kept} in "
        f"{manifest.num_groups} groups and {manifest.num_folds} folds. Folds of single images would"
        f" leak: {inspection.leak.family:.1%} of the tumour images would have a near-copy or an "
        "image of their group in another fold."
    )


def _list_warnings(inspection: Inspection) -> Iterable[str]:
    manifest = inspection.manifest
    if manifest.protocol == "paper":
        yield (
            "These folds leak: images were assigned one by one, as in most papers. "
            f"{len(inspection.parted)} pairs of near-copies lie in two folds."
        )
    elif inspection.parted:
        yield f"The folds leak: {len(inspection.parted)} pairs of near-copies lie in two folds."
    for odd in inspection.odd_masks:
        yield (
            f"Of {odd.of} tumour masks of {odd.source}, {odd.touching} touch the border and "
            f"{odd.implausible} are implausibly small or large: they may be inverted."
        )
    for source in manifest.sources:
        if not source.licence:
            yield f"{source.name} states no licence."


def _make_content(
    inspection: Inspection,
    rows: Sequence[Mapping[str, Any]],
    examples: Mapping[str, Sequence[str]],
    pictures: Mapping[str, Picture],
) -> Section:
    manifest = inspection.manifest
    sources = Table(
        name="sources",
        title="Collections",
        columns=("collection", "images read", "licence", "citation"),
        rows=tuple(
            (source.name, source.read, source.licence or "not stated", source.citation)
            for source in manifest.sources
        ),
    )
    by = "source" if len({row["source"] for row in rows}) > 1 else "label"
    tumours = [row for row in rows if row["label"] != "normal"]
    charts = tuple(
        draw_histogram(measured, column, name=name, title=title, axis=axis, by=by)
        for measured, column, name, title, axis in (
            (tumours, "area", "lesion-area", "Lesion size", "share of the image's area"),
            (rows, "mean", "intensity", "Mean gray value", "mean gray value of an image"),
            (rows, "side", "image-side", "Image size", "longer side in pixels"),
        )
    )
    strips = tuple(
        Strip(
            title=f"Examples: {label}",
            frames=tuple(Frame(caption="", pictures=(pictures[name],)) for name in names),
        )
        for label, names in examples.items()
    )
    return Section(name="content", title="Content", tables=(sources,), charts=charts, strips=strips)


def _make_copies(
    inspection: Inspection,
    shown: Sequence[Mapping[str, Any]],
    pairs: pa.Table,
    pictures: Mapping[str, Picture],
) -> Section:
    by_decision: dict[str, list[Frame]] = defaultdict(list)
    for pair in shown:
        names = (pair["sample_id_a"], pair["sample_id_b"])
        classes = pair["class_a"]
        if pair["class_a"] != pair["class_b"]:
            classes = f"{pair['class_a']} and {pair['class_b']}"
        by_decision[pair["decision"]].append(
            Frame(
                caption=f"{_KINDS.get(pair['kind'], pair['kind'])}, {classes}; distance "
                f"{pair['distance']}, correlation {pair['correlation']:.3f}",
                pictures=tuple(pictures.get(name, Picture(name=name, image="")) for name in names),
            )
        )
    strips = tuple(
        Strip(
            title=f"Near-copies: {decision}",
            frames=tuple(frames),
            note=(
                ""
                if len(frames) == inspection.pairs[decision]
                else f"{len(frames)} of {inspection.pairs[decision]} pairs are shown."
            ),
        )
        for decision, frames in by_decision.items()
    )
    decisions = Table(
        name="pairs",
        title="Near-copies",
        columns=("decision", "pairs"),
        rows=tuple(inspection.pairs.items()),
        note=f"{inspection.duplicate_images} images in {inspection.duplicate_groups} groups; "
        f"{len(inspection.cross_class)} pairs have two classes.",
    )
    dropped = Table(
        name="dropped",
        title="Dropped images",
        columns=("image", "reason"),
        rows=tuple((image.sample_id, image.why) for image in inspection.manifest.dropped),
        note="" if inspection.manifest.dropped else "None.",
    )
    return Section(
        name="copies",
        title="Near-copies and groups",
        paragraphs=(
            "Near-copies share a fold; near-copies of two classes are dropped. The distance is in "
            "bits of perceptual hashes; the correlation is that of small images of the tissue.",
        ),
        tables=(decisions, dropped),
        strips=strips,
    )


def _make_folds(inspection: Inspection) -> Section:
    manifest = inspection.manifest
    rows: list[tuple[Cell, ...]] = [
        (str(fold), *(counts.get(label, 0) for label in LABELS))
        for fold, counts in manifest.folds.items()
    ]
    if sum(manifest.holdout.values()):
        rows.append(("holdout", *(manifest.holdout.get(label, 0) for label in LABELS)))
    leak = inspection.leak
    return Section(
        name="folds",
        title="Folds",
        tables=(
            Table(
                name="folds",
                title=f"Images by fold: {manifest.fold_rule}, seed {manifest.seed}",
                columns=("fold", *LABELS),
                rows=tuple(rows),
            ),
            Table(
                name="leakage",
                title="What folds of single images would leak",
                columns=("tumour images with …", "share"),
                rows=(
                    ("a near-copy in another fold", f"{100 * leak.twins:.1f} %"),
                    ("an image of their group in another fold", f"{100 * leak.family:.1f} %"),
                ),
            ),
        ),
    )


def _make_marks(
    inspection: Inspection, odd: Mapping[str, Sequence[str]], pictures: Mapping[str, Picture]
) -> Section:
    classes = list(next(iter(inspection.marks.values())))
    marks = Table(
        name="marks",
        title="On the image",
        columns=("mark", *classes),
        rows=tuple(
            (name, *(f"{100 * shares[kind]:.1f} %" for kind in classes))
            for name, shares in inspection.marks.items()
        ),
    )
    masks = Table(
        name="masks",
        title="Masks of tumour images",
        columns=("oddity", "images"),
        rows=tuple(inspection.masks.items()),
    )
    strips = tuple(
        Strip(
            title=f"Masks: {_ODD_MASKS[flag]}",
            frames=tuple(Frame(caption="", pictures=(pictures[name],)) for name in names),
        )
        for flag, names in odd.items()
        if names
    )
    return Section(name="marks", title="Marks and masks", tables=(marks, masks), strips=strips)


def _make_files(inspection: Inspection) -> Section:
    rows = [
        (f"{count} images {NOTE_TEXTS[key]}",) for key, count in inspection.notes.items() if count
    ]
    invalid = inspection.manifest.invalid
    return Section(
        name="files",
        title="Files",
        tables=(
            Table(
                name="notes",
                title="Read in an unusual way",
                columns=("what",),
                rows=tuple(rows),
                note="" if rows else "None.",
            ),
            Table(
                name="invalid",
                title="Skipped as unusable",
                columns=("image", "reason"),
                rows=tuple((image.sample_id, image.why) for image in invalid),
                note="" if invalid else "None.",
            ),
        ),
    )


def _choose_pairs(pairs: pa.Table) -> list[dict[str, Any]]:
    """Return up to `MAX_PAIRS` pairs of each decision, those of two classes first."""
    chosen: dict[str, list[dict[str, Any]]] = defaultdict(list)
    rows = pairs.to_pylist()
    rows.sort(key=lambda row: (row["class_a"] == row["class_b"], row["distance"]))
    for row in rows:
        if len(chosen[row["decision"]]) < MAX_PAIRS:
            chosen[row["decision"]].append(row)
    return [row for rows in chosen.values() for row in rows]


def _choose_odd(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return ids of kept tumour images with odd masks, by flag."""
    chosen: dict[str, list[str]] = {flag: [] for flag in _ODD_MASKS}
    for row in rows:
        if row["dropped"] is not None or LABELS[row["label"]] == "normal":
            continue
        for flag, names in chosen.items():
            if int(row[flag]) > (flag == "num_components") and len(names) < MAX_ODD:
                names.append(row["sample_id"])
    return chosen


def _choose_examples(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return ids of a few images of each class, chosen by the digest of the id."""
    by_label: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        by_label[LABELS[row["label"]]].append(row["sample_id"])
    return {
        label: sorted(by_label[label], key=lambda name: hashlib.sha256(name.encode()).digest())[
            :MAX_EXAMPLES
        ]
        for label in LABELS
        if by_label[label]
    }


def _draw_dropped(store: Store, manifest: Manifest, wanted: set[str]) -> dict[str, Picture]:
    """Return small pictures from the facts of the audit. Dropped images have no stored pixels."""
    pictures: dict[str, Picture] = {}
    for name in manifest.facts:
        facts = staging.read_kept_facts(store, name, manifest.files)
        thumbs = pixels(facts.column("thumb")).reshape(-1, THUMB_SIDE, THUMB_SIDE)
        for sample_id, thumb in zip(facts["sample_id"].to_pylist(), thumbs, strict=True):
            if sample_id in wanted:
                pictures[sample_id] = Picture(
                    name=sample_id, image=draw_thumbnail(thumb, THUMB_SIDE, THUMB_SIDE)
                )
    return pictures


def _draw(image: StoredImage) -> Picture:
    return Picture(
        name=image.sample_id,
        image=draw_thumbnail(image.gray, image.width, image.height),
        layer=draw_outline(image.mask) if image.mask.any() else "",
        width=image.width,
        height=image.height,
    )


def _measure(image: StoredImage) -> dict[str, Any]:
    return {
        "source": image.source,
        "label": LABELS[image.label],
        "area": float(image.mask.mean()),
        "mean": float(np.mean(image.gray)),
        "side": max(image.height, image.width),
    }
