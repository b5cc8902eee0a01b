"""Batch normalisation over the images of all workers.

Plain batch normalisation uses the statistics of one worker's images, so the model would depend on
the number of workers.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtil.training.exchange import LOOPBACK, SmallSums, connect_workers


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` with the statistics of all workers, for processes on CPUs.

    The equivalent of `nn.SyncBatchNorm`, which needs GPUs. Names and shapes of parameters and
    buffers are those of `nn.BatchNorm2d`. Every worker must have at least one image in each step.
    """

    sums: SmallSums
    """The workers."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Normalise (b, c, h, w); in evaluation mode by the running statistics."""
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        output, mean, unbiased_variance = _GlobalNormalization.apply(  # type: ignore[no-untyped-call]
            input, self.weight, self.bias, self.eps, self.sums
        )
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(unbiased_variance, self.momentum)
        normalised: Tensor = output
        return normalised


class _GlobalNormalization(torch.autograd.Function):
    """Normalise channels by mean and variance over all workers, with the exact gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        workers: SmallSums,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the output, and the mean and unbiased variance of each channel."""
        count = image.numel() // image.shape[1]
        # The sums that plain batch normalisation takes: of the values, and of squared deviations.
        mean, variance = torch.ops.aten.batch_norm_update_stats(image, None, None, 0.0)
        # In float64: the sum of squares minus the squared mean loses digits.
        mean, variance = mean.double(), variance.double()
        sums = count * torch.cat([mean, variance + mean**2, mean.new_ones(1)])
        workers.add(sums)
        total = sums[-1]
        mean, square = (sums[:-1] / total).chunk(2)
        variance = (square - mean**2).clamp_min(0)
        kind = weight.dtype
        ctx.save_for_backward(
            image, weight, mean.to(kind), (variance + eps).rsqrt().to(kind), total
        )
        ctx.eps, ctx.workers = eps, workers
        unbiased = variance * total / (total - 1).clamp_min(1)
        mean, unbiased = mean.to(kind), unbiased.to(kind)
        ctx.mark_non_differentiable(mean, unbiased)
        output = F.batch_norm(image, mean, variance.to(kind), weight, bias, eps=eps)
        return output, mean, unbiased

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of image, weight and bias of this worker."""
        image, weight, mean, scale, total = ctx.saved_tensors
        grad = grads[0]
        _, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad, image, weight, None, None, mean, scale, True, ctx.eps, [False, True, True]
        )
        sums = torch.cat([grad_weight, grad_bias]).double()
        ctx.workers.add(sums)
        mean_product, mean_grad = (sums / total).to(scale.dtype).chunk(2)
        # weight * scale * (grad - mean_grad - normalised * mean_product), as two passes over memory
        factor = weight * scale
        grad_image = F.batch_norm(
            image,
            mean,
            torch.ones_like(mean),
            -factor * scale * mean_product,
            -factor * mean_grad,
            eps=0.0,
        )
        grad_image.addcmul_(grad, factor.to(grad.dtype)[:, None, None])
        return grad_image, grad_weight, grad_bias, None, None


def synchronize_batch_norm(
    network: nn.Module, device: torch.device, address: str = LOOPBACK
) -> None:
    """Make a network's layers of batch normalisation use the images of all workers.

    The layers become `nn.SyncBatchNorm` on GPUs and `GlobalBatchNorm2d` on CPUs. Parameters and
    buffers stay the same tensors under the same names. PyTorch's default process group must exist.

    Args:
        network: a network whose outermost module is no batch normalisation.
        device: the network's device.
        address: IP address of rank 0's machine, as seen from the machines of the other workers.
    """
    if device.type != "cpu":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        return
    workers = connect_workers(address)
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = GlobalBatchNorm2d
            cast(GlobalBatchNorm2d, module).sums = workers
