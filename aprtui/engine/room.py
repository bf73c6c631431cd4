"""Room on the disk for rows that wait until their stages are whole: arrays in a nameless file."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from aprtui.engine.arrays import Float32
from aprtui.errors import EngineError
from aprtui.text import clean

__all__ = ["Room"]

_FIRST_BYTES, _MOST_BYTES = 1 << 20, 256 << 20  # of what the file grows by at a time


class Room:
    """Float32 arrays in a file that has no name in the folder: nothing is left of it however the
    program ends. It grows as they are asked for; what is taken is there to be written to."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file: IO[bytes] | None = None
        self._size = 0  # of the file
        self._next = _FIRST_BYTES
        self._free: Float32 = np.empty(0, np.float32)

    def take(self, shape: tuple[int, ...]) -> Float32:
        """Zeros of a shape. Raises EngineError where the disk has no room for them."""
        count = math.prod(shape)
        if count > self._free.size:
            self._grow(4 * count)
        taken, self._free = self._free[:count], self._free[count:]
        return taken.reshape(shape)

    def reserve(self, values: int) -> None:
        """Have the next so many values lie side by side. Raises EngineError."""
        if values > self._free.size:
            self._grow(4 * values)

    def close(self) -> None:
        """Let go of the file; it is gone when nobody holds its arrays any more."""
        if self._file is not None:
            self._file.close()

    def _grow(self, needed: int) -> None:
        page = mmap.ALLOCATIONGRANULARITY
        size = -(-max(needed, self._next) // page) * page
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._directory)  # noqa: SIM115
            if hasattr(os, "posix_fallocate"):  # a full disk is an error here, not a SIGBUS later
                os.posix_fallocate(self._file.fileno(), self._size, size)
            grown: np.memmap[Any, np.dtype[np.float32]] = np.memmap(
                self._file, np.float32, "r+", self._size, (size // 4,)
            )
        except OSError as error:
            raise EngineError(
                f"{clean(str(self._directory))}: no room for the rows of all passes: "
                f"{error.strerror or error}",
                hint="fewer --stages or --layers, or another folder with -o DIR",
            ) from error
        self._size += size
        self._next = min(2 * self._next, _MOST_BYTES)
        self._free = np.asarray(grown)
