"""A prepared data set as arrays and as a PyTorch data set. No Ray."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mtil.data.dataset import manifest as manifests
from mtil.data.dataset.batches import TRAINING_COLUMNS, to_squares
from mtil.data.dataset.manifest import Manifest
from mtil.data.dataset.selection import Role, select_rows
from mtil.data.dataset.shards import pixels, read_shard
from mtil.storage import Store, open_store

if TYPE_CHECKING:
    from torch.utils.data import Dataset

CLASSES = ("benign", "malignant", "normal")
"""Names of the labels 0, 1 and 2."""

_COLUMNS = (*TRAINING_COLUMNS, "group", "fold", "part")


@dataclass(frozen=True)
class SampleArrays:
    """Rows of a data set as arrays, at the stored size s."""

    sample_id: tuple[str, ...]
    image: npt.NDArray[np.uint8]
    """(n, s, s) gray."""
    mask: npt.NDArray[np.bool_]
    """(n, s, s) lesion; empty for normal images."""
    label: npt.NDArray[np.int64]
    """(n,): 0 benign, 1 malignant, 2 normal."""
    group: tuple[str, ...]
    """Images of one group are always in one fold."""
    fold: npt.NDArray[np.int64]
    """(n,): the fold that holds the image out; -1 for the holdout."""

    def __len__(self) -> int:
        return len(self.sample_id)


class PreparedDataset:
    """A prepared data set: what it holds, and its rows by fold and role."""

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self._store = store
        self.manifest = manifest

    def __len__(self) -> int:
        return self.manifest.num_rows

    def __repr__(self) -> str:
        return f"<{len(self)} images in {self.num_folds} folds at {self.uri}>"

    @property
    def uri(self) -> str:
        """Where the data set is."""
        return self._store.uri

    @property
    def num_folds(self) -> int:
        """Number of folds; fold indices count from 0."""
        return self.manifest.num_folds

    @property
    def image_size(self) -> int:
        """Side of the stored images in pixels."""
        return self.manifest.image_size

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the pixels, masks, labels, groups and folds."""
        return self.manifest.fingerprint

    def rows(self, fold: int | None = None, role: Role = "train") -> SampleArrays:
        """Read rows into memory.

        Args:
            fold: the fold that is held out for testing; by default all rows are read.
            role: which of the fold's rows: `train`, `validation` (an inner division of the other
                folds) or `test`. Ignored without a fold.

        Raises:
            DataError: if there is no such fold, or a shard is missing or damaged.
        """
        table = pa.concat_tables(self._tables(fold, role))
        size = self.image_size
        bits = np.unpackbits(pixels(table.column("mask")), axis=1, count=size * size)
        return SampleArrays(
            sample_id=tuple(table.column("sample_id").to_pylist()),
            image=to_squares(pixels(table.column("image"))),
            mask=to_squares(bits).astype(np.bool_),
            label=table.column("label").to_numpy().astype(np.int64),
            group=tuple(table.column("group").to_pylist()),
            fold=table.column("fold").to_numpy().astype(np.int64),
        )

    def torch(self, fold: int | None = None, role: Role = "train") -> "Dataset[dict[str, Any]]":
        """Return rows as a PyTorch data set, for a `DataLoader`.

        Each item holds `sample_id`, `image` float32 (1, s, s) from 0 to 1, `mask` float32
        (1, s, s) of 0 and 1, and `label` int64.

        Args:
            fold: see `rows`.
            role: see `rows`.

        Raises:
            DataError: see `rows`.
        """
        from mtil.library.torch_dataset import TorchDataset

        return TorchDataset(self.rows(fold, role))

    def _tables(self, fold: int | None, role: Role) -> Iterator[pa.Table]:
        selection = None if fold is None else select_rows(self.manifest, fold, role)
        for shard in self.manifest.shards:
            if selection is None:
                yield read_shard(self._store, shard, _COLUMNS)
            elif selection.count(shard):
                table = read_shard(self._store, shard, _COLUMNS)
                yield table.take(pa.array(selection.rows(table)))


def open_dataset(uri: str, version: int | None = None) -> PreparedDataset:
    """Open a data set that `mtil prepare` wrote.

    Args:
        uri: path or URI.
        version: which version; by default the newest.

    Raises:
        DataError: if there is no data set or no such version.

    Example:
        >>> import mtil
        >>> dataset = mtil.open_dataset(data)
        >>> test = dataset.rows(fold=0, role="test")
        >>> test.image.dtype, test.image.shape == test.mask.shape
        (dtype('uint8'), True)
    """
    store = open_store(uri)
    manifest = (
        manifests.load_manifest(store)
        if version is None
        else manifests.load_version(store, version)
    )
    return PreparedDataset(store, manifest)
