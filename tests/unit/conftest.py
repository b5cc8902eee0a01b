"""What several unit tests share: a small data set of several shards, a small network, batches."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mtil.checkpoint import Model
from mtil.config import Config, from_dict
from mtil.data import manifest as manifests
from mtil.data import phantom, shards
from mtil.data.manifest import Manifest
from mtil.data.prepare import Settings, prepare
from mtil.data.rows import Batch
from mtil.data.sources import Source
from mtil.models import TwoTaskNetwork
from mtil.storage import LocalStore

torch.set_num_threads(1)  # small tensors: threads that wait for a busy core take ten times as long

NUM_IMAGES = 60
STORED = 64


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 60 small phantoms in the BUSI layout, which tests must not change."""
    folder = tmp_path_factory.mktemp("phantoms") / "busi"
    phantom.write(folder, num_images=NUM_IMAGES, seed=3, image_size=STORED)
    return folder


@pytest.fixture(scope="session")
def data_uri(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The phantoms in three folds and several shards, two images a group; not to be changed."""
    folder = tmp_path_factory.mktemp("data")
    stems = sorted(p.stem for p in phantoms.rglob("*.png") if "_mask" not in p.stem)
    lines = [f"{stem},{stem.split()[0]}-{at // 2}" for at, stem in enumerate(stems)]
    (folder / "groups.csv").write_text("\n".join(["image_id,group", *lines]) + "\n")
    prepare(
        [Source(uri=str(phantoms), layout="busi", groups=str(folder / "groups.csv"))],
        str(folder / "set"),
        Settings(image_size=STORED, num_folds=3, max_shard_bytes=9 * shards.row_bytes(STORED)),
    )
    return str(folder / "set")


@pytest.fixture(scope="session")
def manifest(data_uri: str) -> Manifest:
    """What the data set holds."""
    return manifests.load(LocalStore(data_uri))


@pytest.fixture(scope="session")
def make_config() -> Callable[..., Config]:
    """Make configurations whose network takes milliseconds, with some groups of keys changed."""
    base = from_dict(
        {
            "data": {"image_size": 32},
            "model": {
                "encoder": {"pretrained": False},
                "decoder_channels": [8, 8, 8, 8],
                "attention": {"width": 16, "num_heads": 2},
            },
            "train": {"batch_size": 4, "num_epochs": 4, "warmup_epochs": 0.5},
        }
    )
    return lambda **groups: from_dict(groups, base)


@pytest.fixture(scope="session")
def make_model(make_config: Callable[..., Config]) -> Callable[..., Model]:
    """Make untrained models whose masks are neither empty nor full; the seed decides."""
    config = make_config()

    def make(seed: int = 0, **values: Any) -> Model:
        torch.manual_seed(seed)
        network = TwoTaskNetwork(config.model).eval()
        with torch.no_grad():
            for parameter in network.head.parameters():
                torch.nn.init.normal_(parameter, std=0.3)
            said = network(torch.rand(8, 1, 32, 32))
            network.logits["2"].weight *= 2 / said.mask.std()
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
        }
        return Model(**usual | values)

    return make


@pytest.fixture(scope="session")
def toy_batches() -> Callable[..., list[Batch]]:
    """Make batches of a task that is easy to learn, see `_toy_batch`."""

    def make(count: int, *, size: int = 4, side: int = 32, seed: int = 0) -> list[Batch]:
        rng = np.random.default_rng(seed)
        return [_toy_batch(rng, f"{seed}-{number}", size, side) for number in range(count)]

    return make


def _toy_batch(rng: np.random.Generator, name: str, size: int, side: int) -> Batch:
    """Bright squares are lesions, and the large ones malignant."""
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
