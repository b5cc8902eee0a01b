"""Distributed multi-task training for breast-ultrasound images on Ray.

The functions here run in the calling process, without Ray. `import mtil` is fast: PyTorch and other
libraries load on the first use of a function.

Example:
    >>> import mtil
    >>> result = mtil.train_fold(config, data, run, fold=0)
    >>> figures = mtil.evaluate(run)
    >>> prediction = mtil.load(run)(image)
    >>> prediction.mask.dtype
    dtype('bool')
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "Config",
    "FoldResult",
    "ImagePrediction",
    "ImagePredictor",
    "MtilError",
    "PreparedDataset",
    "SampleArrays",
    "UserError",
    "__version__",
    "evaluate",
    "load",
    "load_config",
    "open_dataset",
    "train_fold",
]

if TYPE_CHECKING:
    from mtil.config import Config
    from mtil.errors import MtilError, UserError
    from mtil.library.dataset import PreparedDataset, SampleArrays, open_dataset
    from mtil.library.evaluation import evaluate
    from mtil.library.predictor import ImagePrediction, ImagePredictor, load
    from mtil.library.training import train_fold
    from mtil.presets import load_config
    from mtil.run.folder import FoldResult

_MODULES = {
    "Config": "mtil.config",
    "FoldResult": "mtil.run.folder",
    "ImagePrediction": "mtil.library.predictor",
    "ImagePredictor": "mtil.library.predictor",
    "MtilError": "mtil.errors",
    "PreparedDataset": "mtil.library.dataset",
    "SampleArrays": "mtil.library.dataset",
    "UserError": "mtil.errors",
    "evaluate": "mtil.library.evaluation",
    "load": "mtil.library.predictor",
    "load_config": "mtil.presets",
    "open_dataset": "mtil.library.dataset",
    "train_fold": "mtil.library.training",
}
"""Module by public name."""


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _MODULES:
        raise AttributeError(f"module 'mtil' has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
