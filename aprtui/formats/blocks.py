"""Block types: how many values a block holds in how many bytes. Tables only; no arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass

import gguf

__all__ = ["BLOCK_TYPES", "BY_GGML_CODE", "BlockType", "stored_bytes"]


@dataclass(frozen=True)
class BlockType:
    """``values`` floats are stored in ``bytes`` bytes. ``ggml_code`` is None for APR's own."""

    name: str
    values: int
    bytes: int
    ggml_code: int | None


BLOCK_TYPES: dict[str, BlockType] = {
    kind.name: BlockType(kind.name, values, size, int(kind))
    for kind, (values, size) in gguf.GGML_QUANT_SIZES.items()
} | {
    "Q8_1": BlockType("Q8_1", 32, 36, 9),  # gguf-py says 40, from before d and s became float16
    "APR_Q4": BlockType(
        "APR_Q4", 32, 18, None
    ),  # f16 scale, nibbles in order; over the flat tensor
    "APR_Q8": BlockType("APR_Q8", 1, 1, None),  # one f32 scale, then a signed byte a value
    "U8": BlockType("U8", 1, 1, None),
}

BY_GGML_CODE: dict[int, BlockType] = {
    kind.ggml_code: kind for kind in BLOCK_TYPES.values() if kind.ggml_code is not None
}


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
