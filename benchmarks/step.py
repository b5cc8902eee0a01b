"""Seconds of a training step by network, and of an epoch with and without Ray.

    python -m benchmarks.step [--image-size 256] [--batch-size 8] [--rounds 5]

Three networks take turns on a batch: mtil's network, the baseline (a U-Net with a classifier on an
equal encoder) and, for comparison, MONAI's FlexibleUNet with a classifier. All networks train with
mtil's losses and optimiser. Then three ways of training an epoch take turns: the bare engine with
batches in memory, and a single Ray worker with rows resident or streamed from an S3 server. On a
GPU, fp32 and bf16 are measured, and the networks also with `torch.compile`.
"""

import argparse
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.common import images, prepared, show, spread
from cluster import object_store
from mtil.circle.request import request_trainings
from mtil.config import Config, config_from_dict
from mtil.data.dataset import manifest as manifests
from mtil.data.dataset.batches import Batch, EpochPlan, TableRows
from mtil.data.dataset.epochs import iterate_resident_epoch
from mtil.data.dataset.selection import select_rows
from mtil.data.dataset.shards import read_shard
from mtil.models import TwoTaskNetwork
from mtil.models.network import NetworkOutput
from mtil.run import names
from mtil.run.folder import Run
from mtil.run.plan import Train
from mtil.storage import open_store
from mtil.training.engine import TrainingEngine, TrainingStep, make_optimizer
from mtil.training.losses import TrainingObjective

BUCKET = "benchmark"
DATA = f"s3://{BUCKET}/data"
EPOCHS = 3
STEPS_A_TURN = 3
MALIGNANT_SHARE = 0.3
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class FlexibleUNet(nn.Module):
    """MONAI's FlexibleUNet on ResNet-18, with a linear classifier on the deepest features."""

    def __init__(self) -> None:
        super().__init__()
        from monai.networks.nets.flexible_unet import FlexibleUNet

        self.network = FlexibleUNet(
            in_channels=3, out_channels=1, backbone="resnet18", pretrained=False, spatial_dims=2
        )
        self.encoder = self.network.encoder
        self.classifier = nn.Linear(512, 1)

    def forward(
        self, image: Tensor, prior: Tensor | None = None, draws: Tensor | None = None
    ) -> NetworkOutput:
        """Predict like mtil's networks, but ignore prior maps and dropout; no side outputs."""
        features = self.encoder(image.expand(-1, 3, -1, -1))
        decoded = self.network.decoder(features, self.network.skip_connect)
        malignant = self.classifier(features[-1].mean((2, 3)))[:, 0]
        return NetworkOutput(
            mask=self.network.segmentation_head(decoded),
            side=(),
            malignant=malignant,
            presence=malignant,
        )


def stepper(
    network: nn.Module, config: Config, batch: tuple[Tensor, Tensor, Tensor], *, bf16: bool
) -> Callable[[], float]:
    """Return a function to run a training step and return the seconds."""
    objective = TrainingObjective(config.loss, MALIGNANT_SHARE).to(DEVICE)
    network.to(DEVICE, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = make_optimizer(network, objective, config.train)  # type: ignore[arg-type]
    module: nn.Module = torch.compile(network) if config.train.compile else network  # type: ignore[assignment]
    step = TrainingStep(module, objective)
    image, mask, label = (tensor.to(DEVICE) for tensor in batch)
    image = image.contiguous(memory_format=torch.channels_last)

    def run() -> float:
        start = time.perf_counter()
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=bf16):
            terms = step(image, mask, label)
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(step.parameters(), config.train.clip_norm)
        optimizer.step()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return run


def networks(image_size: int, batch_size: int, rounds: int) -> dict[str, Any]:
    """Measure training steps of the networks in turn."""
    generator = torch.Generator().manual_seed(0)
    batch = (
        torch.rand(batch_size, 1, image_size, image_size, generator=generator),
        (torch.rand(batch_size, 1, image_size, image_size, generator=generator) > 0.9).float(),
        torch.arange(batch_size) % 2,
    )
    variants = [(False, False)]
    if DEVICE.type == "cuda":
        variants = list(itertools.product((False, True), (False, True)))
    steppers: dict[str, Callable[[], float]] = {}
    parameters: dict[str, int] = {}
    for bf16, compiled in variants:
        name = ("bf16" if bf16 else "fp32") + ("_compiled" if compiled else "")
        config = config_from_dict({"train": {"compile": compiled}})
        baseline = config_from_dict({"model": {"baseline": True}}, config)
        for kind, network in {
            "full": TwoTaskNetwork(config.model),
            "baseline": TwoTaskNetwork(baseline.model),
            "monai_flexible_unet": FlexibleUNet(),
        }.items():
            steppers[f"{kind}_{name}"] = stepper(network, config, batch, bf16=bf16)
            parameters[kind] = sum(parameter.numel() for parameter in network.parameters())
    seconds: dict[str, list[float]] = {name: [] for name in steppers}
    for run in steppers.values():
        run()  # allocates, compiles
        run()
    for _ in range(rounds):
        for name, run in steppers.items():
            seconds[name] += [run() for _ in range(STEPS_A_TURN)]
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    return {
        "image_size": image_size,
        "batch_size": batch_size,
        "threads": torch.get_num_threads(),
        "parameters": parameters,
        "seconds_per_step": {name: spread(values) for name, values in seconds.items()},
        "images_per_second": {name: batch_size / value for name, value in medians.items()},
        "goals": {
            "full_over_baseline": {
                "value": medians["full_fp32"] / medians["baseline_fp32"], "goal": 1.25
            }
        },
    }  # fmt: skip


def epoch_config(mode: str, precision: str) -> Config:
    """Return the configuration of a worker: image size of the `cpu` preset, on a GPU of `base`."""
    on_gpu = DEVICE.type == "cuda"
    return config_from_dict(
        {
            "data": {"image_size": 256 if on_gpu else 160, "mode": mode},
            "train": {
                "num_epochs": EPOCHS,
                "num_workers": 1,
                "batch_size": 16,
                "gpus_per_worker": 1 if on_gpu else 0,
                "precision": precision,
            },
        }
    )


def memory_batches(data_uri: str, config: Config, epoch: int) -> list[Batch]:
    """Return the training batches of an epoch of fold 0."""
    store = open_store(data_uri)
    manifest = manifests.load_manifest(store)
    plan = EpochPlan(
        manifest=manifest,
        selection=select_rows(manifest, 0, "train"),
        seed=config.seed,
        rank=0,
        num_workers=1,
        batch_size=config.train.batch_size,
        streams=config.data.streams,
        shuffle_shards=config.data.shuffle_shards,
    )
    rows = TableRows([read_shard(store, shard) for shard in manifest.shards], plan.selection)
    return list(iterate_resident_epoch(rows, plan, epoch))


def bare_epochs(config: Config) -> list[float]:
    """Train by the engine alone on batches in memory. Return the seconds of each epoch."""
    epochs = [memory_batches(DATA, config, epoch) for epoch in range(EPOCHS)]
    engine = TrainingEngine(
        config, steps_per_epoch=len(epochs[0]), malignant_share=MALIGNANT_SHARE, device=DEVICE
    )
    seconds = []
    for epoch, batches in enumerate(epochs):
        start = time.perf_counter()
        for _ in engine.train_epoch(batches, epoch=epoch):
            pass
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds


def ray_epochs(config: Config, run_uri: str) -> list[dict[str, float]]:
    """Train the epochs of `bare_epochs` through Ray. Return the history of the run."""
    from mtil.distributed.runtime import cluster
    from mtil.distributed.training.folds import run_trainings

    with cluster.connect_ray():
        run_trainings(request_trainings(DATA, run_uri, config, [0]), lambda line: None)
    run = Run.open(run_uri)
    lines = run.store.read(names.history_name(Train(0, 0))).splitlines()
    return [json.loads(line) for line in lines]


def epochs(rounds: int, ways: tuple[str, ...]) -> dict[str, Any]:
    """Measure epochs with and without Ray in turn. The first epoch of a training is not counted."""
    found: dict[str, Any] = {}
    for precision in ("fp32", "bf16") if DEVICE.type == "cuda" else ("fp32",):
        seconds: dict[str, list[float]] = {way: [] for way in ("bare", *ways)}
        waits: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(rounds):
            seconds["bare"] += bare_epochs(epoch_config("resident", precision))[1:]
            for mode, shares in waits.items():
                run_uri = f"s3://{BUCKET}/run-{precision}-{mode}-{turn}"
                history = ray_epochs(epoch_config(mode, precision), run_uri)[1:]
                seconds[mode] += [epoch["seconds"] for epoch in history]
                shares += [epoch["data_wait_share"] for epoch in history]
        bare = float(np.median(seconds["bare"]))
        found[precision] = {
            "seconds_per_epoch": {name: spread(values) for name, values in seconds.items()},
            "data_wait_share": {mode: spread(shares) for mode, shares in waits.items()},
            "goals": {
                **{
                    f"{mode}_over_bare": {
                        "value": float(np.median(seconds[mode])) / bare, "goal": 1.10
                    }
                    for mode in waits
                },
                **{
                    f"{mode}_data_wait_share": {"value": float(np.median(shares)), "goal": 0.05}
                    for mode, shares in waits.items()
                },
            },
        }  # fmt: skip
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each network")
    parser.add_argument("--epoch-rounds", type=int, default=2, help="turns with and without Ray")
    parser.add_argument("--no-ray", action="store_true", help="the bare loop only")
    options = parser.parse_args()
    steps = networks(options.image_size, options.batch_size, options.rounds)
    with tempfile.TemporaryDirectory(prefix="mtil-benchmark-") as folder:
        scratch = Path(folder)
        with object_store.run_object_store(scratch / "s3", BUCKET) as environment:
            os.environ.update(environment)
            source, groups = images(scratch)
            prepared(source, groups, DATA, 256)
            measured_epochs = epochs(
                options.epoch_rounds, () if options.no_ray else ("resident", "streaming")
            )
    show({"benchmark": "step", "images": source.name, "networks": steps, "epochs": measured_epochs})


if __name__ == "__main__":
    main()
