"""Random numbers per image: dependence on image, epoch, seed and purpose; distribution."""

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from mtil.training.randomness import EpochRandomness, ImageRandomness, Purpose

CPU = torch.device("cpu")
IDS = [f"image-{number}" for number in range(16)]


def _images(ids: list[str], seed: int = 5, epoch: int = 2) -> ImageRandomness:
    return EpochRandomness(seed, epoch, CPU).for_images(ids)


def _both(images: ImageRandomness, purpose: Purpose = Purpose.SPECKLE) -> tuple[Tensor, Tensor]:
    return images.uniforms(purpose, 7), images.normals(purpose, (1, 9, 11))


def test_an_image_has_the_same_numbers_alone_and_in_any_batch() -> None:
    uniforms, normals = _both(_images(IDS))
    assert (uniforms.shape, normals.shape) == ((16, 7), (16, 1, 9, 11))
    for ids in (IDS[3:4], IDS[::-1], IDS[5:], [*IDS[8:], "another", *IDS[:8]]):
        for name, *rows in zip(ids, *_both(_images(ids)), strict=True):
            if name in IDS:
                place = IDS.index(name)
                assert torch.equal(rows[0], uniforms[place])
                assert torch.equal(rows[1], normals[place])


def test_image_epoch_seed_and_purpose_change_all_numbers() -> None:
    """The probability of equal numbers by chance is below 1e-4."""
    name, other = IDS[:2]
    rows = [
        _both(_images([name])),
        _both(_images([other])),
        _both(_images([name], epoch=3)),
        _both(_images([name], seed=6)),
        *(_both(_images([name]), purpose) for purpose in Purpose if purpose != Purpose.SPECKLE),
    ]
    for numbers in zip(*rows, strict=True):
        flat = torch.stack([values.flatten() for values in numbers])
        for column in flat.T.tolist():
            assert len(set(column)) == len(rows)


def test_more_uniforms_begin_with_the_same_numbers() -> None:
    images = _images(IDS)
    many = images.uniforms(Purpose.LAYERS, 30)
    for num in (1, 4, 6):
        assert torch.equal(images.uniforms(Purpose.LAYERS, num), many[:, :num])


def test_dtypes_agree_up_to_rounding() -> None:
    images = _images(IDS)
    normals = images.normals(Purpose.SPECKLE, (40, 40))
    exact = images.normals(Purpose.SPECKLE, (40, 40), torch.float64)
    assert (normals.dtype, exact.dtype) == (torch.float32, torch.float64)
    torch.testing.assert_close(normals, exact.float(), rtol=1e-5, atol=1e-5)


def test_uniforms_and_normals_have_their_distribution() -> None:
    """Check Kolmogorov-Smirnov and moments. Fixed numbers exclude failures by chance."""
    ids = [f"{number}" for number in range(500)]
    images = _images(ids)
    uniforms = images.uniforms(Purpose.AFFINE, 100)
    normals = images.normals(Purpose.SPECKLE, (10, 10), torch.float64)
    assert 0 <= uniforms.min() <= uniforms.max() < 1
    assert stats.kstest(uniforms.flatten().numpy(), "uniform").pvalue > 0.01
    assert stats.kstest(normals.flatten().numpy(), "norm").pvalue > 0.01
    num, values = normals.numel(), normals.flatten()
    # Powers 1 to 4 of a standard normal variable have variances 1, 2, 15 and 96.
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((values**power).mean()) - mean) < 4 * math.sqrt(variance / num)


def test_numbers_of_an_image_and_of_two_images_do_not_correlate() -> None:
    normals = _images([f"{number}" for number in range(40)]).normals(Purpose.SPECKLE, (400,))
    limit = 5 / math.sqrt(400)
    by_image, by_place = torch.corrcoef(normals), torch.corrcoef(normals.T[:40])
    assert (by_image - torch.eye(40)).abs().max() < limit
    assert (by_place - torch.eye(40)).abs().max() < 5 / math.sqrt(40)


@pytest.mark.parametrize("most", [1, 3])
def test_passes_are_drawn_evenly_by_seed_epoch_and_step(most: int) -> None:
    def passes(seed: int, epoch: int) -> list[int]:
        random = EpochRandomness(seed, epoch, CPU, most_passes=most)
        return [random.num_passes(step) for step in range(300)]

    drawn = passes(1, 0)
    counts = [drawn.count(number) for number in range(1, most + 1)]
    assert sum(counts) == 300
    assert min(counts) > 0.75 * 300 / most
    assert passes(1, 0) == drawn
    assert (passes(1, 1) == drawn) is (most == 1)
    assert (passes(2, 0) == drawn) is (most == 1)


def test_torch_s_own_numbers_follow_from_epoch_step_and_rank() -> None:
    def draw(seed: int, epoch: int, step: int, rank: int) -> float:
        EpochRandomness(seed, epoch, CPU).seed_step(step, rank)
        return torch.rand(()).item()

    places = [(1, 0, 0, 0), (2, 0, 0, 0), (1, 1, 0, 0), (1, 0, 1, 0), (1, 0, 0, 1)]
    assert len({draw(*place) for place in places}) == 5
    assert draw(*places[3]) == draw(*places[3])
