"""Build and parse the names of a run's files. Needs neither Ray nor PyTorch.

No other module spells a name of a run's files: trainings write, coordinators list and `mtil gc`
deletes the names defined here. All names are relative to the run's URI.
"""

import hashlib
import re
from collections.abc import Sequence

from mtil.data.dataset.selection import Role
from mtil.data.dataset.shards import HOLDOUT
from mtil.run.plan import Train, WriteMaps

RUN = "run.json"
THREADS = "threads.json"
"""The number of CPU threads of the run's training processes."""
TRAININGS = "rounds"
"""Folder of all trainings, predictions and figures, by round."""
MAPS = "maps"
"""Folder of all maps."""
INITIAL = "initial"
"""Folder of the models of another run from which the run's trainings start."""
TEACHER = "teacher"
"""Folder of a teacher's outputs, from which the run's models learn."""
RESULT = "result.json"
"""The committed result, in the folder of a training."""
LATEST = "latest.json"
"""The pointer to the newest checkpoint, in the checkpoint folder of a training."""
CHECKPOINT = re.compile(r"epoch-\d{4,}(?:-[0-9a-f]{12})?\.pt")
"""A checkpoint in the checkpoint folder. Before version 0.1.0 names had no digest."""

_CHECKPOINTS = "checkpoints"
_HISTORY, _STEP = "history.jsonl", "step.json"
_PREDICTIONS, _EVALUATION = "predictions.parquet", "evaluation.json"
_VALIDATION_PREDICTIONS = "validation.parquet"
_PICTURES = "-pictures.parquet"
_INDEX = r"\d{1,9}"
_PART = rf"(?:/part-({_INDEX}))?"
_TRAINING = rf"{TRAININGS}/({_INDEX})/fold-({_INDEX}){_PART}"
_MODEL = r"model-[0-9a-f]{12}\.pt"
_MAP_FOLDER = rf"{MAPS}/{_INDEX}/fold-{_INDEX}(?:/part-{_INDEX})?"

# Predictions lie beside the files of a training, but are written by an evaluation.
_NO_PREDICTIONS = r"(?!ensemble-|(?:predictions|validation)(?:-pictures)?\.parquet)"
_TRAINING_FILE = re.compile(rf"{_TRAINING}/({_NO_PREDICTIONS}[^/]+(?:/[^/]+)?)")
_DELETABLE_FILE = re.compile(
    rf"{_MODEL}|{re.escape(_STEP)}|{_CHECKPOINTS}/(?:{re.escape(LATEST)}|{CHECKPOINT.pattern})"
)
# A map shard has the name of its data shard. Shards of an append carry version and attempt.
_MAP_SHARD = re.compile(rf"({_MAP_FOLDER})/part-\d{{5,}}(?:-\d{{6}}-[0-9a-f]{{16}})?\.parquet")
FOLDERS = (
    rf"{INITIAL}|{TEACHER}|{_MAP_FOLDER}|{_TRAINING}(?:/{_CHECKPOINTS})?"
    rf"|{TRAININGS}/{_INDEX}(?:/holdout|/external-[0-9a-f]{{12}})?"
)
"""A pattern of all folders of a run's files except the ledger."""


def training_folder(action: Train) -> str:
    """Return the folder of a training."""
    return f"{TRAININGS}/{action.round}/fold-{action.fold}{_part(action.part)}"


def checkpoint_folder(action: Train) -> str:
    """Return the folder of the checkpoints of a training."""
    return f"{training_folder(action)}/{_CHECKPOINTS}"


def checkpoint_name(epoch: int, sha256: str) -> str:
    """Return the name of a checkpoint within the checkpoint folder."""
    return f"epoch-{epoch:04d}-{sha256[:12]}.pt"


def history_name(action: Train) -> str:
    """Return the name of a training's history, a JSON line per epoch."""
    return f"{training_folder(action)}/{_HISTORY}"


def step_name(action: Train) -> str:
    """Return the name of a training's progress file within an epoch."""
    return f"{training_folder(action)}/{_STEP}"


def result_name(action: Train) -> str:
    """Return the name of a training's result. The file exists once the training has ended."""
    return f"{training_folder(action)}/{RESULT}"


def model_name(action: Train, sha256: str) -> str:
    """Return the name of a training's model file with a digest."""
    # Named after the bytes: two processes with the same training never replace a model.
    return f"{training_folder(action)}/model-{sha256[:12]}.pt"


def initial_model_name(fold: int) -> str:
    """Return the name of the copy of another run's model, from which a fold's trainings start."""
    return f"{INITIAL}/fold-{fold}.pt"


def teacher_name(fold: int) -> str:
    """Return the name of a teacher's outputs for a fold's training images."""
    return f"{TEACHER}/fold-{fold}.parquet"


def predictions_name(
    round_index: int, fold: int, role: Role = "test", others: Sequence[str] = ()
) -> str:
    """Return the name of a round's predictions for the rows of a fold or for the holdout.

    Args:
        round_index: the round.
        fold: the fold; `HOLDOUT` for the holdout.
        role: `test` or `validation`.
        others: URIs of the further runs of an ensemble.
    """
    folder = "holdout" if fold == HOLDOUT else f"fold-{fold}"
    file = _PREDICTIONS if role == "test" else _VALIDATION_PREDICTIONS
    return f"{TRAININGS}/{round_index}/{folder}/{_ensemble_prefix(others)}{file}"


def external_predictions_name(round_index: int, fingerprint: str) -> str:
    """Return the name of a round's predictions for all images of another data set."""
    return f"{TRAININGS}/{round_index}/external-{fingerprint[:12]}/{_PREDICTIONS}"


def external_figures_name(fingerprint: str) -> str:
    """Return the name of the figures of the latest evaluation on another data set."""
    return f"evaluation-external-{fingerprint[:12]}.json"


def pictures_name(predictions: str) -> str:
    """Return the name of the pictures beside a table of predictions."""
    return predictions.removesuffix(".parquet") + _PICTURES


def figures_name(folds: Sequence[int], role: Role = "test", others: Sequence[str] = ()) -> str:
    """Return the name of the figures of a run's latest evaluation of some folds."""
    suffix = "-validation" if role == "validation" else ""
    suffix = "-holdout" if list(folds) == [HOLDOUT] else suffix
    return f"{_ensemble_prefix(others)}evaluation{suffix}.json"


def _ensemble_prefix(others: Sequence[str]) -> str:
    """Return the beginning of the names of an ensemble's files; empty for a run alone."""
    if not others:
        return ""
    return f"ensemble-{hashlib.sha256(' '.join(sorted(others)).encode()).hexdigest()[:12]}-"


def evaluation_name(round_index: int) -> str:
    """Return the name of a round's figures over all folds."""
    return f"{TRAININGS}/{round_index}/{_EVALUATION}"


def map_folder(action: WriteMaps) -> str:
    """Return the folder of the maps written by an action."""
    return f"{MAPS}/{action.round}/fold-{action.fold}{_part(action.part)}"


def parse_training(name: str) -> Train | None:
    """Return the training of a file name; None for predictions, figures and unknown files."""
    match = _TRAINING_FILE.fullmatch(name)
    if match is None:
        return None
    return Train(int(match[1]), int(match[2]), None if match[3] is None else int(match[3]))


def is_deletable(name: str) -> bool:
    """Return whether `mtil gc` may delete a training's file: model, checkpoint or step."""
    match = _TRAINING_FILE.fullmatch(name)
    return match is not None and _DELETABLE_FILE.fullmatch(match[4]) is not None


def is_model(name: str) -> bool:
    """Return whether a file is the model of a training."""
    match = _TRAINING_FILE.fullmatch(name)
    return match is not None and re.fullmatch(_MODEL, match[4]) is not None


def is_result(name: str) -> bool:
    """Return whether a file is the result of a training."""
    action = parse_training(name)
    return action is not None and name == result_name(action)


def is_history(name: str) -> bool:
    """Return whether a file is the history of a training."""
    action = parse_training(name)
    return action is not None and name == history_name(action)


def parse_map_folder(name: str) -> str | None:
    """Return the map folder of a map shard; None for all other files."""
    match = _MAP_SHARD.fullmatch(name)
    return None if match is None else match[1]


def _part(part: int | None) -> str:
    return "" if part is None else f"/part-{part}"
