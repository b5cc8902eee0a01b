"""Make one picture of predictions: `python docs/sheet.py PREDICTIONS OUT.png [NUM_IMAGES]`.

The picture shows overlays of `mtil predict` with the probability of malignant below each image.
"""

import csv
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SIDE, GAP, CAPTION, COLUMNS = 200, 12, 26, 4


def make_sheet(predictions: Path, num_images: int) -> Image.Image:
    """Return images evenly spaced through the table of predictions, in rows of four."""
    with (predictions / "predictions.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["overlay"]]
    rows = rows[:: max(1, len(rows) // num_images)][:num_images]
    num_rows = -(-len(rows) // COLUMNS)
    size = (COLUMNS * (SIDE + GAP) + GAP, num_rows * (SIDE + CAPTION + GAP) + GAP)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=15)
    for index, row in enumerate(rows):
        left = GAP + index % COLUMNS * (SIDE + GAP)
        top = GAP + index // COLUMNS * (SIDE + CAPTION + GAP)
        with Image.open(predictions / row["overlay"]) as overlay:
            sheet.paste(overlay.convert("RGB").resize((SIDE, SIDE)), (left, top))
        text = f"malignant: {float(row['malignant_probability']):.0%}"
        draw.text((left, top + SIDE + 4), text, fill="black", font=font)
    return sheet.quantize(128)


if __name__ == "__main__":
    make_sheet(Path(sys.argv[1]), int(sys.argv[3]) if len(sys.argv) > 3 else 8).save(sys.argv[2])
