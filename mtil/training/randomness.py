"""Random numbers of a training epoch: functions of seed, epoch, rank and first step."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

_DEGRADING, _PASSES, _LATER, _ROUND = 1, 2, 3, 4
"""Keys of independent random streams. No key is 0: `mix_seed` ignores trailing zeros."""


class EpochRandomness:
    """Set up and hold the random generators of one epoch in one process."""

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
        """Set the generators to their state before step `first` of an epoch.

        Args:
            seed: the round's seed, see `derive_round_seed`.
            epoch: index of the epoch, from 0.
            rank: rank of this worker.
            device: device on which prior maps are degraded.
            first: index of the first step to take, from 0.
            most_passes: maximum number of passes a step.
            state: generator states of this worker before step `first`, see `state`. Without
                states, for example after a change of the worker count, new streams are seeded.
        """
        self._device, self._most_passes = device, most_passes
        # Seeded without the rank: every rank must draw the same number of passes.
        self._passes = np.random.default_rng(mix_seed(seed, epoch, 0, _PASSES))
        self.degrading = torch.Generator(device)
        # A later first step gets new streams. Otherwise a resumed epoch would repeat the random
        # numbers of its first steps.
        stream_key = (seed, epoch, rank) if first == 0 else (seed, epoch, rank, _LATER, first)
        torch.manual_seed(mix_seed(*stream_key))
        self.degrading.manual_seed(mix_seed(*stream_key, _DEGRADING))
        # Replays the draws of the steps already taken, which are the same on every rank.
        for _ in range(first):
            self.num_passes()
        if state is not None:
            torch.set_rng_state(state["cpu"])
            self.degrading.set_state(state["degrading"])
            if device.type == "cuda":
                torch.cuda.set_rng_state(state["cuda"], device)

    def num_passes(self) -> int:
        """Draw the number of passes of the next step, from 1; equal on every rank."""
        return int(self._passes.integers(self._most_passes)) + 1

    def state(self) -> dict[str, Tensor]:
        """Return the state of torch's global generators and of the degrading generator."""
        state = {"cpu": torch.get_rng_state(), "degrading": self.degrading.get_state()}
        if self._device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self._device)
        return state


def derive_round_seed(seed: int, number: int) -> int:
    """Return the seed of a round's trainings; round 0 has the run's own seed.

    A round that starts from the weights of the previous round thus gets a different order of images
    and different augmentation.
    """
    return mix_seed(seed, number, _ROUND) if number else seed


def mix_seed(*numbers: int) -> int:
    """Hash integers to a seed. Changing any integer changes the seed."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
