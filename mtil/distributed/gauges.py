"""What Prometheus is told of a run, through Ray's own exporter on each node.

Ray puts `ray_` before the names; `cluster/grafana.json` is a dashboard of them.
"""

from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Gauge

TRAINING = {
    "mtil_images_per_second": "Images trained on a second, by all workers of a training together.",
    "mtil_step_seconds": "Time of an optimiser step.",
    "mtil_data_wait_share": "Share of the time in which the step waits for data.",
    "mtil_loss": "Sum of the loss terms of the latest step.",
    "mtil_epoch": "Epochs done, the present one by its share.",
    "mtil_workers": "Processes that train together.",
}
COORDINATOR = {
    "mtil_actions_waiting": "Actions of a circle that may run and find no room.",
    "mtil_actions_running": "Actions of a circle that run.",
    "mtil_actions_done": "Actions of a circle that are committed.",
    "mtil_actions_failed": "Failures of a circle's actions.",
    "mtil_round": "The round that the coordinator works on, the earliest of all folds.",
}


class Gauges:
    """Some gauges, all with the same tags."""

    def __init__(self, described: Mapping[str, str], **tags: Any) -> None:
        """Make gauges by name and description, tagged with what they are of; None is nothing."""
        self._gauges = {}
        for name, description in described.items():
            gauge = Gauge(name, description, tag_keys=tuple(tags))
            gauge.set_default_tags(
                {key: "" if value is None else str(value) for key, value in tags.items()}
            )
            self._gauges[name] = gauge

    def set(self, **values: float) -> None:
        """Set some of them, by their names without `mtil_`."""
        for name, value in values.items():
            self._gauges[f"mtil_{name}"].set(value)
