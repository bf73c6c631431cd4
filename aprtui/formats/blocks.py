"""Block types: how many values a block holds in how many bytes. Tables only; no arithmetic.

The types of GGUF are ggml's (ggml.h, ggml-common.h). They are written down here because the gguf
package, which has the same table, takes longer to import than a model's header to read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    "BLOCK_TYPES",
    "BY_GGML_CODE",
    "INTEGERS",
    "MAX_DIMENSIONS",
    "MAX_TENSORS",
    "MAX_VALUES",
    "BlockType",
    "stored_bytes",
    "value_count",
]

MAX_TENSORS = 200_000  # of one model: the largest that are published have 140,000
MAX_DIMENSIONS = 8  # of any tensor's shape; ggml has 4
MAX_VALUES = 1 << 63  # of any tensor, and of each of its extents


@dataclass(frozen=True)
class BlockType:
    """``values`` floats are stored in ``bytes`` bytes. ``ggml_code`` is None for APR's own."""

    name: str
    values: int
    bytes: int
    ggml_code: int | None


# name, values, bytes, ggml's code
_GGML: tuple[tuple[str, int, int, int], ...] = (
    ("F32", 1, 4, 0), ("F16", 1, 2, 1), ("BF16", 1, 2, 30), ("F64", 1, 8, 28),
    ("I8", 1, 1, 24), ("I16", 1, 2, 25), ("I32", 1, 4, 26), ("I64", 1, 8, 27),
    ("Q4_0", 32, 18, 2), ("Q4_1", 32, 20, 3), ("Q5_0", 32, 22, 6), ("Q5_1", 32, 24, 7),
    ("Q8_0", 32, 34, 8), ("Q8_1", 32, 36, 9), ("Q1_0", 128, 18, 41),
    ("Q2_K", 256, 84, 10), ("Q3_K", 256, 110, 11), ("Q4_K", 256, 144, 12), ("Q5_K", 256, 176, 13),
    ("Q6_K", 256, 210, 14), ("Q8_K", 256, 292, 15),
    ("IQ1_S", 256, 50, 19), ("IQ1_M", 256, 56, 29), ("IQ2_XXS", 256, 66, 16),
    ("IQ2_XS", 256, 74, 17), ("IQ2_S", 256, 82, 22), ("IQ3_XXS", 256, 98, 18),
    ("IQ3_S", 256, 110, 21), ("IQ4_NL", 32, 18, 20), ("IQ4_XS", 256, 136, 23),
    ("TQ1_0", 256, 54, 34), ("TQ2_0", 256, 66, 35), ("MXFP4", 32, 17, 39), ("NVFP4", 64, 36, 40),
)  # fmt: skip

BLOCK_TYPES: dict[str, BlockType] = {
    name: BlockType(name, values, size, code) for name, values, size, code in _GGML
} | {
    "APR_Q4": BlockType(
        "APR_Q4", 32, 18, None
    ),  # f16 scale, nibbles in order; over the flat tensor
    "APR_Q8": BlockType("APR_Q8", 1, 1, None),  # one f32 scale, then a signed byte a value
} | {
    name: BlockType(name, 1, size, None)  # safetensors' own
    for name, size in (("F8_E4M3", 1), ("F8_E5M2", 1), ("F8_E8M0", 1), ("BOOL", 1),
                       ("U8", 1), ("U16", 2), ("U32", 4), ("U64", 8))
}  # fmt: skip

INTEGERS = frozenset({"I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64", "BOOL"})
"""Types of numbers that a weight can hold as codes alone: what they mean is told by scales."""

BY_GGML_CODE: dict[int, BlockType] = {
    kind.ggml_code: kind for kind in BLOCK_TYPES.values() if kind.ggml_code is not None
}


def value_count(shape: Sequence[int]) -> int:
    """How many values a shape has. Raises ValueError for one that no file could hold.

    Checked as it is multiplied: the product of a few thousand huge numbers takes minutes.
    """
    if len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"{len(shape):,} dimensions; {MAX_DIMENSIONS} is the most")
    total = 1
    for extent in shape:
        if not 0 <= extent < MAX_VALUES:
            raise ValueError("an extent that is no whole number below 2^63")
        total *= extent
    if total >= MAX_VALUES:
        raise ValueError("2^63 values or more")
    return total


def stored_bytes(type_name: str, shape: tuple[int, ...], *, flat: bool = False) -> int:
    """The exact bytes that a tensor of ``shape`` (row-major) takes in ``type_name`` blocks.

    Each row is padded to whole blocks, unless ``flat``. An empty tensor takes none.
    """
    kind = BLOCK_TYPES[type_name]
    total = math.prod(shape)
    if total == 0:
        return 0
    if type_name == "APR_Q8":
        return 4 + total
    columns = shape[-1] if shape else 1
    if flat or type_name == "APR_Q4":
        return math.ceil(total / kind.values) * kind.bytes
    return total // columns * math.ceil(columns / kind.values) * kind.bytes
