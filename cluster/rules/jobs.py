"""A cluster that is made for one run ends with it."""

import re
from collections.abc import Iterator
from typing import Any

from cluster import files
from cluster.files import ClusterFile

_MAX_IDLE_MINUTES = 60
_UNITS = {"s": 1 / 60, "m": 1.0, "": 1.0, "h": 60.0, "d": 1440.0, "w": 10080.0}


def job_shuts_down(file: ClusterFile) -> Iterator[str]:
    """KubeRay: the cluster of a `RayJob` or a `RayCronJob` goes when the job is done."""
    job = files.job_spec(file.document) if file.kind == "kuberay" else None
    if job is not None and job.get("shutdownAfterJobFinishes") is not True:
        key = f"{files.job_key(file.document)}.shutdownAfterJobFinishes"
        yield f"`{key}` must be true, or the cluster stays and costs."


def machines_stop(file: ClusterFile) -> Iterator[str]:
    """SkyPilot: machines stop when nothing runs."""
    if file.kind != "skypilot":
        return
    told = file.document.get("resources", {}).get("autostop")
    idle = _minutes(told)
    if idle is None or not 0 <= idle <= _MAX_IDLE_MINUTES:
        yield (
            f"`resources.autostop` must stop machines after {_MAX_IDLE_MINUTES} idle minutes or "
            f"fewer, but is {'missing' if told is None else told}."
        )


def _minutes(told: Any) -> float | None:
    """Read SkyPilot's ways of writing it: true, 10, `10m`, or a mapping with `idle_minutes`."""
    if isinstance(told, dict):
        return _minutes(told.get("idle_minutes", 5))
    if isinstance(told, bool):
        return 5.0 if told else None
    found = re.fullmatch(r"(\d+)([smhdw]?)", str(told))
    return int(found[1]) * _UNITS[found[2]] if found else None


RULES = (job_shuts_down, machines_stop)
