"""Choose how many tasks read shards at the same time. No Ray."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

_FEWEST, _MOST = 2, 8
"""Bounds: one task reads while another starts; every task costs the start and memory of a process.
"""


@dataclass(frozen=True)
class ReadingTime:
    """Time for which a process read one shard."""

    seconds: float
    cpu_seconds: float
    """CPU time of the process. In the rest of `seconds`, the process waits for storage."""

    def num_readers(self, cpus: float) -> int:
        """Return how many tasks keep `cpus` CPUs busy with reading, from 2 to 8.

        Slow storage gets more tasks. Further tasks would compete for the CPUs, also with a storage
        server on the same machine.
        """
        waiting = self.seconds / max(self.cpu_seconds, 1e-9)
        return max(_FEWEST, min(round(cpus * max(waiting, 1.0)), _MOST))


def measure_reading(read: Callable[[], T]) -> tuple[T, ReadingTime]:
    """Call `read`. Return the result and the time of the call."""
    start, cpu_start = time.perf_counter(), time.process_time()
    result = read()
    return result, ReadingTime(time.perf_counter() - start, time.process_time() - cpu_start)
