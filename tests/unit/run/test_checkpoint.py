"""Model files and training checkpoints: round trips, and refusal of damaged or foreign files."""

import dataclasses
import hashlib
import io
import json
import math
import os
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mtil import __version__
from mtil.config import Config, config_from_dict, config_to_dict
from mtil.errors import CheckpointError, StorageError
from mtil.models import TwoTaskNetwork
from mtil.run.checkpoint import (
    TrainedModel,
    TrainingCheckpoints,
    model_from_bytes,
    model_to_bytes,
)
from mtil.storage import LocalStore

MakeConfig = Callable[..., Config]


@pytest.fixture(scope="module")
def model(make_config: MakeConfig) -> TrainedModel:
    """Return a model. All weights and statistics differ from a new network."""
    config = make_config()
    torch.manual_seed(0)
    network = TwoTaskNetwork(config.model)
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.add_(0.02 * torch.randn_like(value).abs())
            else:
                value.fill_(7)
    return TrainedModel(
        config=config,
        weights=network.state_dict(),
        fingerprint="a" * 64,
        fold=2,
        source_size=64,
        epoch=11,
        temperature=1.25,
        threshold=0.4375,
    )


@pytest.fixture(scope="module")
def data(model: TrainedModel) -> bytes:
    return model_to_bytes(model)


def _saved(values: object, **options: Any) -> bytes:
    sink = io.BytesIO()
    torch.save(values, sink, **options)
    return sink.getvalue()


def _changed(data: bytes, **changes: object) -> bytes:
    values = torch.load(io.BytesIO(data), weights_only=True)
    return _saved(values | changes)


def test_a_model_comes_back_whole(model: TrainedModel, data: bytes) -> None:
    again = model_from_bytes(data, "x.pt")
    assert again.digest == hashlib.sha256(data).hexdigest()
    assert again.version == __version__
    for field in dataclasses.fields(TrainedModel):
        if field.name not in ("weights", "digest"):
            assert getattr(again, field.name) == getattr(model, field.name)
    assert again.weights.keys() == model.weights.keys()
    for name, value in model.weights.items():
        assert again.weights[name].dtype == value.dtype
        assert torch.equal(again.weights[name], value)


def test_its_network_says_the_same_to_the_bit(model: TrainedModel, data: bytes) -> None:
    image = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(3))
    direct = TwoTaskNetwork(model.config.model)
    direct.load_state_dict(model.weights)
    network = model_from_bytes(data, "x.pt").network()
    assert not network.training
    with torch.no_grad():
        expected, got = direct.eval()(image), network(image)
    assert torch.equal(got.mask, expected.mask)
    assert torch.equal(got.malignant, expected.malignant)
    assert expected.mask.std() > 0


def test_a_network_needs_no_pretrained_weights(
    model: TrainedModel, make_config: MakeConfig
) -> None:
    """Pretrained weights would only be overwritten, and ResNet has no pretrained weights."""
    resnet = make_config(model={"baseline": True, "encoder": {"name": "resnet18"}})
    weights = TwoTaskNetwork(resnet.model).state_dict()
    pretrained = config_from_dict({"model": {"encoder": {"pretrained": True}}}, resnet)
    made = dataclasses.replace(model, config=pretrained, weights=weights)
    assert torch.equal(made.network().encoder.conv.weight, weights["encoder.conv.weight"])


class _Malicious:
    """Runs a command on unpickling."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.path}'",)


def test_code_in_a_model_file_is_refused_and_not_run(tmp_path: Path, data: bytes) -> None:
    trap = tmp_path / "trap"
    values = torch.load(io.BytesIO(data), weights_only=True)
    values["weights"]["evil"] = _Malicious(trap)
    for attack in (
        _saved(values),
        _saved(values, _use_new_zipfile_serialization=False),
        pickle.dumps(_Malicious(trap)),
    ):
        with pytest.raises(CheckpointError, match=r"evil\.pt is not a file that mtil wrote"):
            model_from_bytes(attack, "evil.pt")
    assert not trap.exists()
    torch.load(io.BytesIO(_saved(values)), weights_only=False)
    assert trap.exists()  # the trap works with an unsafe load


def test_code_in_a_training_checkpoint_is_refused_and_not_run(tmp_path: Path) -> None:
    """A matching sha256 in the pointer makes no difference."""
    store, trap = LocalStore(str(tmp_path / "run")), tmp_path / "trap"
    data = _saved({"state": _Malicious(trap)})
    pointer = {"file": "evil.pt", "epoch": 0, "sha256": hashlib.sha256(data).hexdigest()}
    store.write("c/evil.pt", data)
    store.write("c/latest.json", json.dumps(pointer).encode())
    with pytest.raises(CheckpointError, match=r"c/evil\.pt is not a file that mtil wrote"):
        TrainingCheckpoints(store, "c").load()
    assert not trap.exists()


@pytest.mark.parametrize("length", [0, 1, 100, 0.5, 0.999, -1])
def test_a_truncated_file_is_refused(data: bytes, length: float) -> None:
    cut = data[: int(length * len(data)) if 0 < length < 1 else int(length)]
    with pytest.raises(CheckpointError, match=r"x\.pt is not a file that mtil wrote, or it is"):
        model_from_bytes(cut, "x.pt")


@pytest.mark.parametrize("member", ["data.pkl", "data/0", "data/7", "byteorder", "version"])
def test_a_flipped_bit_is_noticed(data: bytes, member: str) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        info = next(info for info in archive.infolist() if info.filename.endswith(f"/{member}"))
        start = data.index(archive.read(info), info.header_offset)
    changed = bytearray(data)
    changed[start + info.file_size // 2] ^= 1
    with pytest.raises(CheckpointError, match=r"x\.pt is not a file that mtil wrote, or it is"):
        model_from_bytes(bytes(changed), "x.pt")


def test_no_damage_escapes_as_another_error() -> None:
    whole = _saved({"kind": "mtil model", "weights": torch.arange(9.0), "nested": {"a": [1, "b"]}})
    rng = random.Random(0)
    for position in rng.sample(range(len(whole)), 300):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << rng.randrange(8)
        with pytest.raises(CheckpointError):
            model_from_bytes(bytes(damaged), "x.pt")


@pytest.mark.parametrize(
    "other", [b"GIF89a" * 50, b"{}", b"\x80\x04K\x01.", _saved([1, 2]), _saved(torch.zeros(2))]
)
def test_a_file_of_another_program_is_refused(other: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"x\.pt is not a file that mtil wrote"):
        model_from_bytes(other, "x.pt")


def test_another_kind_of_file_is_refused() -> None:
    for other in (_saved({"weights": {}}), _saved({"kind": "mtil maps"}), _saved({})):
        with pytest.raises(CheckpointError, match=r"needed, but x\.pt is another kind of file"):
            model_from_bytes(other, "x.pt")


def test_a_configuration_of_another_version_is_refused(model: TrainedModel, data: bytes) -> None:
    values = config_to_dict(model.config)
    values["model"]["novelty"] = 3
    with pytest.raises(CheckpointError) as caught:
        model_from_bytes(_changed(data, config=values, version="9.9"), "x.pt")
    assert "x.pt was made by mtil 9.9 with a configuration that this version" in str(caught.value)
    assert "`model.novelty` is not a configuration key" in str(caught.value)


@pytest.mark.parametrize("missing", ["config", "fingerprint", "weights"])
def test_a_model_file_that_lacks_something_is_refused(data: bytes, missing: str) -> None:
    values = torch.load(io.BytesIO(data), weights_only=True)
    del values[missing]
    message = rf"x\.pt was made by mtil {__version__}, .* differ from this version's in {missing};"
    with pytest.raises(CheckpointError, match=message):
        model_from_bytes(_saved(values), "x.pt")


def test_a_model_file_that_holds_something_unknown_is_refused(data: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"x\.pt was made by mtil 9\.9, .* in prior;"):
        model_from_bytes(_changed(data, prior="much", version="9.9"), "x.pt")


def test_weights_of_another_architecture_are_one_sentence(
    model: TrainedModel, make_config: MakeConfig
) -> None:
    for changes in ({"baseline": True}, {"decoder_channels": [8, 8, 8, 16]}):
        made = dataclasses.replace(model, config=make_config(model=changes))
        with pytest.raises(CheckpointError, match=r"do not fit \(.*\); train again") as caught:
            made.network()
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path / "run"))


@pytest.fixture
def checkpoints(store: LocalStore) -> TrainingCheckpoints:
    return TrainingCheckpoints(store, "fold-0/checkpoints")


def _state(number: int) -> dict[str, Any]:
    return {
        "weights": {"a": torch.full((3,), float(number))},
        "history": "[]",
        "number": number,
        "nested": {"groups": [{"lr": 0.1 * number}], "none": None},
    }


def test_there_is_no_checkpoint_at_first(checkpoints: TrainingCheckpoints) -> None:
    assert checkpoints.load() is None


def test_the_latest_checkpoint_is_loaded_and_its_predecessor_gone(
    checkpoints: TrainingCheckpoints, store: LocalStore
) -> None:
    for epoch in range(3):
        checkpoints.save(epoch, _state(epoch))
        state = checkpoints.load()
        assert state is not None
        assert torch.equal(state.pop("weights")["a"], torch.full((3,), float(epoch)))
        expected = _state(epoch)
        del expected["weights"]
        assert state == expected
        assert store.names() == [
            _file(store, epoch),
            "fold-0/checkpoints/latest.json",
        ]
    pointer = json.loads(store.read("fold-0/checkpoints/latest.json"))
    data = store.read(f"fold-0/checkpoints/{pointer['file']}")
    assert pointer["epoch"] == 2
    assert pointer["sha256"] == hashlib.sha256(data).hexdigest()


def _file(store: LocalStore, epoch: int, fold: str = "fold-0") -> str:
    """Return the name of the only file of an epoch."""
    start = f"{fold}/checkpoints/epoch-{epoch:04d}-"
    (name,) = (name for name in store.names() if name.startswith(start))
    return name


def test_two_processes_at_one_epoch_do_not_write_over_each_other(store: LocalStore) -> None:
    class Slow(LocalStore):
        def write(self, name: str, data: bytes) -> None:
            super().write(name, data)
            if not name.endswith("latest.json"):  # a second process is faster
                TrainingCheckpoints(store, "fold-0/checkpoints").save(1, _state(7))

    TrainingCheckpoints(store, "fold-0/checkpoints").save(0, _state(0))
    TrainingCheckpoints(Slow(store.uri), "fold-0/checkpoints").save(1, _state(1))
    state = TrainingCheckpoints(store, "fold-0/checkpoints").load()
    assert state is not None
    assert state["number"] == 1


def test_an_epoch_can_be_saved_again(checkpoints: TrainingCheckpoints, store: LocalStore) -> None:
    checkpoints.save(4, _state(1))
    checkpoints.save(4, _state(2))
    state = checkpoints.load()
    assert state is not None
    assert state["number"] == 2
    assert len(store.names()) == 2


def test_a_half_written_newer_file_is_ignored_and_then_replaced(
    checkpoints: TrainingCheckpoints, store: LocalStore
) -> None:
    checkpoints.save(0, _state(0))
    store.write("fold-0/checkpoints/epoch-0001.pt", b"half of a file")
    state = checkpoints.load()
    assert state is not None
    assert state["number"] == 0
    checkpoints.save(1, _state(1))
    state = checkpoints.load()
    assert state is not None
    assert state["number"] == 1


def test_a_process_that_dies_before_the_pointer_leaves_the_former_checkpoint(
    store: LocalStore, checkpoints: TrainingCheckpoints
) -> None:
    class DiedError(Exception):
        pass

    class Dying(LocalStore):
        def write(self, name: str, data: bytes) -> None:
            if name.endswith("latest.json"):
                raise DiedError
            super().write(name, data)

    checkpoints.save(0, _state(0))
    with pytest.raises(DiedError):
        TrainingCheckpoints(Dying(store.uri), "fold-0/checkpoints").save(1, _state(1))
    assert _file(store, 1)
    state = checkpoints.load()
    assert state is not None
    assert state["number"] == 0


@pytest.mark.parametrize("change", ["flipped", "shorter", "missing", "older"])
def test_altered_bytes_are_refused_with_the_way_out(
    checkpoints: TrainingCheckpoints, store: LocalStore, change: str
) -> None:
    checkpoints.save(0, _state(0))
    older = store.read(_file(store, 0))
    checkpoints.save(1, _state(1))
    name = _file(store, 1)
    data = bytearray(store.read(name))
    data[len(data) // 2] ^= 1
    if change == "missing":
        store.delete(name)
    else:
        whole = store.read(name)
        store.write(name, {"flipped": bytes(data), "shorter": whole[:-9], "older": older}[change])
    with pytest.raises(
        CheckpointError, match=r"epoch-0001-[0-9a-f]{12}\.pt must be the one .* delete "
    ) as got:
        checkpoints.load()
    assert f"{store.uri}/fold-0/checkpoints" in str(got.value)


def test_a_pointer_that_is_not_json_is_one_sentence(
    checkpoints: TrainingCheckpoints, store: LocalStore
) -> None:
    store.write("fold-0/checkpoints/latest.json", b"{")
    with pytest.raises(
        CheckpointError, match=r"checkpoints/latest\.json must be JSON, but .*; delete"
    ):
        checkpoints.load()


def test_cleared_checkpoints_are_gone_and_nothing_else(
    checkpoints: TrainingCheckpoints, store: LocalStore
) -> None:
    store.write("fold-0/model.pt", b"m")
    other = TrainingCheckpoints(store, "fold-1/checkpoints")
    other.save(0, _state(5))
    checkpoints.save(0, _state(0))
    store.write("fold-0/checkpoints/epoch-0001.pt", b"half")
    checkpoints.clear()
    assert checkpoints.load() is None
    assert store.names() == [
        "fold-0/model.pt",
        _file(store, 0, "fold-1"),
        "fold-1/checkpoints/latest.json",
    ]
    checkpoints.clear()  # no error without checkpoints


@pytest.mark.parametrize("link", ["fold-0", "fold-0/checkpoints"])
def test_checkpoints_are_never_cleared_through_a_link(
    checkpoints: TrainingCheckpoints, store: LocalStore, tmp_path: Path, link: str
) -> None:
    other = LocalStore(str(tmp_path / "victim"))
    TrainingCheckpoints(other, "checkpoints").save(0, _state(1))
    for name in other.names():
        other.write(name.removeprefix("checkpoints/"), other.read(name))
    before = {name: other.read(name) for name in other.names()}
    path = Path(store.uri, link)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(other.root)
    for call in (checkpoints.clear, lambda: checkpoints.save(1, _state(2))):
        with pytest.raises(StorageError, match=f"{link} is a link"):
            call()
    assert {name: other.read(name) for name in other.names()} == before


def test_files_that_are_no_checkpoints_stay(
    checkpoints: TrainingCheckpoints, store: LocalStore
) -> None:
    checkpoints.save(0, _state(0))
    for name in ("thesis.docx", "inner/epoch-0001-0123456789ab.pt", "latest.json.bak"):
        store.write(f"fold-0/checkpoints/{name}", b"mine")
    checkpoints.clear()
    assert store.names() == [
        "fold-0/checkpoints/inner/epoch-0001-0123456789ab.pt",
        "fold-0/checkpoints/latest.json.bak",
        "fold-0/checkpoints/thesis.docx",
    ]


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("temperature", math.nan, "finite"),
        ("temperature", 0.0, "greater than 0"),
        ("temperature", "1", "valid number"),
        ("threshold", 1.5, "less than or equal to 1"),
        ("threshold", math.nan, "finite"),
        ("num_passes", 10**6, "less than or equal to 100"),
        ("num_passes", True, "valid integer"),
        ("fold", -1, "greater than or equal to 0"),
        ("epoch", 1.5, "valid integer"),
        ("source_size", 10**9, "less than or equal to 4096"),
        ("fingerprint", 7, "valid string"),
        ("fingerprint", "x", "match pattern"),
        ("version", None, "valid string"),
    ],
)
def test_metadata_out_of_range_are_refused(
    data: bytes, key: str, value: object, problem: str
) -> None:
    with pytest.raises(CheckpointError, match=rf"^x\.pt is wrong at `{key}`: .*{problem}"):
        model_from_bytes(_changed(data, **{key: value}), "x.pt")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"image_size": 32_000}, "image_size"),
        ({"image_size": "256"}, "image_size"),
    ],
)
def test_a_configuration_out_of_range_is_refused(
    model: TrainedModel, data: bytes, change: dict[str, object], problem: str
) -> None:
    config = config_to_dict(model.config)
    config["data"] |= change
    with pytest.raises(CheckpointError, match=rf"does not know: `data\.{problem}` is wrong"):
        model_from_bytes(_changed(data, config=config), "x.pt")


def test_a_configuration_that_another_digest_names_is_refused(
    model: TrainedModel, data: bytes
) -> None:
    config = config_to_dict(model.config) | {"seed": 5}
    with pytest.raises(CheckpointError, match="must hold the configuration that its digest names"):
        model_from_bytes(_changed(data, config=config), "x.pt")


def test_a_configuration_that_holds_itself_is_refused(data: bytes) -> None:
    endless: list[Any] = []
    for _ in range(40):
        endless = [endless, endless]
    for config in ({"seed": endless}, endless, None, {"seed": torch.zeros(2)}):
        with pytest.raises(CheckpointError, match=r"^x\.pt "):
            model_from_bytes(_changed(data, config=config), "x.pt")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(model: TrainedModel, value: float) -> None:
    name = "logits.2.bias"
    weights = model.weights | {name: torch.full_like(model.weights[name], value)}
    made = model_to_bytes(dataclasses.replace(model, weights=weights))
    with pytest.raises(CheckpointError, match=r"finite weights, but 'logits\.2\.bias' has NaN or"):
        model_from_bytes(made, "x.pt")


@pytest.mark.parametrize(
    "weights", [None, {}, [], {"a": 1.0}, {"a": torch.zeros(2).to_sparse()}, "weights"]
)
def test_weights_that_are_no_tensors_are_refused(data: bytes, weights: object) -> None:
    with pytest.raises(CheckpointError, match=r"^x\.pt must hold .*weights"):
        model_from_bytes(_changed(data, weights=weights), "x.pt")


def test_a_tensor_larger_than_the_file_is_refused(data: bytes) -> None:
    wide = torch.zeros(1).expand(10**6, 10**6)  # a single number in the file
    with pytest.raises(CheckpointError, match="'a' is larger than the file"):
        model_from_bytes(_changed(data, weights={"a": wide}), "x.pt")


@pytest.mark.slow
def test_compressed_members_are_refused_before_they_unfold(data: bytes) -> None:
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as old,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for info in old.infolist():
            new.writestr(info.filename, bytes(10**6) + old.read(info))
    with pytest.raises(CheckpointError, match=r"x\.pt is not a file that mtil wrote"):
        model_from_bytes(packed.getvalue(), "x.pt")


def test_weights_of_another_type_are_one_sentence(model: TrainedModel) -> None:
    weights = {name: value.double() for name, value in model.weights.items()}
    with pytest.raises(CheckpointError, match=r"is torch\.float64 instead of torch\.\w+…\); train"):
        dataclasses.replace(model, weights=weights).network()


@pytest.mark.parametrize(
    "pointer",
    [
        b"[" * 100_000,
        b"[]",
        b"{}",
        b'{"file": "../../x.pt", "epoch": 0, "sha256": "' + b"0" * 64 + b'"}',
        b'{"file": "x.pt", "epoch": -1, "sha256": "' + b"0" * 64 + b'"}',
        b'{"file": "x.pt", "epoch": 0, "sha256": 5}',
    ],
)
def test_a_pointer_to_nothing_is_one_sentence(
    checkpoints: TrainingCheckpoints, store: LocalStore, pointer: bytes
) -> None:
    store.write("fold-0/checkpoints/latest.json", pointer)
    for use in (checkpoints.load, lambda: checkpoints.save(1, _state(1))):
        with pytest.raises(CheckpointError, match=r"latest\.json .*; delete its folder to train"):
            use()
