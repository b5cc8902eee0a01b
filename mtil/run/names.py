"""The names of the files that a run writes, and what a name says. No Ray, no PyTorch.

Each name is spelt here alone: what a training writes, what a coordinator lists and what `mtil gc`
may delete are the same names.
"""

import re

from mtil.data.dataset.shards import HOLDOUT
from mtil.run.plan import Train, WriteMaps

RUN = "run.json"
THREADS = "threads.json"
"""The number of CPU threads of the run's training processes."""
TRAININGS = "rounds"
"""The folder that all trainings, predictions and figures of rounds are in."""
MAPS = "maps"
"""The folder that all maps are in."""
RESULT = "result.json"
"""What a training came to, in its folder."""
LATEST = "latest.json"
"""The file that names the newest of a training's checkpoints, in their folder."""
CHECKPOINT = re.compile(r"epoch-\d{4,}(?:-[0-9a-f]{12})?\.pt")
"""A checkpoint, in their folder. Before version 0.1.0 names had no digest."""

_CHECKPOINTS = "checkpoints"
_HISTORY, _STEP = "history.jsonl", "step.json"
_PREDICTIONS, _EVALUATION = "predictions.parquet", "evaluation.json"
_NUMBER = r"\d{1,9}"
_PART = rf"(?:/part-({_NUMBER}))?"
_TRAINING = rf"{TRAININGS}/({_NUMBER})/fold-({_NUMBER}){_PART}"
_MODEL = r"model-[0-9a-f]{12}\.pt"
_MAP_FOLDER = rf"{MAPS}/{_NUMBER}/fold-{_NUMBER}(?:/part-{_NUMBER})?"

_OF_A_TRAINING = re.compile(rf"{_TRAINING}/((?!{re.escape(_PREDICTIONS)})[^/]+(?:/[^/]+)?)")
_OWN_OF_A_TRAINING = re.compile(
    rf"{_MODEL}|{re.escape(_STEP)}|{_CHECKPOINTS}/(?:{re.escape(LATEST)}|{CHECKPOINT.pattern})"
)
_MAP = re.compile(rf"({_MAP_FOLDER})/part-\d{{5,}}(?:-\d{{6}}-[0-9a-f]{{16}})?\.parquet")
FOLDERS = rf"{_MAP_FOLDER}|{_TRAINING}(?:/{_CHECKPOINTS})?|{TRAININGS}/{_NUMBER}(?:/holdout)?"
"""A pattern of the folders that a run writes files to, apart from the ledger's."""


def training(of: Train) -> str:
    """Return the folder of a training."""
    return f"{TRAININGS}/{of.round}/fold-{of.fold}{_part(of.part)}"


def checkpoints(of: Train) -> str:
    """Return the folder of a training's checkpoints."""
    return f"{training(of)}/{_CHECKPOINTS}"


def checkpoint(epoch: int, sha256: str) -> str:
    """Return the name of a checkpoint within their folder."""
    return f"epoch-{epoch:04d}-{sha256[:12]}.pt"


def history(of: Train) -> str:
    """Return the name of the records of a training's epochs."""
    return f"{training(of)}/{_HISTORY}"


def step(of: Train) -> str:
    """Return the name of what says how far into an epoch a training is."""
    return f"{training(of)}/{_STEP}"


def result(of: Train) -> str:
    """Return the name of a training's result, which exists once the training has ended."""
    return f"{training(of)}/{RESULT}"


def model(of: Train, sha256: str) -> str:
    """Return the name of a training's model with this digest: no model replaces another."""
    return f"{training(of)}/model-{sha256[:12]}.pt"


def predictions(number: int, fold: int) -> str:
    """Return the name of a round's predictions of a fold's test rows, or of the holdout."""
    folder = "holdout" if fold == HOLDOUT else f"fold-{fold}"
    return f"{TRAININGS}/{number}/{folder}/{_PREDICTIONS}"


def evaluation(number: int) -> str:
    """Return the name of the figures of a round's folds together."""
    return f"{TRAININGS}/{number}/{_EVALUATION}"


def maps(of: WriteMaps) -> str:
    """Return the folder of the maps that an action writes."""
    return f"{MAPS}/{of.round}/fold-{of.fold}{_part(of.part)}"


def training_of(name: str) -> Train | None:
    """Return the training that a file is of; None for predictions, figures and other files."""
    match = _OF_A_TRAINING.fullmatch(name)
    if match is None:
        return None
    return Train(int(match[1]), int(match[2]), None if match[3] is None else int(match[3]))


def is_deletable(name: str) -> bool:
    """Say whether a training may do without a file of its own: a model, a checkpoint, a step."""
    match = _OF_A_TRAINING.fullmatch(name)
    return match is not None and _OWN_OF_A_TRAINING.fullmatch(match[4]) is not None


def is_model(name: str) -> bool:
    """Say whether a file is a training's model."""
    match = _OF_A_TRAINING.fullmatch(name)
    return match is not None and re.fullmatch(_MODEL, match[4]) is not None


def is_result(name: str) -> bool:
    """Say whether a file is a training's result."""
    of = training_of(name)
    return of is not None and name == result(of)


def is_history(name: str) -> bool:
    """Say whether a file has the records of a training's epochs."""
    of = training_of(name)
    return of is not None and name == history(of)


def map_folder_of(name: str) -> str | None:
    """Return the folder of the maps that a file is a shard of; None for other files."""
    match = _MAP.fullmatch(name)
    return None if match is None else match[1]


def _part(part: int | None) -> str:
    return "" if part is None else f"/part-{part}"
