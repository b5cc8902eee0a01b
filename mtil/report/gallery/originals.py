"""The images of the gallery in stored size, as files beside the page."""

import io
from dataclasses import replace

from PIL import Image

from mtil.report.elements import Report
from mtil.storage import Store


def write_originals(report: Report, store: Store, page: str) -> Report:
    """Write an image per card, and return the report with links to them.

    Files are numbered: an id can hold characters that no file name may have.

    Args:
        report: the report.
        store: the folder of the page.
        page: file name of the page; the images go to a folder named after it.
    """
    folder = f"{page.rsplit('.', 1)[0]}-images"
    cards = []
    for number, card in enumerate(report.cards):
        if card.gray is not None:
            name = f"{folder}/{number:05d}.png"
            sink = io.BytesIO()
            # Stored images are square; the file has the proportions of the original.
            scale = len(card.gray) / max(card.width, card.height)
            size = (max(1, round(card.width * scale)), max(1, round(card.height * scale)))
            Image.fromarray(card.gray).resize(size).save(sink, format="PNG")
            store.write(name, sink.getvalue())
            card = replace(card, file=name)
        cards.append(card)
    return replace(report, cards=cards)
