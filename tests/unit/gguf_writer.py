"""A GGUF writer for tests that writes whatever it is told, right or wrong."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["SCALARS", "Tensor", "array_of", "gguf_bytes", "key", "string", "text"]

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"} | {
    12: "d"
}


@dataclass(frozen=True)
class Tensor:
    """An index entry; ``ne`` as ggml has it, innermost first. ``offset`` None: the next free."""

    name: str
    ne: tuple[int, ...]
    code: int = 0
    stored: bytes = b""
    offset: int | None = None


def string(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def key(name: bytes | str, code: int, value: Any) -> bytes:
    """One metadata key with its value: a number, or for strings and arrays encoded bytes."""
    encoded = name.encode() if isinstance(name, str) else name
    packed = value if code not in SCALARS else struct.pack(f"<{SCALARS[code]}", value)
    return string(encoded) + struct.pack("<I", code) + packed


def text(name: str, value: str) -> bytes:
    return key(name, 8, string(value.encode("utf-8", "surrogateescape")))


def array_of(code: int, values: Sequence[Any]) -> bytes:
    """An array's value: numbers of scalar type ``code``, or for code 8 byte strings."""
    body = (
        b"".join(string(value) for value in values)
        if code == 8
        else struct.pack(f"<{len(values)}{SCALARS[code]}", *values)
    )
    return struct.pack("<IQ", code, len(values)) + body


def gguf_bytes(
    keys: Sequence[bytes] = (),
    tensors: Sequence[Tensor] = (),
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    counts: tuple[int, int] | None = None,
    alignment: int = 32,
) -> bytes:
    """A whole file. ``counts`` overrides the numbers of tensors and keys that the header tells."""
    tensor_count, key_count = counts or (len(tensors), len(keys))
    header = magic + struct.pack("<IQQ", version, tensor_count, key_count) + b"".join(keys)
    body = b""
    for tensor in tensors:
        body += b"\0" * (-len(body) % alignment)
        header += string(tensor.name.encode("utf-8", "surrogateescape"))
        header += struct.pack(f"<I{len(tensor.ne)}Q", len(tensor.ne), *tensor.ne)
        offset = len(body) if tensor.offset is None else tensor.offset
        header += struct.pack("<IQ", tensor.code, offset)
        body += tensor.stored
    return header + b"\0" * (-len(header) % alignment) + body
