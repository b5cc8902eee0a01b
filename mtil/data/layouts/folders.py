"""Where a collection's table and images lie: a folder or the only fitting one below it."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from mtil.data.layouts.record import Record, refused
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
    twice: Mapping[str, str]
    """Why an image file cannot be told from another, by lower-case name."""

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
        if name.lower() in self.twice:
            raise DataError(self.twice[name.lower()])
        return found

    def unlisted(self, images: Sequence[str], records: Sequence[Record]) -> list[Record]:
        """Return refused records of the image files that no row names.

        Args:
            images: the collection's image files, called as sample ids are but for their suffix.
            records: those of the rows.
        """
        listed = {record.sample_id.lower() for record in records}
        stem_of = {image: PurePosixPath(image).stem for image in images}
        return [
            refused(
                stem,
                f"Every image must have a row, but {self.table} has none for {image}; "
                "add the row or remove the image.",
            )
            for image, stem in stem_of.items()
            if stem.lower() not in listed
        ]

    def inside(self, folder: str) -> list[str]:
        """Return the names in the store of the PNG files directly in a folder."""
        start = f"{folder.lower()}/"
        return [
            found
            for name, found in self.names.items()
            if name.startswith(start) and "/" not in name[len(start) :] and name.endswith(".png")
        ]


def locate(store: Store, expected: Expected) -> Folder:
    """Find a collection in a store or in a folder below it, by one listing.

    Hidden files are passed over, and so is what lies deeper than a collection.

    Raises:
        DataError: if there is no such collection, or more than one.
    """
    files = visible(store)
    tables: dict[str, list[str]] = {}
    for name in files:
        root, _, file = name.rpartition("/")
        if re.fullmatch(expected.table, file.lower()):
            tables.setdefault(root, []).append(name)
    roots = outermost(tables)
    if not roots:
        raise DataError(_not_found(store, expected, files))
    if len(roots) > 1 or len(tables[roots[0]]) > 1:
        several = [name for root in roots for name in tables[root]]
        raise DataError(
            f"A source must hold one {expected.name} collection, but {store.uri} has "
            f"{len(several)} tables: {some(several)}; name one folder or remove the others."
        )
    start = f"{roots[0]}/" if roots[0] else ""
    names: dict[str, str] = {}
    twice: dict[str, str] = {}
    for name in files:
        if name.startswith(start):
            low = name[len(start) :].lower()
            if names.setdefault(low, name) != name:
                twice[low] = (
                    f"Names must differ by more than their case, but {store.uri} has {names[low]} "
                    f"and {name}; remove one."
                )
    for folder in expected.folders:
        if not any(name.startswith(f"{folder.lower()}/") for name in names):
            raise DataError(
                f"A {expected.name} collection must have {expected.shape}, but "
                f"{start or store.uri} has no files in {folder}/; fetch it again."
            )
    return Folder(uri=store.uri, table=tables[roots[0]][0], names=names, twice=twice)


def outermost(folders: Iterable[str]) -> list[str]:
    """Return the folders that lie least deep, sorted; the store's own is empty."""
    depth = {folder: len(PurePosixPath(folder).parts) for folder in folders}
    least = min(depth.values(), default=0)
    return sorted(folder for folder, at in depth.items() if at == least)


def some(names: Sequence[str]) -> str:
    """Return the first names of a list and how many more there are."""
    shown = ", ".join(names[:4])
    return f"{shown} and {len(names) - 4} more" if len(names) > 4 else shown


def visible(store: Store) -> list[str]:
    """Return the names in a store, without hidden files and what archivers leave."""
    return [
        name
        for name in store.names()
        if not any(part.startswith((".", "~$", "__MACOSX")) for part in name.split("/"))
    ]


def _not_found(store: Store, expected: Expected, files: Sequence[str]) -> str:
    if not files:
        return (
            f"A {expected.name} collection must be a folder with images, but {store.uri} is empty "
            "or missing; check its name."
        )
    top = sorted({name.split("/")[0] for name in files})
    return (
        f"A {expected.name} collection must have {expected.shape}, but {store.uri} has "
        f"{some(top)}; name its folder or another layout."
    )
