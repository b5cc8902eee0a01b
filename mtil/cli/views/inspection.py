"""Print the content of a data set and the findings of its audit."""

from mtil.cli.console import CommandOutput
from mtil.cli.views.account import print_account
from mtil.data.audit.marks import NOTE_TEXTS
from mtil.data.inspection import Inspection

_MAX_LISTED_PAIRS = 20


def print_inspection(inspection: Inspection, output: CommandOutput) -> None:
    """Print counts, folds, sources, near-copies, leakage, marks and odd masks of a data set."""
    manifest = inspection.manifest
    kept = ", ".join(f"{count} {name}" for name, count in manifest.kept.items())
    output.line(
        f"{manifest.name}, version {manifest.version}, {manifest.image_size} pixels, "
        f"{manifest.fingerprint[:12]}…"
    )
    output.line(
        f"{manifest.read} images read, {len(manifest.invalid)} skipped, "
        f"{len(manifest.dropped)} dropped; kept {kept} in {manifest.num_groups} groups."
    )
    output.line(f"{manifest.num_folds} folds, {manifest.fold_rule}, seed {manifest.seed}.")
    for source in manifest.sources:
        output.line(f"{source.name}: {source.read} images. {source.licence}. {source.citation}")
    output.line("")
    output.line(
        f"Near-copies: {inspection.duplicate_images} images in {inspection.duplicate_groups} "
        f"groups; {len(inspection.cross_class)} pairs have two classes."
    )
    if inspection.mixed_patients:
        output.line(
            "Patients with images of two classes, each kept in one fold: "
            f"{inspection.mixed_patients}."
        )
    for decision, count in inspection.pairs.items():
        output.line(f"  {count} pairs {decision}")
    for first, second in inspection.cross_class[:_MAX_LISTED_PAIRS]:
        output.line(f"  two classes: {first} and {second}")
    for first, second in inspection.parted[:_MAX_LISTED_PAIRS]:
        output.line(f"  in two folds: {first} and {second}")
    output.line(
        f"With folds of single images, {inspection.leak.twins:.1%} of the tumour images would have "
        f"a near-copy in another fold, and {inspection.leak.family:.1%} an image of their group."
    )
    if manifest.account is not None:
        output.line("")
        print_account(manifest.account, output)
    output.line("")
    classes = list(next(iter(inspection.marks.values())))
    output.table(
        ["on the image", *classes],
        [
            [name, *(f"{shares[kind]:.1%}" for kind in classes)]
            for name, shares in inspection.marks.items()
        ],
    )
    output.table(
        ["masks of tumour images", "images"],
        [[name, str(count)] for name, count in inspection.masks.items()],
    )
    for line in describe_oddities(inspection):
        output.line(line)


def describe_oddities(inspection: Inspection) -> list[str]:
    """Return sentences about images read in an unusual way, and warnings about odd masks."""
    texts = [
        f"{count} images {NOTE_TEXTS[key]}." for key, count in inspection.notes.items() if count
    ]
    return texts + [
        f"Warning: of {odd.of} tumour masks of {odd.source}, {odd.touching} touch the border and "
        f"{odd.implausible} are implausibly small or large. If the masks show lesions black on "
        "white, prepare the source again with --invert-masks after its --layout."
        for odd in inspection.odd_masks
    ]
