"""`mtil phantom` and `mtil prepare`."""

import argparse
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mtil.cli.console import Output
from mtil.errors import UserError

_OF_SOURCE = ("source", "layout", "groups", "folds", "columns", "classes")


def run(options: argparse.Namespace) -> None:
    """Run the command that the options name."""
    output = Output(as_json=options.json)
    if options.command == "phantom":
        _phantom(options, output)
    else:
        _prepare(options, output)


def _phantom(options: argparse.Namespace, output: Output) -> None:
    from mtil.data import phantom

    phantom.write(
        Path(options.out),
        num_images=options.num_images,
        seed=options.seed,
        image_size=options.image_size,
        num_duplicates=options.num_duplicates,
        workers=(os.cpu_count() or 1) if options.num_workers is None else options.num_workers,
    )
    made = {"num_images": options.num_images, "num_duplicates": options.num_duplicates}
    copies = f" and {options.num_duplicates} near-copies" if options.num_duplicates else ""
    output.line(f"{options.num_images} phantoms{copies} in {options.out}")
    output.result({"out": options.out, **made, "seed": options.seed})


def _prepare(options: argparse.Namespace, output: Output) -> None:
    from mtil.data import prepare, running
    from mtil.data.inspection import inspect
    from mtil.storage import open_store

    sources = [
        _source(values, options)
        for values in (
            {name: getattr(options, name) for name in _OF_SOURCE},
            *(options.more or []),
        )
    ]
    settings = prepare.Settings(
        image_size=options.image_size,
        num_folds=options.num_folds,
        seed=options.seed,
        protocol="paper" if options.protocol == "paper" else "grouped",
        stratify=options.stratify,
        holdout=options.holdout,
        splits=options.splits,
        skip_invalid=options.skip_invalid,
    )
    with output.progress() as bar:
        if options.on_ray:
            from mtil.distributed import cluster
            from mtil.distributed import prepare as on_ray

            with cluster.connected(verbose=options.verbose):
                manifest = prepare.prepare(
                    sources, options.to, settings, runner=on_ray.tasks, progress=bar.show
                )
        else:
            manifest = prepare.prepare(
                sources, options.to, settings, runner=running.processes, progress=bar.show
            )
    found = inspect(open_store(options.to))
    for item in manifest.invalid:
        output.line(f"skipped {item.sample_id}: {item.why}")
    folds = dict(manifest.folds)
    if any(manifest.holdout.values()):
        folds["holdout"] = manifest.holdout
    output.table(
        ["fold", *manifest.kept],
        [
            [fold, *(str(counts.get(name, 0)) for name in manifest.kept)]
            for fold, counts in folds.items()
        ],
    )
    kept = ", ".join(f"{number} {name}" for name, number in manifest.kept.items())
    output.line(
        f"{manifest.read} images read, {len(manifest.dropped)} dropped; kept {kept} "
        f"in {manifest.num_groups} groups."
    )
    share = f"{found.leak.twins:.1%} of the tumour images"
    if found.parted and manifest.protocol != "paper":
        one, other = found.parted[0]
        output.line(
            f"Warning: {len(found.parted)} pairs of near-copies lie in two folds, such as {one} "
            f"and {other}; `mtil inspect` lists them."
        )
    if manifest.protocol == "paper":
        output.line(
            f"Warning: folds of single images leak: {share} have a near-copy in another fold, so "
            "that figures come out too good."
        )
    else:
        output.line(f"Folds of single images would leak: {share} have a near-copy.")
    output.line(f"Data set {manifest.fingerprint[:12]}… in {options.to}")
    output.result(
        {
            "uri": options.to,
            "fingerprint": manifest.fingerprint,
            "protocol": manifest.protocol,
            "read": manifest.read,
            "kept": manifest.kept,
            "groups": manifest.num_groups,
            "dropped": [asdict(dropped) for dropped in manifest.dropped],
            "invalid": [asdict(invalid) for invalid in manifest.invalid],
            "folds": manifest.folds,
            "holdout": manifest.holdout,
            "image_level_leakage": found.leak.twins,
        }
    )


def _source(values: Mapping[str, Any], options: argparse.Namespace) -> Any:
    from mtil.data.sources import Source

    if values.get("layout") is None:
        raise UserError(
            f"Every source must have its layout; add --layout after {values['source']}."
        )
    official = options.protocol == "official" or values.get("folds") == "official"
    return Source(
        uri=values["source"],
        layout=values["layout"],
        groups=values.get("groups"),
        official_folds=options.num_folds if official else None,
        columns=_pairs(values.get("columns"), "--columns"),
        classes=_pairs(values.get("classes"), "--classes"),
    )


def _pairs(text: str | None, option: str) -> dict[str, str]:
    found = {}
    for part in (text or "").split(","):
        name, equals, value = (word.strip() for word in part.partition("="))
        if part and not (name and equals and value):
            raise UserError(f"`{option}` must be like name=value,name=value, but got {part!r}.")
        if part:
            found[name] = value
    return found
