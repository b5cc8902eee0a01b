"""CPU and memory limits of this process."""

import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def num_cpus() -> float:
    """Return the CPUs available to this process: the smaller of affinity and container quota."""
    # macOS has no CPU affinity.
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    # `cpu.max` of cgroup v2 holds "QUOTA PERIOD" in microseconds; QUOTA is "max" without a limit.
    quota, _, period = _read_text(_CGROUP / "cpu.max").partition(" ")
    if quota.isdigit() and period.strip().isdigit():
        return min(allowed, int(quota) / int(period))
    return allowed


def memory_bytes() -> int:
    """Return the memory available to this process: the smaller of machine and container limit."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # `memory.max` holds "max" without a limit.
    limit = _read_text(_CGROUP / "memory.max").strip()
    return min(total, int(limit)) if limit.isdigit() else total


def _read_text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
