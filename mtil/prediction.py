"""`mtil predict`: ordinary images of any size to masks, overlays and one table. No Ray.

What is held at once is a batch of images, the list of names and a line of the table per image.
"""

import csv
import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mtil import __version__, overlay
from mtil.checkpoint import MAX_BYTES, Model, model_from_bytes
from mtil.config import digest
from mtil.data.images import Gray, Mask, encode_mask_png, read_gray, resize_image
from mtil.errors import DataError, NotFoundError, StorageError
from mtil.image_files import as_file, count, find_images, left_out, output_names, shown
from mtil.inference import MASK_THRESHOLD, Predictor, at_size, in_passes, predictors
from mtil.rounds import chains as models_of
from mtil.run import FILE_NAME as RUN_FILE
from mtil.run import Run
from mtil.storage import LocalStore, Store, open_store

Listen = Callable[[dict[str, Any]], None]

TABLE = "predictions.csv"
"""Written last: without it there is no result. It names the mask and overlay of each image."""
MASKS, OVERLAYS = "masks", "overlays"
COLUMNS = (
    "image", "malignant_probability", "malignant", "lesion_area_px", "lesion_area_share",
    "box_x0", "box_y0", "box_x1", "box_y1", "height", "width", "seconds", "mask", "overlay",
    "error", "model_sha256", "fingerprint", "config_digest", "mtil_version",
)  # fmt: skip
"""Of the table. The box is in pixels, its far corner one past the lesion; empty without a lesion.
`seconds` is the image's own reading and writing and its share of the network's time. The models are
those of all voters, separated by `;`, and of a chain those of all rounds, separated by `>`; the
data set and the configuration are those that they were trained on and by."""

_UNFINISHED = ".mtil-predict"
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_NUM_THREADS = 4


class Ensemble:
    """Models whose calibrated probabilities and lesion maps are averaged."""

    def __init__(
        self, chains: Sequence[Sequence[Model]], device: torch.device | None = None
    ) -> None:
        """Build the networks.

        Args:
            chains: of each voter the model of each pass; the last one's word counts.
            device: where they run; by default a GPU if there is one.

        Raises:
            CheckpointError: if a model's weights do not fit its architecture.
        """
        self._chains = [predictors(chain, device) for chain in chains]
        self.threshold = float(np.mean([chain[-1].threshold for chain in chains]))
        models = [model for chain in chains for model in chain]
        self.lineage = {
            "model_sha256": ";".join(">".join(_digests(chain)) for chain in chains),
            "fingerprint": ";".join(dict.fromkeys(model.fingerprint for model in models)),
            "config_digest": ";".join(dict.fromkeys(digest(model.config) for model in models)),
            "mtil_version": __version__,
        }
        """What predictions say of where they come from."""

    def __call__(
        self, grays: Sequence[Gray], *, at_once: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
        """Return lesion maps (b, n, n) and probabilities of malignant (b,) of images of any size.

        An image's figures do not depend on its neighbours: on a CPU the network sees one image at
        a time, on a GPU always `at_once`, of which the last are blank where there are fewer.
        """
        said = [_apply(chain, grays, at_once) for chain in self._chains]
        return (
            np.stack([lesion for lesion, _ in said]).mean(axis=0),
            np.stack([malignant for _, malignant in said]).mean(axis=0),
        )


@dataclass(frozen=True)
class _Loaded:
    name: str
    gray: Gray | None
    error: str
    seconds: float


def predict(
    source: str,
    input_uri: str,
    out_uri: str,
    *,
    device: torch.device | None = None,
    batch_size: int = 16,
    listen: Listen,
) -> dict[str, Any]:
    """Predict images and write a mask, an overlay and a line of the table for each.

    Args:
        source: a run, whose trained folds vote together, or one model file.
        input_uri: an image, or a folder or bucket prefix that is searched to its bottom.
        out_uri: where to write; new, empty, or holding a former result of this function.
        device: where the networks run; by default a GPU if there is one.
        batch_size: how many images are held at once.
        listen: told `{"kind": "predicted", "images", "of"}` after each batch, and
            `{"kind": "skipped" | "unreadable", "text"}` about what is left out.

    Returns:
        what was read and written, in numbers and places.

    Raises:
        UserError: if the model, the input or the output is wrong, or no image can be read.
    """
    start = perf_counter()
    out = open_store(out_uri)
    check_out(out)
    store, selection = find_images(input_uri, out)
    chains = load_chains(source)
    for text in left_out(selection):
        listen({"kind": "skipped", "text": text})
    ensemble = Ensemble(chains, device)
    num_images = predict_images(
        ensemble, store, selection.names, out, batch_size=batch_size, listen=listen
    )
    return {
        "out": out.uri,
        "model": source,
        "folds": [chain[-1].fold for chain in chains],
        "num_images": num_images,
        "num_unreadable": len(selection.names) - num_images,
        "num_masks_skipped": selection.num_masks,
        "num_ignored": selection.num_ignored,
        "seconds": perf_counter() - start,
        "predictions": f"{out.uri}/{TABLE}",
        **ensemble.lineage,
    }


def predict_images(
    ensemble: Ensemble,
    source: Store,
    names: Sequence[str],
    out: Store,
    *,
    batch_size: int,
    listen: Listen,
) -> int:
    """Predict the named images of a store into another, and return how many could be read.

    Raises:
        DataError: if none could be; nothing is written then.
    """
    targets = output_names(names)
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    table.writeheader()
    num_read, first_error = 0, ""
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        for start in range(0, len(names), batch_size):
            batch = names[start : start + batch_size]
            loaded = list(pool.map(lambda name: _load(source, name), batch))
            for image in loaded:
                if image.error:
                    first_error = first_error or image.error
                    listen({"kind": "unreadable", "image": image.name, "text": image.error})
            num_new = sum(image.gray is not None for image in loaded)
            if num_new and not num_read:
                _begin(out)
            num_read += num_new
            for row in _predict_batch(ensemble, loaded, targets, out, batch_size, pool):
                table.writerow(
                    {key: cell(value) for key, value in (row | ensemble.lineage).items()}
                )
            listen({"kind": "predicted", "images": start + len(batch), "of": len(names)})
    if not num_read:
        raise DataError(
            f"At least one image must be readable, but none of {len(names)} in {source.uri} is; "
            f"the first: {first_error}"
        )
    out.write(TABLE, text.getvalue().encode())
    out.delete(_UNFINISHED)
    return num_read


def load_chains(source: str) -> list[list[Model]]:
    """Read the model file, or the models of the last round of the run, at a location.

    Returns:
        of the file, or of each fold, the model of each pass.

    Raises:
        UserError: if it is neither, or no fold is trained.
    """
    file = as_file(source)
    if file is not None:
        folder, name = file
        model = model_from_bytes(folder.read(name, max_bytes=MAX_BYTES), source)
        return [[model] * model.num_passes]
    store = open_store(source)
    if not store.exists(RUN_FILE):
        raise DataError(
            f"A model must be a run (a folder with {RUN_FILE}) or a model file, but {source} is "
            "neither; `mtil train --run` makes a run."
        )
    run = Run.open(source)
    number = run.last_round()
    return [chain for fold in run.trained()[number] for chain in models_of(run, number, fold)]


def check_out(out: Store) -> None:
    """Refuse a place that holds anything but a former result.

    Raises:
        DataError: naming one of the files that are there.
    """
    if out.exists(_UNFINISHED):
        return
    try:
        head = out.read(TABLE).partition(b"\n")[0]
    except NotFoundError:
        head = b""
    if head == ",".join(COLUMNS).encode():
        return
    foreign = out.names()
    if foreign:
        raise DataError(
            f"Results must go to a new or empty place, but {out.uri} holds "
            f"{count(len(foreign), 'other file')} ({shown(foreign[0])}); name another OUT."
        )


def cell(value: str) -> str:
    """Return a table cell that stays on its line and that no spreadsheet takes for a formula."""
    return f"'{shown(value)}" if value.startswith(_FORMULA) else shown(value)


def describe(lesion: Mask) -> dict[str, str]:
    """Return a mask's area, its share of the image, its box and its size, as table cells."""
    height, width = lesion.shape
    area = int(lesion.sum())
    cells = {
        "lesion_area_px": str(area),
        "lesion_area_share": f"{area / lesion.size:.6f}",
        "height": str(height),
        "width": str(width),
    }
    if area:
        rows, columns = (np.flatnonzero(lesion.any(axis=axis)) for axis in (1, 0))
        corners = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        names = ("box_x0", "box_y0", "box_x1", "box_y1")
        cells |= {name: str(corner) for name, corner in zip(names, corners, strict=True)}
    return cells


def _digests(chain: Sequence[Model]) -> list[str]:
    """Return the digests of a chain's models, each once."""
    return list(dict.fromkeys(model.digest for model in chain))


def _apply(
    chain: Sequence[Predictor], grays: Sequence[Gray], at_once: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    side = chain[0].model.source_size
    step = 1 if chain[0].device.type == "cpu" else at_once
    said = []
    for start in range(0, len(grays), step):
        images = np.zeros((step, side, side), np.uint8)
        for index, gray in enumerate(grays[start : start + step]):
            images[index] = resize_image(gray, side)
        said.append(in_passes(chain, images)[-1])
    return (
        np.concatenate([part.lesion for part in said])[: len(grays)],
        np.concatenate([part.malignant for part in said])[: len(grays)],
    )


def _predict_batch(
    ensemble: Ensemble,
    loaded: Sequence[_Loaded],
    targets: dict[str, str],
    out: Store,
    batch_size: int,
    pool: ThreadPoolExecutor,
) -> list[dict[str, str]]:
    start = perf_counter()
    readable = {image.name: image.gray for image in loaded if image.gray is not None}
    said = {}
    if readable:
        lesions, malignant = ensemble(list(readable.values()), at_once=batch_size)
        said = dict(zip(readable, zip(lesions, malignant, strict=True), strict=True))
    share = (perf_counter() - start) / max(1, len(readable))

    def finish(image: _Loaded) -> dict[str, str]:
        row = {"image": image.name, "error": image.error}
        seconds = image.seconds
        if image.gray is not None:
            begin = perf_counter()
            lesion, probability = said[image.name]
            row |= _save(image.gray, lesion, targets[image.name], out)
            row["malignant_probability"] = f"{probability:.6f}"
            row["malignant"] = str(int(probability >= ensemble.threshold))
            seconds += share + perf_counter() - begin
        return row | {"seconds": f"{seconds:.4f}"}

    return list(pool.map(finish, loaded))


def _save(gray: Gray, lesion: npt.NDArray[np.float32], target: str, out: Store) -> dict[str, str]:
    mask = at_size(lesion, *gray.shape) >= MASK_THRESHOLD
    names = {"mask": f"{MASKS}/{target}", "overlay": f"{OVERLAYS}/{target}"}
    out.write(names["mask"], encode_mask_png(mask))
    out.write(names["overlay"], overlay.encode_png(overlay.draw(gray, mask)))
    return describe(mask) | names


def _load(source: Store, name: str) -> _Loaded:
    start = perf_counter()
    gray, error = None, ""
    try:
        gray = read_gray(_read(source, name), shown(name))
    except DataError as reason:
        error = str(reason)
    return _Loaded(name, gray, error, perf_counter() - start)


def _read(source: Store, name: str) -> bytes:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or str(path) != name:
        raise DataError(f"A name must stay inside its folder, but got {shown(name)}.")
    try:
        return source.read(name)
    except NotFoundError:
        raise DataError(f"{shown(name)} does not exist.") from None
    except StorageError as error:
        if isinstance(source, LocalStore):
            raise DataError(shown(str(error))) from None
        raise  # a bucket that stopped answering, not a bad file


def _begin(out: Store) -> None:
    out.write(_UNFINISHED, b"mtil predict is writing here\n")
    out.delete(TABLE)
