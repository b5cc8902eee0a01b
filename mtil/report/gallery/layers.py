"""Small pictures that lie over a thumbnail, as data URIs."""

import base64
import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from mtil.prediction.overlay import extract_outline

THUMBNAIL_SIDE = 160
"""Longer side of a thumbnail in pixels."""
_QUALITY = 62
_REFERENCE, _PREDICTED, _BOTH = (64, 200, 255), (255, 200, 0), (255, 255, 255)
_LESION, _TOWARDS_MALIGNANT, _TOWARDS_BENIGN = (255, 140, 0), (255, 60, 60), (60, 140, 255)
_STEPS = 16
"""Shades of a layer; few shades compress well."""
_LARGEST_ALPHA = 200


def draw_thumbnail(gray: npt.NDArray[np.uint8], width: int, height: int) -> str:
    """Return a square gray image (s, s) as a WebP, in the proportions of the original image."""
    scale = THUMBNAIL_SIDE / max(width, height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = Image.fromarray(gray).resize(size, Image.Resampling.LANCZOS)
    return _encode(picture, "WEBP", quality=_QUALITY)


def draw_outlines(reference: npt.NDArray[np.bool_], predicted: npt.NDArray[np.bool_]) -> str:
    """Return the outlines of two masks (s, s): the reference in blue, the predicted in yellow."""
    one, other = _outline(reference), _outline(predicted)
    return _encode_palette(one + 2 * other, [_REFERENCE, _PREDICTED, _BOTH], [255, 255, 255])


def draw_outline(reference: npt.NDArray[np.bool_]) -> str:
    """Return the outline of a reference mask (s, s) in blue."""
    return _encode_palette(_outline(reference), [_REFERENCE], [255])


def draw_lesion(lesion: npt.NDArray[np.uint8]) -> str:
    """Return a lesion map (s, s) in bytes as an orange layer, more opaque where more probable."""
    steps = lesion.astype(int) * (_STEPS - 1) // 255
    alphas = [_LARGEST_ALPHA * step // (_STEPS - 1) for step in range(1, _STEPS)]
    return _encode_palette(steps, [_LESION] * (_STEPS - 1), alphas)


def draw_evidence(evidence: npt.NDArray[np.uint8]) -> str:
    """Return contributions (s, s) to malignancy, 128 for none: red towards malignant, else blue."""
    signed = evidence.astype(int) - 128
    steps = np.abs(signed) * (_STEPS - 1) // 127
    steps = np.minimum(steps, _STEPS - 1) + np.where((signed < 0) & (steps > 0), _STEPS - 1, 0)
    alphas = [_LARGEST_ALPHA * step // (_STEPS - 1) for step in range(1, _STEPS)]
    colours = [_TOWARDS_MALIGNANT] * (_STEPS - 1) + [_TOWARDS_BENIGN] * (_STEPS - 1)
    return _encode_palette(steps, colours, alphas * 2)


def _outline(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    # Two pixels: one would vanish where the browser scales the layer down.
    outline = extract_outline(mask)
    outline[1:] |= extract_outline(mask)[:-1] & mask[1:]
    outline[:, 1:] |= extract_outline(mask)[:, :-1] & mask[:, 1:]
    return outline.astype(np.int64)


def _encode_palette(
    indices: npt.NDArray[np.int64], colours: list[tuple[int, int, int]], alphas: list[int]
) -> str:
    """Return a PNG of palette colours; index 0 is transparent, colours count from 1."""
    picture = Image.fromarray(indices.astype(np.uint8), mode="P")
    picture.putpalette([0, 0, 0, *(value for colour in colours for value in colour)])
    return _encode(picture, "PNG", optimize=True, transparency=bytes([0, *alphas]))


def _encode(picture: Image.Image, kind: str, **options: object) -> str:
    sink = io.BytesIO()
    picture.save(sink, format=kind, **options)
    text = base64.b64encode(sink.getvalue()).decode()
    return f"data:image/{kind.lower()};base64,{text}"
