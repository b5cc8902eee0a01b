"""The group of processes that train together, on the network by which Ray reaches them."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import psutil
import ray
from ray.train._internal.base_worker_group import BaseWorkerGroup
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

_INTERFACE = "GLOO_SOCKET_IFNAME"


class Processes(TorchConfig):
    """Ray's setting up of PyTorch's process group, where Gloo finds the other machines.

    Gloo listens where the machine's name leads. On many machines that is the loopback, or nowhere,
    and the others then cannot reach it.
    """

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """What Ray runs on the workers."""
        return _Backend


class _Backend(_TorchBackend):
    def on_start(
        self,
        worker_group: BaseWorkerGroup,
        backend_config: TorchConfig,  # type: ignore[override]  # as Ray's own
    ) -> None:
        """Choose each worker's network, then form the group."""
        worker_group.execute(_listen_where_ray_does)
        super().on_start(worker_group, backend_config)


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
