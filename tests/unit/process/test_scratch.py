"""A temporary folder is removed only with the owning process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mtil.process import scratch

KILLED = """
import os, signal, sys
from pathlib import Path
from mtil.process import scratch
with scratch.create_scratch_folder(Path(sys.argv[1])) as path:
    (path / "file").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def abandon(base: Path) -> Path:
    """Kill a process with a folder in `base`. Return the folder."""
    before = set(base.iterdir())
    subprocess.run([sys.executable, "-c", KILLED, str(base)], check=False)
    (path,) = set(base.iterdir()) - before
    return path


def test_a_folder_is_its_owners_alone_and_goes_with_the_block(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    with scratch.create_scratch_folder(tmp_path) as path:
        assert path.stat().st_mode & 0o777 == 0o700
        assert len(path.name) == scratch.NAME_BYTES
        (path / "link").symlink_to(outside)
        (path / "file").touch()
    assert not path.exists()
    assert (outside / "kept").exists()


def test_a_folder_can_be_kept_for_good(tmp_path: Path) -> None:
    with scratch.create_scratch_folder(tmp_path, keep=True) as path:
        (path / "log").touch()
    scratch.remove_abandoned(tmp_path)
    assert [entry.name for entry in path.iterdir()] == ["log"]


def test_what_a_killed_process_leaves_is_removed_later(tmp_path: Path) -> None:
    path = abandon(tmp_path)
    assert (path / "file").exists()
    with scratch.create_scratch_folder(tmp_path) as mine:
        scratch.remove_abandoned(tmp_path)
        assert list(tmp_path.iterdir()) == [mine]


def test_what_is_not_known_to_be_abandoned_stays(tmp_path: Path) -> None:
    target, other_boot = abandon(tmp_path), abandon(tmp_path)
    (other_boot / "owner").write_text("another start of the machine\n")
    moved = tmp_path / "moved"
    target.rename(moved)
    target.symlink_to(moved)  # a link in place of a folder
    (tmp_path / "mtil-train-abcdefgh").mkdir()
    unowned = tmp_path / "mtil-abcdefgh"
    unowned.mkdir()
    linked = abandon(tmp_path)
    (linked / "owner").rename(linked / "real")
    (linked / "owner").symlink_to(linked / "real")
    before = set(tmp_path.rglob("*"))
    scratch.remove_abandoned(tmp_path)
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give folders away")
def test_other_users_folders_stay(tmp_path: Path) -> None:
    path = abandon(tmp_path)
    os.chown(path, 65534, 65534)
    scratch.remove_abandoned(tmp_path)
    assert path.exists()


def test_a_base_that_is_not_there_is_no_error(tmp_path: Path) -> None:
    scratch.remove_abandoned(tmp_path / "nowhere")
