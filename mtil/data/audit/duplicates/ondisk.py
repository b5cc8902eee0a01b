"""Arrays that wait in a temporary file, so that millions of rows take no memory."""

import os
import tempfile
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from mtil.errors import StorageError


class Rows(Protocol):
    """The rows of an array, in memory or not."""

    def __len__(self) -> int:
        """Return how many there are."""

    def __getitem__(self, rows: Any, /) -> npt.NDArray[Any]:
        """Return a slice of them, or those of an array of indices."""


class OnDisk:
    """Rows in a file without a name, which are read when they are asked for, by any thread.

    A memory map would do the same, but what has been looked at counts as the process's memory.
    """

    def __init__(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        """Start with no row.

        Args:
            shape: of a row.
            dtype: of its values.
        """
        self._shape, self._dtype = shape, np.dtype(dtype)
        self._row_bytes = int(np.prod(shape)) * self._dtype.itemsize
        self._num_rows = 0
        self._file = tempfile.TemporaryFile(buffering=0, prefix="mtil-audit-")  # noqa: SIM115

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, rows: npt.NDArray[Any]) -> None:
        """Add rows (n, *shape) at the end.

        Raises:
            StorageError: if the disk is full.
        """
        left = np.ascontiguousarray(rows, self._dtype).reshape(-1).view(np.uint8).data
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise StorageError(
                f"The audit needs a temporary file, but {tempfile.gettempdir()} cannot be written: "
                f"{error.strerror}; free some space, or set TMPDIR to another folder."
            ) from error
        self._num_rows += len(rows)

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, rows: slice | npt.NDArray[np.integer]) -> npt.NDArray[Any]:
        """Read a slice of rows, or those of an array of indices."""
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(self._num_rows)
            found = np.empty((max(stop - start, 0), *self._shape), self._dtype)
            self._read(found.reshape(-1).view(np.uint8).data, start)
            return found
        found = np.empty((len(rows), *self._shape), self._dtype)
        size, into = self._row_bytes, found.reshape(-1).view(np.uint8).data
        for at, row in enumerate(rows.tolist()):
            self._read(into[at * size : (at + 1) * size], row)
        return found

    def _read(self, into: memoryview, row: int) -> None:
        size = os.preadv(self._file.fileno(), [into], row * self._row_bytes)
        assert size == len(into)
