"""Size of a report of many images, and the seconds to make and to open the page.

    python -m benchmarks.report [--num-images 2000]

An untrained small network scores phantoms with two passes and a zoom pass. `mtil report` makes the
page. Debian's Chromium opens the page, if installed.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import mtil
from benchmarks.common import show
from mtil import phantom
from mtil.config import config_from_dict
from mtil.data.dataset import manifest as manifests
from mtil.data.prepare.pipeline import Settings, prepare
from mtil.data.prepare.sources import CollectionSource
from mtil.models import TwoTaskNetwork
from mtil.run.checkpoint import TrainedModel
from mtil.run.folder import Run
from mtil.run.plan import Train
from mtil.storage import open_store

STORED = 256
FOLDS = 2


def make_run(folder: Path, num_images: int) -> str:
    """Score all images of a data set with untrained models. Return the run's URI."""
    phantom.write_phantoms(folder / "busi", num_images=num_images, seed=0, image_size=STORED)
    data = str(folder / "data")
    prepare(
        [CollectionSource(uri=str(folder / "busi"), layout="busi")],
        data,
        Settings(image_size=STORED, num_folds=FOLDS),
    )
    config = config_from_dict(
        {
            "data": {"image_size": 64},
            "model": {"encoder": {"name": "resnet10_tiny", "pretrained": False}},
            "circle": {"maps": "recycle"},
            "zoom": {"num_windows": 1},
        }
    )
    fingerprint = manifests.load_manifest(open_store(data)).fingerprint
    run = Run.create(str(folder / "run"), config, data, fingerprint)
    for fold in range(FOLDS):
        torch.manual_seed(fold)
        model = TrainedModel(
            config=config,
            weights=TwoTaskNetwork(config.model).state_dict(),
            fingerprint=fingerprint,
            fold=fold,
            source_size=STORED,
            epoch=0,
            temperature=1.0,
            threshold=0.5,
            presence_temperature=1.0,
        )
        run.commit(Train(0, fold), model, num_epochs=1, seconds=1.0, metrics={"dice": 0.0})
    mtil.evaluate(run.uri)
    return run.uri


def open_in_browser(page: Path) -> float | None:
    """Return the seconds until a page is loaded; None without a browser."""
    program = shutil.which("chromium")
    if program is None:
        return None
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        view = browser.new_page()
        start = time.perf_counter()
        view.goto(f"file://{page}", wait_until="load")
        seconds = time.perf_counter() - start
        browser.close()
    return seconds


def measure(num_images: int) -> dict[str, Any]:
    """Make and open a report."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        uri, page = make_run(folder, num_images), folder / "report.html"
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "mtil", "report", uri, "--to", str(page), "--json"],
            check=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        seconds = time.perf_counter() - start
        opened = [open_in_browser(page) for _ in range(3)]
    return {
        "images": json.loads(done.stdout)["images"],
        "megabytes": {"value": json.loads(done.stdout)["bytes"] / 1e6, "goal": 30},
        "seconds_to_make": {"value": seconds, "goal": 120},
        "seconds_to_open": {"values": opened, "goal": 2},
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--num-images", type=int, default=2000)
    show(measure(parser.parse_args().num_images))


if __name__ == "__main__":
    main()
