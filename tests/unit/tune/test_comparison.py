import numpy as np
import pytest

from mtil.metrics import Results
from tune.comparison import compare_with_default, describe_verdict, pool_seeds


def _results(dice: list[float], probability: list[float]) -> Results:
    """Return results with two images per group, the first half benign."""
    n = len(dice)
    tp = np.round(np.array(dice) * 100).astype(int)
    return Results(
        sample_id=np.array([f"image {index}" for index in range(n)]),
        group=np.array([f"group {index // 2}" for index in range(n)]),
        label=np.repeat([0, 1], n // 2),
        fold=np.zeros(n, int),
        probability=np.array(probability),
        predicted=np.array(probability) >= 0.5,
        tp=tp,
        fp=100 - tp,
        fn=100 - tp,
        dice=np.array(dice),
        iou=np.array(dice) / (2 - np.array(dice)),
        hd95=np.full(n, 5.0),
        assd=np.full(n, 2.0),
        missed=np.zeros(n, bool),
        false_positive_area=np.zeros(n),
    )


PROBABILITY = [0.1, 0.6, 0.2, 0.3, 0.4, 0.7, 0.8, 0.9]
DEFAULT = [0.5, 0.6, 0.7, 0.8, 0.5, 0.6, 0.7, 0.8]


def test_seeds_are_pooled_with_their_images_groups() -> None:
    both = pool_seeds([_results(DEFAULT, PROBABILITY), _results(DEFAULT, PROBABILITY)])
    assert len(both) == 16
    assert len(set(both.sample_id)) == 16
    assert set(both.group) == {f"group {index}" for index in range(4)}
    assert both.sample_id[0] == "image 0 (seed 0)"
    assert both.sample_id[8] == "image 0 (seed 1)"


def test_what_is_better_in_every_image_is_better() -> None:
    default = [_results(DEFAULT, PROBABILITY)] * 2
    winner = [
        _results([one + 0.1 for one in DEFAULT], PROBABILITY),
        _results([one + 0.05 for one in DEFAULT], PROBABILITY),
    ]
    found = compare_with_default("trial 3", winner, default)
    assert found["difference"]["dice"]["value"] == pytest.approx(0.075)
    assert found["difference"]["dice"]["low"] > 0
    assert found["difference_by_seed"]["dice"] == pytest.approx([0.1, 0.05])
    assert found["difference_by_seed"]["auc"] == [0.0, 0.0]
    assert found["metrics"]["dice"]["value"] == pytest.approx(0.725)
    assert found["verdict"] == "trial 3 is better in dice than the default."


def test_a_lucky_trial_is_seen_as_one() -> None:
    default = [_results(DEFAULT, PROBABILITY)]
    mixed = [0.9, 0.9, 0.4, 0.5, 0.9, 0.9, 0.4, 0.5]  # better in half of the groups
    found = compare_with_default("trial 3", [_results(mixed, PROBABILITY)], default)
    assert found["difference"]["dice"]["value"] == pytest.approx(0.025)
    assert found["difference"]["dice"]["low"] < 0 < found["difference"]["dice"]["high"]
    assert "shows no difference from the default" in found["verdict"]


def _interval(low: float | None, high: float | None) -> dict[str, float | None]:
    return {"value": None, "low": low, "high": high}


@pytest.mark.parametrize(
    ("dice", "auc", "hd95", "says"),
    [
        ((0.01, 0.02), (0.01, 0.02), (-1, 1), "is better in dice and auc than"),
        ((-0.02, -0.01), (-0.01, 0.02), (-1, 1), "is worse in dice than"),
        ((0.01, 0.02), (-0.2, -0.1), (-9, -1), "is better in dice and hd95 and worse in auc than"),
        ((0.01, 0.02), (-0.1, 0.1), (1, 9), "is better in dice and worse in hd95 than"),
        ((-0.01, 0.02), (None, None), (None, None), "shows no difference from"),
    ],
)
def test_the_verdict_is_what_the_intervals_allow(
    dice: tuple[float, float], auc: tuple[float, float], hd95: tuple[float, float], says: str
) -> None:
    difference = {
        "dice": _interval(*dice),
        "auc": _interval(*auc),
        "f1": _interval(-0.1, 0.1),
        "hd95": _interval(*hd95),
    }
    assert says in describe_verdict("trial 1", difference)
