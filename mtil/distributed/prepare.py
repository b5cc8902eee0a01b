"""Preparing on a cluster: the jobs of `mtil.data.prepare` as Ray tasks."""

from collections.abc import Sequence
from typing import Any

import ray

from mtil.data.running import Function, Listener
from mtil.distributed.trainer import unwrapped


def tasks(
    function: Function[Any, Any], jobs: Sequence[Any], sizes: Sequence[int], listen: Listener
) -> list[Any]:
    """Do the jobs as Ray tasks, one CPU each. See `mtil.data.running.Runner`.

    A node that is lost costs its jobs, which are done again elsewhere.
    """
    task: Any = ray.remote(num_cpus=1)(function)
    with unwrapped():
        waiting = {task.remote(job): index for index, job in enumerate(jobs)}
        refs = list(waiting)
        while waiting:
            (ref, *_), _ = ray.wait(list(waiting), num_returns=1)
            ray.get(ref)
            listen(sizes[waiting.pop(ref)])
        return [ray.get(ref) for ref in refs]
