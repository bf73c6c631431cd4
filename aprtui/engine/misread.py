"""Blocks of weights read otherwise: stored bytes changed as another decoder sees them.

A reading that leaves out a block's minimum sees a minimum of zero; one that loses the high bits of
the scales sees them cleared. So the right decoder serves for every mistake. A runtime that keeps
the codes but not the scales as they are makes other values of codes, steps and lowest values.
Layouts: ggml-common.h.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from aprtui.engine.block_decoders import Workspace
from aprtui.engine.codecs import Codec, codec_of
from aprtui.formats.blocks import BLOCK_TYPES
from aprtui.model.open import Matrix

__all__ = ["MISREADINGS", "SUB_BLOCKS", "Misreading", "misread_blocks",
           "misread_rows"]  # fmt: skip

Tensor = torch.Tensor
Change = Callable[[Tensor], None]

_ROWS_AT_ONCE = 256

SUB_BLOCKS = {"Q2_K": 16, "Q3_K": 16, "Q4_K": 32, "Q5_K": 32, "Q6_K": 16}
"""Values of a K-block that share a scale; of other types those of a whole block do."""


@dataclass(frozen=True)
class Misreading:
    """``change`` alters blocks [n, bytes] uint8 in place; ``minimum``: it takes the minima away.

    ``remade``: what becomes of (codes counted from 0, steps, values of the lowest code, the lowest
    code) where another encoding keeps the codes.
    """

    text: str
    types: tuple[str, ...]
    change: Change | None = None
    minimum: bool = False
    remade: Callable[[Tensor, Tensor, Tensor, int], Tensor] | None = None


@dataclass(frozen=True)
class Codes:
    """Where a block keeps its values' codes: ``lowest`` and ``next`` make all of them the code
    ``first`` and the one after it."""

    first: int
    lowest: Change
    next: Change


def _set(first: int, last: int, value: int) -> Change:
    def change(blocks: Tensor) -> None:
        blocks[:, first:last] = value

    return change


def _masked(first: int, last: int, mask: int) -> Change:
    def change(blocks: Tensor) -> None:
        blocks[:, first:last] &= mask

    return change


def _negated(first: int) -> Change:
    def change(blocks: Tensor) -> None:
        blocks[:, first + 1] ^= 0x80

    return change


def _nibbles(first: int, last: int) -> Change:
    def change(blocks: Tensor) -> None:
        packed = blocks[:, first:last]
        blocks[:, first:last] = (packed << 4) | (packed >> 4)

    return change


def _all(*changes: Change) -> Change:
    def change(blocks: Tensor) -> None:
        for each in changes:
            each(blocks)

    return change


def _zero_points(codes: Tensor, step: Tensor, low: Tensor, first: int) -> Tensor:
    """A minimum as so many whole steps, halves away from zero, of steps rounded to float16."""
    short = step.half().float()
    points = torch.floor(-low.half().float() / short + 0.5)
    points = torch.where(short == 0, torch.zeros_like(short), points)
    return (codes - points) * short


def _higher(codes: Tensor, step: Tensor, low: Tensor, first: int) -> Tensor:
    """What GPTQ's first format keeps of a zero point is one less."""
    return low + (codes - 1) * step


def _lower(codes: Tensor, step: Tensor, low: Tensor, first: int) -> Tensor:
    return low + (codes + 1) * step


_WITH_CODES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")

_NO_MINIMUM = "without their minima (zero points)"
_NEGATIVE = "with their minima added where they are subtracted"

MISREADINGS: tuple[Misreading, ...] = (
    Misreading(_NO_MINIMUM, ("Q4_K", "Q5_K"), _set(2, 4, 0), True),
    Misreading(_NO_MINIMUM, ("Q2_K",), _set(82, 84, 0), True),
    Misreading(_NO_MINIMUM, ("Q4_1", "Q5_1"), _set(2, 4, 0), True),
    Misreading(_NEGATIVE, ("Q4_K", "Q5_K"), _negated(2)),
    Misreading(_NEGATIVE, ("Q2_K",), _negated(82)),
    Misreading("with their minima negated", ("Q4_1", "Q5_1"), _negated(2)),
    Misreading("without the two high bits of the scales and minima of sub-blocks 4 to 7",
               ("Q4_K", "Q5_K"), _masked(4, 12, 0x3F)),
    Misreading("without the two high bits of their scales", ("Q3_K",), _set(104, 108, 0)),
    Misreading("without the third bit of their codes", ("Q3_K",), _set(0, 32, 0)),
    Misreading("without the fifth bit of their codes", ("Q5_K",), _set(16, 48, 0)),
    Misreading("without the fifth bit of their codes", ("Q5_0",), _set(2, 6, 0)),
    Misreading("without the fifth bit of their codes", ("Q5_1",), _set(4, 8, 0)),
    Misreading("without the two high bits of their codes", ("Q6_K",), _set(128, 192, 0)),
    Misreading("with the low and the high nibbles exchanged", ("Q4_0",), _nibbles(2, 18)),
    Misreading("with the low and the high nibbles exchanged", ("Q4_1",), _nibbles(4, 20)),
    Misreading("with the low and the high nibbles exchanged", ("Q4_K",), _nibbles(16, 144)),
    Misreading("with the low and the high nibbles exchanged", ("Q5_K",), _nibbles(48, 176)),
    Misreading("with the low and the high nibbles exchanged", ("Q6_K",), _nibbles(0, 128)),
    Misreading("with the low and the high nibbles exchanged", ("Q5_0",), _nibbles(6, 22)),
    Misreading("with the low and the high nibbles exchanged", ("Q5_1",), _nibbles(8, 24)),
    Misreading("with whole steps for a minimum (integer zero points)", ("Q4_K", "Q5_K", "Q2_K"),
               remade=_zero_points),
    Misreading("with zero points that are one too high", _WITH_CODES, remade=_higher),
    Misreading("with zero points that are one too low", _WITH_CODES, remade=_lower),
)  # fmt: skip
"""How decoders of other programs have read blocks wrongly."""

CODES: dict[str, Codes] = {
    "Q4_0": Codes(-8, _set(2, 18, 0), _set(2, 18, 0x11)),
    "Q4_1": Codes(0, _set(4, 20, 0), _set(4, 20, 0x11)),
    "Q5_0": Codes(-16, _set(2, 22, 0), _all(_set(2, 6, 0), _set(6, 22, 0x11))),
    "Q5_1": Codes(0, _set(4, 24, 0), _all(_set(4, 8, 0), _set(8, 24, 0x11))),
    "Q8_0": Codes(0, _set(2, 34, 0), _set(2, 34, 1)),
    "Q2_K": Codes(0, _set(16, 80, 0), _set(16, 80, 0x55)),
    "Q3_K": Codes(-4, _set(0, 96, 0), _all(_set(0, 32, 0), _set(32, 96, 0x55))),
    "Q4_K": Codes(0, _set(16, 144, 0), _set(16, 144, 0x11)),
    "Q5_K": Codes(0, _set(16, 176, 0), _all(_set(16, 48, 0), _set(48, 176, 0x11))),
    "Q6_K": Codes(-32, _set(0, 192, 0), _all(_set(0, 128, 0x11), _set(128, 192, 0))),
}
"""Block types whose codes are equally spaced: value = code times a step, plus a minimum."""


def misread_rows(matrix: Matrix, rows: Sequence[int], reading: Misreading) -> Tensor:
    """Chosen rows [n, columns] float32 as another decoder sees them."""
    codec = codec_of(matrix)
    return torch.cat([_read(matrix, codec, row, 1, reading) for row in rows])


def misread_blocks(matrix: Matrix, reading: Misreading) -> Iterator[tuple[int, Tensor]]:
    """(first row, block of rows) of the whole matrix, as another decoder sees them."""
    codec = codec_of(matrix)
    for first in range(0, matrix.rows, _ROWS_AT_ONCE):
        rows = min(_ROWS_AT_ONCE, matrix.rows - first)
        yield first, _read(matrix, codec, first, rows, reading)


def _spaced(
    matrix: Matrix, codec: Codec, first: int, rows: int, spaced: Codes
) -> tuple[Tensor, Tensor]:
    low = _decoded(matrix, codec, first, rows, spaced.lowest)
    return low, _decoded(matrix, codec, first, rows, spaced.next) - low


def _read(matrix: Matrix, codec: Codec, first: int, rows: int, reading: Misreading) -> Tensor:
    if reading.remade is None:
        return _decoded(matrix, codec, first, rows, reading.change)
    spaced = CODES[matrix.entry.type]
    low, step = _spaced(matrix, codec, first, rows, spaced)
    codes = (_decoded(matrix, codec, first, rows, None) - low) / step
    codes = torch.where(step == 0, torch.zeros_like(codes), torch.round(codes))
    return reading.remade(codes, step, low, spaced.first)


def _decoded(matrix: Matrix, codec: Codec, first: int, rows: int, change: Change | None) -> Tensor:
    raw = codec.bytes_of(first, rows).clone()
    if change is not None:
        change(raw.view(-1, BLOCK_TYPES[matrix.entry.type].bytes))
    return codec.decode(raw, first, torch.empty((rows, codec.columns)), Workspace())
