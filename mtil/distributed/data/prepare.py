"""Preparing on a cluster: the jobs of `mtil.data.prepare.pipeline` as tasks of Ray Data."""

import pickle
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray.data
from ray.data import DataContext

from mtil.data.parallel import Function, Listener
from mtil.distributed.runtime.failures import unwrapped

_MAX_IMAGES = 2**20
"""Images whose jobs one execution of Ray Data is given, about; more follow in another. What is
known of them before a pixel is read lies in the object store meanwhile, some 300 bytes an image.
"""
_MAX_RETRIES = 3
"""Of a job whose process or machine is lost; Ray Data by itself would never give up."""


class DoJob:
    """A task of Ray Data: a job's number and the job in, its number and its result out."""

    def __init__(self, function: Function[Any, Any]) -> None:
        self.function = function

    def __call__(self, block: pa.Table) -> pa.Table:
        """Do the one job that the block holds."""
        (row,) = block.to_pylist()
        result = self.function(pickle.loads(row["job"]))
        return pa.table({"index": [row["index"]], "result": [pickle.dumps(result)]})


def tasks(
    function: Function[Any, Any], jobs: Sequence[Any], sizes: Sequence[int], listen: Listener
) -> list[Any]:
    """Do the jobs as tasks of Ray Data, one CPU each. See `mtil.data.parallel.Runner`.

    Ray Data starts as many at a time as the cluster has CPUs, and results are taken as they come,
    in any order. A node that is lost costs its jobs, which are done again elsewhere. When a job
    fails, those that run are ended before this returns.
    """
    results: list[Any] = [None] * len(jobs)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    with unwrapped("Preparing"):
        for part in _parts(sizes):
            units = [{"index": index, "job": pickle.dumps(jobs[index])} for index in part]
            done = ray.data.from_items(units, override_num_blocks=len(units)).map_batches(
                DoJob(function),
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


def _parts(sizes: Sequence[int]) -> Iterator[range]:
    """Yield the jobs' numbers in parts of about `_MAX_IMAGES` images."""
    start = images = 0
    for index, size in enumerate(sizes):
        images += size
        if images >= _MAX_IMAGES or index == len(sizes) - 1:
            yield range(start, index + 1)
            start, images = index + 1, 0
