"""The coordinator's handling of lost processes and errors. The rest needs a cluster."""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from ray.experimental import internal_kv

from mtil.distributed.circle import coordinator, driver
from mtil.distributed.circle.coordinator import _MAX_LOSSES, Coordinator, CoordinatorSession, _Task
from mtil.distributed.circle.restarts import MAX_COORDINATOR_DEATHS, RestartCounter
from mtil.distributed.runtime import cluster
from mtil.errors import DataError, LedgerError, RunError
from mtil.run.plan import Train


def test_an_action_that_loses_its_processes_waits_longer_each_time_and_fails_in_the_end() -> None:
    task = _Task(Train(0, 0), attempt=1)
    waits = []
    for _ in range(_MAX_LOSSES):
        assert task.record_loss(("epoch-0",), now=100.0)
        waits.append(task.not_before - 100.0)
    assert waits == [1, 2, 4, 8, 16, 30, 30, 30]
    assert not task.record_loss(("epoch-0",), now=100.0)


def test_an_action_that_has_come_further_has_not_lost_in_a_row() -> None:
    task = _Task(Train(0, 0), attempt=1)
    for epoch in range(5 * _MAX_LOSSES):
        assert task.record_loss((f"epoch-{epoch}",), now=0.0)
        assert task.not_before == 1.0
    for _ in range(_MAX_LOSSES - 1):
        assert task.record_loss((f"epoch-{epoch}",), now=0.0)
    assert not task.record_loss((f"epoch-{epoch}",), now=0.0)


class Exited(BaseException):
    """Raised instead of exiting the process."""


class Fails:
    """A session with failing work."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def work(self) -> None:
        raise self.error


@pytest.fixture
def cluster_memory(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The key-value store of the cluster, replaced by a dict."""
    kept: dict[str, str] = {}

    def put(key: str, value: str, *, namespace: str) -> None:
        kept[key] = value

    def get(key: str, *, namespace: str) -> str | None:
        return kept.get(key)

    def delete(key: str, *, namespace: str) -> None:
        kept.pop(key, None)

    monkeypatch.setattr(internal_kv, "_internal_kv_put", put)
    monkeypatch.setattr(internal_kv, "_internal_kv_get", get)
    monkeypatch.setattr(internal_kv, "_internal_kv_del", delete)
    return kept


@pytest.fixture
def process(
    monkeypatch: pytest.MonkeyPatch, cluster_memory: dict[str, str]
) -> Callable[[Exception], Coordinator]:
    """Return a factory of coordinators with failing sessions."""

    def exit_(code: int) -> None:
        assert code == 1
        raise Exited

    monkeypatch.setattr(coordinator, "_RESTART_S", (0.0, 0.0))
    monkeypatch.setattr(os, "_exit", exit_)

    def make(error: Exception) -> Coordinator:
        monkeypatch.setattr(
            coordinator, "CoordinatorSession", lambda run_uri, restarts: Fails(error)
        )
        return Coordinator.__new__(Coordinator)

    return make


def read_restarts(run_uri: str) -> RestartCounter:
    return RestartCounter(coordinator._actor_name(run_uri))


def test_a_restarted_process_answers_its_first_poll_with_the_errors_before(
    cluster_memory: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a client would report the errors twice."""

    class Idle(ThreadPoolExecutor):
        """An executor without running work."""

        def submit(self, *_: Any, **__: Any) -> "Future[Any]":
            return Future()

    read_restarts("run").fail("ValueError: mistake 1")
    monkeypatch.setattr(coordinator, "ThreadPoolExecutor", Idle)
    answer = Coordinator("run").poll()
    assert (answer["over"], answer["errors"]) == (False, ["ValueError: mistake 1"])


def test_an_error_of_its_own_ends_the_process_and_the_third_in_a_row_all_of_it(
    process: Callable[[Exception], Coordinator], cluster_memory: dict[str, str]
) -> None:
    """Ray restarts a dead process, but not a live process without work."""
    for number in (1, 2):
        one = process(ValueError(f"mistake {number}"))
        with pytest.raises(Exited):
            one._work_until_end("läufe/проба", read_restarts("läufe/проба"))
        assert one._errors == [f"ValueError: mistake {n}" for n in range(1, number + 1)]
    last = process(ValueError("mistake 3"))
    with pytest.raises(RunError) as caught:
        last._work_until_end("läufe/проба", read_restarts("läufe/проба"))
    assert str(caught.value) == "The coordinator failed 3 times in a row: ValueError: mistake 3"
    assert len(last._errors) == 3
    assert cluster_memory == {}  # the next command counts anew


def test_an_error_of_the_run_is_told_at_once(
    process: Callable[[Exception], Coordinator], cluster_memory: dict[str, str]
) -> None:
    with pytest.raises(LedgerError, match="a gap"):
        process(LedgerError("a gap"))._work_until_end("run", read_restarts("run"))
    assert cluster_memory == {}


def test_errors_are_in_a_row_until_an_action_ends(
    process: Callable[[Exception], Coordinator],
) -> None:
    for _ in range(2):
        with pytest.raises(Exited):
            process(ValueError("a mistake"))._work_until_end("run", read_restarts("run"))
    RestartCounter(coordinator._actor_name("run")).reset()  # as after every action
    for _ in range(2):
        with pytest.raises(Exited):
            process(ValueError("a mistake"))._work_until_end("run", read_restarts("run"))


def test_processes_that_die_before_they_work_are_counted(
    process: Callable[[Exception], Coordinator],
) -> None:
    name = coordinator._actor_name("run")
    for _ in range(MAX_COORDINATOR_DEATHS):
        RestartCounter(name).begin()  # dies before any work
    one = process(ValueError("not reached"))
    with pytest.raises(RunError, match=r"process died 8 times in a row before any work"):
        one._work_until_end("run", read_restarts("run"))
    for _ in range(3 * MAX_COORDINATOR_DEATHS):
        restarts = RestartCounter(name)
        assert restarts.verdict() == ""
        restarts.begin()
        restarts.work()  # dies after some work


def answer(**values: Any) -> dict[str, Any]:
    return driver._NO_ANSWER | values


def test_a_client_hears_each_error_once() -> None:
    lines: list[dict[str, Any]] = []
    troubles = driver.TroubleReporter(lines.append)
    for errors, deaths in ([], 0), (["one"], 0), (["one"], 0), (["one", "two"], 1), ([], 0):
        troubles.report(answer(answered=True, errors=errors, deaths=deaths))
    troubles.report(answer(silent=True))
    troubles.report(answer(silent=True))
    assert [line["text"] for line in lines] == [
        "The coordinator failed (1 of 3): one",
        "The coordinator failed (2 of 3): two",
        "The coordinator's process died and is being restarted.",
        "The coordinator has not answered for 30 s; still waiting.",
    ]
    assert {line["kind"] for line in lines} == {"trouble"}


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (ModuleNotFoundError("No module named 'mtil'"), RunError, "cannot start: .*'mtil'"),
        (DataError("A file is wrong."), DataError, r"^A file is wrong\.$"),
    ],
)
def test_a_coordinator_that_cannot_be_made_ends_the_command(
    error: Exception, kind: type[Exception], message: str
) -> None:
    lines: list[dict[str, Any]] = []
    troubles = driver.TroubleReporter(lines.append)
    for _ in range(2):
        troubles.report(answer(over=True, cannot_start=error))
    with pytest.raises(kind, match=message):
        troubles.report(answer(over=True, cannot_start=error))
    assert len(lines) == 3


def test_what_cannot_be_freed_does_not_end_the_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing() -> None:
        raise AttributeError("no such thing in this version of Ray")

    monkeypatch.setattr(cluster, "free_orphaned_groups", failing)
    CoordinatorSession.__new__(CoordinatorSession)._free_orphans()
    assert "could not be freed" in caplog.text
