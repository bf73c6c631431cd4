"""Writes ``.apr`` version 2 model files: sizes declared first, data streamed, all or nothing."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from aprtui.errors import BadFileError, EngineError, UsageError
from aprtui.formats.apr_header import (
    ALIGNMENT,
    HAS_VOCABULARY,
    HEADER_BYTES,
    QUANTIZED,
    ROW_MAJOR,
    AprHeader,
    aligned,
)
from aprtui.formats.apr_index import MAX_DIMS, MAX_NAME_BYTES, MAX_TENSORS, pack_entry
from aprtui.formats.apr_metadata import ALIASES, NULLABLE, read_metadata
from aprtui.formats.atomic import whole_file
from aprtui.formats.blocks import BLOCK_TYPES, stored_bytes
from aprtui.text import clean

__all__ = ["TYPE_CODES", "OutgoingTensor", "write_apr"]

# The types that every reader of the format takes to be the same thing (docs/apr-format.md, D6);
# BF16, APR_Q4 and APR_Q8 are read by most.
TYPE_CODES: dict[str, int] = {
    "F32": 0,
    "F16": 1,
    "Q4_K": 12,
    "Q6_K": 14,
    "BF16": 30,
    "APR_Q4": 128,
    "APR_Q8": 129,
}

Chunk = bytes | memoryview | npt.NDArray[np.uint8]


@dataclass(frozen=True)
class OutgoingTensor:
    """A tensor to be written: what is known of it before its first byte is made.

    ``chunks`` makes the bytes, in pieces of any size; it is called once, when they are written.
    Blocks of matrices run row by row, each row padded to whole blocks; of other tensors, and of
    APR_Q4 and APR_Q8, over the flattened tensor.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[Chunk]]

    @property
    def size_bytes(self) -> int:
        return stored_bytes(self.type, self.shape, flat=len(self.shape) != 2)


def write_apr(path: Path, metadata: Mapping[str, Any], tensors: Iterable[OutgoingTensor]) -> int:
    """Write a whole ``.apr`` file or none; its size in bytes. Memory: one chunk at a time.

    ``metadata`` keeps its order and must be under canonical keys. The file appears under its name
    only when it is complete and on disk. Layout: docs/apr-format.md, 1.2 to 1.6.

    Raises UsageError for what the format cannot hold, EngineError for a full disk or a tensor
    that yields another number of bytes than its shape and type take.
    """
    ordered = sorted(tensors, key=lambda tensor: _name_bytes(tensor.name))
    _check_tensors(ordered)
    document = _document(path, metadata)
    index = _index(ordered)
    index_offset = HEADER_BYTES + aligned(len(document))
    data_offset = index_offset + aligned(len(index))
    header = AprHeader(
        flags=_flags(metadata, ordered),
        tensor_count=len(ordered),
        metadata_offset=HEADER_BYTES,
        metadata_size=len(document),
        index_offset=index_offset,
        data_offset=data_offset,
    )
    total = data_offset + sum(aligned(tensor.size_bytes) for tensor in ordered) + 4
    hint = f"{total:,} bytes are needed; free space or choose another folder"
    with whole_file(path, needed_bytes=total, durable=True, hint=hint) as file:
        out = _ChecksummedWriter(file)
        for section in (header.pack(), document, index):
            out.write(section)
            out.pad()
        for tensor in ordered:
            _write_tensor(path, out, tensor)
        file.write(out.crc.to_bytes(4, "little"))
    return total


class _ChecksummedWriter:
    """Counts what passes through it and keeps the CRC-32 of it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.crc = 0
        self.written = 0

    def write(self, chunk: bytes | memoryview) -> None:
        self._file.write(chunk)
        self.crc = zlib.crc32(chunk, self.crc)
        self.written += len(chunk)

    def pad(self) -> None:
        self.write(bytes(-self.written % ALIGNMENT))


def _write_tensor(path: Path, out: _ChecksummedWriter, tensor: OutgoingTensor) -> None:
    came = 0
    for chunk in tensor.chunks():
        view = chunk.data if isinstance(chunk, np.ndarray) else memoryview(chunk)
        if not view.nbytes:
            continue
        came += view.nbytes
        if came > tensor.size_bytes:
            break
        out.write(view.cast("B"))
    if came != tensor.size_bytes:
        raise EngineError(
            f"{clean(str(path))}: tensor {clean(tensor.name)} takes {tensor.size_bytes:,} bytes as "
            f"{tensor.type}, {'more' if came > tensor.size_bytes else f'{came:,}'} came"
        )
    out.pad()


def _name_bytes(name: str) -> bytes:
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        encoded = b""
    if not 1 <= len(encoded) <= MAX_NAME_BYTES or b"\0" in encoded:
        raise UsageError(
            f"an .apr file cannot hold the tensor name {clean(name)!r}: names have 1 to "
            f"{MAX_NAME_BYTES} bytes of UTF-8 without NUL"
        )
    return encoded


def _check_tensors(ordered: list[OutgoingTensor]) -> None:
    """Refuse what no index can hold: names twice, types without a code, shapes out of bounds."""
    if len(ordered) > MAX_TENSORS:
        raise UsageError(f"{len(ordered):,} tensors; an .apr file holds at most {MAX_TENSORS:,}")
    for left, right in pairwise(ordered):
        if left.name == right.name:
            raise UsageError(f"tensor {clean(left.name)} is to be written twice")
    for tensor in ordered:
        what = f"tensor {clean(tensor.name)}"
        if tensor.type not in TYPE_CODES:
            raise UsageError(
                f"{what}: an .apr file cannot hold {tensor.type} safely",
                hint=f"requantise it to one of {', '.join(TYPE_CODES)}",
            )
        if len(tensor.shape) > MAX_DIMS or min(tensor.shape, default=0) < 0:
            raise UsageError(f"{what}: an .apr file cannot hold the shape {tensor.shape}")


def _document(path: Path, metadata: Mapping[str, Any]) -> bytes:
    """The metadata as compact JSON that this program's own reader, and apr's, take whole."""
    for name, aliases in ALIASES.items():
        for alias in aliases:
            if alias in metadata:
                raise UsageError(f"the metadata key {alias} must be written as {name}")
    for key, value in metadata.items():
        if (value is not None or key not in NULLABLE) and _holds_null(value):
            raise UsageError(f"the metadata key {clean(key)} is or holds a null")
    try:
        document = json.dumps(
            dict(metadata), ensure_ascii=False, separators=(",", ":"), allow_nan=False
        ).encode()
        read_metadata(path, document)
    except BadFileError as error:
        raise UsageError(f"metadata that no reader would take: {error.message}") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"the metadata is no JSON: {clean(str(error))}") from error
    return document


def _holds_null(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_holds_null(part) for part in value.values())
    if isinstance(value, (list, tuple)):
        return any(_holds_null(part) for part in value)
    return value is None


def _index(ordered: list[OutgoingTensor]) -> bytes:
    entries, offset = [], 0
    for tensor in ordered:
        size = tensor.size_bytes
        code = TYPE_CODES[tensor.type]
        entries.append(pack_entry(tensor.name.encode(), code, tensor.shape, offset, size))
        offset += aligned(size)
    return b"".join(entries)


def _flags(metadata: Mapping[str, Any], tensors: list[OutgoingTensor]) -> int:
    quantised = any(
        tensor.type == "APR_Q8" or BLOCK_TYPES[tensor.type].values > 1 for tensor in tensors
    )
    vocabulary = bool(metadata.get("tokenizer.vocabulary"))
    return ROW_MAJOR | QUANTIZED * quantised | HAS_VOCABULARY * vocabulary
