"""What a coordinator makes of lost processes and of errors; the rest of it needs a cluster."""

import os

import pytest

from mtil.distributed import cluster, coordinator
from mtil.distributed.coordinator import _MAX_LOSSES, Coordinator, Session, _Task
from mtil.errors import LedgerError
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


@pytest.mark.parametrize("error", [ValueError("a mistake"), LedgerError("a gap")])
def test_an_error_of_its_own_ends_the_process_and_one_of_the_run_is_told(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Ray starts a process again that has died, and not one that has only stopped working."""

    class Exited(BaseException):
        pass

    def failing(run_uri: str) -> None:
        raise error

    def exit_(code: int) -> None:
        assert code == 1
        raise Exited

    monkeypatch.setattr(coordinator, "Session", failing)
    monkeypatch.setattr(coordinator, "_RESTART_S", 0.0)
    monkeypatch.setattr(os, "_exit", exit_)
    of_the_run = isinstance(error, LedgerError)
    with pytest.raises(LedgerError if of_the_run else Exited):
        Coordinator.__new__(Coordinator)._do("run")


def test_what_cannot_be_freed_does_not_end_the_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing() -> None:
        raise AttributeError("no such thing in this version of Ray")

    monkeypatch.setattr(cluster, "free_orphans", failing)
    Session.__new__(Session)._free_orphans()
    assert "could not be freed" in caplog.text
