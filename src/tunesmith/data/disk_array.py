"""An array that only grows, in a file without a name: what has one entry per word of millions of rows and is seldom read.

The file is gone when the array is closed, however the process ends. Knows neither rows nor what the numbers mean.
"""

from __future__ import annotations

import mmap
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from tunesmith.errors import DataError


class DiskArray:
    """Entries of one type, appended; a context that closes the file. folder: where that lies, None = the system's folder
    for temporary files. DataError where it cannot be written."""

    def __init__(self, dtype: Any, folder: Path | None) -> None:
        self._dtype = np.dtype(dtype)
        self._folder = folder
        self._size = 0
        try:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by __exit__
        except OSError as error:
            raise self._unwritable(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        return self._size

    def append(self, values: np.ndarray) -> None:
        """Put all entries of `values`, in C order, behind those before."""
        try:
            self._file.write(np.ascontiguousarray(values, self._dtype).data)
            self._file.flush()
        except OSError as error:
            raise self._unwritable(error) from error
        self._size += values.size

    def read(self) -> np.ndarray:
        """All entries (size,), read from the file where they are looked at. Let go of it soon: what was looked at
        counts as memory of the process until then."""
        if not self._size:
            return np.empty(0, self._dtype)
        return np.frombuffer(mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ), self._dtype, self._size)

    def _unwritable(self, error: OSError) -> DataError:
        where = str(self._folder or tempfile.gettempdir())
        written = self._size * self._dtype.itemsize
        return DataError(
            f"no temporary file could be written after {written:,} bytes: {error.strerror or error}",
            where=where,
            hint="make room there, or set TMPDIR to a folder that has some",
        )
