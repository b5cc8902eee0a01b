"""Count consecutive failures of a coordinator, in a store that survives its processes."""

import json

from ray.experimental import internal_kv

MAX_COORDINATOR_ERRORS = 3
"""Consecutive errors after which a coordinator ends for good."""
MAX_COORDINATOR_DEATHS = 8
"""Consecutive deaths before any work after which a coordinator ends for good. Higher than
`MAX_COORDINATOR_ERRORS`, because machines may be preempted."""

_NAMESPACE = "mtil"


class RestartCounter:
    """Consecutive failures of a named coordinator, in Ray's key-value store."""

    def __init__(self, name: str) -> None:
        self._key = f"restarts-{name}"
        stored = internal_kv._internal_kv_get(self._key, namespace=_NAMESPACE)
        values = json.loads(stored) if stored else {}
        self.errors: list[str] = values.get("errors", [])
        """Causes of errors since an action last ended."""
        self.deaths: int = values.get("deaths", 0)
        """Number of processes that died without an error before any work."""

    def begin(self) -> None:
        """Count the present process as dead until `work` or `fail` is called."""
        # A process killed by the system cannot report: count the death in advance.
        self.deaths += 1
        self._save()

    def work(self) -> None:
        """Record that the present process works."""
        if self.deaths:
            self.deaths = 0
            self._save()

    def fail(self, cause: str) -> None:
        """Record an error that ends the present process."""
        self.deaths = 0
        self.errors.append(cause)
        self._save()

    def reset(self) -> None:
        """Reset the counts: an action has ended, or a client has received the failure."""
        self.errors, self.deaths = [], 0
        internal_kv._internal_kv_del(self._key, namespace=_NAMESPACE)

    def verdict(self) -> str:
        """Return the reason against another restart; empty if a restart is allowed."""
        if len(self.errors) >= MAX_COORDINATOR_ERRORS:
            return f"The coordinator failed {len(self.errors)} times in a row: {self.errors[-1]}"
        if self.deaths > MAX_COORDINATOR_DEATHS:
            return (
                f"The coordinator's process died {MAX_COORDINATOR_DEATHS} times in a row before "
                "any work, "
                "perhaps for lack of memory. See the Ray logs on the coordinator's machine."
            )
        return ""

    def _save(self) -> None:
        text = json.dumps({"errors": self.errors, "deaths": self.deaths})
        internal_kv._internal_kv_put(self._key, text, namespace=_NAMESPACE)
