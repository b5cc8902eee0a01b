"""`mtil prepare`: turn collections into a data set, or append images to a data set."""

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mtil.cli.flags import CommandParsers, add_command, add_verbose_flag
from mtil.errors import UserError

if TYPE_CHECKING:
    from mtil.cli.console import CommandOutput
    from mtil.data.dataset.account import Account
    from mtil.data.dataset.manifest import Manifest
    from mtil.data.prepare.sources import CollectionSource

_SOURCE_OPTIONS = ("source", "layout", "groups", "folds", "columns", "classes", "invert_masks")


def add_prepare_command(commands: CommandParsers) -> None:
    """Add `mtil prepare`."""
    parser = add_command(
        commands, "prepare", run_prepare, "turn collections into a data set of shards"
    )
    parser.add_argument("source", metavar="SOURCE", help="folder, table or bucket prefix to read")
    source_group = parser.add_argument_group("options of the source given before")
    source_group.add_argument(
        "--layout", action=_SourceOption, required=True,
        choices=("busi", "udiat", "bus_bra", "bus_uclm", "breast", "table"),
        help="layout of the source",
    )  # fmt: skip
    source_group.add_argument(
        "--groups", action=_SourceOption, metavar="FILE", help="CSV of images that belong together"
    )
    source_group.add_argument(
        "--folds", action=_SourceOption, choices=("official",),
        help="use published folds: bus_bra's 5 or 10 by --num-folds, or a table's column `fold`",
    )  # fmt: skip
    source_group.add_argument(
        "--columns", action=_SourceOption, metavar="ROLE=COLUMN,…",
        help="a table's columns, such as image=path,label=diagnosis",
    )  # fmt: skip
    source_group.add_argument(
        "--classes", action=_SourceOption, metavar="WORD=CLASS,…",
        help="a table's words for classes, such as 0=benign,1=malignant",
    )  # fmt: skip
    source_group.add_argument(
        "--invert-masks", action=_SourceOption, nargs=0,
        help="masks show lesions black on white",
    )  # fmt: skip
    parser.add_argument(
        "--and", action=_NextSource, dest="more", metavar="SOURCE", help="a further source"
    )
    parser.add_argument("--to", required=True, metavar="URI", help="location of the data set")
    parser.add_argument(
        "--append", action="store_true",
        help="add images missing from the data set as a new version",
    )  # fmt: skip
    parser.add_argument("--image-size", type=int, help="side of the stored images (256)")
    parser.add_argument("--num-folds", type=int, help="number of folds (5)")
    parser.add_argument("--seed", type=int, help="seed of the folds (0)")
    parser.add_argument(
        "--protocol", choices=("grouped", "paper", "official"),
        help="assign folds by whole groups (grouped, the default), image by image as in most "
        "papers (paper), or as published (official)",
    )  # fmt: skip
    parser.add_argument(
        "--stratify", choices=("class", "class-and-size"),
        help="balance folds by class and tercile of lesion size (class-and-size, the default) or "
        "by class alone",
    )  # fmt: skip
    parser.add_argument(
        "--holdout", metavar="SHARE|FILE", help="keep images for a final test: a share, or a CSV"
    )
    parser.add_argument("--splits", metavar="FILE", help="folds as in an earlier splits.json")
    parser.add_argument("--skip-invalid", action="store_true", help="skip and list unusable images")
    parser.add_argument(
        "--allow-drops", type=float, metavar="SHARE",
        help="largest share of the images, 0 to 1, that may be dropped (0.05) or form a single "
        "group of near-copies (0.1)",
    )  # fmt: skip
    parser.add_argument(
        "--on-ray", action="store_true", help="distribute the work over the cluster of RAY_ADDRESS"
    )
    add_verbose_flag(parser)


class _SourceOption(argparse.Action):
    """Stores an option with the latest source on the command line."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: object,
        option: str | None = None,
    ) -> None:  # fmt: skip
        value = True if self.nargs == 0 else values
        if namespace.more:
            namespace.more[-1][self.dest] = value
        else:
            setattr(namespace, self.dest, value)


class _NextSource(argparse.Action):
    """Starts a further source; later source options belong to this source."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: object,
        option: str | None = None,
    ) -> None:  # fmt: skip
        namespace.more = [*(namespace.more or []), {"source": values}]


def run_prepare(options: argparse.Namespace, output: "CommandOutput") -> None:
    """Prepare a data set, or append to an existing data set with `--append`."""
    if options.append:
        _append(options, output)
        return
    from mtil.data.names import escape_unprintable
    from mtil.data.prepare import pipeline

    # Options without a value are left out, so that the defaults stay in `Settings` alone.
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
    with _execution_arguments(options, output) as arguments:
        manifest = pipeline.prepare(sources, options.to, settings, **arguments)
    for item in manifest.invalid:
        output.line(f"skipped {escape_unprintable(item.sample_id)}: {item.why}")
    result = _report(manifest, options, output)
    output.result(result | _report_account(manifest.account, output))


def _append(options: argparse.Namespace, output: "CommandOutput") -> None:
    """Append the sources' new images to the data set as a new version."""
    from mtil.data.append.pipeline import AppendSettings, append_images
    from mtil.data.dataset import manifest as manifests
    from mtil.data.names import escape_unprintable
    from mtil.storage import open_store

    for name in ("holdout", "splits"):
        if getattr(options, name) is not None:
            raise UserError(
                f"--{name} cannot be used with --append, because existing images keep their "
                f"folds. Leave out --{name}, or prepare all images again."
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
    sources = _sources(options, manifests.load_manifest(open_store(options.to)).num_folds)
    with _execution_arguments(options, output) as arguments:
        appended = append_images(sources, options.to, settings, **arguments)
    for item in appended.invalid:
        output.line(f"skipped {escape_unprintable(item.sample_id)}: {item.why}")
    for item in appended.dropped:
        output.line(f"dropped {escape_unprintable(item.sample_id)}: {item.why}")
    known = f"; {appended.num_known} images exist already" if appended.num_known else ""
    output.line(
        f"{appended.num_added} images appended{known}."
        if appended.num_added
        else f"Nothing to append{known}."
    )
    result = _report(appended.manifest, options, output)
    # Without a new version there is no manifest that lists the rejected images.
    if not appended.num_added:
        result["dropped"] += [asdict(item) for item in appended.dropped]
        result["invalid"] += [asdict(item) for item in appended.invalid]
    account = _report_account(appended.account, output)
    output.result(result | {"appended": appended.num_added} | account)


def _report_account(account: "Account | None", output: "CommandOutput") -> dict[str, Any]:
    """Print the account of a preparation and return its JSON values, empty without an account."""
    from mtil.cli.views.account import print_account
    from mtil.data.dataset.account import account_to_dict

    if account is None:
        return {}
    print_account(account, output)
    return {"account": account_to_dict(account)}


def _sources(options: argparse.Namespace, num_folds: int) -> "list[CollectionSource]":
    return [
        _source(values, options, num_folds)
        for values in (
            {name: getattr(options, name) for name in _SOURCE_OPTIONS},
            *(options.more or []),
        )
    ]


@contextmanager
def _execution_arguments(
    options: argparse.Namespace, output: "CommandOutput"
) -> Iterator[dict[str, Any]]:
    """Yield keyword arguments for a preparation: `progress` and, with `--on-ray`, `runner`."""
    with output.progress() as bar:
        if options.on_ray:
            from mtil.distributed.data import job_tasks as on_ray
            from mtil.distributed.runtime import cluster

            with cluster.connect_ray(verbose=options.verbose):
                yield {"runner": on_ray.run_ray_tasks, "progress": bar.show}
        else:
            yield {"progress": bar.show}


def _report(
    manifest: "Manifest", options: argparse.Namespace, output: "CommandOutput"
) -> dict[str, Any]:
    """Print a prepared data set's folds, drops and warnings, and return its JSON values."""
    from mtil.cli.views.inspection import describe_oddities
    from mtil.data.inspection import inspect_dataset
    from mtil.storage import open_store

    inspection = inspect_dataset(open_store(options.to), manifest.fingerprint)
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
    kept = ", ".join(f"{count} {name}" for name, count in manifest.kept.items())
    output.line(
        f"{manifest.read} images read, {len(manifest.dropped)} dropped; kept {kept} "
        f"in {manifest.num_groups} groups."
    )
    share = f"{inspection.leak.twins:.1%} of the tumour images"
    related = (
        "a near-copy"
        if options.groups is None
        else "a near-copy or an image of their published group"
    )
    # Protocol `paper` splits near-copies on purpose and has a warning below.
    if inspection.parted and manifest.protocol != "paper":
        first, second = inspection.parted[0]
        output.line(
            f"Warning: {len(inspection.parted)} pairs of near-copies are split between two folds, "
            f"such as {first} and {second}; `mtil inspect` lists the pairs."
        )
    if manifest.protocol == "paper":
        output.line(
            f"Warning: folds of single images leak: {share} have {related} in another fold, so "
            "test figures are too good."
        )
    else:
        output.line(
            f"Folds of single images would leak: {share} would have {related} in another fold."
        )
    for line in describe_oddities(inspection):
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
        "image_level_leakage": inspection.leak.twins,
        "notes": dict(inspection.notes),
        "odd_masks": [asdict(odd) for odd in inspection.odd_masks],
    }


def _source(
    values: Mapping[str, Any], options: argparse.Namespace, num_folds: int
) -> "CollectionSource":
    from mtil.data.prepare.sources import CollectionSource

    if values.get("layout") is None:
        raise UserError(f"Every source needs a layout; add --layout after {values['source']}.")
    official = options.protocol == "official" or values.get("folds") == "official"
    return CollectionSource(
        uri=values["source"],
        layout=values["layout"],
        groups=values.get("groups"),
        official_folds=num_folds if official else None,
        columns=_pairs(values.get("columns"), "--columns"),
        classes=_pairs(values.get("classes"), "--classes"),
        invert_masks=bool(values.get("invert_masks")),
    )


def _pairs(text: str | None, option: str) -> dict[str, str]:
    """Parse `name=value,name=value`, the value of an option."""
    pairs = {}
    for part in (text or "").split(","):
        name, equals, value = (word.strip() for word in part.partition("="))
        if part and not (name and equals and value):
            raise UserError(f"`{option}` must be like name=value,name=value, but got {part!r}.")
        if part:
            pairs[name] = value
    return pairs
