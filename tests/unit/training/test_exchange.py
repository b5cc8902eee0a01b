"""Sums of small vectors over real processes."""

import socket
import threading

import numpy as np
import pytest
import torch

from mtil.training import exchange
from mtil.training.exchange import LOOPBACK, SmallSums, connect_workers
from mtil.training.group import Group
from tests.unit.groups import run_group


@pytest.mark.parametrize("num_workers", [2, 4])
def test_every_worker_has_the_same_sums_one_after_the_other(num_workers: int) -> None:
    sizes = [1, 2561, 40]

    def work(group: Group) -> list[list[float]]:
        workers = connect_workers(LOOPBACK)
        sums = []
        for size in sizes:
            values = (group.rank + 1) * torch.arange(1, size + 1, dtype=torch.float64) / 3
            workers.add(values)
            sums.append(values.tolist())
        return sums

    results = run_group(num_workers, work)
    assert all(result == results[0] for result in results)
    total = num_workers * (num_workers + 1) / 2
    for size, sums in zip(sizes, results[0], strict=True):
        np.testing.assert_allclose(sums, total * np.arange(1, size + 1) / 3, rtol=1e-14)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_worker_that_has_ended_is_an_error_of_the_others(lost: int) -> None:
    def work(group: Group) -> str:
        workers = connect_workers(LOOPBACK)
        if group.rank == lost:
            for connection in workers._connections:
                connection.close()
            return ""
        with pytest.raises(ConnectionError) as caught:
            workers.add(torch.ones(3, dtype=torch.float64))
        return str(caught.value)

    message = run_group(2, work)[1 - lost]
    assert "ended" in message or "reset" in message


def test_who_does_not_know_the_secret_is_turned_away() -> None:
    token = bytes(range(exchange._TOKEN_BYTES))
    with socket.create_server((LOOPBACK, 0)) as server:
        port = server.getsockname()[1]
        accepted: list[socket.socket] = []
        accepting = threading.Thread(
            target=lambda: accepted.extend(exchange._accept(server, token, 2))
        )
        accepting.start()
        rank = (1).to_bytes(exchange._RANK_BYTES, "big")
        for greeting in (b"GET / HTTP/1.1\r\n\r\n", bytes(len(token)) + rank):
            with socket.create_connection((LOOPBACK, port)) as stranger:
                stranger.sendall(greeting)
                stranger.shutdown(socket.SHUT_WR)
                assert stranger.recv(1) == b""  # the server has closed the connection
        with socket.create_connection((LOOPBACK, port)) as worker:
            worker.sendall(token + rank)
            accepting.join()
            (connection,) = accepted
            answer = threading.Thread(
                target=SmallSums([connection], is_first=True).add,
                args=(torch.tensor([1.5], dtype=torch.float64),),
            )
            answer.start()
            values = torch.tensor([2.25], dtype=torch.float64)
            SmallSums([worker], is_first=False).add(values)
            answer.join()
            assert values.tolist() == [3.75]
            connection.close()
