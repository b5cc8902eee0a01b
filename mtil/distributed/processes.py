"""The group of processes that train together, on the network by which Ray reaches them."""

import logging
import os
from collections.abc import Mapping, Sequence
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
    the process that only controls them would take seconds and a quarter of a GiB for it.
    """

    def __init__(self, backend: str) -> None:
        self.backend = backend

    @property
    def backend_cls(self) -> type[Backend]:
        """What Ray runs on the workers."""
        return _Group

    @property
    def train_func_context(self) -> Any:
        """What the training function is run within: Ray's own choice of the worker's GPU."""
        from ray.train.torch import TorchConfig  # in the process that starts the training

        return TorchConfig().train_func_context


class _Group(Backend):
    share_cuda_visible_devices = True

    def on_start(
        self,
        worker_group: BaseWorkerGroup,
        backend_config: Processes,  # type: ignore[override]  # as Ray's own
    ) -> None:
        """Choose each worker's network, then form the group."""
        host, port = worker_group.execute_single(0, get_address_and_port)
        url = f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
        backend, size = backend_config.backend, len(worker_group)
        joined: list[Any] = [
            worker_group.execute_single_async(rank, _join, backend, url, rank, size)
            for rank in range(size)
        ]
        ray.get(joined)

    def on_shutdown(self, worker_group: BaseWorkerGroup, backend_config: BackendConfig) -> None:
        """Dissolve the group."""
        left: list[Any] = worker_group.execute_async(_leave, len(worker_group) > 1)
        try:
            ray.get(left, timeout=_LEAVE_S)
        except GetTimeoutError:
            _log.warning("A training's processes did not leave their group in %d s.", _LEAVE_S)


def _join(backend: str, url: str, rank: int, size: int) -> None:
    """Become a process of the group."""
    from ray.train.torch import config  # here, and not where the workers are controlled from

    _listen_where_ray_does()
    config._set_torch_distributed_env_vars()  # type: ignore[no-untyped-call]
    config._setup_torch_process_group(backend, rank, size, url, _STUCK_S)


def _leave(has_group: bool) -> None:
    from ray.train.torch import config

    config._shutdown_torch(has_group)  # type: ignore[no-untyped-call]


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
