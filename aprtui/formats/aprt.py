"""The stage file: ``APRT``, a layer, a count, and that many little-endian float32 values."""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from aprtui.errors import BadFileError, EngineError, UsageError

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
    try:
        with path.open("rb") as file:
            head = file.read(HEADER_BYTES)
            found = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise BadFileError(path, f"cannot be read: {error.strerror}") from error
    if len(head) < HEADER_BYTES:
        raise BadFileError(
            path,
            f"a stage file starts with {HEADER_BYTES} bytes of header, this one has {len(head)}",
        )
    magic, layer, values = _HEADER.unpack(head)
    if magic != MAGIC:
        raise BadFileError(path, f"not a stage file: it starts with {magic!r}, not {MAGIC!r}")
    header = StageHeader(None if layer == WHOLE_MODEL else layer, values)
    if found != header.file_bytes:
        what = "is cut short" if found < header.file_bytes else "has trailing bytes"
        raise BadFileError(
            path, f"{what}: {header.file_bytes:,} bytes promised by its header, {found:,} there"
        )
    return header


def read_values(path: Path) -> Float32:
    """The values [n] float32 of a stage file as a read-only memory map, never a copy."""
    header = read_header(path)
    if header.values == 0:
        return np.empty(0, dtype=np.float32)
    try:
        return np.memmap(
            path, dtype=np.dtype("<f4"), mode="r", offset=HEADER_BYTES, shape=(header.values,)
        )
    except (OSError, ValueError) as error:
        raise BadFileError(path, f"cannot be mapped: {error}") from error


def write_stage(path: Path, layer: int | None, values: Float32) -> int:
    """Write ``values`` (any shape, C order) as a whole stage file or none; its size in bytes.

    Bits are kept as they are: NaN payloads, infinities and -0.0 included. Raises EngineError when
    the disk is full or the folder cannot be written.
    """
    flat = np.ascontiguousarray(values, dtype="<f4").reshape(-1)
    header = StageHeader(layer, flat.size)
    with _whole_or_nothing(path) as fd:
        view = memoryview(header.pack())
        for part in (view, flat.view(np.uint8).data if flat.size else memoryview(b"")):
            while part:
                part = part[os.write(fd, part) :]
    return header.file_bytes


@contextmanager
def create_stage(path: Path, layer: int | None, shape: tuple[int, ...]) -> Iterator[Float32]:
    """A writable memory map [shape] float32, zeros at first, that becomes a stage file on leaving.

    For tensors that are made block by block. When the body raises, nothing remains.
    """
    header = StageHeader(layer, int(np.prod(shape, dtype=np.int64)))
    with _whole_or_nothing(path) as fd:
        os.write(fd, header.pack())
        try:  # claim the blocks now: a full disk must be an error here, not a SIGBUS in the map
            os.posix_fallocate(fd, 0, header.file_bytes)
        except AttributeError:
            os.ftruncate(fd, header.file_bytes)
        if header.values == 0:
            yield np.empty(shape, dtype=np.float32)
            return
        with os.fdopen(os.dup(fd), "r+b") as file:
            mapped = np.memmap(file, dtype="<f4", mode="r+", offset=HEADER_BYTES, shape=shape)
            yield mapped
            mapped.flush()


@contextmanager
def _whole_or_nothing(path: Path) -> Iterator[int]:
    """A file descriptor under a temporary name beside ``path``, renamed to it at the end."""
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        try:
            yield fd
            os.fchmod(fd, 0o644)
        finally:
            os.close(fd)
        Path(temporary).replace(path)
        temporary = None
    except OSError as error:
        raise EngineError(
            f"{path}: cannot be written: {error.strerror or error}",
            hint="free space or choose another folder with --save-tensor-dir",
        ) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
