"""Locate a collection's table and images: in a folder or in the only matching subfolder."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from mtil.data.dataset.account import FilesSeen
from mtil.data.layouts.files import (
    SourceListing,
    count_source_files,
    describe_ambiguous_files,
    format_first_names,
    has_image_suffix,
    list_source_files,
    strip_image_suffix,
)
from mtil.data.layouts.record import Record, make_refused_record
from mtil.data.layouts.tables import has_columns
from mtil.data.names import compose_unicode
from mtil.errors import DataError
from mtil.storage import Store


@dataclass(frozen=True, kw_only=True)
class ExpectedLayout:
    """The table, columns and folders required by a layout."""

    name: str
    """Name of the collection."""
    table: str
    """Regular expression for the lower-case name of the table."""
    columns: Sequence[str]
    """Lower-case names of the required columns."""
    folders: Sequence[str] = ()
    """Folders beside the table; every folder must hold files."""
    shape: str
    """Description of the layout for error messages."""


@dataclass(frozen=True, kw_only=True)
class CollectionFolder:
    """The files of a collection, found by name regardless of case and image suffix."""

    uri: str
    table: str
    """Name of the table in the store."""
    names: Mapping[str, str]
    """Name in the store by lower-case name relative to the collection's folder."""
    images: Mapping[str, str]
    """Name in the store of every image file, by lower-case relative name without suffix."""
    twice: Mapping[str, str]
    """Reason for refusing an ambiguous image file, by lower-case relative name without suffix."""
    listing: SourceListing
    start: str
    """Prefix of the collection's files in the store: the folder and a slash, or empty."""

    def require(self, name: str, where: str) -> str:
        """Return an image file's name in the store.

        Args:
            name: name relative to the collection's folder, with any image suffix.
            where: row with the name, for an error.

        Raises:
            DataError: if the file is missing or ambiguous.
        """
        path = self.find(name)
        if path is None:
            raise DataError(
                f"{where} must name files that exist, but {self.uri} has no {name}; "
                "add the file or remove the row."
            )
        if _match_key(name) in self.twice:
            raise DataError(self.twice[_match_key(name)])
        return path

    def find(self, name: str) -> str | None:
        """Return an image file's name in the store, or None if missing. See `require`."""
        return self.images.get(_match_key(name))

    def files(self, image: str, masks: Iterable[str]) -> tuple[str, tuple[str, ...]]:
        """Return the names in the store of an image (empty if missing) and of existing masks."""
        existing = [name for mask in masks if (name := self.find(mask)) is not None]
        return self.find(image) or "", tuple(existing)

    def refuse_unlisted_images(
        self, images: Sequence[str], records: Sequence[Record]
    ) -> list[Record]:
        """Return a refused record for every image file without a row in the table.

        Args:
            images: image files of the collection, named by sample id plus suffix.
            records: records of the table's rows.
        """
        listed = {_match_key(record.sample_id) for record in records}
        stem_of = {
            image: PurePosixPath(compose_unicode(strip_image_suffix(image))).name
            for image in images
        }
        return [
            make_refused_record(
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
        prefix = f"{folder.lower()}/"
        return [
            path
            for name, path in self.names.items()
            if name.startswith(prefix) and "/" not in name[len(prefix) :] and has_image_suffix(name)
        ]

    def account(
        self, records: Sequence[Record], tables: Collection[str], folders: Sequence[str]
    ) -> FilesSeen:
        """Count the files of the store by role. See `files.count_source_files`.

        Args:
            records: all images, including refused records.
            tables: names of the tables read.
            folders: folders of images and masks; empty if files may lie anywhere.
        """
        prefixes = tuple(f"{folder.lower()}/" for folder in folders)

        def why_not(name: str) -> str:
            if not name.startswith(self.start):
                return f"outside of the collection's folder {self.start.rstrip('/')}"
            relative_name = name[len(self.start) :].lower()
            if prefixes and not relative_name.startswith(prefixes):
                return f"in none of the folders {', '.join(folders)}"
            return "no row names the file"

        return count_source_files(self.listing, records, tables, why_not, self.start)


def locate_collection(store: Store, expected: ExpectedLayout, apart: str = "") -> CollectionFolder:
    """Find a collection in a store or in a subfolder, by a single listing.

    Skips files ignored by a rule (`files.find_ignore_rule`). If several tables match by name,
    prefers the table with the required folders beside it, then the table with the required columns.

    Args:
        store: the collection's folder or a folder above.
        expected: the required table, columns and folders.
        apart: see `files.list_source_files`.

    Raises:
        DataError: if the store holds no collection, an incomplete collection, or several.
    """
    listing = list_source_files(store, apart)
    table = _choose_table(store, listing, expected)
    root = table.rpartition("/")[0]
    start = f"{root}/" if root else ""
    names: dict[str, str] = {}
    by_stem: dict[str, list[str]] = {}
    for name in listing.names:
        if name.startswith(start):
            relative_name = compose_unicode(name[len(start) :]).lower()
            names.setdefault(relative_name, name)
            if has_image_suffix(relative_name):
                by_stem.setdefault(strip_image_suffix(relative_name), []).append(name)
    for folder in expected.folders:
        if not any(name.startswith(f"{folder.lower()}/") for name in names):
            raise DataError(
                f"A {expected.name} collection must have {expected.shape}, but "
                f"{start or store.uri} has no files in {folder}/; fetch it again."
            )
    return CollectionFolder(
        uri=store.uri,
        table=table,
        names=names,
        images={stem: files[0] for stem, files in by_stem.items()},
        twice={
            stem: describe_ambiguous_files(files)
            for stem, files in by_stem.items()
            if len(files) > 1
        },
        listing=listing,
        start=start,
    )


def _choose_table(store: Store, listing: SourceListing, expected: ExpectedLayout) -> str:
    """Return the table of the only complete collection, else the outermost table.

    Raises:
        DataError: if no table matches, or several match equally well.
    """
    tables = [
        name
        for name in listing.names
        if re.fullmatch(expected.table, name.rpartition("/")[2].lower())
    ]
    if not tables:
        raise DataError(_missing_collection(store, expected, listing.names))
    # A single match needs no check: `locate_collection` and `read_rows` name a missing folder or
    # column.
    if len(tables) == 1:
        return tables[0]
    lower_names = [name.lower() for name in listing.names]
    complete = [name for name in tables if _has_folders(name, expected, lower_names)]
    fitting = [name for name in complete if has_columns(store, name, expected.columns)]
    candidates = fitting or complete or tables
    if not complete:
        roots = find_outermost_folders(name.rpartition("/")[0] for name in tables)
        candidates = [name for name in tables if name.rpartition("/")[0] in roots]
    if len(candidates) > 1:
        raise DataError(
            f"A source must hold one {expected.name} collection, but {store.uri} has "
            f"{len(candidates)} tables: {format_first_names(candidates)}; name one folder or "
            "remove the others."
        )
    return candidates[0]


def _has_folders(table: str, expected: ExpectedLayout, lower_names: Sequence[str]) -> bool:
    root = table.rpartition("/")[0].lower()
    prefixes = [f"{root}/{folder.lower()}/".lstrip("/") for folder in expected.folders]
    return all(any(name.startswith(prefix) for name in lower_names) for prefix in prefixes)


def find_outermost_folders(folders: Iterable[str]) -> list[str]:
    """Return the folders with the fewest parents, sorted; the store's root is an empty name."""
    depth_of = {folder: len(PurePosixPath(folder).parts) for folder in folders}
    least = min(depth_of.values(), default=0)
    return sorted(folder for folder, depth in depth_of.items() if depth == least)


def _match_key(name: str) -> str:
    return compose_unicode(strip_image_suffix(name)).lower()


def _missing_collection(store: Store, expected: ExpectedLayout, files: Sequence[str]) -> str:
    if not files:
        return (
            f"A {expected.name} collection must be a folder with images, but {store.uri} is empty "
            "or missing; check its name."
        )
    top = sorted({name.split("/")[0] for name in files})
    return (
        f"A {expected.name} collection must have {expected.shape}, but {store.uri} has "
        f"{format_first_names(top)}; name its folder or another layout."
    )
