"""Append on Ray and to S3: equal bytes, and a killed append continues with the same command."""

import csv
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mtil.data.append.pipeline import AppendSettings, append_images
from mtil.data.dataset import manifest as manifests
from mtil.data.dataset import shards
from mtil.data.prepare.pipeline import Settings, prepare
from mtil.data.prepare.sources import CollectionSource
from mtil.distributed.data.job_tasks import run_ray_tasks
from mtil.storage import LocalStore, Store, open_store
from tests.waiting import STOP_AT, until_stopped

ONE_A_SHARD = AppendSettings(max_shard_bytes=1)
NUM_BEFORE = 60
_SCRIPT = (
    f"{STOP_AT}\n"
    "from mtil.data.append.pipeline import AppendSettings, append_images\n"
    "from mtil.data.prepare.sources import CollectionSource\n"
    "source = CollectionSource(uri=sys.argv[1], layout='table')\n"
    "append_images([source], sys.argv[2], AppendSettings(max_shard_bytes=1))\n"
)


def _contents(store: Store) -> dict[str, bytes]:
    return {name: store.read(name) for name in store.names()}


def _images(phantoms: Path, table: Path, part: slice) -> CollectionSource:
    """Write a table of the phantoms in `part`, and copy the image files beside the table."""
    found = sorted(path for path in phantoms.rglob("*.png") if "_mask" not in path.name)[part]
    table.parent.mkdir()
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "masks", "label"])
        for image in found:
            masks = sorted(image.parent.glob(f"{image.stem}_mask*.png"))
            for path in (image, *masks):
                shutil.copy(path, table.parent)
            label = image.parent.name
            names = "" if label == "normal" else "|".join(mask.name for mask in masks)
            writer.writerow([image.name, names, label])
    return CollectionSource(uri=str(table), layout="table")


@pytest.fixture(scope="module")
def sources(
    phantoms: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[CollectionSource, CollectionSource]:
    folder = tmp_path_factory.mktemp("tables")
    first, more = (
        _images(phantoms, folder / str(start) / "tumours.csv", slice(start, None, 2))
        for start in range(2)
    )
    return first, more


def test_an_append_that_was_killed_goes_on_with_the_same_command(
    local_ray: None, sources: tuple[CollectionSource, CollectionSource], bucket: str, tmp_path: Path
) -> None:
    first, more = sources
    settings = Settings(image_size=64, max_shard_bytes=120_000)
    uri, here = f"{bucket}/appended", str(tmp_path / "here")
    before = prepare([first], uri, settings)
    assert before == prepare([first], here, settings)
    assert before.num_rows == NUM_BEFORE
    undisturbed = append_images([more], here, ONE_A_SHARD, runner=run_ray_tasks)

    store = open_store(uri)
    command = [sys.executable, "-c", _SCRIPT, more.uri, uri, "shards/12"]
    process = subprocess.Popen(command, env=os.environ)
    until_stopped(process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert len([name for name in store.names("shards") if name.count("-") > 1]) >= 3
    assert manifests.load_manifest(store) == before
    assert sum(shards.read_shard(store, shard).num_rows for shard in before.shards) == NUM_BEFORE

    made = append_images([more], uri, ONE_A_SHARD)
    assert made == undisturbed
    assert made.manifest.version == 2
    assert _contents(store) == _contents(LocalStore(here))
