"""Codings: how the stored tensors of one quantised weight mean its values. Facts; no arithmetic.

A weight [rows, columns] that a quantiser has written is several tensors: codes, scales, zero
points, tables. A coding says which part each tensor plays and how it lies along the weight's rows,
so that any rows can be read without the rest. ``engine.coded`` computes the values.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from aprtui.formats.blocks import BLOCK_TYPES
from aprtui.formats.modelfile import TensorEntry, block_bytes

__all__ = [
    "Adapted",
    "Affine",
    "Coding",
    "Factor",
    "Float4",
    "Part",
    "Scaled",
    "Table4",
    "Turned",
    "padded",
]

_PIECE = 16  # bytes that each piece of a block is padded to: a multiple of every number's size


@dataclass(frozen=True)
class Part:
    """One stored tensor of a weight, and where in it the weight's rows are.

    ``lies``: "rows" or "columns": along its first axes or its last one, ``run`` of its ``places``
    standing for ``step`` rows of the weight; "values": flat, one place for ``step`` values;
    "whole": every row needs all of it; "beside": no value of the weight depends on it (scales of
    activations).
    """

    name: str
    entry: TensorEntry
    lies: str
    places: int = 1
    step: int = 1
    run: int = 1

    @property
    def item_bytes(self) -> int:
        """The bytes of one stored number."""
        return BLOCK_TYPES[self.entry.type].bytes

    @property
    def place_bytes(self) -> int:
        """The bytes of one place."""
        return self.entry.size_bytes // self.places


@dataclass(frozen=True)
class Coding:
    """What all codings have in common."""

    type_name: str  # as it is shown: "FP8_E4M3", "GPTQ_4"
    rows: int
    columns: int
    parts: tuple[Part, ...]

    @cached_property
    def stored_bytes(self) -> int:
        """The bytes of all parts."""
        return sum(part.entry.size_bytes for part in self.parts)

    @cached_property
    def streamed(self) -> tuple[Part, ...]:
        """The parts of which a block of rows needs some."""
        return tuple(p for p in self.parts if p.lies in ("rows", "columns", "values"))

    @cached_property
    def whole(self) -> tuple[Part, ...]:
        """The small parts that every row needs."""
        return tuple(part for part in self.parts if part.lies == "whole")

    def span(self, part: Part, first: int, rows: int) -> tuple[int, int]:
        """The first place of a streamed part that these rows need, and the one after the last."""
        last = first + rows
        if part.lies == "values":
            return first * self.columns // part.step, -(-last * self.columns // part.step)
        return first // part.step * part.run, -(-last // part.step) * part.run

    def block_bytes(self, rows: int) -> int:
        """The most bytes that a block of so many rows takes, wherever it begins."""
        total = 0
        for part in self.streamed:
            start, stop = self.span(part, 0, rows)
            total += padded((stop - start + 2 * part.run) * part.place_bytes)
        return total


def padded(size: int) -> int:
    """A piece's bytes with what follows it, so that the next one begins at a whole number."""
    return -(-size // _PIECE) * _PIECE


@dataclass(frozen=True)
class Scaled(Coding):
    """Numbers of eight bits: (code - zero) * scale * ``factor``.

    Parts: codes [rows, columns]; scale, one for ``block`` (rows, columns) of them; zero, alike.
    """

    block: tuple[int, int] = (1, 1)
    factor: float = 1.0


@dataclass(frozen=True)
class Affine(Coding):
    """Integers of ``bits`` bits one after the other along the row, lowest bit first.

    With a part bias: code * scale + bias (MLX). Else (code - middle - zero) * scale, where zero is
    stored as zero + middle, packed along the rows (compressed-tensors). ``groups``: the part
    groups says which scale each column has, else ``group`` columns share one. ``narrow``: "F16" or
    "BF16" where an engine decodes in that type, which rounds code * scale and that plus the bias.
    """

    bits: int = 4
    group: int = 128
    narrow: str = ""

    @property
    def middle(self) -> int:
        return 1 << (self.bits - 1)


@dataclass(frozen=True)
class Turned(Coding):
    """Integers of ``bits`` bits stored as [columns, rows]: (code - zero - ``plus``) * scale.

    Codes are packed along the columns of the weight, lowest bit first (GPTQ), or along its rows in
    the order 0 2 4 6 1 3 5 7 (``interleaved``: AWQ). Zeros [groups, rows] are packed along the
    rows, scales [groups, rows] are not. The part groups is GPTQ's g_idx where it is no plain
    sequence; ``group`` columns share a scale otherwise.
    """

    bits: int = 4
    group: int = 128
    plus: int = 0
    interleaved: bool = False


@dataclass(frozen=True)
class Float4(Coding):
    """E2M1 floats, two a byte, low nibble first: code * scale, a scale for ``group`` columns.

    The scale is 2^(byte - 127) (``exponents``: MXFP4), or a number of eight bits times the part
    global, or divided by it (``divides``: NVFP4 of compressed-tensors).
    """

    group: int = 32
    exponents: bool = False
    divides: bool = False


@dataclass(frozen=True)
class Table4(Coding):
    """Four-bit indices of a table of sixteen values, two a byte, high nibble first, over the flat
    weight: table[code] * absmax, one for ``block`` values (bitsandbytes).

    Where absmax is nested it is itself eight-bit indices: nested_table[absmax] * nested_absmax +
    ``offset``, one nested_absmax for ``nested_block`` of them.
    """

    block: int = 64
    nested_block: int = 0
    offset: float = 0.0


@dataclass(frozen=True)
class Factor:
    """One matrix of an adapter, or packed experts' one each; ``turned``: stored transposed."""

    entry: TensorEntry
    turned: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        shape = self.entry.shape
        return (*shape[:-2], shape[-1], shape[-2]) if self.turned else shape


@dataclass(frozen=True)
class Adapted(Coding):
    """A weight that an adapter of low rank changes: base + ``scale`` * left @ right.

    ``base`` is what the model's file holds, in whatever form; left [rows, rank], right
    [rank, columns], or of packed experts [count, ...] each. With a ``magnitude`` [rows] every row
    of the sum is brought to that length (DoRA). Parts: the base's own, and the adapter's.
    """

    base: TensorEntry = field(kw_only=True)
    left: Factor = field(kw_only=True)
    right: Factor = field(kw_only=True)
    scale: float = 1.0
    magnitude: TensorEntry | None = None

    @property
    def width(self) -> int:
        """The numbers beside each row: its share of left, its length."""
        return self.left.shape[-1] + (self.magnitude is not None)

    def block_bytes(self, rows: int) -> int:
        return block_bytes(self.base, rows) + padded(4 * rows * self.width)
