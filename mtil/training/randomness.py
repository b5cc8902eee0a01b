"""Random numbers of a training epoch.

The random numbers of an image are a function of (seed, round, epoch, sample id). Rank, place in the
batch, batch size, number of workers and first step of a resumed epoch have no influence.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mtil.training.philox import philox4x32, to_normals, to_uniforms
from mtil.training.tensors import move_to_device

_IMAGES, _PASSES, _GLOBAL, _ROUND = 1, 2, 3, 4
"""Keys of independent random streams. No key is 0: `mix_seed` ignores trailing zeros."""


class Purpose(IntEnum):
    """Use of random numbers; every use has a separate stream per image."""

    AFFINE = 1
    APPEARANCE = 2
    SPECKLE = 3
    PRIOR = 4
    LAYERS = 5
    WINDOW = 6
    QUALITY = 7
    NOISE = 8
    CORRUPTION = 9


@dataclass(frozen=True)
class ImageRandomness:
    """Random numbers of the images of a batch in one epoch. Equal calls give equal numbers."""

    key: tuple[int, int]
    """Key of the epoch, see `philox4x32`."""
    image_words: Int[np.ndarray, "b 2"]
    """Hash of each sample id in two words of 32 bits."""
    device: torch.device
    """Device of the normal numbers."""

    def uniforms(self, purpose: Purpose, num: int) -> Float[Tensor, "b num"]:
        """Return `num` uniform float32 numbers in [0, 1) per image, on the CPU.

        A larger `num` appends numbers and leaves the first numbers unchanged.
        """
        index = np.arange(math.ceil(num / 4))[None]
        low, high = self.image_words.T[..., None]
        words = philox4x32((index, np.full((1, 1), int(purpose)), low, high), self.key)
        return to_uniforms(torch.from_numpy(np.stack(words, axis=-1)).flatten(1)[:, :num])

    def normals(
        self, purpose: Purpose, shape: Sequence[int], dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "b *shape"]:
        """Return standard normal numbers (b, *shape) on the device."""
        num = math.prod(shape)
        index = torch.arange(math.ceil(num / 4), device=self.device)[None]
        stream = torch.full((1, 1), int(purpose), device=self.device)
        low, high = move_to_device(torch.from_numpy(self.image_words), self.device).T[..., None]
        words = philox4x32((index, stream, low, high), self.key)
        normals = [*to_normals(*words[:2], dtype), *to_normals(*words[2:], dtype)]
        return torch.cat(normals, dim=1)[:, :num].reshape(-1, *shape)


class EpochRandomness:
    """The random numbers of one epoch."""

    def __init__(
        self, seed: int, epoch: int, device: torch.device, *, most_passes: int = 1
    ) -> None:
        """Choose the epoch.

        Args:
            seed: the round's seed, see `derive_round_seed`.
            epoch: index of the epoch, from 0.
            device: device of the images.
            most_passes: maximum number of passes a step.
        """
        self._seed, self._epoch = seed, epoch
        self._device, self._most_passes = device, most_passes

    def for_images(self, sample_ids: Sequence[str]) -> ImageRandomness:
        """Return the random numbers of the images with these ids."""
        mixed = mix_seed(self._seed, self._epoch, _IMAGES)
        hashes = b"".join(
            hashlib.blake2b(sample_id.encode(), digest_size=8).digest() for sample_id in sample_ids
        )
        image_words = np.frombuffer(hashes, "<u4").reshape(-1, 2).astype(np.int64)
        key = (mixed % 2**32, mixed // 2**32)
        return ImageRandomness(key, image_words, self._device)

    def num_passes(self, step: int) -> int:
        """Return the number of passes of a step, from 1; equal on every worker."""
        return mix_seed(self._seed, self._epoch, step, _PASSES) % self._most_passes + 1

    def seed_step(self, step: int, rank: int) -> None:
        """Seed torch's global generators, which layers of `hf:` encoders draw from.

        Such numbers belong to a place in a worker's batch, not to an image. A resumed epoch repeats
        the numbers; another number of workers gives other numbers.
        """
        seed = mix_seed(self._seed, self._epoch, step, rank, _GLOBAL)
        # `torch.manual_seed` also visits all other kinds of devices, which takes 0.2 ms.
        torch.default_generator.manual_seed(seed)
        if self._device.type == "cuda":
            torch.cuda.manual_seed(seed)


def derive_round_seed(seed: int, number: int) -> int:
    """Return the seed of a round's trainings; round 0 has the run's own seed.

    A round that starts from the weights of the previous round thus gets a different order of images
    and different augmentation.
    """
    return mix_seed(seed, number, _ROUND) if number else seed


def mix_seed(*numbers: int) -> int:
    """Hash integers to a seed. Changing any integer changes the seed."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
