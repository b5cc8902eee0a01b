"""A run's files as a tree of nodes."""

import json
from collections.abc import Callable
from pathlib import Path

from mtil.config import Config
from mtil.data.dataset.manifest import Manifest
from mtil.run.checkpoint import TrainedModel
from mtil.run.folder import Run
from mtil.run.plan import Train
from mtil.tracking.nodes import Node
from mtil.tracking.runs import RunFollower, RunReader

RECORD = {
    "epoch": 0,
    "fold": 1,
    "steps": 5,
    "images": 40,
    "num_workers": 1,
    "loss_segmentation": 0.5,
    "validation_dice": 0.25,
    "learning_rate_encoder": 0.125,
    "gradient_norm": 1.5,
    "images_per_second": 8.0,
}
CURVES = {
    "loss/segmentation": 0.5,
    "validation/dice": 0.25,
    "learning_rate/encoder": 0.125,
    "gradient_norm": 1.5,
    "speed/images_per_second": 8.0,
}


def by_path(nodes: list[Node]) -> dict[tuple[str, ...], Node]:
    return {node.path: node for node in nodes}


def test_rounds_folds_and_parts_grow_with_the_files(
    tmp_path: Path,
    make_config: Callable[..., Config],
    make_model: Callable[..., TrainedModel],
    manifest: Manifest,
    data_uri: str,
) -> None:
    follower = RunFollower(str(tmp_path / "run"))
    assert follower.read(False) == []
    assert follower.read(True) == []  # the command failed before creating the run

    config = make_config(seed=7)
    run = Run.create(str(tmp_path / "run"), config, data_uri, manifest.fingerprint)
    (root,) = follower.read(False)
    assert (root.path, root.name, root.is_finished) == ((), "run", False)
    assert root.facts["seed"] == "7"
    assert root.facts["fingerprint"] == manifest.fingerprint
    assert root.artefacts.keys() == {"run.json"}

    training, part = Train(0, 1), Train(1, 1, 0)
    run.write_history(training, [RECORD])
    run.write_history(part, [])
    nodes = by_path(follower.read(False))
    assert list(nodes) == [
        (),
        ("round 0",),
        ("round 1",),
        ("round 0", "fold 1"),
        ("round 1", "fold 1", "part 0"),
    ]
    fold = nodes["round 0", "fold 1"]
    assert fold.epochs == (CURVES,)
    assert (fold.figures, fold.is_finished) == ({}, False)

    model = make_model(0, config=config, fold=1, fingerprint=manifest.fingerprint)
    result = run.commit(training, model, num_epochs=1, seconds=12.0, metrics={"dice": 0.5})
    interval = {"value": 0.75, "low": 0.5, "high": None}
    evaluation = {
        "by_pass": [{"metrics": {"dice": {"value": 0.1}}}, {"metrics": {"dice": interval}}]
    }
    run.store.write(run.evaluation_name(0), json.dumps(evaluation).encode())
    nodes = by_path(follower.read(False))
    fold = nodes["round 0", "fold 1"]
    assert fold.figures == {"kept/dice": 0.5, "kept/epoch": model.epoch, "kept/seconds": 12.0}
    assert fold.is_finished
    assert fold.artefacts["model.pt"].version == result.model_sha256
    assert fold.artefacts["model.pt"].read() == run.model_file(training)[1]
    assert nodes["round 0",].figures == {"test/dice": 0.75, "test/dice_low": 0.5}
    assert [nodes[path].is_finished for path in ((), ("round 0",), ("round 1",))] == [
        False,
        True,
        False,
    ]
    # A second reader finds equal keys; a second run has different keys.
    again = RunReader(Run.open(run.uri)).read()
    assert [node.key for node in again] == [node.key for node in nodes.values()]
    other = Run.create(str(tmp_path / "other"), make_config(seed=7), data_uri, manifest.fingerprint)
    assert RunReader(other).read()[0].key != nodes[()].key


def test_the_last_look_adds_the_report(
    tmp_path: Path, make_config: Callable[..., Config], manifest: Manifest, data_uri: str
) -> None:
    uri = str(tmp_path / "run")
    run = Run.create(uri, make_config(), data_uri, manifest.fingerprint)
    run.write_history(Train(0, 1), [RECORD])
    page = RunFollower(uri).read(True)[0].artefacts["report.html"]
    run.write_history(Train(0, 1), [RECORD, RECORD | {"epoch": 1}])
    later = RunFollower(uri).read(True)[0].artefacts["report.html"]
    assert page.version != later.version
    assert b"Learning curves" in later.read()
