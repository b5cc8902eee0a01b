import numpy as np
import pytest
from sklearn import metrics as sk

from mtil.errors import DataError
from mtil.metrics import bootstrap, resample_weights, weighted
from mtil.metrics.bootstrap import CHUNK, difference


def sample(n, seed, *, ties):
    """Return probabilities, labels and the weights of 40 resamples over groups of 1 to 5."""
    rng = np.random.default_rng(seed)
    label = rng.random(n) < 0.4
    probability = 1 / (1 + np.exp(-rng.normal(2.0 * label - 1, 1.5)))
    groups = np.repeat(np.arange(n), rng.integers(1, 6, n))[:n]
    weights = next(resample_weights(groups, resamples=40, seed=seed))
    return (np.round(probability, 1) if ties else probability), label, weights


def assert_equals_repetition(many, plain, probability, label, weights):
    """Compare the figure of every row with the plain figure of the repeated cases."""
    assert many.shape == (len(weights),)
    for figure, row in zip(many, weights.astype(int), strict=True):
        expected = plain(np.repeat(probability, row), np.repeat(label, row).astype(int))
        assert figure == pytest.approx(expected, rel=1e-12, abs=1e-12, nan_ok=True)


def caught_at_90(probability, label):
    """Try every threshold in turn."""
    benign, malignant = probability[label == 0], probability[label == 1]
    thresholds = [*probability, np.inf]
    allowed = [t for t in thresholds if 10 * (benign >= t).sum() <= len(benign)]
    return max((malignant >= t).mean() for t in allowed)


def gap_of_bins(probability, label):
    """Return the calibration error over 15 bins from a loop over the cases."""
    inside = {}
    for value, malignant in zip(probability, label, strict=True):
        below, as_much = (probability < value).sum(), (probability == value).sum()
        number = int(15 * (2 * below + as_much) // (2 * len(label)))
        inside[number] = inside.get(number, 0) + value - malignant
    return sum(map(abs, inside.values())) / len(label)


def of_both_classes(figure):
    return lambda value, label: figure(value, label) if len(set(label)) == 2 else np.nan


def sklearns(figure):
    return of_both_classes(lambda probability, label: figure(label, probability))


RANKINGS = {
    "auc": sklearns(sk.roc_auc_score),
    "average_precision": sklearns(sk.average_precision_score),
    "sensitivity_at_90_specificity": of_both_classes(caught_at_90),
    "ece": gap_of_bins,
}
DECISIONS = {
    "f1": sklearns(lambda label, called: sk.f1_score(label, called, zero_division=0)),
    "macro_f1": sklearns(
        lambda label, called: sk.f1_score(label, called, average="macro", zero_division=0)
    ),
    "accuracy": lambda called, label: sk.accuracy_score(label, called),
    "sensitivity": lambda called, label: called[label == 1].mean() if any(label) else np.nan,
    "specificity": lambda called, label: (
        1 - called[label == 0].mean() if not all(label) else np.nan
    ),
}


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("n", [2, 6, 31, 150])
@pytest.mark.parametrize("name", RANKINGS)
def test_rankings_equal_plain_ones_on_repeated_cases(name, n, ties):
    probability, label, weights = sample(n, n, ties=ties)
    many = getattr(weighted.Ranking.of(probability, label, weights), name)()
    assert_equals_repetition(many, RANKINGS[name], probability, label, weights)


@pytest.mark.parametrize("n", [2, 6, 31, 150])
@pytest.mark.parametrize("name", DECISIONS)
def test_decisions_equal_plain_ones_on_repeated_cases(name, n):
    probability, label, weights = sample(n, n, ties=False)
    called = probability >= 0.5
    many = getattr(weighted.count_weighted_confusion(called, label, weights), name)()
    assert_equals_repetition(many, DECISIONS[name], called, label, weights)


def test_means_equal_the_plain_ones_on_repeated_cases():
    probability, label, weights = sample(31, 1, ties=False)
    many = weighted.weighted_mean((probability - label) ** 2, weights)
    assert_equals_repetition(
        many, lambda value, of: sk.brier_score_loss(of, value), probability, label, weights
    )


def test_a_resample_without_cases_is_undefined():
    nothing = np.zeros((2, 3))
    values, flags = np.array([0.1, 0.5, 0.9]), np.array([True, False, True])
    ranking = weighted.Ranking.of(values, flags, nothing)
    for name in ("auc", "average_precision", "sensitivity_at_90_specificity", "ece"):
        assert np.isnan(getattr(ranking, name)()).all()
    assert np.isnan(weighted.weighted_mean(values, nothing)).all()
    empty = weighted.Ranking.of(values[:0], flags[:0], np.zeros((2, 0)))
    for name in ("auc", "average_precision", "sensitivity_at_90_specificity", "ece"):
        assert np.isnan(getattr(empty, name)()).all()


def test_groups_come_and_go_together():
    groups = np.array(["b", "a", "b", "c", "a", "b"])
    weights = np.concatenate(list(resample_weights(groups, resamples=CHUNK + 7, seed=0)))
    assert weights.shape == (CHUNK + 7, 6)
    b, a, c = weights[:, [0, 2, 5]], weights[:, [1, 4]], weights[:, 3]
    assert (b == b[:, :1]).all()
    assert (a == a[:, :1]).all()
    assert (b[:, 0] + a[:, 0] + c == 3).all()  # three groups are drawn
    assert len(np.unique(weights, axis=0)) == 10  # all multisets of three out of three


def test_the_seed_decides_the_resamples():
    def drawn(seed):
        return np.concatenate(list(resample_weights(np.arange(50), resamples=9, seed=seed)))

    np.testing.assert_array_equal(drawn(1), drawn(1))
    assert (drawn(1) != drawn(2)).any()


def test_the_interval_of_a_mean_is_that_of_theory():
    values = np.random.default_rng(0).normal(size=400)
    found = bootstrap(np.arange(400), lambda w: {"mean": weighted.weighted_mean(values, w)})["mean"]
    error = 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - error, abs=0.1 * error)
    assert found.high == pytest.approx(values.mean() + error, abs=0.1 * error)


def test_images_of_a_group_count_once():
    # 40 patients have 10 equal images: the interval is as wide as with 40 images.
    patient = np.random.default_rng(0).normal(size=40)
    values, groups = np.repeat(patient, 10), np.repeat(np.arange(40), 10)
    grouped = bootstrap(groups, lambda w: {"mean": weighted.weighted_mean(values, w)})["mean"]
    alone = bootstrap(np.arange(40), lambda w: {"mean": weighted.weighted_mean(patient, w)})["mean"]
    assert (grouped.low, grouped.high) == pytest.approx((alone.low, alone.high))
    naive = bootstrap(np.arange(400), lambda w: {"mean": weighted.weighted_mean(values, w)})["mean"]
    assert grouped.high - grouped.low > 2.5 * (naive.high - naive.low)


def test_undefined_resamples_are_left_out():
    malignant = np.array([True, False, False])

    def share(weights):  # undefined without the only malignant case, else 1
        return {"share": weighted.weighted_mean(np.ones(1), weights[:, malignant])}

    found = bootstrap(np.arange(3), share, resamples=100)["share"]
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)


def test_one_group_has_no_interval():
    found = bootstrap(
        ["a", "a"], lambda w: {"mean": weighted.weighted_mean(np.array([1.0, 2.0]), w)}
    )
    assert found["mean"].as_json() == {"value": 1.5, "low": None, "high": None}


def test_a_difference_is_paired():
    values = np.random.default_rng(0).normal(size=100)

    def better(w):
        return {"mean": weighted.weighted_mean(values + 0.1, w)}

    def worse(w):
        return {"mean": weighted.weighted_mean(values, w)}

    found = bootstrap(np.arange(100), difference(better, worse))["mean"]
    assert (found.value, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))


def test_no_resamples_are_refused():
    with pytest.raises(DataError, match=r"resamples >= 1.*got 0"):
        bootstrap([1, 2], lambda w: {"sum": w.sum(axis=1)}, resamples=0)
