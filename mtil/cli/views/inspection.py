"""What a data set holds, for a person."""

from mtil.cli.console import Output
from mtil.cli.views.account import show
from mtil.data.audit.marks import NOTES
from mtil.data.inspection import Inspection

_MOST_LISTED = 20


def describe(found: Inspection, output: Output) -> None:
    """Print what a data set holds and what its audit found."""
    made = found.manifest
    kept = ", ".join(f"{number} {name}" for name, number in made.kept.items())
    output.line(
        f"{made.name}, version {made.version}, {made.image_size} pixels, {made.fingerprint[:12]}…"
    )
    output.line(
        f"{made.read} images read, {len(made.invalid)} skipped, {len(made.dropped)} dropped; "
        f"kept {kept} in {made.num_groups} groups."
    )
    output.line(f"{made.num_folds} folds, {made.fold_rule}, seed {made.seed}.")
    for source in made.sources:
        output.line(f"{source.name}: {source.read} images. {source.licence}. {source.citation}")
    output.line("")
    output.line(
        f"Near-copies: {found.duplicate_images} images in {found.duplicate_groups} groups; "
        f"{len(found.cross_class)} pairs hold two classes."
    )
    if found.mixed_patients:
        output.line(
            f"Patients with images of two classes, which share a fold: {found.mixed_patients}."
        )
    for decision, count in found.pairs.items():
        output.line(f"  {count} pairs {decision}")
    for one, other in found.cross_class[:_MOST_LISTED]:
        output.line(f"  two classes: {one} and {other}")
    for one, other in found.parted[:_MOST_LISTED]:
        output.line(f"  in two folds: {one} and {other}")
    output.line(
        f"With folds of single images, {found.leak.twins:.1%} of the tumour images would have a "
        f"near-copy in another fold, and {found.leak.family:.1%} an image of their group."
    )
    if made.account is not None:
        output.line("")
        show(made.account, output)
    output.line("")
    classes = list(next(iter(found.marks.values())))
    output.table(
        ["on the image", *classes],
        [
            [name, *(f"{shares[kind]:.1%}" for kind in classes)]
            for name, shares in found.marks.items()
        ],
    )
    output.table(
        ["masks of tumour images", "images"],
        [[name, str(count)] for name, count in found.masks.items()],
    )
    for line in oddities(found):
        output.line(line)


def oddities(found: Inspection) -> list[str]:
    """Return sentences about files that were read in a way of their own, and about odd masks."""
    texts = [f"{number} images {NOTES[key]}." for key, number in found.notes.items() if number]
    return texts + [
        f"Warning: of {odd.of} tumour masks of {odd.source}, {odd.touching} touch the border and "
        f"{odd.implausible} are implausibly small or large; if lesions are black on white there, "
        "prepare it again with --invert-masks after its --layout."
        for odd in found.odd_masks
    ]
