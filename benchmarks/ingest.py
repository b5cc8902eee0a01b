"""Images per second from storage to batches of 32 at 256 px, by mtil and by alternatives.

    python -m benchmarks.ingest [--num-rows 7800] [--repeats 3]

Every way delivers equal contents (uint8 image, bit-packed mask, label) of the same images in a
separate process, and the ways take turns. A real S3 server runs on the loopback; only the PNGs are
on the local disk. The first epoch opens files and connections and starts processes; only
`streaming_first_epoch_s` counts the first epoch.
"""

import argparse
import io
import itertools
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks.common import images, multiplied, prepared, show, spread
from cluster import object_store
from mtil.config import DataConfig
from mtil.data.dataset import manifest as manifests
from mtil.data.dataset import shards
from mtil.data.dataset.batches import TRAINING_COLUMNS, EpochPlan, TableRows
from mtil.data.dataset.epochs import iterate_resident_epoch
from mtil.data.dataset.selection import RowSelection
from mtil.storage import open_store

BATCH, SIDE, EPOCHS = 32, 256, 3
BUCKET = "benchmark"
DATA, TARS = f"s3://{BUCKET}/data", f"s3://{BUCKET}/tars"

Epoch = Iterator[int]
"""Batch sizes, as the batches arrive."""
Epochs = Generator[Epoch, None, None]


class PngFolder(Dataset[tuple[Any, ...]]):
    """Images in the BUSI layout, decoded and resized on access."""

    def __init__(self, folder: str) -> None:
        self.paths = sorted(
            path for path in Path(folder).rglob("*.png") if "_mask" not in path.name
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        path = self.paths[index]
        image = Image.open(path).convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        mask = np.zeros((SIDE, SIDE), bool)
        for file in path.parent.glob(f"{path.stem}_mask*.png"):
            part = Image.open(file).convert("L").resize((SIDE, SIDE), Image.Resampling.NEAREST)
            mask |= np.array(part) > 0
        label = ("benign", "malignant", "normal").index(path.parent.name)
        return torch.from_numpy(np.array(image)), torch.from_numpy(np.packbits(mask)), label


def dataloader(folder: str) -> Epochs:
    """Read the PNGs by a torch DataLoader with two workers."""
    loader = DataLoader(
        PngFolder(folder), BATCH, shuffle=True, num_workers=2, persistent_workers=True
    )
    while True:
        yield (len(label) for _, _, label in loader)


def webdataset(num_workers: int) -> Epochs:
    """Read tars of raw pixels by WebDataset, fetched from the S3 server by curl."""
    import boto3
    import webdataset as wds

    client = boto3.client("s3")
    urls = [
        "pipe:curl -s '"
        + client.generate_presigned_url(
            "get_object", Params={"Bucket": BUCKET, "Key": f"tars/{name}"}, ExpiresIn=86400
        )
        + "'"
        for name in open_store(TARS).names()
    ]

    def decode(sample: dict[str, bytes]) -> tuple[Any, ...]:
        image = np.frombuffer(sample["image"], np.uint8).reshape(SIDE, SIDE)
        mask = np.frombuffer(sample["mask"], np.uint8)
        return image, mask, int(sample["label"])

    rows = wds.WebDataset(urls, shardshuffle=len(urls), workersplitter=wds.split_by_worker)
    batches = rows.shuffle(1000).map(decode).batched(BATCH)
    loader = DataLoader(batches, None, num_workers=num_workers, persistent_workers=num_workers > 0)
    while True:
        yield (len(label) for _, _, label in loader)


def _arrow_batches(tables: Iterator[pa.Table]) -> Epoch:
    for table in tables:
        image, mask = shards.pixels(table["image"]), shards.pixels(table["mask"])
        label = table["label"].to_numpy()
        for start in range(0, table.num_rows, BATCH):
            part = slice(start, start + BATCH)
            yield len((image[part].copy(), mask[part].copy(), label[part].copy())[2])


def pyarrow_s3() -> Epochs:
    """Read mtil's shards in order by pyarrow's S3 client, without checks: a limit for mtil."""
    files = pa.fs.S3FileSystem(
        endpoint_override=os.environ["AWS_ENDPOINT_URL"].removeprefix("http://"), scheme="http"
    )
    paths = [
        f"{BUCKET}/data/{shard.path}" for shard in manifests.load_manifest(open_store(DATA)).shards
    ]
    columns = list(TRAINING_COLUMNS)
    while True:
        yield _arrow_batches(
            pq.read_table(path, columns=columns, filesystem=files, pre_buffer=True)
            for path in paths
        )


def pyarrow_whole() -> Epochs:
    """Fetch whole shards by boto3 and parse the bytes with pyarrow, without checks: a limit."""
    store = open_store(DATA)
    paths = [shard.path for shard in manifests.load_manifest(store).shards]
    columns = list(TRAINING_COLUMNS)
    while True:
        yield _arrow_batches(
            pq.read_table(pa.BufferReader(store.read(path)), columns=columns) for path in paths
        )


def _plan() -> EpochPlan:
    manifest = manifests.load_manifest(open_store(DATA))
    everything = RowSelection(fold=0, role="test", num_parts=1)
    return EpochPlan(
        manifest=manifest,
        selection=everything,
        seed=0,
        rank=0,
        num_workers=1,
        batch_size=BATCH,
        streams=DataConfig().streams,
        shuffle_shards=DataConfig().shuffle_shards,
    )


def streaming() -> Epochs:
    """Stream the shards like mtil for a data set larger than memory."""
    from mtil.distributed.data import ingest
    from mtil.distributed.runtime import cluster

    stream = ingest.iterate_streaming_epochs(DATA, _plan(), range(100))
    with cluster.connect_ray(), closing(stream):  # stop reading before Ray shuts down
        for batches in stream:
            yield (len(batch) for batch in batches)


def resident() -> Epochs:
    """Hold the shards in Ray's object store like mtil for a data set smaller than memory."""
    from mtil.distributed.data import ingest, resident
    from mtil.distributed.runtime import cluster

    with cluster.connect_ray():
        plan = _plan()
        held = resident.load_resident_tables(DATA, plan.manifest)
        rows = TableRows(ingest.get_resident_tables(held, plan.manifest), plan.selection)
        for epoch in itertools.count():
            yield (len(batch) for batch in iterate_resident_epoch(rows, plan, epoch))


def measure(epochs: Epochs, num_epochs: int) -> dict[str, float]:
    """Return images per second after the first epoch, and the seconds of the first epoch."""
    start = time.monotonic()
    for _ in next(epochs):
        pass
    first = time.monotonic() - start
    start, seen = time.monotonic(), 0
    for _ in range(num_epochs):
        seen += sum(next(epochs))
    return {"images_per_second": seen / (time.monotonic() - start), "first_epoch_s": first}


def write_tars() -> None:
    """Write the rows of the data set as tars of raw pixels, a tar per shard."""
    source, target = open_store(DATA), open_store(TARS)
    for number, shard in enumerate(manifests.load_manifest(source).shards):
        sink = io.BytesIO()
        with tarfile.open(fileobj=sink, mode="w") as tar:
            for row in shards.read_shard(source, shard, TRAINING_COLUMNS).to_pylist():
                members = {
                    "image": row["image"], "mask": row["mask"], "label": str(row["label"]).encode()
                }  # fmt: skip
                for name, data in members.items():
                    member = tarfile.TarInfo(f"{row['sample_id']}.{name}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        target.write(f"{number:05d}.tar", sink.getvalue())


def main() -> None:
    """Measure a single way, or all ways in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-rows", type=int, default=7800)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    ways: dict[str, tuple[Callable[[], Epochs], int]] = {
        "dataloader_png": (partial(dataloader, options.folder), 2),
        "webdataset_s3": (partial(webdataset, 0), EPOCHS),
        "webdataset_s3_2_workers": (partial(webdataset, 2), EPOCHS),
        "pyarrow_s3": (pyarrow_s3, EPOCHS),
        "pyarrow_whole_objects": (pyarrow_whole, EPOCHS),
        "streaming": (streaming, 5 * EPOCHS),  # enough to outweigh read-ahead data
        "resident": (resident, 20),
    }
    if options.only:
        make, num_epochs = ways[options.only]
        with closing(make()) as epochs:
            print(json.dumps(measure(epochs, num_epochs)))
        return
    with tempfile.TemporaryDirectory(prefix="mtil-benchmark-") as folder:
        scratch = Path(folder)
        with object_store.run_object_store(scratch / "s3", BUCKET) as environment:
            os.environ.update(environment)
            source, groups = images(scratch)
            prepared(source, groups, f"s3://{BUCKET}/base", SIDE)
            multiplied(f"s3://{BUCKET}/base", DATA, options.num_rows)
            write_tars()
            found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
            for _, way in itertools.product(range(options.repeats), ways):
                found[way].append(_in_a_process(way, source))
    show(_summary(found, options.num_rows, source.name))


def _in_a_process(way: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.ingest", "--only", way, "--folder", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"{way}: {result['images_per_second']:.0f} images/s", file=sys.stderr)
    return result


def _summary(
    found: dict[str, list[dict[str, float]]], num_rows: int, source: str
) -> dict[str, Any]:
    speeds = {
        way: spread([one["images_per_second"] for one in several]) for way, several in found.items()
    }
    median = {way: speed["median"] for way, speed in speeds.items()}
    limit = max(median["pyarrow_s3"], median["pyarrow_whole_objects"])
    tars = max(median["webdataset_s3"], median["webdataset_s3_2_workers"])
    return {
        "benchmark": "ingest",
        "images": source,
        "rows": num_rows,
        "batch_size": BATCH,
        "image_size": SIDE,
        "images_per_second": speeds,
        "streaming_first_epoch_s": spread([one["first_epoch_s"] for one in found["streaming"]]),
        "goals": {
            "streaming_over_dataloader": {
                "value": median["streaming"] / median["dataloader_png"], "goal": 10
            },
            "streaming_over_webdataset": {"value": median["streaming"] / tars, "goal": 2},
            "streaming_over_limit": {"value": median["streaming"] / limit, "goal": 0.8},
            "resident_images_per_second": {"value": median["resident"], "goal": 40_000},
        },
    }  # fmt: skip


if __name__ == "__main__":
    main()
