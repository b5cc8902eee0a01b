"""Drivers of searches: results on known functions, kills, and a single driver at a time."""

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from benchmarks.known import best_of, front_share, make_search
from mtil.circle import heartbeat
from mtil.errors import DataError, RunError
from mtil.storage import open_store
from tests.waiting import PATIENCE_S, until
from tune import study as studies
from tune.record import Search
from tune.search import driver_lock


def test_what_learns_from_trials_beats_what_does_not(tmp_path: Path) -> None:
    """As in `python -m benchmarks.search sampler`: 60 trials of both samplers, with 10 seeds."""
    best = {
        kind: [best_of(tmp_path / f"{kind}-{seed}", kind, seed, 60) for seed in range(10)]
        for kind in ("tpe", "random")
    }
    wins = sum(one > other for one, other in zip(best["tpe"], best["random"], strict=True))
    assert wins >= 8, best


def test_two_goals_find_the_front(tmp_path: Path) -> None:
    shares = [front_share(tmp_path / str(seed), "tpe", seed, 100) for seed in (100, 101, 102)]
    assert min(shares) >= 0.95, shares


DRIVER = """
import sys, time
from pathlib import Path
from mtil.distributed.runtime import cluster
from tune import search as searches
from tune.record import Search

folder = Path(sys.argv[1])

def record_event(word, number):
    with (folder / "told.txt").open("a") as file:
        file.write(f"{word} {number}\\n")

def work(uri, number, point, means):
    record_event("begun", number)
    while number >= 7 and not (folder / "go").exists():
        time.sleep(0.05)  # until the driver has been killed
    record_event("ended", number)
    dice = 1 - (float(point["loss.dice"]) - 0.5) ** 2
    return {"figures": [{"dice": dice}], "seconds": 1.0}

with cluster.connect_ray():
    searches.run_search(Search.open(sys.argv[2]), 9, lambda line: None, does=work)
"""


def test_a_killed_driver_ends_with_what_was_asked(tmp_path: Path) -> None:
    """SIGKILL the driver after seven trials, with more in flight. A new driver ends with nine."""
    search = make_search(tmp_path / "s")
    command = [sys.executable, "-c", DRIVER, str(tmp_path), search.uri]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    first = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    until(lambda: _has_seven_and_more(search), first)
    family = psutil.Process(first.pid).children(recursive=True)
    first.send_signal(signal.SIGKILL)
    first.wait()
    for process in family:
        if process.is_running():
            process.kill()
    killed = studies.list_trials(studies.load_study(search))
    after = studies.count_trials(studies.load_study(search))
    assert (after["completed"], after["running"] > 0) == (7, True)
    (tmp_path / "go").touch()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    study = studies.load_study(search)
    assert studies.count_trials(study) == {
        "completed": 9, "stopped early": 0, "failed": 0, "running": 0, "waiting": 0,
    }  # fmt: skip
    trials = studies.list_trials(study)
    assert len({tuple(sorted(trial.point.items())) for trial in trials}) == 9
    events = (tmp_path / "told.txt").read_text().splitlines()
    for trial in killed:
        if trial.state == "completed":
            assert trials[trial.number] == trial
            assert (
                events.count(f"begun {trial.number}") == events.count(f"ended {trial.number}") == 1
            )
    assert {line for line in events if line.startswith("ended")} == {f"ended {n}" for n in range(9)}
    assert search.store.names("drivers") == []


def _has_seven_and_more(search: Search) -> bool:
    """Return whether seven trials are completed, and a further trial waits for the kill."""
    with suppress(DataError):  # no study yet
        counts = studies.count_trials(studies.load_study(search))
        return counts["completed"] == 7 and counts["running"] > 0
    return False


def test_of_two_drivers_that_begin_together_one_is_refused(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    outcomes: list[str] = []
    both = threading.Barrier(2)

    def drive() -> None:
        both.wait()
        try:
            with driver_lock.hold_driver_lock(store):
                outcomes.append("went")
                both.wait()
        except RunError as error:
            outcomes.append(str(error))
            both.wait()

    threads = [threading.Thread(target=drive) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes)[0].startswith("Another `mtil-tune run` is running")
    assert sorted(outcomes)[1:] == ["went"]
    assert store.names("drivers") == []


def test_a_driver_that_was_killed_does_not_keep_the_next_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "HEARTBEAT_INTERVAL_S", 0.1)
    monkeypatch.setattr(heartbeat, "_SILENCE_S", 0.5)
    store = open_store(str(tmp_path))
    store.write("drivers/0004", b"dead")
    with driver_lock.hold_driver_lock(store):
        monkeypatch.setattr(heartbeat, "_SILENCE_S", PATIENCE_S)  # a busy machine is not dead
        assert store.names("drivers") == ["drivers/0004", "drivers/0005"]
        with (
            pytest.raises(RunError, match="Another `mtil-tune run`"),
            driver_lock.hold_driver_lock(store),
        ):
            pass
    assert store.names("drivers") == []
