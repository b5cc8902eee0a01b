"""Which images a user means by a file, a folder or a bucket prefix, and how results are named."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from mtil.data.images import SUFFIXES
from mtil.errors import DataError
from mtil.storage import BUCKETS, LocalStore, Store, open_store, split_uri

_MASK_NAME = re.compile(r"(?P<image>.+)_mask(_\d+)?\.png", re.IGNORECASE)


@dataclass(frozen=True)
class Selection:
    """The images among the files that were found."""

    names: list[str]
    num_masks: int = 0
    """Masks that lie beside their image, as in BUSI."""
    num_ignored: int = 0
    """Files that are hidden or no images."""


def find_images(uri: str, out: Store) -> tuple[Store, Selection]:
    """Return the store and the names of the images at a location, but for those below `out`.

    Raises:
        DataError: if there are none.
    """
    file = as_file(uri)
    if file is not None:
        return file[0], Selection([file[1]])
    store = open_store(uri)
    if isinstance(store, LocalStore) and not store.root.is_dir():
        raise DataError(f"The input {uri} does not exist; name an image or a folder of images.")
    inside = _relative(out, store)
    if inside == ".":
        raise DataError(f"Results must not go where the images are, but both are {uri}.")
    found = store.names()
    selection = select([name for name in found if not inside or not _below(name, inside)])
    if not selection.names:
        raise DataError(
            f"An input must hold images ({', '.join(SUFFIXES)}), but {uri} has none among its "
            f"{count(len(found), 'file')}."
        )
    return store, selection


def select(names: Sequence[str]) -> Selection:
    """Find the images among file names: no hidden files, no masks that lie beside their image."""
    images = [name for name in names if name.lower().endswith(SUFFIXES) and not _hidden(name)]
    stems = {str(PurePosixPath(name).with_suffix("")) for name in images}
    kept = []
    for name in images:
        match = _MASK_NAME.fullmatch(name)
        if match is None or match["image"] not in stems:
            kept.append(name)
    return Selection(
        names=kept, num_masks=len(images) - len(kept), num_ignored=len(names) - len(images)
    )


def output_names(names: Sequence[str]) -> dict[str, str]:
    """Return the name below `masks/` and `overlays/` of each image's results; all differ.

    It is the image's name with `.png` for its suffix (`a.jpg` → `a.png`), or after its suffix
    (`a.jpg` → `a.jpg.png`) where the former could be another image's.
    """
    shorts = {name: str(PurePosixPath(name).with_suffix("")) for name in names}
    uses = Counter(shorts.values())
    return {
        name: f"{name}.png" if uses[short] > 1 or (short in shorts and short != name)
        else f"{short}.png"
        for name, short in shorts.items()
    }  # fmt: skip


def shown(name: str) -> str:
    """Return a file name fit for a message: no control characters, no broken text."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in name
    )


def as_file(uri: str) -> tuple[Store, str] | None:
    """Return the folder and the name of the file at a location, if a file is there."""
    store = open_store(uri)
    if isinstance(store, LocalStore):
        root = store.root
        return (LocalStore(str(root.parent)), root.name) if root.is_file() else None
    parent, name = split_uri(store.uri)
    if not parent.startswith(BUCKETS):
        return None  # a bare bucket
    folder = open_store(parent)
    return (folder, name) if folder.exists(name) else None


def _relative(inner: Store, outer: Store) -> str:
    """Return where a store lies in another: `.` if they are one, empty if it is not inside."""
    if isinstance(inner, LocalStore) and isinstance(outer, LocalStore):
        path, root = inner.root.resolve(), outer.root.resolve()
        return path.relative_to(root).as_posix() if path.is_relative_to(root) else ""
    if inner.uri == outer.uri:
        return "."
    prefix = f"{outer.uri}/"
    return inner.uri.removeprefix(prefix) if inner.uri.startswith(prefix) else ""


def _below(name: str, folder: str) -> bool:
    return name.startswith(f"{folder}/")


def _hidden(name: str) -> bool:
    return any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))


def left_out(selection: Selection) -> list[str]:
    """Say in sentences what a selection leaves out."""
    texts = []
    if selection.num_masks:
        texts.append(f"{count(selection.num_masks, 'mask')} beside an image skipped.")
    if selection.num_ignored:
        texts.append(f"{count(selection.num_ignored, 'file')} hidden or no image: ignored.")
    return texts


def count(number: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
