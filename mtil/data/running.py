"""Independent jobs on this machine's processors."""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol, TypeVar

from mtil.errors import RunError

Job = TypeVar("Job", contravariant=True)
Result = TypeVar("Result", covariant=True)

Listener = Callable[[int], None]

_FEW = 1500
"""Images that are done before other processes have started."""


class Function(Protocol[Job, Result]):
    """Does one job, and tells the listener of images done on the way."""

    def __call__(self, job: Job, listen: Listener | None = None) -> Result:
        """Do the job."""


class Runner(Protocol):
    """Does jobs that depend on nothing but themselves, anywhere and in any order."""

    def __call__(
        self, function: Function[Any, Any], jobs: Sequence[Any], sizes: Sequence[int],
        listen: Listener,
    ) -> list[Any]:  # fmt: skip
        """Return the results in the jobs' order; raise what a job raised.

        Args:
            function: a function of a module, which other processes can import.
            jobs: what it is called with.
            sizes: images of each job.
            listen: told of images that are done.
        """


def here(
    function: Function[Any, Any], jobs: Sequence[Any], sizes: Sequence[int], listen: Listener
) -> list[Any]:
    """Do the jobs in this process, one after the other. See `Runner`."""
    return [function(job, listen) for job in jobs]


def processes(
    function: Function[Any, Any], jobs: Sequence[Any], sizes: Sequence[int], listen: Listener
) -> list[Any]:
    """Do the jobs in as many processes as there are processors, if there is enough to do.

    See `Runner`.
    """
    num_workers = min(len(jobs), os.cpu_count() or 1)
    if num_workers < 2 or sum(sizes) < _FEW:
        return here(function, jobs, sizes, listen)
    pool = ProcessPoolExecutor(num_workers, multiprocessing.get_context("spawn"))
    try:
        futures = {pool.submit(function, job): index for index, job in enumerate(jobs)}
        for future in as_completed(futures):
            future.result()
            listen(sizes[futures[future]])
        return [future.result() for future in futures]
    except BrokenProcessPool:
        raise RunError(
            "A process that prepared images died, most likely for want of memory; "
            "run the same command again to go on."
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
