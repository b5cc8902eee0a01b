"""Where a process computes, and in which precision."""

import torch

from mtil.config import TrainConfig


def own_device(gpus: float) -> torch.device:
    """Return where an actor computes that has reserved so many GPUs, and get it ready for that.

    One that has reserved none may see GPUs all the same, which are others'. On a CPU it computes
    with one thread: there are as many actors as CPUs, and each adds in the same order.
    """
    if gpus:
        return torch.device("cuda")
    torch.set_num_threads(1)
    return torch.device("cpu")


def wants_bf16(config: TrainConfig, device: torch.device) -> bool:
    """Say whether to compute in bf16 under autocast."""
    if config.precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return config.precision == "bf16"
