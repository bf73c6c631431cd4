"""Weights of eight-bit numbers with scales: FP8 of all makers, int8 of two.

FP8: ``weight`` and ``weight_scale_inv`` (DeepSeek, Qwen, Mistral: one scale a block, or one in
all) or ``weight_scale`` (compressed-tensors, ModelOpt, FBGEMM, AutoFP8: one in all, a row, a block
or a group); either is multiplied with. int8: ``weight_scale`` and ``weight_zero_point``
(compressed-tensors), ``SCB`` (bitsandbytes: a row's largest value, so times 1/127).
"""

from __future__ import annotations

import math

from aprtui.formats.modelfile import TensorEntry
from aprtui.formats.quantised.coding import Coding, Part, Scaled
from aprtui.formats.quantised.module import FLOATS, Module

__all__ = ["read_scaled"]

_CODES = {"F8_E4M3": "FP8_E4M3", "F8_E5M2": "FP8_E5M2", "I8": "INT8"}
_SCALES = ("weight_scale_inv", "weight_scale", "qscale_weight")
_SCALE_TYPES = (*FLOATS, "F8_E8M0", "U8")  # the last two: exponents
_BNB_FACTOR = 7.874015718698502e-3  # bitsandbytes' own 1/127


def read_scaled(module: Module) -> Coding | None:
    """The coding of such a weight; None where it is none. Raises BadFileError."""
    weight = module.parts.get("weight")
    if weight is None or weight.type not in _CODES or len(weight.shape) not in (2, 3):
        return None
    if module.has("SCB"):
        return _bitsandbytes(module, weight)
    scale = module.first(*_SCALES)
    if scale is None:
        if module.said is None:
            return None  # numbers as they stand, or codes that nothing explains: judged when used
        module.refuse(
            weight,
            f"holds {weight.type} codes of a {module.method} checkpoint, and none of "
            f"{', '.join(_SCALES)} is beside it",
            hint="the checkpoint is incomplete; download or convert it again",
        )
    if len([name for name in _SCALES if name in module.parts]) > 1:
        module.refuse(scale, "stands beside another scale of the same weight")
    module.check(scale, _SCALE_TYPES)
    rows, columns = math.prod(weight.shape[:-1]), weight.shape[-1]
    block = _block(module, weight, scale)
    parts = [Part("codes", weight, "rows", rows), _scale_part("scale", weight, scale, block)]
    zero = module.parts.get("weight_zero_point")
    if zero is not None:
        module.check(zero, ("I8", weight.type), scale.shape)
        parts.append(_scale_part("zero", weight, zero, block))
    kind = _CODES[weight.type]
    return Scaled(kind, rows, columns, tuple(parts), block=block)


def _block(module: Module, weight: TensorEntry, scale: TensorEntry) -> tuple[int, int]:
    """(rows, columns) of the weight that one scale stands for; (0, 0) for one scale in all."""
    rows, columns = weight.shape[-2:]
    if math.prod(scale.shape) == 1 and weight.shape[:-2] in ((), (1,)):
        return 0, 0
    leading = weight.shape[:-2]
    if scale.shape in ((*leading, rows), (*leading, rows, 1)):
        return 1, columns
    stated = _stated_block(module)
    if stated is None:
        groups = scale.shape[-1] if scale.shape else 0
        if scale.shape[:-1] == (*leading, rows) and groups and columns % groups == 0:
            return 1, columns // groups
        module.refuse(
            scale, f"is {list(scale.shape)}, which is no scale of {list(weight.shape)} codes"
        )
    height, width = stated[0] or 1, stated[1] or columns
    due = (*leading, math.ceil(rows / height), math.ceil(columns / width))
    module.check(scale, _SCALE_TYPES, due)
    if leading and rows % height:
        module.refuse(weight, f"packs experts of {rows} rows, no multiple of its {height}-blocks")
    return height, width


def _stated_block(module: Module) -> tuple[int, int] | None:
    """The configuration's block: ``weight_block_size``, or a compressed-tensors group's."""
    stated = module.setting("weight_block_size")
    if stated is None:
        groups = module.setting("config_groups")
        for group in groups.values() if isinstance(groups, dict) else ():
            weights = group.get("weights") if isinstance(group, dict) else None
            if isinstance(weights, dict) and weights.get("block_structure"):
                stated = weights["block_structure"]
    if stated is None and module.method == "mxfp8":
        stated = [1, 32]
    if stated is None:
        return None
    numbers = isinstance(stated, list) and len(stated) == 2
    if not numbers or not all(isinstance(n, int) and 0 < n < 1 << 20 for n in stated):
        module.refuse(module.parts["weight"], f"its configuration's blocks are {stated!r:.60}")
    return stated[0], stated[1]


def _scale_part(name: str, weight: TensorEntry, scale: TensorEntry, block: tuple[int, int]) -> Part:
    if block == (0, 0):
        return Part(name, scale, "whole")
    rows = math.prod(weight.shape[:-1])
    return Part(name, scale, "rows", math.ceil(rows / block[0]), step=block[0])


def _bitsandbytes(module: Module, weight: TensorEntry) -> Coding:
    scale = module.parts["SCB"]
    if weight.type != "I8" or len(weight.shape) != 2:
        module.refuse(weight, f"is {weight.type} {list(weight.shape)} where SCB needs I8 rows")
    rows, columns = weight.shape
    module.check(scale, ("F32", "F16"), (rows,), (rows, 1))
    parts = (Part("codes", weight, "rows", rows), Part("scale", scale, "rows", rows))
    return Scaled("BNB_INT8", rows, columns, parts, block=(1, columns), factor=_BNB_FACTOR)
