"""Weights of integers packed into words, scales a group of columns: MLX, compressed-tensors, GPTQ,
AWQ.

MLX: ``weight`` U32 [rows, columns * bits / 32], ``scales`` and ``biases`` [rows, columns / group].
compressed-tensors: ``weight_packed`` I32 alike, ``weight_scale``, ``weight_zero_point`` packed
along the rows, ``weight_g_idx``, ``weight_shape``. GPTQ: ``qweight`` I32
[columns * bits / 32, rows], ``qzeros``, ``scales``, ``g_idx``; its first version stores zero
points less one. AWQ: ``qweight`` I32 [columns, rows / 8] in an order of its own.
"""

from __future__ import annotations

import math
from itertools import pairwise

from aprtui.formats.modelfile import TensorEntry
from aprtui.formats.quantised.coding import Affine, Coding, Float4, Part, Turned
from aprtui.formats.quantised.module import FLOATS, Module

__all__ = ["read_compressed", "read_mlx", "read_turned"]

_MOST_COLUMNS = 1 << 20
_GPTQ_LIKE = ("gptq", "auto-round", "auto_gptq")


def read_mlx(module: Module) -> Coding | None:
    """The coding of an MLX weight; None where it is none. Raises BadFileError."""
    weight = module.parts.get("weight")
    if weight is None or weight.type != "U32" or len(weight.shape) not in (2, 3):
        return None
    if module.method not in ("mlx", "metal", ""):
        return None
    scales = module.need("scales", weight, "MLX codes")
    bits, group = _mlx_numbers(module, weight)
    mode = module.setting("mode") or "affine"
    columns = weight.shape[-1] * 32 // bits
    rows = math.prod(weight.shape[:-1])
    _divides(module, weight, columns, group)
    grouped = (*weight.shape[:-1], columns // group)
    codes = Part("codes", weight, "rows", rows)
    scale = Part("scale", scales, "rows", rows)
    if mode == "mxfp4":
        module.check(scales, ("U8",), grouped)
        return Float4("MLX_MXFP4", rows, columns, (codes, scale), group=group, exponents=True)
    if mode != "affine":
        module.refuse(weight, f"is of MLX's mode {str(mode)!r:.40}, which aprtui does not read")
    biases = module.need("biases", weight, "MLX codes")
    for entry in (scales, biases):
        module.check(entry, FLOATS, grouped)
    parts = (codes, scale, Part("bias", biases, "rows", rows))
    return Affine(f"MLX_{bits}", rows, columns, parts, bits=bits, group=group)


def _mlx_numbers(module: Module, weight: TensorEntry) -> tuple[int, int]:
    bits, group = module.number("bits"), module.number("group_size")
    if bits is None or group is None:
        module.refuse(
            weight,
            "holds MLX codes, and no config.json beside it says how many bits and what groups",
            hint="put the checkpoint's own config.json beside it",
        )
    if bits not in (2, 3, 4, 5, 6, 8) or not 1 <= group <= _MOST_COLUMNS:
        module.refuse(weight, f"is of {bits} bits in groups of {group}, which MLX does not write")
    if weight.shape[-1] * 32 % bits:
        module.refuse(
            weight, f"has rows of {weight.shape[-1]} words, which {bits}-bit codes do not fill"
        )
    return bits, group


def _divides(module: Module, entry: TensorEntry, columns: int, group: int) -> None:
    if columns % group:
        module.refuse(
            entry, f"has {columns} columns, which its group size of {group} does not divide"
        )


def read_compressed(module: Module) -> Coding | None:
    """The coding of a packed compressed-tensors weight of integers, or None. Raises BadFileError.

    Packed floats of the same names are ``fourbit``'s.
    """
    packed = module.parts.get("weight_packed")
    if packed is None or packed.type != "I32":
        return None
    scale = module.need("weight_scale", packed, "packed codes")
    module.need("weight_shape", packed, "packed codes")
    shape = tuple(module.numbers("weight_shape", 3))
    if len(shape) != len(packed.shape) or shape[:-1] != packed.shape[:-1]:
        module.refuse(packed, f"is {list(packed.shape)}, and its weight_shape says {list(shape)}")
    rows, columns = math.prod(shape[:-1]), shape[-1]
    bits = _compressed_bits(module, packed, columns)
    groups = scale.shape[-1] if len(scale.shape) == len(shape) else 1
    module.check(scale, FLOATS, (*shape[:-1], groups))
    if not groups or columns % groups:
        module.refuse(scale, f"holds {groups} scales a row, which do not divide {columns} columns")
    parts = [Part("codes", packed, "rows", rows), Part("scale", scale, "rows", rows)]
    zero = module.parts.get("weight_zero_point")
    if zero is not None and zero.type == "I32":
        per = 32 // bits
        module.check(zero, ("I32",), (math.ceil(rows / per), groups))
        parts.append(Part("zero", zero, "rows", math.ceil(rows / per), step=per))
    elif zero is not None:
        module.refuse(zero, f"is {zero.type}, not packed as its codes are")
    group = columns // groups
    parts += _groups(module, "weight_g_idx", columns, group, groups)
    return Affine(f"CT_INT{bits}", rows, columns, tuple(parts), bits=bits, group=group)


def _compressed_bits(module: Module, packed: TensorEntry, columns: int) -> int:
    """The bits of a code, as the configuration says and the shape agrees."""
    groups = module.setting("config_groups")
    stated = {
        weights["num_bits"]
        for group in (groups.values() if isinstance(groups, dict) else ())
        if isinstance(group, dict) and isinstance(weights := group.get("weights"), dict)
        if isinstance(weights.get("num_bits"), int)
    }
    fitting = [bits for bits in (2, 4, 8) if math.ceil(columns * bits / 32) == packed.shape[-1]]
    found = [bits for bits in fitting if not stated or bits in stated]
    if len(found) != 1:
        module.refuse(
            packed,
            f"has {packed.shape[-1]} words a row for {columns} codes, which are not of "
            f"{' or '.join(map(str, sorted(stated))) or '2, 4 or 8'} bits",
        )
    return found[0]


def read_turned(module: Module) -> Coding | None:
    """The coding of a GPTQ or AWQ weight; None where it is none. Raises BadFileError."""
    codes = module.parts.get("qweight")
    if codes is None:
        if module.has("qzeros"):
            module.refuse(module.parts["qzeros"], "holds zero points of codes that are not there")
        return None
    module.check(codes, ("I32",))
    if len(codes.shape) != 2:
        module.refuse(codes, f"is {list(codes.shape)}, not a table of words")
    for part in ("scales", "qzeros"):
        module.need(part, codes, f"{module.method or 'packed'} codes")
    packing = str(module.setting("packing_format") or "")
    if module.method == "awq" or "awq" in packing:
        return _awq(module, codes)
    if module.method in _GPTQ_LIKE:
        return _gptq(module, codes)
    module.refuse(
        codes,
        "is packed as GPTQ and AWQ do, and the configuration says "
        + (f"{module.method!r:.60}" if module.said is not None else "neither"),
        hint="put the checkpoint's own config.json beside it",
    )


def _bits_and_group(module: Module, codes: TensorEntry, columns_of: int) -> tuple[int, int, int]:
    """(bits, group size, columns): the configuration's, where the words agree."""
    bits, group = module.number("bits", "w_bit"), module.number("group_size", "q_group_size")
    if bits not in (2, 3, 4, 8) or group is None:
        module.refuse(codes, f"its configuration says {bits} bits in groups of {group}")
    if codes.shape[0] * columns_of % bits:
        module.refuse(codes, f"has {codes.shape[0]} words, which {bits}-bit codes do not fill")
    columns = codes.shape[0] * columns_of // bits
    group = columns if group == -1 else group
    if not 1 <= group <= _MOST_COLUMNS:
        module.refuse(codes, f"its configuration says groups of {group}")
    return bits, group, columns


def _gptq(module: Module, codes: TensorEntry) -> Coding:
    bits, group, columns = _bits_and_group(module, codes, 32)
    version = str(module.setting("checkpoint_format") or "gptq")
    if version not in ("gptq", "gptq_v2"):
        module.refuse(
            codes,
            f"is of the layout {version!r:.40}, which aprtui does not read",
            hint="GPTQModel saves it anew with format=gptq",
        )
    rows, groups = codes.shape[1], math.ceil(columns / group)
    if bits == 3 and rows % 32:
        module.refuse(codes, f"has {rows} rows, no multiple of 32, as three bits are packed")
    run, step = (bits, 32) if bits == 3 else (1, 32 // bits)
    zeros = Part("zero", module.parts["qzeros"], "columns", math.ceil(rows * bits / 32), step, run)
    parts = _turned_parts(module, Part("codes", codes, "columns", rows), zeros, rows, groups)
    listed = _groups(module, "g_idx", columns, group, groups)
    if not any(part.lies == "whole" for part in listed):
        _divides(module, codes, columns, group)
    return Turned(
        f"GPTQ_{bits}", rows, columns, (*parts, *listed),
        bits=bits, group=group, plus=1 if version == "gptq" else 0,
    )  # fmt: skip


def _awq(module: Module, codes: TensorEntry) -> Coding:
    version = str(module.setting("version") or "gemm")
    if version.lower() != "gemm":
        module.refuse(
            codes,
            f"is of AWQ's layout {version!r:.40}; aprtui reads gemm's",
            hint="AutoAWQ saves it anew with version=GEMM",
        )
    bits = module.number("bits", "w_bit")
    if bits != 4:
        module.refuse(codes, f"its configuration says {bits} bits; AWQ packs 4")
    _, group, columns = _bits_and_group(module, codes, bits)
    words = codes.shape[1]
    _divides(module, codes, columns, group)
    stored = Part("codes", codes, "columns", words, step=8)
    zeros = Part("zero", module.parts["qzeros"], "columns", words, step=8)
    parts = _turned_parts(module, stored, zeros, 8 * words, columns // group)
    return Turned("AWQ_4", 8 * words, columns, parts, bits=4, group=group, interleaved=True)


def _turned_parts(
    module: Module, codes: Part, zeros: Part, rows: int, groups: int
) -> tuple[Part, Part, Part]:
    """Codes, scales [groups, rows] and packed zeros [groups, words], all along the columns."""
    scales = module.parts["scales"]
    module.check(scales, FLOATS, (groups, rows))
    module.check(zeros.entry, ("I32",), (groups, zeros.places))
    return codes, Part("scale", scales, "columns", rows), zeros


def _groups(module: Module, name: str, columns: int, group: int, groups: int) -> tuple[Part, ...]:
    """The part that says which group each column is of: beside where they are in sequence."""
    entry = module.parts.get(name)
    if entry is None:
        return ()
    module.check(entry, ("I32", "I64"), (columns,))
    listed = module.numbers(name, _MOST_COLUMNS)
    if set(listed) == {-1}:  # compressed-tensors: not in use
        return (Part("groups", entry, "beside"),)
    if min(listed) < 0 or max(listed) >= groups:
        worst = max(listed) if max(listed) >= groups else min(listed)
        module.refuse(entry, f"names group {worst}, and there are {groups}")
    in_order = all(a <= b for a, b in pairwise(listed))
    plain = in_order and all(place == column // group for column, place in enumerate(listed))
    return (Part("groups", entry, "beside" if plain else "whole"),)
