"""Random changes to a training batch, on the batch's own device.

All random numbers come from torch's global generator, and every image draws its own. Those that
degrade a prior map may come from another one, so that a map changes nothing but itself.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from kornia.filters import gaussian_blur2d
from kornia.geometry.transform import get_affine_matrix2d, warp_affine
from torch import Tensor

from mtil.config import AugmentConfig, PriorConfig
from mtil.training.tensors import moved

Batch = tuple[Tensor, Tensor, Tensor | None]

ROUGHEN_SHARE = 0.02
"""Radius of the prior map's roughening as a share of the side."""


class Augment:
    """Moves image, mask and prior map together, changes the image's look, degrades the prior map.

    `augment.enabled` is about the first two alone.

    The prior map is dropped or roughened so that the network neither relies on it nor learns
    that it is as good as maps of training images tend to be.
    """

    def __init__(self, config: AugmentConfig, prior: PriorConfig) -> None:
        self.config = config
        self.prior = prior

    def __call__(
        self,
        image: Float[Tensor, "b 1 h w"],
        mask: Float[Tensor, "b 1 h w"],
        prior: Float[Tensor, "b 1 h w"] | None,
        generator: torch.Generator | None = None,
    ) -> Batch:
        """Return the changed batch.

        Args:
            image: gray values in [0, 1].
            mask: 1 in the lesion, 0 elsewhere; stays so.
            prior: the previous round's probability of lesion.
            generator: gives the random numbers that degrade the prior map.
        """
        if self.config.enabled:
            matrix = random_affine(self.config, len(image), *image.shape[-2:])
            image, mask, prior = move(moved(matrix, image.device), image, mask, prior)
            image = change_look(self.config, image)
        if prior is not None:
            prior = degrade(self.prior, prior, generator)
        return image, mask, prior


def random_affine(
    config: AugmentConfig, num_images: int, height: int, width: int
) -> Float[Tensor, "b 2 3"]:
    """Draw each image's matrix from source to target pixels: flips, scale, rotation, shift.

    On the CPU, since a GPU would take longer to be told of so many small steps than to do them.
    """
    draw = torch.rand(6, num_images)
    signed = 2 * draw - 1
    flips = torch.stack([draw[0] < config.horizontal_flip, draw[1] < config.vertical_flip], dim=1)
    scale = (1 + config.scale * signed[2])[:, None] * (1 - 2 * flips.float())
    angle = config.rotation * signed[3]
    sides = torch.tensor([width, height])
    shift = config.translation * signed[4:].T * sides
    centre = ((sides - 1) / 2).expand(num_images, 2)
    matrix: Tensor = get_affine_matrix2d(shift, centre, scale, angle)
    return matrix[:, :2]


def move(
    matrix: Float[Tensor, "b 2 3"],
    image: Float[Tensor, "b 1 h w"],
    mask: Float[Tensor, "b 1 h w"],
    prior: Float[Tensor, "b 1 h w"] | None,
) -> Batch:
    """Apply one geometric transform; what comes from outside is black and no lesion."""
    height, width = image.shape[-2:]
    soft = image if prior is None else torch.cat([image, prior], dim=1)
    soft = warp_affine(soft, matrix, (height, width), mode="bilinear")
    mask = warp_affine(mask, matrix, (height, width), mode="nearest")
    return soft[:, :1], mask, None if prior is None else soft[:, 1:]


def change_look(config: AugmentConfig, image: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 h w"]:
    """Change contrast (about the mean), brightness and gamma, then multiply with speckle."""
    draw = torch.rand(4, len(image), 1, 1, 1, device=image.device)
    signed = 2 * draw - 1
    mean = image.mean(dim=(1, 2, 3), keepdim=True)
    image = mean + (image - mean) * (1 + config.contrast * signed[0])
    image = (image + config.brightness * signed[1]).clamp(0, 1)
    image = image ** (1 + config.gamma * signed[2])
    noise = torch.randn_like(image)
    return (image * (1 + config.speckle * draw[3] * noise)).clamp(0, 1)


def degrade(
    config: PriorConfig,
    prior: Float[Tensor, "b 1 h w"],
    generator: torch.Generator | None = None,
) -> Float[Tensor, "b 1 h w"]:
    """Erode, dilate or blur some maps and drop others; a map is left as it is otherwise."""
    shape = (3, len(prior), 1, 1, 1)
    drop, rough, kind = torch.rand(shape, device=prior.device, generator=generator)
    radius = max(1, round(ROUGHEN_SHARE * prior.shape[-1]))
    changed = torch.where(
        kind < 1 / 3,
        1 - dilate(1 - prior, radius),
        torch.where(kind < 2 / 3, dilate(prior, radius), blur(prior, radius)),
    )
    prior = torch.where(rough < config.roughen, changed, prior)
    return torch.where(drop < config.dropout, torch.zeros_like(prior), prior)


def dilate(x: Float[Tensor, "b 1 h w"], radius: int) -> Float[Tensor, "b 1 h w"]:
    """Return each pixel's largest neighbour in a square; nothing comes from outside.

    A running maximum whose window doubles, which on a CPU is forty times as quick as max-pooling.
    """
    x = F.pad(x, (radius,) * 4)
    for dim in (2, 3):
        window = 1
        while window < 2 * radius + 1:
            step = min(window, 2 * radius + 1 - window)
            rest = x.shape[dim] - step
            x = torch.maximum(x.narrow(dim, 0, rest), x.narrow(dim, step, rest))
            window += step
    return x


def blur(x: Float[Tensor, "b 1 h w"], radius: int) -> Float[Tensor, "b 1 h w"]:
    """Blur with a Gaussian of half the radius; quicker with the images as channels."""
    sigma, kernel = radius / 2, 2 * radius + 1
    blurred: Tensor = gaussian_blur2d(x.transpose(0, 1), (kernel, kernel), (sigma, sigma))
    return blurred.transpose(0, 1)
