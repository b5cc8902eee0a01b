"""The group of processes that train one fold together. No Ray."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed
from torch import nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """This process's place among the workers of one training; by default a group of one.

    With more than one worker, PyTorch's default process group must exist.
    """

    rank: int = 0
    num_workers: int = 1
    report: Callable[[dict[str, Any]], None] = lambda figures: None
    """Takes every worker's figures at the end of an epoch. Returns when all workers have called."""
    is_leaving: Callable[[], bool] | None = None
    """Says whether a machine of the group is about to be taken away. None: nobody can know."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Return the value of each worker, in the order of ranks."""
        if self.num_workers == 1:
            return [value]
        values: list[Any] = [None] * self.num_workers
        torch.distributed.all_gather_object(values, value)
        return values

    def from_first(self, decide: Callable[[], T]) -> T:
        """Let rank 0 decide, and return the decision on every worker."""
        if self.num_workers == 1:
            return decide()
        decision: list[Any] = [decide() if self.is_first else None]
        torch.distributed.broadcast_object_list(decision)
        result: T = decision[0]
        return result

    def wrap(self, module: nn.Module, device: torch.device) -> nn.Module:
        """Return a module whose gradients are averaged over the workers."""
        if self.num_workers == 1:
            return module
        on_cpu = device.type == "cpu"
        return DistributedDataParallel(
            module,
            device_ids=None if on_cpu else [device.index],
            # Looking for unused parameters keeps the gradient buckets as they are built. Without
            # it the second step orders them anew, and a resumed run would add in another order.
            find_unused_parameters=on_cpu,
        )
