"""Where a collection's table and images lie: a folder or the only fitting one below it."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from mtil.data.dataset.account import FilesSeen
from mtil.data.layouts.files import (
    Listing,
    count,
    is_image,
    look,
    some,
    twice_as,
    without_suffix,
)
from mtil.data.layouts.record import Record, refused
from mtil.data.layouts.tables import has_columns
from mtil.data.names import composed
from mtil.errors import DataError
from mtil.storage import Store


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a layout must have."""

    name: str
    """The collection's name."""
    table: str
    """A pattern for the table's lower-case name."""
    columns: Sequence[str]
    """Lower-case columns that the table must have."""
    folders: Sequence[str] = ()
    """Folders beside the table, which must hold files."""
    shape: str
    """All that it must have, for an error."""


@dataclass(frozen=True, kw_only=True)
class Folder:
    """The files of one collection; their names are found whatever their case and suffix."""

    uri: str
    table: str
    """Name of the table in the store."""
    names: Mapping[str, str]
    """Name in the store by lower-case name below the collection's folder."""
    images: Mapping[str, str]
    """Name in the store of each image file, by lower-case name without its suffix."""
    twice: Mapping[str, str]
    """Why an image file cannot be told from another, likewise."""
    listing: Listing
    start: str
    """How the names of the collection's files begin in the store: its folder and a slash."""

    def require(self, name: str, where: str) -> str:
        """Return an image file's name in the store.

        Args:
            name: relative to the collection's folder; its suffix does not matter.
            where: the row that names it.

        Raises:
            DataError: if there is no such file, or more than one.
        """
        found = self.find(name)
        if found is None:
            raise DataError(
                f"{where} must name files that are there, but {self.uri} has no {name}; "
                "add the file or remove the row."
            )
        if _key(name) in self.twice:
            raise DataError(self.twice[_key(name)])
        return found

    def find(self, name: str) -> str | None:
        """Return an image file's name in the store, or None if there is none. See `require`."""
        return self.images.get(_key(name))

    def files(self, image: str, masks: Iterable[str]) -> tuple[str, tuple[str, ...]]:
        """Return the names in the store of an image and its masks, as far as they are there."""
        found = [name for mask in masks if (name := self.find(mask)) is not None]
        return self.find(image) or "", tuple(found)

    def unlisted(self, images: Sequence[str], records: Sequence[Record]) -> list[Record]:
        """Return refused records of the image files that no row names.

        Args:
            images: the collection's image files, called as sample ids are but for their suffix.
            records: those of the rows.
        """
        listed = {_key(record.sample_id) for record in records}
        stem_of = {image: PurePosixPath(composed(without_suffix(image))).name for image in images}
        return [
            refused(
                stem,
                f"Every image must have a row, but {self.table} has none for {image}; "
                "add the row or remove the image.",
                image,
            )
            for image, stem in stem_of.items()
            if stem.lower() not in listed
        ]

    def inside(self, folder: str) -> list[str]:
        """Return the names in the store of the image files directly in a folder."""
        start = f"{folder.lower()}/"
        return [
            found
            for name, found in self.names.items()
            if name.startswith(start) and "/" not in name[len(start) :] and is_image(name)
        ]

    def account(
        self, records: Sequence[Record], tables: Collection[str], folders: Sequence[str]
    ) -> FilesSeen:
        """Say what each file of the store is.

        Args:
            records: the images.
            tables: the tables that were read.
            folders: those that hold images and masks; none if they may lie anywhere.
        """
        known = tuple(f"{folder.lower()}/" for folder in folders)

        def why_not(name: str) -> str:
            if not name.startswith(self.start):
                return f"outside of the collection's folder {self.start.rstrip('/')}"
            inside = name[len(self.start) :].lower()
            if known and not inside.startswith(known):
                return f"in none of the folders {', '.join(folders)}"
            return "no row names the file"

        return count(self.listing, records, tables, why_not, self.start)


def locate(store: Store, expected: Expected, apart: str = "") -> Folder:
    """Find a collection in a store or in a folder below it, by one listing.

    What a rule leaves out is passed over (`files.ignored_by`). Of several tables the one counts
    that has its folders beside it and its columns inside.

    Args:
        store: the collection's folder or one above it.
        expected: what it must have.
        apart: see `files.look`.

    Raises:
        DataError: if there is no such collection, or more than one.
    """
    listing = look(store, apart)
    table = _choose(store, listing, expected)
    root = table.rpartition("/")[0]
    start = f"{root}/" if root else ""
    names: dict[str, str] = {}
    by_stem: dict[str, list[str]] = {}
    for name in listing.names:
        if name.startswith(start):
            low = composed(name[len(start) :]).lower()
            names.setdefault(low, name)
            if is_image(low):
                by_stem.setdefault(without_suffix(low), []).append(name)
    for folder in expected.folders:
        if not any(name.startswith(f"{folder.lower()}/") for name in names):
            raise DataError(
                f"A {expected.name} collection must have {expected.shape}, but "
                f"{start or store.uri} has no files in {folder}/; fetch it again."
            )
    return Folder(
        uri=store.uri,
        table=table,
        names=names,
        images={stem: found[0] for stem, found in by_stem.items()},
        twice={stem: twice_as(found) for stem, found in by_stem.items() if len(found) > 1},
        listing=listing,
        start=start,
    )


def _choose(store: Store, listing: Listing, expected: Expected) -> str:
    """Return the table of the only collection that is complete, else the outermost table.

    Raises:
        DataError: if there is none, or nothing tells several apart.
    """
    found = [
        name
        for name in listing.names
        if re.fullmatch(expected.table, name.rpartition("/")[2].lower())
    ]
    if not found:
        raise DataError(_not_found(store, expected, listing.names))
    if len(found) == 1:
        return found[0]
    lower = [name.lower() for name in listing.names]
    whole = [name for name in found if _has_folders(name, expected, lower)]
    fitting = [name for name in whole if has_columns(store, name, expected.columns)]
    left = fitting or whole or found
    if not whole:
        roots = outermost(name.rpartition("/")[0] for name in found)
        left = [name for name in found if name.rpartition("/")[0] in roots]
    if len(left) > 1:
        raise DataError(
            f"A source must hold one {expected.name} collection, but {store.uri} has "
            f"{len(left)} tables: {some(left)}; name one folder or remove the others."
        )
    return left[0]


def _has_folders(table: str, expected: Expected, lower: Sequence[str]) -> bool:
    root = table.rpartition("/")[0].lower()
    starts = [f"{root}/{folder.lower()}/".lstrip("/") for folder in expected.folders]
    return all(any(name.startswith(start) for name in lower) for start in starts)


def outermost(folders: Iterable[str]) -> list[str]:
    """Return the folders that lie least deep, sorted; the store's own is empty."""
    depth = {folder: len(PurePosixPath(folder).parts) for folder in folders}
    least = min(depth.values(), default=0)
    return sorted(folder for folder, at in depth.items() if at == least)


def _key(name: str) -> str:
    return composed(without_suffix(name)).lower()


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
