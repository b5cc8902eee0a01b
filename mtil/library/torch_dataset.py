"""Samples in memory as a PyTorch data set."""

from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset

if TYPE_CHECKING:
    from mtil.library.dataset import SampleArrays


class TorchDataset(Dataset[dict[str, Any]]):
    """One item per sample; see `PreparedDataset.torch` for the keys of an item."""

    def __init__(self, samples: "SampleArrays") -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "sample_id": self.samples.sample_id[index],
            "image": torch.tensor(self.samples.image[index])[None].float() / 255,
            "mask": torch.tensor(self.samples.mask[index])[None].float(),
            "label": torch.tensor(self.samples.label[index]),
        }
