"""Batches through Ray Data from a real S3 server: resident and streaming modes are equal."""

import subprocess
import sys
from contextlib import closing
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from mtil.data.dataset import manifest as manifests
from mtil.data.dataset.batches import Batch, EpochPlan, TableRows
from mtil.data.dataset.epochs import iterate_resident_epoch, iterate_resident_rows
from mtil.data.dataset.selection import Role, count_rows, select_rows
from mtil.data.dataset.shards import read_shard
from mtil.distributed.data import resident
from mtil.distributed.data.ingest import (
    get_resident_tables,
    iterate_streaming_batches,
    iterate_streaming_epochs,
)
from mtil.distributed.data.resident import load_resident_tables
from mtil.distributed.runtime import cluster
from mtil.distributed.runtime.failures import unwrap_errors
from mtil.errors import DataError
from mtil.storage import open_store
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("local_ray")


def _plan(
    uri: str, rank: int = 0, num_workers: int = 1, role: Role = "train", streams: int = 2
) -> EpochPlan:
    manifest = manifests.load_manifest(open_store(uri))
    assert len(manifest.shards) > 3
    return EpochPlan(
        manifest=manifest,
        selection=select_rows(manifest, 0, role),
        seed=5,
        rank=rank,
        num_workers=num_workers,
        batch_size=8,
        streams=streams,
        shuffle_shards=1,
    )


def _held(uri: str, plan: EpochPlan) -> TableRows:
    return TableRows(
        get_resident_tables(load_resident_tables(uri, plan.manifest), plan.manifest), plan.selection
    )


def _same(one: Batch, other: Batch) -> bool:
    return (
        one.sample_id == other.sample_id
        and np.array_equal(one.image, other.image)
        and np.array_equal(one.mask, other.mask)
        and np.array_equal(one.label, other.label)
    )


@pytest.mark.parametrize("streams", [2, 64])  # fewer and more than the shards
@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_resident_and_streaming_give_the_batches_of_one_worker(
    dataset: str, num_workers: int, streams: int
) -> None:
    rows = _held(dataset, _plan(dataset))
    alone = [
        [batch.sample_id for batch in iterate_resident_epoch(rows, plan, epoch)]
        for plan in [_plan(dataset, streams=streams)]
        for epoch in range(2)
    ]
    seen: list[list[list[str]]] = [[[] for _ in epoch] for epoch in alone]
    for rank in range(num_workers):
        plan = _plan(dataset, rank, num_workers, streams=streams)
        stream = iterate_streaming_epochs(dataset, plan, range(2))
        for epoch, streamed in enumerate(stream):
            held = iterate_resident_epoch(rows, plan, epoch)
            for step, (one, other) in enumerate(zip(held, streamed, strict=True)):
                assert _same(one, other)
                seen[epoch][step] += other.sample_id
    assert seen == alone
    assert len(alone[0]) == count_rows(plan.manifest, plan.selection) // 8 > 2


def test_a_stream_may_begin_within_an_epoch(dataset: str) -> None:
    plan = _plan(dataset)
    rows = _held(dataset, plan)
    stream = iterate_streaming_epochs(dataset, plan, range(1, 3), first=3)
    for epoch, first, streamed in zip((1, 2), (3, 0), stream, strict=True):
        held = list(iterate_resident_epoch(rows, plan, epoch))[first:]
        assert all(_same(one, other) for one, other in zip(held, streamed, strict=True))


@pytest.mark.parametrize("portion_bytes", [1, 250_000, 2**30])
def test_held_rows_are_those_of_the_shards_however_many_a_task_reads(
    dataset: str, portion_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident, "_PORTION_BYTES", portion_bytes)
    plan = _plan(dataset)
    store = open_store(dataset)
    direct = TableRows([read_shard(store, shard) for shard in plan.manifest.shards], plan.selection)
    held = _held(dataset, plan)
    where = held.all_row_numbers()
    assert np.array_equal(where, direct.all_row_numbers())
    assert _same(held.gather(where), direct.gather(where))


def test_validation_has_the_same_batches_whichever_way_and_with_any_number_of_workers(
    dataset: str,
) -> None:
    """The last digits of a network's output depend on the composition of the batch."""
    plan = _plan(dataset, role="validation")
    alone = _held(dataset, plan)
    expected = sorted(batch.sample_id for batch in iterate_resident_rows(alone, plan, 4))
    seen = [name for names in expected for name in names]
    assert len(seen) == len(set(seen)) == count_rows(plan.manifest, plan.selection)
    assert len(expected) > 3
    held: list[list[str]] = []
    streamed: list[list[str]] = []
    for rank in range(2):
        plan = _plan(dataset, rank, 2, role="validation")
        held += [batch.sample_id for batch in iterate_resident_rows(alone, plan, 4)]
        streamed += [batch.sample_id for batch in iterate_streaming_batches(dataset, plan, 4)]
    assert sorted(held) == sorted(streamed) == expected


def test_a_damaged_shard_is_one_sentence(dataset: str, tmp_path: Path) -> None:
    source, copy = open_store(dataset), open_store(str(tmp_path))
    for name in source.names():
        copy.write(name, source.read(name))
    manifest = manifests.load_manifest(copy)
    victim = manifest.shards[2].path
    data = bytearray(copy.read(victim))
    data[len(data) // 2] ^= 1
    copy.write(victim, bytes(data))
    with pytest.raises(DataError, match=victim), unwrap_errors():
        load_resident_tables(str(tmp_path), manifest)


def test_processes_that_read_shards_load_no_network() -> None:
    """Every Ray Data process imports the modules of a task. Importing torch takes 1 to 2 s."""
    code = (
        "import sys, mtil.distributed.data.ingest\nassert not {'torch', 'monai'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_stream_that_is_closed_reads_no_more(dataset: str) -> None:
    """With an open stream, Ray's core ends the process silently when Ray shuts down."""
    with closing(iterate_streaming_epochs(dataset, _plan(dataset), range(100))) as stream:
        batches = chain.from_iterable(stream)
        until(lambda: next(batches).sample_id and cluster.list_ray_data_threads())
    until(lambda: not cluster.list_ray_data_threads())
