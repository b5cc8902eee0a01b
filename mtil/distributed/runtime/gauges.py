"""Prometheus gauges of a run, exported by Ray on every node.

Ray prefixes the names with `ray_`. `cluster/grafana.json` is a dashboard of the gauges.
"""

import logging
from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Gauge

TRAINING_GAUGES = {
    "mtil_images_per_second": "Images trained on a second, by all workers of a training together.",
    "mtil_step_seconds": "Time of an optimiser step.",
    "mtil_data_wait_share": "Share of the time in which the step waits for data.",
    "mtil_loss": "Sum of the loss terms of the latest step.",
    "mtil_epoch": "Epochs done, the present one by its share.",
    "mtil_workers": "Processes that train together.",
}
COORDINATOR_GAUGES = {
    "mtil_actions_waiting": "Actions of a circle that may run and find no room.",
    "mtil_actions_running": "Actions of a circle that run.",
    "mtil_actions_done": "Actions of a circle that are committed.",
    "mtil_actions_failed": "Failures of a circle's actions.",
    "mtil_round": "The round that the coordinator works on, the earliest of all folds.",
}

_log = logging.getLogger(__name__)


class Gauges:
    """Gauges with common tags. The first error is logged and disables the gauges."""

    def __init__(self, described: Mapping[str, str], **tags: Any) -> None:
        """Create gauges.

        Args:
            described: description by gauge name.
            tags: common tags; None becomes an empty value.
        """
        self._gauges: dict[str, Gauge] = {}
        self._has_failed = False
        values = {
            key: "" if value is None else encode_tag(str(value)) for key, value in tags.items()
        }
        # Monitoring must never end a training, whatever Ray raises.
        try:
            for name, description in described.items():
                gauge = Gauge(name, description, tag_keys=tuple(values))
                self._gauges[name] = gauge.set_default_tags(values)
        except Exception:  # noqa: BLE001
            self._disable()

    def set(self, **values: float) -> None:
        """Set gauges, named without `mtil_`. Does nothing after an error."""
        if self._has_failed:
            return
        try:
            for name, value in values.items():
                self._gauges[f"mtil_{name}"].set(value)
        except Exception:  # noqa: BLE001
            self._disable()

    def _disable(self) -> None:
        self._has_failed = True
        _log.exception("The gauges of the process have failed and are disabled")


def encode_tag(text: str) -> str:
    r"""Return a tag value in printable ASCII, as Ray requires. Other letters become `\xe4`."""
    plain = text.encode("ascii", "backslashreplace").decode("ascii")
    return "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in plain)
