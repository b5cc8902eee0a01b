"""Rules that clusters made for a single run end with the run."""

import re
from collections.abc import Iterator
from typing import Any

from cluster import files
from cluster.files import ClusterFile

_MAX_IDLE_MINUTES = 60
_MINUTES_BY_UNIT = {"s": 1 / 60, "m": 1.0, "": 1.0, "h": 60.0, "d": 1440.0, "w": 10080.0}


def check_job_shutdown(file: ClusterFile) -> Iterator[str]:
    """KubeRay: require the cluster of a `RayJob` or `RayCronJob` to end with the job."""
    job = files.find_job_spec(file.document) if file.kind == "kuberay" else None
    if job is not None and job.get("shutdownAfterJobFinishes") is not True:
        key = f"{files.find_job_key(file.document)}.shutdownAfterJobFinishes"
        yield f"`{key}` must be true, or the cluster stays and costs."


def check_autostop(file: ClusterFile) -> Iterator[str]:
    """SkyPilot: require idle machines to stop."""
    if file.kind != "skypilot":
        return
    autostop = file.document.get("resources", {}).get("autostop")
    idle = _parse_minutes(autostop)
    if idle is None or not 0 <= idle <= _MAX_IDLE_MINUTES:
        yield (
            f"`resources.autostop` must stop machines after {_MAX_IDLE_MINUTES} idle minutes or "
            f"fewer, but is {'missing' if autostop is None else autostop}."
        )


def _parse_minutes(autostop: Any) -> float | None:
    """Parse SkyPilot's forms: true, 10, `10m`, or a mapping with `idle_minutes`."""
    # The default of SkyPilot is 5 minutes.
    if isinstance(autostop, dict):
        return _parse_minutes(autostop.get("idle_minutes", 5))
    if isinstance(autostop, bool):
        return 5.0 if autostop else None
    match = re.fullmatch(r"(\d+)([smhdw]?)", str(autostop))
    return int(match[1]) * _MINUTES_BY_UNIT[match[2]] if match else None


RULES = (check_job_shutdown, check_autostop)
