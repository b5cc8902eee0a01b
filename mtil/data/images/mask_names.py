"""Recognise mask files by the naming schemes of published collections."""

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

# BUSI: `benign (1)_mask_1.png` in the folder of `benign (1).png`.
_BUSI_MASK = re.compile(r"(?P<image>.+)_mask(_\d+)?", re.IGNORECASE)
# BrEaST: `case001_tumor.png` and `case001_other1.png`, in any folder, for `case001.png`.
_BREAST_MASK = re.compile(r"(?P<image>case\d+)_(tumor|other)\d*", re.IGNORECASE)
# Mask folder to sibling image folder: BUS-BRA and BUS-UCLM, then UDIAT.
_IMAGE_FOLDERS = {"masks": "images", "mask": "images", "gt": "original"}


def find_masks(names: Iterable[str]) -> set[str]:
    """Return the names of mask files among the names of image files.

    A file named like a mask counts as a mask only if the names include its image or, for a mask
    folder, the sibling image folder.

    Args:
        names: names of image files relative to a common folder, with forward slashes.
    """
    # Without the images, a folder of masks is input given on purpose: no file is left out.
    listed = list(names)
    stems = {_stem(name) for name in listed}
    cases = {stem.rpartition("/")[2] for stem in stems}
    folders = {parent for name in listed for parent in _parent_folders(name)}
    return {
        name
        for name in listed
        if _is_busi_mask(name, stems)
        or _is_breast_mask(name, cases)
        or _is_in_mask_folder(name, folders)
    }


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix("")).lower()


def _parent_folders(name: str) -> list[str]:
    return [str(parent) for parent in PurePosixPath(name.lower()).parents][:-1]


def _is_busi_mask(name: str, stems: set[str]) -> bool:
    match = _BUSI_MASK.fullmatch(_stem(name))
    return match is not None and match["image"] in stems


def _is_breast_mask(name: str, cases: set[str]) -> bool:
    match = _BREAST_MASK.fullmatch(_stem(name).rpartition("/")[2])
    return match is not None and match["image"] in cases


def _is_in_mask_folder(name: str, folders: set[str]) -> bool:
    for folder in _parent_folders(name):
        parent, slash, last = folder.rpartition("/")
        image_folder = _IMAGE_FOLDERS.get(last)
        if image_folder is not None and f"{parent}{slash}{image_folder}" in folders:
            return True
    return False
