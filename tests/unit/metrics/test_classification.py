import numpy as np
import pytest
from sklearn import metrics as sk

from mtil.errors import DataError
from mtil.metrics import classification as cl

FUNCTIONS = [
    cl.f1,
    cl.macro_f1,
    cl.accuracy,
    cl.sensitivity,
    cl.specificity,
    cl.auc,
    cl.average_precision,
    cl.sensitivity_at_90_specificity,
    cl.ece,
    cl.brier,
]


def sample(n=200, seed=0, ties=False):
    rng = np.random.default_rng(seed)
    label = (rng.random(n) < 0.4).astype(int)
    probability = 1 / (1 + np.exp(-rng.normal(2 * label - 1, 1.5)))
    return (np.round(probability, 1) if ties else probability), label


def test_decisions_by_hand():
    probability, label = [0.9, 0.6, 0.2, 0.7, 0.1, 0.3], [1, 1, 1, 0, 0, 0]  # tp 2 fp 1 fn 1 tn 2
    assert cl.f1(probability, label) == pytest.approx(2 / 3)
    assert cl.macro_f1(probability, label) == pytest.approx(2 / 3)
    assert cl.accuracy(probability, label) == pytest.approx(4 / 6)
    assert cl.sensitivity(probability, label) == pytest.approx(2 / 3)
    assert cl.specificity(probability, label, threshold=0.75) == 1.0


def test_a_case_at_the_threshold_is_called_malignant():
    assert cl.sensitivity([0.4], [1], threshold=0.4) == 1.0
    assert cl.specificity([0.4], [0], threshold=0.4) == 0.0


@pytest.mark.parametrize("threshold", [0.05, 0.5, 0.8, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_decisions_equal_those_of_sklearn(seed, threshold):
    probability, label = sample(60, seed)
    called = probability >= threshold
    expected = {
        cl.f1: sk.f1_score(label, called, zero_division=0),
        cl.macro_f1: sk.f1_score(label, called, average="macro", zero_division=0),
        cl.accuracy: sk.accuracy_score(label, called),
        cl.sensitivity: sk.recall_score(label, called),
        cl.specificity: sk.recall_score(~label.astype(bool), ~called),
    }
    for function, value in expected.items():
        assert function(probability, label, threshold=threshold) == pytest.approx(value)


def test_ranking_by_hand():
    score, label = [4, 3, 2, 1], [1, 0, 1, 0]
    assert cl.auc(score, label) == 0.75
    assert cl.average_precision(score, label) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert cl.auc([1, 1, 1, 1], label) == 0.5


def test_sensitivity_at_exactly_90_percent_specificity():
    # Ten benign cases: a single false alarm leaves a specificity of exactly 0.9, which counts.
    score = np.array([9, 7, 5, 8, 4, 4, 3, 3, 2, 2, 1, 1, 0.0])
    label = np.array([1, 1, 1] + [0] * 10)
    assert cl.sensitivity_at_90_specificity(score, label) == 1.0
    score[4] = 6  # a second false alarm comes before the third malignant case
    assert cl.sensitivity_at_90_specificity(score, label) == pytest.approx(2 / 3)
    assert cl.sensitivity_at_90_specificity([1, 2], [1, 0]) == 0.0


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_sensitivity_at_90_specificity_tries_every_threshold(seed, ties):
    score, label = sample(97, seed, ties)
    best = max(
        (score[label == 1] >= t).mean()
        for t in [*score, np.inf]
        if 10 * (score[label == 0] >= t).sum() <= (label == 0).sum()
    )
    assert cl.sensitivity_at_90_specificity(score, label) == pytest.approx(best)


def test_calibration_by_hand():
    assert cl.brier([0.2, 0.6], [0, 1]) == pytest.approx((0.04 + 0.16) / 2)
    assert cl.ece([0.3] * 10, [1] * 3 + [0] * 7) == pytest.approx(0)
    assert cl.ece([0.8] * 10, [1] * 3 + [0] * 7) == pytest.approx(0.5)
    assert cl.ece([0.0, 0.0, 1.0, 1.0], [0, 0, 1, 1]) == 0


def test_bins_hold_equal_numbers_of_cases():
    rng = np.random.default_rng(1)
    probability, label = rng.permutation(np.linspace(0.01, 0.99, 150)), rng.integers(2, size=150)
    order = np.argsort(probability)
    bins = np.split(order, 15)
    expected = np.mean([abs(probability[b].mean() - label[b].mean()) for b in bins])
    assert cl.ece(probability, label) == pytest.approx(expected)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("ties", [False, True])
def test_the_order_of_cases_does_not_matter(function, ties):
    probability, label = sample(ties=ties)
    order = np.random.default_rng(5).permutation(len(label))
    assert function(probability[order], label[order]) == pytest.approx(function(probability, label))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_nothing_is_defined_without_cases(function):
    assert np.isnan(function([], []))


@pytest.mark.parametrize("only", [0, 1])
def test_a_single_class_leaves_comparisons_undefined(only):
    probability, label = [0.2, 0.7, 0.9], [only] * 3
    defined = {f.__name__ for f in FUNCTIONS if not np.isnan(f(probability, label))}
    assert defined == {"accuracy", "ece", "brier", ("specificity", "sensitivity")[only]}


def test_scores_of_rankings_may_be_logits():
    probability, label = sample()
    logit = np.log(probability / (1 - probability)).astype(np.float32)
    assert cl.auc(logit, label) == pytest.approx(cl.auc(probability, label))
    with pytest.raises(DataError, match="apply the sigmoid"):
        cl.brier(logit, label)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("probability", "label", "message"),
    [
        ([0.1, 0.2], [1], r"\(2,\) scores and \(1,\) labels"),
        ([[0.1, 0.2]], [[1, 0]], r"\(1, 2\) scores"),
        ([0.1, np.nan], [1, 0], "1 of 2 are not"),
        ([0.1, 0.2], [1, 2], "got 2; leave normal images out"),
    ],
)
def test_bad_input_is_refused(function, probability, label, message):
    with pytest.raises(DataError, match=message):
        function(probability, label)
