"""One side of two matrices that are compared, and its bytes; nothing here decodes a value."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from aprtui.formats.blocks import BLOCK_TYPES, stored_bytes
from aprtui.formats.maps import forget_pages
from aprtui.formats.modelfile import tensor_bytes
from aprtui.model.open import Matrix

__all__ = ["RELEASE_BYTES", "Operand", "differing_blocks", "same_bytes"]

RELEASE_BYTES = 16 << 20  # stored bytes read before the pages of the map are given back
_COMPARED_BYTES = 1 << 20

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Operand:
    """One side's matrix, and what brings it into the form in which the sides are compared.

    ``head_rows``: rows of one head where they lie as adjacent RoPE pairs and are read as halves
    (docs/stages.md 3), 0 where they are read as they lie. ``offset`` is added to every value
    (gemma's norms, of which Hugging Face stores w and GGUF 1 + w). ``logged``: a value w is read as
    -exp(w). ``factor``: every value is read times it, as the pass multiplies what the matrix makes.
    ``dealt`` (key heads, size): the columns are heads of that size that go round the key
    heads, and are read with those of one key head together.
    """

    matrix: Matrix
    head_rows: int = 0
    offset: float = 0.0
    logged: bool = False
    dealt: tuple[int, int] | None = None
    factor: float = 1.0

    @property
    def rows(self) -> int:
        return self.matrix.rows

    @property
    def columns(self) -> int:
        return self.matrix.columns

    def stored_row(self, row: int) -> int:
        """Where row ``row`` of the form compared lies: its number among the matrix's own rows."""
        if not self.head_rows or self.rows == 1:
            return row
        place = row % self.head_rows
        second, pair = divmod(place, self.head_rows // 2)
        return row - place + 2 * pair + second


def same_bytes(a: Operand, b: Operand) -> bool:
    """Whether both are stored in the same type by the same bytes, and are read the same way."""
    if _form(a) != _form(b):
        return False
    left, right = _stored(a.matrix), _stored(b.matrix)
    if left is None or right is None or len(left) != len(right):
        return False
    return all(_same(x, y) for x, y in zip(left, right, strict=True))


def differing_blocks(a: Operand, b: Operand) -> tuple[npt.NDArray[np.int64], int] | None:
    """(the blocks that differ, how many there are) of two matrices stored in the same way; None
    where they are not."""
    kind = BLOCK_TYPES.get(a.matrix.entry.type)
    if kind is None or a.matrix.entry.coding is not None or _form(a) != _form(b):
        return None
    left, right = _stored(a.matrix), _stored(b.matrix)
    if left is None or right is None or len(left[0]) != len(right[0]):
        return None
    blocks = len(left[0]) // kind.bytes
    step = max(1, _COMPARED_BYTES // kind.bytes)
    found = [np.empty(0, dtype=np.int64)]
    for first in range(0, blocks, step):
        place = slice(first * kind.bytes, min(first + step, blocks) * kind.bytes)
        x, y = (side[0][place].reshape(-1, kind.bytes) for side in (left, right))
        found.append(first + np.flatnonzero((x != y).any(axis=1)))
    return np.concatenate(found), blocks


def _same(left: Bytes, right: Bytes) -> bool:
    if len(left) != len(right):
        return False
    for start in range(0, len(left), RELEASE_BYTES):
        x, y = left[start : start + RELEASE_BYTES], right[start : start + RELEASE_BYTES]
        same = all(
            _equal(x[first : first + _COMPARED_BYTES], y[first : first + _COMPARED_BYTES])
            for first in range(0, len(x), _COMPARED_BYTES)
        )
        forget_pages(x)
        forget_pages(y)
        if not same:
            return False
    return True


def _form(operand: Operand) -> tuple[object, ...]:
    """What else must be the same where the bytes are."""
    matrix = operand.matrix
    places: tuple[object, ...] = (matrix.group, matrix.period, matrix.transposed)
    coding = matrix.entry.coding
    if coding is not None:  # what it is but for where its parts lie
        places = (*places, replace(coding, parts=()), tuple(part.name for part in coding.parts))
    return (*places, operand.rows, operand.columns, matrix.entry.type, operand.head_rows,
            operand.offset, operand.logged, operand.dealt, operand.factor)  # fmt: skip


def _equal(x: Bytes, y: Bytes) -> bool:
    """Whether the bytes are the same, eight at a time."""
    words = len(x) & ~7
    return np.array_equal(x[:words].view(np.uint64), y[:words].view(np.uint64)) and np.array_equal(
        x[words:], y[words:]
    )


def _stored(matrix: Matrix) -> list[Bytes] | None:
    """The matrix's own bytes, of each tensor that it is stored as; None where they do not lie
    together: a window of a type whose blocks run across rows or of several tensors, rows that are
    taken out one by one."""
    entry = matrix.entry
    whole = matrix.rows * matrix.columns == math.prod(entry.shape)
    if entry.coding is not None:
        return [tensor_bytes(part.entry) for part in entry.coding.parts] if whole else None
    stored = tensor_bytes(entry)
    if whole:
        return [stored]
    if not matrix.plain or entry.flat or entry.type in ("APR_Q4", "APR_Q8") or matrix.rows == 1:
        return None
    row_bytes = stored_bytes(entry.type, (1, matrix.columns))
    first = matrix.first_row * row_bytes
    return [stored[first : first + matrix.rows * row_bytes]]
