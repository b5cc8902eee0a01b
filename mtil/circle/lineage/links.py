"""What an image's lineage is made of: values that name files, and digests that tie them."""

from dataclasses import dataclass

from mtil.run.maps import Origin


@dataclass(frozen=True, kw_only=True)
class DataLink:
    """The data set's shard that holds the image."""

    uri: str
    version: int
    fingerprint: str
    file: str
    sha256: str
    fold: int
    """Whose test rows the image is among; -1 is the holdout."""
    part: int


@dataclass(frozen=True, kw_only=True)
class MapLink:
    """A map shard that holds the image's map, or held it."""

    round: int
    fold: int
    part: int | None
    file: str
    is_removed: bool
    """Its action is done, and the file is gone."""
    origin: Origin | None
    """What the file says of itself; None if it is removed or damaged."""
    model: str
    """The file of the model that wrote it."""
    given: str | None
    """The map shard of the round before, from which the model was given the image's map."""


@dataclass(frozen=True, kw_only=True)
class ModelLink:
    """A training's model."""

    round: int
    fold: int
    part: int | None
    file: str
    sha256: str
    fingerprint: str
    config_digest: str
    version: str
    is_readable: bool
    """Whether the file is whole and this version of mtil can look into it."""
    starts_from: str | None
    """The file of the model whose weights it began with; None means from scratch."""
    has_seen: bool
    """Whether the image is among the rows that it was trained on."""
    reads: str | None
    """The map shard of the round before, from which it read the image's map in training."""


@dataclass(frozen=True, kw_only=True)
class PassLink:
    """What the predictions say of one pass over the image."""

    number: int
    probability: float
    models: tuple[str, ...]
    """The files of the models that judged it."""
    fingerprint: str
    config_digest: str
    version: str


@dataclass(frozen=True, kw_only=True)
class PredictionLink:
    """The image's latest predictions as a test image."""

    round: int
    fold: int
    file: str
    sha256: str
    as_in_ledger: bool | None
    """Whether the ledger names this file; `mtil evaluate` may have written it again since. None if
    the ledger names none."""
    passes: tuple[PassLink, ...]


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """An image's latest map and predictions, and all that they come from."""

    sample_id: str
    folds: tuple[int, ...]
    """Those that have trained on the image."""
    chain: tuple[MapLink | ModelLink, ...]
    """The latest map and what it was made from, the latest first; without any map, the latest
    model that was trained on the image."""
    prediction: PredictionLink | None
    judges: tuple[ModelLink, ...]
    """The models that predicted, and those that they started from, the latest first."""
    data: DataLink
    disagreements: tuple[str, ...]
    """A sentence for each thing that the files do not agree on."""
