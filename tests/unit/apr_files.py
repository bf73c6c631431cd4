"""Makes ``.apr`` files, right and wrong, straight from the layout's description."""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import dataclass, field
from typing import Any

__all__ = ["AprFile", "Tensor", "with_header"]

_HEADER = struct.Struct("<4sBBHIQIQQI20s")
_FIELDS = (
    *("magic", "major", "minor", "flags", "tensor_count", "metadata_offset", "metadata_size"),
    *("index_offset", "data_offset"),
)


@dataclass
class Tensor:
    name: bytes
    code: int
    shape: tuple[int, ...]
    payload: bytes
    offset: int | None = None
    size: int | None = None


@dataclass
class AprFile:
    """``metadata`` as an object or as raw bytes; ``alignment`` 1 packs everything tightly."""

    tensors: list[Tensor] = field(default_factory=list)
    metadata: dict[str, Any] | bytes = field(default_factory=lambda: {"model_type": "test"})
    flags: int = 0x0400
    magic: bytes = b"APR\0"
    alignment: int = 64
    footer: bool = True
    index: bytes | None = None
    count: int | None = None

    def build(self) -> bytes:
        metadata = (
            self.metadata
            if isinstance(self.metadata, bytes)
            else json.dumps(self.metadata, ensure_ascii=False, separators=(",", ":")).encode()
        )
        index, body = b"", b""
        for tensor in self.tensors:
            offset = len(body) if tensor.offset is None else tensor.offset
            size = len(tensor.payload) if tensor.size is None else tensor.size
            index += struct.pack("<H", len(tensor.name)) + tensor.name
            index += bytes([tensor.code, len(tensor.shape)])
            index += struct.pack(f"<{len(tensor.shape)}QQQ", *tensor.shape, offset, size)
            body += self._padded(tensor.payload)
        index = self.index if self.index is not None else index
        head = {
            "magic": self.magic,
            "major": 2,
            "minor": 0,
            "flags": self.flags,
            "tensor_count": len(self.tensors) if self.count is None else self.count,
            "metadata_offset": 64,
            "metadata_size": len(metadata),
            "index_offset": 64 + len(self._padded(metadata)),
            "data_offset": 64 + len(self._padded(metadata)) + len(self._padded(index)),
        }
        whole = _pack(head) + self._padded(metadata) + self._padded(index) + body
        return whole + (struct.pack("<I", zlib.crc32(whole)) if self.footer else b"")

    def _padded(self, part: bytes) -> bytes:
        return part + bytes(-len(part) % self.alignment)


def _pack(fields: dict[str, Any]) -> bytes:
    values = [fields[name] for name in _FIELDS]
    blank = _HEADER.pack(*values, 0, bytes(20))
    return _HEADER.pack(*values, zlib.crc32(blank[:40] + blank[44:]), bytes(20))


def with_header(whole: bytes, **changes: int) -> bytes:
    """``whole`` with fields of its header replaced and the header's checksum made right again."""
    fields = dict(zip(_FIELDS, _HEADER.unpack(whole[:64])[:9], strict=True))
    return _pack(fields | changes) + whole[64:]
