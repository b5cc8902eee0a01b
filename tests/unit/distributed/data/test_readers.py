"""How many tasks read shards at the same time."""

import time

import pytest

from mtil.distributed.data.readers import ReadingTime, measure_reading


@pytest.mark.parametrize(
    ("seconds", "cpu_seconds", "cpus", "expected"),
    [
        (1.0, 1.0, 2.0, 2),  # reading computes all the time: a task per CPU
        (1.5, 1.0, 2.0, 3),  # a third of the time, a task waits
        (1.0, 0.1, 2.0, 8),  # slow storage, up to the limit
        (1.0, 1.0, 64.0, 8),
        (1.0, 1.0, 0.25, 2),  # a small share of a full machine
        (0.5, 1.0, 4.0, 4),  # several threads computed
        (1.0, 0.0, 1.0, 8),  # too short for the CPU clock
    ],
)
def test_slow_storage_and_many_cpus_get_more_readers(
    seconds: float, cpu_seconds: float, cpus: float, expected: int
) -> None:
    assert ReadingTime(seconds, cpu_seconds).num_readers(cpus) == expected


def test_waiting_is_told_from_computing() -> None:
    result, waited = measure_reading(lambda: time.sleep(0.1) or "table")
    assert result == "table"
    assert waited.seconds >= 0.1
    _, computed = measure_reading(lambda: sum(range(2_000_000)))
    assert waited.seconds / waited.cpu_seconds > computed.seconds / computed.cpu_seconds
