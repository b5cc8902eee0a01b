"""Windows drawn for training."""

import numpy as np
import pytest
import torch

from mtil.config import ZoomConfig
from mtil.models.windows import Window
from mtil.training.randomness import EpochRandomness, ImageRandomness
from mtil.training.windows import PROPOSED_SHARE, RANDOM_SHARE, SHIFT, SIDES, draw_windows

CPU = torch.device("cpu")
SIDE = 128
CONFIG = ZoomConfig(num_windows=1, training_share=1.0, min_side=0.25)


def _random(number: int, epoch: int = 0) -> ImageRandomness:
    return EpochRandomness(7, epoch, CPU).for_images([f"image {index}" for index in range(number)])


def _masks(number: int, rows: slice, columns: slice) -> np.ndarray:
    masks = np.zeros((number, SIDE, SIDE), np.bool_)
    masks[:, rows, columns] = True
    return masks


def _draw(
    masks: np.ndarray, priors: np.ndarray | None = None, config: ZoomConfig = CONFIG
) -> list[Window]:
    windows = draw_windows(config, masks, priors, _random(len(masks)))
    return [window for window in windows if window is not None]


def _centred_on(window: Window, row: float, column: float) -> bool:
    """Return whether a window may lie round a centre, with a tolerance of 1 pixel."""
    reach = SHIFT * window.side + 1
    middle = window.top + window.side / 2, window.left + window.side / 2
    return abs(middle[0] - row) <= reach and abs(middle[1] - column) <= reach


def test_the_share_of_images_with_a_window() -> None:
    masks = _masks(400, slice(50, 70), slice(50, 70))
    config = ZoomConfig(num_windows=1, training_share=0.25)
    # Standard deviation of the share: sqrt(0.25 * 0.75 / 400) = 0.022.
    assert len(_draw(masks, config=config)) / 400 == pytest.approx(0.25, abs=0.09)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_no_image_or_every_image(share: float) -> None:
    config = ZoomConfig(num_windows=1, training_share=share)
    assert len(_draw(_masks(20, slice(9), slice(9)), config=config)) == 20 * share


def test_most_windows_lie_round_the_lesion_in_the_drawn_sides() -> None:
    windows = _draw(_masks(400, slice(44, 84), slice(54, 74)))  # 40 by 20 pixels
    near = [window for window in windows if _centred_on(window, 64, 64)]
    assert len(near) / 400 >= 1 - RANDOM_SHARE - 0.08
    sides = [
        window.side
        for window in windows
        if round(40 * SIDES[0]) <= window.side <= round(40 * SIDES[1])
    ]
    assert min(sides) < 60
    assert max(sides) > 110


def test_a_small_lesion_gets_the_least_side() -> None:
    windows = _draw(_masks(100, slice(60, 64), slice(60, 64)))
    # 4 pixels times 3 are less than a quarter of 128.
    assert min(window.side for window in windows) == 32


def test_an_image_without_a_lesion_gets_windows_anywhere() -> None:
    windows = _draw(_masks(200, slice(0), slice(0)))
    assert len(windows) == 200
    assert min(window.side for window in windows) < 40
    assert max(window.side for window in windows) > 110
    lefts = [window.left / max(SIDE - window.side, 1) for window in windows]
    assert min(lefts) == 0
    assert max(lefts) == 1


def test_windows_lie_inside_the_image() -> None:
    for window in _draw(_masks(200, slice(0, 30), slice(100, 128))):
        assert 0 <= window.top <= SIDE - window.side
        assert 0 <= window.left <= SIDE - window.side


def test_half_of_the_windows_follow_the_prior_map() -> None:
    masks = _masks(400, slice(10, 20), slice(10, 20))
    priors = np.zeros(masks.shape, np.uint8)
    priors[:, 100:110, 100:110] = 200
    priors[:, 50:60, 50:60] = 90  # less than half of the peak
    windows = _draw(masks, priors)
    # Only windows of less than half the image can distinguish the two places.
    small = [window for window in windows if window.side < 40]
    proposed = [window for window in small if _centred_on(window, 105, 105)]
    assert len(proposed) / len(small) == pytest.approx(
        PROPOSED_SHARE * (1 - RANDOM_SHARE), abs=0.12
    )
    assert [window for window in small if window.top < 20]


def test_a_smaller_prior_map_proposes_the_same_windows() -> None:
    masks = _masks(200, slice(10, 20), slice(10, 20))
    priors = np.zeros(masks.shape, np.uint8)
    priors[:, 80:112, 40:56] = 200
    assert _draw(masks, priors[:, ::2, ::2]) == _draw(masks, priors)


def test_an_empty_prior_map_leaves_the_lesion() -> None:
    masks = _masks(50, slice(44, 84), slice(44, 84))
    assert _draw(masks, np.zeros(masks.shape, np.uint8)) == _draw(masks)


def test_a_window_does_not_depend_on_the_other_images_and_changes_with_the_epoch() -> None:
    masks = _masks(6, slice(40, 60), slice(40, 60))
    together = draw_windows(CONFIG, masks, None, _random(6))
    alone = draw_windows(CONFIG, masks[:1], None, _random(1))
    assert together[:1] == alone
    assert draw_windows(CONFIG, masks, None, _random(6, epoch=1)) != together
