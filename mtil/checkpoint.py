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
from contextlib import suppress
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from mtil import __version__
from mtil.config import Config, from_dict, to_dict
from mtil.config import digest as config_digest
from mtil.errors import CheckpointError, ConfigError, NotFoundError
from mtil.models import TwoTaskNetwork
from mtil.storage import PARTIAL_NAME, Store

_MODEL_KIND = "mtil model"
_LATEST = "latest.json"
_FILE = re.compile(r"epoch-\d{4,}(?:-[0-9a-f]{12})?\.pt")
"""What a checkpoint is called."""

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
        values = to_dict(self.config)
        values["model"]["encoder"]["pretrained"] = False  # the weights follow
        network = TwoTaskNetwork(from_dict(values).model)
        try:
            network.load_state_dict(self.weights)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:160]
            raise CheckpointError(
                f"A model file must hold the weights of the architecture it names, but this one's "
                f"do not fit ({reason}…); train again."
            ) from None
        return network.eval()


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
    if differing := (values.keys() - {"kind", "config_digest"}) ^ known:
        raise CheckpointError(
            f"{source} was made by mtil {values.get('version')}, whose model files differ from "
            f"this version's in {', '.join(sorted(differing))}; train again."
        )
    try:
        config = from_dict(values["config"])
    except ConfigError as error:
        raise CheckpointError(
            f"{source} was made by mtil {values.get('version')} with a configuration that this "
            f"version does not know: {error}"
        ) from None
    return Model(
        config=config,
        digest=hashlib.sha256(data).hexdigest(),
        **{key: values[key] for key in known - {"config"}},
    )


class TrainingCheckpoints:
    """The checkpoints of one training: each a file of its own, committed by a pointer.

    `latest.json` is replaced only after its file is whole, so that a process that dies while
    writing leaves the previous checkpoint in force. A file is named after its bytes, too: one that
    was given up for dead and its successor, both at one epoch, do not write over each other's.
    """

    def __init__(self, store: Store, folder: str) -> None:
        self._store, self._folder = store, folder

    def save(self, epoch: int, state: dict[str, Any]) -> None:
        """Write the state after an epoch, commit it, and delete its predecessor."""
        data = _to_bytes(state)
        sha256 = hashlib.sha256(data).hexdigest()
        name = f"epoch-{epoch:04d}-{sha256[:12]}.pt"
        previous = self._pointer()
        self._store.write(f"{self._folder}/{name}", data)
        pointer = {"file": name, "epoch": epoch, "sha256": sha256}
        self._store.write(f"{self._folder}/{_LATEST}", json.dumps(pointer).encode())
        older = str(previous.get("file")) if previous else name
        if older != name and _FILE.fullmatch(older):
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
            data = self._store.read(name)
        except NotFoundError:
            data = b""
        if hashlib.sha256(data).hexdigest() != pointer["sha256"]:
            raise CheckpointError(
                f"Checkpoint {name} must be the one that was committed, but its bytes differ; "
                f"delete {self._store.uri}/{self._folder} to train again from the start."
            )
        return _from_bytes(data, name)

    def clear(self) -> None:
        """Delete every checkpoint, the pointer first, and nothing else that lies in the folder."""
        self._store.clear(self._folder, re.compile(re.escape(_LATEST)))
        self._store.clear(self._folder, re.compile(rf"{_FILE.pattern}|{PARTIAL_NAME}"))

    def _pointer(self) -> dict[str, Any] | None:
        try:
            pointer: dict[str, Any] = json.loads(self._store.read(f"{self._folder}/{_LATEST}"))
        except NotFoundError:
            return None
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise CheckpointError(
                f"{self._store.uri}/{self._folder}/{_LATEST} is not JSON; delete its folder to "
                "train again from the start."
            ) from None
        return pointer


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
        if archive.testzip() is None:  # torch.load does not look at the checksums
            values = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    if not isinstance(values, dict):
        raise CheckpointError(f"{source} is not a file that mtil wrote, or it is damaged.")
    return values
