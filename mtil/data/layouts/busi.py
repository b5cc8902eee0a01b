"""The layout of BUSI: `benign/benign (1).png` beside its `_mask.png`, `_mask_1.png` and so on."""

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

from mtil.data.dataset.shards import LABELS
from mtil.data.layouts.files import (
    Listing,
    count,
    is_image,
    look,
    some,
    twice_as,
    without_suffix,
)
from mtil.data.layouts.folders import outermost
from mtil.data.layouts.record import Found, Record, refused
from mtil.data.names import composed
from mtil.errors import DataError
from mtil.storage import Store

NAME = "BUSI"
LICENCE = "free for research with citation"
CITATION = (
    "Al-Dhabyani W, Gomaa M, Khaled H, Fahmy A. Dataset of breast ultrasound images. "
    "Data in Brief 28 (2020) 104863. doi:10.1016/j.dib.2019.104863"
)

_MASK = re.compile(r"(?P<image>.+)_mask(_(?P<number>\d+))?", re.IGNORECASE)
_LIKE_MASK = re.compile(r"(?<![a-z])masks?(?![a-z])", re.IGNORECASE)


def scan(store: Store, *, apart: str = "", tables: Collection[str] = ()) -> Found:
    """Find the images in the class folders, which lie together anywhere below the store's root.

    Images may be of every format that is read. Files and folders beside the class folders are no
    part of the collection.

    Args:
        store: the collection's folder or one above it.
        apart: see `files.look`.
        tables: more tables of the collection, for its account.

    Raises:
        DataError: if there is no such folder, or an image and its masks do not fit together.
    """
    listing = look(store, apart)
    by_root = _by_root(listing.names)
    if not by_root:
        raise DataError(_not_found(listing))
    root = _choose(listing, by_root)
    _refuse_other_classes(listing, root)
    start = f"{root}/" if root else ""
    records: list[Record] = []
    for folder, label in sorted(by_root[root].items()):
        prefix = f"{start}{folder}/"
        names = [name for name in listing.names if _inside(name, prefix)]
        records += _class_records(prefix, names, label)

    def why_not(name: str) -> str:
        if not name.startswith(start):
            return f"outside of the collection's folder {root}"
        folder, _, file = name[len(start) :].partition("/")
        if folder not in by_root[root] or not file:
            return "beside the class folders"
        return "in a folder inside a class folder" if "/" in file else "a mask without an image"

    return Found(records=records, files=lambda found: count(listing, found, tables, why_not, start))


def _by_root(files: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return the class folders (with their labels) by the folder that they lie in."""
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for name in files:
        parents = name.split("/")[:-1]
        if parents and parents[-1].lower() in LABELS and is_image(name):
            found["/".join(parents[:-1])][parents[-1]] = LABELS.index(parents[-1].lower())
    return dict(found)


def _choose(listing: Listing, by_root: Mapping[str, Mapping[str, int]]) -> str:
    """Return the only folder with benign and malignant images and masks, else the outermost one.

    Raises:
        DataError: if several fit.
    """
    whole = {root for root, folders in by_root.items() if _is_whole(listing, root, folders)}
    root, *others = sorted(whole) if whole else outermost(by_root)
    if others:
        raise DataError(
            f"A source must hold one BUSI collection, but {listing.uri} holds {len(others) + 1}: "
            f"{some([name or '.' for name in (root, *others)])}; name one of them, or move the "
            "others away."
        )
    return root


def _is_whole(listing: Listing, root: str, folders: Mapping[str, int]) -> bool:
    start = f"{root}/" if root else ""
    masked = {
        label
        for folder, label in folders.items()
        if any(
            _inside(name, f"{start}{folder}/") and _MASK.fullmatch(without_suffix(name))
            for name in listing.names
        )
    }
    return {LABELS.index("benign"), LABELS.index("malignant")} <= masked


def _inside(name: str, prefix: str) -> bool:
    return name.startswith(prefix) and "/" not in name[len(prefix) :] and is_image(name)


def _class_records(prefix: str, names: Sequence[str], label: int) -> list[Record]:
    """Return the records of a class folder's images; masks are matched by `_key`."""
    images: dict[str, str] = {}
    masks: dict[str, list[tuple[int, str]]] = defaultdict(list)
    wrong: list[Record] = []
    twice: dict[str, list[str]] = {}
    for name in names:
        stem = composed(without_suffix(name[len(prefix) :]))
        match = _MASK.fullmatch(stem)
        if match is not None:
            masks[_key(match["image"])].append((int(match["number"] or 0), name))
        elif _LIKE_MASK.search(stem):
            wrong.append(
                refused(
                    stem,
                    f"A mask must be called as its image and `_mask`, but {name} is not; rename "
                    "or remove it.",
                    masks=(name,),
                )
            )
        elif images.setdefault(_key(stem), name) != name:
            twice.setdefault(_key(stem), [images[_key(stem)]]).append(name)
    for key in sorted(masks.keys() - images.keys()):
        files = tuple(mask for _, mask in sorted(masks[key]))
        stem = _image_of(files[0], prefix)
        why = (
            f"A mask must lie beside its image, but {files[0]} has no {stem}.png; add the image or "
            "remove the mask."
        )
        wrong.append(refused(stem, why))
    return wrong + [
        _record(prefix, name, label, sorted(masks.get(key, [])), twice.get(key, []))
        for key, name in images.items()
    ]


def _record(
    prefix: str, name: str, label: int, masks: Sequence[tuple[int, str]], twice: Sequence[str]
) -> Record:
    stem = composed(without_suffix(name[len(prefix) :]))
    files = tuple(mask for _, mask in masks)
    numbers = [number for number, _ in masks]
    if twice:
        why = twice_as(twice)
    elif len(set(numbers)) < len(numbers):
        why = f"A mask must be there once, but {stem} has {' and '.join(files)}; remove one."
    elif not masks and LABELS[label] != "normal":
        why = (
            f"A {LABELS[label]} image must have a mask, but {name} has no {stem}_mask.png beside "
            "it; add the mask or remove the image."
        )
    else:
        return Record(sample_id=stem, label=label, image=name, masks=files)
    return refused(stem, why, name, files, tuple(twice))


def _image_of(mask: str, prefix: str) -> str:
    match = _MASK.fullmatch(composed(without_suffix(mask[len(prefix) :])))
    assert match is not None
    return match["image"]


def _key(stem: str) -> str:
    """Return what the names of an image and of its masks share, whatever their case."""
    return stem.lower()


def _refuse_other_classes(listing: Listing, root: str) -> None:
    """Refuse a folder beside the class folders that looks like a class of its own."""
    start = f"{root}/" if root else ""
    for name in listing.names:
        folder, _, file = name[len(start) :].partition("/")
        if (
            name.startswith(start)
            and folder.lower() not in LABELS
            and file.startswith(f"{folder} (")
            and is_image(file)
        ):
            raise DataError(
                f"A class must be one of {', '.join(LABELS)}, but {listing.uri} has images in "
                f"{start}{folder}; move that folder away."
            )


def _not_found(listing: Listing) -> str:
    if not listing.names:
        return (
            f"A BUSI collection must be a folder with images, but {listing.uri} is empty or "
            "missing; check its name."
        )
    return (
        "A BUSI collection must have the folders benign, malignant and normal with "
        "`benign (1).png` and `benign (1)_mask.png`, but "
        f"{listing.uri} has {some(sorted({name.split('/')[0] for name in listing.names}))}; name "
        "its folder or another layout."
    )
