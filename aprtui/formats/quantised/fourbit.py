"""Weights of four-bit floats and of tables: MXFP4, NVFP4, bitsandbytes' nf4 and fp4.

MXFP4: ``X_blocks`` U8 [.., groups, 16] and ``X_scales`` U8 [.., groups] (gpt_oss), or
``weight_packed`` and ``weight_scale`` U8 (compressed-tensors). NVFP4: ``weight`` U8 [rows,
columns / 2], ``weight_scale`` F8_E4M3 [rows, columns / 16], ``weight_scale_2`` F32 to multiply with
(ModelOpt); ``weight_packed`` and ``weight_global_scale`` to divide by (compressed-tensors).
bitsandbytes: ``weight`` U8 flat, ``weight.absmax``, ``weight.quant_map``, the rest as JSON in
``weight.quant_state.bitsandbytes__nf4``.
"""

from __future__ import annotations

import math
from typing import Any

from aprtui.formats.modelfile import TensorEntry, tensor_bytes
from aprtui.formats.quantised.coding import Coding, Float4, Part, Table4
from aprtui.formats.quantised.module import Module
from aprtui.formats.strict_json import parse_object

__all__ = ["read_float4", "read_table4"]

_MXFP4_GROUP, _NVFP4_GROUP = 32, 16
_STATE = "weight.quant_state.bitsandbytes__"
_MOST_STATE_BYTES = 1 << 16


def read_float4(module: Module) -> Coding | None:
    """The coding of an MXFP4 or NVFP4 weight; None where it is none. Raises BadFileError."""
    if module.has("_blocks") or module.has("_scales"):
        return _blocks(module)
    packed = module.parts.get("weight_packed")
    if packed is not None and packed.type == "U8":
        scale = module.need("weight_scale", packed, "packed four-bit floats")
        if scale.type in ("U8", "F8_E8M0"):
            return _rows(module, packed, "MXFP4_CT", _MXFP4_GROUP, ("U8", "F8_E8M0"))
        module.need("weight_global_scale", packed, "NVFP4 codes")
        return _rows(module, packed, "NVFP4_CT", _NVFP4_GROUP, ("F8_E4M3",), divides=True)
    weight = module.parts.get("weight")
    if weight is None or weight.type != "U8" or not module.has("weight_scale"):
        return None
    module.need("weight_scale_2", weight, "NVFP4 codes")
    return _rows(module, weight, "NVFP4_MO", _NVFP4_GROUP, ("F8_E4M3",))


def _blocks(module: Module) -> Coding | None:
    blocks = module.parts.get("_blocks")
    if blocks is None:
        scales = module.parts["_scales"]
        if scales.type != "U8":
            return None  # somebody's own tensor of that name
        module.refuse(scales, "holds MXFP4 scales, and the blocks are not there")
    scales = module.need("_scales", blocks, "MXFP4 blocks")
    module.check(blocks, ("U8",))
    if len(blocks.shape) < 3 or blocks.shape[-1] != _MXFP4_GROUP // 2:
        module.refuse(blocks, f"is {list(blocks.shape)}, not blocks of 16 bytes")
    module.check(scales, ("U8",), blocks.shape[:-1])
    rows, columns = math.prod(blocks.shape[:-2]), blocks.shape[-2] * _MXFP4_GROUP
    parts = (Part("codes", blocks, "rows", rows), Part("scale", scales, "rows", rows))
    return Float4("MXFP4_HF", rows, columns, parts, group=_MXFP4_GROUP, exponents=True)


def _rows(
    module: Module,
    packed: TensorEntry,
    kind: str,
    group: int,
    types: tuple[str, ...],
    divides: bool = False,
) -> Coding:
    if len(packed.shape) not in (2, 3):
        module.refuse(packed, f"is {list(packed.shape)}, not rows of codes")
    scale = module.parts["weight_scale"]
    rows, columns = math.prod(packed.shape[:-1]), 2 * packed.shape[-1]
    if columns % group:
        module.refuse(packed, f"has {columns} columns, no multiple of its groups of {group}")
    module.check(scale, types, (*packed.shape[:-1], columns // group))
    parts = [Part("codes", packed, "rows", rows), Part("scale", scale, "rows", rows)]
    whole = module.first("weight_scale_2", "weight_global_scale")
    exponents = types[0] == "U8"
    if whole is not None and not exponents:
        module.check(whole, ("F32",), (), (1,))
        parts.append(Part("global", whole, "whole"))
    return Float4(
        kind, rows, columns, tuple(parts), group=group, exponents=exponents, divides=divides
    )


def read_table4(module: Module) -> Coding | None:
    """The coding of a bitsandbytes weight of four bits, or None. Raises BadFileError."""
    states = [name for name in module.parts if name.startswith(_STATE)]
    weight = module.parts.get("weight")
    if weight is None:
        return None
    if not states:
        if module.has("weight.absmax"):
            module.refuse(weight, "has scales of bitsandbytes, and its quant_state is not there")
        if weight.type == "U8" and module.method == "bitsandbytes":
            module.refuse(weight, "holds four-bit codes, and their absmax and quant_state are not "
                          "there", hint="the checkpoint is incomplete")  # fmt: skip
        return None
    kind = states[0].removeprefix(_STATE)
    if len(states) > 1 or kind not in ("nf4", "fp4"):
        module.refuse(module.parts[states[-1]], "is a quant_state that aprtui does not read")
    return _table(module, weight, kind, _State(module, module.parts[states[0]]))


class _State:
    """The numbers of a quant_state, each checked as it is asked for."""

    def __init__(self, module: Module, entry: TensorEntry) -> None:
        self._module, self.entry = module, entry
        if entry.type != "U8" or entry.size_bytes > _MOST_STATE_BYTES:
            module.refuse(entry, f"is {entry.type} of {entry.size_bytes:,} bytes, no JSON text")
        self._keys = parse_object(entry.path, tensor_bytes(entry).tobytes(), entry.name)

    def integer(self, key: str) -> int:
        value: Any = self._keys.get(key)
        if not isinstance(value, int) or not 0 < value < 1 << 20:
            self._module.refuse(self.entry, f"says {key} {value!r:.40}")
        return value

    @property
    def offset(self) -> float:
        value = self._keys.get("nested_offset")
        if not isinstance(value, int | float):
            self._module.refuse(self.entry, f"says nested_offset {value!r:.40}")
        return float(value)

    @property
    def shape(self) -> tuple[int, int]:
        shape = self._keys.get("shape")
        extents = shape if isinstance(shape, list) and len(shape) == 2 else [0, 0]
        if not all(isinstance(n, int) and 0 < n < 1 << 31 for n in extents):
            self._module.refuse(self.entry, f"says the shape {shape!r:.60}")
        return extents[0], extents[1]


def _table(module: Module, weight: TensorEntry, kind: str, state: _State) -> Coding:
    rows, columns = state.shape
    values, block = rows * columns, state.integer("blocksize")
    if weight.type not in ("U8", "I8") or math.prod(weight.shape) != math.ceil(values / 2):
        module.refuse(
            weight,
            f"holds {math.prod(weight.shape):,} {weight.type}, and its quant_state says "
            f"{list(state.shape)}",
        )
    absmax = module.need("weight.absmax", weight, "bitsandbytes codes")
    table = module.need("weight.quant_map", weight, "bitsandbytes codes")
    module.check(table, ("F32",), (16,))
    blocks = math.ceil(values / block)
    nested = module.parts.get("weight.nested_absmax")
    module.check(absmax, ("U8",) if nested is not None else ("F32",), (blocks,))
    parts = [
        Part("codes", weight, "values", math.ceil(values / 2), step=2),
        Part("absmax", absmax, "values", blocks, step=block),
        Part("table", table, "whole"),
    ]
    state_part = Part("state", state.entry, "beside")
    if nested is None:
        return Table4(f"BNB_{kind.upper()}", rows, columns, (*parts, state_part), block=block)
    inner = state.integer("nested_blocksize")
    due = math.ceil(blocks / inner)
    module.check(nested, ("F32",), (due,))
    inner_table = module.need("weight.nested_quant_map", weight, "nested absmax")
    module.check(inner_table, ("F32",), (256,))
    parts += [
        Part("nested_absmax", nested, "values", due, step=block * inner),
        Part("nested_table", inner_table, "whole"),
    ]
    return Table4(
        f"BNB_{kind.upper()}", rows, columns, (*parts, state_part),
        block=block, nested_block=inner, offset=state.offset,
    )  # fmt: skip
