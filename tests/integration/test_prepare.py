"""Preparing on Ray and onto S3: the same bytes, and an interrupted preparation goes on."""

import signal
import subprocess
import sys
import time
from pathlib import Path

from mtil.data import manifest as manifests
from mtil.data.prepare import Settings, prepare
from mtil.data.sources import Source
from mtil.distributed.prepare import tasks
from mtil.storage import LocalStore, Store, open_store

SETTINGS = Settings(image_size=64, max_shard_bytes=120_000)


def _contents(store: Store) -> dict[str, bytes]:
    return {name: store.read(name) for name in store.names()}


def test_ray_and_one_process_write_the_same_bytes(
    local_ray: None, phantoms: Path, bucket: str, tmp_path: Path
) -> None:
    source = Source(uri=str(phantoms), layout="busi")
    seen: list[tuple[str, int, int]] = []
    on_ray = prepare(
        [source],
        f"{bucket}/prepared-on-ray",
        SETTINGS,
        runner=tasks,
        progress=lambda *said: seen.append(said),
    )
    here = prepare([source], str(tmp_path / "here"), SETTINGS)
    assert on_ray == here
    assert len(here.shards) > 2
    assert _contents(open_store(f"{bucket}/prepared-on-ray")) == _contents(
        LocalStore(str(tmp_path / "here"))
    )
    assert seen[-1] == ("writing", 120, 120)


def test_a_preparation_that_was_killed_goes_on_with_the_same_command(
    phantoms: Path, tmp_path: Path
) -> None:
    code = (
        "import sys\n"
        "from mtil.data.prepare import Settings, prepare\n"
        "from mtil.data.sources import Source\n"
        "settings = Settings(image_size=64, max_shard_bytes=1)\n"
        "prepare([Source(uri=sys.argv[1], layout='busi')], sys.argv[2], settings)\n"
    )
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", code, str(phantoms), str(out)])
    deadline = time.monotonic() + 60
    while len(list(out.rglob("facts-*.parquet"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    staged = {path: path.stat().st_mtime_ns for path in out.rglob("facts-*.parquet")}
    assert 5 <= len(staged) < 120
    assert not (out / manifests.FILE_NAME).exists()

    unchanged: list[bool] = []

    def look(what: str, done: int, of: int) -> None:
        if (what, done) == ("reading", of):
            unchanged.append(all(path.stat().st_mtime_ns == at for path, at in staged.items()))

    source, settings = Source(uri=str(phantoms), layout="busi"), Settings(
        image_size=64, max_shard_bytes=1
    )  # fmt: skip
    made = prepare([source], str(out), settings, progress=look)
    assert unchanged == [True]
    assert made == prepare([source], str(tmp_path / "undisturbed"), settings)
    assert _contents(LocalStore(str(out))) == _contents(LocalStore(str(tmp_path / "undisturbed")))
