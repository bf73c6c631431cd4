"""Two models' matrices side by side: rows decoded in blocks, brought into one form, measured."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from aprtui.engine.dequantise import Workspace, decode_rows
from aprtui.engine.workers import for_each, one_core
from aprtui.formats.blocks import stored_bytes
from aprtui.formats.modelfile import tensor_bytes
from aprtui.model.open import Matrix

__all__ = ["Operand", "RowSums", "WeightReader", "measure_rows", "same_bytes", "side_by_side"]

BLOCK_VALUES = 1 << 19  # float32 values of a block: one of each side stays in the cache
RELEASE_BYTES = 16 << 20  # stored bytes read before the pages of the map are given back
_COMPARED_BYTES = 1 << 20

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Progress = Callable[[int], None]
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Operand:
    """One side's matrix, and what brings it into the form in which the sides are compared.

    ``head_rows``: rows of one head where they lie as adjacent RoPE pairs and are read as halves
    (specs/stages.md 3), 0 where they are read as they lie. ``offset`` is added to every value
    (gemma's norms, of which Hugging Face stores w and GGUF 1 + w).
    """

    matrix: Matrix
    head_rows: int = 0
    offset: float = 0.0

    @property
    def rows(self) -> int:
        return self.matrix.rows

    @property
    def columns(self) -> int:
        return self.matrix.columns


@dataclass(frozen=True)
class RowSums:
    """What the comparison of two matrices [rows, columns] leaves of each row.

    Sums of squares, float64 [rows]: of b - a, of a and of b, over the finite values. Where just one
    side is NaN or infinite, or both are in other ways, the row's ``difference`` is infinite.
    """

    difference: Float64
    a: Float64
    b: Float64
    max_abs: float
    max_abs_at: tuple[int, int]
    nonfinite_a: int
    nonfinite_b: int

    @property
    def equal(self) -> bool:
        """Whether every value is the same; NaN and NaN count as the same."""
        return self.max_abs == 0.0 and not self.difference.any()


_Item = TypeVar("_Item")


def side_by_side(function: Callable[[_Item], None], items: Sequence[_Item]) -> None:
    """Call ``function`` with every item on all cores, each item on one; raises what a call did."""
    with one_core():
        for_each(function, items, _CPU)


class WeightReader:
    """Rows of one side's matrices as float32; memory for one block, kept from call to call."""

    def __init__(self) -> None:
        self._workspace = Workspace()
        self._buffer = torch.empty(0, dtype=torch.float32)
        self._turned = torch.empty(0, dtype=torch.float32)
        self._since_release = 0

    def block(self, operand: Operand, first: int, rows: int) -> torch.Tensor:
        """Rows [rows, columns] float32 on the CPU; valid until the next call.

        ``first`` and ``rows`` are whole heads where ``operand.head_rows`` is set. Raises
        BadFileError for a tensor whose bytes are not those of its shape, EngineError for a type
        without a decoder.
        """
        matrix = operand.matrix
        values = rows * matrix.columns
        if self._buffer.numel() < values:
            self._buffer = torch.empty(values, dtype=torch.float32)
        if matrix.rows == 1:
            found = self._vector(matrix)
        else:
            found = self._buffer[:values].view(rows, matrix.columns)
            start = matrix.first_row + first
            decode_rows(matrix.entry, start, rows, _CPU, found, self._workspace)
            self._release(matrix, values)
        if operand.head_rows:
            found = self._to_halves(found, operand.head_rows)
        return found.add_(operand.offset) if operand.offset else found

    def rows_at(self, operand: Operand, indices: Sequence[int]) -> Float32:
        """Chosen rows [len(indices), columns] float32."""
        found = np.empty((len(indices), operand.columns), dtype=np.float32)
        for place, row in enumerate(indices):
            head = operand.head_rows if operand.rows > 1 else 0
            if head:
                first = row - row % head
                found[place] = self.block(operand, first, head)[row - first].numpy()
            else:
                found[place] = self.block(operand, row, 1)[0].numpy()
        return found

    def blocks(self, operand: Operand) -> Iterator[tuple[int, Float32]]:
        """(first row, block [n, columns]) over the whole matrix; a block is valid until the next.

        Raises as ``block`` does.
        """
        step = _step(operand.columns, operand.head_rows)
        for first in range(0, operand.rows, step):
            yield first, self.block(operand, first, min(step, operand.rows - first)).numpy()

    def _vector(self, matrix: Matrix) -> torch.Tensor:
        """A norm's weight or a bias [1, columns], maybe a window of a fused one."""
        entry = matrix.entry
        whole = decode_rows(entry, 0, math.prod(entry.shape[:-1]), _CPU).reshape(-1)
        return whole[matrix.first_row : matrix.first_row + matrix.columns].view(1, -1)

    def _to_halves(self, found: torch.Tensor, head: int) -> torch.Tensor:
        """Rows (or, of a vector, values) 2i and 2i + 1 of each head moved to i and i + head/2."""
        if self._turned.numel() < found.numel():
            self._turned = torch.empty(found.numel(), dtype=torch.float32)
        width = 1 if found.shape[0] == 1 else found.shape[1]
        turned = self._turned[: found.numel()].view(-1, 2, head // 2, width)
        turned.copy_(found.reshape(-1, head // 2, 2, width).transpose(1, 2))
        return turned.view(found.shape)

    def _release(self, matrix: Matrix, values: int) -> None:
        """Give the pages back that were read: they would count as ours and stay in the cache."""
        self._since_release += stored_bytes(matrix.entry.type, (values,), flat=True)
        if self._since_release >= RELEASE_BYTES:
            self._since_release = 0
            _release(tensor_bytes(matrix.entry))


def same_bytes(a: Operand, b: Operand) -> bool:
    """Whether both are stored in the same type by the same bytes, and are read the same way."""
    if (a.matrix.entry.type, a.head_rows, a.offset) != (b.matrix.entry.type, b.head_rows, b.offset):
        return False
    left, right = _stored(a.matrix), _stored(b.matrix)
    if left is None or right is None or len(left) != len(right):
        return False
    for start in range(0, len(left), _COMPARED_BYTES):
        part = slice(start, start + _COMPARED_BYTES)
        if not np.array_equal(left[part], right[part]):
            return False
        if start % RELEASE_BYTES == 0:
            _release(left)
            _release(right)
    return True


def _stored(matrix: Matrix) -> npt.NDArray[np.uint8] | None:
    """The matrix's own bytes; None for a window of a type whose blocks run across rows."""
    entry = matrix.entry
    stored = tensor_bytes(entry)
    if matrix.rows * matrix.columns == math.prod(entry.shape):
        return stored
    if entry.flat or entry.type in ("APR_Q4", "APR_Q8") or matrix.rows == 1:
        return None
    row_bytes = stored_bytes(entry.type, (1, matrix.columns))
    first = matrix.first_row * row_bytes
    return stored[first : first + matrix.rows * row_bytes]


def measure_rows(
    a: Operand,
    b: Operand,
    readers: tuple[WeightReader, WeightReader],
    progress: Progress | None = None,
) -> RowSums:
    """Compare two matrices of one shape [rows, columns], decoded block by block."""
    rows = a.rows
    difference, of_a, of_b = (np.zeros(rows, dtype=np.float64) for _ in range(3))
    worst, place, nonfinite = 0.0, (0, 0), [0, 0]
    step = _step(a.columns, math.lcm(a.head_rows or 1, b.head_rows or 1))
    scratch = torch.empty(min(step, rows) * a.columns, dtype=torch.float32)
    for first in range(0, rows, step):
        count = min(step, rows - first)
        x, y = readers[0].block(a, first, count), readers[1].block(b, first, count)
        d = torch.sub(y, x, out=scratch[: count * a.columns].view(count, a.columns))
        sums = [_squares(values) for values in (d, x, y)]
        if not all(bool(np.isfinite(found).all()) for found in sums):
            d, sums, bad = _with_nonfinite(x, y)
            nonfinite = [nonfinite[side] + bad[side] for side in (0, 1)]
        for into, found in zip((difference, of_a, of_b), sums, strict=True):
            into[first : first + count] = found
        largest = max(float(d.amax()), -float(d.amin()))
        if largest > worst:
            worst = largest
            row, column = divmod(int(d.abs().argmax()), a.columns)
            place = (first + row, column)
        if progress is not None:
            progress(count * a.columns)
    return RowSums(difference, of_a, of_b, worst, place, nonfinite[0], nonfinite[1])


def _step(columns: int, head_rows: int) -> int:
    """Rows of one block: about BLOCK_VALUES values, whole heads where rows are reordered."""
    unit = head_rows or 1
    return max(1, BLOCK_VALUES // (columns * unit)) * unit


def _squares(values: torch.Tensor) -> Float64:
    """The sum of squares of each row: float32 sums within a row, squared in float64."""
    norms: Float64 = torch.linalg.vector_norm(values, dim=1).numpy().astype(np.float64)
    return norms * norms


def _with_nonfinite(
    x: torch.Tensor, y: torch.Tensor
) -> tuple[torch.Tensor, list[Float64], tuple[int, int]]:
    """A block with NaN, infinite or huge values again, in float64: d, sums of squares, counts."""
    wide = [values.double() for values in (x, y)]
    bad = [~torch.isfinite(values) for values in wide]
    same = (wide[0] == wide[1]) | (wide[0].isnan() & wide[1].isnan())
    d = torch.where(same, 0.0, wide[1] - wide[0]).nan_to_num(math.inf, math.inf, -math.inf)
    for values, where in zip(wide, bad, strict=True):
        values[where] = 0.0
    sums = [(values * values).sum(dim=1).numpy() for values in (d, *wide)]
    return d, sums, (int(bad[0].sum()), int(bad[1].sum()))


def _release(array: Any) -> None:
    """Tell the system that the pages of the map behind ``array`` are not needed just now."""
    if not hasattr(mmap, "MADV_DONTNEED"):
        return
    while array is not None and not isinstance(array, mmap.mmap):
        array = getattr(array, "base", None)
    if array is not None:
        array.madvise(mmap.MADV_DONTNEED)
