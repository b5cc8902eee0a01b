import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from mtil.errors import DataError
from mtil.metrics import (
    METRICS,
    Results,
    classification,
    paired_difference,
    score_mask,
    summarise,
    summarise_by_class,
    summarise_by_size,
)

COLUMNS = [field.name for field in dataclasses.fields(Results)]


def table(n=60, seed=0, **changes):
    """Return scored squares on 12 x 16 images: every third image normal, two images per group."""
    rng = np.random.default_rng(seed)
    label = np.arange(n) % 3
    probability = np.round(1 / (1 + np.exp(-rng.normal(2.0 * (label == 1) - 1, 1.5))), 2)
    scores = []
    for row in range(n):
        target, prediction = np.zeros((12, 16), bool), np.zeros((12, 16), bool)
        (y, x), size = rng.integers(6, size=2), rng.integers(1, 6)
        if label[row] != 2:
            target[y : y + size, x : x + size] = True
        if rng.random() < 0.8:
            y, x = y + rng.integers(-1, 4), x + rng.integers(-1, 4)
            prediction[max(y, 0) : y + size, max(x, 0) : x + size] = True
        scores.append(score_mask(prediction, target))
    columns = {
        "sample_id": [f"image {row:03}" for row in rng.permutation(n)],
        "group": [f"patient {row // 2}" for row in range(n)],
        "label": label,
        "fold": np.arange(n) % 5,
        "probability": probability,
        "predicted": probability >= np.where(np.arange(n) % 5 < 2, 0.4, 0.6),
        "lesion_probability": np.round(
            1 / (1 + np.exp(-rng.normal(np.where(label == 2, -1, 2), 1.5))), 2
        ),
    }
    for field in dataclasses.fields(scores[0]):
        columns[field.name] = [getattr(score, field.name) for score in scores]
    return Results(**(columns | changes))


TABLE = table()
SUMMARY = summarise(TABLE, resamples=30)


def test_every_figure_has_a_name_a_value_and_an_interval():
    assert tuple(SUMMARY) == METRICS
    for name, figure in SUMMARY.items():
        assert set(figure) == {"value", "low", "high"}
        assert figure["low"] <= figure["high"], name
        if name != "ece":  # resamples lie above the value, see `summarise`
            assert figure["low"] < figure["value"] < figure["high"], name


def test_outlines_are_judged_on_tumours_only():
    rows = TABLE.select(TABLE.label != 2)
    expected = {
        "dice": rows.dice.mean(),
        "iou": rows.iou.mean(),
        "hd95": rows.hd95.mean(),
        "assd": rows.assd.mean(),
        "miss_rate": (rows.dice == 0).mean(),
        "dice_pooled": 2 * rows.tp.sum() / (2 * rows.tp + rows.fp + rows.fn).sum(),
        "false_positive_area": TABLE.false_positive_area[TABLE.label == 2].mean(),
    }
    assert {name: SUMMARY[name]["value"] for name in expected} == pytest.approx(expected)
    assert 0 < expected["miss_rate"] < 1
    assert expected["dice"] != pytest.approx(expected["dice_pooled"])


def test_classes_are_judged_on_tumours_only():
    rows = TABLE.select(TABLE.label != 2)
    expected = {
        "f1": sk.f1_score(rows.label, rows.predicted),
        "macro_f1": sk.f1_score(rows.label, rows.predicted, average="macro"),
        "accuracy": sk.accuracy_score(rows.label, rows.predicted),
        "sensitivity": sk.recall_score(rows.label, rows.predicted),
        "specificity": sk.recall_score(rows.label, rows.predicted, pos_label=0),
        "auc": sk.roc_auc_score(rows.label, rows.probability),
        "average_precision": sk.average_precision_score(rows.label, rows.probability),
        "brier": sk.brier_score_loss(rows.label, rows.probability),
        "ece": classification.ece(rows.probability, rows.label),
        "sensitivity_at_90_specificity": classification.sensitivity_at_90_specificity(
            rows.probability, rows.label
        ),
    }
    assert {name: SUMMARY[name]["value"] for name in expected} == pytest.approx(expected)


def test_three_classes_are_judged_on_all_images():
    called = np.where(TABLE.presence < 0.5, 2, np.where(TABLE.predicted, 1, 0))
    expected = {
        "presence_auc": sk.roc_auc_score(TABLE.label != 2, TABLE.presence),
        "three_class_accuracy": sk.accuracy_score(TABLE.label, called),
        "three_class_macro_f1": sk.f1_score(TABLE.label, called, average="macro"),
    }
    assert 0.5 < expected["three_class_accuracy"] < 1
    for name, value in expected.items():
        assert SUMMARY[name]["value"] == pytest.approx(value), name


def test_three_classes_need_normal_images_and_models_that_know_them():
    names = ("presence_auc", "three_class_accuracy", "three_class_macro_f1")
    tumours = TABLE.select(TABLE.label != 2)
    for rows in (tumours, table(lesion_probability=None)):
        figures = summarise(rows, resamples=3)
        assert {figures[name]["value"] for name in names} == {None}
        assert figures["auc"]["value"] is not None


def test_the_decision_is_that_of_the_fold_not_of_one_threshold():
    changed = dataclasses.replace(TABLE, predicted=~TABLE.predicted)
    summary = summarise(changed, resamples=5)
    assert summary["accuracy"]["value"] == pytest.approx(1 - SUMMARY["accuracy"]["value"])
    assert summary["auc"]["value"] == SUMMARY["auc"]["value"]


@settings(max_examples=25)
@given(st.permutations(range(len(TABLE))), st.lists(st.integers(0, len(TABLE)), max_size=5))
def test_figures_do_not_depend_on_how_rows_were_split_and_shuffled(order, cuts):
    parts = np.split(np.array(order), sorted(cuts))
    shuffled = Results.concatenate([TABLE.select(part) for part in parts])
    assert summarise(shuffled, resamples=30) == SUMMARY
    assert summarise_by_class(shuffled) == summarise_by_class(TABLE)
    assert summarise_by_size(shuffled) == summarise_by_size(TABLE)


def test_undefined_figures_are_none_and_json_accepts_all():
    benign = summarise(TABLE.select(TABLE.label == 0), resamples=5)
    for name in ("f1", "auc", "sensitivity", "false_positive_area"):
        assert benign[name] == {"value": None, "low": None, "high": None}
    assert benign["specificity"]["value"] is not None
    empty = summarise(Results.concatenate([]), resamples=5)
    assert all(figure["value"] is None for figure in empty.values())
    everything = [
        benign,
        empty,
        SUMMARY,
        summarise_by_class(TABLE),
        summarise_by_class(Results.concatenate([])),
    ]
    assert json.loads(json.dumps(everything, allow_nan=False)) == everything


def test_figures_of_each_class():
    figures = summarise_by_class(TABLE)
    benign = TABLE.select(TABLE.label == 0)
    assert figures["benign"] == pytest.approx(
        {
            "count": 20,
            "dice": benign.dice.mean(),
            "dice_median": np.median(benign.dice),
            "dice_sd": np.sqrt(((benign.dice - benign.dice.mean()) ** 2).sum() / 19),
            "dice_pooled": 2 * benign.tp.sum() / (2 * benign.tp + benign.fp + benign.fn).sum(),
            "iou": benign.iou.mean(),
            "hd95": benign.hd95.mean(),
            "assd": benign.assd.mean(),
            "miss_rate": (benign.tp == 0).mean(),
            "detection_rate": (benign.iou > 0.5).mean(),
        }
    )
    assert set(figures["malignant"]) == set(figures["benign"])
    assert figures["malignant"]["dice"] != figures["benign"]["dice"]
    normal = TABLE.select(TABLE.label == 2)
    assert figures["normal"] == pytest.approx(
        {
            "count": 20,
            "false_positive_area": normal.false_positive_area.mean(),
            "empty_share": ((normal.tp + normal.fp) == 0).mean(),
        }
    )
    assert 0 < figures["normal"]["empty_share"] < 1


def test_thirds_by_size_of_lesion():
    figures = summarise_by_size(TABLE)
    assert [figures[name]["count"] for name in ("small", "medium", "large")] == [14, 13, 13]
    rows = TABLE.sorted()
    rows = rows.select(rows.label != 2)
    area = rows.tp + rows.fn
    smallest = sorted(range(40), key=lambda row: (area[row], rows.sample_id[row]))[:14]
    assert figures["small"]["dice"] == pytest.approx(rows.dice[smallest].mean())
    ordered = sorted(area.tolist())
    bounds = [(figures[name]["smallest"], figures[name]["largest"]) for name in figures]
    assert bounds == [
        (ordered[0], ordered[13]), (ordered[14], ordered[26]), (ordered[27], ordered[39]),
    ]  # fmt: skip
    none = summarise_by_size(TABLE.select(TABLE.label == 2))["small"]
    assert (none["count"], none["smallest"], none["largest"]) == (0, None, None)
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures


def test_a_table_compared_with_itself_differs_in_nothing():
    for figure in paired_difference(TABLE, TABLE, resamples=30).values():
        assert figure == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_a_difference_is_that_of_the_summaries_whatever_the_order():
    other = dataclasses.replace(TABLE, dice=TABLE.dice / 2, probability=1 - TABLE.probability)
    found = paired_difference(TABLE, other.select(np.arange(60)[::-1]), resamples=200)
    for name, figure in summarise(other, resamples=5).items():
        expected = SUMMARY[name]["value"] - figure["value"]
        assert found[name]["value"] == pytest.approx(expected), name
    assert 0 < found["dice"]["low"] < found["dice"]["value"] < found["dice"]["high"]
    unpaired = SUMMARY["dice"]["high"] - SUMMARY["dice"]["low"]
    assert found["dice"]["high"] - found["dice"]["low"] < 0.75 * unpaired
    assert found["auc"]["value"] == pytest.approx(2 * SUMMARY["auc"]["value"] - 1)
    back = paired_difference(other, TABLE, resamples=200)
    assert back["dice"]["high"] == pytest.approx(-found["dice"]["low"])


def test_only_like_tables_are_compared():
    with pytest.raises(DataError, match="59 are in only one"):
        paired_difference(TABLE, TABLE.select(np.arange(1)))
    group = TABLE.group.copy()
    group[3] = "patient 99"
    with pytest.raises(DataError, match=f"group.*`{TABLE.sample_id[3]}`"):
        paired_difference(TABLE, dataclasses.replace(TABLE, group=group))
    label = TABLE.label.copy()
    label[4] = 0
    with pytest.raises(DataError, match=f"label.*`{TABLE.sample_id[4]}`"):
        paired_difference(TABLE, dataclasses.replace(TABLE, label=label))


def test_an_image_that_is_there_twice_is_refused():
    twice = Results.concatenate([TABLE, TABLE.select(np.array([7]))])
    for function in (Results.sorted, summarise, summarise_by_class, summarise_by_size):
        with pytest.raises(DataError, match=f"`{TABLE.sample_id[7]}` is there more than once"):
            function(twice)


def test_columns_are_converted_to_their_types():
    lists = {name: getattr(TABLE, name).tolist() for name in COLUMNS}
    for name in COLUMNS:
        assert getattr(Results(**lists), name).dtype == getattr(TABLE, name).dtype


@pytest.mark.parametrize(
    ("column", "row", "value", "message"),
    [
        ("label", 4, 3, "labelled 0, 1 or 2, but `{}` has 3"),
        ("probability", 5, 1.5, r"probability in \[0, 1\], but `{}` has 1.5"),
        ("probability", 5, np.nan, "but `{}` has nan"),
        ("label", 2, 0, "of a tumour must have a lesion, but `{}` has 0"),
        ("label", 3, 2, "without a tumour must have no lesion, but `{}`"),
        ("hd95", 6, np.nan, "fully scored, but `{}` has nan"),
    ],
)
def test_a_wrong_value_is_refused_with_its_image(column, row, value, message):
    wrong = getattr(TABLE, column).copy()
    wrong[row] = value
    with pytest.raises(DataError, match=message.format(TABLE.sample_id[row])):
        dataclasses.replace(TABLE, **{column: wrong})


def test_columns_of_unequal_length_are_refused():
    with pytest.raises(DataError, match=r"`dice` has shape \(59,\) and there are 60"):
        dataclasses.replace(TABLE, dice=TABLE.dice[1:])
