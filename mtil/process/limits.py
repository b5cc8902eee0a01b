"""The CPUs and the memory that this process may use."""

import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def num_cpus() -> float:
    """Return the CPUs of this process: its affinity, or the container's quota if that is less."""
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    quota, _, period = _text(_CGROUP / "cpu.max").partition(" ")
    if quota.isdigit() and period.strip().isdigit():
        return min(allowed, int(quota) / int(period))
    return allowed


def memory_bytes() -> int:
    """Return the memory of the machine, or the container's limit if that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _text(_CGROUP / "memory.max").strip()
    return min(total, int(limit)) if limit.isdigit() else total


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
