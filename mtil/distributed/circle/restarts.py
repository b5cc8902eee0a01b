"""How often a coordinator failed in a row, kept by the cluster while its processes come and go."""

import json

from ray.experimental import internal_kv

MAX_ERRORS = 3
"""Errors in a row that end a coordinator for good."""
MAX_DEATHS = 8
"""The same of processes that died before they worked: machines may be taken away."""

_NAMESPACE = "mtil"


class Restarts:
    """The failures in a row of the coordinator of a name, in Ray's key-value store."""

    def __init__(self, name: str) -> None:
        self._key = f"restarts-{name}"
        found = internal_kv._internal_kv_get(self._key, namespace=_NAMESPACE)
        values = json.loads(found) if found else {}
        self.errors: list[str] = values.get("errors", [])
        """Causes of those that ended by an error, since an action last ended."""
        self.deaths: int = values.get("deaths", 0)
        """Processes that died without a word before they worked."""

    def begin(self) -> None:
        """Count this process as dead, until it works or says why it does not."""
        self.deaths += 1
        self._keep()

    def work(self) -> None:
        """Note that this process works."""
        if self.deaths:
            self.deaths = 0
            self._keep()

    def fail(self, cause: str) -> None:
        """Note an error that ends this process."""
        self.deaths = 0
        self.errors.append(cause)
        self._keep()

    def forget(self) -> None:
        """Begin to count anew: an action has ended, or somebody was told of the failure."""
        self.errors, self.deaths = [], 0
        internal_kv._internal_kv_del(self._key, namespace=_NAMESPACE)

    def verdict(self) -> str:
        """Say why there is no further try; nothing if there is one."""
        if len(self.errors) >= MAX_ERRORS:
            return f"The coordinator failed {len(self.errors)} times in a row: {self.errors[-1]}"
        if self.deaths > MAX_DEATHS:
            return (
                f"The coordinator's process died {MAX_DEATHS} times in a row before it worked, as "
                "from want of memory; see the logs of Ray on its machine."
            )
        return ""

    def _keep(self) -> None:
        text = json.dumps({"errors": self.errors, "deaths": self.deaths})
        internal_kv._internal_kv_put(self._key, text, namespace=_NAMESPACE)
