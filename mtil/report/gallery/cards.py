"""The cards: an image with outlines, maps, probabilities and what is notable about it."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
from PIL import Image

from mtil.data.dataset.shards import LABELS
from mtil.report.gallery import layers
from mtil.report.scored import ScoredRun
from mtil.report.stored import StoredImage, read_images
from mtil.run.pictures import MASK_SIDE, decode
from mtil.storage import open_store

_SURE = 0.2
"""Probability of malignant below which, or above one minus which, a call is sure."""

PROBLEMS = {
    "missed": "missed lesion",
    "wrong": "wrong class",
    "sure": "sure of the class, lesion missed",
    "false": "outline on a normal image",
    "presence": "outline and presence disagree",
    "objection": "objection to the reference",
}
"""What can be notable about an image, by key."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What the gallery shows of an image."""

    sample_id: str
    anchor: str
    """Fragment of the image's address in the page."""
    label: str
    source: str
    fold: int
    dice: float | None
    """None for normal images."""
    probability: float
    called: str
    lesion_probability: float | None
    spread: float | None
    """Disagreement of several models about the mask; None for a single model."""
    size: int
    """Lesion size in pixels of the original image."""
    problems: tuple[str, ...]
    """Keys of `PROBLEMS`."""
    width: int
    height: int
    thumbnail: str
    """Data URI of the image; empty if the data set is gone."""
    layers: dict[str, str]
    """Data URIs of the layers by key: `outlines-K` and `map-K` of pass K, and `evidence`."""
    gray: npt.NDArray[np.uint8] | None = None
    """(s, s) stored pixels, for a file beside the page."""
    file: str = ""
    """Address of the file beside the page, if there is one."""


def make_anchor(sample_id: str) -> str:
    """Return the fragment of an image's address; without blanks, quotes or markup."""
    return f"image-{quote(sample_id, safe='')}"


def make_cards(
    scored: ScoredRun, listen: Callable[[int, int], None] = lambda done, of: None
) -> list[Card]:
    """Return the cards of all images with pictures, the worst Dice first.

    Args:
        scored: the run.
        listen: called with the numbers of finished and of all cards.
    """
    rows = {row["sample_id"]: row for row in scored.rows_of_pass(-1).to_pylist()}
    drawn = {sample_id for sample_id, _ in scored.pictures}
    wanted = [row for name, row in rows.items() if name in drawn]
    cards = []
    stored: dict[str, StoredImage] = {}
    if scored.manifest is not None and wanted:
        images = read_images(open_store(scored.run.data_uri), scored.manifest, drawn)
        stored = {image.sample_id: image for image in images}
    for row in wanted:
        cards.append(_make_card(scored, row, stored.get(row["sample_id"])))
        listen(len(cards), len(wanted))
    return sorted(cards, key=lambda card: (card.dice is None, card.dice or 0.0, card.sample_id))


def _make_card(scored: ScoredRun, row: dict[str, Any], stored: StoredImage | None) -> Card:
    name, is_normal = row["sample_id"], LABELS[row["label"]] == "normal"
    found: dict[str, str] = {}
    for number in scored.passes:
        picture = scored.pictures.get((name, number))
        if picture is None:
            continue
        predicted = decode(picture["mask_png"]) > 0
        reference = np.zeros_like(predicted) if stored is None else _resize_mask(stored.mask)
        found[f"outlines-{number}"] = layers.draw_outlines(reference, predicted)
        found[f"map-{number}"] = layers.draw_lesion(decode(picture["map_png"]))
        found["evidence"] = layers.draw_evidence(decode(picture["evidence_png"]))
    width, height = (1, 1) if stored is None else (stored.width, stored.height)
    return Card(
        sample_id=name,
        anchor=make_anchor(name),
        label=LABELS[row["label"]],
        source=row["source"],
        fold=row["fold"],
        dice=None if is_normal else row["dice"],
        probability=row["probability"],
        called="malignant" if row["predicted"] else "benign",
        lesion_probability=_finite(row["lesion_probability"]),
        spread=_finite(row["mask_spread"]),
        size=row["tp"] + row["fn"],
        problems=tuple(_find_problems(row, is_normal=is_normal)),
        width=width,
        height=height,
        thumbnail="" if stored is None else layers.draw_thumbnail(stored.gray, width, height),
        layers=found,
        gray=None if stored is None else stored.gray,
    )


def _find_problems(row: dict[str, Any], *, is_normal: bool) -> Iterator[str]:
    has_outline = row["tp"] + row["fp"] > 0
    if is_normal:
        if has_outline:
            yield "false"
    else:
        if row["missed"]:
            yield "missed"
            if not _SURE <= row["probability"] <= 1 - _SURE:
                yield "sure"
        if row["predicted"] != (LABELS[row["label"]] == "malignant"):
            yield "wrong"
    presence = _finite(row["lesion_probability"])
    if presence is not None and has_outline != (presence >= 0.5):
        yield "presence"
    if row["objection"]:
        yield "objection"


def _resize_mask(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    picture = Image.fromarray(mask).resize((MASK_SIDE, MASK_SIDE), Image.Resampling.NEAREST)
    return np.array(picture)


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value
