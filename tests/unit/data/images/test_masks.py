"""Lesion pixels of masks with two levels, many levels, numbers or colours."""

import io

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from mtil.data.images import read
from mtil.data.images.masks import MAX_NUMBER, find_lesion
from mtil.errors import DataError
from tests.masks import read_coloured_mask

MASK = np.zeros((60, 80), np.bool_)
MASK[12:44, 20:60] = True
Pixels = npt.NDArray[np.generic]


def file(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def kind_of(data: bytes) -> str:
    return read.decode_mask(read.open_image(data, "m"), "m").kind


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0, 128), (0, 255), (1, 2), (1, 255), (100, 255), (254, 255)]
)
def test_of_two_levels_the_brighter_is_lesion(low: int, high: int) -> None:
    levels = np.where(MASK, high, low).astype(np.uint8)
    found = find_lesion(levels)
    assert found.kind == "plain"
    np.testing.assert_array_equal(found.mask, MASK)
    np.testing.assert_array_equal(find_lesion(levels, inverted=True).mask, ~MASK)


@pytest.mark.parametrize("value", [0, 1, 255])
def test_a_mask_of_one_level_is_black_or_all_lesion(value: int) -> None:
    found = find_lesion(np.full((4, 6), value, np.uint8))
    assert (found.kind, found.mask.all(), found.mask.any()) == ("plain", value > 0, value > 0)


@pytest.mark.parametrize("most", [255, 200, 30])
def test_of_many_levels_lesion_is_from_half_of_the_brightest(most: int) -> None:
    levels = np.arange(most + 1, dtype=np.uint8)[None]
    found = find_lesion(levels)
    assert found.kind == "soft"
    assert np.flatnonzero(found.mask).tolist() == list(range((most + 1) // 2, most + 1))


def test_sixteen_bits_and_fractions_are_halved_as_well() -> None:
    assert find_lesion(np.array([[0, 32767, 32768, 65535]], np.uint16)).mask.tolist() == [
        [False, False, True, True]
    ]
    fractions = np.array([[0, 0.4, 0.5, 1.0]], np.float32)
    assert find_lesion(fractions).mask.tolist() == [[False, False, True, True]]


@pytest.mark.parametrize("quality", [30, 75, 95])
@pytest.mark.parametrize("again", ["PNG", None])
def test_a_mask_that_was_jpeg_keeps_its_lesion(quality: int, again: str | None) -> None:
    data = file(Image.fromarray(MASK.astype(np.uint8) * 255), "JPEG", quality=quality)
    if again is not None:
        data = file(Image.open(io.BytesIO(data)).convert("RGB"), again)
    got = read.read_mask(data, "m")
    assert abs(int(got.sum()) - int(MASK.sum())) <= 0.01 * MASK.sum()
    assert kind_of(data) == "soft"


def test_a_blurred_and_enlarged_mask_keeps_its_area() -> None:
    half = Image.fromarray(MASK.astype(np.uint8) * 255).resize((40, 30), Image.Resampling.BILINEAR)
    soft = half.resize((80, 60), Image.Resampling.BICUBIC).convert("RGB")
    got = read.read_mask(file(soft), "m")
    assert (np.asarray(soft)[..., 0] > 0).sum() > 1.1 * MASK.sum()  # the nonzero area has grown
    assert abs(int(got.sum()) - int(MASK.sum())) <= 0.03 * MASK.sum()


def test_an_edge_that_fades_into_transparency_is_halved() -> None:
    alpha = np.array([[0, 100, 128, 255]], np.uint8)
    image = Image.new("L", (4, 1), 255).convert("LA")
    image.putalpha(Image.fromarray(alpha))
    assert read.read_mask(file(image), "m").tolist() == [[False, False, True, True]]


@pytest.mark.parametrize("values", [(1, 2, 3), (1, 7), (2, MAX_NUMBER)])
def test_small_numbers_are_lesions_each(values: tuple[int, ...]) -> None:
    levels = np.zeros((20, 30), np.uint8)
    for number, value in enumerate(values):
        levels[2:9, 9 * number + 1 : 9 * number + 7] = value
    found = find_lesion(levels)
    assert found.kind == "numbered"
    np.testing.assert_array_equal(found.mask, levels > 0)


def test_a_darker_lesion_beside_a_bright_one_is_kept() -> None:
    levels = np.zeros((20, 40), np.uint8)
    levels[3:10, 3:10], levels[3:10, 20:30] = 255, 85
    assert kind_of(file(Image.fromarray(levels))) == "soft"
    np.testing.assert_array_equal(find_lesion(levels).mask, levels > 0)
    speck = levels.copy()
    speck[3:10, 20:30] = 0
    speck[15, 35] = 85  # a single pixel has no even inside
    np.testing.assert_array_equal(find_lesion(speck).mask, speck == 255)


def test_a_soft_mask_can_be_inverted() -> None:
    levels = np.array([[255, 200, 60, 0]], np.uint8)
    assert find_lesion(levels, inverted=True).mask.tolist() == [[False, False, True, True]]


def test_colours_and_palettes_count_by_their_brightest_band() -> None:
    pixels = np.zeros((2, 4, 3), np.uint8)
    pixels[0, 0], pixels[0, 1], pixels[1, 3] = (0, 0, 255), (0, 140, 0), (40, 40, 60)
    assert read.read_mask(file(Image.fromarray(pixels)), "m").tolist() == [
        [True, True, False, False],
        [False] * 4,
    ]
    palette = Image.frombytes("P", (3, 1), bytes([0, 1, 2]))
    palette.putpalette([0, 0, 0, 200, 0, 0, 0, 60, 0])
    assert read.read_mask(file(palette), "m").tolist() == [[False, True, False]]


@pytest.mark.parametrize("colour", ["green", "red"])
def test_the_colours_of_a_jpeg_are_told_apart_despite_their_noise(colour: str) -> None:
    pixels = np.zeros((*MASK.shape, 3), np.uint8)
    pixels[MASK] = (0, 255, 0) if colour == "green" else (255, 0, 0)
    data = file(Image.fromarray(pixels), "JPEG", quality=80)
    got = read_coloured_mask(data, "m", colour)
    assert abs(int(got.sum()) - int(MASK.sum())) <= 0.02 * MASK.sum()
    white = file(Image.fromarray(MASK.astype(np.uint8) * 255).convert("RGB"), "JPEG")
    for either in ("green", "red"):
        got = read_coloured_mask(white, "m", either)
        assert abs(int(got.sum()) - int(MASK.sum())) <= 0.02 * MASK.sum()
    with pytest.raises(DataError, match="more of the other class's colour"):
        read_coloured_mask(data, "m", "red" if colour == "green" else "green")


def test_pixels_that_are_no_numbers_are_refused() -> None:
    broken = np.array([[0, np.nan]], np.float32)
    with pytest.raises(DataError, match="m cannot be read: it has pixels that are no numbers"):
        read.read_mask(file(Image.fromarray(broken), "TIFF"), "m")
