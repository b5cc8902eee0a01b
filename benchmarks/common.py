"""Shared parts of the benchmarks: images, data sets of any size, and printed results."""

import json
import os
import platform
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from mtil import phantom
from mtil.data.dataset import manifest as manifests
from mtil.data.dataset import shards
from mtil.data.dataset.manifest import Cell, Shard
from mtil.data.prepare import pipeline
from mtil.data.prepare.sources import CollectionSource
from mtil.storage import open_store

_ROOT = Path(__file__).parent.parent
_SHARD_BYTES = 64 * 2**20


def real_data() -> Path | None:
    """Return the folder of real collections, or None if the folder has no `busi`."""
    folder = Path(os.environ.get("MTIL_DATA", _ROOT.parent / "shared" / "data"))
    return folder if (folder / "busi").is_dir() else None


def images(scratch: Path, num_phantoms: int = 780) -> tuple[Path, Path | None]:
    """Return a folder in the BUSI layout and a group file: BUSI, else phantoms and None."""
    data = real_data()
    if data is not None:
        return data / "busi", data / "busi" / "pawlowska_groups.csv"
    phantom.write_phantoms(scratch / "phantoms", num_images=num_phantoms, seed=0)
    return scratch / "phantoms", None


def prepared(folder: Path, groups: Path | None, uri: str, image_size: int) -> None:
    """Prepare a folder of images in the BUSI layout."""
    source = CollectionSource(
        uri=str(folder), layout="busi", groups=None if groups is None else str(groups)
    )
    pipeline.prepare([source], uri, pipeline.Settings(image_size=image_size))


def multiplied(source_uri: str, target_uri: str, num_rows: int) -> None:
    """Write a data set of `num_rows` rows in fold 0: rows of the source repeated under new ids."""
    source, target = open_store(source_uri), open_store(target_uri)
    manifest = manifests.load_manifest(source)
    base = pa.concat_tables([shards.read_shard(source, shard) for shard in manifest.shards])
    row_bytes = manifest.image_size**2 * 9 // 8 + 512
    per_shard = _SHARD_BYTES // row_bytes
    written: list[Shard] = []
    for start in range(0, num_rows, per_shard):
        rows = range(start, min(start + per_shard, num_rows))
        table = _renamed(base.take(pa.array([row % base.num_rows for row in rows])), rows)
        data = shards.encode_shard(table)
        path = f"shards/part-{len(written):05d}.parquet"
        target.write(path, data)
        labels = Counter(table.column("label").to_pylist())
        cells = tuple(
            Cell(fold=0, part=0, label=label, rows=count) for label, count in sorted(labels.items())
        )
        written.append(
            Shard(
                path=path,
                rows=len(rows),
                bytes=len(data),
                sha256=sha256(data).hexdigest(),
                cells=cells,
            )
        )
    counts = Counter[str]()
    for shard in written:
        counts.update({shards.LABELS[cell.label]: cell.rows for cell in shard.cells})
    whole = replace(
        manifest,
        shards=tuple(written),
        num_folds=1,
        num_parts=1,
        kept=dict(counts),
        folds={"0": dict(counts)},
        holdout={},
    )
    target.write(manifests.FILE_NAME, manifests.manifest_to_json(whole))


def _renamed(table: pa.Table, rows: range) -> pa.Table:
    zeros = pa.array([0] * len(rows), pa.int8())
    columns = {
        "sample_id": pa.array([f"{row:08d}" for row in rows]),
        "fold": zeros,
        "part": zeros,
    }
    for name, values in columns.items():
        index = table.schema.get_field_index(name)
        table = table.set_column(index, table.schema.field(index), values)
    return table


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the median, minimum and maximum of repeated measurements."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def show(result: dict[str, Any]) -> None:
    """Print a result as JSON, with the machine and the versions of libraries."""
    names = ("torch", "ray", "pyarrow", "numpy")
    machine = {
        "cpus": os.cpu_count(),
        "processor": platform.machine(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in names if find_spec(name)},
    }
    print(json.dumps({**result, "machine": machine}, indent=1))
