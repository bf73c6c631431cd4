"""Stages of a trace that comes in passes: rows of each put where they belong, whole at the end.

Until then they lie on the disk that the trace goes to (``Room``).
"""

from __future__ import annotations

import math
from types import TracebackType

import torch

from aprtui.engine.arrays import Float32
from aprtui.engine.capture import Capture
from aprtui.engine.plan import PlannedFile
from aprtui.engine.room import Room
from aprtui.engine.stretches import Stretch
from aprtui.errors import EngineError
from aprtui.formats.tracedir import StageKey

__all__ = ["Stack"]

_SCORES = ("query", "key")


class Stack:
    """A tap (``forward.Tap``) of one sequence. ``begin`` says which rows the next pass gives."""

    def __init__(self, capture: Capture, files: tuple[PlannedFile, ...]) -> None:
        self._capture = capture
        self._files = {file.key: file for file in files}
        room = Room(capture.folder.path)
        room.reserve(sum(math.prod(file.shape) for file in files))
        self._values = {key: room.take(file.shape) for key, file in self._files.items()}
        self._room = room
        self._now = Stretch("prefill", 0, 0)

    def __enter__(self) -> Stack:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                for key, file in self._files.items():
                    self._capture.put_whole(file, self._values[key])
        finally:
            self._room.close()

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
