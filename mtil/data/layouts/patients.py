"""Patients that a table names: known for all rows or for none, and each by one name."""

from collections.abc import Collection, Sequence

from mtil.data.layouts.tables import Row
from mtil.data.names import canonical
from mtil.errors import DataError

_UNKNOWN = (
    "", "nan", "na", "n/a", "none", "null", "nil", "-", "--", "?", "unknown", "unk", "missing",
    "not available", "not applicable", "nat",
)  # fmt: skip
"""What a table may say of a patient who is not known, in lower case."""
_MOST_NAMED = 3


def warn(rows: Sequence[Row], column: str, *, asked: bool) -> list[str]:
    """Return a sentence if some or all rows name no patient although there is a column for it.

    Merged cells that were saved as CSV leave such rows, and their images would be taken for those
    of other patients.

    Args:
        rows: of one table.
        column: the lower-case column of the patients.
        asked: whether the user has named the column.

    Raises:
        DataError: if the user has named the column and no row has a patient.
    """
    if not rows or column not in rows[0].values:
        return []
    without = [row for row in rows if is_unknown(row.values[column])]
    if not without:
        return []
    if asked and len(without) == len(rows):
        raise DataError(
            f"The column `{column}` of {_table(rows[0])} must name patients, but is empty; fill it "
            "in or leave `patient=` out of --columns."
        )
    return [
        f"{len(without)} of {len(rows)} rows of {_table(rows[0])} name no patient in `{column}`, "
        f"such as {without[0].where.partition(' of ')[0].lower()}, and each image counts as a "
        "patient of its own, so that images of one patient may lie in two folds. Fill the column "
        "in, also below cells that were merged."
    ]


def is_unknown(text: str) -> bool:
    """Say whether a table's value stands for no patient."""
    return text.strip().lower() in _UNKNOWN


def same_names(names: Collection[str | None], what: str) -> list[str]:
    """Return a sentence about names that count as one although they are written differently.

    Args:
        names: as they are written.
        what: what they name, such as `patients`.
    """
    found: dict[str, set[str]] = {}
    for name in set(names) - {None}:
        found.setdefault(canonical(str(name)), set()).add(str(name))
    several = sorted(sorted(spellings) for spellings in found.values() if len(spellings) > 1)
    if not several:
        return []
    shown = "; ".join(" = ".join(map(repr, names)) for names in several[:_MOST_NAMED])
    more = f" and {len(several) - _MOST_NAMED} more" if len(several) > _MOST_NAMED else ""
    return [f"{len(several)} {what} are written in several ways and count as one: {shown}{more}."]


def _table(row: Row) -> str:
    return row.where.partition(" of ")[2]
