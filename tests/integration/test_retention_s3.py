"""Sizes in a bucket, and superseded files of a run in a bucket."""

from pathlib import Path

import torch

from mtil.circle import retention
from mtil.cli import main
from mtil.config import config_from_dict
from mtil.run.checkpoint import TrainedModel
from mtil.run.folder import Run
from mtil.run.plan import Train
from mtil.storage import open_store


def test_sizes_are_those_of_the_objects_below_a_folder(bucket: str, tmp_path: Path) -> None:
    store = open_store(f"{bucket}/{tmp_path.name}-sizes")
    for name, data in {"x/2": b"12", "x/1": b"", "xy/3": b"123", "z": b"1"}.items():
        store.write(name, data)
    assert store.sizes() == {"x/1": 0, "x/2": 2, "xy/3": 3, "z": 1}
    assert store.sizes("x") == {"x/1": 0, "x/2": 2}
    assert store.sizes("none") == {}
    assert store.names("x") == ["x/1", "x/2"]


def test_a_run_in_a_bucket_is_tidied(bucket: str, tmp_path: Path) -> None:
    config = config_from_dict({})
    run = Run.create(f"{bucket}/{tmp_path.name}-run", config, "data", "f" * 64)
    model = TrainedModel(
        config=config,
        weights={"weight": torch.ones(2)},
        fingerprint="f" * 64,
        fold=0,
        source_size=64,
        epoch=0,
        temperature=1.0,
        threshold=0.5,
    )
    run.commit(Train(0, 0), model, num_epochs=1, seconds=0.0, metrics={})
    kept = run.store.sizes()
    for fold in (0, 1):
        run.checkpoints(Train(0, fold)).save(0, {"fold": fold})
    run.store.write("rounds/0/fold-0/model-0123456789ab.pt", b"left")
    kept |= run.store.sizes("rounds/0/fold-1")
    found = retention.find_superseded_files(run)
    assert {one.folder: (one.why, len(one.files)) for one in found.superseded} == {
        "rounds/0/fold-0": ("unnamed model", 1),
        "rounds/0/fold-0/checkpoints": ("ended training", 2),
    }
    assert found.bytes == sum(run.store.sizes().values()) - sum(kept.values())
    assert main(["gc", "--run", run.uri, "--yes"]) == 0
    assert run.store.sizes() == kept
    assert run.model(Train(0, 0)).digest
