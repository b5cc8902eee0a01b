"""Independent jobs in the processes and threads of one machine."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import Any, Protocol, TypeVar

from mtil.errors import RunError
from mtil.process import interrupts

Job = TypeVar("Job", contravariant=True)
Result = TypeVar("Result", covariant=True)

Item = TypeVar("Item")
ItemResult = TypeVar("ItemResult")

ImagesListener = Callable[[int], None]

_FEW = 1500
"""Number of images processed in the start-up time of worker processes."""
_MAX_THREADS = 8
"""Largest number of threads for array arithmetic; bounds memory, as each thread holds arrays."""


class JobFunction(Protocol[Job, Result]):
    """A function for one job; reports finished images to a listener."""

    def __call__(self, job: Job, listen: ImagesListener | None = None) -> Result:
        """Run the job, and call `listen` with the number of images finished since the last call."""


class JobRunner(Protocol):
    """Runs independent jobs, in any process and in any order."""

    def __call__(
        self, function: JobFunction[Any, Any], jobs: Sequence[Any], sizes: Sequence[int],
        listen: ImagesListener,
    ) -> list[Any]:  # fmt: skip
        """Run the jobs and return the results in the order of the jobs.

        Exceptions raised by a job propagate.

        Args:
            function: a module-level function, importable in other processes.
            jobs: the arguments, one a call.
            sizes: number of images of each job.
            listen: called with the number of images finished since the last call.
        """


def run_in_process(
    function: JobFunction[Any, Any],
    jobs: Sequence[Any],
    sizes: Sequence[int],
    listen: ImagesListener,
) -> list[Any]:
    """Run jobs sequentially in the calling process. See `JobRunner`."""
    return [function(job, listen) for job in jobs]


def run_in_processes(
    function: JobFunction[Any, Any],
    jobs: Sequence[Any],
    sizes: Sequence[int],
    listen: ImagesListener,
) -> list[Any]:
    """Run jobs in a worker process per CPU core, or in the calling process for few images.

    See `JobRunner`.

    Raises:
        RunError: if a worker process dies.
    """
    num_workers = min(len(jobs), os.cpu_count() or 1)
    if num_workers < 2 or sum(sizes) < _FEW:
        return run_in_process(function, jobs, sizes, listen)
    pool = ProcessPoolExecutor(
        num_workers, multiprocessing.get_context("spawn"), initializer=exit_with_parent
    )
    try:
        with interrupts.block_sigint_in_children():
            futures = {pool.submit(function, job): index for index, job in enumerate(jobs)}
        # Read results as jobs finish: an error is raised early, and progress does not wait for a
        # slow first job.
        for future in as_completed(futures):
            future.result()
            listen(sizes[futures[future]])
        return [future.result() for future in futures]
    except BrokenProcessPool:
        raise RunError(
            "A process that prepared images died, most likely out of memory. "
            "Run the same command again to continue."
        ) from None
    except BaseException:
        # A job may take minutes, so an interrupted or failed call does not wait for running jobs.
        for worker in multiprocessing.active_children():
            worker.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def exit_with_parent() -> None:
    """Ignore SIGINT in a worker process, and exit when the parent process ends."""
    # Ctrl-C reaches every process of the terminal; only the parent process handles the interrupt.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    # The parent's sentinel becomes ready even if the parent is killed and cannot stop its workers.
    def wait_for_parent_end() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait_for_parent_end, daemon=True).start()


def map_in_threads(
    function: Callable[[Item], ItemResult], items: Iterable[Item]
) -> Iterator[ItemResult]:
    """Yield `function(item)` for each item, in order, computed in a few threads.

    Computes ahead at most one item more than the number of threads. Only code that releases the
    GIL, such as array arithmetic, runs in parallel.

    Args:
        function: called with an item.
        items: the items, read as needed.
    """
    num_threads = min(os.cpu_count() or 1, _MAX_THREADS)
    pool = ThreadPoolExecutor(num_threads)
    pending: deque[Future[ItemResult]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > num_threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
