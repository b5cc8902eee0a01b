"""`mtil phantom` and `mtil prepare`."""

import argparse
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtil.cli.console import Output
from mtil.errors import UserError

if TYPE_CHECKING:
    from mtil.data.dataset.account import Account
    from mtil.data.dataset.manifest import Manifest
    from mtil.data.prepare.sources import Source

_OF_SOURCE = ("source", "layout", "groups", "folds", "columns", "classes", "invert_masks")


def run(options: argparse.Namespace) -> None:
    """Run the command that the options name."""
    output = Output(as_json=options.json)
    if options.command == "phantom":
        _phantom(options, output)
    else:
        _prepare(options, output)


def _phantom(options: argparse.Namespace, output: Output) -> None:
    from mtil import phantom

    phantom.write(
        Path(options.out),
        num_images=options.num_images,
        seed=options.seed,
        image_size=options.image_size,
        num_duplicates=options.num_duplicates,
        max_views=options.max_views,
        workers=(os.cpu_count() or 1) if options.num_workers is None else options.num_workers,
    )
    made = {"num_images": options.num_images, "num_duplicates": options.num_duplicates}
    copies = f" and {options.num_duplicates} near-copies" if options.num_duplicates else ""
    views = f", 1 to {options.max_views} a patient," if options.max_views > 1 else ""
    output.line(f"{options.num_images} phantoms{views}{copies} in {options.out}")
    output.result({"out": options.out, **made, "seed": options.seed})


def _prepare(options: argparse.Namespace, output: Output) -> None:
    if options.append:
        _append(options, output)
        return
    from mtil.data.names import shown
    from mtil.data.prepare import pipeline

    given = {
        name: getattr(options, name)
        for name in ("image_size", "num_folds", "seed", "stratify")
        if getattr(options, name) is not None
    }
    settings = pipeline.Settings(
        **given,
        protocol="paper" if options.protocol == "paper" else "grouped",
        holdout=options.holdout,
        splits=options.splits,
        skip_invalid=options.skip_invalid,
        allow_drops=options.allow_drops,
    )
    sources = _sources(options, settings.num_folds)
    with _working(options, output) as how:
        manifest = pipeline.prepare(sources, options.to, settings, **how)
    for item in manifest.invalid:
        output.line(f"skipped {shown(item.sample_id)}: {item.why}")
    result = _report(manifest, options, output)
    output.result(result | _account(manifest.account, output))


def _append(options: argparse.Namespace, output: Output) -> None:
    from mtil.data.append.pipeline import AppendSettings, append
    from mtil.data.dataset import manifest as manifests
    from mtil.data.names import shown
    from mtil.storage import open_store

    for name in ("holdout", "splits"):
        if getattr(options, name) is not None:
            raise UserError(
                f"Images from before keep their folds, so that --{name} cannot be given with "
                "--append; leave it away, or prepare all images again."
            )
    settings = AppendSettings(
        image_size=options.image_size,
        num_folds=options.num_folds,
        seed=options.seed,
        protocol=options.protocol,
        stratify=options.stratify,
        skip_invalid=options.skip_invalid,
        allow_drops=options.allow_drops,
    )
    sources = _sources(options, manifests.load(open_store(options.to)).num_folds)
    with _working(options, output) as how:
        made = append(sources, options.to, settings, **how)
    for item in made.invalid:
        output.line(f"skipped {shown(item.sample_id)}: {item.why}")
    for item in made.dropped:
        output.line(f"dropped {shown(item.sample_id)}: {item.why}")
    before = f"; {made.num_known} images were there already" if made.num_known else ""
    output.line(
        f"{made.num_added} images appended{before}."
        if made.num_added
        else f"Nothing to append{before}."
    )
    result = _report(made.manifest, options, output)
    if not made.num_added:  # what was said of them is written nowhere
        result["dropped"] += [asdict(item) for item in made.dropped]
        result["invalid"] += [asdict(item) for item in made.invalid]
    output.result(result | {"appended": made.num_added} | _account(made.account, output))


def _account(account: "Account | None", output: Output) -> dict[str, Any]:
    """Print the account of a preparation, and return it."""
    from mtil.cli.account import show
    from mtil.data.dataset.account import to_dict

    if account is None:
        return {}
    show(account, output)
    return {"account": to_dict(account)}


def _sources(options: argparse.Namespace, num_folds: int) -> "list[Source]":
    return [
        _source(values, options, num_folds)
        for values in (
            {name: getattr(options, name) for name in _OF_SOURCE},
            *(options.more or []),
        )
    ]


@contextmanager
def _working(options: argparse.Namespace, output: Output) -> Iterator[dict[str, Any]]:
    """Yield what does the work, here or on a cluster, and what is told how far it is."""
    with output.progress() as bar:
        if options.on_ray:
            from mtil.distributed.data import prepare as on_ray
            from mtil.distributed.runtime import cluster

            with cluster.connected(verbose=options.verbose):
                yield {"runner": on_ray.tasks, "progress": bar.show}
        else:
            yield {"progress": bar.show}


def _report(manifest: "Manifest", options: argparse.Namespace, output: Output) -> dict[str, Any]:
    """Print what a data set has become, and return it."""
    from mtil.cli.inspection import oddities
    from mtil.data.inspection import inspect
    from mtil.storage import open_store

    found = inspect(open_store(options.to), manifest.fingerprint)
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
    twin = (
        "a near-copy" if options.groups is None else "a near-copy or one of their published group"
    )
    if found.parted and manifest.protocol != "paper":
        one, other = found.parted[0]
        output.line(
            f"Warning: {len(found.parted)} pairs of near-copies lie in two folds, such as {one} "
            f"and {other}; `mtil inspect` lists them."
        )
    if manifest.protocol == "paper":
        output.line(
            f"Warning: folds of single images leak: {share} have {twin} in another fold, so "
            "that figures come out too good."
        )
    else:
        output.line(f"Folds of single images would leak: {share} would have {twin} in another.")
    for line in oddities(found):
        output.line(line)
    version = f", version {manifest.version}," if manifest.version > 1 else ""
    output.line(f"Data set {manifest.fingerprint[:12]}…{version} in {options.to}")
    return {
        "uri": options.to,
        "version": manifest.version,
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
        "notes": dict(found.notes),
        "odd_masks": [asdict(odd) for odd in found.odd_masks],
    }


def _source(values: Mapping[str, Any], options: argparse.Namespace, num_folds: int) -> "Source":
    from mtil.data.prepare.sources import Source

    if values.get("layout") is None:
        raise UserError(
            f"Every source must have its layout; add --layout after {values['source']}."
        )
    official = options.protocol == "official" or values.get("folds") == "official"
    return Source(
        uri=values["source"],
        layout=values["layout"],
        groups=values.get("groups"),
        official_folds=num_folds if official else None,
        columns=_pairs(values.get("columns"), "--columns"),
        classes=_pairs(values.get("classes"), "--classes"),
        invert_masks=bool(values.get("invert_masks")),
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
