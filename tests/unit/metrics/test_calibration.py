import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from mtil.errors import DataError
from mtil.metrics import find_best_threshold, find_steady_threshold, fit_temperature
from mtil.metrics.calibration import MAX_TEMPERATURE


def nll(logits, labels, temperature):
    probability = 1 / (1 + np.exp(-logits / temperature))
    return -np.mean(np.where(labels == 1, np.log(probability), np.log(1 - probability)))


def drawn(temperature, n=20_000):
    """Return logits, `temperature` times too large, and labels."""
    rng = np.random.default_rng(0)
    honest = rng.normal(0, 2, n)
    return temperature * honest, (rng.random(n) < 1 / (1 + np.exp(-honest))).astype(int)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5, 8.0])
def test_the_temperature_of_overstated_logits_is_found(temperature):
    logits, labels = drawn(temperature)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.05)


def test_no_temperature_of_a_grid_fits_better():
    logits, labels = drawn(3.0, 200)
    found = nll(logits, labels, fit_temperature(logits, labels))
    assert found <= min(nll(logits, labels, t) for t in np.geomspace(0.7, 20, 300)) + 1e-12


def test_two_cases_by_hand():
    # A third of the cases with logit 2 is benign: sigmoid(2 / T) = 2 / 3 gives T = 2 / ln 2.
    assert fit_temperature([2, 2, 2], [1, 1, 0]) == pytest.approx(2 / np.log(2), rel=1e-5)


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        ([], []),
        ([3.0], [1]),
        ([3.0, -1.0], [1, 1]),
        ([3.0, -1.0], [0, 0]),
        ([0.0, 0.0], [1, 0]),
        ([3.0, -1.0], [1, 0]),
    ],
)
def test_the_temperature_is_1_where_no_minimum_exists(logits, labels):
    assert fit_temperature(logits, labels) == 1.0


def test_huge_and_misleading_logits_stay_finite():
    assert 1.0 < fit_temperature([1e6, -1e6, 1e6], [1, 0, 0]) <= MAX_TEMPERATURE
    assert fit_temperature([-5, 5], [1, 0]) == pytest.approx(MAX_TEMPERATURE, rel=1e-3)


def test_the_threshold_lies_midway_between_neighbours():
    assert find_best_threshold([0.1, 0.3, 0.7, 0.8], [0, 0, 1, 1]) == 0.5
    assert find_best_threshold([0.1, 0.2, 0.3, 0.9], [0, 0, 1, 1]) == 0.25
    assert find_best_threshold([0.5, 0.8], [1, 0]) == 0.25  # calling all malignant is best


def test_of_equally_good_thresholds_the_nearest_to_a_half_wins():
    # From 0.1 on: tp 2, fp 2, fn 0. From 0.7 on: tp 1, fp 0, fn 1. Both have F1 2 / 3.
    probability, labels = [0.1, 0.2, 0.4, 0.7], [1, 0, 0, 1]
    assert f1_score(labels, [1, 1, 1, 1]) == f1_score(labels, [0, 0, 0, 1])
    assert find_best_threshold(probability, labels) == pytest.approx(0.55)


@pytest.mark.parametrize(
    ("probability", "labels"), [([], []), ([0.9, 0.8], [1, 1]), ([0.9, 0.8], [0, 0])]
)
def test_the_threshold_is_a_half_where_there_is_nothing_to_choose(probability, labels):
    assert find_best_threshold(probability, labels) == 0.5
    assert find_best_threshold([0.9, 0.9], [1, 0]) == 0.5


def test_a_threshold_between_adjacent_numbers_still_separates_them():
    low = 0.7
    high = np.nextafter(low, 1)
    threshold = find_best_threshold([low, high], [0, 1])
    assert low < threshold <= high
    assert find_best_threshold([0.0, 1e-320, 0.5], [0, 1, 1]) > 0


@pytest.mark.slow
@settings(max_examples=100)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 1)), min_size=1, max_size=25))
def test_no_threshold_has_a_higher_f1(cases):
    probability, labels = np.array(cases).T
    threshold = find_best_threshold(probability, labels)
    assert 0 <= threshold <= 1
    if len(set(labels)) == 2 and len(set(probability)) > 1:
        reached = f1_score(labels, probability >= threshold, zero_division=0)
        assert reached == max(f1_score(labels, probability >= t) for t in probability)


def test_few_cases_do_not_move_the_steady_threshold_far():
    # Only the benign case at 0.9 favours a threshold above 0.9.
    probability = [0.1, 0.2, 0.3, 0.9, 0.6, 0.95, 0.96, 0.97]
    labels = [0, 0, 0, 0, 1, 1, 1, 1]
    assert find_best_threshold(probability, labels) == pytest.approx(0.45)
    probability[4] = 0.3  # moves the best threshold above the benign case
    assert find_best_threshold(probability, labels) == pytest.approx(0.925)
    assert find_steady_threshold(probability, labels) == pytest.approx(0.6)


def test_many_cases_move_the_steady_threshold():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 4000)
    probability = np.where(label == 1, rng.uniform(0.7, 1, 4000), rng.uniform(0, 0.75, 4000))
    best, steady = (
        find_best_threshold(probability, label),
        find_steady_threshold(probability, label),
    )
    assert 0.69 < steady <= best
    assert f1_score(label, probability >= steady) > f1_score(label, probability >= best) - 0.01


def test_the_steady_threshold_is_a_half_where_there_is_nothing_to_choose():
    assert find_steady_threshold([], []) == 0.5
    assert find_steady_threshold([0.9, 0.8], [1, 1]) == 0.5


@pytest.mark.parametrize("function", [fit_temperature, find_best_threshold, find_steady_threshold])
def test_bad_input_is_refused(function):
    with pytest.raises(DataError, match="finite"):
        function([0.1, np.inf], [1, 0])
    with pytest.raises(DataError, match="got 2"):
        function([0.1, 0.2], [1, 2])
