"""Preparing on a cluster: the jobs of `mtil.data.prepare` as Ray tasks."""

from collections.abc import Sequence
from typing import Any

import ray

from mtil.data.running import Function, Listener
from mtil.distributed import cluster
from mtil.distributed.trainer import unwrapped

_AHEAD, _MIN_AHEAD = 2, 16
"""Jobs that run or wait, for each CPU and at least: enough to keep none idle and to make a cluster
grow. All jobs of millions of images at once would fill the object store of the node that has them.
"""
_CANCEL_S = 60


def tasks(
    function: Function[Any, Any], jobs: Sequence[Any], sizes: Sequence[int], listen: Listener
) -> list[Any]:
    """Do the jobs as Ray tasks, one CPU each. See `mtil.data.running.Runner`.

    A node that is lost costs its jobs, which are done again elsewhere. When a job fails, those
    that run are ended before this returns.
    """
    task: Any = ray.remote(num_cpus=1)(function)
    results: list[Any] = [None] * len(jobs)
    running: dict[ray.ObjectRef[Any], int] = {}

    def wait_for_one() -> None:
        (ref, *_), _ = ray.wait(list(running), num_returns=1)
        index = running.pop(ref)
        results[index] = ray.get(ref)
        listen(sizes[index])

    with unwrapped():
        try:
            for index, job in enumerate(jobs):
                if len(running) >= max(_AHEAD * _num_cpus(), _MIN_AHEAD):
                    wait_for_one()
                running[task.remote(job)] = index
            while running:
                wait_for_one()
        finally:
            for ref in running:
                ray.cancel(ref)
            if running:
                ray.wait(list(running), num_returns=len(running), timeout=_CANCEL_S)
    return results


def _num_cpus() -> float:
    return sum(node.cpus for node in cluster.nodes())
