"""The windows drawn for training."""

import math

import numpy as np
import numpy.typing as npt

from mtil.config import ZoomConfig
from mtil.models.windows import Window, find_box, place_window
from mtil.training.randomness import ImageRandomness, Purpose

SIDES = (1.3, 3.0)
"""Least and largest side of a training window, relative to the longer edge of the lesion."""
SHIFT = 0.2
"""Largest distance of a training window from the lesion's centre, as a share of its side."""
RANDOM_SHARE = 0.2
"""Share of the training windows that lie anywhere in the image. Many of them show no lesion."""
PROPOSED_SHARE = 0.5
"""Share of the training windows that lie round the prior map instead of the lesion."""


def draw_windows(
    config: ZoomConfig,
    masks: npt.NDArray[np.bool_],
    priors: npt.NDArray[np.uint8] | None,
    random: ImageRandomness,
) -> list[Window | None]:
    """Draw the windows of a training batch; None leaves an image whole.

    A share `training_share` of the images gets a window. Most windows lie round the lesion; with
    prior maps, half of these lie round the region of the map with the highest probability, as at
    test time. The rest lies anywhere: the network then also learns to find nothing.

    Args:
        config: share and least side of the windows.
        masks: (b, s, s) lesions.
        priors: (b, m, m) lesion probability of the previous round in 255ths; None without maps.
        random: random numbers of the images.
    """
    draws = random.uniforms(Purpose.WINDOW, 6).double().numpy()
    windows: list[Window | None] = []
    for index, (mask, draw) in enumerate(zip(masks, draws, strict=True)):
        has_window, is_random, is_proposed, side_draw, *shift = draw.tolist()
        if has_window >= config.training_share:
            windows.append(None)
            continue
        image_side, pixel, region = len(mask), 1.0, mask
        if priors is not None and is_proposed < PROPOSED_SHARE and priors[index].any():
            region = priors[index] >= math.ceil(priors[index].max() / 2)
            pixel = image_side / len(region)
        box = find_box(region)
        shortest = config.min_side * image_side
        if box is None or is_random < RANDOM_SHARE:
            side = shortest * (image_side / shortest) ** side_draw
            centre = (image_side * shift[0], image_side * shift[1])
        else:
            low, high = SIDES
            side = max(box.edge * pixel * low * (high / low) ** side_draw, shortest)
            reach = 2 * SHIFT * side
            row, column = (position * pixel for position in box.centre)
            centre = (row + reach * (shift[0] - 0.5), column + reach * (shift[1] - 0.5))
        windows.append(place_window(centre, side, image_side))
    return windows
