"""The group of processes that trains one fold. No Ray."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mtil.training.exchange import LOOPBACK

T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """The workers of a training, seen from one worker; by default a group of one worker.

    With more than one worker, PyTorch's default process group must exist.
    """

    rank: int = 0
    num_workers: int = 1
    address: str = LOOPBACK
    """IP address of this worker's machine, as seen from the machines of the other workers."""
    report: Callable[[dict[str, Any]], None] = lambda figures: None
    """Called by every worker with figures at the end of an epoch. Blocks until all have called."""
    is_leaving: Callable[[], bool] | None = None
    """Returns True if the cluster is about to take away a machine of the group.

    None if the cluster gives no warnings.
    """

    @property
    def is_first(self) -> bool:
        """True on rank 0, which writes the files of the run."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Return the values of all workers, by rank."""
        if self.num_workers == 1:
            return [value]
        values: list[Any] = [None] * self.num_workers
        torch.distributed.all_gather_object(values, value)
        return values

    def from_first(self, decide: Callable[[], T]) -> T:
        """Call `decide` on rank 0, and return the decision on every worker."""
        if self.num_workers == 1:
            return decide()
        decision: list[Any] = [decide() if self.is_first else None]
        torch.distributed.broadcast_object_list(decision)
        result: T = decision[0]
        return result

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over the workers. Gradients do not flow through the sum."""
        total = values.detach().clone()
        if self.num_workers > 1:
            torch.distributed.all_reduce(total)
        return total

    def without_exchange(self, module: nn.Module, apply: bool) -> AbstractContextManager[None]:
        """Return a context in which a wrapped module's gradients stay on this worker.

        Args:
            module: result of `wrap`.
            apply: False for a context without effect.
        """
        if apply and isinstance(module, DistributedDataParallel):
            return cast(AbstractContextManager[None], module.no_sync())
        return nullcontext()

    def wrap(self, module: nn.Module, device: torch.device, *, sync_buffers: bool) -> nn.Module:
        """Wrap a module in DDP, which averages gradients over the workers.

        Return `module` itself if the group has one worker.

        Args:
            module: the module.
            device: the module's device.
            sync_buffers: whether every forward pass first copies the buffers of rank 0.
        """
        if self.num_workers == 1:
            return module
        on_cpu = device.type == "cpu"
        return DistributedDataParallel(
            module,
            device_ids=None if on_cpu else [device.index],
            forward_sync_buffers=sync_buffers,
            gradient_as_bucket_view=True,
            # The search for unused parameters keeps the gradient buckets in their first order.
            # Otherwise DDP reorders the buckets after the first step, and a resumed run would add
            # gradients in a different order.
            find_unused_parameters=on_cpu,
        )
