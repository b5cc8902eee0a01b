"""`dataset.json`: invalid values give one sentence with the key."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtil.data.dataset import manifest as manifests
from mtil.data.dataset.manifest import Manifest
from mtil.errors import DataError
from mtil.storage import LocalStore

Change = Callable[[dict[str, Any]], object]


def _put(key: str, value: object) -> Change:
    def change(values: dict[str, Any]) -> None:
        *parents, leaf = key.split(".")
        node: Any = values
        for name in parents:
            node = node[int(name) if name.isdecimal() else name]
        node[int(leaf) if leaf.isdecimal() else leaf] = value

    return change


@pytest.fixture
def values(manifest: Manifest) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(manifests.manifest_to_json(manifest))
    return copy.deepcopy(values)


def _read(folder: Path, values: dict[str, Any], name: str = "dataset.json") -> Manifest:
    store = LocalStore(str(folder))
    store.write(name, json.dumps(values).encode())
    return manifests.read_manifest(store, name)


def test_what_was_written_is_read(
    tmp_path: Path, values: dict[str, Any], manifest: Manifest
) -> None:
    assert _read(tmp_path, values) == manifest
    for later in ("version", "audit", "facts", "files", "dropped", "invalid"):
        values.pop(later, None)  # keys missing in early versions
    assert _read(tmp_path, values).shards == manifest.shards
    assert _read(tmp_path, values | {"novelty": 3}).version == 1


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (_put("num_folds", -1), "is wrong at `num_folds`: .* but got -1"),
        (_put("num_folds", 10**9), "is wrong at `num_folds`: .* but got 1000000000"),
        (_put("num_folds", True), "is wrong at `num_folds`: .* but got True"),
        (_put("num_folds", "3"), "is wrong at `num_folds`: .* but got '3'"),
        (_put("num_folds", 2), "must have folds below 2 and parts below"),
        (_put("num_parts", 0), "is wrong at `num_parts`"),
        (_put("num_parts", 1), "must have folds below 3 and parts below 1, but "),
        (_put("fingerprint", 5), "is wrong at `fingerprint`: .* but got 5"),
        (_put("fingerprint", "x"), "is wrong at `fingerprint`: it must be a sha256, but is 'x'"),
        (_put("image_size", 10**6), "is wrong at `image_size`"),
        (_put("version", 0), "is wrong at `version`"),
        (_put("kept", []), "is wrong at `kept`"),
        (_put("kept.benign", 10**6), "must keep the .* images of its shards, but keeps"),
        (
            lambda values: values["folds"].update({"0": {}}),
            "must count the rows of its shards, but counts",
        ),
        (_put("folds", {}), "must count the rows of its shards, but counts 0"),
        (_put("shards.0.path", "../x"), "must name files below shards/, but names '../x'"),
        (_put("shards.0.path", "/etc/passwd"), "must name files below shards/"),
        (_put("shards.0.path", "shards/../../x"), "must name files below shards/"),
        (_put("shards.0.path", "audit/images.parquet"), "must name files below shards/"),
        (_put("audit", "../audit"), "must name files below audit/"),
        (_put("audit", "shards"), "must name files below audit/"),
        (_put("facts", ["run.json"]), "must name files below audit/, but names 'run.json'"),
        (_put("shards.0.bytes", -5), r"is wrong at `shards\.0\.bytes`: .* but got -5"),
        (_put("shards.0.bytes", 10**15), r"is wrong at `shards\.0\.bytes`"),
        (_put("shards.0.rows", 0), r"is wrong at `shards\.0\.rows`"),
        (_put("shards.0.sha256", "0" * 63), r"is wrong at `shards\.0\.sha256`"),
        (_put("shards.0.cells.0.rows", -5), r"is wrong at `shards\.0\.cells\.0\.rows`"),
        (_put("shards.0.cells.0.rows", 10**6), "as many rows as its cells have, but does not"),
        (_put("shards.0.cells.0.fold", 300), r"is wrong at `shards\.0\.cells\.0\.fold`"),
        (_put("shards.0.cells.0.fold", 50), "must have folds below 3"),
        (_put("shards.0.cells.0.label", 3), r"is wrong at `shards\.0\.cells\.0\.label`"),
        (lambda values: values["shards"].append(values["shards"][0]), "each shard once"),
        (lambda values: values.pop("shards"), "is wrong at `shards`: it is missing"),
    ],
)
def test_a_wrong_value_is_one_sentence(
    tmp_path: Path, values: dict[str, Any], change: Change, problem: str
) -> None:
    change(values)
    with pytest.raises(DataError, match=rf"dataset\.json .*{problem}.*; prepare the data again\."):
        _read(tmp_path, values)


def test_a_version_s_file_must_hold_that_version(tmp_path: Path, values: dict[str, Any]) -> None:
    assert _read(tmp_path, values | {"version": 2}, "versions/000002.json").version == 2
    with pytest.raises(DataError, match="must be version 2, but says version 1; prepare"):
        _read(tmp_path, values, "versions/000002.json")
