"""Convert batches of stored rows to tensors on a device, at the network's input size."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from mtil.data.dataset.batches import Batch


class TensorBatch(NamedTuple):
    """Input of a training step."""

    image: Float[Tensor, "b 1 s s"]
    """Gray values in [0, 1]."""
    mask: Float[Tensor, "b 1 s s"]
    """0 or 1."""
    label: Int[Tensor, " b"]
    prior: Float[Tensor, "b 1 s s"] | None = None
    """Lesion probability from the previous round, in [0, 1]. None equals all zeros."""


def to_tensors(
    batch: Batch, image_size: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> TensorBatch:
    """Move a batch to a device, then convert to tensors of side `image_size` and type `dtype`."""
    # Bytes are a quarter of the floats to copy, so the conversion follows the copy.
    stored_size = batch.image.shape[-1]
    image = move_to_device(torch.from_numpy(np.array(batch.image)), device)
    bits = np.unpackbits(batch.mask, axis=1).reshape(len(batch), stored_size, stored_size)
    mask = move_to_device(torch.from_numpy(bits), device)
    label = move_to_device(torch.from_numpy(batch.label), device)
    prior = None
    if batch.prior is not None:
        stored_prior = move_to_device(torch.from_numpy(np.array(batch.prior)), device)
        prior = resize_images(stored_prior[:, None], image_size).to(dtype)
    return TensorBatch(
        image=resize_images(image[:, None], image_size).to(dtype),
        mask=(_resize(mask[:, None].float(), image_size) >= 0.5).to(dtype),
        label=label,
        prior=prior,
    )


def move_to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device, to a GPU from pinned memory."""
    # Only a copy from pinned memory is asynchronous: the CPU goes on while the GPU copies.
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def resize_images(image: Tensor, image_size: int) -> Float[Tensor, "b 1 s s"]:
    """Convert stored bytes (b, 1, h, w) to floats in [0, 1], resized to `image_size`."""
    return _resize(image.float() / 255, image_size).clamp(0, 1)


def _resize(image: Tensor, image_size: int) -> Tensor:
    if image.shape[-2:] == (image_size, image_size):
        return image
    return F.interpolate(
        image, (image_size, image_size), mode="bilinear", align_corners=False, antialias=True
    )
