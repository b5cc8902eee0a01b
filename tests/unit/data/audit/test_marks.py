"""Burnt-in text, calipers and odd masks."""

import io

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from mtil.data.audit.marks import (
    MAX_AREA_SHARE,
    MIN_AREA_SHARE,
    Marks,
    flag_marks,
    flag_mask,
)
from mtil.data.images.read import read_gray

Gray = npt.NDArray[np.uint8]
NONE = Marks(text=False, calipers=False)


def speckle(seed: int = 0, height: int = 300, width: int = 400, level: float = 90) -> Gray:
    """Draw wide speckle, log-compressed to 60 dB, with a dark lesion."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.normal(size=(2, height, width)), (0, 1.2, 2.5))
    envelope = np.hypot(*field)
    decibels = 20 * np.log10(envelope / np.sqrt(np.mean(envelope**2)))
    rows, columns = np.mgrid[:height, :width]
    inside = ((rows - height / 2) / 40) ** 2 + ((columns - width / 2) / 70) ** 2 < 1
    decibels[inside] -= 12
    return np.clip(level + 255 / 60 * decibels, 0, 255).astype(np.uint8)


def drawn(gray: Gray, *marks: tuple[str, tuple[int, int], int], width: int = 1) -> Gray:
    """Draw text, + and x at (x, y). The last value is the font size of text or the arm length."""
    image = Image.fromarray(gray)
    draw = ImageDraw.Draw(image)
    for what, (x, y), size in marks:
        if what == "+":
            draw.line((x - size, y, x + size, y), fill=235, width=width)
            draw.line((x, y - size, x, y + size), fill=235, width=width)
        elif what == "x":
            draw.line((x - size, y - size, x + size, y + size), fill=235, width=width)
            draw.line((x - size, y + size, x + size, y - size), fill=235, width=width)
        else:
            draw.text((x, y), what, fill=235, font=ImageFont.load_default(size))
    return np.array(image)


@pytest.mark.parametrize("level", [40, 90, 160])
def test_speckle_alone_is_not_flagged(level: float) -> None:
    flagged = [flag_marks(speckle(seed, level=level)) for seed in range(10)]
    assert flagged == [NONE] * 10


def test_bright_layers_and_bars_are_neither_text_nor_calipers() -> None:
    gray = speckle()
    gray[60:63] = 240  # a layer of tissue
    gray[200:280, 380:390] = 255  # a gray scale
    assert flag_marks(gray) == NONE


def test_flat_and_tiny_images_are_not_flagged() -> None:
    for shape in [(1, 1), (3, 200), (200, 3), (64, 64)]:
        assert flag_marks(np.full(shape, 255, np.uint8)) == NONE
        assert flag_marks(np.zeros(shape, np.uint8)) == NONE


@pytest.mark.parametrize("size", [11, 14, 20])
@pytest.mark.parametrize("text", ["LEFT BREAST", "RT AXILLA", "lt12 above nipple"])
def test_text_is_flagged(text: str, size: int) -> None:
    marks = flag_marks(drawn(speckle(), (text, (60, 230), size)))
    assert marks == Marks(text=True, calipers=False)


def test_the_remnant_of_a_logo_in_a_corner_is_no_text() -> None:
    assert flag_marks(drawn(speckle(), ("LOGIQ", (0, -2), 14))) == NONE
    assert flag_marks(drawn(speckle(), ("LOGIQ", (30, 30), 14))).text


@pytest.mark.parametrize("length", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("kind", ["+", "x"])
def test_calipers_of_every_size_are_flagged(kind: str, length: int) -> None:
    gray = drawn(speckle(), (kind, (180, 150), length), (kind, (220, 160), length))
    assert flag_marks(gray) == Marks(text=False, calipers=True)


def test_a_thick_cross_with_a_dotted_line_and_a_number_is_a_caliper() -> None:
    gray = drawn(speckle(), ("+", (150, 140), 6), ("1", (156, 144), 12), width=2)
    gray[141, 160:240:4] = 235
    assert flag_marks(gray).calipers


def test_crossing_lines_without_ends_are_no_caliper() -> None:
    gray = speckle()
    gray[:, 200] = 235
    gray[150] = 235
    assert flag_marks(gray) == NONE


@pytest.mark.parametrize("colour", [(255, 255, 0), (0, 255, 0), (0, 255, 255)])
def test_yellow_green_and_cyan_marks_are_seen_in_gray(colour: tuple[int, int, int]) -> None:
    gray = speckle(level=60)
    marked = drawn(gray, ("+", (200, 150), 5), ("RT UOQ", (60, 230), 14)) != gray
    pixels = np.stack([gray] * 3, axis=2)
    pixels[marked] = colour
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, format="PNG")
    assert flag_marks(read_gray(sink.getvalue(), "image")) == Marks(text=True, calipers=True)
    assert flag_marks(gray) == NONE


def test_an_image_is_not_changed() -> None:
    gray = drawn(speckle(), ("RT UOQ", (60, 230), 14))
    before = gray.copy()
    gray.flags.writeable = False
    flag_marks(gray)
    np.testing.assert_array_equal(gray, before)


def test_a_plain_lesion_has_no_flags() -> None:
    mask = np.zeros((100, 100), np.bool_)
    mask[20:40, 30:60] = True
    flags = flag_mask(mask)
    assert (flags.num_components, flags.num_holes) == (1, 0)
    assert not flags.touches_border
    assert not flags.implausible
    assert flags.area_share == pytest.approx(0.06)


def test_parts_and_holes_are_counted() -> None:
    mask = np.zeros((60, 60), np.bool_)
    mask[5:25, 5:25] = True
    mask[10:12, 10:12] = False  # first hole
    mask[15:17, 15:17] = False  # second hole
    mask[5:9, 24] = False  # notch
    mask[40:50, 40:50] = True
    mask[50:52, 50:52] = True  # touches at a corner
    flags = flag_mask(mask)
    assert (flags.num_components, flags.num_holes) == (2, 2)


def test_a_ring_that_is_joined_at_corners_has_a_hole() -> None:
    mask = np.zeros((9, 9), np.bool_)
    mask[[3, 4, 4, 5], [4, 3, 5, 4]] = True
    flags = flag_mask(mask)
    assert (flags.num_components, flags.num_holes) == (1, 1)


@pytest.mark.parametrize("place", [np.s_[0, 4], np.s_[8, 4], np.s_[4, 0], np.s_[4, 8]])
def test_every_border_is_watched(place: tuple[int, int]) -> None:
    mask = np.zeros((9, 9), np.bool_)
    mask[4, 4] = True
    assert not flag_mask(mask).touches_border
    mask[place] = True
    assert flag_mask(mask).touches_border


def test_background_that_is_cut_off_by_a_border_is_no_hole() -> None:
    mask = np.zeros((20, 20), np.bool_)
    mask[:, 10] = True
    assert flag_mask(mask).num_holes == 0


@pytest.mark.parametrize(
    ("num_pixels", "implausible"),
    [(0, False), (4, True), (5, False), (6000, False), (6001, True)],
)
def test_lesions_of_implausible_area_are_flagged(num_pixels: int, implausible: bool) -> None:
    assert (MIN_AREA_SHARE, MAX_AREA_SHARE) == (0.0005, 0.6)
    mask = np.zeros(10_000, np.bool_)
    mask[:num_pixels] = True
    flags = flag_mask(mask.reshape(100, 100))
    assert flags.implausible is implausible
    assert flags.area_share == num_pixels / 10_000
