"""Where a DICOM header places the ultrasound tissue in its frame, and how large a pixel is."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom import Dataset

Box = tuple[int, int, int, int]
"""First row, first column, and the row and the column behind the last."""

_TWO_DIMENSIONAL = 1
"""Region Spatial Format (0018,6012)."""
_TISSUE, _COLOUR_FLOW = 1, 2
"""Region Data Type (0018,6014); colour flow is drawn over tissue."""
_CENTIMETRES = 3
"""Physical Units X and Y Direction (0018,6024) and (0018,6026)."""
_MAX_DIFFERENCE = 0.01
"""Pixels whose sides differ by a larger share have no single size."""
_SIZES = 0.001, 10.0
"""Millimetres that a pixel of an ultrasound image can have."""
_MIN_SHARE = 0.05
"""Regions that cover less of the frame do not say where its tissue is."""
_CORNERS = (
    "RegionLocationMinY0",
    "RegionLocationMinX0",
    "RegionLocationMaxY1",
    "RegionLocationMaxX1",
)
_BROKEN = (ValueError, TypeError, AttributeError, OverflowError, LookupError)
"""What pydicom raises where a value is of another kind than its tag."""


@dataclass(frozen=True)
class Regions:
    """What is known of a frame's tissue."""

    boxes: tuple[Box, ...]
    """Where tissue is; empty if that is not known."""
    pixel_size: float | None
    """Side of a pixel in millimetres; None if it is not known or there is not one."""
    stray: bool
    """Whether the header has regions that do not fit the frame, so that none is used."""


def read_regions(header: "Dataset", height: int, width: int) -> Regions:
    """Read the ultrasound regions and the pixel size of a header.

    A region that reaches beyond the frame was written for another one, before the image was cut or
    made smaller, and so were all others of that header: neither their places nor their pixel sizes
    are used, and a pixel spacing that equals them is not either. The same holds for tissue regions
    without a place, without an area, or that cover almost nothing. A far corner that is given as
    the frame's size, one too far, is a common mistake and does no harm.

    Args:
        header: the file's header.
        height: rows of the frame.
        width: columns of the frame.
    """
    spacing = _one_size(numbers(header, "PixelSpacing"), least=2)
    regions = _items(header)
    tissue = [region for region in regions if _is_tissue(region, (_TISSUE, _COLOUR_FLOW))]
    sizes = [
        10 * abs(side)
        for region in tissue
        if _integer(region, "RegionDataType") == _TISSUE
        for side in _sides(region)
    ]
    size = _one_size(sizes)
    boxes = [_box(region) for region in tissue]
    fitting = tuple(
        (box[0], box[1], min(box[2], height), min(box[3], width))
        for box in boxes
        if box is not None and _fits(box, height, width)
    )
    beyond = any(
        box is not None and _reaches_beyond(box, height, width) for box in map(_box, regions)
    )
    if beyond or len(fitting) < len(boxes) or (boxes and not _cover(fitting, height, width)):
        same = size is not None and spacing is not None and _alike(size, spacing)
        return Regions((), None if same else spacing, stray=True)
    return Regions(fitting, size if sizes else spacing, stray=False)


def numbers(header: "Dataset", keyword: str) -> list[float]:
    """Return the finite numbers of an element; none if it is missing or one of them is none."""
    try:
        value = header.get(keyword)
        if value is None or value == "":
            return []
        found = [float(one) for one in (value if _is_list(value) else [value])]
    except _BROKEN:
        return []
    return found if all(map(math.isfinite, found)) else []


def _is_list(value: object) -> bool:
    return not isinstance(value, str) and hasattr(value, "__iter__")


def _integer(header: "Dataset", keyword: str) -> int | None:
    found = numbers(header, keyword)
    return int(found[0]) if len(found) == 1 else None


def _items(header: "Dataset") -> list["Dataset"]:
    try:
        found = header.get("SequenceOfUltrasoundRegions")
    except _BROKEN:
        return []
    return [item for item in found if hasattr(item, "get")] if _is_list(found) else []


def _is_tissue(region: "Dataset", kinds: tuple[int, ...]) -> bool:
    return (
        _integer(region, "RegionSpatialFormat") == _TWO_DIMENSIONAL
        and _integer(region, "RegionDataType") in kinds
    )


def _sides(region: "Dataset") -> list[float]:
    """Return a region's pixel sides, if it gives both in centimetres."""
    units = (f"PhysicalUnits{axis}Direction" for axis in "XY")
    if any(_integer(region, unit) != _CENTIMETRES for unit in units):
        return []
    sides = [numbers(region, f"PhysicalDelta{axis}") for axis in "XY"]
    known = all(len(side) == 1 and side[0] for side in sides)
    return [side[0] for side in sides] if known else []


def _box(region: "Dataset") -> Box | None:
    corners = [_integer(region, keyword) for keyword in _CORNERS]
    top, left, bottom, right = corners
    if top is None or left is None or bottom is None or right is None:
        return None
    return top, left, bottom + 1, right + 1


def _reaches_beyond(box: Box, height: int, width: int) -> bool:
    top, left, bottom, right = box
    return max(top, bottom - 1) > height or max(left, right - 1) > width


def _fits(box: Box, height: int, width: int) -> bool:
    top, left, bottom, right = box
    return 0 <= top < min(bottom, height) and 0 <= left < min(right, width)


def _cover(boxes: tuple[Box, ...], height: int, width: int) -> bool:
    """Say whether boxes, which may overlap, could cover enough of a frame."""
    area = sum((bottom - top) * (right - left) for top, left, bottom, right in boxes)
    return area >= _MIN_SHARE * height * width


def _one_size(sides: list[float], least: int = 1) -> float | None:
    if len(sides) < least or not _SIZES[0] <= min(sides) <= max(sides) <= _SIZES[1]:
        return None
    return sides[0] if _alike(min(sides), max(sides)) else None


def _alike(one: float, other: float) -> bool:
    return max(one, other) <= (1 + _MAX_DIFFERENCE) * min(one, other)
