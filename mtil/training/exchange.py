"""Sums of small vectors over processes on CPUs, by direct connections.

Batch normalisation over all workers needs two sums per layer and step, one after the other. Gloo
takes half a millisecond to two for a sum of a few kilobytes, and competes with the training for the
cores. A connection takes less than a tenth of that.
"""

import hmac
import secrets
import socket
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch import Tensor

LOOPBACK = "127.0.0.1"
"""Address for workers on one machine."""
_TOKEN_BYTES = 32
_RANK_BYTES = 4
_TIMEOUT_S = 1800.0
"""Time after which a process that hears nothing from its peers fails; as of the process group."""
_GREETING_TIMEOUT_S = 30.0
"""Time after which a silent stranger is turned away."""


class SmallSums:
    """Sum vectors over the workers: rank 0 adds the vectors by rank, and sends the sum to all."""

    def __init__(self, connections: Sequence[socket.socket], *, is_first: bool) -> None:
        """Use open connections.

        Args:
            connections: on rank 0 a connection to each other rank, by rank; elsewhere a connection
                to rank 0.
            is_first: True on rank 0.
        """
        self._connections, self._is_first = connections, is_first

    def add(self, values: Tensor) -> None:
        """Replace a contiguous float64 vector on the CPU by the sum over all workers.

        All workers must call in the same order, with vectors of the same size.

        Raises:
            ConnectionError: if a worker has ended.
            TimeoutError: if a worker does not answer for half an hour.
        """
        own = values.numpy()
        buffer = own.data.cast("B")
        if not self._is_first:
            self._connections[0].sendall(buffer)
            _receive(self._connections[0], buffer)
            return
        other = np.empty_like(own)
        for connection in self._connections:
            _receive(connection, other.data.cast("B"))
            own += other
        for connection in self._connections:
            connection.sendall(buffer)


def connect_workers(address: str) -> SmallSums:
    """Connect the workers of PyTorch's default process group. All workers must call.

    Args:
        address: IP address of rank 0's machine, as seen from the machines of the other workers.
            Matters on rank 0 only.

    Raises:
        OSError: if a worker cannot be reached.
    """
    rank, num_workers = torch.distributed.get_rank(), torch.distributed.get_world_size()
    server: socket.socket | None = None
    place: list[Any] = [None]
    if rank == 0:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        server = socket.create_server((address, 0), family=family, backlog=num_workers)
        # The group is open to the workers alone, and tells them a secret: others are turned away.
        place = [(address, server.getsockname()[1], secrets.token_bytes(_TOKEN_BYTES))]
    torch.distributed.broadcast_object_list(place)
    host, port, token = place[0]
    if server is None:
        connection = _prepare(socket.create_connection((host, port), timeout=_TIMEOUT_S))
        connection.sendall(token + rank.to_bytes(_RANK_BYTES, "big"))
        return SmallSums([connection], is_first=False)
    with server:
        server.settimeout(_TIMEOUT_S)
        return SmallSums(_accept(server, token, num_workers), is_first=True)


def _accept(server: socket.socket, token: bytes, num_workers: int) -> list[socket.socket]:
    """Return a connection to each rank from 1 on."""
    by_rank: dict[int, socket.socket] = {}
    while len(by_rank) < num_workers - 1:
        connection = _prepare(server.accept()[0])
        connection.settimeout(_GREETING_TIMEOUT_S)
        greeting = bytearray(_TOKEN_BYTES + _RANK_BYTES)
        try:
            _receive(connection, memoryview(greeting))
        except OSError:
            connection.close()
            continue
        if hmac.compare_digest(bytes(greeting[:_TOKEN_BYTES]), token):
            connection.settimeout(_TIMEOUT_S)
            by_rank[int.from_bytes(greeting[_TOKEN_BYTES:], "big")] = connection
        else:
            connection.close()
    return [by_rank[rank] for rank in range(1, num_workers)]


def _prepare(connection: socket.socket) -> socket.socket:
    connection.settimeout(_TIMEOUT_S)
    # Send at once: the peer waits for exactly these bytes.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _receive(connection: socket.socket, buffer: memoryview) -> None:
    """Fill a buffer of bytes.

    Raises:
        ConnectionError: if the peer ends.
    """
    filled = 0
    while filled < len(buffer):
        count = connection.recv_into(buffer[filled:])
        if not count:
            raise ConnectionError("A worker has ended; see the log of the worker for the reason.")
        filled += count
