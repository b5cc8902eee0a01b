"""Exponential moving average of a network's weights."""

from copy import deepcopy

import torch
from torch import Tensor, nn


class MovingAverage(nn.Module):
    """Keep an exponential moving average of a network's weights and buffers.

    The decay at step n is min(decay, (1 + n) / (10 + n)). A short training thus does not remember
    the initial weights. Integer buffers such as batch counters are copied.
    """

    n_averaged: Tensor

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__()
        self.module = deepcopy(network)
        # PyTorch's `AveragedModel` keeps this count on the GPU: reading the count makes each
        # step wait for the previous step. Here the count stays on the CPU.
        self.register_buffer("n_averaged", torch.tensor(0))
        self._decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move the average one step towards the network; the first step copies the weights."""
        step = int(self.n_averaged)
        averaged, current = _float_tensors(self.module), _float_tensors(network)
        if step == 0:
            torch._foreach_copy_(averaged, current)
        else:
            weight = 1 - min(self._decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(averaged, current, weight)
        torch._foreach_copy_(_integer_tensors(self.module), _integer_tensors(network))
        self.n_averaged += 1


def _float_tensors(network: nn.Module) -> list[Tensor]:
    return [tensor for tensor in _all_tensors(network) if tensor.is_floating_point()]


def _integer_tensors(network: nn.Module) -> list[Tensor]:
    return [tensor for tensor in _all_tensors(network) if not tensor.is_floating_point()]


def _all_tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]
