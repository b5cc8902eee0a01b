"""Tissue regions and pixel size of an ultrasound frame, read from the DICOM header."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom import Dataset

Box = tuple[int, int, int, int]
"""(top, left, bottom, right) in pixels; bottom and right are exclusive."""

# Region Spatial Format (0018,6012).
_TWO_DIMENSIONAL = 1
# Region Data Type (0018,6014). Both count as tissue: colour flow is drawn over tissue.
_TISSUE, _COLOUR_FLOW = 1, 2
# Physical Units X and Y Direction (0018,6024) and (0018,6026).
_CENTIMETRES = 3
# Sides differing by a larger share are not one pixel size.
_MAX_SIDE_DIFFERENCE = 0.01
# Plausible range of a pixel's side in an ultrasound image, in millimetres.
_MIN_SIDE, _MAX_SIDE = 0.001, 10.0
# Regions covering a smaller share of the frame do not locate the tissue.
_MIN_COVERED_SHARE = 0.05
_CORNERS = (
    "RegionLocationMinY0",
    "RegionLocationMinX0",
    "RegionLocationMaxY1",
    "RegionLocationMaxX1",
)
# Exceptions raised by pydicom if a value is not of the type of its tag.
_WRONG_TYPE_ERRORS = (ValueError, TypeError, AttributeError, OverflowError, LookupError)


@dataclass(frozen=True)
class TissueRegions:
    """Location of the tissue in a frame, and size of a pixel."""

    boxes: tuple[Box, ...]
    """Boxes of tissue; empty if unknown."""
    pixel_size: float | None
    """Side of a pixel in millimetres; None if unknown or not the same everywhere."""
    stray: bool
    """Whether regions of the header do not fit the frame; then no region is used."""


def read_regions(header: "Dataset", height: int, width: int) -> TissueRegions:
    """Read the ultrasound regions and the pixel size of a header.

    No region is used if any region reaches beyond the frame, or if a tissue region has no location,
    no area or almost no share of the frame. The result then has no boxes, and its pixel size is the
    pixel spacing, unless the spacing equals the size given in the regions.

    Args:
        header: header of the file.
        height: rows of the frame.
        width: columns of the frame.
    """
    spacing = _common_side(read_numbers(header, "PixelSpacing"), min_count=2)
    regions = _read_regions(header)
    tissue = [region for region in regions if _is_tissue(region, (_TISSUE, _COLOUR_FLOW))]
    # Regions give centimetres; a delta may be negative.
    sizes = [
        10 * abs(side)
        for region in tissue
        if _read_integer(region, "RegionDataType") == _TISSUE
        for side in _pixel_sides(region)
    ]
    size = _common_side(sizes)
    boxes = [_read_box(region) for region in tissue]
    fitting = tuple(
        (box[0], box[1], min(box[2], height), min(box[3], width))
        for box in boxes
        if box is not None and _fits(box, height, width)
    )
    beyond = any(
        box is not None and _reaches_beyond(box, height, width) for box in map(_read_box, regions)
    )
    # A region beyond the frame was written before the image was cropped or made smaller, and so
    # were all regions of the header. A spacing equal to the regions' size is from then, too.
    if beyond or len(fitting) < len(boxes) or (boxes and not _covers(fitting, height, width)):
        same = size is not None and spacing is not None and _are_similar(size, spacing)
        return TissueRegions((), None if same else spacing, stray=True)
    return TissueRegions(fitting, size if sizes else spacing, stray=False)


def read_numbers(header: "Dataset", keyword: str) -> list[float]:
    """Return the values of an element as floats; an empty list unless all are finite numbers."""
    try:
        value = header.get(keyword)
        if value is None or value == "":
            return []
        floats = [float(item) for item in (value if _is_list(value) else [value])]
    except _WRONG_TYPE_ERRORS:
        return []
    return floats if all(map(math.isfinite, floats)) else []


def _is_list(value: object) -> bool:
    return not isinstance(value, str) and hasattr(value, "__iter__")


def _read_integer(header: "Dataset", keyword: str) -> int | None:
    floats = read_numbers(header, keyword)
    return int(floats[0]) if len(floats) == 1 else None


def _read_regions(header: "Dataset") -> list["Dataset"]:
    try:
        sequence = header.get("SequenceOfUltrasoundRegions")
    except _WRONG_TYPE_ERRORS:
        return []
    return [item for item in sequence if hasattr(item, "get")] if _is_list(sequence) else []


def _is_tissue(region: "Dataset", kinds: tuple[int, ...]) -> bool:
    return (
        _read_integer(region, "RegionSpatialFormat") == _TWO_DIMENSIONAL
        and _read_integer(region, "RegionDataType") in kinds
    )


def _pixel_sides(region: "Dataset") -> list[float]:
    """Return both pixel sides of a region in centimetres; an empty list in other units."""
    units = (f"PhysicalUnits{axis}Direction" for axis in "XY")
    if any(_read_integer(region, unit) != _CENTIMETRES for unit in units):
        return []
    sides = [read_numbers(region, f"PhysicalDelta{axis}") for axis in "XY"]
    known = all(len(side) == 1 and side[0] for side in sides)
    return [side[0] for side in sides] if known else []


def _read_box(region: "Dataset") -> Box | None:
    corners = [_read_integer(region, keyword) for keyword in _CORNERS]
    top, left, bottom, right = corners
    if top is None or left is None or bottom is None or right is None:
        return None
    return top, left, bottom + 1, right + 1


def _reaches_beyond(box: Box, height: int, width: int) -> bool:
    top, left, bottom, right = box
    # A far corner equal to the frame size is off by one, a common and harmless mistake.
    return max(top, bottom - 1) > height or max(left, right - 1) > width


def _fits(box: Box, height: int, width: int) -> bool:
    top, left, bottom, right = box
    return 0 <= top < min(bottom, height) and 0 <= left < min(right, width)


def _covers(boxes: tuple[Box, ...], height: int, width: int) -> bool:
    """Return whether boxes, which may overlap, could cover enough of the frame."""
    area = sum((bottom - top) * (right - left) for top, left, bottom, right in boxes)
    return area >= _MIN_COVERED_SHARE * height * width


def _common_side(sides: list[float], min_count: int = 1) -> float | None:
    """Return the side if all sides are plausible and equal within 1 %, else None."""
    if len(sides) < min_count or not _MIN_SIDE <= min(sides) <= max(sides) <= _MAX_SIDE:
        return None
    return sides[0] if _are_similar(min(sides), max(sides)) else None


def _are_similar(a: float, b: float) -> bool:
    return max(a, b) <= (1 + _MAX_SIDE_DIFFERENCE) * min(a, b)
