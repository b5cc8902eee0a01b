"""Stored values of a DICOM frame to the 8 bits that a viewer shows."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mtil.data.images.ultrasound import numbers

if TYPE_CHECKING:
    from pydicom import Dataset

Pixels = npt.NDArray[np.uint8]
Values = npt.NDArray[Any]

_LEAST_CONTRAST = 1 / 16
"""A window that leaves a smaller share of the contrast that the values have without it shows
nothing: such a window was written for other values."""
_TABLE_BYTES = 2
"""Values of so many bytes are few enough to look each up."""
_MAX_BITS = 64

_BROKEN = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, NotImplementedError)
"""What pydicom raises on a damaged table."""


def shown(header: "Dataset") -> Pixels:
    """Return a frame as gray (h, w) or RGB (h, w, 3).

    Raises:
        ValueError: or what else pydicom raises, if the header or the pixels are damaged.
    """
    kind = str(header.PhotometricInterpretation)
    if kind == "PALETTE COLOR":
        colours = _coloured(header, _decoded(header))
        bits = int(header.RedPaletteColorLookupTableDescriptor[2])
        return _scaled(colours, 0, 2**bits - 1 if colours.max() > 255 else 255)
    values = _decoded(header)
    if values.ndim == 3:  # YBR_FULL and YBR_FULL_422 come as RGB
        return _scaled(values, 0, 2 ** int(header.BitsStored) - 1)
    if kind not in ("MONOCHROME1", "MONOCHROME2"):
        raise ValueError(f"its photometric interpretation {kind} is not known")
    gray = _looked_up(header, values)
    return np.uint8(255) - gray if kind == "MONOCHROME1" else gray


def stored(header: "Dataset") -> Values:
    """Return a frame's values (h, w) or colours (h, w, 3), through no window and not negative.

    Raises:
        ValueError: or what else pydicom raises, if the header or the pixels are damaged.
    """
    kind = str(header.PhotometricInterpretation)
    if kind == "PALETTE COLOR":
        return _coloured(header, _decoded(header))
    values = _decoded(header)
    if kind == "MONOCHROME1":
        return _range(header)[1] - values.astype(np.int64)
    return np.maximum(values, 0)


def _decoded(header: "Dataset") -> Values:
    """Return a frame's values without what old overlays have in bits that are not theirs.

    The header does not keep the values, as it would those of its own attribute.
    """
    from pydicom.pixels.utils import pixel_array

    return np.asarray(pixel_array(header))


def _coloured(header: "Dataset", pixels: Values) -> Values:
    from pydicom.pixels.processing import apply_color_lut

    return np.asarray(apply_color_lut(pixels, header)[..., :3])


def _range(header: "Dataset") -> tuple[int, int]:
    """Return the least and the largest value that can be stored."""
    bits = int(header.BitsStored)
    if not 1 <= bits <= _MAX_BITS:
        raise ValueError(f"its pixels have {bits} bits")
    signed = int(header.PixelRepresentation) == 1
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def _looked_up(header: "Dataset", values: Values) -> Pixels:
    """Return the gray pixels of values (h, w), each different value being worked out once."""
    if values.dtype.itemsize > _TABLE_BYTES:
        return _windowed(header, values)
    low = int(values.min())
    table = _windowed(header, np.arange(low, int(values.max()) + 1))
    return np.asarray(table[values.astype(np.int32) - low if low else values])


def _windowed(header: "Dataset", values: Values) -> Pixels:
    from pydicom.pixels.processing import apply_modality_lut

    low, high = (float(bound) for bound in _range(header))
    slope, intercept = (numbers(header, f"Rescale{name}") for name in ("Slope", "Intercept"))
    if header.get("ModalityLUTSequence"):
        values = apply_modality_lut(values, header)
        low, high = 0.0, 2.0 ** int(header.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
    elif len(slope) == len(intercept) == 1:
        bounds = [bound * slope[0] + intercept[0] for bound in (low, high)]
        if np.isfinite(bounds).all():
            values = values.astype(np.float64) * slope[0] + intercept[0]
            low, high = bounds
    plain = _scaled(values, min(low, high), max(low, high))
    least = _LEAST_CONTRAST * (int(plain.max()) - int(plain.min()))
    for found in _of_interest(header, values):
        if int(found.max()) - int(found.min()) >= least:
            return found
    return plain


def _of_interest(header: "Dataset", values: Values) -> Iterator[Pixels]:
    """Yield what the value-of-interest table, or else each window of the header makes of values."""
    from pydicom.pixels.processing import apply_voi

    if header.get("VOILUTSequence"):
        try:
            looked_up = apply_voi(np.rint(values).astype(np.int64), header)
            bits = int(header.VOILUTSequence[0].LUTDescriptor[2])
            yield _scaled(looked_up, 0, 2.0**bits - 1)
        except _BROKEN:  # a damaged table is as good as none
            pass
    function = str(header.get("VOILUTFunction") or "LINEAR").upper()
    centers, widths = _each(header, "WindowCenter"), _each(header, "WindowWidth")
    for center, width in zip(centers, widths, strict=False):
        shares = _shares(values.astype(np.float64), center, width, function)
        if shares is not None:
            yield _scaled(shares, 0, 1)


def _each(header: "Dataset", keyword: str) -> list[float]:
    """Return an element's numbers, NaN for each value that is none."""
    try:
        value = header.get(keyword)
    except _BROKEN:
        return []
    if value is None or value == "":
        return []
    listed = value if hasattr(value, "__iter__") and not isinstance(value, str) else [value]
    found = []
    for one in listed:
        try:
            found.append(float(one))
        except _BROKEN:
            found.append(float("nan"))
    return found


def _shares(
    values: npt.NDArray[np.float64], center: float, width: float, function: str
) -> npt.NDArray[np.float64] | None:
    """Return where values lie in a window, from 0 to 1; None if that is no window."""
    exact = function in ("LINEAR_EXACT", "SIGMOID")
    if not (np.isfinite(center) and np.isfinite(width)) or width < (1e-12 if exact else 1):
        return None
    with np.errstate(over="ignore"):
        if function == "SIGMOID":
            return np.asarray(1 / (1 + np.exp(-4 * (values - center) / width)))
        if function == "LINEAR_EXACT":
            return (values - center) / width + 0.5
        if width == 1:
            return (values > center - 0.5).astype(np.float64)
        return (values - (center - 0.5)) / (width - 1) + 0.5


def _scaled(values: Values, low: float, high: float) -> Pixels:
    """Map `low` to 0 and `high` to 255."""
    if low == high:
        raise ValueError("its rescale slope is 0")
    if values.dtype == np.uint8 and (low, high) == (0, 255):
        return np.asarray(values, np.uint8)
    if values.dtype.kind == "u" and values.dtype.itemsize <= _TABLE_BYTES and values.ndim > 1:
        return np.asarray(_scaled(np.arange(int(values.max()) + 1), low, high)[values])
    shares = (values.astype(np.float64) - low) / (high - low)
    return np.rint(np.clip(shares, 0, 1) * 255).astype(np.uint8)
