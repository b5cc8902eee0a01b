"""What a coordinator makes of lost processes; the rest of it needs a cluster."""

from mtil.distributed.coordinator import _MAX_LOSSES, _Task
from mtil.plan import Train


def test_an_action_that_loses_its_processes_waits_longer_each_time_and_fails_in_the_end() -> None:
    task = _Task(Train(0, 0), attempt=1)
    waits = []
    for _ in range(_MAX_LOSSES):
        assert task.lose(("epoch-0",), now=100.0)
        waits.append(task.not_before - 100.0)
    assert waits == [1, 2, 4, 8, 16, 30, 30, 30]
    assert not task.lose(("epoch-0",), now=100.0)


def test_an_action_that_has_come_further_has_not_lost_in_a_row() -> None:
    task = _Task(Train(0, 0), attempt=1)
    for epoch in range(5 * _MAX_LOSSES):
        assert task.lose((f"epoch-{epoch}",), now=0.0)
        assert task.not_before == 1.0
    for _ in range(_MAX_LOSSES - 1):
        assert task.lose((f"epoch-{epoch}",), now=0.0)
    assert not task.lose((f"epoch-{epoch}",), now=0.0)
