"""The audit compares tissue, without screen furniture and blank surroundings."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw

from mtil import phantom
from mtil.data.audit.duplicates import Description, describe_image, find_near_copies
from mtil.data.audit.duplicates.tissue import Box, find_tissue_box
from mtil.data.prepare.staging import STAGING_VERSION, read_kept_facts
from mtil.storage import LocalStore

Gray = npt.NDArray[np.uint8]

WIDTH, HEIGHT = 640, 480
COUNT = 12


@pytest.fixture(scope="module")
def images() -> list[Gray]:
    return [phantom.draw_phantom(5, patient, 256).gray for patient in range(COUNT)]


def _placed(gray: Gray, share: float, background: int, place: tuple[int, int]) -> tuple[Gray, Box]:
    """Put an image on a screen; return the screen and the image's box."""
    width = int((share * WIDTH * HEIGHT * 1.2) ** 0.5)
    height = int(share * WIDTH * HEIGHT / width)
    top, left = (HEIGHT - height) // 2 + place[0], (WIDTH - width) // 2 + place[1]
    screen = Image.new("L", (WIDTH, HEIGHT), background)
    screen.paste(Image.fromarray(gray).resize((width, height)), (left, top))
    return np.asarray(screen), (top, left, top + height, left + width)


def _furnished(screen: Gray, box: Box, number: int) -> Gray:
    """Draw screen furniture around an image: text, a logo, a gray bar, a scale, the depth."""
    image = Image.fromarray(screen)
    pen = ImageDraw.Draw(image)
    ink = 230 if screen[0, 0] < 128 else 20
    top, _, bottom, right = box
    pen.rectangle((0, 0, WIDTH, 16), fill=(int(screen[0, 0]) + 60) % 256)
    pen.text((6, 3), f"CLINIC 0815  BREAST L12-5  10:{number:02}:33", fill=ink)
    pen.ellipse((WIDTH - 36, 20, WIDTH - 12, 36), outline=ink, width=2)
    pen.text((4, HEIGHT - 12), f"MI 1.{number % 10} TIS 0.2", fill=ink)
    for line in range(8):
        pen.text((4, 60 + 12 * line), f"Gn {50 + line * number % 9}", fill=ink)
    bar = np.repeat(np.linspace(255, 0, 180).astype(np.uint8)[:, None], 10, axis=1)
    image.paste(Image.fromarray(bar), (WIDTH - 14, 130))
    for tick in range(top, bottom, 12):
        pen.line((right + 8, tick, right + 13, tick), fill=ink)
    pen.text((right + 14, bottom - 10), f"{3 + number / 2:.1f}", fill=ink)
    return np.asarray(image)


def _recoded(gray: Gray) -> Gray:
    sink = io.BytesIO()
    Image.fromarray(gray).save(sink, "JPEG", quality=60)
    return np.asarray(Image.open(sink))


def _noisy(gray: Gray) -> Gray:
    noise = np.random.default_rng(int(gray.sum())).normal(0, 4, gray.shape)
    return (gray + noise).round().clip(0, 255).astype(np.uint8)


def _sector(gray: Gray) -> Gray:
    """Blacken the corners outside the view of a curved probe."""
    height, width = gray.shape
    rows, columns = np.mgrid[:height, :width]
    down, across = rows + 0.33 * height, columns - width / 2
    radius = np.hypot(down, across)
    seen = (radius > 0.38 * height) & (radius < 1.3 * height)
    return np.where(seen & (np.abs(np.arctan2(across, down)) < 0.5), gray, 0).astype(np.uint8)


def _split(gray: Gray) -> Gray:
    """Blacken a band between two regions."""
    shown = gray.copy()
    shown[:, int(0.42 * gray.shape[1]) : int(0.58 * gray.shape[1])] = 0
    return shown


def _brighter(gray: Gray) -> Gray:
    return (gray * 1.15).clip(0, 255).astype(np.uint8)


def _pairs(images: list[Gray], contents: Gray | None = None) -> list[tuple[int, int]]:
    found = [describe_image(gray) for gray in images]
    hashes, thumbs = (
        np.stack([getattr(one, name) for one in found]) for name in ("hashes", "thumb")
    )
    return [(pair.i, pair.j) for pair in find_near_copies(hashes, thumbs, contents=contents)]


def _screen(gray: Gray, number: int, share: float = 0.5, background: int = 0) -> Gray:
    place = (7 * number % 23 - 5, 11 * number % 37 - 18)
    return _furnished(*_placed(gray, share, background, place), number)


def test_tissue_that_fills_an_image_is_described_as_it_is(images: list[Gray]) -> None:
    for gray in images:
        assert find_tissue_box(gray) == (0, 0, *gray.shape)
        whole = Image.fromarray(gray).resize((64, 64), Image.Resampling.BILINEAR, reducing_gap=3)
        np.testing.assert_array_equal(describe_image(gray).thumb, np.asarray(whole))


@pytest.mark.parametrize("background", [0, 30, 128, 250])
@pytest.mark.parametrize("share", [0.2, 0.35, 0.5, 0.7])
@pytest.mark.parametrize("change", [np.copy, _recoded, _noisy])
def test_the_box_is_that_of_the_tissue(
    images: list[Gray], share: float, background: int, change: Callable[[Gray], Gray]
) -> None:
    for number, gray in enumerate(images[:3]):
        screen, box = _placed(gray, share, background, (-10 + 9 * number, 15 - 20 * number))
        for shown in (screen, _furnished(screen, box, number)):
            found = find_tissue_box(change(shown))
            assert found is not None
            assert np.abs(np.subtract(found, box)).max() <= 8  # pixels, on a screen of 640 x 480


@pytest.mark.parametrize(
    "shown",
    [
        lambda gray, number: _placed(gray, 0.35, 0, (0, 0))[0],
        lambda gray, number: _placed(gray, 0.5, 255, (0, 0))[0],
        lambda gray, number: _noisy(_placed(gray, 0.35, 30, (0, 0))[0]),
        lambda gray, number: _screen(gray, number),
        lambda gray, number: _recoded(_screen(gray, number, 0.4, 240)),
        lambda gray, number: _sector(gray),
        lambda gray, number: _screen(_sector(gray), number),
        lambda gray, number: _split(gray),
    ],
    ids=["black", "white", "noisy", "vendor", "jpeg", "sector", "sector on screen", "two regions"],
)
def test_other_images_on_the_same_screen_are_no_near_copies(
    images: list[Gray], shown: Callable[[Gray, int], Gray]
) -> None:
    assert _pairs([shown(gray, number) for number, gray in enumerate(images)]) == []


def test_near_copies_are_found_whatever_screen_they_are_on(images: list[Gray]) -> None:
    copies = [
        _screen(images[0], 0, 0.4),
        _screen(_brighter(images[1]), 1, 0.6, 200),
        _recoded(_screen(images[2], 2, 0.3)),
        _screen(images[3][:, ::-1], 3, 0.5),
        _noisy(_placed(images[4], 0.35, 90, (20, 30))[0]),
        _screen(images[5], 5, 0.35, 255),
    ]
    originals = [*images[:5], _screen(images[5], 40, 0.6), *images[6:]]
    assert _pairs(originals + copies) == [(number, number + COUNT) for number in range(6)]


def test_near_copies_of_sectors_are_found(images: list[Gray]) -> None:
    sectors = [_sector(gray) for gray in images]
    copies = [_brighter(sectors[0]), _screen(sectors[1], 1), _recoded(_screen(sectors[2], 2, 0.35))]
    assert _pairs(sectors + copies) == [(number, number + COUNT) for number in range(3)]


def test_screens_without_tissue_are_paired_only_if_they_are_equal() -> None:
    black = np.zeros((HEIGHT, WIDTH), np.uint8)
    box = (90, 150, 390, 490)
    screens = [_furnished(black, box, number) for number in (1, 2, 2, 3)]
    assert all(find_tissue_box(screen) is None for screen in screens)
    assert not any(describe_image(screen).hashes.any() for screen in screens)
    assert _pairs(screens) == [(1, 2)]
    dark = [np.full((HEIGHT, WIDTH), 3, np.uint8) for _ in range(3)]
    contents = np.array([[1], [2], [1]], np.uint8)
    assert _pairs(dark, contents) == [(0, 2)]


def test_very_dark_tissue_is_described(images: list[Gray]) -> None:
    dark = [(gray / 10).astype(np.uint8) for gray in images]
    assert all(describe_image(gray).hashes.any() for gray in dark)
    assert _pairs(dark + images[:2]) == [(0, COUNT), (1, COUNT + 1)]


def test_facts_that_described_margins_are_brought_up_to_date(
    tmp_path: Path, images: list[Gray]
) -> None:
    screens = [_placed(gray, 0.5, 0, (0, 0))[0] for gray in images]
    thumbs = [
        Image.fromarray(gray).resize((64, 64), Image.Resampling.BILINEAR, reducing_gap=3)
        for gray in [*screens, images[0]]
    ]
    table = pa.table(
        {
            "sample_id": [str(number) for number in range(COUNT + 1)],
            "label": pa.array([0] * (COUNT + 1), pa.int8()),
            "sha256": pa.array([b"\1" * 32] * (COUNT + 1), pa.binary(32)),
            "mask_sha256": pa.array([b"\1" * 32] * (COUNT + 1), pa.binary(32)),
            "source": [""] * (COUNT + 1),
            "patient": pa.nulls(COUNT + 1, pa.string()),
            "published": pa.nulls(COUNT + 1, pa.string()),
            "given": pa.nulls(COUNT + 1, pa.string()),
            "hashes": pa.array([b"\1" * 8 * 81] * (COUNT + 1), pa.binary(8 * 81)),
            "thumb": pa.array([thumb.tobytes() for thumb in thumbs], pa.binary(64 * 64)),
        }
    )
    store = LocalStore(str(tmp_path))
    pq.write_table(
        table.replace_schema_metadata({b"format": str(STAGING_VERSION).encode()}),
        tmp_path / "facts.parquet",
    )
    found = read_kept_facts(store, "facts.parquet", {}).to_pylist()
    before = [
        Description(
            np.frombuffer(row["hashes"], np.uint64),
            np.frombuffer(row["thumb"], np.uint8).reshape(64, 64),
        )
        for row in found
    ]
    np.testing.assert_array_equal(before[-1].thumb, describe_image(images[0]).thumb)
    np.testing.assert_array_equal(before[-1].hashes, describe_image(images[0]).hashes)
    everything = before[:-1] + [describe_image(gray) for gray in images]
    pairs = find_near_copies(
        np.stack([one.hashes for one in everything]), np.stack([one.thumb for one in everything])
    )
    assert [(p.i, p.j) for p in pairs] == [(number, number + COUNT) for number in range(COUNT)]
