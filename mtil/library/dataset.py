"""Read a prepared data set as arrays or as a PyTorch data set. No Ray."""

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
    """The n samples of a selection as arrays, with stored images of side s."""

    sample_id: tuple[str, ...]
    """Ids of the samples, length n."""
    image: npt.NDArray[np.uint8]
    """(n, s, s), gray values from 0 to 255."""
    mask: npt.NDArray[np.bool_]
    """(n, s, s), True in the lesion; all False for normal images."""
    label: npt.NDArray[np.int64]
    """(n,), index into `CLASSES`: 0 benign, 1 malignant, 2 normal."""
    group: tuple[str, ...]
    """Groups of the samples, length n. Samples of a group are in the same fold."""
    fold: npt.NDArray[np.int64]
    """(n,), the fold that tests the sample; -1 for the holdout."""

    def __len__(self) -> int:
        return len(self.sample_id)


class PreparedDataset:
    """A prepared data set. Open with `open_dataset`; read samples with `rows` or `torch`."""

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self._store = store
        self.manifest = manifest

    def __len__(self) -> int:
        return self.manifest.num_rows

    def __repr__(self) -> str:
        return f"<{len(self)} images in {self.num_folds} folds at {self.uri}>"

    @property
    def uri(self) -> str:
        """URI of the data set."""
        return self._store.uri

    @property
    def num_folds(self) -> int:
        """Number of folds; indices run from 0 to `num_folds - 1`."""
        return self.manifest.num_folds

    @property
    def image_size(self) -> int:
        """Side of the stored images in pixels."""
        return self.manifest.image_size

    @property
    def fingerprint(self) -> str:
        """SHA-256 of pixels, masks, labels, groups and folds, as hexadecimal text."""
        return self.manifest.fingerprint

    def rows(self, fold: int | None = None, role: Role = "train") -> SampleArrays:
        """Read samples into memory.

        Args:
            fold: the fold held out for testing. None reads all samples of the data set, the holdout
                included.
            role: which samples to read. `test` means the samples of the held-out fold. `validation`
                means one inner part of the remaining folds, and `train` the rest. Ignored if `fold`
                is None.

        Returns:
            the samples in the order of the shards.

        Raises:
            DataError: if the data set lacks the fold, or a shard is missing or damaged.
        """
        table = pa.concat_tables(self._tables(fold, role))
        size = self.image_size
        # Masks are stored with 1 bit a pixel; `count` cuts the padding of the last byte.
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
        """Read samples into memory as a PyTorch data set, for a `DataLoader`.

        An item is a dictionary with these keys:

        - `sample_id`: str.
        - `image`: float32 tensor (1, s, s), from 0 to 1.
        - `mask`: float32 tensor (1, s, s), 1 in the lesion and 0 elsewhere.
        - `label`: int64 tensor (), 0 benign, 1 malignant, 2 normal.

        Args:
            fold: see `rows`.
            role: see `rows`.

        Raises:
            DataError: see `rows`.
        """
        # Imported late: reading arrays needs no PyTorch.
        from mtil.library.torch_dataset import TorchDataset

        return TorchDataset(self.rows(fold, role))

    def _tables(self, fold: int | None, role: Role) -> Iterator[pa.Table]:
        selection = None if fold is None else select_rows(self.manifest, fold, role)
        for shard in self.manifest.shards:
            if selection is None:
                yield read_shard(self._store, shard, _COLUMNS)
            # By the counts in the manifest, shards without a selected row stay unread.
            elif selection.count(shard):
                table = read_shard(self._store, shard, _COLUMNS)
                yield table.take(pa.array(selection.rows(table)))


def open_dataset(uri: str, version: int | None = None) -> PreparedDataset:
    """Open a data set written by `mtil prepare`. Reads the manifest, but no samples.

    Args:
        uri: path or URI of the data set.
        version: version to open; by default the newest.

    Returns:
        the data set.

    Raises:
        DataError: if `uri` has no data set, or the data set lacks the version.

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
