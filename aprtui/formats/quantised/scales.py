"""The scale that one value of a quantised weight was multiplied with, and the block that shares it.

For looking at a weight: one number is read, whatever the weight's size. Block layouts: ggml's
``ggml-common.h``; codings: ``coding``.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aprtui.formats.blocks import BLOCK_TYPES
from aprtui.formats.files import open_file
from aprtui.formats.modelfile import TensorEntry
from aprtui.formats.quantised.coding import (
    Adapted,
    Affine,
    Coding,
    Float4,
    Part,
    Scaled,
    Table4,
    Turned,
)

__all__ = ["BLOCK_SCALES", "Scale", "scale_of"]

BLOCK_SCALES = {
    "Q4_0": 0, "Q4_1": 0, "Q5_0": 0, "Q5_1": 0, "Q8_0": 0, "Q2_K": 80, "Q3_K": 108, "Q4_K": 0,
    "Q5_K": 0, "Q6_K": 208, "IQ1_S": 0, "IQ2_XXS": 0, "IQ2_XS": 0, "IQ2_S": 0, "IQ3_XXS": 0,
    "IQ3_S": 0, "IQ4_NL": 0, "IQ4_XS": 0, "TQ1_0": 52, "TQ2_0": 64, "APR_Q4": 0,
}  # fmt: skip
"""Where in a block its float16 scale d lies; K types have small factors of it beside."""

_FORMATS = {"F32": "<f", "F16": "<e", "F64": "<d", "I32": "<i", "I64": "<q", "U8": "<B", "I8": "<b"}


@dataclass(frozen=True)
class Scale:
    """``value`` of the columns ``first`` to ``last`` of a row, which are its block ``block``."""

    value: float
    block: int
    first: int
    last: int


def scale_of(entry: TensorEntry, row: int, column: int) -> Scale | None:
    """The scale of a value, rows counted over all leading axes; None for a type without one.

    Raises BadFileError where the file became shorter.
    """
    if isinstance(entry.coding, Adapted):
        return scale_of(entry.coding.base, row, column)
    if entry.coding is not None:
        return _CODINGS[type(entry.coding)](entry.coding, row, column)
    columns = entry.shape[-1] if entry.shape else 1
    kind = BLOCK_TYPES.get(entry.type)
    if kind is None or entry.type not in (*BLOCK_SCALES, "MXFP4"):
        return None
    if entry.flat or entry.type == "APR_Q4":
        number = (row * columns + column) // kind.values
        place = number * kind.values - row * columns
    else:
        place = column // kind.values * kind.values
        number = row * math.ceil(columns / kind.values) + place // kind.values
    at = entry.offset + number * kind.bytes
    if entry.type == "MXFP4":
        value = math.ldexp(1.0, int(_read(entry, at, "<B")) - 127)
    else:
        value = _read(entry, at + BLOCK_SCALES[entry.type], "<e")
    return _block(value, place, kind.values, columns)


def _block(value: float, first: int, width: int, columns: int) -> Scale:
    return Scale(value, max(first, 0) // width, max(first, 0), min(first + width, columns) - 1)


def _read(entry: TensorEntry, offset: int, form: str) -> float:
    with open_file(entry.path) as file:
        raw = file.array(offset, struct.calcsize(form)).tobytes()
    return float(struct.unpack(form, raw)[0])


def _number(part: Part, index: int, *, exponents: bool = False) -> float:
    """The number ``index`` of a part."""
    entry = part.entry
    at = entry.offset + index * part.item_bytes
    if entry.type == "BF16":
        low = int(_read(entry, at, "<H")) << 16
        return float(struct.unpack("<f", struct.pack("<I", low))[0])
    if entry.type == "F8_E4M3":
        return _e4m3(int(_read(entry, at, "<B")))
    if entry.type in ("F8_E8M0", "U8") and exponents:
        return math.ldexp(1.0, int(_read(entry, at, "<B")) - 127)
    return _read(entry, at, _FORMATS[entry.type])


def _e4m3(code: int) -> float:
    exponent, mantissa = code >> 3 & 15, code & 7
    if code & 0x7F == 0x7F:
        return math.nan
    size = math.ldexp(8 + mantissa, exponent - 10) if exponent else math.ldexp(mantissa, -9)
    return -size if code & 0x80 else size


def _parts(coding: Coding) -> dict[str, Part]:
    return {part.name: part for part in coding.parts if part.lies != "beside"}


def _scaled(coding: Scaled, row: int, column: int) -> Scale:
    part, columns = _parts(coding)["scale"], coding.columns
    height, width = coding.block
    if height == 0:
        index, width = 0, columns
    else:
        each = math.prod(part.entry.shape) // part.places
        index = row // height * each + min(column // width, each - 1)
    value = _number(part, index, exponents=True) * coding.factor
    return _block(value, column // width * width, width, columns)


def _group(coding: Affine | Turned, parts: Mapping[str, Part], column: int) -> int:
    listed = parts.get("groups")
    return int(_number(listed, column)) if listed else column // coding.group


def _affine(coding: Affine, row: int, column: int) -> Scale:
    parts = _parts(coding)
    each = math.prod(parts["scale"].entry.shape) // coding.rows
    value = _number(parts["scale"], row * each + min(_group(coding, parts, column), each - 1))
    return _block(value, column // coding.group * coding.group, coding.group, coding.columns)


def _turned(coding: Turned, row: int, column: int) -> Scale:
    parts = _parts(coding)
    value = _number(parts["scale"], _group(coding, parts, column) * coding.rows + row)
    return _block(value, column // coding.group * coding.group, coding.group, coding.columns)


def _float4(coding: Float4, row: int, column: int) -> Scale:
    parts, group = _parts(coding), coding.group
    index = row * (coding.columns // group) + column // group
    value = _number(parts["scale"], index, exponents=coding.exponents)
    if "global" in parts:
        whole = _number(parts["global"], 0)
        value = value / whole if coding.divides else value * whole
    return _block(value, column // group * group, group, coding.columns)


def _table4(coding: Table4, row: int, column: int) -> Scale:
    parts, start = _parts(coding), row * coding.columns
    number = (start + column) // coding.block
    value = _number(parts["absmax"], number)
    if coding.nested_block:
        outer = _number(parts["nested_absmax"], number // coding.nested_block)
        value = _number(parts["nested_table"], int(value)) * outer + coding.offset
    return _block(value, number * coding.block - start, coding.block, coding.columns)


_CODINGS: Mapping[type[Coding], Callable[[Any, int, int], Scale]] = {
    Scaled: _scaled,
    Affine: _affine,
    Turned: _turned,
    Float4: _float4,
    Table4: _table4,
}
