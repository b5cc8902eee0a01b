"""Random augmentation of a training batch, on the batch's device.

All random numbers come from `ImageRandomness`, so the augmentation of an image does not depend on
the other images of the batch. Prior maps have separate random numbers: switching priors on or off
leaves the augmentation of the images unchanged.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from kornia.filters import gaussian_blur2d
from kornia.geometry.transform import get_affine_matrix2d, warp_affine
from torch import Tensor

from mtil.config import AugmentConfig, PriorConfig
from mtil.training.randomness import ImageRandomness, Purpose
from mtil.training.tensors import move_to_device

AugmentedBatch = tuple[Tensor, Tensor, Tensor | None]

BLUR_SIGMAS = (0.5, 1.0)
"""Least and largest standard deviation of a blur, in pixels of the network's input (nnU-Net's)."""
LOWEST_RESOLUTION = 0.5
"""Smallest side of an image of low resolution, as a share of the side (nnU-Net's)."""
ROUGHEN_RADIUS_SHARE = 0.02
"""Radius of erosion, dilation and blur of a prior map, as a share of the image side."""


class BatchAugmentation:
    """Augment image, mask and prior map of a batch.

    Four changes, in order: a geometric transform shared by image, mask and prior map; blur and low
    resolution of the image; a change of its contrast, brightness, gamma and noise; a degradation of
    the prior map. `augment.enabled` switches all but the last.
    """

    def __init__(self, config: AugmentConfig, prior: PriorConfig) -> None:
        self.config = config
        self.prior = prior

    def __call__(
        self,
        image: Float[Tensor, "b 1 h w"],
        mask: Float[Tensor, "b 1 h w"],
        prior: Float[Tensor, "b 1 h w"] | None,
        random: ImageRandomness,
    ) -> AugmentedBatch:
        """Return the augmented batch.

        Args:
            image: gray values in [0, 1].
            mask: 1 in the lesion, 0 elsewhere; stays binary.
            prior: lesion probability from the previous round, in [0, 1].
            random: random numbers of the images.
        """
        if self.config.enabled:
            matrix = draw_affine(self.config, random, *image.shape[-2:]).to(image.dtype)
            image, mask, prior = apply_affine(
                move_to_device(matrix, image.device), image, mask, prior
            )
            image = lower_quality(self.config, image, random)
            image = change_appearance(self.config, image, random)
        if prior is not None:
            # Maps of training images tend to be better than maps of new images. The degradation
            # keeps the network from relying on the prior, so `augment.enabled` does not matter.
            prior = degrade_prior(self.prior, prior, random)
        return image, mask, prior


def draw_affine(
    config: AugmentConfig, random: ImageRandomness, height: int, width: int
) -> Float[Tensor, "b 2 3"]:
    """Draw one matrix an image, from source to target pixels.

    Flips, scale and aspect come first, then the rotation, then the shift.
    """
    # On the CPU: launching these many small kernels on a GPU takes longer than computing here.
    # In float64: images in float64 get a matrix without rounding to float32.
    draw = random.uniforms(Purpose.AFFINE, 7).T.double()
    signed = 2 * draw - 1
    flips = torch.stack([draw[0] < config.horizontal_flip, draw[1] < config.vertical_flip], dim=1)
    scale = (1 + config.scale * signed[2])[:, None] * (1 - 2 * flips.double())
    stretch = (1 + config.aspect) ** (signed[6] / 2)
    scale = scale * torch.stack([stretch, 1 / stretch], dim=1)
    angle = config.rotation * signed[3]
    sides = torch.tensor([width, height], dtype=draw.dtype)
    shift = config.translation * signed[4:6].T * sides
    centre = ((sides - 1) / 2).expand(len(shift), 2)
    matrix: Tensor = get_affine_matrix2d(shift, centre, scale, angle)
    return matrix[:, :2]


def apply_affine(
    matrix: Float[Tensor, "b 2 3"],
    image: Float[Tensor, "b 1 h w"],
    mask: Float[Tensor, "b 1 h w"],
    prior: Float[Tensor, "b 1 h w"] | None,
) -> AugmentedBatch:
    """Apply one geometric transform to a batch. Pixels from outside become 0 in every tensor."""
    height, width = image.shape[-2:]
    interpolated = image if prior is None else torch.cat([image, prior], dim=1)
    interpolated = warp_affine(interpolated, matrix, (height, width), mode="bilinear")
    # Nearest neighbour keeps the mask binary.
    mask = warp_affine(mask, matrix, (height, width), mode="nearest")
    return interpolated[:, :1], mask, None if prior is None else interpolated[:, 1:]


def lower_quality(
    config: AugmentConfig, image: Float[Tensor, "b 1 h w"], random: ImageRandomness
) -> Float[Tensor, "b 1 h w"]:
    """Blur some of the images, and make some smaller and enlarge them again."""
    if not (config.blur or config.low_resolution):
        return image
    blurred, sigma_draw, lowered, side_draw = random.uniforms(Purpose.QUALITY, 4).T.tolist()
    low, high = BLUR_SIGMAS
    height, width = image.shape[-2:]
    changed = []
    for index, one in enumerate(image[:, None]):
        if blurred[index] < config.blur:
            sigma = low + (high - low) * sigma_draw[index]
            kernel = 2 * math.ceil(3 * sigma) + 1
            one = gaussian_blur2d(one, (kernel, kernel), (sigma, sigma))
        if lowered[index] < config.low_resolution:
            share = LOWEST_RESOLUTION + (1 - LOWEST_RESOLUTION) * side_draw[index]
            sides = (max(1, round(height * share)), max(1, round(width * share)))
            small = F.interpolate(one, sides, mode="bilinear", antialias=True)
            one = F.interpolate(small, (height, width), mode="bilinear")
        changed.append(one)
    return torch.cat(changed)


def change_appearance(
    config: AugmentConfig, image: Float[Tensor, "b 1 h w"], random: ImageRandomness
) -> Float[Tensor, "b 1 h w"]:
    """Change contrast (about the mean), brightness and gamma, then add speckle and noise."""
    draw = _draw_factors(random, Purpose.APPEARANCE, 5, like=image)
    signed = 2 * draw - 1
    mean = image.mean(dim=(1, 2, 3), keepdim=True)
    image = mean + (image - mean) * (1 + config.contrast * signed[0])
    image = (image + config.brightness * signed[1]).clamp(0, 1)
    image = image ** (1 + config.gamma * signed[2])
    noise = random.normals(Purpose.SPECKLE, image.shape[1:], image.dtype)
    image = image * (1 + config.speckle * draw[3] * noise)
    if config.noise:
        noise = random.normals(Purpose.NOISE, image.shape[1:], image.dtype)
        image = image + config.noise * draw[4] * noise
    return image.clamp(0, 1)


def degrade_prior(
    config: PriorConfig,
    prior: Float[Tensor, "b 1 h w"],
    random: ImageRandomness,
) -> Float[Tensor, "b 1 h w"]:
    """Erode, dilate or blur some of the maps and zero others.

    A share `config.roughen` of the maps is eroded, dilated or blurred, with equal probability. A
    share `config.dropout` is set to zero.
    """
    drop, roughen, kind = _draw_factors(random, Purpose.PRIOR, 3, like=prior)
    radius = max(1, round(ROUGHEN_RADIUS_SHARE * prior.shape[-1]))
    roughened = torch.where(
        kind < 1 / 3,
        1 - dilate(1 - prior, radius),
        torch.where(kind < 2 / 3, dilate(prior, radius), blur(prior, radius)),
    )
    prior = torch.where(roughen < config.roughen, roughened, prior)
    return torch.where(drop < config.dropout, torch.zeros_like(prior), prior)


def dilate(x: Float[Tensor, "b 1 h w"], radius: int) -> Float[Tensor, "b 1 h w"]:
    """Return the maximum of each pixel's square neighbourhood; outside counts as 0."""
    # A running maximum whose window doubles is forty times as fast as max-pooling on a CPU.
    x = F.pad(x, (radius,) * 4)
    for dim in (2, 3):
        window = 1
        while window < 2 * radius + 1:
            step = min(window, 2 * radius + 1 - window)
            length = x.shape[dim] - step
            x = torch.maximum(x.narrow(dim, 0, length), x.narrow(dim, step, length))
            window += step
    return x


def blur(x: Float[Tensor, "b 1 h w"], radius: int) -> Float[Tensor, "b 1 h w"]:
    """Blur with a Gaussian whose standard deviation is half the radius."""
    sigma, kernel = radius / 2, 2 * radius + 1
    # With the images as channels, kornia's filter is faster.
    blurred: Tensor = gaussian_blur2d(x.transpose(0, 1), (kernel, kernel), (sigma, sigma))
    return blurred.transpose(0, 1)


def _draw_factors(
    random: ImageRandomness, purpose: Purpose, num: int, *, like: Float[Tensor, "b 1 h w"]
) -> Float[Tensor, "n b 1 1 1"]:
    """Return `num` uniform numbers per image, on the device and in the dtype of `like`."""
    draw = move_to_device(random.uniforms(purpose, num), like.device)
    return draw.to(like.dtype).T[..., None, None, None]
