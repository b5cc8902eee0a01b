"""Select the training, validation and test rows of a fold."""

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
class InnerDivision:
    """Division `number` out of `of` divisions of a fold's training rows; groups stay whole."""

    number: int
    of: int

    def holds(self, part: npt.NDArray[np.int8], validated: int) -> npt.NDArray[np.bool_]:
        """Return a mask of the rows in this division.

        Args:
            part: (n,), inner part of the rows.
            validated: the inner part used for validation, which belongs to no division.
        """
        # Number the training parts without a gap: `%` then spreads the parts evenly.
        rank = part - (part > validated)
        in_division: npt.NDArray[np.bool_] = (rank % self.of == self.number) & (part != validated)
        return in_division


@dataclass(frozen=True, kw_only=True)
class RowSelection:
    """The rows of a fold in a role.

    The rule depends on fold, part and label only. Row counts follow from the manifest, without
    opening a shard.
    """

    fold: int
    role: Role
    num_parts: int
    normals: bool = True
    only: InnerDivision | None = None
    """Keep only the training rows of the division."""
    without: InnerDivision | None = None
    """Leave out the training rows of the division."""

    def _mask(
        self, fold: npt.NDArray[np.int8], part: npt.NDArray[np.int8], label: npt.NDArray[np.int8]
    ) -> npt.NDArray[np.bool_]:
        is_tested: npt.NDArray[np.bool_] = fold == self.fold
        if self.role == "test":
            return is_tested
        validated_part = self.fold % self.num_parts
        is_validated = part == validated_part
        is_kept: npt.NDArray[np.bool_] = (
            ~is_tested
            & (fold != HOLDOUT)
            & (is_validated if self.role == "validation" else ~is_validated)
        )
        if self.only is not None:
            is_kept &= self.only.holds(part, validated_part)
        if self.without is not None:
            is_kept &= ~self.without.holds(part, validated_part)
        if not self.normals:
            is_kept &= label != NORMAL
        return is_kept

    def rows(self, table: pa.Table) -> npt.NDArray[np.int64]:
        """Return the positions of the selected rows in the table of a shard."""
        columns = [table.column(name).to_numpy() for name in ("fold", "part", "label")]
        return np.flatnonzero(self._mask(*columns))

    def count(self, shard: Shard, label: int | None = None) -> int:
        """Count the selected rows of a shard from the manifest; only rows with `label` if given."""
        cells = [cell for cell in shard.cells if label is None or cell.label == label]
        if not cells:
            return 0
        values = np.array([(cell.fold, cell.part, cell.label) for cell in cells], np.int8).T
        rows = np.array([cell.rows for cell in cells])
        return int(rows[self._mask(*values)].sum())


def select_rows(
    manifest: Manifest,
    fold: int,
    role: Role,
    *,
    normals: bool = True,
    only: InnerDivision | None = None,
    without: InnerDivision | None = None,
) -> RowSelection:
    """Return the selection of a fold and role.

    Args:
        manifest: the data set.
        fold: the held-out fold; `HOLDOUT` with role `test` for the final test.
        role: purpose of the rows.
        normals: whether to include images without a lesion.
        only: division of the training rows to select.
        without: division of the training rows to leave out.

    Raises:
        DataError: if the fold or division does not exist, or the role has no rows.
    """
    is_holdout_test = fold == HOLDOUT and role == "test"
    if not (0 <= fold < manifest.num_folds or is_holdout_test):
        raise DataError(
            f"A fold must be one of 0 to {manifest.num_folds - 1} in this data set, but got {fold}."
        )
    for division in (only, without):
        if division is not None and (division.of >= manifest.num_parts or role != "train"):
            raise DataError(
                f"Training rows can be divided into at most {manifest.num_parts - 1} parts in this "
                f"data set, but `circle.num_parts` is {division.of}."
            )
    selection = RowSelection(
        fold=fold,
        role=role,
        num_parts=manifest.num_parts,
        normals=normals,
        only=only,
        without=without,
    )
    if is_holdout_test and not count_rows(manifest, selection):
        raise DataError("The data set has no holdout; prepare one with `mtil prepare --holdout`.")
    if not count_rows(manifest, selection):
        raise DataError(
            f"Fold {fold} must have {role} rows, but has none; prepare the data with fewer folds."
        )
    return selection


def count_rows(manifest: Manifest, selection: RowSelection, label: int | None = None) -> int:
    """Count the selected rows of the whole data set; only rows with `label` if given."""
    return sum(selection.count(shard, label) for shard in manifest.shards)


def parse_folds(text: str, num_folds: int) -> list[int]:
    """Parse `all`, `0`, `0,2` or `holdout` into ascending fold numbers.

    Raises:
        DataError: if the text has a different form or names a fold outside the data set.
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
