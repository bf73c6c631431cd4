"""How far apart rounding alone may leave two stored forms of one matrix."""

from __future__ import annotations

import math
import struct

import numpy as np

from aprtui.compare.bars import FLOORS, floor_of
from aprtui.engine.row_sums import RowSums
from aprtui.engine.weight_blocks import WeightReader
from aprtui.formats.modelfile import tensor_bytes
from aprtui.model.operand import Operand

__all__ = ["EXACT", "ROUNDING_FACTOR", "passed_through", "rounding_limit"]

ROUNDING_FACTOR = 1.5  # of the formats' floors together (docs/compare.md 6)
EXACT = 1e-6  # what float32 arithmetic of an importer may leave, 1 + w of a norm above all
_WIDE = ("F32", "F64")


def rounding_limit(a: Operand, b: Operand, sums: RowSums | None = None) -> float:
    """The largest rel_l2 that rounding to the two formats explains: independent roundings add in
    squares.

    A whole tensor with one scale (APR-Q8) rounds to steps of it: an error of step/sqrt(12) a value,
    which against the values' RMS depends on how far the largest of them sticks out.
    """
    floors = []
    for operand in (a, b):
        entry = operand.matrix.entry
        floor = floor_of(entry.type)
        if entry.type == "APR_Q8" and sums is not None and entry.size_bytes >= 4:
            (step,) = struct.unpack("<f", tensor_bytes(entry)[:4].tobytes())
            rms = math.sqrt(float(sums.a.sum()) / max(a.rows * a.columns, 1))
            if rms and math.isfinite(step):
                floor = abs(step) / math.sqrt(12) / rms
        floors.append(floor)
    return max(ROUNDING_FACTOR * math.hypot(*floors), EXACT)


def passed_through(operand: Operand, reader: WeightReader) -> str | None:
    """ "F16" or "BF16" when a float32 matrix holds only numbers of that format, else None.

    So it does when an importer widened what another had narrowed; its rounding is that format's.
    """
    if operand.matrix.entry.type not in _WIDE:
        return None
    possible = {"F16", "BF16"}
    for _, block in reader.blocks(operand):
        with np.errstate(over="ignore"):
            if "F16" in possible and not (block.astype(np.float16) == block).all():
                possible.discard("F16")
        if "BF16" in possible and (block.view(np.uint32) & 0xFFFF).any():
            possible.discard("BF16")
        if not possible:
            return None
    return min(possible, key=lambda kind: FLOORS[kind])
