"""Prepare on Ray and to S3: equal bytes, and an interrupted preparation continues."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import boto3
import pytest

from cluster import object_store
from mtil.data.dataset import manifest as manifests
from mtil.data.prepare.pipeline import Settings, prepare
from mtil.data.prepare.sources import CollectionSource
from mtil.distributed.data import job_tasks as on_ray
from mtil.distributed.data.job_tasks import run_ray_tasks
from mtil.errors import DataError, LostError
from mtil.storage import LocalStore, Store, open_store
from tests.waiting import PATIENCE_S, STOP_AT, until_stopped

SETTINGS = Settings(image_size=64, max_shard_bytes=120_000)


def _contents(store: Store) -> dict[str, bytes]:
    return {name: store.read(name) for name in store.names()}


def test_ray_and_one_process_write_the_same_bytes(
    local_ray: None, phantoms: Path, bucket: str, tmp_path: Path
) -> None:
    source = CollectionSource(uri=str(phantoms), layout="busi")
    seen: list[tuple[str, int, int]] = []
    on_ray = prepare(
        [source],
        f"{bucket}/prepared-on-ray",
        SETTINGS,
        runner=run_ray_tasks,
        progress=lambda *event: seen.append(event),
    )
    here = prepare([source], str(tmp_path / "here"), SETTINGS)
    assert on_ray == here
    assert len(here.shards) > 2
    assert _contents(open_store(f"{bucket}/prepared-on-ray")) == _contents(
        LocalStore(str(tmp_path / "here"))
    )
    assert seen[-1] == ("writing", 120, 120)


def test_results_arrive_while_other_jobs_wait(local_ray: None, tmp_path: Path) -> None:
    heard_of_one = tmp_path / "heard"

    def square(job: int, listen: Any = None) -> int:
        end = time.monotonic() + PATIENCE_S
        while job == 19 and not heard_of_one.exists():
            assert time.monotonic() < end, "no result has arrived before the last job's"
            time.sleep(0.02)
        return job * job

    heard: list[int] = []

    def listen(images: int) -> None:
        heard_of_one.touch()
        heard.append(images)

    assert run_ray_tasks(square, range(20), [1] * 20, listen) == [job * job for job in range(20)]
    assert heard == [1] * 20


def test_very_many_images_are_done_part_by_part(
    local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def negative(job: int, listen: Any = None) -> int:
        return -job

    monkeypatch.setattr(on_ray, "_MAX_IMAGES", 5)
    assert list(on_ray._split_by_images([3, 3, 9, 1])) == [range(2), range(2, 3), range(3, 4)]
    heard: list[int] = []
    assert run_ray_tasks(negative, range(4), [3, 3, 9, 1], heard.append) == [0, -1, -2, -3]
    assert sorted(heard) == [1, 3, 3, 9]
    assert run_ray_tasks(negative, [], [], heard.append) == []


def test_a_job_whose_process_dies_is_done_again_and_not_for_ever(
    local_ray: None, tmp_path: Path
) -> None:
    def die_once(job: int, listen: Any = None) -> int:
        marker = tmp_path / "died"
        if job == 1 and not marker.exists():
            marker.touch()
            os._exit(1)
        return job

    def die(job: int, listen: Any = None) -> None:
        (tmp_path / f"try-{time.monotonic_ns()}").touch()
        os._exit(1)

    assert run_ray_tasks(die_once, range(3), [1] * 3, lambda images: None) == [0, 1, 2]
    with pytest.raises(LostError, match="Preparing failed: "):
        run_ray_tasks(die, range(1), [1], lambda images: None)
    assert len(list(tmp_path.glob("try-*"))) == 4


def test_a_job_that_fails_on_ray_ends_the_others(local_ray: None, tmp_path: Path) -> None:
    over = tmp_path / "over"

    def fail_or_wait(job: int, listen: Any = None) -> None:
        if job == 0:
            raise DataError("the first job fails")
        end = time.monotonic() + PATIENCE_S
        # Short sleeps, since Ray interrupts only Python code. Ray may lose the interruption of a
        # starting task. Without `over`, the task would keep a CPU from later tests.
        while time.monotonic() < end and not over.exists():
            time.sleep(0.1)
        if not over.exists():
            (tmp_path / f"ended-{job}").touch()

    try:
        with pytest.raises(DataError, match="the first job fails"):
            run_ray_tasks(fail_or_wait, range(6), [1] * 6, lambda images: None)
        assert not list(tmp_path.glob("ended-*"))
    finally:
        over.touch()


_SCRIPT = (
    f"{STOP_AT}\n"
    "from mtil.data.prepare.pipeline import Settings, prepare\n"
    "from mtil.data.prepare.sources import CollectionSource\n"
    "from mtil.errors import StorageError\n"
    "settings = Settings(image_size=64, max_shard_bytes=1)\n"
    "try:\n"
    "    prepare([CollectionSource(uri=sys.argv[1], layout='busi')], sys.argv[2], settings)\n"
    "except StorageError as error:\n"
    "    sys.exit(f'{error}')\n"
)
ONE_A_SHARD = Settings(image_size=64, max_shard_bytes=1)


def _start(
    phantoms: Path, to: str, environment: dict[str, str], stop_at: str = ""
) -> "subprocess.Popen[bytes]":
    """Start a preparation with a stop at the write `stop_at`, see `STOP_AT`."""
    command = [sys.executable, "-c", _SCRIPT, str(phantoms), to, stop_at]
    return subprocess.Popen(command, env=os.environ | environment, stderr=subprocess.PIPE)


def _client(environment: dict[str, str]) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name=environment["AWS_DEFAULT_REGION"],
    )


@pytest.fixture(scope="module")
def undisturbed(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> LocalStore:
    """The data set of an undisturbed preparation."""
    out = tmp_path_factory.mktemp("undisturbed") / "set"
    prepare([CollectionSource(uri=str(phantoms), layout="busi")], str(out), ONE_A_SHARD)
    return LocalStore(str(out))


def test_a_preparation_that_was_killed_goes_on_with_the_same_command(
    phantoms: Path, undisturbed: LocalStore, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = _start(phantoms, str(out), {}, stop_at="facts-/20")
    until_stopped(process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    staged = {path: path.stat().st_mtime_ns for path in out.rglob("facts-*.parquet")}
    assert 5 <= len(staged) < 120
    assert not (out / manifests.FILE_NAME).exists()
    unchanged: list[bool] = []

    def look(what: str, done: int, of: int) -> None:
        if (what, done) == ("reading", of):
            unchanged.append(all(path.stat().st_mtime_ns == at for path, at in staged.items()))

    source = CollectionSource(uri=str(phantoms), layout="busi")
    prepare([source], str(out), ONE_A_SHARD, progress=look)
    assert unchanged == [True]
    assert _contents(LocalStore(str(out))) == _contents(undisturbed)


def test_a_full_disk_is_said_and_the_same_command_finishes_on_a_larger_one(
    phantoms: Path, undisturbed: LocalStore, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a file system of limited size takes the rights to mount one")
    try:
        process = _start(phantoms, str(disk / "set"), {})
        _, stderr = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 1
        assert b"cannot be written: No space left on device" in stderr
        assert not (disk / "set" / manifests.FILE_NAME).exists()
        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
        assert _start(phantoms, str(disk / "set"), {}).wait(PATIENCE_S) == 0
        assert _contents(LocalStore(str(disk / "set"))) == _contents(undisturbed)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_server_that_stops_is_said_and_the_same_command_finishes_later(
    phantoms: Path, undisturbed: LocalStore, tmp_path: Path
) -> None:
    with object_store.run_object_store(tmp_path / "s3", "bucket") as environment:
        process = _start(phantoms, "s3://bucket/set", environment, stop_at="facts-/20")
        until_stopped(process)
    process.send_signal(signal.SIGCONT)
    _, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert b"out of reach" in stderr
    with object_store.run_object_store(tmp_path / "s3", "bucket") as environment:
        again = _start(phantoms, "s3://bucket/set", environment)
        _, stderr = again.communicate(timeout=PATIENCE_S)
        assert again.returncode == 0, stderr
        client = _client(environment)
        pages = client.get_paginator("list_objects_v2").paginate(Bucket="bucket", Prefix="set/")
        found = {
            item["Key"].removeprefix("set/"): client.get_object(Bucket="bucket", Key=item["Key"])[
                "Body"
            ].read()
            for page in pages
            for item in page["Contents"]
        }
    assert found == _contents(undisturbed)


def test_tasks_that_prepare_do_not_load_pytorch() -> None:
    script = (
        "import sys, mtil.data.prepare.pipeline, mtil.distributed.data.job_tasks\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
