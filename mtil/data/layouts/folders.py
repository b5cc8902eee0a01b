"""Where a collection's table and images lie: a folder or its only fitting child."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from mtil.errors import DataError
from mtil.storage import Store


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a layout must have."""

    name: str
    """The collection's name."""
    table: str
    """A pattern for the table's lower-case name."""
    folders: Sequence[str] = ()
    """Folders beside the table, which must hold files."""
    shape: str
    """All that it must have, for an error."""


@dataclass(frozen=True, kw_only=True)
class Folder:
    """The files of one collection; their names are found whatever their case."""

    uri: str
    table: str
    """Name of the table in the store."""
    names: Mapping[str, str]
    """Name in the store by lower-case name below the collection's folder."""

    def require(self, name: str, where: str) -> str:
        """Return a file's name in the store.

        Args:
            name: relative to the collection's folder.
            where: the row that names it.

        Raises:
            DataError: if there is no such file.
        """
        found = self.names.get(name.lower())
        if found is None:
            raise DataError(
                f"{where} must name files that are there, but {self.uri} has no {name}; "
                "add the file or remove the row."
            )
        return found

    def refuse_unlisted(self, names: Collection[str], listed: Collection[str]) -> None:
        """Refuse image files that no row names.

        Args:
            names: all images in the store.
            listed: those that a row names.

        Raises:
            DataError: naming some of them.
        """
        others = sorted(set(names) - set(listed))
        if others:
            raise DataError(
                f"Every image must have a row, but {self.table} has none for {some(others)}; "
                "add the rows or remove the images."
            )

    def inside(self, folder: str) -> list[str]:
        """Return the names in the store of the PNG files directly in a folder."""
        start = f"{folder.lower()}/"
        return [
            found
            for name, found in self.names.items()
            if name.startswith(start) and "/" not in name[len(start) :] and name.endswith(".png")
        ]


def locate(store: Store, expected: Expected) -> Folder:
    """Find a collection in a store or in one of its children, by one listing.

    Hidden files are passed over.

    Raises:
        DataError: if there is no such collection, or more than one.
    """
    files = [name for name in store.names() if not _hidden(name)]
    tables: dict[str, list[str]] = {}
    for name in files:
        root, _, file = name.rpartition("/")
        if "/" not in root and re.fullmatch(expected.table, file.lower()):
            tables.setdefault(root, []).append(name)
    roots = [""] if "" in tables else sorted(tables)
    if not roots:
        raise DataError(_not_found(store, expected, files))
    if len(roots) > 1 or len(tables[roots[0]]) > 1:
        several = [name for root in roots for name in tables[root]]
        raise DataError(
            f"A source must hold one {expected.name} collection, but {store.uri} has "
            f"{len(several)} tables: {some(several)}; name one folder or remove the others."
        )
    start = f"{roots[0]}/" if roots[0] else ""
    names = {name[len(start) :].lower(): name for name in files if name.startswith(start)}
    for folder in expected.folders:
        if not any(name.startswith(f"{folder.lower()}/") for name in names):
            raise DataError(
                f"A {expected.name} collection must have {expected.shape}, but "
                f"{start or store.uri} has no files in {folder}/."
            )
    return Folder(uri=store.uri, table=tables[roots[0]][0], names=names)


def some(names: Sequence[str]) -> str:
    """Return the first names of a list and how many more there are."""
    shown = ", ".join(names[:4])
    return f"{shown} and {len(names) - 4} more" if len(names) > 4 else shown


def _hidden(name: str) -> bool:
    return any(part.startswith((".", "~$", "__MACOSX")) for part in name.split("/"))


def _not_found(store: Store, expected: Expected, files: Sequence[str]) -> str:
    if not files:
        return (
            f"A {expected.name} collection must be a folder with images, but {store.uri} is empty "
            "or missing."
        )
    top = sorted({name.split("/")[0] for name in files})
    return (
        f"A {expected.name} collection must have {expected.shape}, but {store.uri} has {some(top)}."
    )
