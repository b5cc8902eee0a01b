"""Prepare data sets on a cluster: run jobs of `mtil.data.prepare.pipeline` as Ray Data tasks."""

import pickle
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray.data
from ray.data import DataContext

from mtil.data.parallel import ImagesListener, JobFunction
from mtil.distributed.runtime.failures import unwrap_errors

_MAX_IMAGES = 2**20
"""Approximate number of images per execution of Ray Data; more images take further executions.
About 300 bytes of metadata per image lie in the object store meanwhile."""
_MAX_RETRIES = 3
"""Retries of a job after the loss of its process or machine. By default Ray Data retries for
ever."""


class JobTask:
    """Ray Data task: takes an index and a job, returns the index and the result."""

    def __init__(self, function: JobFunction[Any, Any]) -> None:
        self.function = function

    def __call__(self, block: pa.Table) -> pa.Table:
        """Run the job in the block."""
        (row,) = block.to_pylist()
        result = self.function(pickle.loads(row["job"]))
        return pa.table({"index": [row["index"]], "result": [pickle.dumps(result)]})


def run_ray_tasks(
    function: JobFunction[Any, Any],
    jobs: Sequence[Any],
    sizes: Sequence[int],
    listen: ImagesListener,
) -> list[Any]:
    """Run jobs as Ray Data tasks with 1 CPU per task. See `mtil.data.parallel.JobRunner`.

    Ray Data runs as many tasks as the cluster has CPUs. Results are collected in order of
    completion. Jobs of a lost node run again elsewhere. If a job fails, the running jobs are
    interrupted; a job that is just starting may go on to its end.
    """
    results: list[Any] = [None] * len(jobs)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    with unwrap_errors("Preparing"):
        for part in _split_by_images(sizes):
            units = [{"index": index, "job": pickle.dumps(jobs[index])} for index in part]
            done = ray.data.from_items(units, override_num_blocks=len(units)).map_batches(
                JobTask(function),
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=1,
                max_retries=_MAX_RETRIES,
            )
            blocks: Iterator[pa.Table] = iter(
                done.iter_batches(batch_size=None, batch_format="pyarrow")
            )
            for block in blocks:
                for row in block.to_pylist():
                    results[row["index"]] = pickle.loads(row["result"])
                    listen(sizes[row["index"]])
    return results


def _split_by_images(sizes: Sequence[int]) -> Iterator[range]:
    """Yield ranges of job indices with about `_MAX_IMAGES` images per range."""
    start = images = 0
    for index, size in enumerate(sizes):
        images += size
        if images >= _MAX_IMAGES or index == len(sizes) - 1:
            yield range(start, index + 1)
            start, images = index + 1, 0
