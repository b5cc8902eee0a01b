"""The zoom pass: windows that a lesion map proposes, and maps pasted from the windows. No Ray."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mtil.config import ZoomConfig
from mtil.models.windows import Window, find_box, place_window

Map = npt.NDArray[np.float32]


def propose_windows(lesion: Map, config: ZoomConfig) -> list[Window]:
    """Return the windows of a lesion map (s, s), the window of the highest probability first.

    A region holds the pixel with the highest probability and the connected pixels with at least
    half the highest probability. The search for the next region skips earlier windows and regions.

    Args:
        lesion: lesion probability of each pixel.
        config: size and maximum number of the windows.
    """
    from scipy import ndimage

    side = len(lesion)
    remaining = lesion.copy()
    windows: list[Window] = []
    for _ in range(config.num_windows):
        peak = remaining.max()
        if peak < config.least_peak:
            break
        regions, _ = ndimage.label(remaining >= peak / 2)
        region = regions == regions.flat[int(remaining.argmax())]
        remaining[region] = 0
        box = find_box(region)
        assert box is not None
        if box.edge > config.max_edge * side:
            continue
        length = max(config.margin * box.edge, config.min_side * side)
        window = place_window(box.centre, length, side)
        remaining[window.cut] = 0
        windows.append(window)
    return windows


def paste_windows(lesion: Map, windows: Sequence[Window], looks: Sequence[Map]) -> Map:
    """Return a map (s, s) that is averaged, inside each window, with the map of the window.

    Args:
        lesion: map of the whole image.
        windows: windows in pixels of the map.
        looks: map of each window, of the window's side.
    """
    total, count = lesion.astype(np.float64), np.ones(lesion.shape)
    for window, look in zip(windows, looks, strict=True):
        total[window.cut] += look
        count[window.cut] += 1
    return (total / count).astype(np.float32)
