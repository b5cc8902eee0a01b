"""Choose the device and precision of a process."""

import platform
from pathlib import Path

import torch

from mtil.config import TrainConfig
from mtil.models.memory import limit_gpu_memory


def prepare_device(gpus: float) -> torch.device:
    """Return the device of an actor with `gpus` reserved GPUs.

    On a GPU, use at most the reserved share of its memory; on a CPU, use one thread.
    """
    # The reservation decides: an actor without reserved GPUs may see the GPUs of other actors.
    if gpus:
        limit_gpu_memory(gpus)
        return torch.device("cuda")
    # One thread: as many actors as CPUs run at once, and every actor sums in the same order.
    torch.set_num_threads(1)
    return torch.device("cpu")


def should_use_bf16(config: TrainConfig, device: torch.device) -> bool:
    """Return whether to compute in bf16 under autocast."""
    if config.precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return config.precision == "bf16"


def describe_device(device: torch.device) -> str:
    """Return the name of a GPU, or of the processor with its threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{_processor_name()}, {threads} thread{'s' * (threads > 1)}"


def _processor_name() -> str:
    """Return the name of the processor, or the architecture if the name is unknown."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:  # only Linux has the file
        lines = []
    names = [value for name, _, value in (line.partition(":") for line in lines)
             if name.strip() == "model name"]  # fmt: skip
    return names[0].strip() if names else platform.machine()
