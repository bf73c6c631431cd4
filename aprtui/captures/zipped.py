"""Zip archives as numpy and torch write them: where each record lies, read within its stated size.

Python's zipfile reads the directory, once its size is known to be sane; records are read here, so
that a stored one is one pread and a deflated one never becomes larger than it says.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from aprtui.errors import BadFileError
from aprtui.formats.files import OpenFile, open_file
from aprtui.text import clean, size

__all__ = ["Record", "records_of"]

_MAX_DIRECTORY_BYTES = 16 << 20  # a quarter of a million records
_END_BYTES, _LONGEST_COMMENT = 22, 0xFFFF


@dataclass(frozen=True)
class Record:
    """One record of an archive: where its local header lies, how long it is packed and unpacked."""

    path: Path
    name: str
    offset: int
    packed: int
    size: int
    crc: int
    deflated: bool

    def read(self, most: int) -> bytes:
        """All bytes. Raises BadFileError for more than ``most`` and for what is damaged."""
        if self.size > most:
            raise self._bad(f"has {size(self.size)}, over the limit of {size(most)}")
        found = self._start(self.size, self.packed)
        if len(found) != self.size or zlib.crc32(found) != self.crc:
            raise self._bad("is damaged or was cut short")
        return found

    def head(self, most: int) -> bytes:
        """Up to ``most`` bytes at its start, unchecked."""
        return self._start(most, min(self.packed, 2 * most + 1024))

    def _start(self, most: int, packed: int) -> bytes:
        with open_file(self.path) as file:
            raw = file.read(self._body(file), packed)
        if not self.deflated:
            return raw[:most]
        try:
            unpacking = zlib.decompressobj(-15)
            found = unpacking.decompress(raw, max(most, 1))
        except zlib.error as error:
            raise self._bad("is damaged: it cannot be unpacked") from error
        return found[:most]

    def _body(self, file: OpenFile) -> int:
        local = file.read(self.offset, 30)
        if len(local) < 30 or local[:4] != b"PK\3\4":
            raise self._bad("lies where no record begins")
        name, extra = struct.unpack("<HH", local[26:30])
        return self.offset + 30 + int(name) + int(extra)

    def _bad(self, what: str) -> BadFileError:
        return BadFileError(self.path, f"record {clean(self.name)} {what}")


def records_of(path: Path) -> dict[str, Record]:
    """The archive's records by name, in its order. Raises BadFileError."""
    with open_file(path) as file:
        _check_directory(file)
        try:
            with zipfile.ZipFile(_Reading(file)) as archive:
                listed = archive.infolist()
        except (zipfile.BadZipFile, ValueError, struct.error, NotImplementedError) as error:
            raise BadFileError(path, "not a whole zip archive: it was cut short") from error
        return _checked(path, file.size, listed)


def _checked(path: Path, end: int, listed: list[zipfile.ZipInfo]) -> dict[str, Record]:
    found: dict[str, Record] = {}
    for each in listed:
        name = each.filename
        if name in found:
            raise BadFileError(path, f"record {clean(name)} stands there twice")
        deflated = each.compress_type == zipfile.ZIP_DEFLATED
        if each.flag_bits & 1 or not (deflated or each.compress_type == zipfile.ZIP_STORED):
            raise BadFileError(path, f"record {clean(name)} is encrypted or packed in another way")
        inside = each.header_offset >= 0 and each.header_offset + each.compress_size <= end
        if not inside or not (deflated or each.compress_size == each.file_size):
            raise BadFileError(path, f"record {clean(name)} does not fit into the file")
        found[name] = Record(
            path, name, each.header_offset, each.compress_size, each.file_size, each.CRC, deflated
        )
    return found


def _check_directory(file: OpenFile) -> None:
    """Raise BadFileError unless the directory is there and small enough to be read."""
    start = max(0, file.size - _END_BYTES - _LONGEST_COMMENT)
    tail = file.read(start, _END_BYTES + _LONGEST_COMMENT)
    end = tail.rfind(b"PK\5\6")
    if end < 0 or len(tail) < end + _END_BYTES:
        raise BadFileError(file.path, "not a whole zip archive: it was cut short")
    (taken,) = struct.unpack("<I", tail[end + 12 : end + 16])
    wide = tail[: max(0, end - 20)].rfind(b"PK\6\6")
    if wide >= 0 and len(tail) >= wide + 48:  # its large fields stand in a record of their own
        (taken,) = struct.unpack("<Q", tail[wide + 40 : wide + 48])
    if min(taken, file.size) > _MAX_DIRECTORY_BYTES:
        raise BadFileError(
            file.path, f"a zip archive whose directory takes {size(taken)} is refused"
        )


class _Reading(io.RawIOBase):
    """An open file as zipfile wants to read it."""

    def __init__(self, file: OpenFile) -> None:
        self._file = file
        self._place = 0

    def seek(self, offset: int, whence: int = 0) -> int:
        place = offset + (0, self._place, self._file.size)[whence]
        if place < 0:
            raise ValueError("before the file's start")
        self._place = place
        return place

    def tell(self) -> int:
        return self._place

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def read(self, count: int | None = -1) -> bytes:
        left = max(0, self._file.size - self._place)
        wanted = left if count is None or count < 0 else min(count, left)
        found = self._file.read(self._place, wanted)
        self._place += len(found)
        return found
