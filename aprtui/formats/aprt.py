"""The stage file: ``APRT``, a layer, a count, and that many little-endian float32 values."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from aprtui.errors import BadFileError, UsageError
from aprtui.formats.atomic import OpenFolder, whole_file, write_whole
from aprtui.formats.files import OpenFile, open_file
from aprtui.formats.maps import GUARDED, check_maps, map_file
from aprtui.text import beginning

__all__ = [
    "HEADER_BYTES",
    "MAGIC",
    "MAX_VALUES",
    "WHOLE_MODEL",
    "StageHeader",
    "create_stage",
    "read_header",
    "read_values",
    "write_stage",
]

MAGIC = b"APRT"
HEADER_BYTES = 12
WHOLE_MODEL = 0xFFFFFFFF
MAX_VALUES = 0xFFFFFFFF
_HEADER = struct.Struct("<4sII")
_COPIED_BYTES = 1 << 20  # a copy of so few costs less than a map
_HINT = "free space or choose another folder with -o DIR"

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class StageHeader:
    """The twelve bytes at the start of a stage file; ``layer`` is None for a whole-model stage."""

    layer: int | None
    values: int

    def __post_init__(self) -> None:
        if not 0 <= self.values <= MAX_VALUES:
            raise UsageError(
                f"a stage file holds at most {MAX_VALUES:,} values, not {self.values:,}",
                hint="trace fewer tokens",
            )
        if self.layer is not None and not 0 <= self.layer < WHOLE_MODEL:
            raise UsageError(f"layer {self.layer} does not fit a stage file's header")

    @property
    def file_bytes(self) -> int:
        """The exact size of the file that this header promises."""
        return HEADER_BYTES + 4 * self.values

    def pack(self) -> bytes:
        return _HEADER.pack(MAGIC, WHOLE_MODEL if self.layer is None else self.layer, self.values)


def read_header(path: Path) -> StageHeader:
    """The header of a stage file whose size has been checked against it.

    Raises BadFileError for an unreadable file, a bad magic, a short file or trailing bytes.
    """
    with open_file(path) as file:
        return _header_of(file)


def _header_of(file: OpenFile) -> StageHeader:
    path, head, found = file.path, file.read(0, HEADER_BYTES), file.size
    if not head or not MAGIC.startswith(head[:4]):
        raise BadFileError(path, f"not a stage file: {beginning(head[:4], MAGIC)}")
    if len(head) < HEADER_BYTES:
        raise BadFileError(
            path,
            f"a stage file starts with {HEADER_BYTES} bytes of header, this one has {len(head)}",
        )
    _, layer, values = _HEADER.unpack(head)
    header = StageHeader(None if layer == WHOLE_MODEL else layer, values)
    if found != header.file_bytes:
        what = "is cut short" if found < header.file_bytes else "has trailing bytes"
        raise BadFileError(
            path, f"{what}: {header.file_bytes:,} bytes promised by its header, {found:,} there"
        )
    return header


def read_values(path: Path) -> Float32:
    """The values [n] float32 of a stage file, read-only: of a large one a map, else a copy.

    What is made of a map counts only when ``maps.check_maps`` raises nothing. Raises BadFileError.
    """
    with open_file(path) as file:
        size = 4 * _header_of(file).values
        if size > _COPIED_BYTES and GUARDED:
            raw = map_file(file)[HEADER_BYTES:]
        else:
            raw = file.array(HEADER_BYTES, size)
    raw.flags.writeable = False
    return raw.view("<f4")


def write_stage(
    path: Path, layer: int | None, values: Float32, *, within: OpenFolder | None = None
) -> int:
    """Write ``values`` (any shape, C order) as a whole stage file or none; its size in bytes.

    Bits are kept as they are: NaN payloads, infinities and -0.0 included. ``within``: the folder
    that a relative ``path`` lies in. Raises EngineError when the disk is full or the folder cannot
    be written.
    """
    flat = np.ascontiguousarray(values, dtype="<f4").reshape(-1)
    header = StageHeader(layer, flat.size)
    write_whole(path, header.pack(), flat.view(np.uint8).data, within=within, hint=_HINT)
    return header.file_bytes


@contextmanager
def create_stage(
    path: Path, layer: int | None, shape: tuple[int, ...], *, within: OpenFolder | None = None
) -> Iterator[Float32]:
    """A writable memory map [shape] float32, zeros at first, that becomes a stage file on leaving.

    For tensors that are made block by block. When the body raises, nothing remains.
    """
    header = StageHeader(layer, math.prod(shape))
    size = header.file_bytes
    with whole_file(path, within=within, needed_bytes=size, parents=True, hint=_HINT) as file:
        file.write(header.pack())
        file.flush()
        if hasattr(os, "posix_fallocate"):
            # Claim the blocks: a disk that fills up must be an error here, not a SIGBUS in the map.
            os.posix_fallocate(file.fileno(), 0, header.file_bytes)
        else:
            file.truncate(header.file_bytes)
        if header.values == 0:
            yield np.empty(shape, dtype=np.float32)
            return
        opened = OpenFile(path, file.fileno(), os.fstat(file.fileno()))
        mapped = map_file(opened, writable=True)
        yield mapped[HEADER_BYTES:].view("<f4").reshape(shape)
        check_maps(mapped)
