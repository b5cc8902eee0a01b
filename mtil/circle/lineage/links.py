"""Values of an image lineage: file names, tied together by digests."""

from dataclasses import dataclass

from mtil.run.maps import MapOrigin


@dataclass(frozen=True, kw_only=True)
class DataLink:
    """Data set shard holding the image."""

    uri: str
    version: int
    fingerprint: str
    file: str
    sha256: str
    fold: int
    """Fold of the image: the image is a test image of the fold; -1 is the holdout."""
    part: int


@dataclass(frozen=True, kw_only=True)
class MapLink:
    """Map shard holding the image's map. The file may have been removed."""

    round: int
    fold: int
    part: int | None
    file: str
    is_removed: bool
    """True if the action is done and the file is gone."""
    origin: MapOrigin | None
    """Origin stored in the file; None if the file is removed or damaged."""
    model: str
    """Model file behind the maps."""
    given: str | None
    """Map shard of the previous round given to the model as prior; None without priors."""


@dataclass(frozen=True, kw_only=True)
class ModelLink:
    """Model of a training."""

    round: int
    fold: int
    part: int | None
    file: str
    sha256: str
    fingerprint: str
    config_digest: str
    version: str
    is_readable: bool
    """True if the file is whole and usable by the installed mtil version."""
    starts_from: str | None
    """Model file with the initial weights; None means training from scratch."""
    has_seen: bool
    """True if the image is among the training rows."""
    reads: str | None
    """Map shard of the previous round read in training for the image; None without priors."""


@dataclass(frozen=True, kw_only=True)
class PassLink:
    """Prediction of a pass over the image."""

    number: int
    probability: float
    models: tuple[str, ...]
    """Model files of the ensemble."""
    fingerprint: str
    config_digest: str
    version: str


@dataclass(frozen=True, kw_only=True)
class PredictionLink:
    """Latest predictions of the image as a test image."""

    round: int
    fold: int
    file: str
    sha256: str
    as_in_ledger: bool | None
    """True if the sha256 matches the ledger. `mtil evaluate` may have rewritten the file later.
    None without an entry in the ledger."""
    passes: tuple[PassLink, ...]


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """Latest map and predictions of an image, with all sources."""

    sample_id: str
    folds: tuple[int, ...]
    """Folds trained on the image."""
    chain: tuple[MapLink | ModelLink, ...]
    """Latest map and all sources, latest first. Without any map, the latest model trained on the
    image, with all sources."""
    prediction: PredictionLink | None
    judges: tuple[ModelLink, ...]
    """Models of the predictions and their initial models, latest first."""
    data: DataLink
    disagreements: tuple[str, ...]
    """A sentence for every contradiction between files."""
