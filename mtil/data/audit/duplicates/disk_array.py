"""Arrays stored in a temporary file, to keep millions of rows out of memory."""

import os
import tempfile
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from mtil.errors import StorageError


class RowArray(Protocol):
    """Rows of an array, in memory or on disk."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def __getitem__(self, rows: Any, /) -> npt.NDArray[Any]:
        """Return the rows of a slice or of an array of indices."""


class DiskArray:
    """Rows in an unnamed temporary file, read on access. Reads are thread-safe."""

    def __init__(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        """Create an array without rows.

        Args:
            shape: shape of a row.
            dtype: type of the values.
        """
        self._shape, self._dtype = shape, np.dtype(dtype)
        self._row_bytes = int(np.prod(shape)) * self._dtype.itemsize
        self._num_rows = 0
        # A memory map would be simpler, but pages once read count as memory of the process.
        self._file = tempfile.TemporaryFile(buffering=0, prefix="mtil-audit-")  # noqa: SIM115

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, rows: npt.NDArray[Any]) -> None:
        """Append rows (n, *shape).

        Raises:
            StorageError: if the temporary file cannot be written, for example on a full disk.
        """
        remaining = np.ascontiguousarray(rows, self._dtype).reshape(-1).view(np.uint8).data
        try:
            # A raw file may write only a part of the data.
            while remaining:
                remaining = remaining[self._file.write(remaining) :]
        except OSError as error:
            raise StorageError(
                f"The audit needs a temporary file, but {tempfile.gettempdir()} cannot be written: "
                f"{error.strerror}. Free some space, or set TMPDIR to a different folder."
            ) from error
        self._num_rows += len(rows)

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, rows: slice | npt.NDArray[np.integer]) -> npt.NDArray[Any]:
        """Read the rows of a slice or of an array of indices."""
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(self._num_rows)
            values = np.empty((max(stop - start, 0), *self._shape), self._dtype)
            self._read(values.reshape(-1).view(np.uint8).data, start)
            return values
        values = np.empty((len(rows), *self._shape), self._dtype)
        size, buffer = self._row_bytes, values.reshape(-1).view(np.uint8).data
        for index, row in enumerate(rows.tolist()):
            self._read(buffer[index * size : (index + 1) * size], row)
        return values

    def _read(self, buffer: memoryview, row: int) -> None:
        # Unlike seek and read, preadv leaves the file position alone, so threads can read at once.
        size = os.preadv(self._file.fileno(), [buffer], row * self._row_bytes)
        assert size == len(buffer)
