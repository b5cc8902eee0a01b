"""Model files and training checkpoints, verified and loaded with `weights_only`."""

import hashlib
import io
import json
import pickle
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any

import torch
from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass as validated
from torch import Tensor

from mtil import __version__
from mtil.config import (
    STRICT,
    Config,
    NonNegativeInt,
    Share,
    compute_stored_config_digest,
    config_from_dict,
    config_to_dict,
)
from mtil.config import compute_config_digest as config_digest
from mtil.documents import Document, Sha256, format_value, shorten_text
from mtil.errors import CheckpointError, ConfigError, NotFoundError, TooLargeError
from mtil.metrics.mask_rule import MaskRule
from mtil.models import TwoTaskNetwork
from mtil.run import names
from mtil.storage import PARTIAL_NAME_PATTERN, Store

_MODEL_KIND = "mtil model"
MAX_BYTES = 2**34
"""Upper bound on a file, which is held in memory: a thousand times the usual size."""
_MAX_CONFIG_VALUES = 1000

_READ_ERRORS = (
    ArithmeticError, AttributeError, EOFError, LookupError, RuntimeError, TypeError, ValueError,
    pickle.UnpicklingError, struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""Exceptions raised by reading a damaged file or a file of a different program."""


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A trained network and the metadata needed for predictions."""

    config: Config
    weights: dict[str, Tensor]
    fingerprint: str
    """Fingerprint of the training data set."""
    fold: int
    """The fold held out from training."""
    source_size: int
    """Side length of the prepared training images, in pixels."""
    epoch: int
    temperature: float
    """Divisor of the malignancy logit; fitted on the inner validation rows."""
    threshold: float
    """Least calibrated probability called malignant; chosen on the inner validation rows."""
    presence_temperature: float | None = None
    """Divisor of the logit of a lesion in the image, fitted on the inner validation rows. None if
    the network was not trained to tell images without a lesion."""
    mask_rule: MaskRule = field(default_factory=MaskRule)
    """How a mask follows from the lesion map; chosen on the inner validation rows."""
    num_passes: int = 1
    """Number of passes over an image; a later pass reads the map of the pass before."""
    version: str = __version__
    digest: str = field(default="", compare=False)
    """sha256 of the model file in hex; empty for a model not read from a file."""

    def network(self) -> TwoTaskNetwork:
        """Build the network with the weights, in evaluation mode.

        Raises:
            CheckpointError: if the weights do not fit the architecture.
        """
        self._check_widths()
        values = config_to_dict(self.config)
        # The weights are loaded below; pretrained weights would be read only to be replaced.
        values["model"]["encoder"]["pretrained"] = False
        network = TwoTaskNetwork(config_from_dict(values).model)
        self._check_dtypes(network.state_dict())
        try:
            network.load_state_dict(self.weights)
        except RuntimeError as error:
            raise _mismatch(" ".join(str(error).split())) from None
        return network.eval()

    def _check_widths(self) -> None:
        """Raise if the decoder widths of the configuration differ from the weights."""
        # Checked before the network is built: a very wide decoder would fill the memory.
        for stride, channels in zip((16, 8, 4, 2), self.config.model.decoder_channels, strict=True):
            name = f"logits.{stride}.weight"
            shape = tuple(self.weights[name].shape) if name in self.weights else None
            if shape != (1, channels, 1, 1):
                raise _mismatch(f"{name} is {shape} where {channels} channels are named")

    def _check_dtypes(self, expected: Mapping[str, Tensor]) -> None:
        """Raise if a weight has an unexpected type."""
        # `load_state_dict` would convert silently.
        for name, value in self.weights.items():
            if name in expected and value.dtype != expected[name].dtype:
                raise _mismatch(f"{name} is {value.dtype} instead of {expected[name].dtype}")


def _mismatch(reason: str) -> CheckpointError:
    return CheckpointError(
        f"A model file must hold weights for the configuration in the file, but the weights do "
        f"not fit ({reason[:160]}…); train again."
    )


def model_to_bytes(model: TrainedModel) -> bytes:
    """Return the bytes of a model file."""
    return _to_bytes(
        {
            "kind": _MODEL_KIND,
            "config": config_to_dict(model.config),
            "config_digest": config_digest(model.config),
            "weights": {name: value.cpu() for name, value in model.weights.items()},
            "fingerprint": model.fingerprint,
            "fold": model.fold,
            "source_size": model.source_size,
            "epoch": model.epoch,
            "temperature": model.temperature,
            "threshold": model.threshold,
            "presence_temperature": model.presence_temperature,
            "mask_rule": asdict(model.mask_rule),
            "num_passes": model.num_passes,
            "version": model.version,
        }
    )


def model_from_bytes(data: bytes, source: str) -> TrainedModel:
    """Read a model file.

    Args:
        data: the bytes of the file.
        source: name of the file in errors.

    Raises:
        CheckpointError: if the file is damaged, no model file, or of an unknown version.
    """
    values = _from_bytes(data, source)
    if values.get("kind") != _MODEL_KIND:
        raise CheckpointError(f"A model file is needed, but {source} is another kind of file.")
    known_keys = {item.name for item in fields(TrainedModel)} - {"digest"}
    version = values.get("version")
    made_by = f"{source} was made by mtil {version if isinstance(version, str) else '?'}"[:300]
    if differing := (values.keys() - {"kind", "config_digest"}) ^ known_keys:
        raise CheckpointError(
            f"{made_by}, whose model files differ from this version's in "
            f"{shorten_text(', '.join(sorted(differing)))}; train again."
        )
    document = Document(source, "train again", CheckpointError)
    metadata = document.validate(_METADATA, {key: values[key] for key in _METADATA_KEYS})
    stored_config = document.validate(_CONFIGS, _limit_config_size(values["config"]))
    try:
        config = config_from_dict(stored_config)
    except ConfigError as error:
        raise CheckpointError(
            f"{made_by} with a configuration that this version does not know: {error}"
        ) from None
    if values.get("config_digest") not in (None, compute_stored_config_digest(stored_config)):
        document.refuse("must hold the configuration that its digest names, but holds another")
    _check_weights(values["weights"], len(data), document)
    return TrainedModel(
        config=config,
        weights=values["weights"],
        digest=hashlib.sha256(data).hexdigest(),
        **{key: getattr(metadata, key) for key in _METADATA_KEYS},
    )


def _limit_config_size(tree: object) -> object:
    """Return the configuration; None if larger than `_MAX_CONFIG_VALUES` values."""
    # Lists in a pickle may form a cycle, and a walk without a bound would not end.
    pending, num_values = [tree], 0
    while pending:
        node = pending.pop()
        num_values += 1
        if num_values > _MAX_CONFIG_VALUES:
            return None
        if isinstance(node, dict):
            pending += node.values()
        elif isinstance(node, list | tuple):
            pending += node
    return tree


def _check_weights(weights: object, size: int, document: Document) -> None:
    """Raise unless weights are finite dense tensors that fit a file of `size` bytes."""
    if not isinstance(weights, dict) or not weights:
        document.refuse("must hold weights by name, but does not")
    num_bytes = 0
    for name, value in weights.items():
        if not (
            isinstance(name, str)
            and isinstance(value, Tensor)
            and value.layout == torch.strided
            and value.device.type == "cpu"
            and not value.is_quantized
        ):
            document.refuse(f"must hold dense tensors as weights, but {format_value(name)} is none")
        num_bytes += value.numel() * value.element_size()
        # Checked before any value is read: a view can be far larger than the stored tensor.
        if num_bytes > size:
            document.refuse(
                f"must hold all its weights, but {format_value(name)} is larger than the file"
            )
    for name, value in weights.items():
        if not torch.isfinite(value).all():
            document.refuse(
                f"must hold finite weights, but {format_value(name)} has NaN or infinity"
            )


@validated(frozen=True, config=STRICT)
class _ModelMetadata:
    """The validated metadata of a model file."""

    fingerprint: Sha256
    fold: NonNegativeInt
    source_size: Annotated[int, Field(ge=1, le=4096)]
    epoch: NonNegativeInt
    temperature: Annotated[float, Field(gt=0, le=1e6)]
    threshold: Share
    presence_temperature: Annotated[float, Field(gt=0, le=1e6)] | None
    mask_rule: MaskRule
    num_passes: Annotated[int, Field(ge=1, le=100)]
    version: str


@validated(frozen=True, config=STRICT)
class _Pointer:
    """`latest.json`: the pointer to the committed checkpoint."""

    file: Annotated[str, Field(pattern=r"^[^/\\]+\.pt$")]
    epoch: NonNegativeInt
    sha256: Sha256


_METADATA: TypeAdapter[_ModelMetadata] = TypeAdapter(_ModelMetadata)
_METADATA_KEYS = tuple(item.name for item in fields(_ModelMetadata))
_POINTERS: TypeAdapter[_Pointer] = TypeAdapter(_Pointer)
_CONFIGS: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])


class TrainingCheckpoints:
    """The checkpoints of a training: a file per checkpoint, committed by the pointer `latest.json`.

    After a crash while writing, the previous checkpoint is still committed.
    """

    def __init__(self, store: Store, folder: str) -> None:
        self._store, self._folder = store, folder

    @property
    def uri(self) -> str:
        """URI of the checkpoint folder."""
        return f"{self._store.uri}/{self._folder}"

    def save(self, epoch: int, state: dict[str, Any]) -> None:
        """Write and commit the state after an epoch, then delete the previous checkpoint."""
        data = _to_bytes(state)
        sha256 = hashlib.sha256(data).hexdigest()
        # The name contains the digest: a process given up for dead and the successor may be at
        # the same epoch, and must not overwrite a file of the other process.
        name = names.checkpoint_name(epoch, sha256)
        previous = self._pointer()
        self._store.write(f"{self._folder}/{name}", data)
        # The pointer is replaced only after the checkpoint is complete.
        pointer = {"file": name, "epoch": epoch, "sha256": sha256}
        self._store.write(f"{self._folder}/{names.LATEST}", json.dumps(pointer).encode())
        previous_name = str(previous.get("file")) if previous else name
        if previous_name != name and names.CHECKPOINT.fullmatch(previous_name):
            self._store.delete(f"{self._folder}/{previous_name}")

    def load(self) -> dict[str, Any] | None:
        """Return the state of the committed checkpoint; None without a checkpoint.

        Raises:
            CheckpointError: if the bytes differ from the committed digest.
        """
        pointer = self._pointer()
        if pointer is None:
            return None
        name = f"{self._folder}/{pointer['file']}"
        try:
            data = self._store.read(name, max_bytes=MAX_BYTES)
        except (NotFoundError, TooLargeError):
            data = b""
        if hashlib.sha256(data).hexdigest() != pointer["sha256"]:
            raise CheckpointError(
                f"Checkpoint {name} must be the one that was committed, but the bytes differ; "
                f"delete {self._store.uri}/{self._folder} to train again from the start."
            )
        return _from_bytes(data, name)

    def clear(self) -> None:
        """Delete all checkpoints, but no unknown file in the folder."""
        # The pointer goes first: a pointer must never name a deleted checkpoint.
        self._store.clear(self._folder, re.compile(re.escape(names.LATEST)))
        self._store.clear(
            self._folder, re.compile(rf"{names.CHECKPOINT.pattern}|{PARTIAL_NAME_PATTERN}")
        )

    def _pointer(self) -> dict[str, Any] | None:
        name = f"{self._folder}/{names.LATEST}"
        document = Document(
            f"{self._store.uri}/{name}",
            "delete its folder to train again from the start",
            CheckpointError,
        )
        try:
            values = document.object(document.read(self._store, name))
        except NotFoundError:
            return None
        return asdict(document.validate(_POINTERS, values))


def _to_bytes(values: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(values, buffer)
    return buffer.getvalue()


def _from_bytes(data: bytes, source: str) -> dict[str, Any]:
    values = None
    with (
        suppress(*_READ_ERRORS),
        warnings.catch_warnings(action="ignore"),  # about files of other programs
        zipfile.ZipFile(io.BytesIO(data)) as archive,
    ):
        size = sum(info.file_size for info in archive.infolist())
        # `torch.load` neither bounds the size of compressed members nor verifies checksums.
        if size <= len(data) and archive.testzip() is None:
            values = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise CheckpointError(f"{source} is not a file that mtil wrote, or it is damaged.")
    return values
