"""What every model format yields: metadata, a table of tensors, and their bytes without a copy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from aprtui.errors import BadFileError
from aprtui.formats.blocks import BLOCK_TYPES, stored_bytes
from aprtui.formats.maps import map_once
from aprtui.text import clean

if TYPE_CHECKING:
    from aprtui.formats.adapters import Adapter
    from aprtui.formats.quantised.coding import Coding
    from aprtui.formats.quantised.declared import Quantisation

__all__ = ["HeaderField", "ModelFile", "TensorEntry", "block_bytes", "tensor_bytes", "whole_bytes"]


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies and how its bytes are to be read.

    ``shape`` is row-major, outermost first. ``type`` is a name of ``formats.blocks.BLOCK_TYPES``,
    or whatever the file says where it is none. Rows are encoded one by one, each padded to whole
    blocks, unless ``flat``: then the blocks run over the flattened tensor (APR-Q4, APR-Q8).

    A weight that a quantiser wrote as several tensors has a ``coding``, which says them all: its
    ``type`` is the coding's, its ``size_bytes`` those of all parts, its place that of the codes.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    size_bytes: int
    flat: bool = False
    coding: Coding | None = None


@dataclass(frozen=True)
class HeaderField:
    """One decoded field of a file's header, for people: where it is, what it says."""

    name: str
    offset: int
    raw: bytes
    value: str


@dataclass(frozen=True)
class ModelFile:
    """A model as its file (or files) tell it, before anything is made of it."""

    path: Path
    format: str  # "apr", "gguf" or "safetensors"
    version: str
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorEntry]
    files: tuple[Path, ...]
    size_bytes: int
    digest: str  # sha256 of header, metadata and tensor index of every file, as hex
    notes: tuple[str, ...] = ()
    header: tuple[HeaderField, ...] = field(default=())
    quantisation: Quantisation | None = None  # what its configuration says of its weights' coding
    adapter: Adapter | None = None  # what was laid on its weights, on request


def block_bytes(entry: TensorEntry, rows: int) -> int:
    """The most bytes that a block of so many of its rows takes, wherever it begins."""
    if entry.coding is not None:
        return entry.coding.block_bytes(rows)
    stored = stored_bytes(entry.type, (rows, entry.shape[-1]), flat=entry.flat)
    if entry.flat or entry.type == "APR_Q4":  # it may begin and end inside a block
        stored += BLOCK_TYPES[entry.type].bytes
    return stored


def whole_bytes(entry: TensorEntry) -> npt.NDArray[np.uint8]:
    """``tensor_bytes`` of a tensor whose size is the one that its shape and type need.

    Raises BadFileError where it is not, and as ``tensor_bytes`` does.
    """
    needed = stored_bytes(entry.type, entry.shape, flat=entry.flat)
    if entry.size_bytes != needed:
        raise BadFileError(
            entry.path,
            f"tensor {clean(entry.name)} holds {entry.size_bytes:,} bytes where "
            f"{'x'.join(map(str, entry.shape))} of {entry.type} takes {needed:,}",
        )
    return tensor_bytes(entry)


def tensor_bytes(entry: TensorEntry) -> npt.NDArray[np.uint8]:
    """The tensor's bytes [size_bytes] uint8, a view of the memory map (``maps.check_maps``).

    Raises BadFileError when the file is gone or has become shorter than its index says.
    """
    assert entry.coding is None, "a weight of several tensors has no bytes of its own"
    if entry.size_bytes == 0:
        return np.empty(0, dtype=np.uint8)
    try:
        stat = entry.path.stat()
    except OSError as error:
        raise BadFileError(entry.path, f"cannot be read: {error.strerror}") from error
    if entry.offset + entry.size_bytes > stat.st_size:
        raise BadFileError(
            entry.path,
            f"tensor bytes {entry.offset:,}..{entry.offset + entry.size_bytes:,} lie beyond "
            f"the end of the file ({stat.st_size:,} bytes)",
            hint="the file was cut short; copy it again",
        )
    mapped = map_once(entry.path, stat.st_size, stat.st_mtime_ns)
    return mapped[entry.offset : entry.offset + entry.size_bytes]
