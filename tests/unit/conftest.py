"""Shared fixtures: a small data set of several shards, a small network, batches, runs."""

import hashlib
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from mtil import phantom
from mtil.circle.inputs import find_map_source, list_test_models
from mtil.circle.ledger import Ledger
from mtil.circle.state import ActionDone, ActionStarted
from mtil.cli import main
from mtil.config import Config, compute_config_digest, config_from_dict
from mtil.data.dataset import manifest as manifests
from mtil.data.dataset import shards
from mtil.data.dataset.batches import Batch
from mtil.data.dataset.manifest import Manifest
from mtil.data.dataset.selection import select_rows
from mtil.data.prepare.pipeline import Settings, prepare
from mtil.data.prepare.sources import CollectionSource
from mtil.models import TwoTaskNetwork
from mtil.prediction.scoring import PREDICTIONS_SCHEMA
from mtil.run import maps
from mtil.run.checkpoint import TrainedModel
from mtil.run.folder import Run
from mtil.run.plan import Action, Evaluate, Summarise, Train, WriteMaps, list_actions
from mtil.storage import LocalStore

torch.set_num_threads(1)  # on busy cores, more threads slow small tensors tenfold

NUM_IMAGES = 60
STORED = 64


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A read-only folder of 60 small phantoms in the BUSI layout."""
    folder = tmp_path_factory.mktemp("phantoms") / "busi"
    phantom.write_phantoms(folder, num_images=NUM_IMAGES, seed=3, image_size=STORED)
    return folder


@pytest.fixture(scope="session")
def data_uri(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The read-only data set of the phantoms: 3 folds, several shards, 2 images per group."""
    folder = tmp_path_factory.mktemp("data")
    stems = sorted(p.stem for p in phantoms.rglob("*.png") if "_mask" not in p.stem)
    lines = [f"{stem},{stem.split()[0]}-{at // 2}" for at, stem in enumerate(stems)]
    (folder / "groups.csv").write_text("\n".join(["image_id,group", *lines]) + "\n")
    prepare(
        [CollectionSource(uri=str(phantoms), layout="busi", groups=str(folder / "groups.csv"))],
        str(folder / "set"),
        Settings(image_size=STORED, num_folds=3, max_shard_bytes=9 * shards.row_bytes(STORED)),
    )
    return str(folder / "set")


@pytest.fixture(scope="session")
def manifest(data_uri: str) -> Manifest:
    """The manifest of the data set."""
    return manifests.load_manifest(LocalStore(data_uri))


@pytest.fixture(scope="session")
def make_config() -> Callable[..., Config]:
    """Make configurations of a network that takes milliseconds; keywords change groups of keys."""
    base = config_from_dict(
        {
            "data": {"image_size": 32},
            "model": {
                "encoder": {"name": "resnet10_tiny", "pretrained": False},
                "decoder_channels": [8, 8, 8, 8],
                "attention": {"width": 16, "num_heads": 2},
            },
            "train": {"batch_size": 4, "num_epochs": 4, "warmup_epochs": 0.5},
        }
    )
    return lambda **groups: config_from_dict(groups, base)


@pytest.fixture(scope="session")
def make_model(make_config: Callable[..., Config]) -> Callable[..., TrainedModel]:
    """Make untrained models from a seed, with masks between empty and full."""
    config = make_config()

    def make(seed: int = 0, **values: Any) -> TrainedModel:
        torch.manual_seed(seed)
        network = TwoTaskNetwork(config.model)
        norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
        with torch.no_grad():
            for norm in norms:
                norm.momentum = 1.0
            network(torch.rand(8, 1, 32, 32))
            network.eval()
            for parameter in network.head.parameters():
                torch.nn.init.normal_(parameter, std=0.1)
            output = network(torch.rand(8, 1, 32, 32))
            network.logits["2"].weight *= 2 / output.mask.std()
            network.logits["2"].bias -= network(torch.rand(8, 1, 32, 32)).mask.median()
        usual = {
            "config": config,
            "weights": network.state_dict(),
            "fingerprint": "f" * 64,
            "fold": 0,
            "source_size": STORED,
            "epoch": 3,
            "temperature": 1.5,
            "threshold": 0.5,
            "presence_temperature": 2.0,
        }
        return TrainedModel(**usual | values)

    return make


@pytest.fixture
def circle_run(
    tmp_path: Path,
    make_config: Callable[..., Config],
    make_model: Callable[..., TrainedModel],
    data_uri: str,
    manifest: Manifest,
) -> Callable[..., Run]:
    """Make circle runs without training, with files and ledger up to an action; see `_act`.

    A model holds a single weight; with `whole`, all weights of the network.
    """

    def make(
        folds: Sequence[int] = (0, 1),
        *,
        until: Action | None = None,
        name: str = "run",
        whole: bool = False,
        **circle: Any,
    ) -> Run:
        config = make_config(circle=circle)
        run = Run.create(str(tmp_path / name), config, data_uri, manifest.fingerprint)
        model = make_model(config=config, fingerprint=manifest.fingerprint)
        if not whole:
            model = replace(model, weights={"weight": torch.ones(2)})
        plan = run.plan(folds)
        ledger = Ledger.open(run.store, session="coordinator")
        ledger.begin(plan, manifest.fingerprint, compute_config_digest(config))
        ledger.boot()
        for number, action in enumerate(list_actions(plan)):
            if action == until:
                break
            ledger.append(ActionStarted(action=action, attempt=1))
            result = _act(run, manifest, action, replace(model, epoch=number))
            ledger.append(ActionDone(action=action, attempt=1, result=result))
        return run

    return make


def _act(run: Run, manifest: Manifest, action: Action, model: TrainedModel) -> dict[str, Any]:
    """Write the files of an action and return the action's result in the ledger.

    Models differ in the epoch. A map's value is 100 times the fold, plus 10 times the round, plus
    the part, plus 1.
    """
    if isinstance(action, Train):
        figures = {"num_epochs": 4, "seconds": 1.0, "metrics": {"dice": 0.75}}
        result = run.commit(action, replace(model, fold=action.fold), **figures)
        return {"folder": run.folder(action), **asdict(result)}
    if isinstance(action, WriteMaps):
        source = find_map_source(run, manifest, action)
        value = 100 * action.fold + 10 * action.round + 1 + (action.part or 0)
        for shard in manifest.shards:
            table = shards.read_shard(LocalStore(run.data_uri), shard)
            ids = table.column("sample_id").take(pa.array(source.rows.rows(table))).to_pylist()
            drawn = np.full((len(ids), source.origin.size, source.origin.size), value, np.uint8)
            run.store.write(
                source.name(shard), maps.encode_maps(ids, drawn, source.origin_of(shard))
            )
        return {"folder": source.folder, "model_sha256": source.origin.model_sha256}
    if isinstance(action, Evaluate):
        name = run.predictions_name(action.round, action.fold)
        data = _predictions(run, manifest, action)
        run.store.write(name, data)
        return {"file": name, "sha256": hashlib.sha256(data).hexdigest(), "by_pass": []}
    by_pass = [
        {"pass": number, "metrics": dict.fromkeys(("dice", "f1", "auc"), _FIGURE)}
        for number in range(2 if action.round else 1)
    ]
    assert isinstance(action, Summarise)
    return {"file": run.evaluation_name(action.round), "folds": [0, 1], "by_pass": by_pass}


_FIGURE = {"value": 0.8125, "low": 0.75, "high": 0.875}


def _predictions(run: Run, manifest: Manifest, action: Evaluate) -> bytes:
    rows = select_rows(manifest, action.fold, "test")
    tables = [shards.read_shard(LocalStore(run.data_uri), shard) for shard in manifest.shards]
    tested = pa.concat_tables([table.take(pa.array(rows.rows(table))) for table in tables])
    known = {
        name: tested.column(name) for name in ("sample_id", "group", "source", "label", "fold")
    }
    predictions = []
    for number, judge in enumerate(list_test_models(run, action.round, action.fold)):
        result = run.result(judge)
        assert result is not None
        predictions += [
            row
            | {"pass": number, "probability": 0.25 + 0.5 * number}
            | {"model_sha256": result.model_sha256, "fingerprint": result.fingerprint}
            | {"config_digest": result.config_digest, "version": result.version}
            for row in pa.table(known).to_pylist()
        ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(predictions, schema=PREDICTIONS_SCHEMA), sink)
    return sink.getvalue().to_pybytes()


@pytest.fixture(scope="session")
def toy_batches() -> Callable[..., list[Batch]]:
    """Make batches of an easy task, see `_toy_batch`."""

    def make(count: int, *, size: int = 4, side: int = 32, seed: int = 0) -> list[Batch]:
        rng = np.random.default_rng(seed)
        return [_toy_batch(rng, f"{seed}-{number}", size, side) for number in range(count)]

    return make


def _toy_batch(rng: np.random.Generator, name: str, size: int, side: int) -> Batch:
    """Return a batch with bright squares as lesions; large squares are malignant."""
    label = np.arange(size) % 2
    mask = np.zeros((size, side, side), np.uint8)
    for index, malignant in enumerate(label):
        half = side // 4 if malignant else side // 8
        row, column = rng.integers(half, side - half, 2)
        mask[index, row - half : row + half, column - half : column + half] = 1
    noise = rng.integers(0, 40, (size, side, side))
    return Batch(
        sample_id=[f"{name}-{index}" for index in range(size)],
        image=(noise + 180 * mask).astype(np.uint8),
        mask=np.packbits(mask.reshape(size, -1), axis=1),
        label=label.astype(np.int64),
    )


@pytest.fixture
def signals() -> Iterator[None]:
    """Restore the signal handler after a command."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command with an expected exit code, and return the error sentence."""

    def run(*arguments: object, code: int = 2) -> str:
        assert main([str(word) for word in arguments]) == code
        captured = capsys.readouterr()
        (line,) = captured.err.strip().splitlines()[-1:]
        assert "Traceback" not in captured.err
        assert captured.out == ""
        assert line.startswith("mtil: ")
        return line.removeprefix("mtil: ")

    return run
