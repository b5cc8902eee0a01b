"""The configuration of a run: frozen dataclasses that refuse nonsense when they are made.

One mechanism serves YAML files, command-line overrides, stored runs and search trials: a tree of
plain values is laid over a base configuration and validated, key by key.
"""

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import field
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from mtil.documents import Document, shortened, shown
from mtil.errors import ConfigError

Share = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]

# Upper bounds refuse what no machine can hold or no training comes to the end of. They are far
# above what makes sense, so that what an older version has begun can still be read.
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
"""What PyTorch takes as a seed."""
Side = Annotated[int, Field(ge=32, le=4096, multiple_of=32)]
"""Pixels of a square image's side."""
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
    """How rows become batches."""

    image_size: Side = 256
    """Side of the network's square input in pixels; stored images of another size are resized."""
    mode: Literal["auto", "resident", "streaming"] = "auto"
    """Keep the training rows in memory, stream them from storage, or decide by their size."""
    resident_gib: Annotated[float, Field(gt=0, le=1_000_000)] = 4.0
    """With `auto`: the most memory that one worker's training rows may take, in GiB."""
    shuffle_shards: Annotated[int, Field(ge=1, le=100_000)] = 4
    """How many shards are shuffled together."""
    normals: bool = True
    """Whether images without a lesion are trained on."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AugmentConfig:
    """Random changes to a training image; image, mask and prior map move together."""

    enabled: bool = True
    """Whether anything is changed at all."""
    horizontal_flip: Share = 0.5
    """Probability of a left-right flip."""
    vertical_flip: Share = 0.0
    """Probability of an up-down flip; off, since the acoustic shadow has a direction."""
    rotation: Annotated[float, Field(ge=0, le=180)] = 20.0
    """Largest rotation in degrees."""
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.15
    """Largest relative change of scale."""
    translation: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Largest shift as a share of the side."""
    brightness: Share = 0.1
    """Largest additive change of brightness, images being in [0, 1]."""
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Largest relative change of contrast."""
    gamma: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Largest relative change of gamma."""
    speckle: Annotated[float, Field(ge=0, le=10)] = 0.1
    """Largest standard deviation of the multiplicative noise."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EncoderConfig:
    """The shared encoder."""

    name: str = "efficientnet_lite0"
    """`efficientnet_lite0`, `resnet18`, `resnet34`, `resnet10_tiny` (with few channels, to try
    things out), or `hf:NAME-or-path` (extra `mtil[hf]`)."""
    pretrained: bool = True
    """Start from ImageNet weights, where the encoder has some."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Probability in training that an image skips the last residual block; it falls to zero
    towards the first (`efficientnet_lite0` only)."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AttentionConfig:
    """Attention within and between the tasks."""

    kind: Literal["self", "cross", "both", "none"] = "both"
    """Self-task attention, cross-task attention, both, or none."""
    form: Literal["location", "semantic", "both"] = "both"
    """Attention over positions, over channels, or both."""
    direction: Literal["both", "seg_to_cls", "cls_to_seg"] = "both"
    """Which task's features reach the other."""
    levels: tuple[Literal[8, 16, 32], ...] = (32, 16)
    """Strides at which the tasks interact."""
    cell_stride: Literal[8, 16, 32] = 32
    """Stride to which keys and values are averaged for attention over positions, where finer."""
    fusion: Literal["gate", "concat", "sum"] = "gate"
    """How self- and cross-task messages are joined: by a gate predicted per sample, or plainly."""
    num_heads: Channels = 4
    """Attention heads; must divide `width`."""
    width: Channels = 96
    """Channels of the attention's tokens."""

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
    """Channel weights over both sources, squeeze-and-excitation, ECA, or a plain concatenation."""
    reduction: Channels = 8
    """Factor by which the channel attention of `fab` and `se` narrows its hidden layer."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PriorConfig:
    """The previous round's segmentation map as an input; a zero map means that there is none."""

    stem: bool = True
    """Enter as an extra channel of the stem."""
    aggregation: bool = True
    """Enter the gates of the aggregation blocks."""
    attention: bool = True
    """Enter as a bias on the keys of the location attention."""
    dropout: Share = 0.3
    """Probability that a training image's map is replaced by zeros."""
    roughen: Share = 0.5
    """Probability that a training image's map is eroded, dilated or blurred."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class HeadConfig:
    """The classification head."""

    pooling: Literal["mask", "plain"] = "mask"
    """Pool the lesion, its ring and the background apart, or everything together."""
    detach_mask: bool = True
    """Keep the classification loss from changing the mask through the pooling."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Dropout before the last layer."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelConfig:
    """The two-task network."""

    baseline: bool = False
    """Hard sharing only: same encoder and decoder, plain skips, plain pooling, no interaction."""
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
    dice: Share = 0.5
    """Share of Dice in the segmentation term; the rest is binary cross-entropy."""
    boundary: Weight = 0.0
    """Weight of the boundary term inside the segmentation task."""
    deep_supervision: Weight = 0.4
    """Weight of the coarsest side output; they fall to it evenly from the final one's 1."""
    classification_kind: Literal["cross_entropy", "focal"] = "cross_entropy"
    """The classification term."""
    focal_gamma: Annotated[float, Field(ge=0, le=100)] = 2.0
    """Exponent of the focal loss."""
    class_balance: bool = True
    """Weigh the classes by their inverse frequency in the training rows."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.05
    """How far the labels are moved towards one half."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainConfig:
    """Optimisation and resources."""

    num_epochs: Epochs = 100
    """Passes over the training rows."""
    batch_size: BatchSize = 16
    """Images in an optimiser step, over all workers together."""
    learning_rate: Rate = 1e-3
    """Peak rate of everything but the encoder."""
    encoder_learning_rate: Rate = 3e-4
    """Peak rate of the encoder."""
    rates_for_batch_size: BatchSize | None = None
    """The batch size that both rates are meant for: with another `batch_size` they are multiplied
    by the square root of the ratio. By default they are taken as they are."""
    weight_decay: Annotated[float, Field(ge=0, le=100)] = 1e-2
    """AdamW's weight decay; none on biases and normalisation."""
    warmup_epochs: Annotated[float, Field(ge=0, le=100_000)] = 2.0
    """Epochs over which the rates rise from zero; they fall along a cosine afterwards."""
    clip_norm: Annotated[float, Field(gt=0, le=1_000_000_000_000)] = 1.0
    """Largest norm of the gradient."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Decay of the averaged weights a step; 0 evaluates the plain weights."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto` is bf16 autocast on GPUs that have it, else fp32."""
    channels_last: bool = True
    """Memory layout of activations."""
    compile: bool = False
    """Run the network through `torch.compile`."""
    cuda_graphs: bool = False
    """On a GPU: replay the network's kernels as CUDA graphs, with `compile` those that it makes."""
    dice_weight: Share = 0.5
    """The score that picks the epoch: this share of Dice and the rest of AUC, inner validation."""
    score_tolerance: Share = 0.02
    """The last epoch is kept whose score is within this of the highest: with few validation images
    smaller differences are chance. With 0 it is the best one, the last of several."""
    patience: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Stop after so many epochs without a better score; 0 never stops early."""
    num_workers: Workers = 1
    """Training processes."""
    min_workers: Workers | None = None
    """Go on with as few processes as this while machines are missing, and with `num_workers` again
    when they are back; an optimiser step is of `batch_size` images all the same. By default a
    training waits until all find room."""
    cpus_per_worker: Annotated[float, Field(ge=0.01, le=4096)] | None = None
    """CPUs that each worker reserves and, without a GPU, computes on; by default it reserves what
    leaves room for Ray Data, and computes on its share of all CPUs of the node."""
    gpus_per_worker: Annotated[float, Field(ge=0, le=64)] = 0.0
    """GPUs that each worker reserves."""
    max_failures: Retries = 3
    """How often the workers are started again after a failure; -1 means always."""

    def __post_init__(self) -> None:
        if self.batch_size % self.num_workers:
            raise ConfigError(
                f"`train.batch_size` must be a multiple of `train.num_workers`, but got "
                f"{self.batch_size} for {self.num_workers} workers."
            )
        gpus = self.gpus_per_worker
        if 0 < gpus < 0.01 or (gpus > 1 and gpus % 1):
            raise ConfigError(
                "`train.gpus_per_worker` must be a whole number or a share from 0.01 to 1, but is "
                f"{gpus:g}; set it to 1, or to 0 for the CPU."
            )
        if self.cuda_graphs and not self.gpus_per_worker:
            raise ConfigError(
                "`train.cuda_graphs` needs a GPU a worker, but `train.gpus_per_worker` is 0; set "
                "it to 1, or leave out `train.cuda_graphs`."
            )
        if self.min_workers and self.min_workers > self.num_workers:
            raise ConfigError(
                f"`train.min_workers` must not exceed `train.num_workers`, but got "
                f"{self.min_workers} for {self.num_workers} workers."
            )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PredictConfig:
    """How a trained network looks at an image."""

    views: Literal["plain", "flip", "flip_and_scale"] = "flip_and_scale"
    """Average what it says of the image, of its mirror image, and of both a fifth larger."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CircleConfig:
    """Rounds of training in which one round's segmentation maps refine the next."""

    num_rounds: Rounds = 3
    """Trainings of each fold's model; the first has no maps."""
    maps: Literal["in_sample", "cross_fit", "recycle"] = "in_sample"
    """Who maps a training image: the model trained on it, an inner model that has never seen it,
    or the network itself within the training step."""
    num_parts: Parts = 4
    """With `cross_fit`: parts of the training rows, and inner models that each leave one out."""
    num_passes: Passes = 2
    """Passes over a test image, the first from a zero map; with `recycle` also the most inside a
    training step."""
    test: Literal["passes", "chain"] = "passes"
    """Test images go through the last model again and again, or through each round's in turn."""
    warm_start: bool = True
    """Start a round from the weights of the round before, instead of from scratch."""
    max_attempts: Attempts = 3
    """How often a step may fail before its fold is given up."""

    def __post_init__(self) -> None:
        if self.maps == "recycle" and self.test == "chain":
            raise ConfigError(
                "With `circle.maps` recycle a model is trained on its own output, so `circle.test` "
                "must be passes, but is chain."
            )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Config:
    """Everything that decides a run's result, and the resources that it runs on."""

    seed: Seed = 0
    """Seed of weights, order and augmentation."""
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    predict: PredictConfig = field(default_factory=PredictConfig)
    circle: CircleConfig = field(default_factory=CircleConfig)

    def __post_init__(self) -> None:
        if self.train.cuda_graphs and self.circle.maps == "recycle":
            raise ConfigError(
                "`train.cuda_graphs` must stay off with `circle.maps` recycle, whose passes "
                "overwrite one another's results in a graph."
            )


_ADAPTER: TypeAdapter[Config] = TypeAdapter(Config)

_SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "multiple_of": "multiple of"}


def to_dict(config: Config) -> dict[str, Any]:
    """Return the configuration as plain nested values that JSON and YAML can hold."""
    values: dict[str, Any] = _ADAPTER.dump_python(config, mode="json")
    return values


def from_dict(values: Mapping[str, Any], base: Config | None = None) -> Config:
    """Lay nested values over a base configuration (the defaults if none) and validate.

    Raises:
        ConfigError: naming the first key that is unknown or whose value is not allowed.
    """
    tree = to_dict(base or Config())
    _merge(tree, values, prefix="")
    try:  # as JSON, since strict types then still let lists be tuples and groups be dataclasses
        return _ADAPTER.validate_json(json.dumps(tree), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if isinstance(cause := first.get("ctx", {}).get("error"), ConfigError):
            raise cause from None
        key = ".".join(str(part) for part in first["loc"] if part != "function-after")
        rule = first["msg"][:1].lower() + first["msg"][1:]
        raise ConfigError(f"`{key}` is wrong: {rule}, but got {shown(first['input'])}.") from None


def with_overrides(base: Config, overrides: Mapping[str, str]) -> Config:
    """Lay dotted command-line overrides over a configuration.

    Args:
        base: the configuration to start from.
        overrides: `{"model.attention.num-heads": "4"}`; values are read as YAML.
    """
    tree: dict[str, Any] = {}
    for key, text in overrides.items():
        *parents, leaf = key.replace("-", "_").split(".")
        node = tree
        for depth, parent in enumerate(parents, start=1):
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                group = ".".join(parents[:depth])
                raise ConfigError(f"`{group}` must be a group of keys, but got {shown(node)}.")
        node[leaf] = _scalar(key, text)
    return from_dict(tree, base)


def from_yaml(text: str | bytes, base: Config | None = None, *, source: str) -> Config:
    """Read a YAML configuration; `source` names it in errors."""
    document = Document(f"The configuration {source}", "correct the file", ConfigError)
    values = document.yaml(text)
    if values is None:
        values = {}
    if not isinstance(values, dict):
        document.refuse(f"must be a mapping of keys, but holds {shown(values)}")
    return from_dict(values, base)


def digest(config: Config) -> str:
    """Return the sha256 of the configuration's canonical JSON, in hex."""
    return digest_of(to_dict(config))


def digest_of(values: Mapping[str, Any]) -> str:
    """Return the `digest` of a stored configuration, whatever version wrote it."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def keys() -> Sequence[str]:
    """Return every dotted key, in the order of the dataclasses."""
    return list(_leaves(to_dict(Config()), ""))


def documented(base: Config | None = None) -> list[tuple[str, str, Any]]:
    """Return (dotted key, what it takes, value) of every key, for help texts."""
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
    """Say in a few words which values a type takes."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "|".join(str(value) for value in arguments)
    if origin is Annotated:
        rules = [
            f"{sign} {_plain(getattr(rule, name))}"
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


def _plain(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"


def _merge(tree: dict[str, Any], values: Mapping[str, Any], prefix: str) -> None:
    for key, value in values.items():
        name = shortened(f"{prefix}{key}")
        if key not in tree:
            raise ConfigError(f"`{name}` is not a configuration key{_suggestion(name)}.")
        if isinstance(tree[key], dict):
            if not isinstance(value, Mapping):
                raise ConfigError(f"`{name}` must be a group of keys, but got {shown(value)}.")
            _merge(tree[key], value, f"{name}.")
        else:
            tree[key] = value


def _suggestion(name: str) -> str:
    close = difflib.get_close_matches(name, keys(), n=1)
    return f"; did you mean `{close[0]}`" if close else "; `mtil train --keys` lists them"


def _scalar(key: str, text: str) -> Any:
    return Document(f"`{shortened(key)}` on the command line", "correct it", ConfigError).yaml(text)


def _leaves(tree: Mapping[str, Any], prefix: str) -> Sequence[str]:
    names: list[str] = []
    for key, value in tree.items():
        if isinstance(value, dict):
            names.extend(_leaves(value, f"{prefix}{key}."))
        else:
            names.append(f"{prefix}{key}")
    return names
