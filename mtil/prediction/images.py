"""`mtil predict`: write masks, overlays and a table for ordinary images of any size. No Ray.

Memory holds a batch of images, the list of names and a table line per image.
"""

import csv
import io
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from itertools import islice
from pathlib import PurePosixPath
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mtil import __version__
from mtil.circle.inputs import load_model_chains as models_of
from mtil.config import compute_config_digest
from mtil.data.audit.marks import NOTE_TEXTS, STRAY_REGIONS
from mtil.data.images.budget import PIXEL_BUDGET
from mtil.data.images.image_bytes import read_image_bytes, reserve_file_bytes
from mtil.data.images.read import Gray, Mask, encode_mask_png, open_image, resize_image
from mtil.errors import DataError, NotFoundError, StorageError
from mtil.metrics.mask_rule import HALF_OF_PEAK, average_rules
from mtil.prediction import overlay
from mtil.prediction.image_files import (
    describe_left_out,
    escape_name,
    find_images,
    format_count,
    name_outputs,
)
from mtil.prediction.predictor import (
    Prediction,
    Predictor,
    average_predictions,
    build_predictors,
    count_passes,
    predict_passes,
    resize_map,
)
from mtil.run import names
from mtil.run.checkpoint import MAX_BYTES, TrainedModel, model_from_bytes
from mtil.run.folder import Run
from mtil.storage import Store, locate_file, open_store

PredictionListener = Callable[[dict[str, Any]], None]

PREDICTIONS_TABLE = "predictions.csv"
"""The table of results, with mask and overlay per image. Written last."""
MASKS, OVERLAYS = "masks", "overlays"
PREDICTION_COLUMNS = (
    "image", "malignant_probability", "malignant", "lesion_probability", "class",
    "probability_spread", "mask_spread", "lesion_area_px", "lesion_area_share", "box_x0", "box_y0",
    "box_x1", "box_y1", "height", "width", "seconds", "mask", "overlay", "error", "model_sha256",
    "fingerprint", "config_digest", "mtil_version",
)  # fmt: skip
"""Columns of the table.

`malignant_probability` supposes that the image shows a lesion. `lesion_probability` is the
probability of a lesion in the image, and empty if the models were trained without normal images.
`class` is `normal` if a lesion is less likely than not, unless images are known to show lesions;
else `benign` or `malignant`. The spreads
say how far several models disagree, and are empty for one model: `probability_spread` is the
standard deviation of the probability, `mask_spread` 1 minus the mean Dice of all pairs of masks.
The box is in pixels; the far corner lies 1 pixel past the lesion. The box is empty without a
lesion. `seconds` is the time to read and write the image plus its share of the network's time.
`model_sha256` lists the models of all chains, separated by `;`, and within a chain the models of
all rounds, separated by `>`. `fingerprint` and `config_digest` are of the data set and
configuration used in training.
"""

_UNFINISHED = ".mtil-predict"
"""Marks an output place with incomplete results."""
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")
_NUM_THREADS = 4
_MAX_BATCH_PIXELS = 2**26
"""Pixels in a batch after which no image is added. Bounds memory with large images."""


class Ensemble:
    """Average the calibrated probabilities and lesion maps of several chains of models."""

    def __init__(
        self,
        chains: Sequence[Sequence[TrainedModel]],
        device: torch.device | None = None,
        *,
        normals: bool = True,
    ) -> None:
        """Build the networks.

        Args:
            chains: chains of models, with a model per pass. The last pass gives the prediction.
            device: device of the networks; by default a GPU if present.
            normals: images may be normal; False if each is known to show a lesion.

        Raises:
            CheckpointError: if a model's weights do not fit its architecture.
        """
        self._chains = [build_predictors(chain, device) for chain in chains]
        self.threshold = float(np.mean([chain[-1].threshold for chain in chains]))
        fitted = average_rules([chain[-1].mask_rule for chain in chains])
        self.mask_rule = fitted if normals else HALF_OF_PEAK
        self._normals = normals
        models = [model for chain in chains for model in chain]
        self.lineage = {
            "model_sha256": ";".join(">".join(_digests(chain)) for chain in chains),
            "fingerprint": ";".join(dict.fromkeys(model.fingerprint for model in models)),
            "config_digest": ";".join(
                dict.fromkeys(compute_config_digest(model.config) for model in models)
            ),
            "mtil_version": __version__,
        }
        """Table cells with the origin of the predictions."""

    def __call__(self, grays: Sequence[Gray], *, at_once: int) -> Prediction:
        """Predict images of any size. Return the predictions of the last pass.

        Args:
            grays: b gray images.
            at_once: batch size on a GPU. On a CPU the network gets one image at a time.
        """
        return self.passes(grays, at_once=at_once)[-1]

    def passes(self, grays: Sequence[Gray], *, at_once: int) -> list[Prediction]:
        """Return the predictions of each pass, as `__call__` does of the last."""
        by_chain = [_predict_chain(chain, grays, at_once) for chain in self._chains]
        return [average_predictions(chains) for chains in zip(*by_chain, strict=True)]

    def name_class(self, malignant: float, presence: float) -> str:
        """Return the class of an image: `normal`, `benign` or `malignant`."""
        if self._normals and presence < 0.5:
            return "normal"
        return "malignant" if malignant >= self.threshold else "benign"


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
    presence: float = field(kw_only=True)
    mask_spread: float = field(kw_only=True)
    malignant_spread: float = field(kw_only=True)


@dataclass
class PredictionOutcome:
    """Counts and skipped images of a prediction."""

    num_predicted: int
    skipped: list[dict[str, str]]
    """`image` and `why` of images that cannot be read or predicted."""
    num_normal: int = 0
    """Number of images of class `normal`."""
    num_stray_regions: int = 0
    """Number of images with ultrasound regions outside the frame, which are ignored."""


def predict_location(
    source: str,
    input_uri: str,
    out_uri: str,
    *,
    others: Sequence[str] = (),
    normals: bool = True,
    device: torch.device | None = None,
    batch_size: int = 16,
    listen: PredictionListener,
) -> dict[str, Any]:
    """Predict images; write masks, overlays and a table.

    Args:
        source: a run (an ensemble of all trained folds) or a model file.
        input_uri: an image, or a folder or bucket prefix, searched recursively.
        out_uri: where to write; new, empty, or holding previous results of this function.
        others: further runs or model files; all predictions are averaged.
        normals: images may be normal; if False, each gets an outline, and the class benign or
            malignant.
        device: device of the networks; by default a GPU if present.
        batch_size: number of images in memory at once.
        listen: function called with `{"kind": "predicted", "images", "of"}` after each batch, and
            with `{"kind": "skipped" | "unreadable", "text"}` for images left out.

    Returns:
        counts and locations of files read and written.

    Raises:
        UserError: if the model, the input or the output is wrong, or no image can be read.
    """
    start = perf_counter()
    out = open_store(out_uri)
    check_output(out)
    store, selection = find_images(input_uri, out)
    chains = load_chains(source, *others)
    for text in describe_left_out(selection):
        listen({"kind": "skipped", "text": text})
    ensemble = Ensemble(chains, device, normals=normals)
    outcome = PredictionOutcome(0, [])
    num_images = predict_images(
        ensemble, store, selection.names, out, batch_size=batch_size, listen=listen, outcome=outcome
    )
    if outcome.num_stray_regions:
        text = f"{format_count(outcome.num_stray_regions, 'image')} {NOTE_TEXTS[STRAY_REGIONS]}."
        listen({"kind": "skipped", "text": text})
    return {
        "out": out.uri,
        "model": source,
        "folds": [chain[-1].fold for chain in chains],
        "num_images": num_images,
        "num_unreadable": len(selection.names) - num_images,
        "num_masks_skipped": selection.num_masks,
        "num_ignored": selection.num_ignored,
        "num_normal": outcome.num_normal,
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
        "predictions": f"{out.uri}/{PREDICTIONS_TABLE}",
        **ensemble.lineage,
    }


def predict_images(
    ensemble: Ensemble,
    source: Store,
    names: Sequence[str],
    out: Store,
    *,
    batch_size: int,
    listen: PredictionListener,
    outcome: PredictionOutcome | None = None,
) -> int:
    """Predict the named images of a store into another store. Return the number predicted.

    Args:
        ensemble: the models.
        source: store of the images.
        names: names of the images in `source`.
        out: store for masks, overlays and the table.
        batch_size: number of images predicted at once; fewer if images are large.
        listen: see `predict`.
        outcome: filled with counts and skipped images.

    Raises:
        DataError: if no image can be read or predicted; nothing is written then.
    """
    targets = name_outputs(names)
    outcome = outcome or PredictionOutcome(0, [])
    text = io.StringIO()
    table = csv.DictWriter(text, PREDICTION_COLUMNS, restval="", lineterminator="\n")
    table.writeheader()
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        for batch in _load_batches(source, names, batch_size, pool):
            predicted = _predict_batch(ensemble, batch, batch_size)
            if not outcome.num_predicted and any(image.gray is not None for image in predicted):
                # Only now: an input without a readable image leaves an earlier table in place.
                _mark_unfinished(out)
            rows = pool.map(lambda image: _write_result(image, ensemble, targets, out), predicted)
            for image, row in zip(predicted, rows, strict=True):
                table.writerow(
                    {key: escape_cell(value) for key, value in (row | ensemble.lineage).items()}
                )
                outcome.num_normal += row.get("class") == "normal"
                outcome.num_stray_regions += image.stray_regions
                if image.error:
                    outcome.skipped.append({"image": escape_name(image.name), "why": image.error})
                    listen({"kind": "unreadable", "image": image.name, "text": image.error})
                else:
                    outcome.num_predicted += 1
            done = outcome.num_predicted + len(outcome.skipped)
            listen({"kind": "predicted", "images": done, "of": len(names)})
    if not outcome.num_predicted:
        first = outcome.skipped[0]["why"] if outcome.skipped else "there is none"
        raise DataError(
            f"No image can be predicted: none of {len(names)} in {source.uri} is readable. "
            f"The first: {first}"
        )
    # The table before the removal of the mark: a process killed in between leaves both, and the
    # next command writes the results again.
    out.write(PREDICTIONS_TABLE, text.getvalue().encode())
    out.delete(_UNFINISHED)
    return outcome.num_predicted


def load_chains(*sources: str) -> list[list[TrainedModel]]:
    """Read model files, or the models of the last round of runs.

    Returns:
        chains of models, with a model per pass. A model file gives a single chain, a run the
        chains of all trained folds.

    Raises:
        UserError: if a location holds no run or model, if no fold of a run is trained, or if the
            models of two locations make a different number of passes.
    """
    chains = [(source, chain) for source in sources for chain in _load_chains_of(source)]
    passes = {count_passes(chain): source for source, chain in chains}
    if len(passes) > 1:
        (few, one), (many, other) = sorted(passes.items())[:2]
        raise DataError(
            "The models of an ensemble must make equally many passes, but those of "
            f"{one} make {few} and those of {other} {many}; name runs with equal `circle` and "
            "`zoom` keys."
        )
    return [chain for _, chain in chains]


def _load_chains_of(source: str) -> list[list[TrainedModel]]:
    file = locate_file(source)
    if file is not None:
        folder, name = file
        model = model_from_bytes(folder.read(name, max_bytes=MAX_BYTES), source)
        return [[model] * model.num_passes]
    store = open_store(source)
    if not store.exists(names.RUN):
        raise DataError(
            f"{source} is neither a run (a folder with {names.RUN}) nor a model file. Create a run "
            "with `mtil train --run`."
        )
    run = Run.open(source)
    round_index = run.last_round()
    return [
        chain
        for fold in run.find_trained_folds()[round_index]
        for chain in models_of(run, round_index, fold)
    ]


def check_output(out: Store) -> None:
    """Raise if a place holds anything but previous results of `mtil predict`.

    Raises:
        DataError: if the place holds foreign files, with the name of the first.
    """
    if out.exists(_UNFINISHED):
        return
    # A table with the known columns marks results of an earlier command, which may be replaced.
    try:
        header = out.read(PREDICTIONS_TABLE).partition(b"\n")[0]
    except NotFoundError:
        header = b""
    if header == ",".join(PREDICTION_COLUMNS).encode():
        return
    foreign = out.names()
    if foreign:
        raise DataError(
            f"The output {out.uri} must be new or empty, but holds "
            f"{format_count(len(foreign), 'other file')} ({escape_name(foreign[0])}). Name "
            "another OUT."
        )


def escape_cell(value: str) -> str:
    """Return a table cell on one line, protected against evaluation as a formula."""
    # Spreadsheets show a cell with a leading apostrophe as text.
    return f"'{escape_name(value)}" if value.startswith(_FORMULA_STARTS) else escape_name(value)


def describe_lesion(lesion: Mask) -> dict[str, str]:
    """Return area, share of the image, box and size of a mask as table cells."""
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
        keys = ("box_x0", "box_y0", "box_x1", "box_y1")
        cells |= {name: str(corner) for name, corner in zip(keys, corners, strict=True)}
    return cells


def _digests(chain: Sequence[TrainedModel]) -> list[str]:
    """Return the distinct digests of a chain's models, in order."""
    return list(dict.fromkeys(model.digest for model in chain))


def _predict_chain(
    chain: Sequence[Predictor], grays: Sequence[Gray], at_once: int
) -> list[Prediction]:
    """Return the predictions of each pass of a chain."""
    side = chain[0].model.source_size
    # The size of a batch influences the last digits of a prediction. With a constant size, a
    # prediction does not depend on neighbouring images. Missing images are left blank.
    batch_size = 1 if chain[0].device.type == "cpu" else at_once
    by_batch = []
    for start in range(0, len(grays), batch_size):
        images = np.zeros((batch_size, side, side), np.uint8)
        for index, gray in enumerate(grays[start : start + batch_size]):
            images[index] = resize_image(gray, side)
        by_batch.append(predict_passes(chain, images))
    return [
        Prediction(
            **{
                item.name: np.concatenate([getattr(part, item.name) for part in parts])[
                    : len(grays)
                ]
                for item in fields(Prediction)
            }
        )
        for parts in zip(*by_batch, strict=True)
    ]


def _load_batches(
    source: Store, names: Sequence[str], batch_size: int, pool: ThreadPoolExecutor
) -> Iterator[list[_Loaded]]:
    """Yield images in order, at most `batch_size` at once and fewer if images are large."""
    pending: deque[Future[_Loaded]] = deque()
    remaining = iter(names)
    batch: list[_Loaded] = []
    # A few images are read ahead while the network works. The whole list is never submitted: memory
    # would fill up with decoded images.
    for _ in names:
        pending.extend(
            pool.submit(_load_image, source, name)
            for name in islice(remaining, _NUM_THREADS - len(pending))
        )
        batch.append(pending.popleft().result())
        num_pixels = sum(image.gray.size for image in batch if image.gray is not None)
        if len(batch) == batch_size or num_pixels > _MAX_BATCH_PIXELS:
            yield batch
            batch = []
    if batch:
        yield batch


def _predict_batch(
    ensemble: Ensemble, loaded: Sequence[_Loaded], batch_size: int
) -> list[_Loaded | _Predicted]:
    """Return images with predictions, or with the reason for a missing prediction."""
    start = perf_counter()
    grays = [image.gray for image in loaded if image.gray is not None]
    if not grays:
        return list(loaded)
    predicted = ensemble(grays, at_once=batch_size)
    places = iter(range(len(grays)))
    network_seconds = (perf_counter() - start) / len(grays)
    results: list[_Loaded | _Predicted] = []
    for image in loaded:
        if image.gray is None:
            results.append(image)
            continue
        index = next(places)
        lesion, malignant = predicted.lesion[index], predicted.malignant[index]
        if np.isfinite(malignant) and np.isfinite(lesion).all():
            seconds = image.seconds + network_seconds
            results.append(
                _Predicted(
                    image.name,
                    image.gray,
                    "",
                    seconds,
                    image.stray_regions,
                    lesion=lesion,
                    malignant=float(malignant),
                    presence=float(predicted.presence[index]),
                    mask_spread=float(predicted.mask_spread[index]),
                    malignant_spread=float(predicted.malignant_spread[index]),
                )
            )
        else:
            error = (
                f"{escape_name(image.name)} cannot be predicted: the model's output is not a "
                "finite "
                "number. Use another model."
            )
            results.append(_Loaded(image.name, None, error, image.seconds + network_seconds))
    return results


def _write_result(
    image: _Loaded | _Predicted, ensemble: Ensemble, targets: dict[str, str], out: Store
) -> dict[str, str]:
    """Write mask and overlay of an image, and return its table line."""
    row = {"image": image.name, "error": image.error}
    seconds = image.seconds
    if isinstance(image, _Predicted):
        start = perf_counter()
        assert image.gray is not None
        # Several threads write at once; the budget bounds the memory of full-size pictures.
        with PIXEL_BUDGET.hold(image.gray.size):
            mask = ensemble.mask_rule(resize_map(image.lesion, *image.gray.shape), image.presence)
            row |= _write_pictures(image.gray, mask, targets[image.name], out)
        row["malignant_probability"] = f"{image.malignant:.6f}"
        row["malignant"] = str(int(image.malignant >= ensemble.threshold))
        if not np.isnan(image.presence):
            row["lesion_probability"] = f"{image.presence:.6f}"
        if not np.isnan(image.mask_spread):
            row["probability_spread"] = f"{image.malignant_spread:.6f}"
            row["mask_spread"] = f"{image.mask_spread:.6f}"
        row["class"] = ensemble.name_class(image.malignant, image.presence)
        seconds += perf_counter() - start
    return row | {"seconds": f"{seconds:.4f}"}


def _write_pictures(gray: Gray, mask: Mask, target: str, out: Store) -> dict[str, str]:
    names = {"mask": f"{MASKS}/{target}", "overlay": f"{OVERLAYS}/{target}"}
    out.write(names["mask"], encode_mask_png(mask))
    out.write(names["overlay"], overlay.encode_colour_png(overlay.draw_outline(gray, mask)))
    return describe_lesion(mask) | names


def _load_image(source: Store, name: str) -> _Loaded:
    start = perf_counter()
    gray, error, has_stray_regions = None, "", False
    try:
        with reserve_file_bytes(source, [name]):
            image = open_image(_read_bytes(source, name), escape_name(name))
            with PIXEL_BUDGET.hold(image.num_pixels):
                gray, has_stray_regions = image.gray(), image.stray_regions
    except DataError as reason:
        error = str(reason)
    return _Loaded(name, gray, error, perf_counter() - start, has_stray_regions)


def _read_bytes(source: Store, name: str) -> bytes:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or str(path) != name:
        raise DataError(
            f"The image name {escape_name(name)} leads out of its folder. Rename the image."
        )
    try:
        return read_image_bytes(source, name, escape_name(name))
    except NotFoundError:
        raise DataError(f"{escape_name(name)} does not exist.") from None
    except StorageError as error:
        if source.local_folder is not None:
            raise DataError(escape_name(str(error))) from None
        raise  # a bucket without an answer concerns every image


def _mark_unfinished(out: Store) -> None:
    # The mark first: without a table and a mark, the next command would refuse the other files.
    out.write(_UNFINISHED, b"mtil predict is writing here\n")
    out.delete(PREDICTIONS_TABLE)
