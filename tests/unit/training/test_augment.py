import dataclasses

import pytest
import torch

from mtil.config import AugmentConfig, PriorConfig
from mtil.training.augment import BatchAugmentation, blur, dilate
from mtil.training.randomness import EpochRandomness

STILL = AugmentConfig(
    horizontal_flip=0, vertical_flip=0, rotation=0, scale=0, translation=0,
    brightness=0, contrast=0, gamma=0, speckle=0,
)  # fmt: skip
KEEP = PriorConfig(dropout=0, roughen=0)


def batch(size=4, height=32, width=48):
    """Images with a brighter lesion and a prior map equal to the mask."""
    torch.manual_seed(0)
    mask = torch.zeros(size, 1, height, width)
    mask[:, :, 8:20, 10:30] = 1
    image = 0.2 + 0.5 * mask + 0.1 * torch.rand(size, 1, height, width)
    return image, mask, mask.clone()


def numbers(size=4, *, first=0, seed=0):
    """Return the random numbers of `size` images with ids from `first`."""
    ids = [f"image-{index}" for index in range(first, first + size)]
    return EpochRandomness(seed, 0, torch.device("cpu")).for_images(ids)


def augmentation(config, prior=KEEP):
    """Return a function to augment a batch with the random numbers of the images."""
    change = BatchAugmentation(config, prior)
    return lambda image, *others: change(image, *others, numbers(len(image)))


def augment(prior=KEEP, **changes):
    return augmentation(dataclasses.replace(STILL, **changes), prior)


def test_switched_off_it_returns_its_input():
    image, mask, prior = batch()
    changed = augmentation(AugmentConfig(enabled=False), KEEP)(image, mask, None)
    assert changed[2] is None
    changed = augmentation(AugmentConfig(enabled=False), KEEP)(image, mask, prior)
    assert all(torch.equal(a, b) for a, b in zip(changed, (image, mask, prior), strict=True))


def test_a_map_is_dropped_and_roughened_even_if_images_are_not_changed():
    image, mask, prior = batch(size=64)
    off = AugmentConfig(enabled=False)
    dropped = augmentation(off, PriorConfig(dropout=1, roughen=0))(image, mask, prior)
    assert dropped[0] is image
    assert dropped[1] is mask
    assert not dropped[2].any()
    half = augmentation(off, PriorConfig(dropout=0.5, roughen=0))(image, mask, prior)[2]
    assert 16 < int(half.flatten(1).any(dim=1).sum()) < 48
    rough = augmentation(off, PriorConfig(dropout=0, roughen=1))(image, mask, prior)[2]
    assert not torch.equal(rough, prior)


def test_with_nothing_to_change_nothing_changes():
    for got, expected in zip(augment()(*batch()), batch(), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("key", "dim"), [("horizontal_flip", 3), ("vertical_flip", 2)])
def test_a_flip_is_exact(key, dim):
    for got, expected in zip(augment(**{key: 1.0})(*batch()), batch(), strict=True):
        torch.testing.assert_close(got, expected.flip(dim), rtol=0, atol=1e-4)


def test_a_shift_is_a_share_of_the_side():
    """The lesion's centre moves, by at most a tenth of each side."""
    _, mask, _ = batch(size=64)
    _, moved, _ = augment(translation=0.1)(*batch(size=64))
    for dim, side in ((2, 32), (3, 48)):
        axis = torch.arange(side, dtype=torch.float32)
        other = 5 - dim
        weight = moved.sum(dim=other).flatten(1)
        centre = (weight * axis).sum(dim=1) / weight.sum(dim=1)
        start = mask[0].sum(dim=other - 1).flatten()
        shift = centre - (start * axis).sum() / start.sum()
        assert shift.abs().max() <= 0.1 * side + 0.5
        assert shift.max() > 0.07 * side
        assert shift.min() < -0.07 * side


def test_scale_changes_the_area():
    _, mask, _ = batch(size=64)
    _, moved, _ = augment(scale=0.2)(*batch(size=64))
    ratio = moved.sum(dim=(1, 2, 3)) / mask[0].sum()
    assert 0.8**2 * 0.85 < ratio.min() < 0.75
    assert 1.25 < ratio.max() < 1.2**2 * 1.1


def test_aspect_changes_the_shape_and_keeps_the_area():
    """The lesion has 20 columns and 12 rows; the ratio changes by a factor from 1/1.5 to 1.5."""
    _, moved, _ = augment(aspect=0.5)(*batch(size=64))
    height, width = (moved.amax(dim=dim).flatten(1).sum(dim=1) for dim in (3, 2))
    ratio = width / height / (20 / 12)
    assert 1 / 1.5 * 0.9 < ratio.min() < 1 / 1.3
    assert 1.3 < ratio.max() < 1.5 * 1.1
    area = moved.sum(dim=(1, 2, 3)) / (12 * 20)
    assert (area - 1).abs().max() < 0.12


def test_one_transform_serves_image_mask_and_prior():
    image, mask, _ = batch(size=8, height=64, width=64)
    strong = augment(horizontal_flip=0.5, rotation=30, scale=0.2, translation=0.1)
    image, mask, prior = strong(mask.clone(), mask, mask.clone())
    torch.testing.assert_close(image, prior, rtol=0, atol=1e-5)
    assert ((image > 0.5).float() != mask).float().mean() < 0.005


def test_masks_stay_binary_and_values_stay_in_range():
    image, mask, prior = augmentation(AugmentConfig(speckle=1.0, brightness=0.8), PriorConfig())(
        *batch()
    )
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    for values in (image, prior):
        assert 0 <= values.min() <= values.max() <= 1 + 1e-6


def test_every_image_draws_its_own():
    image, mask, prior = (x[:1].expand(4, -1, -1, -1) for x in batch())
    image, mask, _ = augmentation(AugmentConfig())(image, mask, prior)
    for i in range(4):
        for j in range(i):
            assert not torch.equal(image[i], image[j])
            assert not torch.equal(mask[i], mask[j])


def test_the_seed_decides():
    change = BatchAugmentation(AugmentConfig(), PriorConfig())

    def run(seed):
        torch.rand(3)  # torch's generator has no influence
        return change(*batch(), numbers(seed=seed))

    assert all(torch.equal(a, b) for a, b in zip(run(3), run(3), strict=True))
    assert not torch.equal(run(3)[0], run(4)[0])


@pytest.mark.parametrize("sizes", [(8, 8), (1, 15), (5, 5, 6)])
def test_a_batch_is_augmented_as_its_slices_are(sizes):
    """All augmentations are on. The images are equal bit for bit."""
    strong = AugmentConfig(
        rotation=30, scale=0.2, translation=0.1, speckle=0.5, vertical_flip=0.5, noise=0.1,
        blur=0.5, low_resolution=0.5, aspect=0.3,
    )  # fmt: skip
    change = BatchAugmentation(strong, PriorConfig(dropout=0.3, roughen=0.5))
    for dtype in (torch.float32, torch.float64):
        whole = [x.to(dtype) for x in batch(size=16)]
        slices, first = [], 0
        for size, *part in zip(sizes, *(x.split(sizes) for x in whole), strict=True):
            slices.append(change(*part, numbers(size, first=first)))
            first += size
        joined = [torch.cat(parts) for parts in zip(*slices, strict=True)]
        for got, expected in zip(joined, change(*whole, numbers(16)), strict=True):
            assert got.dtype == dtype
            assert torch.equal(got, expected)


def test_float64_is_the_same_augmentation():
    """The strengths and the speckle agree; a pixel may differ by the rounding of float32."""
    change = augment(brightness=0.1, contrast=0.1, gamma=0.1, speckle=0.1)
    image, mask, _ = batch()
    single, _, _ = change(image, mask, None)
    double, _, _ = change(image.double(), mask.double(), None)
    torch.testing.assert_close(single, double.float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("key", "strength"),
    [
        ("brightness", 0.3),
        ("contrast", 0.3),
        ("gamma", 0.3),
        ("speckle", 0.3),
        ("noise", 0.3),
        ("blur", 1.0),
        ("low_resolution", 1.0),
    ],
)
def test_the_look_changes_on_the_image_only(key, strength):
    image, mask, prior = batch()
    got = augment(**{key: strength})(image, mask, prior)
    assert (got[0] - image).abs().max() > 0.02
    torch.testing.assert_close(got[1], mask)
    torch.testing.assert_close(got[2], prior, rtol=0, atol=1e-5)


def test_speckle_is_multiplicative():
    image, mask, prior = batch()
    image[..., :16, :] = 0
    got, _, _ = augment(speckle=0.5)(image, mask, prior)
    assert got[..., :16, :].abs().max() < 1e-4
    assert (got[..., 17:, :] - image[..., 17:, :]).abs().max() > 0.02


def test_noise_is_additive_and_bounded():
    """On a constant image, the standard deviation of the noise is uniform from 0 to 0.1."""
    image, mask, _ = batch(size=64)
    got = augment(noise=0.1)(torch.full_like(image, 0.5), mask, None)[0] - 0.5
    deviations = got.flatten(1).std(dim=1)
    assert deviations.max() < 0.105
    assert deviations.mean() == pytest.approx(0.05, abs=0.012)
    assert got.mean().abs() < 1e-3


@pytest.mark.parametrize("key", ["blur", "low_resolution"])
def test_a_share_of_the_images_loses_quality(key):
    image, mask, _ = batch(size=200)
    got = augment(**{key: 0.25})(image, mask, None)[0]
    # The untouched images pass the geometric transform, which is the identity up to rounding.
    changed = (got - image).flatten(1).abs().amax(dim=1) > 1e-3
    assert float(changed.float().mean()) == pytest.approx(0.25, abs=0.1)


@pytest.mark.parametrize("key", ["blur", "low_resolution"])
def test_lower_quality_takes_away_fine_structure(key):
    """A chessboard of single pixels loses contrast and keeps the mean."""
    board = ((torch.arange(32)[:, None] + torch.arange(48)) % 2).float().expand(16, 1, -1, -1)
    got = augment(**{key: 1.0})(board, torch.zeros_like(board), None)[0][..., 4:-4, 4:-4]
    assert got.flatten(1).std(dim=1).max() < 0.47  # 0.5 before
    assert got.flatten(1).std(dim=1).min() < 0.2
    assert got.mean() == pytest.approx(0.5, abs=0.01)


def test_brightness_is_bounded():
    image, mask, prior = batch(size=32)
    difference = augment(brightness=0.1)(image, mask, prior)[0] - image
    assert difference.abs().max() <= 0.1 + 1e-4
    assert difference.max() > 0.05
    assert difference.min() < -0.05


def test_priors_are_dropped_with_their_probability():
    image, mask, prior = batch(size=200)
    _, _, got = augment(PriorConfig(dropout=0.3, roughen=0))(image, mask, prior)
    dropped = (got.flatten(1).sum(dim=1) == 0).float().mean().item()
    assert dropped == pytest.approx(0.3, abs=0.1)
    _, _, got = augment(PriorConfig(dropout=1, roughen=1))(image, mask, prior)
    assert not got.any()


def test_priors_are_roughened_in_three_ways():
    image, mask, prior = batch(size=60)
    _, _, got = augment(PriorConfig(dropout=0, roughen=1))(image, mask, prior)
    area, start = got.sum(dim=(1, 2, 3)), prior[0].sum()
    grown, shrunk = area > 1.05 * start, area < 0.95 * start
    assert grown.sum() > 8
    assert shrunk.sum() > 8
    assert (~grown & ~shrunk).sum() > 8
    assert (got[grown] >= prior[grown] - 1e-5).all()
    assert (got[shrunk] <= prior[shrunk] + 1e-5).all()


@pytest.mark.parametrize("radius", [1, 2, 3, 5])
def test_dilation_agrees_with_max_pooling(radius):
    x = torch.rand(3, 1, 17, 24)
    kernel = 2 * radius + 1
    expected = torch.nn.functional.max_pool2d(x, kernel, stride=1, padding=radius)
    assert torch.equal(dilate(x, radius), expected)


def test_blurring_keeps_images_apart_and_their_mass():
    x = torch.zeros(2, 1, 15, 15)
    x[0, 0, 7, 7] = 1
    blurred = blur(x, 3)
    assert blurred[0].sum().item() == pytest.approx(1, abs=1e-4)
    assert blurred[0, 0, 7, 7] < 0.2
    assert not blurred[1].any()


def test_priors_leave_the_images_as_they_are():
    """Batches with and without a map have equal images, bit for bit."""
    image, mask, prior = batch()
    without, kept, harsh = (
        augmentation(AugmentConfig(), config)(image, mask, given)
        for given, config in (
            (None, KEEP), (prior, KEEP), (prior, PriorConfig(dropout=0.3, roughen=1))
        )
    )  # fmt: skip
    assert without[2] is None
    for changed in (kept, harsh):
        assert torch.equal(changed[0], without[0])
        assert torch.equal(changed[1], without[1])
    assert not torch.equal(kept[2], harsh[2])
