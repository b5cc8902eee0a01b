"""The random numbers of a training epoch, each a function of (seed, epoch, rank) and the step."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

_DEGRADING, _PASSES, _LATER, _ROUND = 1, 2, 3, 4
"""Independent streams of random numbers; not 0, which is as good as no number."""


class EpochRandomness:
    """What an epoch draws from: PyTorch's own generator, and two beside it."""

    def __init__(
        self,
        seed: int,
        epoch: int,
        rank: int,
        device: torch.device,
        *,
        first: int = 0,
        most_passes: int = 1,
        state: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Stand where an epoch is before a step.

        Args:
            seed: the round's seed, see `of_round`.
            epoch: number of the epoch, from 0.
            rank: the process among those that train together.
            device: where images are degraded.
            first: number of the step, from 0.
            most_passes: the most passes that a step makes.
            state: where this process's generators stood then; without it, as where another number
                of processes goes on, they start anew.
        """
        self._device, self._most_passes = device, most_passes
        self._passes = np.random.default_rng(mix(seed, epoch, 0, _PASSES))
        self.degrading = torch.Generator(device)
        place = (seed, epoch, rank) if first == 0 else (seed, epoch, rank, _LATER, first)
        torch.manual_seed(mix(*place))
        self.degrading.manual_seed(mix(*place, _DEGRADING))
        for _ in range(first):
            self.num_passes()
        if state is not None:
            torch.set_rng_state(state["cpu"])
            self.degrading.set_state(state["degrading"])
            if device.type == "cuda":
                torch.cuda.set_rng_state(state["cuda"], device)

    def num_passes(self) -> int:
        """Draw the passes of the next step: the same on every rank."""
        return int(self._passes.integers(self._most_passes)) + 1

    def state(self) -> dict[str, Tensor]:
        """Return where this process's generators stand."""
        state = {"cpu": torch.get_rng_state(), "degrading": self.degrading.get_state()}
        if self._device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self._device)
        return state


def of_round(seed: int, number: int) -> int:
    """Return the seed of a round's trainings: the first has the run's own, each later one another.

    A round that starts from the weights of the one before sees the images in another order and
    changed in other ways.
    """
    return mix(seed, number, _ROUND) if number else seed


def mix(*numbers: int) -> int:
    """Return a seed that any change of the numbers changes."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
