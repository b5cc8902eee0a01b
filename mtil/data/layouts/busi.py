"""The layout of BUSI: `benign/benign (1).png` beside `benign (1)_mask.png`, `…_mask_1.png`."""

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

from mtil.data.dataset.shards import LABELS
from mtil.data.layouts.files import (
    SourceListing,
    count_source_files,
    describe_ambiguous_files,
    format_first_names,
    has_image_suffix,
    list_source_files,
    strip_image_suffix,
)
from mtil.data.layouts.folders import find_outermost_folders
from mtil.data.layouts.record import Record, ScanResult, make_refused_record
from mtil.data.names import compose_unicode
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


def scan_busi(store: Store, *, apart: str = "", tables: Collection[str] = ()) -> ScanResult:
    """Find the images in the class folders, anywhere below the store's root.

    The class folders share a parent folder. Images may have any readable format. Files and
    folders beside the class folders are no part of the collection.

    Args:
        store: the collection's folder or a folder above.
        apart: see `files.list_source_files`.
        tables: further tables of the collection, for the file account.

    Raises:
        DataError: if class folders are missing, lie in several places, or have an unknown class.
    """
    listing = list_source_files(store, apart)
    by_root = _find_class_folders(listing.names)
    if not by_root:
        raise DataError(_missing_collection(listing))
    root = _choose_root(listing, by_root)
    _refuse_other_classes(listing, root)
    start = f"{root}/" if root else ""
    records: list[Record] = []
    for folder, label in sorted(by_root[root].items()):
        prefix = f"{start}{folder}/"
        names = [name for name in listing.names if _is_image_in(name, prefix)]
        records += _class_records(prefix, names, label)

    def why_not(name: str) -> str:
        if not name.startswith(start):
            return f"outside of the collection's folder {root}"
        folder, _, file = name[len(start) :].partition("/")
        if folder not in by_root[root] or not file:
            return "beside the class folders"
        return "in a folder inside a class folder" if "/" in file else "a mask without an image"

    return ScanResult(
        records=records,
        files=lambda unique: count_source_files(listing, unique, tables, why_not, start),
    )


def _find_class_folders(files: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return label by class folder, by parent folder."""
    by_root: dict[str, dict[str, int]] = defaultdict(dict)
    for name in files:
        parents = name.split("/")[:-1]
        if parents and parents[-1].lower() in LABELS and has_image_suffix(name):
            by_root["/".join(parents[:-1])][parents[-1]] = LABELS.index(parents[-1].lower())
    return dict(by_root)


def _choose_root(listing: SourceListing, by_root: Mapping[str, Mapping[str, int]]) -> str:
    """Return the only folder with benign and malignant images and masks, else the outermost.

    Raises:
        DataError: if several folders fit equally well.
    """
    complete = {root for root, folders in by_root.items() if _is_complete(listing, root, folders)}
    root, *others = sorted(complete) if complete else find_outermost_folders(by_root)
    if others:
        raise DataError(
            f"A source must hold one BUSI collection, but {listing.uri} holds {len(others) + 1}: "
            f"{format_first_names([name or '.' for name in (root, *others)])}; name one folder, "
            "or move the "
            "others away."
        )
    return root


def _is_complete(listing: SourceListing, root: str, folders: Mapping[str, int]) -> bool:
    start = f"{root}/" if root else ""
    masked = {
        label
        for folder, label in folders.items()
        if any(
            _is_image_in(name, f"{start}{folder}/") and _MASK.fullmatch(strip_image_suffix(name))
            for name in listing.names
        )
    }
    return {LABELS.index("benign"), LABELS.index("malignant")} <= masked


def _is_image_in(name: str, prefix: str) -> bool:
    return name.startswith(prefix) and "/" not in name[len(prefix) :] and has_image_suffix(name)


def _class_records(prefix: str, names: Sequence[str], label: int) -> list[Record]:
    """Return the records of a class folder's images; `_match_key` matches masks to images."""
    images: dict[str, str] = {}
    masks: dict[str, list[tuple[int, str]]] = defaultdict(list)
    refused_masks: list[Record] = []
    repeated: dict[str, list[str]] = {}
    for name in names:
        stem = compose_unicode(strip_image_suffix(name[len(prefix) :]))
        match = _MASK.fullmatch(stem)
        if match is not None:
            masks[_match_key(match["image"])].append((int(match["number"] or 0), name))
        elif _LIKE_MASK.search(stem):
            # A misnamed mask must not pass for an image.
            refused_masks.append(
                make_refused_record(
                    stem,
                    f"A mask must be called as its image and `_mask`, but {name} is not; rename "
                    "or remove it.",
                    masks=(name,),
                )
            )
        elif images.setdefault(_match_key(stem), name) != name:
            repeated.setdefault(_match_key(stem), [images[_match_key(stem)]]).append(name)
    for key in sorted(masks.keys() - images.keys()):
        files = tuple(mask for _, mask in sorted(masks[key]))
        stem = _image_stem_of(files[0], prefix)
        why = (
            f"A mask must lie beside its image, but {files[0]} has no {stem}.png; add the image or "
            "remove the mask."
        )
        refused_masks.append(make_refused_record(stem, why))
    return refused_masks + [
        _record(prefix, name, label, sorted(masks.get(key, [])), repeated.get(key, []))
        for key, name in images.items()
    ]


def _record(
    prefix: str, name: str, label: int, masks: Sequence[tuple[int, str]], repeated: Sequence[str]
) -> Record:
    stem = compose_unicode(strip_image_suffix(name[len(prefix) :]))
    files = tuple(mask for _, mask in masks)
    numbers = [number for number, _ in masks]
    if repeated:
        why = describe_ambiguous_files(repeated)
    elif len(set(numbers)) < len(numbers):
        why = f"A mask must be there once, but {stem} has {' and '.join(files)}; remove one."
    elif not masks and LABELS[label] != "normal":
        why = (
            f"A {LABELS[label]} image must have a mask, but {name} has no {stem}_mask.png beside "
            "it; add the mask or remove the image."
        )
    else:
        return Record(sample_id=stem, label=label, image=name, masks=files)
    return make_refused_record(stem, why, name, files, tuple(repeated))


def _image_stem_of(mask: str, prefix: str) -> str:
    match = _MASK.fullmatch(compose_unicode(strip_image_suffix(mask[len(prefix) :])))
    assert match is not None
    return match["image"]


def _match_key(stem: str) -> str:
    """Return the key shared by an image and all masks of the image, in lower case."""
    return stem.lower()


def _refuse_other_classes(listing: SourceListing, root: str) -> None:
    """Raise `DataError` for a folder named like a further class beside the class folders."""
    start = f"{root}/" if root else ""
    for name in listing.names:
        folder, _, file = name[len(start) :].partition("/")
        if (
            name.startswith(start)
            and folder.lower() not in LABELS
            and file.startswith(f"{folder} (")
            and has_image_suffix(file)
        ):
            raise DataError(
                f"A class must be one of {', '.join(LABELS)}, but {listing.uri} has images in "
                f"{start}{folder}; move that folder away."
            )


def _missing_collection(listing: SourceListing) -> str:
    if not listing.names:
        return (
            f"A BUSI collection must be a folder with images, but {listing.uri} is empty or "
            "missing; check its name."
        )
    return (
        "A BUSI collection must have the folders benign, malignant and normal with "
        "`benign (1).png` and `benign (1)_mask.png`, but "
        f"{listing.uri} has "
        f"{format_first_names(sorted({name.split('/')[0] for name in listing.names}))}; name "
        "its folder or another layout."
    )
