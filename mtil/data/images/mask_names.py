"""Which image files are masks, by the names that published collections give them."""

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

_BESIDE = re.compile(r"(?P<image>.+)_mask(_\d+)?", re.IGNORECASE)
"""BUSI: `benign (1)_mask_1.png` in the folder of `benign (1).png`."""
_OF_CASE = re.compile(r"(?P<image>case\d+)_(tumor|other)\d*", re.IGNORECASE)
"""BrEaST: `case001_tumor.png` and `case001_other1.png` anywhere beside `case001.png`."""
_FOLDERS = {"masks": "images", "mask": "images", "gt": "original"}
"""Folders of masks beside the folder of their images: BUS-BRA, BUS-UCLM; UDIAT."""


def find_masks(names: Iterable[str]) -> set[str]:
    """Return the names, among those of image files, that are masks of others.

    A file that is called like a mask is one only if its image, or for folders the images' folder,
    is among the names: the files of a folder of masks alone are what somebody wants to read.

    Args:
        names: relative to one place, with forward slashes.
    """
    listed = list(names)
    stems = {_stem(name) for name in listed}
    cases = {stem.rpartition("/")[2] for stem in stems}
    folders = {parent for name in listed for parent in _folders(name)}
    return {
        name
        for name in listed
        if _lies_beside(name, stems) or _is_of_case(name, cases) or _in_folder(name, folders)
    }


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix("")).lower()


def _folders(name: str) -> list[str]:
    return [str(parent) for parent in PurePosixPath(name.lower()).parents][:-1]


def _lies_beside(name: str, stems: set[str]) -> bool:
    match = _BESIDE.fullmatch(_stem(name))
    return match is not None and match["image"] in stems


def _is_of_case(name: str, cases: set[str]) -> bool:
    match = _OF_CASE.fullmatch(_stem(name).rpartition("/")[2])
    return match is not None and match["image"] in cases


def _in_folder(name: str, folders: set[str]) -> bool:
    for folder in _folders(name):
        parent, slash, last = folder.rpartition("/")
        images = _FOLDERS.get(last)
        if images is not None and f"{parent}{slash}{images}" in folders:
            return True
    return False
