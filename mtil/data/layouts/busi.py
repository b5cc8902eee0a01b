"""The layout of BUSI: `benign/benign (1).png` beside its `_mask.png`, `_mask_1.png` and so on."""

import re
from collections import defaultdict
from collections.abc import Sequence

from mtil.data.layouts.folders import outermost, some, visible
from mtil.data.layouts.record import Record, refused
from mtil.data.shards import LABELS
from mtil.errors import DataError
from mtil.storage import Store

NAME = "BUSI"
LICENCE = "free for research with citation"
CITATION = (
    "Al-Dhabyani W, Gomaa M, Khaled H, Fahmy A. Dataset of breast ultrasound images. "
    "Data in Brief 28 (2020) 104863. doi:10.1016/j.dib.2019.104863"
)

_MASK = re.compile(r"(?P<image>.+)_mask(_(?P<number>\d+))?", re.IGNORECASE)


def scan(store: Store) -> list[Record]:
    """Find the images in the class folders, which lie together anywhere below the store's root.

    Files and folders beside the class folders are ignored, as is what is no PNG in them.

    Raises:
        DataError: if there is no such folder, or an image and its masks do not fit together.
    """
    files = visible(store)
    found = _by_root(files)
    if not found:
        raise DataError(_not_found(store, files))
    root, *others = outermost(found)
    if others:
        raise DataError(
            f"A source must hold one BUSI collection, but {store.uri} holds {len(others) + 1}: "
            f"{some([root, *others])}; name one of them."
        )
    _refuse_other_classes(store, files, root)
    records: list[Record] = []
    for folder, label in sorted(found[root].items()):
        prefix = f"{root}/{folder}/" if root else f"{folder}/"
        records += _class_records(prefix, [name for name in files if _inside(name, prefix)], label)
    return records


def _by_root(files: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return the class folders (with their labels) by the folder that they lie in."""
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for name in files:
        parents = name.split("/")[:-1]
        if parents and parents[-1].lower() in LABELS and _is_image(name):
            found["/".join(parents[:-1])][parents[-1]] = LABELS.index(parents[-1].lower())
    return dict(found)


def _inside(name: str, prefix: str) -> bool:
    rest = name[len(prefix) :]
    return name.startswith(prefix) and "/" not in rest and _is_image(rest)


def _is_image(name: str) -> bool:
    return name.lower().endswith(".png")


def _class_records(prefix: str, names: Sequence[str], label: int) -> list[Record]:
    images: dict[str, str] = {}
    masks: dict[str, list[tuple[int, str]]] = defaultdict(list)
    twice: dict[str, str] = {}
    for name in names:
        stem = name[len(prefix) : -len(".png")]
        match = _MASK.fullmatch(stem)
        if match is not None:
            masks[match["image"]].append((int(match["number"] or 0), name))
        elif images.setdefault(stem, name) != name:
            twice[stem] = (
                f"Names must differ by more than their case, but there are {images[stem]} and "
                f"{name}; remove one."
            )
    alone = [
        refused(
            stem,
            f"A mask must lie beside its image, but {masks[stem][0][1]} has no {stem}.png; "
            "add the image or remove the mask.",
        )
        for stem in sorted(masks.keys() - images.keys())
    ]
    alone += [refused(stem, why) for stem, why in twice.items()]
    return alone + [
        refused(
            stem,
            f"A {LABELS[label]} image must have a mask, but {name} has no {stem}_mask.png beside "
            "it; add the mask or remove the image.",
        )
        if stem not in masks and LABELS[label] != "normal"
        else Record(
            sample_id=stem,
            label=label,
            image=name,
            masks=tuple(mask for _, mask in sorted(masks.get(stem, []))),
        )
        for stem, name in images.items()
        if stem not in twice
    ]


def _refuse_other_classes(store: Store, files: Sequence[str], root: str) -> None:
    """Refuse a folder beside the class folders that looks like a class of its own."""
    start = f"{root}/" if root else ""
    for name in files:
        folder, _, file = name[len(start) :].partition("/")
        if (
            name.startswith(start)
            and folder.lower() not in LABELS
            and file.startswith(f"{folder} (")
            and file.lower().endswith(".png")
        ):
            raise DataError(
                f"A class must be one of {', '.join(LABELS)}, but {store.uri} has images in "
                f"{start}{folder}; move that folder away."
            )


def _not_found(store: Store, files: Sequence[str]) -> str:
    if not files:
        return (
            f"A BUSI collection must be a folder with images, but {store.uri} is empty or missing; "
            "check its name."
        )
    return (
        "A BUSI collection must have the folders benign, malignant and normal with "
        "`benign (1).png` and `benign (1)_mask.png`, but "
        f"{store.uri} has {some(sorted({name.split('/')[0] for name in files}))}; name its folder "
        "or another layout."
    )
