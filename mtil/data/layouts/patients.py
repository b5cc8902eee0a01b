"""Check the patient column of a table: empty cells and varying spellings of a name."""

from collections.abc import Collection, Sequence

from mtil.data.layouts.tables import TableRow
from mtil.data.names import normalise_identifier
from mtil.errors import DataError

_UNKNOWN = (
    "", "nan", "na", "n/a", "none", "null", "nil", "-", "--", "?", "unknown", "unk", "missing",
    "not available", "not applicable", "nat",
)  # fmt: skip
"""Lower-case words for an unknown patient."""
_MAX_EXAMPLES = 3


def warn_of_missing_patients(rows: Sequence[TableRow], column: str, *, asked: bool) -> list[str]:
    """Return a warning if rows of a table with a patient column name no patient.

    Args:
        rows: rows of a table.
        column: lower-case name of the patient column.
        asked: whether the user named the column in `--columns`.

    Returns:
        One sentence, or nothing if the column is missing or complete.

    Raises:
        DataError: if the user named the column and every row lacks a patient.
    """
    if not rows or column not in rows[0].values:
        return []
    # In CSV only the first row of merged cells is filled. Without a warning, images of the
    # rows below would silently count as images of further patients.
    unknown = [row for row in rows if is_unknown_patient(row.values[column])]
    if not unknown:
        return []
    if asked and len(unknown) == len(rows):
        raise DataError(
            f"The column `{column}` of {_table_name(rows[0])} must name patients, but is empty; "
            "fill the column in or leave `patient=` out of --columns."
        )
    return [
        f"{len(unknown)} of {len(rows)} rows of {_table_name(rows[0])} name no patient in "
        f"`{column}`, such as {unknown[0].where.partition(' of ')[0].lower()}, and each image "
        "counts as a patient of its own, so that images of one patient may lie in two folds. Fill "
        "the column in, also below cells that were merged."
    ]


def is_unknown_patient(text: str) -> bool:
    """Return whether a table's value stands for an unknown patient."""
    return text.strip().lower() in _UNKNOWN


def note_merged_spellings(names: Collection[str | None], what: str) -> list[str]:
    """Return a note about differing spellings counted as one name.

    Args:
        names: names as written.
        what: plural noun for the named things, for example `patients`.

    Returns:
        One sentence, or nothing if every name has a single spelling.
    """
    spellings_of: dict[str, set[str]] = {}
    for name in set(names) - {None}:
        spellings_of.setdefault(normalise_identifier(str(name)), set()).add(str(name))
    merged = sorted(sorted(spellings) for spellings in spellings_of.values() if len(spellings) > 1)
    if not merged:
        return []
    examples = "; ".join(" = ".join(map(repr, names)) for names in merged[:_MAX_EXAMPLES])
    more = f" and {len(merged) - _MAX_EXAMPLES} more" if len(merged) > _MAX_EXAMPLES else ""
    return [f"{len(merged)} {what} are written in several ways and count as one: {examples}{more}."]


def _table_name(row: TableRow) -> str:
    return row.where.partition(" of ")[2]
