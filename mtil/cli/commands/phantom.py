"""`mtil phantom`: draw synthetic images in the BUSI layout."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from mtil.cli.flags import CommandParsers, add_command

if TYPE_CHECKING:
    from mtil.cli.console import CommandOutput


def add_phantom_command(commands: CommandParsers) -> None:
    """Add `mtil phantom`."""
    parser = add_command(
        commands, "phantom", run_phantom, "draw synthetic images in the BUSI layout"
    )
    parser.add_argument("out", metavar="OUT", help="an empty or new folder")
    parser.add_argument(
        "--num-images", type=int, default=240, help="number of images without near-copies (240)"
    )
    parser.add_argument(
        "--seed", type=int, default=0,
        help="0 or more; equal seeds give equal bytes, with any --num-workers (0)",
    )  # fmt: skip
    parser.add_argument(
        "--image-size", type=int, default=256,
        help="typical side in pixels, 64 to 4096; heights are 75 to 100 %% and widths 85 to "
        "125 %% of this value (256)",
    )  # fmt: skip
    parser.add_argument(
        "--max-views", type=int, default=1,
        help="largest number of images of a patient; patients.csv lists the patient of every "
        "image for `mtil prepare --groups` (1)",
    )  # fmt: skip
    parser.add_argument(
        "--num-duplicates", type=int, default=0,
        help="near-copies to add, at most --num-images, listed in duplicates.csv (0)",
    )  # fmt: skip
    parser.add_argument(
        "--num-workers", type=int,
        help="drawing processes (default: one per CPU); no effect on the images",
    )  # fmt: skip


def run_phantom(options: argparse.Namespace, output: "CommandOutput") -> None:
    """Draw the images and masks into OUT."""
    from mtil import phantom

    phantom.write_phantoms(
        Path(options.out),
        num_images=options.num_images,
        seed=options.seed,
        image_size=options.image_size,
        num_duplicates=options.num_duplicates,
        max_views=options.max_views,
        workers=(os.cpu_count() or 1) if options.num_workers is None else options.num_workers,
    )
    made = {"num_images": options.num_images, "num_duplicates": options.num_duplicates}
    copies = f" and {options.num_duplicates} near-copies" if options.num_duplicates else ""
    views = f", 1 to {options.max_views} a patient," if options.max_views > 1 else ""
    output.line(f"{options.num_images} phantoms{views}{copies} in {options.out}")
    output.result({"out": options.out, **made, "seed": options.seed})
