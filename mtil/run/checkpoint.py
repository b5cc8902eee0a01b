"""Model files and training checkpoints: bytes that are verified and loaded with `weights_only`."""

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
from mtil.config import STRICT, Config, Share, Whole, digest_of, from_dict, to_dict
from mtil.config import digest as config_digest
from mtil.documents import Document, Sha256, shortened, shown
from mtil.errors import CheckpointError, ConfigError, NotFoundError, TooLargeError
from mtil.models import TwoTaskNetwork
from mtil.run import names
from mtil.storage import PARTIAL_NAME, Store

_MODEL_KIND = "mtil model"
MAX_BYTES = 2**34
"""Of a checkpoint or a model file, which is held in memory: a thousand times the usual size."""
_MAX_CONFIG_VALUES = 1000

_UNREADABLE = (
    ArithmeticError, AttributeError, EOFError, LookupError, RuntimeError, TypeError, ValueError,
    pickle.UnpicklingError, struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What reading a file of another program, or a damaged one, raises."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A trained network with what is needed to use it."""

    config: Config
    weights: dict[str, Tensor]
    fingerprint: str
    """The data set that it was trained on."""
    fold: int
    """The fold that it has not seen."""
    source_size: int
    """Side in pixels of the prepared images that it was trained on."""
    epoch: int
    temperature: float
    """Divides the malignancy logit; fitted on the inner validation rows."""
    threshold: float
    """Calibrated probability from which an image is called malignant; from the same rows."""
    num_passes: int = 1
    """How often it looks at an image, each time with the map of the time before."""
    version: str = __version__
    digest: str = field(default="", compare=False)
    """sha256 of the file it was read from, in hex."""

    def network(self) -> TwoTaskNetwork:
        """Build the network with these weights, in evaluation mode.

        Raises:
            CheckpointError: if the weights are those of another architecture.
        """
        self._check_widths()
        values = to_dict(self.config)
        values["model"]["encoder"]["pretrained"] = False  # the weights follow
        network = TwoTaskNetwork(from_dict(values).model)
        self._check_dtypes(network.state_dict())
        try:
            network.load_state_dict(self.weights)
        except RuntimeError as error:
            raise _unfit(" ".join(str(error).split())) from None
        return network.eval()

    def _check_widths(self) -> None:
        """Compare the decoder's widths with the weights, before a wide network takes memory."""
        for stride, channels in zip((16, 8, 4, 2), self.config.model.decoder_channels, strict=True):
            name = f"logits.{stride}.weight"
            found = tuple(self.weights[name].shape) if name in self.weights else None
            if found != (1, channels, 1, 1):
                raise _unfit(f"{name} is {found} where {channels} channels are named")

    def _check_dtypes(self, expected: Mapping[str, Tensor]) -> None:
        """Compare types, which PyTorch would convert without a word."""
        for name, value in self.weights.items():
            if name in expected and value.dtype != expected[name].dtype:
                raise _unfit(f"{name} is {value.dtype} instead of {expected[name].dtype}")


def _unfit(reason: str) -> CheckpointError:
    return CheckpointError(
        f"A model file must hold the weights of the architecture it names, but this one's do not "
        f"fit ({reason[:160]}…); train again."
    )


def model_to_bytes(model: Model) -> bytes:
    """Return a model file."""
    return _to_bytes(
        {
            "kind": _MODEL_KIND,
            "config": to_dict(model.config),
            "config_digest": config_digest(model.config),
            "weights": {name: value.cpu() for name, value in model.weights.items()},
            "fingerprint": model.fingerprint,
            "fold": model.fold,
            "source_size": model.source_size,
            "epoch": model.epoch,
            "temperature": model.temperature,
            "threshold": model.threshold,
            "num_passes": model.num_passes,
            "version": model.version,
        }
    )


def model_from_bytes(data: bytes, source: str) -> Model:
    """Read a model file; `source` names it in errors.

    Raises:
        CheckpointError: if it is not a model file, damaged, or unknown to this version.
    """
    values = _from_bytes(data, source)
    if values.get("kind") != _MODEL_KIND:
        raise CheckpointError(f"A model file is needed, but {source} is another kind of file.")
    known = {item.name for item in fields(Model)} - {"digest"}
    version = values.get("version")
    made_by = f"{source} was made by mtil {version if isinstance(version, str) else '?'}"[:300]
    if differing := (values.keys() - {"kind", "config_digest"}) ^ known:
        raise CheckpointError(
            f"{made_by}, whose model files differ from this version's in "
            f"{shortened(', '.join(sorted(differing)))}; train again."
        )
    document = Document(source, "train again", CheckpointError)
    about = document.validate(_ABOUT, {key: values[key] for key in _ABOUT_KEYS})
    stored = document.validate(_TREE, _plain(values["config"]))
    try:
        config = from_dict(stored)
    except ConfigError as error:
        raise CheckpointError(
            f"{made_by} with a configuration that this version does not know: {error}"
        ) from None
    if values.get("config_digest") not in (None, digest_of(stored)):
        document.refuse("must hold the configuration that its digest names, but holds another")
    _check_weights(values["weights"], len(data), document)
    return Model(
        config=config,
        weights=values["weights"],
        digest=hashlib.sha256(data).hexdigest(),
        **asdict(about),
    )


def _plain(tree: object) -> object:
    """Return a configuration, or None if it has more values than any has.

    Lists in a pickle may hold each other again and again, so that a walk would not end.
    """
    waiting, count = [tree], 0
    while waiting:
        node = waiting.pop()
        count += 1
        if count > _MAX_CONFIG_VALUES:
            return None
        if isinstance(node, dict):
            waiting += node.values()
        elif isinstance(node, list | tuple):
            waiting += node
    return tree


def _check_weights(weights: object, size: int, document: Document) -> None:
    """Refuse weights that are no finite tensors, or more than a file of `size` bytes holds."""
    if not isinstance(weights, dict) or not weights:
        document.refuse("must hold weights by name, but does not")
    total = 0
    for name, value in weights.items():
        if not (
            isinstance(name, str)
            and isinstance(value, Tensor)
            and value.layout == torch.strided
            and value.device.type == "cpu"
            and not value.is_quantized
        ):
            document.refuse(f"must hold dense tensors as weights, but {shown(name)} is none")
        total += value.numel() * value.element_size()
        if total > size:  # before anything looks at them: a view can be larger than its storage
            document.refuse(f"must hold all its weights, but {shown(name)} is larger than the file")
    for name, value in weights.items():
        if not torch.isfinite(value).all():
            document.refuse(f"must hold finite weights, but {shown(name)} has NaN or infinity")


@validated(frozen=True, config=STRICT)
class _About:
    """The metadata of a model file."""

    fingerprint: Sha256
    fold: Whole
    source_size: Annotated[int, Field(ge=1, le=4096)]
    epoch: Whole
    temperature: Annotated[float, Field(gt=0, le=1e6)]
    threshold: Share
    num_passes: Annotated[int, Field(ge=1, le=100)]
    version: str


@validated(frozen=True, config=STRICT)
class _Pointer:
    """`latest.json`: the committed checkpoint."""

    file: Annotated[str, Field(pattern=r"^[^/\\]+\.pt$")]
    epoch: Whole
    sha256: Sha256


_ABOUT: TypeAdapter[_About] = TypeAdapter(_About)
_ABOUT_KEYS = tuple(item.name for item in fields(_About))
_POINTERS: TypeAdapter[_Pointer] = TypeAdapter(_Pointer)
_TREE: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])


class TrainingCheckpoints:
    """The checkpoints of one training: each a file of its own, committed by a pointer.

    `latest.json` is replaced only after its file is whole, so that a process that dies while
    writing leaves the previous checkpoint in force. A file is named after its bytes, too: one that
    was given up for dead and its successor, both at one epoch, do not write over each other's.
    """

    def __init__(self, store: Store, folder: str) -> None:
        self._store, self._folder = store, folder

    @property
    def uri(self) -> str:
        """The folder of the checkpoints."""
        return f"{self._store.uri}/{self._folder}"

    def save(self, epoch: int, state: dict[str, Any]) -> None:
        """Write the state after an epoch, commit it, and delete its predecessor."""
        data = _to_bytes(state)
        sha256 = hashlib.sha256(data).hexdigest()
        name = names.checkpoint(epoch, sha256)
        previous = self._pointer()
        self._store.write(f"{self._folder}/{name}", data)
        pointer = {"file": name, "epoch": epoch, "sha256": sha256}
        self._store.write(f"{self._folder}/{names.LATEST}", json.dumps(pointer).encode())
        older = str(previous.get("file")) if previous else name
        if older != name and names.CHECKPOINT.fullmatch(older):
            self._store.delete(f"{self._folder}/{older}")

    def load(self) -> dict[str, Any] | None:
        """Return the state of the latest committed checkpoint, if there is one.

        Raises:
            CheckpointError: if its bytes are not those that were committed.
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
                f"Checkpoint {name} must be the one that was committed, but its bytes differ; "
                f"delete {self._store.uri}/{self._folder} to train again from the start."
            )
        return _from_bytes(data, name)

    def clear(self) -> None:
        """Delete every checkpoint, the pointer first, and nothing else that lies in the folder."""
        self._store.clear(self._folder, re.compile(re.escape(names.LATEST)))
        self._store.clear(self._folder, re.compile(rf"{names.CHECKPOINT.pattern}|{PARTIAL_NAME}"))

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
        suppress(*_UNREADABLE),
        warnings.catch_warnings(action="ignore"),  # about files that are not ours
        zipfile.ZipFile(io.BytesIO(data)) as archive,
    ):
        size = sum(info.file_size for info in archive.infolist())
        # torch.load neither bounds what compressed members unfold to nor looks at checksums
        if size <= len(data) and archive.testzip() is None:
            values = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise CheckpointError(f"{source} is not a file that mtil wrote, or it is damaged.")
    return values
