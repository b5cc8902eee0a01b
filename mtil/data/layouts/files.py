"""The files below a source: what a rule leaves out, and what each of the others is."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from mtil.data.dataset.account import FilesSeen, parts
from mtil.data.images.read import SUFFIXES
from mtil.data.layouts.record import Record
from mtil.data.names import shown
from mtil.storage import LocalStore, Store, open_store

_OF_SYSTEMS = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r")
_FOLDERS_OF_SYSTEMS = ("$recycle.bin", "system volume information", "lost+found", "@eadir")
_UNFINISHED = (".partial", ".part", ".crdownload", ".download", ".filepart", ".aria2", ".tmp")
_BACKUPS = ("~", ".bak", ".orig", ".old", ".swp")
_TABLES = (".csv", ".tsv", ".xlsx", ".xlsm", ".xls", ".ods", ".parquet")
_OTHER_IMAGES = (
    ".avif", ".dib", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".mha", ".mhd", ".mp4", ".avi",
    ".nii", ".nii.gz", ".npy", ".npz", ".nrrd", ".pbm", ".pgm", ".ppm", ".psd", ".svg", ".tga",
)  # fmt: skip
"""Formats of images that are named in the account, but not read."""

HIDDEN = "hidden"
NO_DATA = "neither image nor table"
OTHER_TABLE = "a table that the layout does not read"
UNREADABLE_FORMAT = "an image format that is not read; convert it to PNG"
NO_SUFFIX = "no suffix"


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The names of a store's files."""

    uri: str
    names: Sequence[str]
    """Sorted, without those that a rule leaves out."""
    ignored: Mapping[str, str]
    """The rule by the name of a file that it leaves out."""


def look(store: Store, apart: str = "") -> Listing:
    """List a store's files once.

    Args:
        store: the collection's.
        apart: a folder or URI below it whose files do not belong to it, such as the data set that
            is being written.
    """
    start = _start(store, apart)
    found = [name for name in store.names() if not start or not name.startswith(start)]
    rules = {name: rule for name in found if (rule := ignored_by(name)) is not None}
    names = [name for name in found if name not in rules] if rules else found
    return Listing(uri=store.uri, names=names, ignored=rules)


def ignored_by(name: str) -> str | None:
    """Return the rule that leaves a file out by its name, or None."""
    folders, _, file = name.lower().rpartition("/")
    if "/." in f"/{name}":
        return HIDDEN
    if file.startswith("~$"):
        return "lock files of office programs"
    for folder in folders.split("/"):
        if folder.startswith(("__macosx", "~$")):
            return "folders that archivers add"
        if folder in _FOLDERS_OF_SYSTEMS:
            return "files of the operating system"
    if file in _OF_SYSTEMS:
        return "files of the operating system"
    if file.endswith(_UNFINISHED):
        return "unfinished downloads"
    if file.endswith(_BACKUPS):
        return "backup copies"
    return None


def is_image(name: str) -> bool:
    """Say whether a name ends like that of an image that can be read."""
    return name.lower().endswith(SUFFIXES)


def without_suffix(name: str) -> str:
    """Return the name of an image file without its suffix; other names stay."""
    return name[: name.rindex(".")] if is_image(name) else name


def count(
    listing: Listing,
    records: Iterable[Record],
    tables: Collection[str],
    why_not: Callable[[str], str],
    start: str = "",
) -> FilesSeen:
    """Say what each file is.

    Args:
        listing: the files.
        records: the images; also those that cannot be used name their files.
        tables: the tables that were read.
        why_not: says why an image file is not used.
        start: how the names of the collection's files begin.
    """
    images: set[str] = set()
    masks: set[str] = set()
    for record in records:
        images.update((record.image, *record.others))
        masks.update(record.masks)
    ignored, skipped = dict(listing.ignored), dict[str, str]()
    numbers = [0, 0, 0]
    for name in listing.names:
        for index, group in enumerate((images, masks, tables)):
            if name in group:
                numbers[index] += 1
                break
        else:
            rule = _rule(name)
            if rule is None:
                skipped[name] = why_not(name)
            elif rule in (UNREADABLE_FORMAT, NO_SUFFIX):
                skipped[name] = rule
            else:
                ignored[name] = rule
    for name in listing.ignored.keys() & (images | masks | set(tables)):  # a table may name them
        del ignored[name]
        numbers[0 if name in images else 1 if name in masks else 2] += 1
    return FilesSeen(
        seen=len(listing.names) + len(listing.ignored),
        images=numbers[0],
        masks=numbers[1],
        tables=numbers[2],
        ignored=parts(ignored, start),
        skipped=parts(skipped, start),
    )


def twice_as(names: Sequence[str]) -> str:
    """Return why several image files of one name cannot be told apart."""
    first, second = min(names), max(names)
    rule = (
        "Names must differ by more than their case"
        if first.lower() == second.lower()
        else "An image must be there once"
    )
    return f"{rule}, but there are {first} and {second}; remove one."


def some(names: Sequence[str]) -> str:
    """Return the first names of a list and how many more there are."""
    listed = ", ".join(map(shown, names[:4]))
    return f"{listed} and {len(names) - 4} more" if len(names) > 4 else listed


def relative(store: Store, uri: str) -> str | None:
    """Return the name in a store of a file or folder, or None if it lies elsewhere."""
    if "://" not in uri or uri.startswith("file://"):
        other = open_store(uri)
        if not (isinstance(store, LocalStore) and isinstance(other, LocalStore)):
            return None
        root, path = store.root.resolve(), other.root.resolve()
        return path.relative_to(root).as_posix() if path.is_relative_to(root) else None
    start = store.uri.rstrip("/") + "/"
    return uri.rstrip("/").removeprefix(start) if uri.startswith(start) else None


def _start(store: Store, apart: str) -> str:
    inside = relative(store, apart) if apart else None
    return "" if inside in (None, ".") else f"{inside}/"


def _rule(name: str) -> str | None:
    """Return what a file is that no record uses, or None if it is an image."""
    low = name.lower()
    if low.endswith(SUFFIXES):
        return None
    if low.endswith(_TABLES):
        return OTHER_TABLE
    if low.endswith(_OTHER_IMAGES):
        return UNREADABLE_FORMAT
    return NO_DATA if PurePosixPath(low).suffix else NO_SUFFIX
