"""Which images a user means by a file, a folder or a bucket prefix, and how results are named."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from mtil.data.images.mask_names import find_masks
from mtil.data.images.read import SUFFIXES
from mtil.errors import DataError
from mtil.storage import BUCKETS, LocalStore, Store, open_store, split_uri

_MAX_NAME_BYTES = 255
"""Of a file or folder, on nearly every file system."""
_DIGEST = 8


@dataclass(frozen=True)
class Selection:
    """The images among the files that were found."""

    names: list[str]
    masks: tuple[str, ...] = ()
    """Masks of images that are there too, in one of the published layouts."""
    hidden: tuple[str, ...] = ()
    """Files that are hidden, or lie in a hidden folder."""
    others: tuple[str, ...] = ()
    """Files whose names do not end as those of images do."""

    @property
    def num_masks(self) -> int:
        """Masks that are left out."""
        return len(self.masks)

    @property
    def num_ignored(self) -> int:
        """Files that are hidden or no images."""
        return len(self.hidden) + len(self.others)

    @property
    def num_files(self) -> int:
        """Files that were found."""
        return len(self.names) + self.num_masks + self.num_ignored


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
        what = "is no regular file" if store.root.exists() else "does not exist"
        raise DataError(f"The input {shown(uri)} {what}; name an image or a folder of images.")
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
    """Find the images among file names: no hidden files, no masks of images that are there too."""
    hidden = [name for name in names if _hidden(name)]
    seen = [name for name in names if not _hidden(name)]
    images = [name for name in seen if name.lower().endswith(SUFFIXES)]
    masks = find_masks(images)
    return Selection(
        names=[name for name in images if name not in masks],
        masks=tuple(name for name in images if name in masks),
        hidden=tuple(hidden),
        others=tuple(name for name in seen if not name.lower().endswith(SUFFIXES)),
    )


def output_names(names: Sequence[str]) -> dict[str, str]:
    """Return the name below `masks/` and `overlays/` of each image's results; all differ.

    It is the image's name with `.png` for its suffix (`a.jpg` → `a.png`), or after its suffix
    (`a.jpg` → `a.jpg.png`) where the former could be another image's or is a folder. A name that is
    too long for a file is cut and ends in a digest of the whole.
    """
    shorts = {name: str(PurePosixPath(name).with_suffix("")) for name in names}
    uses = Counter(shorts.values())
    taken = {str(folder) for name in names for folder in PurePosixPath(name).parents}
    found = {}
    for name, short in shorts.items():
        other = uses[short] > 1 or (short in shorts and short != name) or f"{short}.png" in taken
        target = _fitting(f"{name}.png" if other else f"{short}.png")
        while target in taken:
            target = _fitting(f"{target}.png")
        taken.add(target)
        found[name] = target
    return found


def _fitting(target: str) -> str:
    """Return a name whose parts are cut to what file systems take, where they are longer."""
    *folders, file = target.split("/")
    return "/".join([*(_cut(folder, "") for folder in folders), _cut(file, ".png")])


def _cut(part: str, suffix: str) -> str:
    whole = part.encode(errors="surrogateescape")
    if len(whole) <= _MAX_NAME_BYTES:
        return part
    end = f"-{hashlib.sha256(whole).hexdigest()[:_DIGEST]}{suffix}"
    return whole[: _MAX_NAME_BYTES - len(end)].decode(errors="ignore") + end


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
    if selection.masks:
        example = shown(selection.masks[0])
        texts.append(f"{count(selection.num_masks, 'mask')} of images left out, such as {example}.")
    if selection.num_ignored:
        example = shown((*selection.others, *selection.hidden)[0])
        texts.append(
            f"{count(selection.num_ignored, 'file')} hidden or no image by the name, such as "
            f"{example}: ignored."
        )
    return texts


def count(number: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
