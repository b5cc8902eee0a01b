"""Image files of every kind to gray pixels and masks."""

import contextlib
import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from mtil.data.images import read
from mtil.errors import DataError
from tests.masks import read_coloured_mask, unpack_mask

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (37, 53), dtype=np.uint8)
MASK = np.zeros((37, 53), np.bool_)
MASK[10:20, 5:30] = True


def _file(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, format=kind, **options)
    return sink.getvalue()


def test_of_a_mask_of_two_colours_one_is_taken() -> None:
    pixels = np.zeros((6, 8, 3), np.uint8)
    pixels[1:4, 1:4] = (0, 255, 0)  # nine green
    pixels[4, 5:7] = (255, 0, 0)  # two red
    pixels[5, 0] = (255, 255, 255)
    found = read_coloured_mask(_file(Image.fromarray(pixels)), "x", "green")
    assert (found.sum(), found[1:4, 1:4].all(), found[5, 0]) == (10, True, True)
    with pytest.raises(DataError, match="class must be red in its mask, but x has more of"):
        read_coloured_mask(_file(Image.fromarray(pixels)), "x", "red")
    white = _file(Image.fromarray(MASK))
    np.testing.assert_array_equal(read_coloured_mask(white, "x", "red"), MASK)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA"])
def test_gray_survives_every_lossless_mode(mode: str, kind: str) -> None:
    if (mode, kind) == ("LA", "BMP"):
        kind = "PNG"  # BMP lacks the mode
    data = _file(Image.fromarray(GRAY).convert(mode), kind)
    np.testing.assert_array_equal(read.read_gray(data, "x"), GRAY)


def test_palette_and_one_bit_images_are_read() -> None:
    palette = Image.fromarray(GRAY).convert("P")
    np.testing.assert_array_equal(read.read_gray(_file(palette), "x"), GRAY)
    np.testing.assert_array_equal(read.read_gray(_file(Image.fromarray(MASK)), "x"), MASK * 255)


def test_a_palette_is_looked_up_rather_than_its_indices_taken() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 200, 200])
    assert read.read_gray(_file(image), "x").tolist() == [[200] * 4] * 4


def test_sixteen_bits_are_scaled() -> None:
    values = np.array([[0, 257, 128 * 257, 65535]], np.uint16)
    for kind in ("PNG", "TIFF"):
        gray = read.read_gray(_file(Image.fromarray(values), kind), "x")
        assert gray.tolist() == [[0, 1, 128, 255]]


@pytest.mark.parametrize(
    ("most", "full"),
    [(255, 255), (256, 1023), (1023, 1023), (1024, 4095), (4096, 16383), (16384, 65535)],
)
def test_sixteen_bits_that_hold_fewer_are_scaled_by_those(most: int, full: int) -> None:
    values = np.array([[0, most // 2, most]], np.uint16)
    expected = [round(value * 255 / full) for value in (0, most // 2, most)]
    for kind in ("PNG", "TIFF"):
        assert read.read_gray(_file(Image.fromarray(values), kind), "x").tolist() == [expected]


def test_a_black_image_of_sixteen_bits_stays_black() -> None:
    data = _file(Image.fromarray(np.zeros((3, 5), np.uint16)))
    assert read.read_gray(data, "x").tolist() == [[0] * 5] * 3


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_what_is_transparent_is_black(mode: str) -> None:
    image = Image.new("L", (4, 1), 200).convert(mode)
    image.putalpha(Image.fromarray(np.array([[0, 51, 128, 255]], np.uint8)))
    gray = read.read_gray(_file(image), "x")
    assert gray.tolist() == [[0, 40, 100, 200]]  # 200 * 51 / 255 = 40, 200 * 128 / 255 = 100.4


def test_a_transparent_colour_of_a_palette_or_of_gray_is_black() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([90, 90, 90, 200, 200, 200])
    palette.putpixel((1, 0), 1)
    assert read.read_gray(_file(palette, transparency=0), "x").tolist() == [[0, 200]]
    assert read.read_gray(_file(palette, transparency=b"\xff\x33"), "x").tolist() == [[90, 40]]
    gray = Image.fromarray(np.array([[7, 200]], np.uint8))
    assert read.read_gray(_file(gray, transparency=200), "x").tolist() == [[7, 0]]


def test_an_alpha_channel_that_nobody_set_is_passed_over() -> None:
    image = Image.fromarray(GRAY).convert("RGBA")
    image.putalpha(0)
    np.testing.assert_array_equal(read.read_gray(_file(image), "x"), GRAY)


def test_jpeg_is_close() -> None:
    smooth = np.add.outer(np.arange(40), np.arange(60)).astype(np.uint8)
    gray = read.read_gray(_file(Image.fromarray(smooth), "JPEG", quality=95), "x")
    assert np.abs(gray.astype(int) - smooth).max() < 6


def test_floating_point_pixels_are_refused() -> None:
    data = _file(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF")
    with pytest.raises(DataError, match=r"scan\.tif.*floating-point"):
        read.read_gray(data, "scan.tif")


@pytest.mark.parametrize("value", [1, 255])
@pytest.mark.parametrize("mode", ["L", "RGB", "I;16"])
def test_whatever_is_not_black_is_mask(mode: str, value: int) -> None:
    pixels = MASK.astype(np.uint16 if mode == "I;16" else np.uint8) * value
    image = Image.fromarray(pixels)
    data = _file(image.convert("RGB") if mode == "RGB" else image)
    got = read.read_mask(data, "x")
    assert got.dtype == np.bool_
    np.testing.assert_array_equal(got, MASK)


def test_one_bit_and_pure_blue_masks_are_read() -> None:
    np.testing.assert_array_equal(read.read_mask(_file(Image.fromarray(MASK)), "x"), MASK)
    blue = np.zeros((*MASK.shape, 3), np.uint8)
    blue[..., 2] = MASK  # luminance 0.114 rounds to black
    np.testing.assert_array_equal(read.read_mask(_file(Image.fromarray(blue)), "x"), MASK)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_what_is_transparent_is_no_lesion(mode: str) -> None:
    image = Image.new(mode, MASK.shape[::-1], "white")
    image.putalpha(Image.fromarray(MASK.astype(np.uint8) * 200))
    np.testing.assert_array_equal(read.read_mask(_file(image), "x"), MASK)
    palette = Image.frombytes("P", MASK.shape[::-1], MASK.astype(np.uint8).tobytes())
    palette.putpalette([255, 255, 255, 255, 0, 0])
    got = read.read_mask(_file(palette, transparency=0), "x")
    np.testing.assert_array_equal(got, MASK)


def test_a_mask_whose_alpha_channel_nobody_set_is_read() -> None:
    image = Image.fromarray(MASK.astype(np.uint8) * 255).convert("RGBA")
    image.putalpha(0)
    np.testing.assert_array_equal(read.read_mask(_file(image), "x"), MASK)


def test_ringing_of_jpeg_masks_is_no_lesion() -> None:
    data = _file(Image.fromarray(MASK.astype(np.uint8) * 255), "JPEG", quality=60)
    assert (read.read_gray(data, "x") > 0).sum() > MASK.sum() + 20
    np.testing.assert_array_equal(read.read_mask(data, "x"), MASK)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.98])
def test_truncated_files_are_refused_by_name(kind: str, share: float) -> None:
    data = _file(Image.fromarray(GRAY), kind)
    with pytest.raises(DataError, match=r"benign \(7\)\.png cannot be read"):
        read.read_gray(data[: int(len(data) * share)], "benign (7).png")


def test_every_changed_byte_of_a_png_is_refused_or_harmless() -> None:
    data = _file(Image.fromarray(GRAY[:8, :8]))
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 0x40
        got = None
        with contextlib.suppress(DataError):
            got = read.read_gray(bytes(changed), "x.png")
        assert got is None or np.array_equal(got, GRAY[:8, :8]), position


@pytest.mark.parametrize("data", [b"", b"no image at all", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(DataError, match=r"notes\.txt cannot be read"):
        read.read_mask(data, "notes.txt")


@pytest.mark.parametrize("factor", [1.5, 4.0])
def test_a_decompression_bomb_is_refused(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(GRAY.size / factor))
    with pytest.raises(DataError, match=r"at most .* pixels, but bomb\.png"):
        read.read_gray(_file(Image.fromarray(GRAY)), "bomb.png")


def test_decoders_do_not_warn_beside_the_sentence() -> None:
    code = (
        "import io, numpy\nfrom PIL import Image\nfrom mtil.data.images.read import read_gray\n"
        "sink = io.BytesIO()\nImage.new('1', (60, 40)).save(sink, format='PNG')\n"
        "Image.MAX_IMAGE_PIXELS = 1500\n"
        "try:\n    read_gray(sink.getvalue(), 'x')\nexcept ValueError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("An image must have at most 1,500 pixels, but x has 60 x 40")
    assert done.stderr == ""


def test_resizing_averages_instead_of_picking() -> None:
    stripes = np.zeros((256, 256), np.uint8)
    stripes[:, ::2] = 200
    resized = read.resize_image(stripes, 32)
    assert resized.shape == (32, 32)
    assert abs(int(resized[16, 16]) - 100) < 5
    np.testing.assert_array_equal(read.resize_image(GRAY[:32, :32], 32), GRAY[:32, :32])


def test_image_and_mask_are_resized_alike() -> None:
    mask = np.zeros((300, 200), np.bool_)
    mask[90:210, 40:120] = True
    resized = read.resize_mask(mask, 100)
    expected = np.zeros((100, 100), np.bool_)
    expected[30:70, 20:60] = True
    np.testing.assert_array_equal(resized, expected)
    np.testing.assert_array_equal(
        read.resize_image(mask.astype(np.uint8) * 255, 100) >= 128, resized
    )


def test_a_lesion_of_one_pixel_does_not_vanish() -> None:
    mask = np.zeros((1000, 800), np.bool_)
    mask[999, 400] = True
    assert np.argwhere(read.resize_mask(mask, 64)).tolist() == [[63, 32]]
    assert not read.resize_mask(np.zeros((10, 10), np.bool_), 64).any()


def test_masks_survive_png_and_packing() -> None:
    data = read.encode_mask_png(MASK)
    assert Image.open(io.BytesIO(data)).mode == "1"
    decoded = read.decode_mask_png(data)
    assert decoded.dtype == np.bool_
    np.testing.assert_array_equal(decoded, MASK)
    square = RNG.random((32, 32)) < 0.5
    packed = read.pack_mask(square)
    assert len(packed) == 32 * 32 // 8
    np.testing.assert_array_equal(unpack_mask(packed, 32), square)
    assert packed[0] >> 7 == square[0, 0]  # the first pixel is the highest bit
