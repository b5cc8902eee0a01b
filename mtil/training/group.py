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

    def wrap(self, module: nn.Module, device: torch.device) -> nn.Module:
        """Wrap a module on a GPU in DDP, which exchanges gradients during the backward pass.

        Return `module` itself on a CPU, and in a group of one worker. On a CPU, an exchange during
        the backward pass would compete with the backward pass for the cores.
        """
        if self.num_workers == 1 or device.type == "cpu":
            return module
        return DistributedDataParallel(
            module,
            device_ids=[device.index],
            forward_sync_buffers=False,
            gradient_as_bucket_view=True,
        )

    def without_exchange(self, module: nn.Module, apply: bool) -> AbstractContextManager[None]:
        """Return a context in which a wrapped module's gradients stay on this worker.

        Args:
            module: result of `wrap`.
            apply: False for a context without effect.
        """
        if apply and isinstance(module, DistributedDataParallel):
            return cast(AbstractContextManager[None], module.no_sync())
        return nullcontext()

    def average_gradients(self, module: nn.Module) -> None:
        """Average the gradients of a module over the workers, unless DDP has averaged them.

        Args:
            module: result of `wrap`, after the backward pass. The same parameters must have
                gradients on every worker.
        """
        if self.num_workers == 1 or isinstance(module, DistributedDataParallel):
            return
        gradients = [
            parameter.grad for parameter in module.parameters() if parameter.grad is not None
        ]
        # As one vector: Gloo takes a millisecond for each sum, however small.
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        torch.distributed.all_reduce(flat)
        flat /= self.num_workers
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        torch._foreach_copy_(
            gradients,
            [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)],
        )

    def copy_buffers(self, module: nn.Module) -> None:
        """Replace the floating-point buffers of a module by those of rank 0."""
        for buffer in module.buffers():
            if buffer.is_floating_point() and self.num_workers > 1:
                torch.distributed.broadcast(buffer, src=0)
