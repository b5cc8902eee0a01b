"""Prior maps made from reference masks."""

import pytest
import torch
from torch import Tensor

from mtil.training.corruption import FALSE_SHARE, LEAST_CONFIDENCE, MISSING_SHARE, corrupt_masks
from mtil.training.randomness import EpochRandomness, ImageRandomness

SIDE = 96
NUM = 400


def _numbers(num: int, *, first: int = 0, seed: int = 0) -> ImageRandomness:
    ids = [f"image-{index}" for index in range(first, first + num)]
    return EpochRandomness(seed, 0, torch.device("cpu")).for_images(ids)


def _lesions(num: int = NUM) -> Tensor:
    mask = torch.zeros(num, 1, SIDE, SIDE)
    mask[:, :, 40:56, 30:60] = 1
    return mask


def test_maps_are_as_wrong_as_maps_of_new_images() -> None:
    """In maps overlapping the lesion, the median Dice at half of the peak is about 0.75."""
    maps = corrupt_masks(_lesions(), _numbers(NUM))
    assert maps.shape == (NUM, 1, SIDE, SIDE)
    assert 0 <= maps.min() <= maps.max() <= 1
    peak = maps.amax(dim=(1, 2, 3), keepdim=True)
    shown = (maps >= peak / 2) & (peak > 0)
    overlap = (shown * _lesions()).sum(dim=(1, 2, 3))
    dice = 2 * overlap / (shown.sum(dim=(1, 2, 3)) + _lesions().sum(dim=(1, 2, 3)))
    touched = dice[overlap > 0]
    assert 0.65 < touched.median() < 0.85
    assert touched.quantile(0.95) > 0.83
    assert touched.quantile(0.05) < 0.55
    assert peak[peak > 0].min() > 0.5 * LEAST_CONFIDENCE
    assert peak.max() > 0.95


def test_some_maps_lack_the_lesion_and_some_have_a_false_region() -> None:
    lost = ~corrupt_masks(_lesions(), _numbers(NUM)).flatten(1).any(dim=1)
    share = MISSING_SHARE * (1 - FALSE_SHARE)
    assert float(lost.float().mean()) == pytest.approx(share, abs=0.05)
    false = corrupt_masks(torch.zeros(NUM, 1, SIDE, SIDE), _numbers(NUM)).flatten(1).any(dim=1)
    assert float(false.float().mean()) == pytest.approx(FALSE_SHARE, abs=0.07)


def test_a_lesion_moves_about_its_own_centre() -> None:
    """The mean map is centred on the lesion: rows 40 to 55, columns 30 to 59."""
    mean = corrupt_masks(_lesions(), _numbers(NUM)).mean(dim=(0, 1))
    mean = mean * (mean > 0.2)
    axis = torch.arange(SIDE, dtype=torch.float32)
    row, column = ((mean.sum(dim=dim) * axis).sum() / mean.sum() for dim in (1, 0))
    assert float(row) == pytest.approx(47.5, abs=1.0)
    assert float(column) == pytest.approx(44.5, abs=1.0)


@pytest.mark.parametrize("sizes", [(8, 8), (1, 15)])
def test_a_map_does_not_depend_on_the_other_images(sizes: tuple[int, int]) -> None:
    mask = _lesions(16)
    parts, first = [], 0
    for size, part in zip(sizes, mask.split(sizes), strict=True):
        parts.append(corrupt_masks(part, _numbers(size, first=first)))
        first += size
    assert torch.equal(torch.cat(parts), corrupt_masks(mask, _numbers(16)))


def test_the_seed_decides() -> None:
    once, again, other = (corrupt_masks(_lesions(4), _numbers(4, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
