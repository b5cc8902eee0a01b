"""Near-copies: edits of an image are found, different images are not."""

import io
import resource
from collections.abc import Callable
from dataclasses import fields

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage
from scipy.fft import dctn

from mtil.data.audit.duplicates import (
    NUM_HASHES,
    THUMB_SIDE,
    DiskArray,
    IndexPair,
    alignment,
    candidates,
    describe_image,
    find_near_copies,
)
from mtil.data.audit.duplicates.description import flatten_contrast, mirror_hashes
from mtil.errors import StorageError

Gray = npt.NDArray[np.uint8]
Edit = Callable[[Gray, np.random.Generator], Gray]


def _tissue(seed: int, height: int = 150, width: int = 190) -> Gray:
    """Draw random layers, blobs and a dark lesion under speckle."""
    rng = np.random.default_rng((seed, 77))
    y, x = np.mgrid[:height, :width]
    echo = 60.0 - 40.0 * y / height  # the decay with depth, common to all images
    for _ in range(3):
        wave = ndimage.gaussian_filter1d(rng.standard_normal(width), 20) * 120
        echo += rng.uniform(-25, 25) * (y > height * rng.uniform(0.1, 0.9) + wave)
    for _ in range(14):
        row, column = rng.uniform(0, height), rng.uniform(0, width)
        spread = rng.uniform(4, 18, 2)
        bump = np.exp(-(((y - row) / spread[0]) ** 2) - ((x - column) / spread[1]) ** 2)
        echo += rng.uniform(-35, 45) * bump
    row, column = rng.uniform(0.35, 0.65) * height, rng.uniform(0.3, 0.7) * width
    echo[np.hypot((y - row) * rng.uniform(1, 1.7), x - column) < rng.uniform(15, 35)] -= 40
    speckle = ndimage.gaussian_filter(rng.rayleigh(1, (height, width)), (0.8, 1.2))
    return ((echo + 60) * (0.3 + 0.55 * speckle)).clip(0, 255).astype(np.uint8)


def _jpeg(gray: Gray, rng: np.random.Generator) -> Gray:
    sink = io.BytesIO()
    Image.fromarray(gray).save(sink, "JPEG", quality=int(rng.integers(40, 91)))
    return np.asarray(Image.open(sink))


def _resize(gray: Gray, rng: np.random.Generator) -> Gray:
    height, width = (round(side * rng.uniform(0.5, 1.5)) for side in gray.shape)
    return np.asarray(Image.fromarray(gray).resize((width, height), Image.Resampling.BICUBIC))


def _crop(gray: Gray, rng: np.random.Generator) -> Gray:
    (top, bottom), (left, right) = (side * rng.uniform(0.01, 0.06, 2) for side in gray.shape)
    height, width = gray.shape
    return gray[int(top) : height - int(bottom), int(left) : width - int(right)]


def _brightness(gray: Gray, rng: np.random.Generator) -> Gray:
    return (gray * rng.uniform(0.8, 1.2)).clip(0, 255).astype(np.uint8)


def _contrast(gray: Gray, rng: np.random.Generator) -> Gray:
    return ((gray - 128.0) * rng.uniform(0.75, 1.3) + 128).clip(0, 255).astype(np.uint8)


def _gamma(gray: Gray, rng: np.random.Generator) -> Gray:
    return (255 * (gray / 255) ** rng.uniform(0.7, 1.4)).astype(np.uint8)


def _flip(gray: Gray, rng: np.random.Generator) -> Gray:
    return np.ascontiguousarray(gray[:, ::-1])


def _marks(gray: Gray, rng: np.random.Generator) -> Gray:
    image = Image.fromarray(gray)
    draw = ImageDraw.Draw(image)
    for _ in range(4):
        x, y = (int(rng.uniform(0.2, 0.8) * side) for side in image.size)
        draw.line((x - 3, y, x + 3, y), 255)
        draw.line((x, y - 3, x, y + 3), 255)
    draw.text((0.1 * image.width, 0.85 * image.height), "D 12.3 mm", fill=255)
    return np.asarray(image)


def _flip_and_crop(gray: Gray, rng: np.random.Generator) -> Gray:
    return _flip(_crop(gray, rng), rng)


def _several(gray: Gray, rng: np.random.Generator) -> Gray:
    for edit in (_flip, _crop, _gamma, _resize, _jpeg):
        gray = edit(gray, rng)
    return gray


EDITS: tuple[Edit, ...] = (
    *(_jpeg, _resize, _crop, _brightness, _contrast, _gamma, _flip, _marks, _flip_and_crop),
    _several,
)


def _stacked(images: list[Gray]) -> tuple[npt.NDArray[np.uint64], Gray]:
    found = [describe_image(gray) for gray in images]
    return np.stack([one.hashes for one in found]), np.stack([one.thumb for one in found])


def _pairs(images: list[Gray]) -> list[IndexPair]:
    return find_near_copies(*_stacked(images))


@pytest.fixture(scope="module")
def images() -> list[Gray]:
    return [_tissue(seed) for seed in range(60)]


def test_edits_of_every_kind_are_found_and_nothing_else(images: list[Gray]) -> None:
    rng = np.random.default_rng(3)
    edited = [EDITS[index % len(EDITS)](gray, rng) for index, gray in enumerate(images)]
    pairs = _pairs(images + edited)
    assert [(pair.i, pair.j) for pair in pairs] == [(index, index + 60) for index in range(60)]
    by_edit = {EDITS[pair.i % len(EDITS)]: set[str]() for pair in pairs}
    for pair in pairs:
        by_edit[EDITS[pair.i % len(EDITS)]].add(pair.kind)
    turned = (_flip, _flip_and_crop, _several)
    assert by_edit == {edit: {"mirrored" if edit in turned else "edited"} for edit in EDITS}


@pytest.mark.parametrize(("start", "end"), [(0.08, 0.0), (0.0, 0.08), (0.07, 0.07), (0.05, 0.03)])
def test_crops_of_either_image_on_any_side_are_found(
    images: list[Gray], start: float, end: float
) -> None:
    def cropped(gray: Gray, a: float, b: float) -> Gray:
        (top, left), (bottom, right) = ([int(side * x) for side in gray.shape] for x in (a, 1 - b))
        return gray[top:bottom, left:right]

    some = images[:20]
    pairs = _pairs([cropped(gray, start, end) for gray in some] + some)
    assert [(pair.i, pair.j) for pair in pairs] == [(index, index + 20) for index in range(20)]


def test_equal_images_are_paired_with_the_first_of_them(images: list[Gray]) -> None:
    pairs = _pairs([images[0], images[1], images[0], images[0]])
    assert pairs == [IndexPair(0, 2, 0, 1.0, "equal"), IndexPair(0, 3, 0, 1.0, "equal")]


def test_twins_are_joined_to_an_edit_through_the_first(images: list[Gray]) -> None:
    edited = _brightness(images[0], np.random.default_rng(0))
    pairs = _pairs([images[1], images[0], images[0], edited])
    assert [(pair.i, pair.j, pair.kind) for pair in pairs] == [(1, 2, "equal"), (1, 3, "edited")]


def test_the_order_of_the_images_changes_only_the_indices(images: list[Gray]) -> None:
    rng = np.random.default_rng(5)
    hashes, thumbs = _stacked(images[:20] + [_several(gray, rng) for gray in images[:20]])
    pairs = find_near_copies(hashes, thumbs)
    order = rng.permutation(40)
    back = {
        (*sorted((int(order[pair.i]), int(order[pair.j]))), pair.distance, pair.kind): pair
        for pair in find_near_copies(hashes[order], thumbs[order])
    }
    assert len(pairs) == 20
    assert {(pair.i, pair.j, pair.distance, pair.kind) for pair in pairs} == set(back)
    for pair in pairs:
        twin = back[pair.i, pair.j, pair.distance, pair.kind]
        assert twin.correlation == pytest.approx(pair.correlation, abs=2e-4)


def test_known_images_are_not_compared_with_one_another_again(images: list[Gray]) -> None:
    rng = np.random.default_rng(6)
    known = [*images[:6], _jpeg(images[0], rng), images[1]]
    new = [_flip(images[2], rng), images[3], *images[6:9], _crop(images[7], rng)]
    hashes, thumbs = _stacked(known + new)
    everything = [(pair.i, pair.j) for pair in find_near_copies(hashes, thumbs)]
    assert everything == [(0, 6), (1, 7), (2, 8), (3, 9), (11, 13)]
    pairs = find_near_copies(hashes, thumbs, num_known=8)
    assert [(pair.i, pair.j) for pair in pairs] == [(2, 8), (3, 9), (11, 13)]


def test_descriptions_may_wait_on_the_disk(images: list[Gray]) -> None:
    hashes, thumbs = _stacked([*images[:5], _several(images[2], np.random.default_rng(1))])
    with (
        DiskArray((NUM_HASHES,), np.uint64) as bits,
        DiskArray((THUMB_SIDE, THUMB_SIDE), np.uint8) as pictures,
    ):
        for part in (slice(4), slice(4, 4), slice(4, 6)):
            bits.append(hashes[part])
            pictures.append(thumbs[part])
        pairs = find_near_copies(bits, pictures)
    assert [(pair.i, pair.j) for pair in pairs] == [(2, 5)]
    assert pairs == find_near_copies(hashes, thumbs)


def test_rows_on_the_disk_are_read_by_slice_and_by_index() -> None:
    rows = np.arange(24, dtype=np.int32).reshape(4, 2, 3)
    with DiskArray((2, 3), np.int32) as held:
        held.append(rows[:3])
        held.append(rows[3:])
        assert len(held) == 4
        for at in (slice(1, 3), slice(2, 9), slice(4, 6), np.array([3, 0, 3]), np.zeros(0, int)):
            np.testing.assert_array_equal(held[at], rows[at])


def test_a_full_disk_is_said() -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with DiskArray((1000,), np.uint8) as held:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, before[1]))
        try:
            with pytest.raises(StorageError, match=r"cannot be written: .*\. Free some space"):
                held.append(np.zeros((2, 1000), np.uint8))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_images_with_nothing_to_see_are_paired_only_if_equal() -> None:
    rng = np.random.default_rng(0)
    black = [np.full((90, 120), 3, np.uint8)] * 3
    noisy = [rng.integers(0, 4, (90, 120), np.uint8) for _ in range(30)]
    pairs = _pairs(black + noisy)
    assert [(pair.i, pair.j, pair.kind) for pair in pairs] == [(0, 1, "equal"), (0, 2, "equal")]


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_images_make_no_pair(count: int) -> None:
    assert (
        find_near_copies(
            np.ones((count, NUM_HASHES), np.uint64), np.zeros((count, THUMB_SIDE, THUMB_SIDE))
        )
        == []
    )


def test_in_a_crowd_with_one_hash_each_meets_its_nearest_neighbours_only(
    images: list[Gray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "MAX_NEIGHBOURS", 3)
    hashes = np.repeat(describe_image(images[0]).hashes[None], 50, axis=0)
    found = candidates.find_candidates(hashes)
    expected = [(i, j) for i in range(50) for j in range(i + 1, min(i + 4, 50))]
    assert sorted(zip(found.i.tolist(), found.j.tolist(), strict=True)) == expected
    assert not found.mirrored.any()
    assert not found.distance.any()


def test_an_image_is_handed_on_with_a_few_others_only(images: list[Gray]) -> None:
    hashes = np.repeat(describe_image(images[0]).hashes[None], 30, axis=0)
    found = candidates.find_candidates(hashes)
    expected = [(i, j) for i in range(30) for j in range(i + 1, min(i + 9, 30))]
    assert sorted(zip(found.i.tolist(), found.j.tolist(), strict=True)) == expected


def test_an_image_is_compared_with_so_many_others_only(
    images: list[Gray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "MAX_COMPARED_IMAGES", 5)
    hashes = np.repeat(describe_image(images[0]).hashes[None], 30, axis=0)
    found = candidates.find_candidates(hashes)
    expected = [(i, j) for i in range(30) for j in range(i + 1, min(i + 6, 30))]
    assert sorted(zip(found.i.tolist(), found.j.tolist(), strict=True)) == expected


def test_of_too_many_others_the_nearest_are_compared(
    images: list[Gray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "MAX_COMPARED_IMAGES", 1)
    hashes = np.repeat(describe_image(images[0]).hashes[None], 7, axis=0)
    hashes[1:6] ^= np.uint64(0b11111 << 40)  # five bits from the first image, mutually equal
    hashes[6] ^= np.uint64(1 << 50)  # 1 bit from the first image, 6 from the rest
    found = candidates.find_candidates(hashes)
    pairs = dict(zip(found.i.tolist(), found.j.tolist(), strict=True))
    assert pairs == {0: 6, 1: 2, 2: 3, 3: 4, 4: 5, 5: 6}
    assert found.distance.tolist() == [1, 0, 0, 0, 0, 6]


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 7, 100])
def test_candidates_do_not_depend_on_how_many_are_worked_on_at_once(
    images: list[Gray], monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    rng = np.random.default_rng(11)
    crowd = [_jpeg(images[0], rng) for _ in range(6)]
    hashes, _ = _stacked(crowd + images[1:5] + [_several(gray, rng) for gray in images[1:5]])
    whole = candidates.find_candidates(hashes)
    monkeypatch.setattr(candidates, "_BATCH", batch)
    monkeypatch.setattr(candidates, "_IMAGES_PER_ARRAY", 3)
    monkeypatch.setattr(
        candidates, "MAX_NEIGHBOURS", 14
    )  # the whole crowd: batches repeat little work
    parts = candidates.find_candidates(hashes)
    assert len(whole.i) >= 19
    for field in fields(candidates.Candidates):
        expected = getattr(whole, field.name)
        np.testing.assert_array_equal(getattr(parts, field.name), expected)


def test_a_crowd_of_near_duplicates_is_one_group(
    images: list[Gray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "MAX_NEIGHBOURS", 2)
    rng = np.random.default_rng(0)
    crowd = [_jpeg(images[0], rng) for _ in range(40)] + [images[1]]
    group = np.arange(41)
    for pair in _pairs(crowd):
        group[group == group[pair.j]] = group[pair.i]
    assert len(set(group[:40].tolist())) == 1
    assert group[40] == 40


def test_a_hash_is_the_signs_of_the_lowest_cosine_coefficients(images: list[Gray]) -> None:
    described = describe_image(images[0])
    expected = dctn(flatten_contrast(described.thumb[None])[0])[:8, :8] > 0
    bits = [bool(int(described.hashes[0]) >> bit & 1) for bit in range(64)]
    assert bits[1:] == expected.ravel().tolist()[1:]
    assert not bits[0]  # the bit of the mean is always 0


def test_mirrored_hashes_are_those_of_the_mirrored_image(images: list[Gray]) -> None:
    small = [
        np.asarray(Image.fromarray(gray).resize((THUMB_SIDE, THUMB_SIDE))) for gray in images[:10]
    ]
    plain, _ = _stacked(small)
    turned, _ = _stacked([np.ascontiguousarray(gray[:, ::-1]) for gray in small])
    assert np.bitwise_count(mirror_hashes(plain) ^ turned).mean() < 0.1  # rounding near zero
    assert np.bitwise_count(plain ^ turned).mean() > 15


def test_evened_out_thumbs_do_not_depend_on_gain(images: list[Gray]) -> None:
    thumb = (describe_image(images[0]).thumb // 2)[None]
    assert np.abs(flatten_contrast(thumb + 40) - flatten_contrast(thumb)).max() < 1e-4
    ratio = np.corrcoef(flatten_contrast(thumb * 2).ravel(), flatten_contrast(thumb).ravel())
    assert ratio[0, 1] > 0.99


def test_fit_finds_the_map_of_a_crop() -> None:
    # The second image starts at a tenth of the first image: u = 0.1 + 0.9 v. With x = 2u - 1
    # and x' = 2v - 1, x' = (x - 0.1) / 0.9.
    y, x = np.mgrid[:THUMB_SIDE, :THUMB_SIDE] / THUMB_SIDE
    wavy = [np.sin(9 * a) * np.cos(11 * y) + np.cos(17 * a + 5 * y) for a in (x, 0.1 + 0.9 * x)]
    fixed, moving = (np.asarray(image[None], np.float32) for image in wavy)
    start = np.array([[0, 1, 0, 1]], np.float32)
    motion = alignment.fit_motion(fixed, moving, start, 8)
    assert motion[0] == pytest.approx([-1 / 9, 10 / 9, 0, 1], abs=0.01)
    assert alignment.correlate_aligned(fixed, moving, start)[0] < 0.9
    assert alignment.correlate_aligned(fixed, moving, motion)[0] > 0.99


def test_correlation_is_that_of_the_overlap_and_nothing_if_that_is_small() -> None:
    image = np.random.default_rng(0).standard_normal((1, THUMB_SIDE, THUMB_SIDE)).astype(np.float32)
    same = np.array([[0, 1, 0, 1]], np.float32)
    assert alignment.correlate_aligned(image, image, same)[0] == pytest.approx(1, abs=1e-4)
    assert alignment.correlate_aligned(image, -image, same)[0] == pytest.approx(-1, abs=1e-4)
    right = np.roll(image, 8, axis=2)  # by an eighth of the side: x' = x + 16 / 64
    moved = np.array([[0.25, 1, 0, 1]], np.float32)
    assert alignment.correlate_aligned(image, right, moved)[0] == pytest.approx(1, abs=1e-3)
    far = np.array([[1.0, 1, 0, 1]], np.float32)  # half of the image is outside
    assert alignment.correlate_aligned(image, np.roll(image, 32, axis=2), far)[0] == 0
