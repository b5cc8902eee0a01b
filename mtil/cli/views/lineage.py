"""`mtil status --lineage`."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from mtil.circle.lineage.links import Lineage, MapLink, ModelLink, PredictionLink
from mtil.cli.console import Output
from mtil.errors import RunError

_SHOWN = 12
"""Hex digits of a digest that a person is shown."""


def tell(found: Lineage, uri: str, output: Output) -> None:
    """Print where an image's latest map and predictions come from.

    Raises:
        RunError: if the files do not agree, after all of it is told.
    """
    _describe(found, output)
    output.result(_values(found, uri))
    if found.disagreements:
        raise RunError(
            f"The files of a run must agree, but {len(found.disagreements)} statements on "
            f"{found.sample_id!r} do not: {found.disagreements[0]}"
        )


def _describe(found: Lineage, output: Output) -> None:
    output.line(f"{found.sample_id}: {_trained_by(found.folds)}")
    if found.chain and not isinstance(found.chain[0], MapLink):
        output.line("No map of it has been written.")
    for link in found.chain:
        _link(link, output)
    if found.prediction is not None:
        _predicted(found.prediction, output)
        for link in found.judges:
            _link(link, output)
    data = found.data
    output.line(f"Data: {data.file} of {data.uri}, version {data.version}")
    output.line(f"  sha256 {_short(data.sha256)}, fingerprint {_short(data.fingerprint)}")
    for sentence in found.disagreements:
        output.line(f"Does not agree: {sentence}")


def _trained_by(folds: Sequence[int]) -> str:
    if not folds:
        return "no fold has trained on it"
    numbers = ", ".join(map(str, folds))
    return f"trained on by fold{'s' * (len(folds) > 1)} {numbers}"


def _link(link: MapLink | ModelLink, output: Output) -> None:
    part = "" if link.part is None else f", part {link.part}"
    kind = "Map" if isinstance(link, MapLink) else "Model"
    output.line(f"{kind} of round {link.round}, fold {link.fold}{part}: {link.file}")
    if isinstance(link, MapLink):
        if link.is_removed:
            output.line("  was removed; it is written again if it is needed")
        elif link.origin is not None:
            output.line(f"  by mtil {link.origin.version}, {link.origin.size} pixels square")
        output.line(f"  by model {link.model}")
        if link.given is not None:
            output.line(f"  which was given the map in {link.given}")
        return
    output.line(
        f"  sha256 {_short(link.sha256)}, config {_short(link.config_digest)}, mtil {link.version}"
    )
    if not link.is_readable:
        output.line("  which this version of mtil cannot look into")
    output.line(f"  started from {link.starts_from or 'scratch'}")
    if link.reads is not None:
        output.line(f"  read the image's map in {link.reads}")
    elif not link.has_seen:
        output.line("  has not seen the image")


def _predicted(link: PredictionLink, output: Output) -> None:
    output.line(f"Prediction of round {link.round}: {link.file}")
    if link.as_in_ledger is not None:
        said = "as the ledger names it" if link.as_in_ledger else "written again since the ledger"
        output.line(f"  sha256 {_short(link.sha256)}, {said}")
    for one in link.passes:
        output.line(
            f"  pass {one.number}: malignant {one.probability:.3f}, by {', '.join(one.models)}"
        )


def _values(found: Lineage, uri: str) -> dict[str, Any]:
    kinds = ("map" if isinstance(link, MapLink) else "model" for link in found.chain)
    chain = [{"kind": kind} | asdict(link) for kind, link in zip(kinds, found.chain, strict=True)]
    return {
        "run": uri,
        "verified": not found.disagreements,
        **asdict(found),
        "chain": chain,
    }


def _short(digest: str) -> str:
    return f"{digest[:_SHOWN]}…"
