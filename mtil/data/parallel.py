"""Independent jobs on this machine's processors."""

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
Found = TypeVar("Found")

Listener = Callable[[int], None]

_FEW = 1500
"""Images that are done before other processes have started."""
_MAX_THREADS = 8
"""Threads of one piece of arithmetic: each holds what it works on."""


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
    pool = ProcessPoolExecutor(
        num_workers, multiprocessing.get_context("spawn"), initializer=follow_parent
    )
    try:
        with interrupts.kept_from_children():
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
    except BaseException:
        for worker in multiprocessing.active_children():
            worker.kill()  # a job may take minutes
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def follow_parent() -> None:
    """Leave interrupts to the parent process, and end with it even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


def threads(function: Callable[[Item], Found], items: Iterable[Item]) -> Iterator[Found]:
    """Yield what a function returns for each item, in their order, from this machine's processors.

    Only a few items are worked on ahead. For arithmetic on arrays, which frees the interpreter.
    """
    num_threads = min(os.cpu_count() or 1, _MAX_THREADS)
    pool = ThreadPoolExecutor(num_threads)
    ahead: deque[Future[Found]] = deque()
    try:
        for item in items:
            ahead.append(pool.submit(function, item))
            if len(ahead) > num_threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
