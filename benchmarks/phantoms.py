"""Separation of benign and malignant phantoms, by single numbers and by a small network.

    python -m benchmarks.phantoms [--num-images 1500] [--image-size 128] [--max-views 1]

Single numbers of an image (brightness, area, marks ...) are scored by the AUC between benign and
malignant images: no number should separate the classes, but the network should. The network of
34,000 weights learns from 64-pixel crops around the lesions of a seed and is scored on the crops of
a second seed. The audit's search for near-copies shows whether views of a patient are joined.
"""

import argparse
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from benchmarks.common import show
from mtil import phantom
from mtil.data.audit.duplicates import describe_image, find_near_copies
from mtil.phantom.cohort import draw_cohort

_TRAINING_SEED, _TEST_SEED = 101, 202
_TEST_SHARE = 0.4
_CROP = 64
_NUM_EPOCHS, _BATCH = 20, 32
_NUM_RESAMPLES = 1000


def drawn(
    num_images: int, seed: int, image_size: int, max_views: int
) -> Iterator[tuple[int, phantom.Phantom]]:
    """Yield patient and image of all originals of a collection."""
    originals = draw_cohort(num_images, seed, max_views)
    for index, patient in enumerate(originals.patients.tolist()):
        view = None if originals.views is None else int(originals.views[index])
        yield patient, phantom.draw_phantom(seed, patient, image_size, view)


def numbers(drawing: phantom.Phantom) -> dict[str, float]:
    """Return numbers of an image with a lesion, as candidates for a rule with a threshold."""
    gray, mask = drawing.gray.astype(np.float64), np.logical_or.reduce(drawing.masks)
    height, width = gray.shape
    top, bottom, left, right = _box(mask)
    margin = 8
    around = np.s_[max(top - margin, 0) : bottom + margin, max(left - margin, 0) : right + margin]
    below = gray[bottom : bottom + height // 8, left:right]
    axes = np.linalg.eigvalsh(np.cov(np.stack(np.nonzero(drawing.masks[0]))))
    return {
        "brightness": gray.mean(),
        "standard deviation": gray.std(),
        "share of dark pixels": (gray < 20).mean(),
        "share of bright pixels": (gray > 200).mean(),
        "lower third": gray[-height // 3 :].mean(),
        "height": height,
        "width": width,
        "shape": height / width,
        "lesion's area": mask.sum(),
        "lesion's share": mask.mean(),
        "lesion's brightness": gray[mask].mean(),
        "lesion's standard deviation": gray[mask].std(),
        "lesion's contrast to the image": gray[mask].mean() - gray[~mask].mean(),
        "lesion's contrast to its margin": gray[mask].mean() - gray[around][~mask[around]].mean(),
        "lesion's box": (right - left) / (bottom - top),
        "lesion's axes": np.sqrt(axes[1] / axes[0]),
        "lesion's row": (top + bottom) / (2 * height),
        "lesion's column": (left + right) / (2 * width),
        "below the lesion": below.mean() if below.size else 0.0,
        "below the lesion less the mean": below.mean() - gray.mean() if below.size else 0.0,
        "number of lesions": len(drawing.masks),
        "text": drawing.text,
        "calipers": drawing.calipers,
        "marks": drawing.text or drawing.calipers,
    }


def crop(drawing: phantom.Phantom) -> npt.NDArray[np.float32]:
    """Return a square crop (64, 64) around all lesions, with values in [0, 1]."""
    top, bottom, left, right = _box(np.logical_or.reduce(drawing.masks))
    half = 0.8 * max(bottom - top, right - left) + 4
    row, column = (top + bottom) / 2, (left + right) / 2
    box = tuple(round(at) for at in (column - half, row - half, column + half, row + half))
    image = Image.fromarray(drawing.gray).crop(box)  # type: ignore[arg-type]
    resized = image.resize((_CROP, _CROP), Image.Resampling.BILINEAR)
    return np.asarray(resized, np.float32) / np.float32(255)


def _box(mask: npt.NDArray[np.bool_]) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(mask)
    return int(rows.min()), int(rows.max()) + 1, int(columns.min()), int(columns.max()) + 1


def collection(num_images: int, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Draw images. Return numbers, crops and classes of tumours, and counts of joined pairs."""
    found: dict[str, Any] = {"numbers": [], "crops": [], "malignant": []}
    patients, descriptions = [], []
    for patient, drawing in drawn(num_images, seed, options.image_size, options.max_views):
        patients.append(patient)
        descriptions.append(describe_image(drawing.gray))
        if drawing.label != phantom.NORMAL:
            found["numbers"].append(numbers(drawing))
            found["crops"].append(crop(drawing))
            found["malignant"].append(drawing.label == phantom.MALIGNANT)
    pairs = find_near_copies(
        np.stack([one.hashes for one in descriptions]),
        np.stack([one.thumb for one in descriptions]),
    )
    _, counts = np.unique(patients, return_counts=True)
    found["joined"] = {
        "patients": len(counts),
        "pairs of views": int((counts * (counts - 1) // 2).sum()),
        "joined pairs of views": sum(patients[pair.i] == patients[pair.j] for pair in pairs),
        "joined pairs of patients": sum(patients[pair.i] != patients[pair.j] for pair in pairs),
    }
    return found


def trained(crops: Tensor, malignant: Tensor) -> nn.Module:
    """Train a small network on crops (n, 1, 64, 64)."""
    torch.manual_seed(0)
    channels = (1, 12, 24, 48, 48)
    blocks = [
        nn.Sequential(
            nn.Conv2d(before, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        for before, after in pairwise(channels)
    ]
    pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(channels[-1], 1))
    network = nn.Sequential(*blocks, *pooled)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=1e-2)
    num_steps = len(crops) // _BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 6e-3, total_steps=_NUM_EPOCHS * num_steps
    )
    for _ in range(_NUM_EPOCHS):
        for batch in torch.randperm(len(crops))[: num_steps * _BATCH].view(-1, _BATCH):
            mirrored = torch.rand(_BATCH, 1, 1, 1) < 0.5
            images = torch.where(mirrored, crops[batch].flip(3), crops[batch])
            loss = nn.functional.binary_cross_entropy_with_logits(
                network(images)[:, 0], malignant[batch]
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return network.eval()


def network_auc(training: dict[str, Any], test: dict[str, Any]) -> dict[str, Any]:
    """Return the AUC of a small network, with a 95 % interval over the test images."""
    (crops, malignant), (unseen, truth) = (
        (torch.tensor(np.stack(of["crops"]))[:, None] - 0.3, np.array(of["malignant"]))
        for of in (training, test)
    )
    start = time.perf_counter()
    network = trained(crops, torch.tensor(malignant, dtype=torch.float32))
    seconds = time.perf_counter() - start
    with torch.no_grad():
        scores = network(unseen)[:, 0].numpy()
    rng = np.random.default_rng(0)
    draws = [rng.integers(len(truth), size=len(truth)) for _ in range(_NUM_RESAMPLES)]
    low, high = np.quantile([roc_auc_score(truth[at], scores[at]) for at in draws], [0.025, 0.975])
    return {
        "auc": roc_auc_score(truth, scores),
        "interval": [low, high],
        "weights": sum(weight.numel() for weight in network.parameters()),
        "training images": len(crops),
        "test images": len(truth),
        "seconds": seconds,
    }


def main() -> None:
    """Draw, score and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-images", type=int, default=1500)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--max-views", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    training = collection(options.num_images, _TRAINING_SEED, options)
    test = collection(round(_TEST_SHARE * options.num_images), _TEST_SEED, options)
    rules = {
        name: roc_auc_score(training["malignant"], [float(of[name]) for of in training["numbers"]])
        for name in training["numbers"][0]
    }
    show(
        {
            "options": vars(options),
            "near-copies": training["joined"],
            "single numbers": dict(sorted(rules.items(), key=lambda rule: -abs(rule[1] - 0.5))),
            "network": network_auc(training, test),
        }
    )


if __name__ == "__main__":
    main()
