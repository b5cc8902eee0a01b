"""`mtil prepare`."""

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mtil.cli.flags import Commands, add_command, add_verbose
from mtil.errors import UserError

if TYPE_CHECKING:
    from mtil.cli.console import Output
    from mtil.data.dataset.account import Account
    from mtil.data.dataset.manifest import Manifest
    from mtil.data.prepare.sources import Source

_OF_SOURCE = ("source", "layout", "groups", "folds", "columns", "classes", "invert_masks")


def add_to(commands: Commands) -> None:
    """Add `mtil prepare`."""
    parser = add_command(commands, "prepare", run, "turn collections into a data set of shards")
    parser.add_argument("source", metavar="SOURCE", help="folder, table or bucket prefix to read")
    of_source = parser.add_argument_group("of the source named last")
    of_source.add_argument(
        "--layout", action=_OfSource, required=True,
        choices=("busi", "udiat", "bus_bra", "bus_uclm", "breast", "table"),
        help="how it is laid out",
    )  # fmt: skip
    of_source.add_argument(
        "--groups", action=_OfSource, metavar="FILE", help="CSV of images that belong together"
    )
    of_source.add_argument(
        "--folds", action=_OfSource, choices=("official",),
        help="take its own folds: bus_bra's 5 or 10 by --num-folds, or a table's column `fold`",
    )  # fmt: skip
    of_source.add_argument(
        "--columns", action=_OfSource, metavar="ROLE=COLUMN,…",
        help="a table's columns, such as image=path,label=diagnosis",
    )  # fmt: skip
    of_source.add_argument(
        "--classes", action=_OfSource, metavar="WORD=CLASS,…",
        help="a table's words for classes, such as 0=benign,1=malignant",
    )  # fmt: skip
    of_source.add_argument(
        "--invert-masks", action=_OfSource, nargs=0, help="lesions are black on white in its masks"
    )
    parser.add_argument(
        "--and", action=_AndSource, dest="more", metavar="SOURCE", help="another source"
    )
    parser.add_argument("--to", required=True, metavar="URI", help="where the data set is written")
    parser.add_argument(
        "--append", action="store_true",
        help="add the images that the data set does not have yet, as a new version of it",
    )  # fmt: skip
    parser.add_argument("--image-size", type=int, help="side of the stored images (256)")
    parser.add_argument("--num-folds", type=int, help="folds (5)")
    parser.add_argument("--seed", type=int, help="seed of the folds (0)")
    parser.add_argument(
        "--protocol", choices=("grouped", "paper", "official"),
        help="whole groups to folds (grouped); image by image as in most papers; or the sources' "
        "own folds",
    )  # fmt: skip
    parser.add_argument(
        "--stratify", choices=("class", "class-and-size"),
        help="what folds share evenly: terciles of lesion size within each class (class-and-size), "
        "or classes alone",
    )  # fmt: skip
    parser.add_argument(
        "--holdout", metavar="SHARE|FILE", help="keep images for a final test: a share, or a CSV"
    )
    parser.add_argument("--splits", metavar="FILE", help="folds as in an earlier splits.json")
    parser.add_argument(
        "--skip-invalid", action="store_true", help="list images that cannot be used, and go on"
    )
    parser.add_argument(
        "--allow-drops", type=float, metavar="SHARE",
        help="share of the images, 0 to 1, that may be dropped or lie in one group of near-copies "
        "(0.05 and 0.1)",
    )  # fmt: skip
    parser.add_argument(
        "--on-ray", action="store_true", help="share the work over the cluster of RAY_ADDRESS"
    )
    add_verbose(parser)


class _OfSource(argparse.Action):
    """Keeps an option with the source that was named last."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: object,
        option: str | None = None,
    ) -> None:  # fmt: skip
        value = True if self.nargs == 0 else values
        if namespace.more:
            namespace.more[-1][self.dest] = value
        else:
            setattr(namespace, self.dest, value)


class _AndSource(argparse.Action):
    """Begins another source."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: object,
        option: str | None = None,
    ) -> None:  # fmt: skip
        namespace.more = [*(namespace.more or []), {"source": values}]


def run(options: argparse.Namespace, output: "Output") -> None:
    """Make a data set, or append to it."""
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


def _append(options: argparse.Namespace, output: "Output") -> None:
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


def _account(account: "Account | None", output: "Output") -> dict[str, Any]:
    """Print the account of a preparation, and return it."""
    from mtil.cli.views.account import show
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
def _working(options: argparse.Namespace, output: "Output") -> Iterator[dict[str, Any]]:
    """Yield what does the work, here or on a cluster, and what is told how far it is."""
    with output.progress() as bar:
        if options.on_ray:
            from mtil.distributed.data import prepare as on_ray
            from mtil.distributed.runtime import cluster

            with cluster.connected(verbose=options.verbose):
                yield {"runner": on_ray.tasks, "progress": bar.show}
        else:
            yield {"progress": bar.show}


def _report(manifest: "Manifest", options: argparse.Namespace, output: "Output") -> dict[str, Any]:
    """Print what a data set has become, and return it."""
    from mtil.cli.views.inspection import oddities
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
