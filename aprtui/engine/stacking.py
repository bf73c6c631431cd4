"""Stages of a trace that comes in passes: rows of each put where they belong, whole at the end.

Until then they lie in one file without a name, on the disk that the trace goes to.
"""

from __future__ import annotations

import math
import os
import tempfile
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from aprtui.engine.capture import Capture
from aprtui.engine.plan import PlannedFile
from aprtui.engine.stretches import Stretch
from aprtui.errors import EngineError
from aprtui.formats.tracedir import StageKey
from aprtui.text import clean

__all__ = ["Stack"]

Float32 = npt.NDArray[np.float32]
_SCORES = ("query", "key")


class Stack:
    """A tap (``forward.Tap``) of one sequence. ``begin`` says which rows the next pass gives."""

    def __init__(self, capture: Capture, files: tuple[PlannedFile, ...]) -> None:
        self._capture = capture
        self._files = {file.key: file for file in files}
        self._values = dict(zip(self._files, _room(capture, files), strict=True))
        self._now = Stretch("prefill", 0, 0)

    def __enter__(self) -> Stack:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            for key, file in self._files.items():
                self._capture.put_whole(file, self._values[key])

    def begin(self, stretch: Stretch) -> None:
        """The next pass computes these rows."""
        self._now = stretch

    def wants(self, key: StageKey) -> bool:
        return key in self._files

    def put(self, key: StageKey, value: torch.Tensor) -> None:
        """The rows of this pass: [rows,...], scores [A,rows,keys]; of logits, and of states, the
        last ones stay.

        Raises EngineError when they are of another size than the stage.
        """
        file = self._files.get(key)
        if file is None:
            return
        rows, whole = value.detach().to("cpu", torch.float32).numpy(), self._values[key]
        try:
            last = self._now.first + self._now.rows - 1
            if file.positions == "last" or not {"token", *_SCORES} & {*file.axes}:
                whole[...] = rows.reshape(whole.shape)
            elif isinstance(file.positions, tuple):
                if last in file.positions:
                    whole[file.positions.index(last)] = rows.reshape(-1)
            elif file.axes[-2:] == _SCORES:
                self._scores(whole, rows)
            else:
                whole[self._rows] = rows.reshape(self._now.rows, *whole.shape[1:])
        except ValueError:
            raise EngineError(
                f"a pass of {self._now.rows} rows gives {key} as {list(rows.shape)}, a part of "
                f"{list(whole.shape)}"
            ) from None

    def open_blocks(self, key: StageKey) -> _Blocks | None:
        file = self._files.get(key)
        return None if file is None else _Blocks(self._values[key])

    @property
    def _rows(self) -> slice:
        return slice(self._now.first, self._now.first + self._now.rows)

    def _scores(self, whole: Float32, rows: Float32) -> None:
        keys = rows.shape[-1]
        whole[:, self._rows, :keys] = rows.reshape(whole.shape[0], self._now.rows, keys)


class _Blocks:
    """Takes scores as blocks of queries come: they stand at their positions already."""

    def __init__(self, values: Float32) -> None:
        self._values = values

    def put(self, first_head: int, first_query: int, block: torch.Tensor) -> None:
        heads, queries, keys = block.shape
        place = self._values[first_head:, first_query:][:heads, :queries, :keys]
        place[:] = block.to("cpu", torch.float32).numpy()

    def close(self) -> None:
        """Rows of the next pass may come."""


def _room(capture: Capture, files: tuple[PlannedFile, ...]) -> list[Float32]:
    """Zeros for every file, in a map of one file that is gone when nobody holds it any more."""
    sizes = [math.prod(file.shape) for file in files]
    flat: np.memmap[Any, np.dtype[np.float32]]
    folder = capture.folder.path
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):  # a full disk is an error here, not a SIGBUS later
                os.posix_fallocate(file.fileno(), 0, max(4 * sum(sizes), 4))
            flat = np.memmap(file, np.float32, "w+", shape=(max(sum(sizes), 1),))
    except OSError as error:
        raise EngineError(
            f"{clean(str(folder))}: no room for the rows of all passes: {error.strerror or error}",
            hint="fewer --stages or --layers, or another folder with -o DIR",
        ) from error
    parts, start = [], 0
    for file_, size in zip(files, sizes, strict=True):
        parts.append(np.asarray(flat[start : start + size]).reshape(file_.shape))
        start += size
    return parts
