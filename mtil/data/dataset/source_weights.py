"""Weights of the images of a source collection in all loss terms."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from mtil.data.dataset.manifest import SourceInfo
from mtil.errors import ConfigError


class SourceWeights:
    """The weight of every image, by its source, which follows from the sample id."""

    def __init__(self, sources: Sequence[SourceInfo], weights: Mapping[str, float]) -> None:
        """Assign weights to the sources of a data set; a source without a weight has 1.

        Args:
            sources: the sources of the data set.
            weights: weight by name or prefix of a source, in upper or lower case.

        Raises:
            ConfigError: if a name is no source of the data set, or if all weights are 0.
        """
        by_name = {name.lower(): weight for name, weight in weights.items()}
        known = {name.lower() for source in sources for name in (source.name, source.prefix)} - {""}
        unknown = sorted(by_name.keys() - known)
        if unknown:
            names = ", ".join(source.prefix or source.name for source in sources)
            raise ConfigError(
                f"`data.source_weights` must name sources of the data set, which are {names}, but "
                f"names {unknown[0]!r}."
            )
        self._weight_of = {
            source.prefix: by_name.get(source.prefix.lower(), by_name.get(source.name.lower(), 1.0))
            for source in sources
        }
        if not any(self._weight_of.values()):
            raise ConfigError(
                "`data.source_weights` must leave a source a weight above 0, but gives all 0."
            )

    def __call__(self, sample_ids: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return the weight of each image: (n,)."""
        return np.array([self._find(name) for name in sample_ids], np.float32)

    def _find(self, sample_id: str) -> float:
        prefix, slash, _ = sample_id.partition("/")
        if slash and prefix in self._weight_of:
            return self._weight_of[prefix]
        return self._weight_of.get("", 1.0)
