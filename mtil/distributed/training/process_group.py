"""PyTorch process group of Ray Train workers, on the network used by Ray."""

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

_INTERFACE_VARIABLE = "GLOO_SOCKET_IFNAME"
_COLLECTIVE_TIMEOUT_S = 1800
"""Timeout of collective operations: a process waiting longer for its peers fails."""
_LEAVE_TIMEOUT_S = 30


class ProcessGroupConfig(BackendConfig):
    """Ray Train backend: a process group in which Gloo finds the other machines.

    Gloo listens on the address of the machine's host name. On many machines the name resolves to
    the loopback or to nothing, unreachable for peers. Here Gloo listens on Ray's network instead.

    Unlike Ray's own backend, only the workers import PyTorch. The import would cost the controller
    seconds and a quarter of a GiB. A training with a single worker has no group.
    """

    def __init__(self, backend: str) -> None:
        self.backend = backend

    @property
    def backend_cls(self) -> type[Backend]:
        """Backend class that Ray runs on the workers."""
        return _Group


class _Group(Backend):
    share_cuda_visible_devices = True

    def on_start(
        self,
        worker_group: BaseWorkerGroup,
        backend_config: ProcessGroupConfig,  # type: ignore[override]  # as Ray's own
    ) -> None:
        """Set the network interface of every worker, then form the group."""
        size = len(worker_group)
        if size == 1:
            return
        host, port = worker_group.execute_single(0, get_address_and_port)
        url = f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
        pending: list[Any] = [
            worker_group.execute_single_async(
                rank, _join_group, backend_config.backend, url, rank, size
            )
            for rank in range(size)
        ]
        ray.get(pending)

    def on_shutdown(self, worker_group: BaseWorkerGroup, backend_config: BackendConfig) -> None:
        """Dissolve the group."""
        if len(worker_group) == 1:
            return
        pending: list[Any] = worker_group.execute_async(_leave_group)
        try:
            ray.get(pending, timeout=_LEAVE_TIMEOUT_S)
        except GetTimeoutError:
            _log.warning(
                "The training processes did not leave the process group within %d s.",
                _LEAVE_TIMEOUT_S,
            )


def _join_group(backend: str, url: str, rank: int, size: int) -> None:
    """Set the network interface, then join the process group."""
    # Imported here: the controller only sends the function and needs no PyTorch.
    import torch.distributed

    _set_gloo_interface()
    timeout = timedelta(seconds=_COLLECTIVE_TIMEOUT_S)
    torch.distributed.init_process_group(
        backend, init_method=url, rank=rank, world_size=size, timeout=timeout
    )


def _leave_group() -> None:
    import torch.distributed

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _set_gloo_interface() -> None:
    """Point Gloo to the network interface of Ray, unless set by the user."""
    address = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    interface = find_interface(address, psutil.net_if_addrs())
    if interface is not None:
        os.environ.setdefault(_INTERFACE_VARIABLE, interface)


def find_interface(address: str, interfaces: Mapping[str, Sequence[Any]]) -> str | None:
    """Return the name of the network interface with an address. None if no interface has it.

    Args:
        address: address of the local machine, as known to Ray.
        interfaces: addresses by interface name, in the format of psutil.
    """
    return next(
        (
            name
            for name, addresses in interfaces.items()
            if any(entry.address == address for entry in addresses)
        ),
        None,
    )
