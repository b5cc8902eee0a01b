"""Choose the device and precision of a process."""

import torch

from mtil.config import TrainConfig


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
