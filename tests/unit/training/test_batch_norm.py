"""Batch normalisation over several processes, against PyTorch's on the whole batch."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtil.training.batch_norm import GlobalBatchNorm2d, synchronize_batch_norm
from mtil.training.group import Group
from tests.unit.groups import run_group

CPU = torch.device("cpu")
SHARES = {2: (3, 4), 3: (1, 4, 2)}
"""Images of each worker, by number of workers."""


def _layer(dtype: torch.dtype) -> nn.BatchNorm2d:
    torch.manual_seed(1)
    layer = nn.BatchNorm2d(5).to(dtype)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    return layer


def _synchronised(dtype: torch.dtype) -> nn.Module:
    network = nn.Sequential(_layer(dtype))
    synchronize_batch_norm(network, CPU)
    return network[0]


def _images(dtype: torch.dtype, mean: float) -> tuple[Tensor, Tensor]:
    """Return images and the gradient of their outputs."""
    torch.manual_seed(2)
    return mean + 3 * torch.randn(7, 5, 4, 6, dtype=dtype), torch.randn(7, 5, 4, 6, dtype=dtype)


def _run(layer: nn.Module, image: Tensor, grad: Tensor) -> dict[str, Any]:
    image = image.clone().requires_grad_()
    for _ in range(2):  # the second step reads the running statistics of the first
        layer.zero_grad()
        image.grad = None
        output = layer(image)
        output.backward(grad)
    return {
        "output": output.detach(),
        "grad": image.grad,
        "weight": layer.weight.grad,
        "bias": layer.bias.grad,
        "buffers": dict(layer.named_buffers()),
    }


@pytest.mark.parametrize("num_workers", [2, 3])
@pytest.mark.parametrize(
    ("dtype", "mean", "tolerance"),
    [(torch.float64, 100.0, 1e-11), (torch.float32, 1.0, 1e-5), (torch.float32, 1000.0, 1e-3)],
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_workers_together_compute_what_one_process_does(
    num_workers: int, dtype: torch.dtype, mean: float, tolerance: float, layout: torch.memory_format
) -> None:
    image, grad = _images(dtype, mean)
    image = image.contiguous(memory_format=layout)
    expected = _run(_layer(dtype), image, grad)

    def work(group: Group) -> dict[str, Any]:
        layer = _synchronised(dtype)
        sizes = SHARES[num_workers]
        result = _run(layer, image.split(sizes)[group.rank], grad.split(sizes)[group.rank])
        return result | {name: group.sum(result[name]) for name in ("weight", "bias")}

    results = run_group(num_workers, work)
    for name in ("output", "grad"):
        whole = torch.cat([result[name] for result in results])
        torch.testing.assert_close(whole, expected[name], rtol=tolerance, atol=tolerance)
    for result in results:
        for name in ("weight", "bias", "buffers"):
            torch.testing.assert_close(result[name], expected[name], rtol=tolerance, atol=tolerance)


def test_the_gradient_is_that_of_finite_differences() -> None:
    """Compare with the derivative of both workers' loss by every pixel of every worker."""
    image, _ = _images(torch.float64, 0.0)

    def work(group: Group) -> bool:
        layer = _synchronised(torch.float64)
        # Both processes take part in every call and need equal numbers of pixels.
        base = image.split((3, 4))[group.rank][:3, :, :2, :2].clone().requires_grad_()

        def loss(x: Tensor) -> Tensor:
            return (layer(x) ** 3).sum()

        value = loss(base)
        (gradient,) = torch.autograd.grad(value, base)
        total = torch.zeros_like(base)
        for mover in range(2):
            for index in range(base.numel()):
                difference = []
                for step in (1e-5, -1e-5):
                    moved = base.detach().clone()
                    if group.rank == mover:
                        moved.view(-1)[index] += step
                    difference.append(group.sum(loss(moved)))
                if group.rank == mover:
                    total.view(-1)[index] = (difference[0] - difference[1]) / 2e-5
        return torch.allclose(gradient, total, rtol=1e-6, atol=1e-6)

    assert run_group(2, work) == [True, True]


def test_names_and_values_stay_and_evaluation_is_pytorch_s() -> None:
    def work(group: Group) -> bool:
        network = nn.Sequential(nn.Conv2d(1, 5, 3), _layer(torch.float32))
        before = copy.deepcopy(network)
        synchronize_batch_norm(network, CPU)
        assert isinstance(network[1], GlobalBatchNorm2d)
        assert list(network.state_dict()) == list(before.state_dict())
        image = torch.rand(group.rank + 1, 1, 8, 8)  # no exchange: sizes may differ
        return torch.equal(network.eval()(image), before.eval()(image))

    assert run_group(2, work) == [True, True]
