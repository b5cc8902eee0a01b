"""Groups of real processes with tensor exchange by Gloo, without Ray."""

import io
import multiprocessing
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import torch

from mtil.training.group import Group

T = TypeVar("T")


def run_group(num_workers: int, work: Callable[[Group], T]) -> list[T]:
    """Call `work` in every process of a group, and return the results by rank.

    A single worker runs in the calling process, as in trainings.
    """
    if num_workers == 1:
        return [work(Group())]
    # A fork accepts any function as `work`, and is safe: tests use a single thread.
    fork = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        url = f"file://{Path(folder) / 'group'}"
        processes, ends = [], []
        for rank in range(num_workers):
            here, there = fork.Pipe(duplex=False)
            process = fork.Process(target=_work, args=(there, url, rank, num_workers, work))
            process.start()
            there.close()
            processes.append(process)
            ends.append(here)
        answers = [_receive(end) for end in ends]
        for process in processes:
            process.join()
    for rank, (_, error) in enumerate(answers):
        assert not error, f"rank {rank}: {error}"
    return [result for result, _ in answers]


def _receive(end: Connection) -> tuple[Any, str]:
    try:
        result, error = torch.load(io.BytesIO(end.recv_bytes()), weights_only=False)
    except EOFError:
        return None, "the process died"
    return result, error


def _work(
    answer: Connection, url: str, rank: int, num_workers: int, work: Callable[[Group], Any]
) -> None:
    try:
        torch.distributed.init_process_group(
            "gloo", init_method=url, rank=rank, world_size=num_workers
        )
        _send(answer, work(Group(rank, num_workers)), "")
        torch.distributed.destroy_process_group()
    except BaseException:  # noqa: BLE001
        _send(answer, None, traceback.format_exc())


def _send(answer: Connection, result: Any, error: str) -> None:
    # Bytes: PyTorch would send tensor handles, which end with the sending process.
    data = io.BytesIO()
    torch.save((result, error), data)
    answer.send_bytes(data.getvalue())
