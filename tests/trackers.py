"""Read the contents of trackers, with the readers of the trackers' libraries."""

import json
import struct
from collections import defaultdict
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record

Curves = dict[str, dict[str, list[tuple[int, float]]]]
"""All (step, value) pairs, including repeated pairs, by node name and figure name."""


def list_mlflow_runs(uri: str) -> dict[str, Run]:
    """Return the runs of the experiment `mtil`, by name."""
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("mtil")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    assert len({run.info.run_name for run in runs}) == len(runs)
    return {run.info.run_name: run for run in runs}


def read_mlflow(uri: str) -> Curves:
    """Return all curves and figures in MLflow."""
    client = MlflowClient(tracking_uri=uri)
    return {
        name: {
            metric: [
                (one.step, one.value) for one in client.get_metric_history(run.info.run_id, metric)
            ]
            for metric in run.data.metrics
        }
        for name, run in list_mlflow_runs(uri).items()
    }


def read_tensorboard(folder: str) -> Curves:
    """Return all scalars below a folder, by the name of the event files' folder."""
    curves: Curves = {}
    for events in {file.parent for file in Path(folder).rglob("events.out.*")}:
        held = EventAccumulator(str(events), size_guidance={"scalars": 0}).Reload()
        curves[events.name] = {
            # Files begun within a second have no defined order.
            tag: sorted((event.step, event.value) for event in held.Scalars(tag))
            for tag in held.Tags()["scalars"]
        }
    return curves


def read_wandb(folder: str) -> Curves:
    """Return history and summary of all offline runs, by run name."""
    curves: Curves = {}
    for file in Path(folder).glob("wandb/offline-run-*/*.wandb"):
        name, figures = "", defaultdict[str, list[tuple[int, float]]](list)
        summary: dict[str, float] = {}
        for record in _records(file.read_bytes()):
            name = record.run.display_name or name
            values = {
                ("/".join(item.nested_key) or item.key): json.loads(item.value_json)
                for item in record.history.item
            }
            for key, value in values.items():
                if not key.startswith("_"):
                    figures[key].append((values["_step"], value))
            for item in record.summary.update:
                summary["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
        for key, value in summary.items():
            if not key.startswith("_") and key not in figures:
                figures[key].append((0, value))
        assert name not in curves
        curves[name] = dict(figures)
    return curves


def _records(data: bytes) -> list[Record]:
    """Parse the LevelDB log of a run: blocks of 32 KiB with records in one or more pieces."""
    assert data[:4] == b":W&B"
    offset, pieces, records = 7, b"", []
    while offset < len(data):
        left = 32768 - offset % 32768
        if left < 7:
            offset += left
            continue
        length, kind = struct.unpack("<HB", data[offset + 4 : offset + 7])
        pieces += data[offset + 7 : offset + 7 + length]
        offset += 7 + length
        if kind in (1, 4):  # a whole record, or the last piece of a record
            records.append(Record.FromString(pieces))
            pieces = b""
    return records
