"""Files of several pages or frames, and files with an EXIF orientation."""

import io

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from mtil.data.images import read
from mtil.errors import DataError

GRAY = np.random.default_rng(0).integers(0, 256, (24, 36), dtype=np.uint8)
PAGES = [Image.fromarray(GRAY), Image.fromarray(GRAY[:, ::-1].copy())]
INVERSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""Transposition of an upright image for each EXIF orientation."""


def file(image: Image.Image, kind: str, **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "PNG", "WEBP", "MPO"])
def test_several_pages_are_refused(kind: str) -> None:
    data = file(PAGES[0], kind, save_all=True, append_images=PAGES[1:])
    with pytest.raises(DataError, match="single page or frame, but x holds several; save"):
        read.read_gray(data, "x")
    with pytest.raises(DataError, match="single page or frame, but x holds several; save"):
        read.read_mask(data, "x")


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "PNG"])
def test_a_single_page_is_read(kind: str) -> None:
    data = file(PAGES[0], kind, save_all=True)
    np.testing.assert_array_equal(read.read_gray(data, "x"), GRAY)


@pytest.mark.parametrize("preview_first", [False, True])
@pytest.mark.parametrize("tag", [(254, 1), (254, 4), (255, 2)])
def test_a_preview_in_a_tiff_is_no_page(tag: tuple[int, int], preview_first: bool) -> None:
    small = PAGES[0].resize((12, 8))
    pages = [small, PAGES[0]] if preview_first else [PAGES[0], small]
    infos = []
    for page in pages:
        info = ImageFileDirectory_v2()
        if page is small:
            info[tag[0]] = tag[1]
        infos.append(info)
    sink = io.BytesIO()
    from PIL.TiffImagePlugin import AppendingTiffWriter

    with AppendingTiffWriter(sink, True) as writer:
        for page, info in zip(pages, infos, strict=True):
            page.save(writer, "TIFF", tiffinfo=info)
            writer.newFrame()
    np.testing.assert_array_equal(read.read_gray(sink.getvalue(), "x"), GRAY)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_images_and_masks_are_turned_upright(kind: str, orientation: int) -> None:
    tags = Image.Exif()
    tags[0x0112] = orientation
    held = PAGES[0]
    if orientation > 1:
        held = held.transpose(INVERSE[orientation])
    options = {"lossless": True} if kind == "WEBP" else {}
    data = file(held, kind, exif=tags.tobytes() if kind != "TIFF" else tags, **options)
    got = read.read_gray(data, "x")
    assert np.abs(got.astype(int) - GRAY).max() <= (1 if kind == "WEBP" else 0)
    mask = Image.fromarray(GRAY > 128)
    if orientation > 1:
        mask = mask.transpose(INVERSE[orientation])
    if kind != "WEBP":  # WEBP has no masks of one bit
        data = file(mask, kind, exif=tags.tobytes() if kind != "TIFF" else tags)
        np.testing.assert_array_equal(read.read_mask(data, "x"), GRAY > 128)


def test_a_jpeg_is_turned_upright() -> None:
    smooth = np.add.outer(np.arange(40), 2 * np.arange(60)).astype(np.uint8)
    tags = Image.Exif()
    tags[0x0112] = 6
    held = Image.fromarray(smooth).transpose(Image.Transpose.ROTATE_90)
    got = read.read_gray(file(held, "JPEG", quality=95, exif=tags.tobytes()), "x")
    assert got.shape == smooth.shape
    assert np.abs(got.astype(int) - smooth).max() < 6


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"nonsense"])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_metadata_that_cannot_be_read_turn_nothing(exif: bytes) -> None:
    np.testing.assert_array_equal(read.read_gray(file(PAGES[0], "PNG", exif=exif), "x"), GRAY)


@pytest.mark.parametrize("value", [0, 9, 200])
def test_an_orientation_that_is_none_turns_nothing(value: int) -> None:
    tags = Image.Exif()
    tags[0x0112] = value
    data = file(PAGES[0], "PNG", exif=tags.tobytes())
    np.testing.assert_array_equal(read.read_gray(data, "x"), GRAY)
