"""A weight's own values, a window of rows at a time: here where NumPy decodes them, else by the
engine in a process of its own, which ends with the window."""

from __future__ import annotations

import math
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from aprtui.child import command_of
from aprtui.errors import EngineError
from aprtui.formats.modelfile import TensorEntry
from aprtui.formats.quantised.scales import scale_of
from aprtui.text import clean, count, number
from aprtui.tui.reduce import Window
from aprtui.tui.stage_table import index_in, numbers_of
from aprtui.tui.weight_sample import rows_at

__all__ = ["WINDOW_VALUES", "WeightTable", "place_of", "read_window", "told_of_cell"]

WINDOW_VALUES = 1 << 19  # of one window of rows: 2 MiB
_MOST_ROWS = 256
_CHILD_S = 120.0
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class WeightTable:
    """A tensor as rows of its last axis; of the rows ``first``.. the values [n, columns] are
    here."""

    entry: TensorEntry
    first: int
    values: Float32

    @property
    def rows(self) -> int:
        return math.prod(self.entry.shape[:-1])

    @property
    def columns(self) -> int:
        return self.entry.shape[-1] if self.entry.shape else 1

    def holds(self, row: int) -> bool:
        return self.first <= row < self.first + len(self.values)

    def row_label(self, row: int) -> str:
        """The row; of packed experts which one's."""
        if len(self.entry.shape) < 3:
            return str(row)
        expert, place = divmod(row, self.entry.shape[-2])
        return f"e{expert} {place}"

    def column_label(self, column: int) -> str:
        return str(column)

    def largest(self, block: Window) -> tuple[int, int]:
        """The row and column of a NaN there, else of the largest magnitude, of the rows that are
        here."""
        rows = self.values[block.top - self.first : block.bottom - self.first]
        sizes = np.abs(rows[:, block.left : block.right])
        row, column = np.unravel_index(int(sizes.argmax()), sizes.shape)
        return block.top + int(row), block.left + int(column)

    def cell(self, row: int, column: int) -> float | None:
        return float(self.values[row - self.first, column]) if self.holds(row) else None


def place_of(entry: TensorEntry, text: str) -> Window:
    """The one value at ``row,column``, or ``expert,row,column``, as a person writes a place.

    Raises UsageError where there is none.
    """
    columns = entry.shape[-1] if entry.shape else 1
    grid = (math.prod(entry.shape[:-1]), columns)
    index = index_in(numbers_of(text, "row,column"), entry.shape, grid, clean(text, 40))
    row, column = divmod(index, columns)
    return Window(row, row + 1, column, column + 1)


def read_window(model: Path, entry: TensorEntry, row: int) -> WeightTable:
    """The rows around ``row``. Raises BadFileError, EngineError in the engine's words."""
    rows, columns = math.prod(entry.shape[:-1]), entry.shape[-1] if entry.shape else 1
    room = max(1, min(_MOST_ROWS, WINDOW_VALUES // max(columns, 1), rows))
    first = max(0, min(row - room // 2, rows - room))
    found = None if entry.coding is not None else rows_at(entry, first, room)
    if found is None:
        found = _by_engine(model, entry, first, room)
    return WeightTable(entry, first, found.reshape(room, columns))


def _by_engine(model: Path, entry: TensorEntry, first: int, room: int) -> Float32:
    command = (*command_of("aprtui.engine.weight_rows"), "--", str(model), entry.name)
    try:
        ran = subprocess.run(
            (*command, str(first), str(room)), capture_output=True, timeout=_CHILD_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(
            f"the engine did not read the weight: {clean(str(error), 200)}"
        ) from error
    columns = entry.shape[-1] if entry.shape else 1
    if ran.returncode or len(ran.stdout) != 4 * room * columns:
        said = ran.stderr.decode("utf-8", "replace").strip().split("\n")[-1]
        raise EngineError(clean(said, 300) or f"the engine ended with {ran.returncode}")
    return np.frombuffer(ran.stdout, "<f4")


def told_of_cell(table: WeightTable, row: int, column: int) -> str:
    """The value under the cursor in words: where it is, its block, and the block's scale.

    Raises BadFileError where the file became shorter.
    """
    value = table.cell(row, column)
    shown = "reading …" if value is None else number(value, 6)
    where = f"row {table.row_label(row)}, column {count(column)} · {shown}"
    scale = scale_of(table.entry, row, column)
    if scale is None:
        return where
    block = f"block {scale.block} (columns {scale.first}..{scale.last})"
    return f"{where}\n{block} · scale {number(scale.value, 6)}"
