from typing import Any

import pytest

from mtil.errors import ConfigError, DataError
from tune.objective import compute_running_value, parse_objective, select_epoch_figures

FIGURES = {"dice": 0.8, "auc": 0.9, "f1": 0.5, "score": 0.85}


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("dice", [0.8]),
        ("f1", [0.5]),
        ("0.5*dice+0.5*auc", [0.85]),
        (" .25 * dice + 2*f1 ", [1.2]),
        ("dice,auc", [0.8, 0.9]),
        ("dice + auc, f1", [1.7, 0.5]),
    ],
)
def test_an_objective_is_one_or_two_sums(text: str, values: list[float]) -> None:
    assert parse_objective(text).values(FIGURES) == pytest.approx(values)


def test_goals_are_called_what_was_typed() -> None:
    assert parse_objective("dice + auc, f1").names == ["dice + auc", "f1"]


@pytest.mark.parametrize("text", ["", "loss", "dice-auc", "dice+dice", "dice*2", "dice,", "1*"])
def test_other_text_is_no_objective(text: str) -> None:
    with pytest.raises(ConfigError, match=r"must be of dice, auc, f1, .* but got"):
        parse_objective(text)


def test_goals_must_differ_and_be_two_at_most() -> None:
    with pytest.raises(ConfigError, match="two goals at most"):
        parse_objective("dice,auc,f1")
    with pytest.raises(ConfigError, match="must differ"):
        parse_objective("dice,1*dice")
    with pytest.raises(ConfigError, match="must have a weight above 0"):
        parse_objective("0*dice")


def test_a_figure_that_the_rows_do_not_define_is_named() -> None:
    with pytest.raises(DataError, match="needs `auc`, but the inner validation rows"):
        parse_objective("dice,auc").values({"dice": 0.8, "score": 0.8})


def test_the_score_of_a_trial_is_the_mean_of_its_trainings() -> None:
    trainings = [{"dice": 0.5, "auc": 0.6}, {"dice": 0.7, "auc": 1.0}]
    assert parse_objective("dice,auc").mean(trainings) == pytest.approx([0.6, 0.8])


def _epoch(score: float, dice: float, **others: float) -> dict[str, Any]:
    figures = {"score": score, "dice": dice, **others}
    return {"epoch": 0, "fold": 0} | {f"validation_{key}": one for key, one in figures.items()}


def test_the_epoch_that_a_training_keeps_is_judged() -> None:
    history = [_epoch(0.5, 0.9, auc=0.1), _epoch(0.75, 0.6, auc=0.8), _epoch(0.625, 0.7)]
    assert select_epoch_figures(history, 0.0) == {"dice": 0.6, "auc": 0.8, "score": 0.75}
    assert select_epoch_figures(history, 0.125) == {"dice": 0.7, "score": 0.625}
    assert compute_running_value(parse_objective("dice"), [], history, 0.0) == pytest.approx(0.6)
    before = [{"dice": 0.8}, {"dice": 1.0}]
    assert compute_running_value(parse_objective("dice"), before, history, 0.0) == pytest.approx(
        0.8
    )
