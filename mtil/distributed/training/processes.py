"""The group of processes that train together, on the network by which Ray reaches them."""

import logging
import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import psutil
import ray
from ray.exceptions import GetTimeoutError
from ray.train._internal.base_worker_group import BaseWorkerGroup
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig

_log = logging.getLogger(__name__)

_INTERFACE = "GLOO_SOCKET_IFNAME"
_STUCK_S = 1800
"""After which a process that waits for the others gives up."""
_LEAVE_S = 30


class Processes(BackendConfig):
    """PyTorch's process group on Ray Train's workers, where Gloo finds the other machines.

    Gloo listens where the machine's name leads. On many machines that is the loopback, or nowhere,
    and the others then cannot reach it. Unlike Ray's own this has the workers alone import PyTorch:
    the process that only controls them would take seconds and a quarter of a GiB for it. A process
    that trains alone has no group.
    """

    def __init__(self, backend: str) -> None:
        self.backend = backend

    @property
    def backend_cls(self) -> type[Backend]:
        """What Ray runs on the workers."""
        return _Group


class _Group(Backend):
    share_cuda_visible_devices = True

    def on_start(
        self,
        worker_group: BaseWorkerGroup,
        backend_config: Processes,  # type: ignore[override]  # as Ray's own
    ) -> None:
        """Choose each worker's network, then form the group."""
        size = len(worker_group)
        if size == 1:
            return
        host, port = worker_group.execute_single(0, get_address_and_port)
        url = f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
        joined: list[Any] = [
            worker_group.execute_single_async(rank, _join, backend_config.backend, url, rank, size)
            for rank in range(size)
        ]
        ray.get(joined)

    def on_shutdown(self, worker_group: BaseWorkerGroup, backend_config: BackendConfig) -> None:
        """Dissolve the group."""
        if len(worker_group) == 1:
            return
        left: list[Any] = worker_group.execute_async(_leave)
        try:
            ray.get(left, timeout=_LEAVE_S)
        except GetTimeoutError:
            _log.warning("A training's processes did not leave their group in %d s.", _LEAVE_S)


def _join(backend: str, url: str, rank: int, size: int) -> None:
    """Become a process of the group."""
    import torch.distributed  # here, and not where the workers are controlled from

    _listen_where_ray_does()
    stuck = timedelta(seconds=_STUCK_S)
    torch.distributed.init_process_group(
        backend, init_method=url, rank=rank, world_size=size, timeout=stuck
    )


def _leave() -> None:
    import torch.distributed

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _listen_where_ray_does() -> None:
    """Name Ray's network to Gloo in this process, unless the user names one."""
    address = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    interface = interface_of(address, psutil.net_if_addrs())
    if interface is not None:
        os.environ.setdefault(_INTERFACE, interface)


def interface_of(address: str, interfaces: Mapping[str, Sequence[Any]]) -> str | None:
    """Return the name of the network interface that has an address, if one of them has it.

    Args:
        address: of this machine, as Ray knows it.
        interfaces: the addresses of each, as psutil lists them.
    """
    return next(
        (name for name, own in interfaces.items() if any(one.address == address for one in own)),
        None,
    )
