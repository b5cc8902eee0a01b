"""Which rows of a data set a fold trains on, validates on, and is tested on."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mtil.data.dataset.manifest import Manifest, Shard
from mtil.data.dataset.shards import HOLDOUT, LABELS
from mtil.errors import DataError

Role = Literal["train", "validation", "test"]
NORMAL = LABELS.index("normal")


@dataclass(frozen=True)
class Inner:
    """One of the equal divisions of a fold's training rows, whole groups together."""

    number: int
    of: int

    def holds(self, part: npt.NDArray[np.int8], validated: int) -> npt.NDArray[np.bool_]:
        """Say which rows it holds, by their part; the validated part is in none."""
        rank = part - (part > validated)
        held: npt.NDArray[np.bool_] = (rank % self.of == self.number) & (part != validated)
        return held


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The rows of one role of one fold: a rule on fold, part and label, so that counts add up."""

    fold: int
    role: Role
    num_parts: int
    normals: bool = True
    only: Inner | None = None
    """Of the training rows, those of this division alone."""
    without: Inner | None = None
    """Of the training rows, all but those of this division."""

    def _keeps(
        self, fold: npt.NDArray[np.int8], part: npt.NDArray[np.int8], label: npt.NDArray[np.int8]
    ) -> npt.NDArray[np.bool_]:
        tested: npt.NDArray[np.bool_] = fold == self.fold
        if self.role == "test":
            return tested
        number = self.fold % self.num_parts
        validated = part == number
        kept: npt.NDArray[np.bool_] = (
            ~tested & (fold != HOLDOUT) & (validated if self.role == "validation" else ~validated)
        )
        if self.only is not None:
            kept &= self.only.holds(part, number)
        if self.without is not None:
            kept &= ~self.without.holds(part, number)
        if not self.normals:
            kept &= label != NORMAL
        return kept

    def rows(self, table: pa.Table) -> npt.NDArray[np.int64]:
        """Return the positions of this role's rows in a shard's table."""
        columns = [table.column(name).to_numpy() for name in ("fold", "part", "label")]
        return np.flatnonzero(self._keeps(*columns))

    def count(self, shard: Shard, label: int | None = None) -> int:
        """Return how many rows of a shard this role has, by the manifest; of one label if given."""
        cells = [cell for cell in shard.cells if label is None or cell.label == label]
        if not cells:
            return 0
        values = np.array([(cell.fold, cell.part, cell.label) for cell in cells], np.int8).T
        rows = np.array([cell.rows for cell in cells])
        return int(rows[self._keeps(*values)].sum())


def select(
    manifest: Manifest,
    fold: int,
    role: Role,
    *,
    normals: bool = True,
    only: Inner | None = None,
    without: Inner | None = None,
) -> Selection:
    """Return the selection of a fold's role.

    Args:
        manifest: the data set.
        fold: the fold that is held out.
        role: what the rows are for.
        normals: whether images without a lesion are taken.
        only: the one division of the training rows that is wanted.
        without: the one division of the training rows that is not.

    Raises:
        DataError: if the data set has no such fold or division, or the role has no rows.
    """
    held_out = fold == HOLDOUT and role == "test"
    if not (0 <= fold < manifest.num_folds or held_out):
        raise DataError(
            f"A fold must be one of 0 to {manifest.num_folds - 1} in this data set, but got {fold}."
        )
    for inner in (only, without):
        if inner is not None and (inner.of >= manifest.num_parts or role != "train"):
            raise DataError(
                f"Training rows can be divided into at most {manifest.num_parts - 1} parts in this "
                f"data set, but `circle.num_parts` is {inner.of}."
            )
    selection = Selection(
        fold=fold,
        role=role,
        num_parts=manifest.num_parts,
        normals=normals,
        only=only,
        without=without,
    )
    if held_out and not total(manifest, selection):
        raise DataError("The data set has no holdout; prepare one with `mtil prepare --holdout`.")
    if not total(manifest, selection):
        raise DataError(
            f"Fold {fold} must have {role} rows, but has none; prepare the data with fewer folds."
        )
    return selection


def total(manifest: Manifest, selection: Selection, label: int | None = None) -> int:
    """Return how many rows a selection has in the whole data set; of one label if given."""
    return sum(selection.count(shard, label) for shard in manifest.shards)


def parse_folds(text: str, num_folds: int) -> list[int]:
    """Read `all`, `0`, `0,2` or `holdout` into fold numbers.

    Raises:
        DataError: if the text is something else or names a fold that is not there.
    """
    if text == "all":
        return list(range(num_folds))
    if text == "holdout":
        return [HOLDOUT]
    try:
        folds = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise DataError(f"Folds must be `all` or numbers like 0,1, but got {text!r}.") from None
    for fold in folds:
        if not 0 <= fold < num_folds:
            raise DataError(
                f"A fold must be one of 0 to {num_folds - 1} in this data set, but got {fold}."
            )
    return folds
