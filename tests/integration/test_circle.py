"""Rounds through Ray and a real S3 server: coordinator, maps, failures and damaged files."""

import subprocess
import sys
import threading
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch

from mtil.circle import heartbeat
from mtil.circle.inputs import find_map_source, select_training_rows
from mtil.circle.ledger import Ledger
from mtil.circle.request import request_circle
from mtil.circle.state import ActionFailed, ActionStarted, CircleState, compute_stages, is_finished
from mtil.config import Config, config_from_dict
from mtil.data.dataset.batches import ROLE_COLUMNS
from mtil.data.dataset.selection import RowSelection
from mtil.data.dataset.shards import read_shard
from mtil.distributed.circle import coordinator, driver
from mtil.distributed.circle.actions import run_action
from mtil.distributed.circle.coordinator import Coordinator, CoordinatorSession
from mtil.distributed.circle.restarts import MAX_COORDINATOR_ERRORS, RestartCounter
from mtil.distributed.prediction import map_writing
from mtil.distributed.runtime import cluster
from mtil.errors import CheckpointError, ConfigError, DataError, RunError
from mtil.run import maps
from mtil.run.folder import Run
from mtil.run.plan import Summarise, Train, WriteMaps, list_actions
from mtil.storage import open_store
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("local_ray")

FOLDS = (0, 1)
ODD = "kreise/проба 乳腺 #1 100% [/x] 'a'"
"""An unusual but valid name of a run. Gauges, tasks and actors are named after the run."""


def _config(**values: Any) -> Config:
    return config_from_dict(
        {
            "data": {"image_size": 64},
            "model": {"encoder": {"name": "resnet10_tiny", "pretrained": False}},
            "train": {
                "num_epochs": 2,
                "batch_size": 8,
                "num_workers": 1,
                "cpus_per_worker": 0.75,  # two folds train side by side on two CPUs
                "warmup_epochs": 0.5,
            },
            "circle": {"num_rounds": 2, **values},
        }
    )


def _ignore(line: dict[str, Any]) -> None:
    assert "kind" in line


@pytest.fixture(scope="module")
def state(dataset: str, bucket: str) -> CircleState:
    run = driver.begin_circle(request_circle(dataset, f"{bucket}/{ODD}", _config(), FOLDS))
    return driver.follow_circle(run, _ignore)


@pytest.fixture(scope="module")
def run(state: CircleState, bucket: str) -> Run:
    return Run.open(f"{bucket}/{ODD}")


def _same_weights(one: Run, other: Run, of: Train) -> bool:
    ours, theirs = one.model(of).weights, other.model(of).weights
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_circle_ends_with_every_round_of_every_fold(state: CircleState, run: Run) -> None:
    assert is_finished(state)
    assert state.failures == {}
    assert set(state.done) == set(list_actions(run.plan(FOLDS)))
    assert compute_stages(state) == {0: {0: "done", 1: "done"}, 1: {0: "done", 1: "done"}}
    assert run.find_trained_folds() == {0: [0, 1], 1: [0, 1]}


def test_its_ledger_is_one_chain_that_an_ended_run_does_not_extend(
    state: CircleState, run: Run, dataset: str
) -> None:
    again = driver.begin_circle(request_circle(dataset, run.uri, _config(), FOLDS))
    assert driver.follow_circle(again, _ignore).number == state.number
    assert Ledger.open(run.store).state == state


def test_another_plan_is_refused(run: Run, dataset: str) -> None:
    with pytest.raises(ConfigError, match=r"must keep its configuration, but .*num_rounds"):
        driver.begin_circle(request_circle(dataset, run.uri, _config(num_rounds=3), FOLDS))
    with pytest.raises(
        ConfigError, match=r"Cannot change the folds of a run: .* began with \[0, 1\]"
    ):
        driver.begin_circle(request_circle(dataset, run.uri, _config(), (0,)))


def test_more_parts_than_the_data_have_are_refused_before_anything_is_written(
    dataset: str, bucket: str
) -> None:
    config = _config(maps="cross_fit", num_parts=50)
    with pytest.raises(DataError, match=r"can be divided into at most \d+ parts"):
        driver.begin_circle(request_circle(dataset, f"{bucket}/too-many", config, FOLDS))
    assert open_store(f"{bucket}/too-many").names("ledger") == []


def test_the_second_round_has_passes_and_figures_for_each(state: CircleState, run: Run) -> None:
    results: dict[str, Any] = {str(action): result for action, result in state.done.items()}
    passes = [[one["pass"] for one in results[f"summary of round {n}"]["by_pass"]] for n in (0, 1)]
    assert passes == [[0], [0, 1]]
    for number in (0, 1):
        table = pq.read_table(_buffer(run, run.predictions_name(number, 0)))
        seen = table.group_by("pass").aggregate([("sample_id", "count_distinct")]).to_pylist()
        rows = table.num_rows // len(passes[number])
        assert [one["sample_id_count_distinct"] for one in seen] == [rows] * len(passes[number])


def _buffer(run: Run, name: str) -> pa.BufferReader:
    return pa.BufferReader(run.store.read(name))


def test_maps_that_are_damaged_between_rounds_are_written_again(
    state: CircleState, run: Run, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard is cut, a second changed, a third lost, and a fourth has the content of the first."""
    monkeypatch.setattr(map_writing, "_CHECKED_SHARDS", 2)  # several tasks check the shards
    other = open_store(f"{bucket}/circle-damaged")
    of = Train(1, 0)
    kept = ("run.json", "rounds/0/fold-0/", "maps/0/fold-0/")
    names = [name for name in run.store.names() if name.startswith(kept)]
    for name in names:
        other.write(name, run.store.read(name))
    shards = [name for name in names if name.startswith("maps/")]
    assert len(shards) >= 4
    before = {name: other.read(name) for name in shards}
    changed = bytearray(before[shards[1]])
    held = pq.read_metadata(pa.BufferReader(before[shards[1]])).row_group(0).column(1)
    changed[held.data_page_offset + held.total_compressed_size // 2] ^= 1
    other.write(shards[0], before[shards[0]][:-7])
    other.write(shards[1], bytes(changed))
    other.delete(shards[2])
    other.write(shards[3], before[shards[0]])
    run_action(other.uri, of, (), 1)
    assert {name: other.read(name) for name in shards} == before
    assert _same_weights(Run.open(other.uri), run, of)


def test_groups_of_dead_actors_of_this_job_are_freed_and_no_others() -> None:
    ours, alive = _Holder.remote(), _Holder.remote()
    freed, kept = ray.get([ours.hold.remote(), alive.hold.remote()])
    driver = ray.util.placement_group([{"CPU": 0.01}])
    ray.get(driver.ready())
    address = ray.get_runtime_context().gcs_address
    with subprocess.Popen(
        [sys.executable, "-c", _OTHER_JOB, address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as other:
        assert other.stdout is not None
        theirs = other.stdout.readline().strip()
        ray.kill(ours)
        until(lambda: len(_dead(freed, theirs)) == 2)
        cluster.free_orphaned_groups()
        until(lambda: _groups()[freed] == "REMOVED")
        states = [_groups()[group] for group in (kept, theirs, driver.id.hex())]
        assert states == ["CREATED"] * 3
        other.communicate("end")
    ray.util.remove_placement_group(driver)
    ray.kill(alive)
    until(lambda: len(_dead(kept)) == 1)
    cluster.free_orphaned_groups()
    until(lambda: _groups()[kept] == "REMOVED")


@ray.remote(num_cpus=0)
class _Holder:
    """Makes a placement group. The group lives until the job ends or the group is freed."""

    def hold(self) -> str:
        group = ray.util.placement_group([{"CPU": 0.01}])
        ray.get(group.ready())
        return group.id.hex()


_OTHER_JOB = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)

@ray.remote(num_cpus=0)
class Holder:
    def hold(self):
        group = ray.util.placement_group([{"CPU": 0.01}])
        ray.get(group.ready())
        return group.id.hex()

holder = Holder.remote()
print(ray.get(holder.hold.remote()), flush=True)
ray.kill(holder)
sys.stdin.read()
"""


def _groups() -> dict[str, str]:
    table = ray.util.placement_group_table()
    return {group["placement_group_id"]: group["state"] for group in table.values()}


def _dead(*groups: str) -> list[str]:
    """Return the groups with dead actors."""
    accessor = ray._private.state.state._connect_and_get_accessor()
    found = [cluster._GroupData.FromString(data) for data in accessor.get_placement_group_table()]
    dead = [group.placement_group_id.hex() for group in found if group.creator_actor_dead]
    return [group for group in groups if group in dead]


def _brief(**values: Any) -> Config:
    config = _config(**values)
    return replace(config, train=replace(config.train, num_epochs=1, max_failures=0))


@pytest.fixture(scope="module")
def chain(dataset: str, bucket: str) -> Run:
    """A cross-fitted chain, stopped and continued, with a failed fold 1."""
    config = _brief(maps="cross_fit", num_parts=2, test="chain", warm_start=False, max_attempts=1)
    run = driver.begin_circle(request_circle(dataset, f"{bucket}/circle-chain", config, FOLDS))
    _end_by_a_mistake(run)
    _fail(run, Train(0, 1))

    def stop(line: dict[str, Any]) -> None:
        if line["kind"] == "committed" and not stopped.is_set():
            stopped.set()
            Ledger.open(run.store).stop()

    stopped = threading.Event()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "_POLL_S", 0.05)  # hears of a commit long before the last action
        state = driver.follow_circle(run, stop)
    assert state.stopped
    assert not is_finished(state)
    assert heartbeat.read_heartbeat(run.store) is None
    again = driver.begin_circle(request_circle(dataset, run.uri, config, FOLDS))
    assert is_finished(driver.follow_circle(again, _ignore))
    return run


def _end_by_a_mistake(run: Run) -> None:
    """Damage a file of fold 1. The run must end at once, without a failed action."""
    name = "rounds/0/fold-1/checkpoints/latest.json"
    run.store.write(name, b"not JSON")
    with pytest.raises(CheckpointError, match=r"latest\.json"):
        driver.follow_circle(run, _ignore)
    state = Ledger.open(run.store).state
    assert state is not None
    assert state.failures == {}
    assert state.attempts[Train(0, 1)] == 1
    assert heartbeat.read_heartbeat(run.store) is None
    run.store.delete(name)


def _fail(run: Run, action: Train) -> None:
    """Record a failed action of an earlier session."""
    ledger = Ledger.open(run.store)
    ledger.boot()
    assert ledger.state is not None
    attempt = ledger.state.next_attempt(action)
    ledger.append(ActionStarted(action=action, attempt=attempt))
    ledger.append(ActionFailed(action=action, attempt=attempt, cause="It was to fail."))


def test_a_chain_outlives_a_failed_fold(chain: Run) -> None:
    state = Ledger.open(chain.store).state
    assert state is not None
    assert list(state.failed_folds) == [1]
    assert state.failed_folds[1].endswith(": It was to fail.")
    assert {action for action in list_actions(chain.plan([0])) if action not in state.done} == set()
    assert [state.done[Summarise(number)]["folds"] for number in (0, 1)] == [[0], [0]]
    table = pq.read_table(_buffer(chain, chain.predictions_name(1, 0)))
    by_pass = table.group_by("pass").aggregate([("model_sha256", "distinct")]).to_pylist()
    judges = {one["pass"]: one["model_sha256_distinct"] for one in by_pass}
    assert judges == {n: [state.done[Train(n, 0)]["model_sha256"]] for n in (0, 1)}


def test_cross_fitted_maps_come_from_models_that_have_not_seen_the_image(
    chain: Run, dataset: str
) -> None:
    manifest = chain.manifest()
    shards = [
        (shard, read_shard(open_store(dataset), shard, ("sample_id", "label", *ROLE_COLUMNS)))
        for shard in manifest.shards
    ]
    mapped: list[str] = []
    for part in (0, 1):
        source = find_map_source(chain, manifest, WriteMaps(0, 0, part))
        result = chain.result(Train(0, 0, part))
        assert result is not None
        rows_of = select_training_rows(chain.config, manifest, Train(0, 0, part))
        for shard, rows in shards:
            origin, table = maps.decode_maps(chain.store.read(source.name(shard)))
            assert origin == source.origin_of(shard)
            assert (origin.part, origin.model_sha256) == (part, result.model_sha256)
            ids = table.column("sample_id").to_pylist()
            assert not set(ids) & _ids(rows, rows_of)
            mapped += ids
    everything = select_training_rows(chain.config, manifest, Train(0, 0))
    assert len(mapped) == len(set(mapped))
    assert set(mapped) == set[str]().union(*(_ids(rows, everything) for _, rows in shards))


def _ids(rows: pa.Table, selection: RowSelection) -> set[str]:
    return set(rows.column("sample_id").take(pa.array(selection.rows(rows))).to_pylist())


def test_a_recycled_circle_keeps_no_maps_and_looks_again_in_each_round(
    dataset: str, bucket: str
) -> None:
    run = driver.begin_circle(
        request_circle(dataset, f"{bucket}/circle-recycle", _brief(maps="recycle"), (0,))
    )
    state = driver.follow_circle(run, _ignore)
    assert set(state.done) == set(list_actions(run.plan([0])))
    assert run.store.names("maps") == []
    for number in (0, 1):
        table = pq.read_table(_buffer(run, run.predictions_name(number, 0)))
        assert set(table["pass"].to_pylist()) == set(range(run.config.circle.num_passes))


def test_a_coordinator_that_nobody_asks_any_more_ends(dataset: str, bucket: str) -> None:
    """As after Ctrl-C: a detached run leaves no actor after a stop or the end of the run."""
    run = driver.begin_circle(request_circle(dataset, f"{bucket}/circle-left", _config(), (0,)))
    Ledger.open(run.store).stop()
    coordinator.start_coordinator(run, grace_s=1.0)
    until(lambda: coordinator.find_coordinator(run) is None)
    assert heartbeat.read_heartbeat(run.store) is None


class _Broken(Coordinator):
    """A coordinator with an error at the start of every session."""

    def _open_session(self, run_uri: str, restarts: RestartCounter) -> CoordinatorSession:
        raise UnicodeEncodeError("ascii", "ä", 0, 1, "ordinal not in range(128)")


def test_a_coordinator_that_cannot_work_says_so_to_everyone_and_ends(
    dataset: str, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator, "Coordinator", _Broken)
    run = driver.begin_circle(request_circle(dataset, f"{bucket}/circle-broken", _config(), (0,)))
    before = Ledger.open(run.store).state
    messages: dict[str, list[str]] = {"first": [], "second": []}
    ended: dict[str, str] = {}

    def follow(name: str) -> None:
        def listen(line: dict[str, Any]) -> None:
            if line["kind"] == "trouble":
                messages[name].append(line["text"])
                begun.set()

        with pytest.raises(RunError) as caught:
            driver.follow_circle(run, listen)
        ended[name] = str(caught.value)

    begun = threading.Event()
    first = threading.Thread(target=follow, args=("first",))
    first.start()
    assert begun.wait(240)
    follow("second")
    first.join()
    cause = "UnicodeEncodeError: 'ascii' codec can't encode character '\\xe4' in position 0: "
    for name in messages:
        assert ended[name].startswith(
            f"The coordinator failed {MAX_COORDINATOR_ERRORS} times in a row: {cause}"
        )
        assert [text.partition(": ")[0] for text in messages[name]] == [
            f"The coordinator failed ({number} of {MAX_COORDINATOR_ERRORS})"
            for number in range(1, MAX_COORDINATOR_ERRORS + 1)
        ]
    assert Ledger.open(run.store).state == before
    monkeypatch.undo()
    Ledger.open(run.store).stop()
    assert driver.follow_circle(run, _ignore).stopped  # the next command begins anew
