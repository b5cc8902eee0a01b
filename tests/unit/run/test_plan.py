"""The plan of a circle: actions, prerequisites, and the models allowed to map a row."""

from typing import Any

import pytest
from hypothesis import given

from mtil.config import CircleConfig, config_from_dict, list_config_keys
from mtil.errors import ConfigError
from mtil.run.plan import (
    Action,
    CirclePlan,
    Evaluate,
    Summarise,
    Train,
    WriteMaps,
    find_map_writers,
    find_models_used,
    find_prerequisites,
    find_warm_start,
    list_actions,
    max_parallel_trainings,
)
from tests.unit.plans import CROSS_FIT, IN_SAMPLE, RECYCLE, a_plan, plans

# Listed actions


def _find_seen_parts(plan: CirclePlan, action: Action) -> frozenset[int | None]:
    """Return the parts of the training rows seen by the weights of an action.

    Includes the trained model, all models run by the action, and all ancestors by warm start. A
    part of `None` stands for all rows.
    """
    seen: set[int | None] = set()
    own = (action,) if isinstance(action, Train) else ()
    for model in own + find_models_used(plan, action):
        ancestor: Train | None = model
        while ancestor is not None:
            # An inner model is trained on all parts except `part`.
            part = ancestor.part
            others = (other for other in plan.parts if other not in (None, part))
            seen.update(plan.parts if part is None else others)
            ancestor = find_warm_start(plan, ancestor)
    return frozenset(seen)


def test_in_sample_every_model_maps_its_own_rows() -> None:
    assert list_actions(a_plan(4, num_rounds=2)) == (
        Train(0, 4),
        WriteMaps(0, 4),
        Evaluate(0, 4),
        Summarise(0),
        Train(1, 4),
        Evaluate(1, 4),
        Summarise(1),
    )


def test_cross_fit_has_inner_models_in_all_rounds_but_the_last() -> None:
    assert list_actions(a_plan(0, num_rounds=2, maps="cross_fit", num_parts=2)) == (
        Train(0, 0),
        Train(0, 0, 0),
        Train(0, 0, 1),
        WriteMaps(0, 0, 0),
        WriteMaps(0, 0, 1),
        Evaluate(0, 0),
        Summarise(0),
        Train(1, 0),
        Evaluate(1, 0),
        Summarise(1),
    )


@pytest.mark.parametrize(
    ("folds", "circle", "expected"),
    [
        ((0, 3), {"num_rounds": 2}, 2),
        ((0, 3), {"num_rounds": 2, "maps": "cross_fit", "num_parts": 4}, 10),
        ((0, 3), {"num_rounds": 1, "maps": "cross_fit", "num_parts": 4}, 2),
    ],
)
def test_the_trainings_of_a_round_may_run_side_by_side(
    folds: tuple[int, ...], circle: dict[str, Any], expected: int
) -> None:
    assert max_parallel_trainings(a_plan(*folds, **circle)) == expected


@pytest.mark.parametrize("maps", ["recycle", "corrupted"])
def test_some_sources_write_no_maps(maps: str) -> None:
    assert list_actions(a_plan(0, 2, num_rounds=1, maps=maps)) == (
        Train(0, 0),
        Evaluate(0, 0),
        Train(0, 2),
        Evaluate(0, 2),
        Summarise(0),
    )


@pytest.mark.parametrize(
    ("plan", "action", "expected"),
    [
        (IN_SAMPLE, Train(0, 1), set()),
        (IN_SAMPLE, WriteMaps(0, 1), {Train(0, 1)}),
        (IN_SAMPLE, Train(2, 1), {Train(1, 1), WriteMaps(1, 1)}),
        (IN_SAMPLE, WriteMaps(1, 1), {Train(1, 1), WriteMaps(0, 1)}),
        (IN_SAMPLE, Evaluate(1, 0), {Train(1, 0)}),
        (IN_SAMPLE, Summarise(1), {Evaluate(1, 0), Evaluate(1, 1)}),
        (
            CROSS_FIT,
            Train(1, 0),
            {Train(0, 0), WriteMaps(0, 0, 0), WriteMaps(0, 0, 1), WriteMaps(0, 0, 2)},
        ),
        (CROSS_FIT, Train(1, 0, 1), {Train(0, 0, 1), WriteMaps(0, 0, 0), WriteMaps(0, 0, 2)}),
        (CROSS_FIT, WriteMaps(1, 0, 2), {Train(1, 0, 2), WriteMaps(0, 0, 2)}),
        (CROSS_FIT, Evaluate(2, 0), {Train(2, 0)}),
        (RECYCLE, Train(1, 0), {Train(0, 0)}),
        (RECYCLE, Evaluate(1, 0), {Train(1, 0)}),
        (a_plan(0, warm_start=False), Train(1, 0), {WriteMaps(0, 0)}),
        (
            a_plan(0, maps="cross_fit", num_parts=2, warm_start=False),
            Train(1, 0, 0),
            {WriteMaps(0, 0, 1)},
        ),
        (a_plan(0, maps="recycle", warm_start=False), Train(1, 0), {Train(0, 0)}),
        (a_plan(0, maps="corrupted", warm_start=False), Train(1, 0), {Train(0, 0)}),
        (a_plan(0, test="chain"), Evaluate(2, 0), {Train(0, 0), Train(1, 0), Train(2, 0)}),
        (a_plan(0, test="chain"), Train(2, 0), {Train(0, 0), Train(1, 0), WriteMaps(1, 0)}),
        (
            a_plan(0, maps="cross_fit", num_parts=2, test="chain", warm_start=False),
            Train(1, 0),
            {Train(0, 0), WriteMaps(0, 0, 0), WriteMaps(0, 0, 1)},
        ),
        (
            a_plan(0, maps="cross_fit", num_parts=2, test="chain", warm_start=False),
            Train(2, 0, 1),
            {Train(0, 0, 1), Train(1, 0, 1), WriteMaps(1, 0, 0)},
        ),
    ],
)
def test_an_action_needs_exactly_what_it_reads(
    plan: CirclePlan, action: Action, expected: set[Action]
) -> None:
    found = find_prerequisites(plan, action)
    assert set(found) == expected
    assert len(found) == len(expected)


def test_weights_maps_and_models_come_from_where_the_plan_says() -> None:
    assert find_warm_start(CROSS_FIT, Train(0, 0)) is None
    assert find_warm_start(CROSS_FIT, Train(2, 0, 1)) == Train(1, 0, 1)
    assert find_warm_start(a_plan(0, warm_start=False), Train(2, 0)) is None
    assert find_map_writers(CROSS_FIT, Train(2, 1, 0)) == (WriteMaps(1, 1, 1), WriteMaps(1, 1, 2))
    assert find_map_writers(CROSS_FIT, WriteMaps(1, 1, 2)) == (WriteMaps(0, 1, 2),)
    assert find_map_writers(CROSS_FIT, Evaluate(1, 1)) == ()
    assert find_map_writers(RECYCLE, Train(1, 1)) == ()
    assert find_models_used(CROSS_FIT, WriteMaps(1, 1, 2)) == (Train(1, 1, 2),)
    assert find_models_used(CROSS_FIT, Evaluate(2, 1)) == (Train(2, 1),)
    assert find_models_used(a_plan(0, test="chain"), Evaluate(1, 0)) == (Train(0, 0), Train(1, 0))
    assert (
        find_models_used(CROSS_FIT, Summarise(1)) == find_models_used(CROSS_FIT, Train(1, 1)) == ()
    )


@given(plans)
def test_actions_are_listed_after_what_they_need_and_each_once(plan: CirclePlan) -> None:
    listed = list_actions(plan)
    place = {action: number for number, action in enumerate(listed)}
    assert len(place) == len(listed)
    for action in listed:
        assert all(place[other] < place[action] for other in find_prerequisites(plan, action))


# Models and mapped rows


def rows_seen(plan: CirclePlan) -> tuple[dict[Train, set[int]], dict[WriteMaps, set[int]]]:
    """Simulate a plan with three images per part. Return the images seen and mapped."""
    num_parts = plan.circle.num_parts if plan.circle.maps == "cross_fit" else 1
    rows = set(range(3 * num_parts))
    seen: dict[Train, set[int]] = {}
    mapped: dict[WriteMaps, set[int]] = {}
    for action in list_actions(plan):
        if isinstance(action, Train):
            own = {row for row in rows if action.part is None or row // 3 != action.part}
            ancestor = find_warm_start(plan, action)
            seen[action] = own | (seen[ancestor] if ancestor else set())
            if action.round > 0 and plan.circle.stores_maps:
                maps = [row for read in find_map_writers(plan, action) for row in mapped[read]]
                assert sorted(maps) == sorted(own)  # a map for every training row only
        elif isinstance(action, WriteMaps):
            mapped[action] = {row for row in rows if action.part is None or row // 3 == action.part}
            for prior in find_map_writers(plan, action):
                assert mapped[prior] == mapped[action]
    return seen, mapped


@given(plans)
def test_in_cross_fit_no_map_comes_from_a_model_that_has_ever_seen_the_image(
    plan: CirclePlan,
) -> None:
    seen, mapped = rows_seen(plan)
    for action, rows in mapped.items():
        (model,) = find_models_used(plan, action)
        if plan.circle.maps == "cross_fit":
            assert not rows & seen[model]
            assert action.part not in _find_seen_parts(plan, action)
        else:
            assert rows <= seen[model]  # in_sample maps training rows
            assert _find_seen_parts(plan, action) == {None}


@given(plans)
def test_weights_have_seen_what_they_were_trained_on_and_started_from(plan: CirclePlan) -> None:
    seen, _ = rows_seen(plan)
    for model, rows in seen.items():
        parts = {row // 3 for row in rows} if plan.circle.maps == "cross_fit" else {None}
        assert _find_seen_parts(plan, model) == parts


# Plans and configuration


def test_the_settings_of_the_circle_are_configuration_keys() -> None:
    names = "num_rounds maps num_parts num_passes test warm_start max_attempts"
    assert {f"circle.{name}" for name in names.split()} <= set(list_config_keys())


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("num_rounds", 0, "greater than or equal to 1"),
        ("num_passes", 0, "greater than or equal to 1"),
        ("max_attempts", 0, "greater than or equal to 1"),
        ("num_parts", 1, "greater than or equal to 2"),
        ("maps", "both", "'in_sample', 'cross_fit', 'recycle' or 'corrupted'"),
        ("test", "maps", "'passes' or 'chain'"),
    ],
)
def test_a_wrong_setting_is_named(key: str, value: object, rule: str) -> None:
    with pytest.raises(ConfigError, match=rf"`circle\.{key}` is wrong: .*{rule}"):
        config_from_dict({"circle": {key: value}})


def test_a_plan_does_not_depend_on_the_order_in_which_folds_are_named() -> None:
    circle = CircleConfig()
    assert CirclePlan.of(circle, [3, 0, 3, 1]) == CirclePlan(circle=circle, folds=(0, 1, 3))
    with pytest.raises(ConfigError, match="must have a fold, but got none"):
        CirclePlan.of(circle, [])
    for folds in ((), (1, 0), (0, 0)):
        with pytest.raises(ValueError, match="must be ascending"):
            CirclePlan(circle=circle, folds=folds)
