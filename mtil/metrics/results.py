"""The table of scored images, a row per image: the input of all reports."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from mtil.errors import DataError


class Label(IntEnum):
    """Class labels of a data set."""

    BENIGN = 0
    MALIGNANT = 1
    NORMAL = 2


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Results:
    """Columns of equal length, a row per image. Lists and numbers of other types are converted.

    `tp` to `false_positive_area` are the fields of `MaskScores`.

    Raises:
        DataError: if columns differ in length, or a value is out of range.
    """

    sample_id: npt.NDArray[np.str_]
    """Name of the image in the collection."""
    group: npt.NDArray[np.str_]
    """Group of dependent images, such as the images of a patient."""
    label: npt.NDArray[np.int64]
    """0 benign, 1 malignant, 2 normal."""
    fold: npt.NDArray[np.int64]
    """The fold whose model scored the image."""
    probability: npt.NDArray[np.float64]
    """Calibrated probability of malignant, in [0, 1]."""
    predicted: npt.NDArray[np.bool_]
    """Whether malignant is called, at the threshold of the fold."""
    tp: npt.NDArray[np.int64]
    fp: npt.NDArray[np.int64]
    fn: npt.NDArray[np.int64]
    dice: npt.NDArray[np.float64]
    iou: npt.NDArray[np.float64]
    hd95: npt.NDArray[np.float64]
    assd: npt.NDArray[np.float64]
    missed: npt.NDArray[np.bool_]
    false_positive_area: npt.NDArray[np.float64]
    lesion_probability: npt.NDArray[np.float64] | None = None
    """Calibrated probability of a lesion in the image, in [0, 1]; NaN (the default) if the model
    cannot tell."""

    def __post_init__(self) -> None:
        if self.lesion_probability is None:
            unknown = np.full(len(self.sample_id), np.nan)
            object.__setattr__(self, "lesion_probability", unknown)
        for name, dtype in _DTYPES.items():
            column: npt.NDArray[np.generic] = np.asarray(getattr(self, name), dtype)
            # The dataclass is frozen, so plain assignment would fail.
            object.__setattr__(self, name, column)
            if column.shape != (len(self.sample_id),):
                raise DataError(
                    f"Columns must have one value per image, but `{name}` has shape {column.shape} "
                    f"and there are {len(self.sample_id)} images; pass the rows of one table."
                )
        self._refuse(~np.isin(self.label, tuple(Label)), "must be labelled 0, 1 or 2", self.label)
        self._refuse(
            ~((self.probability >= 0) & (self.probability <= 1)),
            "must have a probability in [0, 1]",
            self.probability,
        )
        self._refuse(
            (self.presence < 0) | (self.presence > 1),
            "must have a probability of a lesion in [0, 1]",
            self.presence,
        )
        lesion_pixels = self.tp + self.fn
        self._refuse(
            self.tumour & (lesion_pixels == 0), "of a tumour must have a lesion", lesion_pixels
        )
        self._refuse(
            ~self.tumour & (lesion_pixels > 0),
            "without a tumour must have no lesion",
            lesion_pixels,
        )
        # A sum is finite only if all four scores are.
        score_sum = self.dice + self.iou + self.hd95 + self.assd
        self._refuse(
            self.tumour & ~np.isfinite(score_sum), "of a tumour must be fully scored", score_sum
        )

    def _refuse(
        self, wrong: npt.NDArray[np.bool_], rule: str, column: npt.NDArray[np.generic]
    ) -> None:
        if wrong.any():
            row = int(np.argmax(wrong))
            raise DataError(
                f"An image {rule}, but `{self.sample_id[row]}` has {column[row]}; "
                "correct its row or score its mask again with `score_mask`."
            )

    def __len__(self) -> int:
        return len(self.sample_id)

    @property
    def presence(self) -> npt.NDArray[np.float64]:
        """Probability of a lesion in each image; NaN if the model cannot tell."""
        assert self.lesion_probability is not None  # filled in by `__post_init__`
        return self.lesion_probability

    @property
    def called(self) -> npt.NDArray[np.int64]:
        """The label that each image is called.

        `NORMAL` if a lesion is less likely than not; else by `predicted`.
        """
        class_of_lesion = np.where(self.predicted, Label.MALIGNANT, Label.BENIGN)
        return np.where(self.presence < 0.5, Label.NORMAL, class_of_lesion)

    @property
    def tumour(self) -> npt.NDArray[np.bool_]:
        """Whether each image shows a tumour."""
        return np.not_equal(self.label, Label.NORMAL)

    def select(self, rows: npt.NDArray[np.bool_] | npt.NDArray[np.intp]) -> "Results":
        """Return the rows given by flags or by indices."""
        return Results(**{name: getattr(self, name)[rows] for name in _DTYPES})

    def sorted(self) -> "Results":
        """Return the rows sorted by `sample_id`, independent of the order of rows and parts.

        Raises:
            DataError: if an image occurs twice.
        """
        table = self.select(np.argsort(self.sample_id, kind="stable"))
        twice = table.sample_id[1:] == table.sample_id[:-1]
        if twice.any():
            raise DataError(
                f"Every image must be scored once, but `{table.sample_id[1:][twice][0]}` is there "
                "more than once; drop the surplus rows or evaluate again."
            )
        return table

    @classmethod
    def concatenate(cls, parts: Sequence["Results"]) -> "Results":
        """Return the rows of several tables, such as tables of workers or folds."""
        return cls(
            **{
                name: np.concatenate([np.empty(0, dtype), *(getattr(part, name) for part in parts)])
                for name, dtype in _DTYPES.items()
            }
        )


_DTYPES: dict[str, type[np.generic]] = {
    "sample_id": np.str_,
    "group": np.str_,
    "label": np.int64,
    "fold": np.int64,
    "probability": np.float64,
    "predicted": np.bool_,
    "tp": np.int64,
    "fp": np.int64,
    "fn": np.int64,
    "dice": np.float64,
    "iou": np.float64,
    "hd95": np.float64,
    "assd": np.float64,
    "missed": np.bool_,
    "false_positive_area": np.float64,
    "lesion_probability": np.float64,
}
"""Types of all columns, by name."""
