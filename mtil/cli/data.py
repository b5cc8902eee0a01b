"""`mtil phantom` and `mtil prepare`."""

import argparse
from dataclasses import asdict
from pathlib import Path

from mtil.cli.console import Output


def run(options: argparse.Namespace) -> None:
    """Run the command that the options name."""
    output = Output(as_json=options.json)
    if options.command == "phantom":
        from mtil.data import phantom

        phantom.write(Path(options.out), num_images=options.num_images, seed=options.seed)
        output.line(f"{options.num_images} phantoms in {options.out}")
        output.result({"out": options.out, "num_images": options.num_images, "seed": options.seed})
        return

    from mtil.data import prepare

    if options.groups is None:
        output.line("No --groups file: images count as unrelated unless they share a patient.")
    with output.progress() as bar:
        manifest = prepare.prepare(
            options.source,
            options.to,
            layout=options.layout,
            groups=options.groups,
            image_size=options.image_size,
            num_folds=options.num_folds,
            seed=options.seed,
            progress=lambda done, of: bar.show("preparing", done, of),
        )
    output.table(
        ["fold", *manifest.kept],
        [
            [fold, *(str(counts.get(name, 0)) for name in manifest.kept)]
            for fold, counts in manifest.folds.items()
        ],
    )
    kept = ", ".join(f"{number} {name}" for name, number in manifest.kept.items())
    output.line(
        f"{manifest.read} images read, {len(manifest.dropped)} dropped; kept {kept} "
        f"in {manifest.num_groups} groups."
    )
    output.line(f"Data set {manifest.fingerprint[:12]}… in {options.to}")
    output.result(
        {
            "uri": options.to,
            "fingerprint": manifest.fingerprint,
            "read": manifest.read,
            "kept": manifest.kept,
            "groups": manifest.num_groups,
            "dropped": [asdict(dropped) for dropped in manifest.dropped],
            "folds": manifest.folds,
        }
    )
