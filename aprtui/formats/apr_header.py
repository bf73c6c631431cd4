"""The 64 bytes at the start of an ``.apr`` file, and what a file is that does not start so."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from aprtui.errors import BadFileError
from aprtui.formats.modelfile import HeaderField
from aprtui.text import beginning

__all__ = [
    "ALIGNMENT",
    "FLAGS",
    "HAS_VOCABULARY",
    "HEADER_BYTES",
    "LEGACY_MAGIC",
    "MAGIC",
    "QUANTIZED",
    "ROW_MAJOR",
    "AprHeader",
    "aligned",
    "read_header",
]

MAGIC = b"APR\0"
LEGACY_MAGIC = b"APR2"
HEADER_BYTES = 64
ALIGNMENT = 64
_LAYOUT = struct.Struct("<4sBBHIQIQQI20s")
_CHECKSUM_AT = 40

LZ4, ZSTD, ENCRYPTED, SHARDED = 0x0001, 0x0002, 0x0004, 0x0010
QUANTIZED, HAS_VOCABULARY, ROW_MAJOR, COLUMN_MAJOR = 0x0020, 0x0200, 0x0400, 0x0800
FLAGS: dict[int, str] = {
    LZ4: "lz4",
    ZSTD: "zstd",
    ENCRYPTED: "encrypted",
    0x0008: "signed",
    SHARDED: "sharded",
    QUANTIZED: "quantized",
    0x0040: "filterbank",
    0x0080: "model card",
    0x0100: "streaming",
    HAS_VOCABULARY: "vocabulary",
    ROW_MAJOR: "row-major",
    COLUMN_MAJOR: "column-major",
}

# First bytes of files that are often met under the wrong name: what each is, what to do.
_FOREIGN: tuple[tuple[bytes, str, str], ...] = (
    (
        b"APR1",
        "an APR version 1 file, of the kind once used for speech models",
        "convert it with a version of apr that still reads APR1",
    ),
    (
        b"APRN",
        "an APRN container of classical machine learning, not a language model",
        "aprtui reads version 2 files, which apr import writes",
    ),
    (
        b"APR\x02",
        "marked APR\\x02, as only old documents describe and no program writes",
        "write it again with apr import",
    ),
    (b"APRT", "a stage file of a trace, not a model", "open it as a stage"),
    (b"GGUF", "a GGUF file, not .apr", "rename it to end in .gguf"),
    (
        b"version https://git-lfs",
        "a git-lfs pointer, not the file itself",
        "fetch it with git lfs pull",
    ),
)


def aligned(byte_count: int) -> int:
    """``byte_count`` rounded up to the alignment of sections and tensors."""
    return -(-byte_count // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class AprHeader:
    """The header's fields; offsets in bytes from the start of the file."""

    flags: int
    tensor_count: int
    metadata_offset: int
    metadata_size: int
    index_offset: int
    data_offset: int
    magic: bytes = MAGIC
    major: int = 2
    minor: int = 0

    @property
    def compressed(self) -> bool:
        return bool(self.flags & (LZ4 | ZSTD))

    @property
    def sharded(self) -> bool:
        return bool(self.flags & SHARDED)

    def pack(self) -> bytes:
        """The 64 bytes, checksum included."""
        fields = (
            *(self.magic, self.major, self.minor, self.flags, self.tensor_count),
            *(self.metadata_offset, self.metadata_size, self.index_offset, self.data_offset),
        )
        return _LAYOUT.pack(*fields, _checksum(_LAYOUT.pack(*fields, 0, b"")), b"")


def _checksum(head: bytes) -> int:
    """CRC-32/ISO-HDLC over the header without its checksum field."""
    return zlib.crc32(head[_CHECKSUM_AT + 4 :], zlib.crc32(head[:_CHECKSUM_AT]))


def read_header(
    path: Path, head: bytes, *, lenient: bool
) -> tuple[AprHeader, tuple[HeaderField, ...], list[str]]:
    """The header in the first bytes of ``path``, its fields for people, and notes.

    Raises BadFileError for what is not a version 2 container or cannot be read as one. With
    ``lenient`` a wrong checksum is only noted.
    """
    _refuse_foreign(path, head)
    if len(head) < HEADER_BYTES:
        raise BadFileError(
            path,
            f"an .apr file starts with {HEADER_BYTES} bytes of header, this one has {len(head)}",
            hint="the file was cut short; copy it again",
        )
    magic, major, minor, flags, count = _LAYOUT.unpack(head)[:5]
    metadata_offset, metadata_size, index_offset, data_offset, stored, _ = _LAYOUT.unpack(head)[5:]
    if magic == MAGIC and int.from_bytes(head[4:8], "little") <= 1:
        raise BadFileError(
            path,
            "an APR file with the header of one old loader (MmapAprTransformer), no tensor index",
            hint="write it again with apr import",
        )
    notes = []
    computed = _checksum(head)
    if stored != computed:
        message = f"the header's checksum is {stored:08x}, its bytes give {computed:08x}"
        if not lenient:
            raise BadFileError(
                path, message, hint="the file is damaged, or its writer left the checksum out"
            )
        notes.append(message)
    if major != 2:
        raise BadFileError(path, f"APR version {major}.{minor}; aprtui reads version 2")
    header = AprHeader(
        *(flags, count, metadata_offset, metadata_size, index_offset, data_offset),
        *(magic, major, minor),
    )
    _refuse_flags(path, flags)
    if magic == LEGACY_MAGIC:
        notes.append("an early APR2 file, which the current apr no longer opens")
    if header.sharded:
        notes.append("flagged as one shard of several; only this file is read")
    return header, _fields(head, header, stored, computed), notes


def _refuse_foreign(path: Path, head: bytes) -> None:
    for start, what, hint in _FOREIGN:
        if head.startswith(start):
            raise BadFileError(path, f"this is {what}", hint=hint)
    known = (MAGIC, LEGACY_MAGIC)
    if not head or not any(magic.startswith(head[:4]) for magic in known):
        raise BadFileError(path, f"not an .apr file: {beginning(head[:4], MAGIC)}")


def _refuse_flags(path: Path, flags: int) -> None:
    if flags & COLUMN_MAJOR:
        raise BadFileError(
            path,
            "its flags say column-major (0x0800), which the format forbids (LAYOUT-002)",
            hint="write it again with apr import",
        )
    if flags & ENCRYPTED:
        raise BadFileError(
            path, "its flags say encrypted (0x0004)", hint="decrypt it before opening it"
        )


def _fields(head: bytes, header: AprHeader, stored: int, computed: int) -> tuple[HeaderField, ...]:
    names = [name for bit, name in FLAGS.items() if header.flags & bit]
    unnamed = header.flags & ~sum(FLAGS)
    if unnamed:
        names.append(f"unassigned 0x{unnamed:04x}")
    verdict = "matches" if stored == computed else f"the bytes give {computed:08x}"
    rows = (
        ("magic", 0, 4, repr(header.magic)[2:-1]),
        ("version", 4, 2, f"{header.major}.{header.minor}"),
        ("flags", 6, 2, f"0x{header.flags:04x} {', '.join(names) or 'none'}"),
        ("tensor_count", 8, 4, f"{header.tensor_count:,}"),
        ("metadata_offset", 12, 8, f"{header.metadata_offset:,}"),
        ("metadata_size", 20, 4, f"{header.metadata_size:,}"),
        ("tensor_index_offset", 24, 8, f"{header.index_offset:,}"),
        ("data_offset", 32, 8, f"{header.data_offset:,}"),
        ("checksum", _CHECKSUM_AT, 4, f"{stored:08x} ({verdict})"),
        ("reserved", 44, 20, "zeros" if not any(head[44:]) else head[44:].hex()),
    )
    return tuple(
        HeaderField(name, offset, head[offset : offset + size], value)
        for name, offset, size, value in rows
    )
