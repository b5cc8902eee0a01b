"""Conversion of stored DICOM values to the 8-bit pixels shown by a viewer."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mtil.data.images.ultrasound import read_numbers

if TYPE_CHECKING:
    from pydicom import Dataset

Pixels = npt.NDArray[np.uint8]
Values = npt.NDArray[Any]

# Smallest share of the unwindowed contrast left by a valid window. A window leaving less was meant
# for different values and would show nothing.
_MIN_CONTRAST_SHARE = 1 / 16
# Values of up to 2 bytes are few enough for a lookup table: 65,536.
_MAX_TABLE_BYTES = 2
_MAX_BITS = 64

# Exceptions raised by pydicom on a damaged table or element.
_DAMAGED_ELEMENT_ERRORS = (
    ValueError, TypeError, AttributeError, LookupError, ArithmeticError, NotImplementedError,
)  # fmt: skip


def render_pixels(header: "Dataset") -> Pixels:
    """Return the frame as shown by a viewer: gray (h, w) or RGB (h, w, 3).

    Raises:
        ValueError: if the header or the pixels are damaged; pydicom raises further types.
    """
    kind = str(header.PhotometricInterpretation)
    if kind == "PALETTE COLOR":
        colours = _apply_palette(header, _decode_values(header))
        # Some 16-bit palettes hold 8-bit colours: without a value above 255, 255 is white.
        bits = int(header.RedPaletteColorLookupTableDescriptor[2])
        return _scale_to_8_bits(colours, 0, 2**bits - 1 if colours.max() > 255 else 255)
    values = _decode_values(header)
    if values.ndim == 3:
        # pydicom has converted YBR_FULL and YBR_FULL_422 to RGB by now.
        return _scale_to_8_bits(values, 0, 2 ** int(header.BitsStored) - 1)
    if kind not in ("MONOCHROME1", "MONOCHROME2"):
        raise ValueError(f"its photometric interpretation {kind} is not supported")
    gray = _apply_tables(header, values)
    return np.uint8(255) - gray if kind == "MONOCHROME1" else gray


def read_stored_values(header: "Dataset") -> Values:
    """Return the stored values (h, w) or colours (h, w, 3), non-negative, without a window.

    Raises:
        ValueError: if the header or the pixels are damaged; pydicom raises further types.
    """
    kind = str(header.PhotometricInterpretation)
    if kind == "PALETTE COLOR":
        return _apply_palette(header, _decode_values(header))
    values = _decode_values(header)
    if kind == "MONOCHROME1":
        return _stored_range(header)[1] - values.astype(np.int64)
    return np.maximum(values, 0)


def _decode_values(header: "Dataset") -> Values:
    """Decode the stored values, without old overlays in the unused bits of a value."""
    from pydicom.pixels.utils import pixel_array

    # Not `header.pixel_array`, which would keep the decoded values in memory with the header.
    return np.asarray(pixel_array(header))


def _apply_palette(header: "Dataset", pixels: Values) -> Values:
    from pydicom.pixels.processing import apply_color_lut

    return np.asarray(apply_color_lut(pixels, header)[..., :3])


def _stored_range(header: "Dataset") -> tuple[int, int]:
    """Return the smallest and the largest value representable in the stored bits."""
    bits = int(header.BitsStored)
    if not 1 <= bits <= _MAX_BITS:
        raise ValueError(f"its pixels have {bits} bits, not 1 to {_MAX_BITS}")
    signed = int(header.PixelRepresentation) == 1
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def _apply_tables(header: "Dataset", values: Values) -> Pixels:
    """Return the gray pixels of values (h, w) after modality and value-of-interest tables."""
    if values.dtype.itemsize > _MAX_TABLE_BYTES:
        return _apply_window(header, values)
    # Compute every distinct value once, then look up all pixels.
    low = int(values.min())
    table = _apply_window(header, np.arange(low, int(values.max()) + 1))
    return np.asarray(table[values.astype(np.int32) - low if low else values])


def _apply_window(header: "Dataset", values: Values) -> Pixels:
    from pydicom.pixels.processing import apply_modality_lut

    low, high = (float(bound) for bound in _stored_range(header))
    slope, intercept = (read_numbers(header, f"Rescale{name}") for name in ("Slope", "Intercept"))
    if header.get("ModalityLUTSequence"):
        values = apply_modality_lut(values, header)
        low, high = 0.0, 2.0 ** int(header.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
    elif len(slope) == len(intercept) == 1:
        bounds = [bound * slope[0] + intercept[0] for bound in (low, high)]
        if np.isfinite(bounds).all():
            values = values.astype(np.float64) * slope[0] + intercept[0]
            low, high = bounds
    # A negative slope swaps the bounds.
    unwindowed = _scale_to_8_bits(values, min(low, high), max(low, high))
    min_contrast = _MIN_CONTRAST_SHARE * (int(unwindowed.max()) - int(unwindowed.min()))
    for windowed in _windowed_candidates(header, values):
        if int(windowed.max()) - int(windowed.min()) >= min_contrast:
            return windowed
    return unwindowed


def _windowed_candidates(header: "Dataset", values: Values) -> Iterator[Pixels]:
    """Yield the pixels after the value-of-interest table, then after each window of the header."""
    from pydicom.pixels.processing import apply_voi

    if header.get("VOILUTSequence"):
        try:
            looked_up = apply_voi(np.rint(values).astype(np.int64), header)
            bits = int(header.VOILUTSequence[0].LUTDescriptor[2])
            yield _scale_to_8_bits(looked_up, 0, 2.0**bits - 1)
        except _DAMAGED_ELEMENT_ERRORS:
            # A damaged table is treated like a missing table: the windows are tried next.
            pass
    function = str(header.get("VOILUTFunction") or "LINEAR").upper()
    centers, widths = _read_floats(header, "WindowCenter"), _read_floats(header, "WindowWidth")
    for center, width in zip(centers, widths, strict=False):
        shares = _window_shares(values.astype(np.float64), center, width, function)
        if shares is not None:
            yield _scale_to_8_bits(shares, 0, 1)


def _read_floats(header: "Dataset", keyword: str) -> list[float]:
    """Return the values of an element as floats; NaN replaces values that are not numbers."""
    try:
        value = header.get(keyword)
    except _DAMAGED_ELEMENT_ERRORS:
        return []
    if value is None or value == "":
        return []
    listed = value if hasattr(value, "__iter__") and not isinstance(value, str) else [value]
    # NaN keeps the pairing of the n-th center with the n-th width.
    floats = []
    for item in listed:
        try:
            floats.append(float(item))
        except _DAMAGED_ELEMENT_ERRORS:
            floats.append(float("nan"))
    return floats


def _window_shares(
    values: npt.NDArray[np.float64], center: float, width: float, function: str
) -> npt.NDArray[np.float64] | None:
    """Return positions of values in a window, 0 to 1 inside; None if the window is invalid.

    See DICOM PS3.3, C.11.2.1, for the formulas.
    """
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


def _scale_to_8_bits(values: Values, low: float, high: float) -> Pixels:
    """Map `low` to 0 and `high` to 255; clip values outside."""
    if low == high:
        raise ValueError("its rescale slope is 0")
    if values.dtype == np.uint8 and (low, high) == (0, 255):
        return np.asarray(values, np.uint8)
    if values.dtype.kind == "u" and values.dtype.itemsize <= _MAX_TABLE_BYTES and values.ndim > 1:
        return np.asarray(_scale_to_8_bits(np.arange(int(values.max()) + 1), low, high)[values])
    shares = (values.astype(np.float64) - low) / (high - low)
    return np.rint(np.clip(shares, 0, 1) * 255).astype(np.uint8)
