"""Risk-coverage curves; values by hand."""

import numpy as np
import pytest

from mtil.metrics.uncertainty import area_under_risk_coverage, summarise_risk

RISK = np.array([0.0, 0.2, 0.4, 1.0])


def test_the_ideal_order_worked_by_hand() -> None:
    """Mean risks of the first 1, 2, 3 and 4 images: 0, 0.1, 0.2 and 0.4."""
    assert area_under_risk_coverage(RISK, RISK) == pytest.approx(0.7 / 4)


def test_the_worst_order_worked_by_hand() -> None:
    """Mean risks of the first 1, 2, 3 and 4 images: 1, 0.7, 1.6 / 3 and 0.4."""
    assert area_under_risk_coverage(RISK, -RISK) == pytest.approx((1 + 0.7 + 1.6 / 3 + 0.4) / 4)


def test_without_an_order_the_area_is_the_mean_risk() -> None:
    assert area_under_risk_coverage(RISK, np.zeros(4)) == pytest.approx(0.4)


def test_ties_are_the_mean_over_their_orders() -> None:
    uncertainty = np.array([0, 1, 1, 2])
    orders = [np.array([0, 1, 1.5, 2]), np.array([0, 1.5, 1, 2])]
    mean = np.mean([area_under_risk_coverage(RISK, order) for order in orders])
    assert area_under_risk_coverage(RISK, uncertainty) == pytest.approx(mean)


def test_the_summary_says_how_much_of_the_way_is_gained() -> None:
    found = summarise_risk(RISK, np.array([0.1, 0.3, 0.2, 0.9]))  # two images swap places
    area = (0 + 0.2 + 0.2 + 0.4) / 4
    assert found["area"] == pytest.approx(area)
    assert found["ideal"] == pytest.approx(0.175)
    assert found["random"] == pytest.approx(0.4)
    assert found["gained"] == pytest.approx((0.4 - area) / (0.4 - 0.175))


def test_equal_risks_leave_nothing_to_gain() -> None:
    assert summarise_risk(np.full(3, 0.5), np.array([1.0, 2.0, 3.0]))["gained"] == 0
