"""A model's temperatures, threshold and mask rule, from invented predictions."""

from collections.abc import Callable

import numpy as np
import pytest

from mtil.config import Config
from mtil.library import calibration
from mtil.library.calibration import ValidationPrediction, calibrate_model
from mtil.metrics.mask_rule import NEVER, MaskRule
from mtil.run.checkpoint import TrainedModel


def _row(
    name: str, label: int, *, presence: float = 3.0, peak: float = 0.9
) -> ValidationPrediction:
    """Return a row with a lesion in the left column, found with probability `peak`."""
    lesion = np.zeros((4, 4), np.uint8)
    lesion[:, 0] = round(255 * peak)
    target = np.zeros((4, 4), bool)
    target[:, 0] = label != 2
    return ValidationPrediction(name, label, (-2.0, 2.0, 0.0)[label], presence, lesion, target)


ROWS = [
    *(_row(f"benign {index}", 0) for index in range(4)),
    *(_row(f"malignant {index}", 1, peak=0.4 + index / 100) for index in range(4)),
    *(_row(f"normal {index}", 2, presence=index - 3.0, peak=0.6) for index in range(4)),
]


def test_the_rule_finds_faint_lesions_and_empties_normal_images(
    make_model: Callable[..., TrainedModel],
) -> None:
    model = calibrate_model(make_model(), ROWS, knows_normals=True)
    assert model.presence_temperature is not None
    empty = [
        not model.mask_rule(
            row.lesion / np.float32(255),
            1 / (1 + np.exp(-row.presence / model.presence_temperature)),
        ).any()
        for row in ROWS
    ]
    assert empty[:8] == [False] * 8
    assert sum(empty[8:]) == 4  # at most a fifth of the 4 may keep a mask


def test_a_network_that_was_not_trained_to_tell_normal_images_gates_nothing(
    make_model: Callable[..., TrainedModel],
) -> None:
    model = calibrate_model(make_model(), ROWS, knows_normals=False)
    assert model.presence_temperature is None
    assert (model.mask_rule.empty_below, model.mask_rule.filled_from) == (0.0, NEVER)
    assert all(model.mask_rule(row.lesion / np.float32(255)).any() for row in ROWS[:8])


def test_the_plain_threshold_can_be_asked_for(
    make_model: Callable[..., TrainedModel], make_config: Callable[..., Config]
) -> None:
    plain = make_model(config=make_config(predict={"mask_rule": "half"}))
    assert calibrate_model(plain, ROWS, knows_normals=True).mask_rule == MaskRule()


def test_of_many_images_some_of_each_class_choose_the_rule(
    make_model: Callable[..., TrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "_MOST_MAPS", 4)
    # Every third row: benign, malignant and normal images all take part.
    model = calibrate_model(make_model(), ROWS, knows_normals=True)
    assert model.mask_rule.empty_below > 0
