"""`mtil status --lineage`: print the origin of an image's map and predictions."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from mtil.circle.lineage.links import Lineage, MapLink, ModelLink, PredictionLink
from mtil.cli.console import CommandOutput
from mtil.errors import RunError

_DIGEST_DIGITS = 12
"""Printed hex digits of a digest."""


def print_lineage(lineage: Lineage, uri: str, output: CommandOutput) -> None:
    """Print the lineage of an image's latest map and predictions.

    Raises:
        RunError: if the run's files contradict. The lineage is printed first.
    """
    _print(lineage, output)
    output.result(_values(lineage, uri))
    if lineage.disagreements:
        raise RunError(
            f"The run's files contradict in {len(lineage.disagreements)} points about "
            f"{lineage.sample_id!r}: {lineage.disagreements[0]}"
        )


def _print(lineage: Lineage, output: CommandOutput) -> None:
    """Print training folds, the chain of maps and models, the prediction, data and conflicts."""
    output.line(f"{lineage.sample_id}: {_describe_training(lineage.folds)}")
    if lineage.chain and not isinstance(lineage.chain[0], MapLink):
        output.line("No map of the image has been written.")
    for link in lineage.chain:
        _print_link(link, output)
    if lineage.prediction is not None:
        _print_prediction(lineage.prediction, output)
        for link in lineage.judges:
            _print_link(link, output)
    data = lineage.data
    output.line(f"Data: {data.file} of {data.uri}, version {data.version}")
    output.line(f"  sha256 {_shorten(data.sha256)}, fingerprint {_shorten(data.fingerprint)}")
    for sentence in lineage.disagreements:
        output.line(f"Contradiction: {sentence}")


def _describe_training(folds: Sequence[int]) -> str:
    if not folds:
        return "not trained on by any fold"
    numbers = ", ".join(map(str, folds))
    return f"trained on by fold{'s' * (len(folds) > 1)} {numbers}"


def _print_link(link: MapLink | ModelLink, output: CommandOutput) -> None:
    """Print a map with its model, or a model with its start and inputs."""
    part = "" if link.part is None else f", part {link.part}"
    kind = "Map" if isinstance(link, MapLink) else "Model"
    output.line(f"{kind} of round {link.round}, fold {link.fold}{part}: {link.file}")
    if isinstance(link, MapLink):
        if link.is_removed:
            output.line("  was removed; will be written again if needed")
        elif link.origin is not None:
            output.line(f"  by mtil {link.origin.version}, {link.origin.size} pixels square")
        output.line(f"  by model {link.model}")
        if link.given is not None:
            output.line(f"  the model read the map in {link.given}")
        return
    output.line(
        f"  sha256 {_shorten(link.sha256)}, config {_shorten(link.config_digest)}, "
        f"mtil {link.version}"
    )
    if not link.is_readable:
        output.line("  not readable by this version of mtil")
    output.line(f"  started from {link.starts_from or 'scratch'}")
    if link.reads is not None:
        output.line(f"  read the image's map in {link.reads}")
    elif not link.has_seen:
        output.line("  has not seen the image")


def _print_prediction(link: PredictionLink, output: CommandOutput) -> None:
    """Print a prediction's file and the probability of each pass with its models."""
    output.line(f"Prediction of round {link.round}: {link.file}")
    if link.as_in_ledger is not None:
        match = "as in the ledger" if link.as_in_ledger else "rewritten since the ledger's event"
        output.line(f"  sha256 {_shorten(link.sha256)}, {match}")
    for entry in link.passes:
        output.line(
            f"  pass {entry.number}: malignant {entry.probability:.3f}, "
            f"by {', '.join(entry.models)}"
        )


def _values(lineage: Lineage, uri: str) -> dict[str, Any]:
    """Return the JSON values of a lineage."""
    kinds = ("map" if isinstance(link, MapLink) else "model" for link in lineage.chain)
    chain = [{"kind": kind} | asdict(link) for kind, link in zip(kinds, lineage.chain, strict=True)]
    return {
        "run": uri,
        "verified": not lineage.disagreements,
        **asdict(lineage),
        "chain": chain,
    }


def _shorten(digest: str) -> str:
    return f"{digest[:_DIGEST_DIGITS]}…"
