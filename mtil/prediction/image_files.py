"""Find the images of a file, folder or bucket prefix, and name the result files."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from mtil.data.images.mask_names import find_masks
from mtil.data.images.read import SUFFIXES
from mtil.errors import DataError
from mtil.storage import Store, locate_file, open_store, path_within

_MAX_NAME_BYTES = 255
"""Maximum length of a file or folder name on nearly every file system."""
_DIGEST_LENGTH = 8


@dataclass(frozen=True)
class ImageSelection:
    """Files of an input location, sorted into images and files left out."""

    names: list[str]
    masks: tuple[str, ...] = ()
    """Masks whose images are present too, named as in a published layout."""
    hidden: tuple[str, ...] = ()
    """Hidden files and files in hidden folders."""
    others: tuple[str, ...] = ()
    """Files without the suffix of an image."""

    @property
    def num_masks(self) -> int:
        """Number of masks left out."""
        return len(self.masks)

    @property
    def num_ignored(self) -> int:
        """Number of files that are hidden or not images."""
        return len(self.hidden) + len(self.others)

    @property
    def num_files(self) -> int:
        """Number of files found."""
        return len(self.names) + self.num_masks + self.num_ignored


def find_images(uri: str, out: Store) -> tuple[Store, ImageSelection]:
    """Return the store and the image names of a location, without names below `out`.

    Args:
        uri: an image file, a folder or a bucket prefix; folders are searched recursively.
        out: where results go.

    Raises:
        DataError: if the location has no image, does not exist or is `out` itself.
    """
    file = locate_file(uri)
    if file is not None:
        return file[0], ImageSelection([file[1]])
    store = open_store(uri)
    folder = store.local_folder
    if folder is not None and not folder.is_dir():
        problem = "is not a regular file" if folder.exists() else "does not exist"
        raise DataError(
            f"The input {escape_name(uri)} {problem}. Name an image or a folder of images."
        )
    out_folder = path_within(out, store)
    if out_folder == ".":
        raise DataError(f"Input and output are the same place, {uri}. Name another OUT.")
    all_names = store.names()
    # Results inside the input folder must not become inputs of the next command.
    selection = select_images(
        [name for name in all_names if not out_folder or not _is_below(name, out_folder)]
    )
    if not selection.names:
        raise DataError(
            f"The input {uri} has no image ({', '.join(SUFFIXES)}) among "
            f"{format_count(len(all_names), 'file')}."
        )
    return store, selection


def select_images(names: Sequence[str]) -> ImageSelection:
    """Sort file names into images, masks of present images, hidden files and the rest."""
    hidden = [name for name in names if _is_hidden(name)]
    visible = [name for name in names if not _is_hidden(name)]
    images = [name for name in visible if name.lower().endswith(SUFFIXES)]
    masks = find_masks(images)
    return ImageSelection(
        names=[name for name in images if name not in masks],
        masks=tuple(name for name in images if name in masks),
        hidden=tuple(hidden),
        others=tuple(name for name in visible if not name.lower().endswith(SUFFIXES)),
    )


def name_outputs(names: Sequence[str]) -> dict[str, str]:
    """Return a distinct result name below `masks/` and `overlays/` for each image.

    The suffix is replaced by `.png` (`a.jpg` → `a.png`). Where `a.png` could belong to a second
    image or is a folder, `.png` follows the suffix (`a.jpg` → `a.jpg.png`). Names too long for a
    file system are cut and end in a digest of the whole name.
    """
    stems = {name: str(PurePosixPath(name).with_suffix("")) for name in names}
    uses = Counter(stems.values())
    # A result must not have the name of a folder with results.
    taken = {str(folder) for name in names for folder in PurePosixPath(name).parents}
    targets = {}
    for name, stem in stems.items():
        is_ambiguous = uses[stem] > 1 or (stem in stems and stem != name) or f"{stem}.png" in taken
        target = _fit_path(f"{name}.png" if is_ambiguous else f"{stem}.png")
        while target in taken:
            target = _fit_path(f"{target}.png")
        taken.add(target)
        targets[name] = target
    return targets


def _fit_path(target: str) -> str:
    """Cut the parts of a path to the length that file systems allow."""
    *folders, file = target.split("/")
    return "/".join([*(_cut_name(folder, "") for folder in folders), _cut_name(file, ".png")])


def _cut_name(part: str, suffix: str) -> str:
    encoded = part.encode(errors="surrogateescape")
    if len(encoded) <= _MAX_NAME_BYTES:
        return part
    ending = f"-{hashlib.sha256(encoded).hexdigest()[:_DIGEST_LENGTH]}{suffix}"
    return encoded[: _MAX_NAME_BYTES - len(ending)].decode(errors="ignore") + ending


def escape_name(name: str) -> str:
    """Return a file name safe to print: control and undecodable characters are escaped."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in name
    )


def _is_below(name: str, folder: str) -> bool:
    return name.startswith(f"{folder}/")


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))


def describe_left_out(selection: ImageSelection) -> list[str]:
    """Describe in sentences the files left out of a selection."""
    sentences = []
    if selection.masks:
        example = escape_name(selection.masks[0])
        sentences.append(
            f"{format_count(selection.num_masks, 'mask')} of images left out, such as {example}."
        )
    if selection.num_ignored:
        example = escape_name((*selection.others, *selection.hidden)[0])
        sentences.append(
            f"{format_count(selection.num_ignored, 'file')} ignored, hidden or without an image "
            "suffix, "
            f"such as {example}."
        )
    return sentences


def format_count(number: int, noun: str) -> str:
    """Return a number followed by its noun, in the plural unless the number is 1."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
