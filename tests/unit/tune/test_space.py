from collections.abc import Sequence
from typing import Any

import pytest
import yaml

from mtil import presets
from mtil.config import Config, apply_overrides, config_from_dict, config_to_dict, list_config_keys
from mtil.errors import ConfigError
from tune.space import SUBSPACES, flatten_config, format_override, make_space, to_overrides


class Scripted:
    """A trial with scripted values, else the first choice or the lower end."""

    def __init__(self, **values: Any) -> None:
        self.values = {key.replace("__", "."): value for key, value in values.items()}
        self.asked: dict[str, Any] = {}

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        self.asked[name] = tuple(choices)
        return self.values.get(name, choices[0])

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        self.asked[name] = (low, high, log)
        return float(self.values.get(name, low))

    def suggest_int(self, name: str, low: int, high: int) -> int:
        self.asked[name] = (low, high)
        return int(self.values.get(name, low))


def test_every_key_of_the_space_is_a_configuration_key() -> None:
    known = set(list_config_keys())
    for dimensions in SUBSPACES.values():
        for dimension in dimensions:
            assert {dimension.key, *dimension.when} <= known


def test_every_value_of_the_space_is_one_that_the_configuration_takes() -> None:
    for dimensions in SUBSPACES.values():
        for dimension in dimensions:
            domain: Any = dimension.domain
            for value in getattr(domain, "values", None) or (domain.low, domain.high):
                made = flatten_config(
                    apply_overrides(Config(), {dimension.key: format_override(value)})
                )
                assert format_override(made[dimension.key]) == format_override(value)


def test_without_attention_nothing_of_it_is_asked() -> None:
    trial = Scripted(model__attention__kind="none")
    assert make_space(Config(), ["attention"]).suggest(trial) == {"model.attention.kind": "none"}
    assert list(trial.asked) == ["model.attention.kind"]


def test_direction_and_fusion_are_asked_where_they_matter() -> None:
    asked = {}
    for kind in ("self", "cross", "both"):
        trial = Scripted(model__attention__kind=kind)
        make_space(Config(), ["attention"]).suggest(trial)
        asked[kind] = {key.rpartition(".")[2] for key in trial.asked}
    common = {"kind", "form", "levels", "width", "num_heads"}
    assert asked == {
        "self": common,
        "cross": common | {"direction"},
        "both": common | {"direction", "fusion"},
    }


def test_loss_weights_are_asked_unless_they_are_learned() -> None:
    learned = Scripted(loss__weighting="uncertainty", loss__classification_kind="focal")
    make_space(Config(), ["loss"]).suggest(learned)
    assert "loss.segmentation" not in learned.asked
    assert "loss.focal_gamma" in learned.asked
    fixed = Scripted(loss__weighting="fixed")
    make_space(Config(), ["loss"]).suggest(fixed)
    assert fixed.asked["loss.classification"] == (0.05, 2.0, True)
    assert "loss.focal_gamma" not in fixed.asked


def test_what_a_key_depends_on_may_be_the_base_configurations() -> None:
    plain = config_from_dict({"model": {"attention": {"kind": "none"}}})
    trial = Scripted()
    make_space(plain, ["prior"]).suggest(trial)
    assert "model.prior.attention" not in trial.asked
    chained = config_from_dict({"circle": {"test": "chain"}})
    trial = Scripted()
    make_space(chained, ["circle"]).suggest(trial)
    assert list(trial.asked) == ["circle.maps"]


def test_a_chain_is_not_searched_with_what_it_cannot_have() -> None:
    trial = Scripted()
    make_space(config_from_dict({"circle": {"test": "chain"}}), ["circle"]).suggest(trial)
    assert trial.asked == {"circle.maps": ("in_sample", "cross_fit")}


def test_the_map_biases_attention_over_positions_only() -> None:
    for form, asked in (("location", True), ("semantic", False), ("both", True)):
        trial = Scripted()
        make_space(config_from_dict({"model": {"attention": {"form": form}}}), ["prior"]).suggest(
            trial
        )
        assert ("model.prior.attention" in trial.asked) == asked


def test_a_trial_is_a_list_of_overrides() -> None:
    point = make_space(Config(), ["attention"]).suggest(Scripted(model__attention__kind="self"))
    assert to_overrides(point | {"model.prior.stem": False, "train.learning_rate": 1e-05}) == {
        "model.attention.kind": "self",
        "model.attention.form": "location",
        "model.attention.levels": "[32]",
        "model.attention.width": "32",
        "model.attention.num_heads": "2",
        "model.prior.stem": "false",
        "train.learning_rate": "1e-05",
    }


@pytest.mark.parametrize("name", list(presets.PRESETS))
def test_the_space_holds_each_presets_own_point(name: str) -> None:
    space = make_space(presets.load_config(name), list(SUBSPACES))
    point = space.default()
    assert point is not None
    values = flatten_config(space.base)
    assert point == {key: values[key] for key in point}
    assert point["model.attention.levels"] == "[32, 16]"


def test_a_base_outside_of_the_space_has_no_point_of_its_own() -> None:
    assert (
        make_space(config_from_dict({"train": {"ema_decay": 0.5}}), ["optimiser"]).default() is None
    )
    assert make_space(config_from_dict({"loss": {"boundary": 3.0}}), ["loss"]).default() is None


def test_narrowing_leaves_less_and_fixing_leaves_nothing() -> None:
    narrowing = {
        "model": {"attention": {"kind": ["self", "both"], "levels": [32, 16]}},
        "model.attention.width": [32, 64],
        "model.attention.num-heads": 4,
        "loss.dice": [0.4, 0.6],
        "loss.boundary": 0.25,
        "loss.deep_supervision": 0,
    }
    space = make_space(Config(), ["attention", "loss"], narrowing)
    trial = Scripted(model__attention__kind="self")
    space.suggest(trial)
    assert trial.asked["model.attention.kind"] == ("self", "both")
    assert trial.asked["model.attention.width"] == (32, 64)
    assert trial.asked["loss.dice"] == (0.4, 0.6, False)
    fixed = {"model.attention.levels", "model.attention.num_heads", "loss.boundary"}
    assert not (fixed | {"loss.deep_supervision"}) & trial.asked.keys()
    assert space.base.model.attention.levels == (32, 16)
    assert space.base.model.attention.num_heads == 4
    assert (space.base.loss.boundary, space.base.loss.deep_supervision) == (0.25, 0.0)


def test_numbers_are_narrowed_by_their_value() -> None:
    narrowing = yaml.safe_load("train: {learning_rate: [1e-4, 1e-3], ema_decay: [0, 0.99, 0.99]}")
    assert narrowing["train"]["learning_rate"] == ["1e-4", "1e-3"]  # PyYAML reads text
    trial = Scripted()
    make_space(Config(), ["optimiser"], narrowing).suggest(trial)
    assert trial.asked["train.learning_rate"] == (1e-4, 1e-3, True)
    assert trial.asked["train.ema_decay"] == (0.0, 0.99)
    fixed = make_space(Config(), ["optimiser"], {"train": {"ema_decay": 0, "weight_decay": "1e-3"}})
    assert (fixed.base.train.ema_decay, fixed.base.train.weight_decay) == (0.0, 1e-3)
    assert fixed.fixed == {"train.ema_decay": "0.0", "train.weight_decay": "0.001"}
    with pytest.raises(ConfigError, match="but got 0"):
        make_space(Config(), ["prior"], {"model.prior.stem": 0})  # 0 is not false


def test_lists_of_levels_can_be_narrowed() -> None:
    space = make_space(Config(), ["attention"], {"model.attention.levels": [[32], [32, 16, 8]]})
    trial = Scripted(model__attention__kind="self")
    space.suggest(trial)
    assert trial.asked["model.attention.levels"] == ("[32]", "[32, 16, 8]")


@pytest.mark.parametrize(
    ("narrowing", "message"),
    [
        ({"loss.dise": 1}, r"`loss.dise` is not in the space; did you mean `loss.dice`"),
        ({"train.ema_decay": 0.9}, "belongs to `optimiser`, which --space does not name"),
        ({"seed": 1}, "`seed` is not in the space"),
        ({"loss.dice": [0.6, 0.4]}, "The range of `loss.dice` is empty: 0.6 to 0.4"),
        ({"loss.dice": [0.1, 0.4]}, "`loss.dice` can be narrowed to a range within 0.2 to 0.8"),
        ({"loss.dice": "much"}, "`loss.dice` must be a number or the two ends"),
        ({"loss.dice": [True, 1]}, "`loss.dice` must be a number or the two ends"),
        ({"loss.dice": [0.3, 0.4, 0.5]}, "`loss.dice` must be a number or the two ends"),
        ({"loss.weighting": []}, "`loss.weighting` must have at least one value"),
        ({"loss.weighting": ["learned"]}, "some of fixed, uncertainty, but got 'learned'"),
        ({"model.attention.width": ["64"]}, "some of 32, 64, 96, 128, but got '64'"),
    ],
)
def test_wrong_narrowing_names_the_key(narrowing: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_space(Config(), ["attention", "loss"], narrowing)


def test_whole_numbers_are_narrowed_to_whole_numbers() -> None:
    trial = Scripted()
    make_space(Config(), ["circle"], {"circle.num_passes": [2, 3]}).suggest(trial)
    assert trial.asked["circle.num_passes"] == (2, 3)
    with pytest.raises(ConfigError, match=r"`circle.num_passes` must be a whole number"):
        make_space(Config(), ["circle"], {"circle.num_passes": [1.5, 3]})


def test_a_space_must_be_known_and_vary_something() -> None:
    with pytest.raises(ConfigError, match=r"must name some of attention, .* but got 'losses'"):
        make_space(Config(), ["losses"])
    everything = {"model.aggregation.kind": "fab", "model.aggregation.reduction": 8}
    with pytest.raises(ConfigError, match="every key is fixed"):
        make_space(Config(), ["aggregation"], everything)


def test_what_has_no_effect_varies_nothing() -> None:
    with pytest.raises(ConfigError, match="or has no effect"):
        make_space(Config(), ["attention"], {"model.attention.kind": "none"})
    baseline = config_from_dict({"model": {"baseline": True}})
    for name in ("attention", "aggregation", "prior"):
        with pytest.raises(ConfigError, match="or has no effect"):
            make_space(baseline, [name])
    trial = Scripted()
    make_space(baseline, ["attention", "loss"]).suggest(trial)
    assert {key.partition(".")[0] for key in trial.asked} == {"loss"}
    narrowing = {"model.attention.kind": "self"}
    assert "model.attention.width" in make_space(Config(), ["attention"], narrowing).suggest(
        Scripted()
    )


def test_narrowing_changes_nothing_else() -> None:
    fixed = make_space(Config(), ["loss"], {"loss.boundary": 0.5}).base
    before, after = config_to_dict(Config()), config_to_dict(fixed)
    before["loss"]["boundary"] = 0.5
    assert after == before
