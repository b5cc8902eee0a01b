"""List the files below a source, ignore clutter by rule, and account for every file."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from mtil.data.dataset.account import FilesSeen, count_reasons
from mtil.data.images.read import SUFFIXES
from mtil.data.layouts.record import Record
from mtil.data.names import escape_unprintable
from mtil.storage import Store, open_store, path_within

_SYSTEM_FILES = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r")
_SYSTEM_FOLDERS = ("$recycle.bin", "system volume information", "lost+found", "@eadir")
_UNFINISHED = (".partial", ".part", ".crdownload", ".download", ".filepart", ".aria2", ".tmp")
_BACKUPS = ("~", ".bak", ".orig", ".old", ".swp")
_TABLES = (".csv", ".tsv", ".xlsx", ".xlsm", ".xls", ".ods", ".parquet")
_UNREAD_IMAGES = (
    ".avif", ".dib", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".mha", ".mhd", ".mp4", ".avi",
    ".nii", ".nii.gz", ".npy", ".npz", ".nrrd", ".pbm", ".pgm", ".ppm", ".psd", ".svg", ".tga",
)  # fmt: skip
"""Suffixes of image formats unknown to the decoder; the account lists the files as skipped."""

# The texts below are stored in `dataset.json` as the reasons of the file account.
HIDDEN = "hidden"
NO_DATA = "neither image nor table"
OTHER_TABLE = "a table that the layout does not read"
UNREADABLE_FORMAT = "an image format that is not read; convert it to PNG"
NO_SUFFIX = "no suffix"


@dataclass(frozen=True, kw_only=True)
class SourceListing:
    """The names of a store's files, split by the ignore rules."""

    uri: str
    names: Sequence[str]
    """Sorted names of the files ignored by no rule."""
    ignored: Mapping[str, str]
    """Rule by name of each ignored file."""


def list_source_files(store: Store, apart: str = "") -> SourceListing:
    """List the files of a store.

    Args:
        store: the collection's store.
        apart: folder or URI below the store to leave out, for example the data set being
            written.
    """
    # Listing dominates the time to read many small files: list a collection only once.
    excluded = _excluded_prefix(store, apart)
    found = [name for name in store.names() if not excluded or not name.startswith(excluded)]
    rules = {name: rule for name in found if (rule := find_ignore_rule(name)) is not None}
    names = [name for name in found if name not in rules] if rules else found
    return SourceListing(uri=store.uri, names=names, ignored=rules)


def find_ignore_rule(name: str) -> str | None:
    """Return the rule for ignoring a file of this name, or None."""
    folders, _, file = name.lower().rpartition("/")
    if "/." in f"/{name}":
        return HIDDEN
    if file.startswith("~$"):
        return "lock files of office programs"
    for folder in folders.split("/"):
        if folder.startswith(("__macosx", "~$")):
            return "folders that archivers add"
        if folder in _SYSTEM_FOLDERS:
            return "files of the operating system"
    if file in _SYSTEM_FILES:
        return "files of the operating system"
    if file.endswith(_UNFINISHED):
        return "unfinished downloads"
    if file.endswith(_BACKUPS):
        return "backup copies"
    return None


def has_image_suffix(name: str) -> bool:
    """Return whether a file name has the suffix of a readable image format."""
    return name.lower().endswith(SUFFIXES)


def strip_image_suffix(name: str) -> str:
    """Return a file name without an image suffix; names with other suffixes are unchanged."""
    return name[: name.rindex(".")] if has_image_suffix(name) else name


def count_source_files(
    listing: SourceListing,
    records: Iterable[Record],
    tables: Collection[str],
    why_not: Callable[[str], str],
    start: str = "",
) -> FilesSeen:
    """Count the files of a listing by role: image, mask, table, ignored or skipped.

    Args:
        listing: all files of the store.
        records: all images, including refused records.
        tables: names of the tables read.
        why_not: maps the name of an unused image file to the reason.
        start: prefix of the collection's files; examples are shown without the prefix.
    """
    images: set[str] = set()
    masks: set[str] = set()
    for record in records:
        images.update((record.image, *record.others))
        masks.update(record.masks)
    ignored, skipped = dict(listing.ignored), dict[str, str]()
    counts = [0, 0, 0]
    for name in listing.names:
        # A file named in two roles counts once, in the first role: the account checks the sum.
        for role, names in enumerate((images, masks, tables)):
            if name in names:
                counts[role] += 1
                break
        else:
            rule = _rule_for_unused(name)
            if rule is None:
                skipped[name] = why_not(name)
            elif rule in (UNREADABLE_FORMAT, NO_SUFFIX):
                skipped[name] = rule
            else:
                ignored[name] = rule
    # A table may name files ignored by a rule; the table takes precedence.
    for name in listing.ignored.keys() & (images | masks | set(tables)):
        del ignored[name]
        counts[0 if name in images else 1 if name in masks else 2] += 1
    return FilesSeen(
        seen=len(listing.names) + len(listing.ignored),
        images=counts[0],
        masks=counts[1],
        tables=counts[2],
        ignored=count_reasons(ignored, start),
        skipped=count_reasons(skipped, start),
    )


def describe_ambiguous_files(names: Sequence[str]) -> str:
    """Return the reason for refusing several image files with equal names."""
    first, second = min(names), max(names)
    rule = (
        "Names must differ by more than their case"
        if first.lower() == second.lower()
        else "An image must be there once"
    )
    return f"{rule}, but there are {first} and {second}; remove one."


def format_first_names(names: Sequence[str]) -> str:
    """Return the first four names of a list and the number of further names."""
    listed = ", ".join(map(escape_unprintable, names[:4]))
    return f"{listed} and {len(names) - 4} more" if len(names) > 4 else listed


def relative_to_store(store: Store, uri: str) -> str | None:
    """Return the name of a file or folder relative to a store, or None if outside the store."""
    if "://" not in uri or uri.startswith("file://"):
        return path_within(open_store(uri), store)
    start = store.uri.rstrip("/") + "/"
    return uri.rstrip("/").removeprefix(start) if uri.startswith(start) else None


def _excluded_prefix(store: Store, apart: str) -> str:
    """Return the name prefix of the excluded files; empty excludes no file."""
    name = relative_to_store(store, apart) if apart else None
    return "" if name in (None, ".") else f"{name}/"


def _rule_for_unused(name: str) -> str | None:
    """Return the rule for a file without a record, or None for a readable image."""
    low = name.lower()
    if low.endswith(SUFFIXES):
        return None
    if low.endswith(_TABLES):
        return OTHER_TABLE
    if low.endswith(_UNREAD_IMAGES):
        return UNREADABLE_FORMAT
    return NO_DATA if PurePosixPath(low).suffix else NO_SUFFIX
