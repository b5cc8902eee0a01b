"""Windows that a map proposes, and maps pasted from windows; values by hand."""

import numpy as np
import pytest

from mtil.config import ZoomConfig
from mtil.models.windows import Window
from mtil.prediction.zoom import paste_windows, propose_windows

SIDE = 100
CONFIG = ZoomConfig(num_windows=3, margin=2, min_side=0.1, max_edge=0.4, least_peak=0.2)


def _map(*regions: tuple[slice, slice, float]) -> np.ndarray:
    lesion = np.zeros((SIDE, SIDE), np.float32)
    for rows, columns, probability in regions:
        lesion[rows, columns] = probability
    return lesion


def test_a_window_is_twice_the_longer_edge_round_the_region() -> None:
    lesion = _map((slice(40, 60), slice(45, 55), 0.9))
    assert propose_windows(lesion, CONFIG) == [Window(30, 30, 40)]


def test_a_region_ends_at_half_of_its_peak() -> None:
    lesion = _map((slice(30, 70), slice(30, 70), 0.39), (slice(45, 55), slice(45, 55), 0.8))
    assert propose_windows(lesion, CONFIG)[0] == Window(40, 40, 20)
    lesion[30:70, 30:70] = np.maximum(lesion[30:70, 30:70], np.float32(0.41))
    assert propose_windows(lesion, CONFIG) == [Window(10, 10, 80)]


def test_the_higher_peak_comes_first() -> None:
    low, high = (slice(10, 20), slice(10, 20), 0.4), (slice(70, 80), slice(70, 80), 0.7)
    assert propose_windows(_map(low, high), CONFIG) == [Window(65, 65, 20), Window(5, 5, 20)]


def test_no_more_windows_than_asked_for() -> None:
    lesion = _map(
        *((slice(at, at + 6), slice(at, at + 6), at / 100) for at in (20, 40, 60, 80))
    )
    tops = [window.top for window in propose_windows(lesion, CONFIG)]
    assert tops == [77, 57, 37]
    one = ZoomConfig(num_windows=1, margin=2, min_side=0.1)
    assert [window.top for window in propose_windows(lesion, one)] == [77]
    assert propose_windows(lesion, ZoomConfig(num_windows=0)) == []


def test_a_region_inside_an_earlier_window_gets_none() -> None:
    lesion = _map((slice(40, 50), slice(40, 50), 0.9), (slice(52, 55), slice(40, 50), 0.4))
    assert propose_windows(lesion, CONFIG) == [Window(35, 35, 20)]


def test_a_large_region_gets_no_window_but_a_small_one_beside_it() -> None:
    large, small = (slice(0, 41), slice(0, 10), 0.9), (slice(80, 90), slice(80, 90), 0.5)
    assert propose_windows(_map(large, small), CONFIG) == [Window(75, 75, 20)]


@pytest.mark.parametrize(("peak", "number"), [(0.19, 0), (0.21, 1)])
def test_a_weak_region_gets_no_window(peak: float, number: int) -> None:
    lesion = _map((slice(40, 50), slice(40, 50), peak))
    assert len(propose_windows(lesion, CONFIG)) == number


def test_a_small_region_gets_the_least_side() -> None:
    assert propose_windows(_map((slice(50, 51), slice(50, 51), 0.9)), CONFIG)[0].side == 10


def test_an_empty_map_and_its_own_values_stay() -> None:
    lesion = _map()
    assert propose_windows(lesion, CONFIG) == []
    lesion = _map((slice(40, 50), slice(40, 50), 0.9))
    before = lesion.copy()
    propose_windows(lesion, CONFIG)
    np.testing.assert_array_equal(lesion, before)


def test_maps_are_averaged_inside_a_window_only() -> None:
    lesion = np.full((4, 4), 0.5, np.float32)
    look = np.array([[1, 0], [0.5, 0.7]], np.float32)
    pasted = paste_windows(lesion, [Window(1, 2, 2)], [look])
    expected = np.full((4, 4), 0.5)
    expected[1:3, 2:4] = [[0.75, 0.25], [0.5, 0.6]]
    np.testing.assert_allclose(pasted, expected, atol=1e-7)
    assert pasted.dtype == np.float32


def test_where_windows_overlap_all_maps_count_alike() -> None:
    lesion = np.zeros((3, 3), np.float32)
    looks = [np.full((2, 2), 0.6, np.float32), np.full((2, 2), 0.9, np.float32)]
    pasted = paste_windows(lesion, [Window(0, 0, 2), Window(1, 1, 2)], looks)
    assert pasted[1, 1] == pytest.approx(0.5)
    assert pasted[0, 0] == pytest.approx(0.3)
    assert pasted[2, 2] == pytest.approx(0.45)
    assert pasted[0, 2] == 0
