"""A stage's values seen as a table: which number is which row and column."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aprtui.errors import UsageError
from aprtui.formats.maps import is_whole
from aprtui.formats.rows import Rows
from aprtui.formats.tracedir import StageRecord
from aprtui.text import clean, ranges

__all__ = [
    "FOLD",
    "StageTable",
    "describe_shape",
    "index_in",
    "numbers_of",
    "pass_words",
    "table_of",
]

FOLD = 10  # values a row where a tensor has one position, or no known shape
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class StageTable:
    """Values [n] float32, row-major, as ``rows`` x ``columns``; the last row may be short.

    ``folded``: the rows mean nothing, one long row was broken after every FOLD values.
    """

    values: Float32
    rows: int
    columns: int
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    folded: bool
    texts: tuple[str, ...] = ()
    rows_of: Rows | None = None  # where its rows, or its queries, stand

    def row_label(self, row: int) -> str:
        """What the row is: a position and its token, a head and a query, or the first index."""
        if self.folded:
            return str(row * self.columns)
        if len(self.axes) == 3 and self.axes[0] == "head":
            head, query = divmod(row, self.shape[1])
            return f"h{head} q{self._place(query)}"
        text = self.texts[row] if row < len(self.texts) else ""
        return f"{self._place(row)} {text}" if text else self._place(row)

    def _place(self, row: int) -> str:
        rows = self.rows_of
        return str(row) if rows is None or row >= len(rows) else rows.label(row)

    def column_label(self, column: int) -> str:
        """What the column is: a channel, ``head.channel``, a key, or an offset."""
        if self.folded:
            return f"+{column}"
        if len(self.axes) == 3 and self.axes[0] != "head":
            head, channel = divmod(column, self.shape[2])
            return f"{head}.{channel}"
        return str(column)

    def name_of(self, index: int) -> str:
        """The place of value ``index`` in words: ``(4, 301)``, or ``301`` where rows mean none."""
        if self.folded:
            return str(index)
        place = [int(part) for part in np.unravel_index(index, self.shape)]
        if self.rows_of is not None and self.axes[0] == "token":
            return "(" + ", ".join([self.rows_of.label(place[0]), *map(str, place[1:])]) + ")"
        return "(" + ", ".join(map(str, place)) + ")"

    def other_pass(self, row: int, step: int) -> int | None:
        """The first row of the next pass (of the one before), round the end; None without one."""
        rows = self.rows_of
        if rows is None or self.folded or len({*rows.passes}) < 2:
            return None
        head, place = divmod(row, len(rows))
        firsts = {made: n for n, made in reversed([*enumerate(rows.passes)])}
        order = [*dict.fromkeys(rows.passes)]
        made = order[(order.index(rows.passes[place]) + step) % len(order)]
        return head * len(rows) + firsts[made]

    def index_of(self, text: str) -> int:
        """The value at ``4,301``, ``head,query,key`` or one index, as a person writes a place.

        Raises UsageError where there is none.
        """
        numbers = numbers_of(text, "position,channel")
        if len(numbers) > 1 and self.rows_of is not None and self.axes[0] == "token":
            if numbers[0] not in self.rows_of.positions:
                raise UsageError(f"position {numbers[0]} is none of {self.rows_of}")
            (numbers[0],) = self.rows_of.at(numbers[:1])
        return index_in(numbers, self.shape, (self.rows, self.columns), clean(text, 40))

    def cell(self, row: int, column: int) -> float | None:
        """The value there; None past the end of a short last row, and of a file cut short since."""
        index = row * self.columns + column
        if index >= self.values.size:
            return None
        value = float(self.values[index])
        return value if is_whole(self.values) else None


def numbers_of(text: str, form: str) -> list[int]:
    """The numbers of a place as it is typed. Raises UsageError: it is written as ``form``."""
    try:
        return [int(part) for part in text.lstrip(":").split(",")]
    except ValueError:
        raise UsageError(f"write {form}, not {clean(text, 40)!r}") from None


def index_in(
    numbers: Sequence[int], shape: Sequence[int], grid: tuple[int, int], shown: str
) -> int:
    """The value there of a tensor that is drawn as ``grid``: by its axes, by row and column, or
    by its index. Raises UsageError where there is none."""
    size = math.prod(shape)
    extents = {2: grid, len(shape): shape, 1: (size,)}.get(len(numbers))
    if extents and all(0 <= n < extent for n, extent in zip(numbers, extents, strict=True)):
        index = int(np.ravel_multi_index(numbers, tuple(extents)))
        if index < size:
            return index
    there = f"0..{size - 1}" if len(numbers) == 1 else " x ".join(map(str, shape))
    raise UsageError(f"{shown} is outside {there}")


def table_of(record: StageRecord, texts: tuple[str, ...] = ()) -> StageTable:
    """Open the record's file. Raises BadFileError for a damaged one."""
    values = record.values()
    shape, axes = record.shape, record.axes or ()
    if shape is None or math.prod(shape) != values.size or not shape:
        shape, axes = (values.size,), ()
    if len(axes) != len(shape):
        axes = tuple(f"axis {number}" for number in range(len(shape)))
    if len(shape) == 1:
        columns = min(FOLD, max(values.size, 1))
        return StageTable(values, -(-values.size // columns), columns, axes, shape, True)
    by_head = len(shape) == 3 and axes[0] == "head"
    columns = shape[-1] if by_head else math.prod(shape[1:])
    rows = values.size // columns if columns else 0
    numbers = record.row_numbers()
    if axes[0] not in ("token", "head") or record.rows is None or numbers is None:
        return StageTable(values, rows, columns, axes, shape, False, _shown(texts, axes))
    own = [texts[number] for number in numbers if number < len(texts)]
    stand = record.rows.only(numbers)
    return StageTable(values, rows, columns, axes, shape, False, _shown(own, axes), stand)


def pass_words(rows: Rows, number: int) -> str:
    """``pass 2 of 0-4, position 12``."""
    places = [place for place, made in zip(rows.positions, rows.passes, strict=True)
              if made == number]  # fmt: skip
    several = "s" * (len(places) > 1)
    return f"pass {number} of {ranges({*rows.passes})}, position{several} {ranges(places)}"


def _shown(texts: Sequence[str], axes: Sequence[str]) -> tuple[str, ...]:
    return tuple(clean(text, 40) for text in texts) if axes[0] == "token" else ()


def describe_shape(record: StageRecord) -> str:
    """``[9 token, 512 ffn]``, or ``[?]`` where nothing states the shape."""
    if record.shape is None:
        return f"[{record.count:,}] flat"
    names = record.axes or ("",) * len(record.shape)
    parts = (f"{n:,} {name}".rstrip() for n, name in zip(record.shape, names, strict=False))
    return "[" + ", ".join(parts) + "]"
