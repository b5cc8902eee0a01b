"""Errors about a lack of memory, and the limit of a process on a shared GPU."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from mtil.errors import OutOfMemoryError
from mtil.models.devices import prepare_device
from mtil.models.memory import explain_lack_of_memory, limit_gpu_memory

CPU, GPU = torch.device("cpu"), torch.device("cuda")
_TOO_MANY = 2**50
"""More numbers than any machine can store."""


def _allocate_tensor() -> None:
    torch.empty(_TOO_MANY)


def _allocate_array() -> None:
    np.empty(_TOO_MANY)


def _fail_on_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def _fail_in_cublas() -> None:
    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


@pytest.mark.parametrize(
    ("device", "fail", "place"),
    [
        (CPU, _allocate_tensor, "this machine"),
        (CPU, _allocate_array, "this machine"),
        (GPU, _fail_on_gpu, "the GPU"),
        (GPU, _fail_in_cublas, "the GPU"),
    ],
)
def test_a_failed_allocation_names_the_place_and_the_remedy(
    device: torch.device, fail: Callable[[], None], place: str
) -> None:
    sentence = rf"^The memory of {place} is too small for all; use less\.$"
    with (
        pytest.raises(OutOfMemoryError, match=sentence),
        explain_lack_of_memory(device, "for all", "use less"),
    ):
        fail()


def test_other_errors_stay_as_they_are() -> None:
    with (
        pytest.raises(RuntimeError, match="shapes cannot be multiplied"),
        explain_lack_of_memory(CPU, "for all", "use less"),
    ):
        torch.ones(2, 3) @ torch.ones(2, 3)


def test_only_a_share_of_a_gpu_limits_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", shares.append)
    for gpus in (0.0, 0.33, 1.0, 2.0):
        limit_gpu_memory(gpus)
    assert shares == [0.33]
    assert prepare_device(0.5) == GPU
    assert shares == [0.33, 0.5]
