"""Exponentially averaged weights."""

from copy import deepcopy

import torch
from torch import Tensor, nn


class MovingAverage(nn.Module):
    """A copy of a network whose weights and statistics follow it slowly.

    The first steps forget faster, by (1 + n) / (10 + n), so that an average over a short training
    does not remember the weights it started from. Counters are copied.

    It is PyTorch's `AveragedModel` with a count that stays on the CPU: to read one that is on the
    GPU, each step would wait for the step before.
    """

    n_averaged: Tensor

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__()
        self.module = deepcopy(network)
        self.register_buffer("n_averaged", torch.tensor(0))
        self._decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take one step towards the network's weights; the first one takes them as they are."""
        step = int(self.n_averaged)
        averaged, current = _floating(self.module), _floating(network)
        if step == 0:
            torch._foreach_copy_(averaged, current)
        else:
            share = 1 - min(self._decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(averaged, current, share)
        torch._foreach_copy_(_counters(self.module), _counters(network))
        self.n_averaged += 1


def _floating(network: nn.Module) -> list[Tensor]:
    return [tensor for tensor in _tensors(network) if tensor.is_floating_point()]


def _counters(network: nn.Module) -> list[Tensor]:
    return [tensor for tensor in _tensors(network) if not tensor.is_floating_point()]


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]
