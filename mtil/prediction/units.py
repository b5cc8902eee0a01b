"""Units of work of an evaluation: a few rows of one shard. No Ray.

Only `UnitScorer.score` loads PyTorch, so listing units stays cheap.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from mtil.circle.inputs import load_model_chains
from mtil.data.dataset.manifest import Manifest
from mtil.data.dataset.selection import Role, select_rows
from mtil.data.dataset.shards import read_shard
from mtil.errors import DataError
from mtil.run.folder import Run
from mtil.storage import open_store

if TYPE_CHECKING:
    import torch

    from mtil.prediction.predictor import Predictor
    from mtil.run.checkpoint import TrainedModel

_UNIT_ROWS = 64
"""Maximum rows of a unit: few enough to spread a small data set over the workers."""


@dataclass(frozen=True)
class ScoringUnit:
    """A range of a fold's rows in one shard."""

    fold: int
    shard: int
    """Index of the shard in the manifest."""
    start: int
    """Index of the first row among the fold's rows in the shard."""
    rows: int
    """Number of rows."""
    role: Role = "test"
    """The rows of the fold: `test`, or `validation` for its inner validation rows."""


class UnitScorer:
    """Score units with the models of one round. Caches models and the latest shard."""

    def __init__(
        self,
        run_uri: str,
        data_uri: str,
        round_index: int,
        device: "torch.device",
        others: Sequence[str] = (),
    ) -> None:
        self._run, self._round, self._device = Run.open(run_uri), round_index, device
        self._others = [Run.open(uri) for uri in others]
        self._store = open_store(data_uri)
        self._manifest = self._run.manifest(data_uri)
        self._chains: dict[int, list[list[Predictor]]] = {}
        self._shard: tuple[int, pa.Table] | None = None

    def score(self, unit: ScoringUnit) -> pa.Table:
        """Return the scores of a unit, with a row per image and pass."""
        from mtil.prediction.predictor import build_predictors
        from mtil.prediction.scoring import EVALUATION_COLUMNS, score_chains

        if unit.fold not in self._chains:
            self._chains[unit.fold] = [
                build_predictors(models, self._device)
                for models in (
                    *load_model_chains(self._run, self._round, unit.fold),
                    *_load_other_chains(self._others, unit.fold),
                )
            ]
        # A shard's units come in sequence, so a cache of one shard is enough.
        if self._shard is None or self._shard[0] != unit.shard:
            shard = self._manifest.shards[unit.shard]
            self._shard = (unit.shard, read_shard(self._store, shard, EVALUATION_COLUMNS))
        table = self._shard[1]
        selection = select_rows(self._manifest, unit.fold, unit.role)
        rows = selection.rows(table)[unit.start :][: unit.rows]
        chosen = table.take(pa.array(rows))
        # The fold of the models: an inner validation row lies in another fold of the data set.
        fold = pa.array([unit.fold] * len(rows), chosen.schema.field("fold").type)
        chosen = chosen.set_column(chosen.schema.get_field_index("fold"), "fold", fold)
        return score_chains(chosen, self._chains[unit.fold], num_images=self._manifest.num_rows)


def check_ensemble(run: Run, round_index: int, fold: int, others: Sequence[str]) -> None:
    """Check that further runs can form an ensemble with the models of a run's round and fold.

    Raises:
        DataError: if another run has a different data set or number of passes, or the fold is not
            trained.
        CheckpointError: if a model file is damaged.
    """
    if not others:
        return
    from mtil.prediction.predictor import count_passes

    runs = [Run.open(uri) for uri in others]
    for other in runs:
        if other.fingerprint != run.fingerprint:
            raise DataError(
                f"The runs of an ensemble must have one data set, but {run.uri} has the "
                f"fingerprint {run.fingerprint[:12]}… and {other.uri} "
                f"{other.fingerprint[:12]}…; name a run of the same data set."
            )
        if other.uri == run.uri:
            raise DataError(
                f"An ensemble must have each run once, but {run.uri} is named twice; name another."
            )
    chains = [*load_model_chains(run, round_index, fold), *_load_other_chains(runs, fold)]
    passes = sorted({count_passes(chain) for chain in chains})
    if len(passes) > 1:
        raise DataError(
            "The runs of an ensemble must make equally many passes, but these make "
            f"{passes[0]} and {passes[-1]}; name runs with equal `circle` and `zoom` keys."
        )


def _load_other_chains(runs: Sequence[Run], fold: int) -> "list[list[TrainedModel]]":
    """Return the chains of models of a fold, each run's of its last round."""
    return [chain for run in runs for chain in load_model_chains(run, run.last_round(), fold)]


def list_units(manifest: Manifest, folds: Sequence[int], role: Role = "test") -> list[ScoringUnit]:
    """Split the rows of folds in a role into units. No row of a fold is in two units."""
    return [
        ScoringUnit(fold, index, start, min(_UNIT_ROWS, count - start), role)
        for fold in folds
        for index, shard in enumerate(manifest.shards)
        for count in [select_rows(manifest, fold, role).count(shard)]
        for start in range(0, count, _UNIT_ROWS)
    ]
