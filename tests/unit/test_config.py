"""Configurations: accepted values, merging and errors."""

import dataclasses
import json
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtil import presets
from mtil.config import (
    Config,
    apply_overrides,
    compute_config_digest,
    config_from_dict,
    config_from_yaml,
    config_to_dict,
    describe_config_keys,
    list_config_keys,
)
from mtil.errors import ConfigError
from mtil.presets import PRESETS


def test_values_are_laid_over_the_base_key_by_key() -> None:
    base = config_from_dict({"seed": 3, "train": {"num_epochs": 7}})
    made = config_from_dict(
        {"train": {"batch_size": 4}, "model": {"attention": {"kind": "self"}}}, base
    )
    assert (made.seed, made.train.num_epochs, made.train.batch_size) == (3, 7, 4)
    assert made.model.attention == dataclasses.replace(base.model.attention, kind="self")
    assert made.loss == Config().loss
    assert base.train.batch_size == 16  # the base is unchanged
    assert config_from_dict({}) == Config()


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train": {"num_epoch": 3}}, r"`train\.num_epoch` is not .*mean `train\.num_epochs`\."),
        ({"train": {"learning-rate": 1}}, r"mean `train\.learning_rate`"),
        ({"sed": 1}, "`sed` is not a configuration key; did you mean `seed`"),
        ({"zzz": {"qqq": 1}}, "`zzz` is not a configuration key; `mtil train --keys` lists all"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_from_dict(values)


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("train.num_epochs", 0, "greater than or equal to 1"),
        ("train.num_epochs", 2.5, "valid integer"),
        ("train.num_epochs", "many", "valid integer"),
        ("train.learning_rate", 0.0, "greater than 0"),
        ("train.ema_decay", 1, "less than 1"),
        ("train.precision", "fp16", "'auto', 'fp32', 'bf16' or 'fp64'"),
        ("data.image_size", 100, "multiple of 32"),
        ("data.normals", "perhaps", "valid boolean"),
        ("augment.horizontal_flip", 1.5, "less than or equal to 1"),
        ("model.decoder_channels", [8, 8], "field required"),
        ("model.attention.kind", "other", "'self', 'cross', 'both' or 'none'"),
        ("loss.label_smoothing", 0.5, r"less than 0\.5"),
        ("seed", -1, "greater than or equal to 0"),
        ("seed", None, "valid integer"),
    ],
)
def test_a_wrong_value_is_named_with_key_and_rule(key: str, value: object, rule: str) -> None:
    tree: object = value
    for part in reversed(key.split(".")):
        tree = {part: tree}
    with pytest.raises(ConfigError, match=rule) as caught:
        config_from_dict(tree)  # type: ignore[arg-type]
    assert str(caught.value).startswith(f"`{key}")
    if key != "model.decoder_channels":  # a missing element has no value
        assert f"but got {value!r}." in str(caught.value)
    assert "\n" not in str(caught.value)


_NUMBERS = [name for name, kind, _ in describe_config_keys() if kind.split()[0] in ("int", "float")]


@pytest.mark.parametrize("key", [*_NUMBERS, "model.decoder_channels"])
@pytest.mark.parametrize("value", [1e30, 10**400])
def test_no_number_is_without_bounds(key: str, value: float) -> None:
    """Excessive numbers are refused when read, before a training fails."""
    tree: object = [value] * 4 if key == "model.decoder_channels" else value
    for part in reversed(key.split(".")):
        tree = {part: tree}
    with pytest.raises(ConfigError, match=rf"^`{re.escape(key)}(\.0)?` is wrong: "):
        config_from_dict(tree)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("key", "most", "more"),
    [
        ("seed", 2**63 - 1, 2**63),
        ("data.image_size", 4096, 4128),
        ("train.batch_size", 16_384, 16_385),
        ("train.num_epochs", 100_000, 100_001),
        ("model.aggregation.reduction", 2048, 2049),
        ("circle.num_passes", 100, 101),
        ("circle.num_rounds", 100, 101),
        ("circle.num_parts", 100, 101),
        ("train.max_failures", 1_000_000, 1_000_001),
        ("train.gpus_per_worker", 64, 65),
        ("train.cpus_per_worker", 0.01, 0.001),
    ],
)
def test_a_bound_is_allowed_and_what_is_beyond_is_not(key: str, most: float, more: float) -> None:
    apply_overrides(Config(), {key: str(most)})
    with pytest.raises(ConfigError, match=rf"`{re.escape(key)}` is wrong: input should be "):
        apply_overrides(Config(), {key: str(more)})


@pytest.mark.parametrize("gpus", [1.5, 0.001])
def test_a_worker_has_whole_gpus_or_a_share_of_one(gpus: float) -> None:
    with pytest.raises(ConfigError, match=rf"a whole number or a share .*, but is {gpus};"):
        config_from_dict({"train": {"gpus_per_worker": gpus}})
    assert config_from_dict({"train": {"gpus_per_worker": 0.25}}).train.gpus_per_worker == 0.25


def test_a_value_in_place_of_a_group_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"`model\.attention` must be a group of keys, but got 4"):
        config_from_dict({"model": {"attention": 4}})
    with pytest.raises(ConfigError, match=r"`train\.num_epochs` is wrong: .* but got an object"):
        config_from_dict({"train": {"num_epochs": {"x": 1}}})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("key", ["learning_rate", "weight_decay", "cpus_per_worker"])
def test_a_number_must_be_finite(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"`train\.{key}.*finite number, but got {value}"):
        config_from_dict({"train": {key: value}})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"model": {"attention": {"width": 100, "num_heads": 8}}},
            r"`model\.attention\.num_heads` must divide .* 8 heads for a width of 100",
        ),
        (
            {"model": {"attention": {"levels": [32, 16, 32]}}},
            r"`model\.attention\.levels` must not repeat, but got \[32, 16, 32\]",
        ),
        (
            {"train": {"batch_size": 3, "num_workers": 4}},
            r"`train\.batch_size` must be at least `train\.num_workers`, but got 3 for 4 workers",
        ),
        (
            {"train": {"cuda_graphs": True}},
            r"`train\.cuda_graphs` needs a GPU per worker, but `train\.gpus_per_worker` is 0",
        ),
        (
            {
                "train": {"cuda_graphs": True, "gpus_per_worker": 1},
                "circle": {"maps": "recycle"},
            },
            r"must be off with `circle\.maps` recycle",
        ),
        (
            {"train": {"batch_size": 16, "micro_batch_size": 5, "num_workers": 5}},
            r"`train\.micro_batch_size` must give every worker an image in each forward pass, but "
            r"gives 4 images for 5 workers; choose at least 10\.",
        ),
        (
            {"train": {"min_workers": 3, "num_workers": 2}},
            r"`train\.min_workers` must not exceed `train\.num_workers`, but got 3 for 2 workers",
        ),
    ],
)
def test_values_must_agree_with_one_another(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_from_dict(values)


def test_overrides_take_dashes_for_underscores_and_read_yaml() -> None:
    made = apply_overrides(
        Config(),
        {
            "model.attention.num-heads": "8",
            "train.learning_rate": "1e-4",
            "train.cpus-per-worker": "null",
            "model.decoder-channels": "[4, 4, 4, 4]",
            "data.normals": "false",
            "train.patience": "007",
        },
    )
    assert made.model.attention.num_heads == 8
    assert made.train.learning_rate == 1e-4
    assert made.train.cpus_per_worker is None
    assert made.model.decoder_channels == (4, 4, 4, 4)
    assert made.data.normals is False
    assert made.train.patience == 7


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("train.num-epoch", "3", r"did you mean `train\.num_epochs`"),
        ("train", "3", "`train` must be a group of keys, but got 3"),
        ("train.num-epochs", "many", r"`train\.num_epochs` is wrong: .*, but got 'many'"),
        ("train.num-epochs", "", r"`train\.num_epochs` is wrong: .*, but got None"),
        ("seed", "[1", "`seed` on the command line must be YAML, but is not: "),
        ("seed.x", "1", "`seed` is wrong"),
        ("", "1", "`` is not a configuration key"),
    ],
)
def test_wrong_overrides_are_refused(key: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        apply_overrides(Config(), {key: text})


def test_a_key_cannot_be_both_a_value_and_a_group() -> None:
    with pytest.raises(ConfigError, match="`train` must be a group of keys"):
        apply_overrides(Config(), {"train": "3", "train.num_epochs": "4"})
    with pytest.raises(ConfigError, match="`train` must be a group of keys"):
        apply_overrides(Config(), {"train.num_epochs": "4", "train": "3"})


def test_yaml_is_laid_over_the_base() -> None:
    text = "seed: 5\ntrain:\n  num_epochs: 2\n"
    assert config_from_yaml(text, source="x") == config_from_dict(
        {"seed": 5, "train": {"num_epochs": 2}}
    )
    base = config_from_dict({"seed": 1, "train": {"batch_size": 2}})
    assert config_from_yaml(text, base, source="x").train.batch_size == 2
    assert config_from_yaml("", base, source="x") == base
    assert config_from_yaml("# nothing\n", source="x") == Config()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "c.yaml must be YAML, but is not: expected .* at line 1, column 6; correct"),
        ("- 1\n- 2\n", "c.yaml must be a mapping of keys, but holds an array"),
        ("hello", "c.yaml must be a mapping of keys, but holds 'hello'"),
        ("!!python/object/apply:os.getcwd []", "c.yaml must be YAML, but is not"),
        ("seeds: 1", "did you mean `seed`"),
        ("1: 2", "c.yaml must have texts as keys, but has 1"),
        ("seed: 1e30", "`seed` is wrong: .* valid integer, but got 1e\\+30"),
        ("seed: true", "`seed` is wrong: .* valid integer, but got True"),
        ("seed: '1'", "`seed` is wrong: .* valid integer, but got '1'"),
        ("data: {normals: 1}", r"`data\.normals` is wrong: .* valid boolean, but got 1"),
        ("train: {learning_rate: true}", r"learning_rate` is wrong: .* valid number, but got True"),
        ("seed: &a 1\ndata: {image_size: *a}", "c.yaml must have no YAML aliases"),
    ],
)
def test_wrong_yaml_is_one_sentence(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        config_from_yaml(text, source="c.yaml")
    assert "\n" not in str(caught.value)


def test_plain_values_make_the_same_configuration_again() -> None:
    for config in (Config(), *(make() for make in PRESETS.values())):
        plain = json.loads(json.dumps(config_to_dict(config)))
        assert config_from_dict(plain, config_from_dict({"seed": 99})) == config
        assert config_from_yaml(json.dumps(plain), source="x") == config


@pytest.mark.slow
@given(
    st.fixed_dictionaries(
        {
            "seed": st.integers(0, 2**63 - 1),
            "train": st.fixed_dictionaries(
                {
                    "learning_rate": st.floats(1e-12, 10),
                    "num_epochs": st.integers(1, 10**5),
                    "cpus_per_worker": st.none() | st.floats(0.01, 64),
                }
            ),
            "model": st.fixed_dictionaries(
                {"attention": st.fixed_dictionaries({"levels": st.permutations([8, 16, 32])})}
            ),
        }
    )
)
def test_any_values_survive_json_and_keep_their_digest(values: dict[str, object]) -> None:
    config = config_from_dict(values)
    again = config_from_dict(json.loads(json.dumps(config_to_dict(config))))
    assert again == config
    assert compute_config_digest(again) == compute_config_digest(config)


def test_the_digest_is_that_of_the_values() -> None:
    assert (
        compute_config_digest(Config())
        == compute_config_digest(config_from_dict({"seed": 0}))
        == compute_config_digest(config_from_dict({}))
    )
    assert len(compute_config_digest(Config())) == 64
    assert compute_config_digest(
        config_from_dict({"train": {"weight_decay": 1}})
    ) == compute_config_digest(config_from_dict({"train": {"weight_decay": 1.0}}))


@pytest.mark.parametrize("key", ["seed", "loss.boundary", "train.num_epochs", "model.head.dropout"])
def test_any_other_value_gives_another_digest(key: str) -> None:
    value = {name: value for name, _, value in describe_config_keys()}[key]
    step = 0.125 if isinstance(value, float) else 1
    assert compute_config_digest(
        apply_overrides(Config(), {key: str(value + step)})
    ) != compute_config_digest(Config())


def test_every_key_is_listed_with_its_type_and_value() -> None:
    rows = describe_config_keys(config_from_dict({"seed": 4}))
    assert [name for name, _, _ in rows] == list(list_config_keys())
    assert len(set(list_config_keys())) == len(list_config_keys())
    assert {
        ("seed", "int >= 0, <= 9223372036854775807", 4),
        ("data.image_size", "int >= 32, <= 4096, multiple of 32", 256),
        ("data.normals", "bool", True),
        ("model.encoder.name", "str", "efficientnet_lite0"),
        ("model.attention.levels", "list of 8|16|32", (32, 16)),
        ("loss.label_smoothing", "float >= 0, < 0.5", 0.05),
        ("train.precision", "auto|fp32|bf16|fp64", "auto"),
        ("train.cpus_per_worker", "float >= 0.01, <= 4096 or null", None),
    } <= set(rows)
    promised = (
        "train.num_epochs train.batch_size train.learning_rate train.num_workers "
        "model.encoder.name model.attention.num_heads model.attention.kind loss.segmentation "
        "loss.classification seed"
    )
    assert set(promised.split()) <= set(list_config_keys())


def test_every_key_can_be_overridden_with_its_own_value() -> None:
    for name, _, value in describe_config_keys():
        text = json.dumps(value)
        assert apply_overrides(Config(), {name.replace("_", "-"): text}) == Config()


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_differ_only_as_they_say(name: str) -> None:
    config = presets.load_config(name)
    assert config == config_from_dict(config_to_dict(config))
    assert config.data.image_size == {"demo": 96, "cpu": 160, "best": 160, "base": 256}[name]
    assert config.train.gpus_per_worker == {"demo": 0, "cpu": 0, "best": 0, "base": 1}[name]
    assert config.zoom.num_windows == {"demo": 0, "cpu": 1, "best": 1, "base": 0}[name]
    assert config.loss == Config().loss
    assert config.model.encoder.name == f"efficientnet_lite{2 if name == 'best' else 0}"
    same_encoder = dataclasses.replace(config.model.encoder, name=Config().model.encoder.name)
    assert dataclasses.replace(config.model, encoder=same_encoder) == Config().model


def test_a_file_is_laid_over_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("data: {image_size: 64}\n")
    assert presets.load_config(str(path)) == config_from_dict({"data": {"image_size": 64}})
    assert presets.load_config(path.as_uri()) == presets.load_config(str(path))
    path = path.with_suffix(".json")
    path.write_text('{"seed": 7}')
    assert presets.load_config(str(path)).seed == 7


def test_a_file_in_the_working_folder_needs_no_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "best.yaml").write_text("seed: 8\n")
    monkeypatch.chdir(tmp_path)
    assert presets.load_config("best.yaml").seed == 8


@pytest.mark.parametrize("name", ["Demo", "", "configs", "demo.toml"])
def test_another_name_is_refused_with_those_there_are(name: str) -> None:
    expected = f"demo, cpu, best, base or a YAML file, but got '{name}'"
    with pytest.raises(ConfigError, match=expected):
        presets.load_config(name)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, r"x\.yaml does not exist"),
        (b"\xff\xfe\x00", r"x\.yaml must be UTF-8 text, but byte 0 is not"),
        (b"- 1", r"x\.yaml must be a mapping of keys, but holds an array"),
        (b"sed: 1", "did you mean `seed`"),
    ],
)
def test_a_wrong_file_is_one_sentence(tmp_path: Path, data: bytes | None, message: str) -> None:
    path = tmp_path / "x.yaml"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ConfigError, match=message):
        presets.load_config(str(path))
