"""CPU and memory limits of a process."""

from pathlib import Path

import pytest

from mtil.process import limits


def test_containers_limits_are_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(limits, "_CGROUP", tmp_path)
    cpus, memory = limits.num_cpus(), limits.memory_bytes()
    assert cpus >= 1
    assert memory > 2**28
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert (limits.num_cpus(), limits.memory_bytes()) == (cpus, memory)
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    (tmp_path / "memory.max").write_text("1048576\n")
    assert (limits.num_cpus(), limits.memory_bytes()) == (0.5, 2**20)
