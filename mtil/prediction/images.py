"""`mtil predict`: ordinary images of any size to masks, overlays and one table. No Ray.

What is held at once is a batch of images, the list of names and a line of the table per image.
"""

import csv
import io
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import PurePosixPath
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mtil import __version__
from mtil.circle.inputs import chains as models_of
from mtil.config import digest
from mtil.data.audit.marks import NOTES, STRAY_REGIONS
from mtil.data.images.budget import PIXELS
from mtil.data.images.image_bytes import read_image_bytes, room_for
from mtil.data.images.read import Gray, Mask, encode_mask_png, open_image, resize_image
from mtil.errors import DataError, NotFoundError, StorageError
from mtil.prediction import overlay
from mtil.prediction.image_files import (
    as_file,
    count,
    find_images,
    left_out,
    output_names,
    shown,
)
from mtil.prediction.predictor import (
    MASK_THRESHOLD,
    Predictor,
    at_size,
    in_passes,
    predictors,
)
from mtil.run import names
from mtil.run.checkpoint import MAX_BYTES, Model, model_from_bytes
from mtil.run.folder import Run
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
_MAX_HELD_PIXELS = 2**26
"""A batch of large images is cut where it holds more."""


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
        return self.passes(grays, at_once=at_once)[-1]

    def passes(
        self, grays: Sequence[Gray], *, at_once: int
    ) -> list[tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]]:
        """Return lesion maps and probabilities of each pass, as `__call__` does of the last."""
        by_chain = [_apply(chain, grays, at_once) for chain in self._chains]
        return [
            (
                np.stack([lesion for lesion, _ in chains]).mean(axis=0),
                np.stack([malignant for _, malignant in chains]).mean(axis=0),
            )
            for chains in zip(*by_chain, strict=True)
        ]


@dataclass(frozen=True)
class _Loaded:
    name: str
    gray: Gray | None
    error: str
    seconds: float
    stray_regions: bool = False


@dataclass(frozen=True)
class _Predicted(_Loaded):
    lesion: npt.NDArray[np.float32] = field(kw_only=True)
    malignant: float = field(kw_only=True)


@dataclass
class Outcome:
    """What became of images."""

    num_predicted: int
    skipped: list[dict[str, str]]
    """`image` and `why` of each image that could not be read or predicted."""
    num_stray_regions: int = 0
    """Images whose ultrasound regions do not fit their frame and are not used."""


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
    outcome = Outcome(0, [])
    num_images = predict_images(
        ensemble, store, selection.names, out, batch_size=batch_size, listen=listen, outcome=outcome
    )
    if outcome.num_stray_regions:
        text = f"{count(outcome.num_stray_regions, 'image')} {NOTES[STRAY_REGIONS]}."
        listen({"kind": "skipped", "text": text})
    return {
        "out": out.uri,
        "model": source,
        "folds": [chain[-1].fold for chain in chains],
        "num_images": num_images,
        "num_unreadable": len(selection.names) - num_images,
        "num_masks_skipped": selection.num_masks,
        "num_ignored": selection.num_ignored,
        "num_stray_regions": outcome.num_stray_regions,
        "files": {
            "seen": selection.num_files,
            "predicted": num_images,
            "masks": selection.num_masks,
            "ignored": selection.num_ignored,
            "skipped": len(outcome.skipped),
        },
        "skipped": outcome.skipped,
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
    outcome: Outcome | None = None,
) -> int:
    """Predict the named images of a store into another, and return how many could be.

    Args:
        ensemble: the models.
        source: where the images are.
        names: what they are called there.
        out: where masks, overlays and the table go.
        batch_size: how many images are predicted at once; fewer if they are large.
        listen: see `predict`.
        outcome: filled in.

    Raises:
        DataError: if no image could be read or predicted; nothing is written then.
    """
    targets = output_names(names)
    outcome = outcome or Outcome(0, [])
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    table.writeheader()
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        for batch in _batches(source, names, batch_size, pool):
            predicted = _predict_batch(ensemble, batch, batch_size)
            if not outcome.num_predicted and any(image.gray is not None for image in predicted):
                _begin(out)
            rows = pool.map(lambda image: _finish(image, ensemble, targets, out), predicted)
            for image, row in zip(predicted, rows, strict=True):
                table.writerow(
                    {key: cell(value) for key, value in (row | ensemble.lineage).items()}
                )
                outcome.num_stray_regions += image.stray_regions
                if image.error:
                    outcome.skipped.append({"image": shown(image.name), "why": image.error})
                    listen({"kind": "unreadable", "image": image.name, "text": image.error})
                else:
                    outcome.num_predicted += 1
            done = outcome.num_predicted + len(outcome.skipped)
            listen({"kind": "predicted", "images": done, "of": len(names)})
    if not outcome.num_predicted:
        first = outcome.skipped[0]["why"] if outcome.skipped else "there is none"
        raise DataError(
            f"At least one image must be readable, but none of {len(names)} in {source.uri} is; "
            f"the first: {first}"
        )
    out.write(TABLE, text.getvalue().encode())
    out.delete(_UNFINISHED)
    return outcome.num_predicted


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
    if not store.exists(names.RUN):
        raise DataError(
            f"A model must be a run (a folder with {names.RUN}) or a model file, but {source} is "
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
) -> list[tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]]:
    """Return lesion maps and probabilities of each pass of a chain."""
    side = chain[0].model.source_size
    step = 1 if chain[0].device.type == "cpu" else at_once
    by_step = []
    for start in range(0, len(grays), step):
        images = np.zeros((step, side, side), np.uint8)
        for index, gray in enumerate(grays[start : start + step]):
            images[index] = resize_image(gray, side)
        by_step.append(in_passes(chain, images))
    return [
        (
            np.concatenate([prediction.lesion for prediction in of_pass])[: len(grays)],
            np.concatenate([prediction.malignant for prediction in of_pass])[: len(grays)],
        )
        for of_pass in zip(*by_step, strict=True)
    ]


def _batches(
    source: Store, names: Sequence[str], batch_size: int, pool: ThreadPoolExecutor
) -> Iterator[list[_Loaded]]:
    """Yield images in order, at most so many at once and no more large ones than fit."""
    ahead: deque[Future[_Loaded]] = deque()
    rest = iter(names)
    batch: list[_Loaded] = []
    for _ in names:
        ahead.extend(
            pool.submit(_load, source, name) for name in islice(rest, _NUM_THREADS - len(ahead))
        )
        batch.append(ahead.popleft().result())
        held = sum(image.gray.size for image in batch if image.gray is not None)
        if len(batch) == batch_size or held > _MAX_HELD_PIXELS:
            yield batch
            batch = []
    if batch:
        yield batch


def _predict_batch(
    ensemble: Ensemble, loaded: Sequence[_Loaded], batch_size: int
) -> list[_Loaded | _Predicted]:
    """Return images with what is predicted of them, or with why nothing is."""
    start = perf_counter()
    grays = [image.gray for image in loaded if image.gray is not None]
    if not grays:
        return list(loaded)
    said = zip(*ensemble(grays, at_once=batch_size), strict=True)
    share = (perf_counter() - start) / len(grays)
    found: list[_Loaded | _Predicted] = []
    for image in loaded:
        if image.gray is None:
            found.append(image)
            continue
        lesion, malignant = next(said)
        if np.isfinite(malignant) and np.isfinite(lesion).all():
            spent = image.seconds + share
            found.append(
                _Predicted(
                    image.name,
                    image.gray,
                    "",
                    spent,
                    image.stray_regions,
                    lesion=lesion,
                    malignant=float(malignant),
                )
            )
        else:
            error = (
                f"{shown(image.name)} cannot be predicted: what the model says of it is not a "
                "number; use another model."
            )
            found.append(_Loaded(image.name, None, error, image.seconds + share))
    return found


def _finish(
    image: _Loaded | _Predicted, ensemble: Ensemble, targets: dict[str, str], out: Store
) -> dict[str, str]:
    """Write an image's mask and overlay, and return its line of the table."""
    row = {"image": image.name, "error": image.error}
    seconds = image.seconds
    if isinstance(image, _Predicted):
        begin = perf_counter()
        assert image.gray is not None
        with PIXELS.hold(image.gray.size):
            row |= _save(image.gray, image.lesion, targets[image.name], out)
        row["malignant_probability"] = f"{image.malignant:.6f}"
        row["malignant"] = str(int(image.malignant >= ensemble.threshold))
        seconds += perf_counter() - begin
    return row | {"seconds": f"{seconds:.4f}"}


def _save(gray: Gray, lesion: npt.NDArray[np.float32], target: str, out: Store) -> dict[str, str]:
    mask = at_size(lesion, *gray.shape) >= MASK_THRESHOLD
    names = {"mask": f"{MASKS}/{target}", "overlay": f"{OVERLAYS}/{target}"}
    out.write(names["mask"], encode_mask_png(mask))
    out.write(names["overlay"], overlay.encode_png(overlay.draw(gray, mask)))
    return describe(mask) | names


def _load(source: Store, name: str) -> _Loaded:
    start = perf_counter()
    gray, error, stray = None, "", False
    try:
        with room_for(source, [name]):
            image = open_image(_read(source, name), shown(name))
            with PIXELS.hold(image.num_pixels):
                gray, stray = image.gray(), image.stray_regions
    except DataError as reason:
        error = str(reason)
    return _Loaded(name, gray, error, perf_counter() - start, stray)


def _read(source: Store, name: str) -> bytes:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or str(path) != name:
        raise DataError(f"A name must stay inside its folder, but got {shown(name)}.")
    try:
        return read_image_bytes(source, name, shown(name))
    except NotFoundError:
        raise DataError(f"{shown(name)} does not exist.") from None
    except StorageError as error:
        if isinstance(source, LocalStore):
            raise DataError(shown(str(error))) from None
        raise  # a bucket that stopped answering, not a bad file


def _begin(out: Store) -> None:
    out.write(_UNFINISHED, b"mtil predict is writing here\n")
    out.delete(TABLE)
