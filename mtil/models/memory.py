"""Memory of machines and GPUs: a limit for shared GPUs, and a plain error when memory is short."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mtil.errors import OutOfMemoryError

_SIGNS = ("can't allocate memory", "_ALLOC_FAILED")
"""Parts of the messages of PyTorch, cuBLAS and cuDNN for a failed allocation. Only PyTorch's
failures on a GPU have a class of their own."""


def limit_gpu_memory(gpus: float) -> None:
    """Limit this process to its share of the current GPU's memory.

    A process that needs more fails. Without the limit, another process on the GPU might fail.

    Args:
        gpus: reserved GPUs. Only values between 0 and 1 are a share.
    """
    if 0 < gpus < 1:
        torch.cuda.set_per_process_memory_fraction(gpus)


@contextmanager
def explain_lack_of_memory(device: torch.device, purpose: str, remedy: str) -> Iterator[None]:
    """Raise mtil's error in place of PyTorch's errors about memory.

    Args:
        device: device of the computation in the block.
        purpose: use of the memory, as in "for a forward pass over 16 images".
        remedy: advice to the user, as in "begin a new run with `data.image_size` below 256".

    Raises:
        OutOfMemoryError: if the device has too little memory for the computation in the block.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_about_memory(error):
            raise
        place = "the GPU" if device.type == "cuda" else "this machine"
        message = f"The memory of {place} is too small {purpose}; {remedy}."
        raise OutOfMemoryError(message) from error


def _is_about_memory(error: RuntimeError | MemoryError) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(sign in str(error) for sign in _SIGNS)
