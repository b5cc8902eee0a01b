"""Choose the device and precision of a process."""

import torch

from mtil.config import TrainConfig

CPU_MALLOC_SETTINGS = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
}
"""Environment of a process that trains on a CPU: glibc keeps freed activations for the next step.

Fresh pages from the kernel take a tenth of the time of a step on a CPU.
"""


def prepare_device(gpus: float) -> torch.device:
    """Return the device of an actor with `gpus` reserved GPUs; on a CPU, use one thread."""
    # The reservation decides, not `torch.cuda.is_available`: an actor without a reservation may see
    # the GPUs of other actors.
    if gpus:
        return torch.device("cuda")
    # One thread: as many actors as CPUs run at once, and every actor sums in the same order.
    torch.set_num_threads(1)
    return torch.device("cpu")


def should_use_bf16(config: TrainConfig, device: torch.device) -> bool:
    """Return whether to compute in bf16 under autocast."""
    if config.precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return config.precision == "bf16"
