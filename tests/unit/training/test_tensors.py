"""Stored bytes to tensors: values, bits and sizes worked by hand."""

import dataclasses

import numpy as np
import pytest
import torch

from mtil.data.dataset.batches import Batch
from mtil.data.images.read import pack_mask
from mtil.models.windows import Window
from mtil.training.tensors import blend_teacher, resize_images, to_tensors

CPU = torch.device("cpu")


def _batch(image: np.ndarray, mask: np.ndarray, label: list[int] | None = None) -> Batch:
    return Batch(
        sample_id=[f"{index}" for index in range(len(image))],
        image=image.astype(np.uint8),
        mask=np.packbits(mask.astype(np.uint8).reshape(len(mask), -1), axis=1),
        label=np.array(label or [0] * len(image), np.int64),
    )


def _example(side: int = 8) -> Batch:
    """A ramp of gray values, and a lesion in the lower left quarter of the second image."""
    image = np.arange(2 * side * side).reshape(2, side, side)
    mask = np.zeros((2, side, side))
    mask[1, side // 2 :, : side // 2] = 1
    return _batch(image, mask, [2, 1])


def test_bytes_become_shares_and_bits_become_a_mask() -> None:
    image, mask, label, prior, *others = to_tensors(_example(), 8, CPU)
    assert image.shape == mask.shape == (2, 1, 8, 8)
    assert image.dtype == mask.dtype == torch.float32
    assert label.dtype == torch.int64
    assert image[0, 0, 0].tolist() == pytest.approx([n / 255 for n in range(8)])
    assert image[1, 0, 7, 7] == pytest.approx(127 / 255)
    assert not mask[0].any()
    assert mask[1, 0, 4:, :4].all()
    assert mask[1].sum() == 16
    assert label.tolist() == [2, 1]
    assert prior is None
    assert others == [None, None, None]


def test_black_is_zero_and_white_is_one_exactly() -> None:
    image = np.zeros((1, 8, 8))
    image[0, :, 4:] = 255
    for size in (8, 32):
        made = to_tensors(_batch(image, image > 0), size, CPU).image
        assert (float(made.min()), float(made.max())) == (0.0, 1.0)


def test_the_first_pixel_is_the_highest_bit() -> None:
    batch = Batch(
        ["a"],
        np.zeros((1, 8, 8), np.uint8),
        np.array([[0b10010000, *[0] * 7]], np.uint8),
        _labels(),
    )
    assert to_tensors(batch, 8, CPU).mask[0, 0].nonzero().tolist() == [[0, 0], [0, 3]]


def _labels() -> np.ndarray:
    return np.array([1], np.int64)


def test_masks_are_read_as_they_are_stored() -> None:
    mask = np.random.default_rng(0).random((32, 32)) < 0.3
    packed = np.frombuffer(pack_mask(mask), np.uint8)[None]
    batch = Batch(["a"], np.zeros((1, 32, 32), np.uint8), packed, _labels())
    np.testing.assert_array_equal(to_tensors(batch, 32, CPU).mask[0, 0].numpy() == 1, mask)


def test_halving_averages_in_a_triangle_of_twice_the_width() -> None:
    """With antialiasing, the 4 nearest columns weigh 1, 3, 3 and 1 eighths in an output pixel."""
    columns = np.zeros((1, 8, 8))
    columns[0, :, 2] = 255
    made = to_tensors(_batch(columns, columns * 0), 4, CPU).image[0, 0]
    expected = torch.tensor([1 / 7, 3 / 8, 0, 0])  # at the border a column is missing: 3, 3, 1
    torch.testing.assert_close(made, expected.expand(4, 4))


def test_a_resized_mask_is_where_half_a_pixel_is_lesion() -> None:
    mask = np.zeros((1, 8, 8))
    mask[0, :, :3] = 1
    made = to_tensors(_batch(mask, mask), 4, CPU).mask[0, 0]
    assert made.unique().tolist() == [0, 1]
    assert made[0].tolist() == [1, 1, 0, 0]  # the second column is 1/8 + 3/8: half counts
    mask[0, :, 2] = 0
    assert to_tensors(_batch(mask, mask), 4, CPU).mask[0, 0, 0].tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("size", [32, 96])
def test_any_size_stays_in_range_and_in_place(size: int) -> None:
    image, mask, *_ = to_tensors(_example(64), size, CPU)
    assert image.shape == mask.shape == (2, 1, size, size)
    assert float(image.min()) >= 0
    assert float(image.max()) <= 1
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    half = size // 2
    assert mask[1, 0, half:, :half].all()
    assert mask.sum() == half**2


def test_read_only_arrays_are_taken_and_not_changed() -> None:
    batch = _example()
    for array in (batch.image, batch.mask):
        array.flags.writeable = False
    image, mask, *_ = to_tensors(batch, 8, CPU)
    image.zero_()
    mask.fill_(1)
    again = to_tensors(batch, 8, CPU)
    assert again.image.any()
    assert again.mask.sum() == 16


def test_images_of_any_shape_become_square() -> None:
    made = resize_images(torch.full((3, 1, 20, 50), 51, dtype=torch.uint8), 32)
    assert made.shape == (3, 1, 32, 32)
    torch.testing.assert_close(made, torch.full_like(made, 0.2))


def _with_prior(batch: Batch, prior: np.ndarray) -> Batch:
    return dataclasses.replace(batch, prior=prior.astype(np.uint8))


def test_a_prior_map_becomes_probabilities_at_the_input_size() -> None:
    """At double size, a column mixes 3/4 of the nearer and 1/4 of the farther column."""
    columns = np.zeros((2, 4, 4))
    columns[1, :, 2] = 255
    batch = _with_prior(_example(), columns)
    batch.prior.flags.writeable = False
    made = to_tensors(batch, 8, CPU)
    assert made.prior.shape == (2, 1, 8, 8)
    assert made.prior.dtype == torch.float32
    assert not made.prior[0].any()
    expected = torch.tensor([0, 0, 0, 0.25, 0.75, 0.75, 0.25, 0])
    torch.testing.assert_close(made.prior[1, 0], expected.expand(8, 8))
    for one, other in zip(made[:3], to_tensors(_example(), 8, CPU)[:3], strict=True):
        assert torch.equal(one, other)


def test_every_byte_of_a_prior_map_is_its_share_of_255() -> None:
    prior = np.arange(64).reshape(1, 8, 8) * 4 + 3
    batch = _with_prior(_batch(np.zeros((1, 8, 8)), np.zeros((1, 8, 8))), prior)
    made = to_tensors(batch, 8, CPU).prior
    np.testing.assert_allclose(made[:, 0].numpy(), prior / 255, rtol=1e-6)
    assert float(made.max()) == 1


def test_a_window_is_cut_before_it_is_resized() -> None:
    """A window of 4 x 4 pixels, a quarter of the image, is enlarged to double size."""
    columns = np.zeros((2, 8, 8))
    columns[:, :, 4:] = 255
    batch = _with_prior(_batch(columns, columns > 0, [1, 1]), columns)
    made = to_tensors(batch, 8, CPU, windows=[None, Window(2, 3, 4)])
    assert torch.equal(made.image[0], to_tensors(batch, 8, CPU).image[0])
    # The window has 1 dark and 3 bright columns, at double size 0, 1/4, 3/4, 1, …
    expected = torch.tensor([0, 0.25, 0.75, 1, 1, 1, 1, 1])
    torch.testing.assert_close(made.image[1, 0], expected.expand(8, 8))
    torch.testing.assert_close(made.prior[1, 0], expected.expand(8, 8))
    assert made.mask[1, 0, 0].tolist() == [0, 0, 1, 1, 1, 1, 1, 1]
    assert made.zoom.tolist() == [0.0, 1.0]


def test_a_window_without_a_lesion_is_normal() -> None:
    batch = _example()  # the second image's lesion lies at the lower left
    windows = [Window(0, 0, 4), Window(0, 4, 4)]
    assert to_tensors(batch, 8, CPU, windows=windows).label.tolist() == [2, 2]
    assert to_tensors(batch, 8, CPU, windows=[None, Window(4, 0, 4)]).label.tolist() == [2, 1]


def test_a_smaller_prior_map_is_cut_at_the_same_place() -> None:
    columns = np.zeros((1, 8, 8))
    columns[0, :, 4:] = 255
    small = np.zeros((1, 4, 4))
    small[0, :, 2:] = 255
    batch = _with_prior(_batch(columns, columns > 0), small)
    made = to_tensors(batch, 8, CPU, windows=[Window(0, 4, 4)])
    # The stored map doubles to 0, 0, 0, 1/4, 3/4, 1, 1, 1 columns; the window begins in the fifth.
    assert made.prior[0, 0, 0, -1] == 1
    assert made.prior.min() == pytest.approx(191 / 255)


def test_a_teacher_is_mixed_into_the_targets() -> None:
    """With a teacher weight of 1/4, mask pixels are 0.75 or 0, plus a quarter of the map."""
    stored = _example()  # a normal image, and a malignant one with a lesion at the lower left
    batch = to_tensors(stored, 8, CPU)
    lesion = np.full((2, 8, 8), 51, np.uint8)  # a fifth
    mixed = blend_teacher(batch, lesion, np.array([0.9, 0.6]), 0.25, 8)
    assert mixed.mask[1, 0, 7, 0].item() == pytest.approx(0.75 + 0.05)
    assert mixed.mask[1, 0, 0, 7].item() == pytest.approx(0.05)
    assert mixed.malignant.tolist() == pytest.approx([0.0, 0.75 + 0.15])
    assert torch.equal(mixed.image, batch.image)


def test_a_teacher_s_map_is_cut_as_the_image_is() -> None:
    columns = np.zeros((1, 8, 8))
    columns[0, :, 4:] = 255
    windows = [Window(2, 3, 4)]
    batch = to_tensors(_batch(columns, columns > 0, [1]), 8, CPU, windows=windows)
    teacher = columns.astype(np.uint8)
    mixed = blend_teacher(batch, teacher, np.array([1.0]), 1.0, 8, windows)
    torch.testing.assert_close(mixed.mask, batch.image)
    small = blend_teacher(batch, teacher[:, ::2, ::2], np.array([1.0]), 1.0, 8, windows)
    assert small.mask.shape == batch.mask.shape
    assert small.mask[0, 0, :, 0].max() < small.mask[0, 0, :, -1].min()
