"""Convert batches of stored rows to tensors on a device, at the network's input size."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from mtil.data.dataset.batches import Batch
from mtil.data.dataset.selection import NORMAL
from mtil.data.dataset.shards import LABELS
from mtil.models.windows import Window, measure_zoom

MALIGNANT = LABELS.index("malignant")


class TensorBatch(NamedTuple):
    """Input of a training step."""

    image: Float[Tensor, "b 1 s s"]
    """Gray values in [0, 1]."""
    mask: Float[Tensor, "b 1 s s"]
    """0 or 1."""
    label: Int[Tensor, " b"]
    prior: Float[Tensor, "b 1 s s"] | None = None
    """Lesion probability from the previous round, in [0, 1]. None equals all zeros."""
    zoom: Float[Tensor, " b"] | None = None
    """Enlargement of every image in octaves. None equals all zeros: whole images."""
    weight: Float[Tensor, " b"] | None = None
    """Weight of every image in the loss. None equals all ones."""
    malignant: Float[Tensor, " b"] | None = None
    """Target of the class from 0 to 1. None stands for the labels."""


def to_tensors(
    batch: Batch,
    image_size: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    windows: Sequence[Window | None] | None = None,
) -> TensorBatch:
    """Move a batch to a device, then convert to tensors of side `image_size` and type `dtype`.

    Args:
        batch: stored rows.
        image_size: side of the returned images in pixels.
        device: device of the tensors.
        dtype: type of image, mask and prior.
        windows: window of each image, in pixels of the stored image; None keeps an image whole. A
            window without a pixel of the lesion is labelled normal.
    """
    # Bytes are a quarter of the floats to copy, so the conversion follows the copy.
    stored_size = batch.image.shape[-1]
    image = move_to_device(torch.from_numpy(np.array(batch.image)), device)
    mask = move_to_device(torch.from_numpy(unpack_masks(batch)), device)
    label = move_to_device(torch.from_numpy(batch.label), device)
    resized_mask = _resize(mask[:, None].float(), image_size, windows) >= 0.5
    prior = zoom = None
    if batch.prior is not None:
        stored_prior = move_to_device(torch.from_numpy(np.array(batch.prior)), device)[:, None]
        prior = _resize_stored(stored_prior, stored_size, image_size, windows).to(dtype)
    if windows is not None:
        label = torch.where(resized_mask.flatten(1).any(dim=1), label, NORMAL)
        zoom = move_to_device(measure_zoom(windows, stored_size).to(dtype), device)
    return TensorBatch(
        image=resize_images(image[:, None], image_size, windows).to(dtype),
        mask=resized_mask.to(dtype),
        label=label,
        prior=prior,
        zoom=zoom,
    )


def blend_teacher(
    batch: TensorBatch,
    lesion: npt.NDArray[np.uint8],
    malignant: npt.NDArray[np.float64],
    share: float,
    stored_size: int,
    windows: Sequence[Window | None] | None = None,
) -> TensorBatch:
    """Return a batch whose targets are mixed with a teacher's outputs.

    Images labelled normal keep 0 as the target of the class.

    Args:
        batch: the batch, from `to_tensors`.
        lesion: (b, m, m) the teacher's lesion probability in 255ths, of the whole images.
        malignant: (b,) the teacher's probability of malignant.
        share: share of the teacher.
        stored_size: side of the stored images in pixels.
        windows: window of each image, as given to `to_tensors`.
    """
    device, dtype = batch.mask.device, batch.mask.dtype
    maps = move_to_device(torch.from_numpy(lesion), device)[:, None]
    soft = _resize_stored(maps, stored_size, batch.mask.shape[-1], windows).to(dtype)
    given = move_to_device(torch.from_numpy(malignant), device).to(dtype)
    target = torch.lerp((batch.label == MALIGNANT).to(dtype), given, share)
    return batch._replace(
        mask=torch.lerp(batch.mask, soft, share),
        malignant=torch.where(batch.label == NORMAL, 0, target),
    )


def _resize_stored(
    maps: Tensor, stored_size: int, image_size: int, windows: Sequence[Window | None] | None
) -> Tensor:
    """Resize maps (b, 1, m, m) of bytes as their images, whose windows are in stored pixels."""
    if windows is not None:
        maps = (resize_images(maps, stored_size) * 255).round()
    return resize_images(maps, image_size, windows)


def unpack_masks(batch: Batch) -> npt.NDArray[np.bool_]:
    """Return the masks (b, s, s) of stored rows."""
    bits = np.unpackbits(batch.mask, axis=1)
    return bits.reshape(batch.image.shape).astype(np.bool_)


def move_to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device, to a GPU from pinned memory."""
    # Only a copy from pinned memory is asynchronous: the CPU goes on while the GPU copies.
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def resize_images(
    image: Tensor, image_size: int, windows: Sequence[Window | None] | None = None
) -> Float[Tensor, "b 1 s s"]:
    """Convert stored bytes (b, 1, h, w), or windows of them, to floats in [0, 1] of `image_size`.

    Args:
        image: gray values from 0 to 255.
        image_size: side of the returned images in pixels.
        windows: window of each image, None for a whole image; by default all images are whole.
    """
    return _resize(image.float() / 255, image_size, windows).clamp(0, 1)


def _resize(
    image: Tensor, image_size: int, windows: Sequence[Window | None] | None = None
) -> Tensor:
    if windows is not None:
        parts = [
            one[None] if window is None else one[None, :, *window.cut]
            for one, window in zip(image, windows, strict=True)
        ]
        return torch.cat([_resize(part, image_size) for part in parts])
    if image.shape[-2:] == (image_size, image_size):
        return image
    return F.interpolate(
        image, (image_size, image_size), mode="bilinear", align_corners=False, antialias=True
    )
