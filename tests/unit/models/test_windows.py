"""Geometry of windows; every value is worked by hand."""

import numpy as np

from mtil.models.windows import Box, Window, find_box, measure_zoom, place_window


def test_the_box_of_a_region_ends_at_its_last_row_and_column() -> None:
    region = np.zeros((8, 10), np.bool_)
    region[2:5, 3:9] = True
    box = find_box(region)
    assert box == Box(2, 3, 4, 8)
    assert box.edge == 6
    assert box.centre == (3.5, 6.0)


def test_one_pixel_is_a_box_and_nothing_is_none() -> None:
    region = np.zeros((4, 4), np.bool_)
    assert find_box(region) is None
    region[3, 0] = True
    box = find_box(region)
    assert box is not None
    assert (box.edge, box.centre) == (1, (3.5, 0.5))


def test_a_window_lies_round_its_centre() -> None:
    assert place_window((5.0, 6.0), 4.0, 16) == Window(3, 4, 4)


def test_a_window_at_the_border_moves_inside() -> None:
    assert place_window((0.0, 15.0), 6.0, 16) == Window(0, 10, 6)


def test_a_window_is_no_larger_than_the_image_and_no_smaller_than_a_pixel() -> None:
    assert place_window((1.0, 9.0), 40.0, 16) == Window(0, 0, 16)
    assert place_window((8.0, 8.0), 0.1, 16).side == 1


def test_a_window_cuts_its_pixels() -> None:
    image = np.arange(16).reshape(4, 4)
    assert image[Window(1, 2, 2).cut].tolist() == [[6, 7], [10, 11]]


def test_enlargement_counts_octaves() -> None:
    windows = [None, Window(0, 0, 64), Window(3, 1, 32), Window(0, 0, 16)]
    assert measure_zoom(windows, 64).tolist() == [0.0, 0.0, 1.0, 2.0]
