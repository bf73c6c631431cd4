"""GGUF files, versions 2 and 3: header, metadata and tensor index, every length checked.

Layout (ggml/docs/gguf.md): magic, version, tensor count, key count; the keys with their values;
the tensor index; then, aligned, the tensors. gguf.GGUFReader builds an object for every element of
every array and takes seconds over a large vocabulary; here arrays stay slices until looked at.
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from aprtui.errors import BadFileError
from aprtui.formats.blocks import BLOCK_TYPES, BY_GGML_CODE, MAX_TENSORS, MAX_VALUES, stored_bytes
from aprtui.formats.files import OpenFile, cut_short, open_file
from aprtui.formats.modelfile import HeaderField, ModelFile, TensorEntry
from aprtui.text import beginning, clean

__all__ = ["StringArray", "read_gguf"]

MAGIC = b"GGUF"
MAX_KEY_BYTES = 65535
MAX_KEYS = 1 << 16  # of metadata; models have about 40
MAX_TEXT = 16 << 20  # characters of all names, keys and metadata that is text and no array
MAX_ELEMENTS = 1 << 22  # of one array; the largest vocabularies have 1 << 18 tokens
MAX_HEADER_BYTES = 48 << 20  # all before the tensors; those vocabularies take 17 MB
MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
_SMALLEST_KEY = 13  # bytes: an empty key, a type, one byte of value
_SMALLEST_TENSOR = 24  # bytes: an empty name, no dimensions, type, offset
_HEADER_BYTES = 24
_FIRST_BYTES = 8 << 20  # read at once: the whole header of most models
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_SCALARS = {
    code: struct.Struct(f"<{letter}")
    for code, letter in {
        0: "B",
        1: "b",
        2: "H",
        3: "h",
        4: "I",
        5: "i",
        6: "f",
        7: "?",
        10: "Q",
        11: "q",
        12: "d",
    }.items()
}
_STRING, _ARRAY = 8, 9


class StringArray(Sequence[str]):
    """Strings of a file's metadata as the bytes they were read from, decoded when looked at.

    Bytes that are not UTF-8 become surrogates (``surrogateescape``), so that nothing is lost.
    """

    def __init__(self, stored: bytes, ends: array[int]) -> None:
        self._stored = stored  # each string after the eight bytes of its length
        self._ends = ends

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self._decoded(i) for i in range(*index.indices(len(self)))]
        return self._decoded(range(len(self))[index])

    def __iter__(self) -> Iterator[str]:
        start = 8
        for end in self._ends:
            yield self._stored[start:end].decode("utf-8", "surrogateescape")
            start = end + 8

    def __repr__(self) -> str:
        return f"<{len(self):,} strings>"

    def same_bytes(self, other: StringArray) -> bool:
        """Whether both hold the same strings; none is decoded."""
        return self._ends == other._ends and self._stored == other._stored

    def _decoded(self, index: int) -> str:
        start = (self._ends[index - 1] if index else 0) + 8
        return self._stored[start : self._ends[index]].decode("utf-8", "surrogateescape")


class _Cursor:
    """A place in a file that only moves over bytes that are there; ``raw`` are those read so far.

    Copies, not a map: a file may be cut short while it is read.
    """

    def __init__(self, file: OpenFile) -> None:
        self.path = file.path
        self.end = file.size
        self.raw = b""
        self.position = 0
        self._file = file
        self._text_left = MAX_TEXT

    def bad(self, what: str, *, hint: str = "") -> BadFileError:
        return BadFileError(self.path, f"{what} (at byte {self.position:,})", hint=hint)

    def left(self) -> int:
        return self.end - self.position

    def skip(self, size: int, what: str) -> int:
        """Move over ``size`` bytes; where they start."""
        if size > self.left():
            raise self.bad(
                f"{what} takes {size:,} bytes, {self.left():,} are left",
                hint="the file is cut short or damaged; copy it again",
            )
        start = self.position
        self.position += size
        if self.position > len(self.raw):
            self.load(self.position)
        return start

    def load(self, stop: int) -> None:
        """Have at least the first ``stop`` bytes of the file in ``raw``."""
        if stop > MAX_HEADER_BYTES:
            raise self.bad(f"all before its tensors takes over {MAX_HEADER_BYTES:,} bytes")
        ahead = min(max(stop, 2 * len(self.raw), _FIRST_BYTES), self.end, MAX_HEADER_BYTES)
        self.raw += self._file.read(len(self.raw), ahead - len(self.raw))
        if len(self.raw) < stop:
            raise cut_short(self.path)

    def take(self, size: int, what: str) -> bytes:
        start = self.skip(size, what)
        return self.raw[start : start + size]

    def scalar(self, form: struct.Struct, what: str) -> Any:
        start = self.skip(form.size, what)
        return form.unpack_from(self.raw, start)[0]

    def string(self, what: str, most: int = MAX_TEXT) -> str:
        """Text of at most so many bytes; decoded it may take four times as many."""
        size: int = self.scalar(_U64, f"the length of {what}")
        if size > most:
            raise self.bad(f"{what} takes {size:,} bytes, over the limit of {most:,}")
        if size > self._text_left:
            raise self.bad(f"its names and texts have over {MAX_TEXT:,} characters")
        found = self.take(size, what).decode("utf-8", "surrogateescape")
        self._text_left -= len(found)
        return found

    def counted(self, what: str, smallest: int, most: int) -> int:
        """A count of things that take at least ``smallest`` bytes each, all of them to come."""
        total: int = self.scalar(_U64, f"the number of {what}")
        if total * smallest > self.left():
            raise self.bad(
                f"{total:,} {what} are promised, which {self.left():,} bytes cannot hold",
                hint="the file is cut short or damaged; copy it again",
            )
        if total > most:
            raise self.bad(f"{total:,} {what} are promised, over the limit of {most:,}")
        return total

    def value(self, kind: int, what: str) -> Any:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind], what)
        if kind == _STRING:
            return self.string(what)
        if kind != _ARRAY:
            raise self.bad(f"{what} has the unknown value type {kind}")
        element: int = self.scalar(_U32, f"the element type of {what}")
        if element in _SCALARS:
            form = _SCALARS[element]
            total = self.counted(f"elements of {what}", form.size, MAX_ELEMENTS)
            return np.frombuffer(self.take(total * form.size, what), np.dtype(form.format))
        if element == _STRING:
            return self._strings(self.counted(f"strings of {what}", 8, MAX_ELEMENTS), what)
        if element == _ARRAY:
            raise self.bad(f"{what} nests arrays, which ggml does not read either")
        raise self.bad(f"{what} has elements of the unknown value type {element}")

    def _strings(self, total: int, what: str) -> StringArray:
        ends: array[int] = array("q")
        start, position = self.position, self.position
        length_at, append = _U64.unpack_from, ends.append
        while len(ends) < total:
            raw = self.raw
            try:
                for _ in range(total - len(ends)):
                    position += 8 + length_at(raw, position)[0]
                    append(position - start)
            except (struct.error, OverflowError) as error:
                if position + 8 > self.end:
                    raise self.bad(
                        f"string {len(ends):,} of {what} reaches beyond the end of the file",
                        hint="the file is cut short or damaged; copy it again",
                    ) from error
                self.load(position + 8)
        return StringArray(self.take(position - start, what), ends)


@dataclass(frozen=True)
class _Part:
    """One file of a model: what its header, metadata and index say."""

    path: Path
    size_bytes: int
    version: int
    metadata: dict[str, Any]
    tensors: dict[str, TensorEntry]
    index_bytes: bytes  # sha256 of everything before the tensors
    header: tuple[HeaderField, ...]


def read_gguf(path: Path) -> ModelFile:
    """The model in a GGUF file, or in all parts of a split one when ``path`` is any of them.

    Metadata values are Python scalars, ``str``, numpy arrays or StringArray. A tensor's
    ``shape`` is row-major: ggml's ``ne`` reversed. Raises BadFileError for a file that is
    damaged, of another version or byte order, or not GGUF, and for a part that is missing.
    """
    parts = _all_parts(_read_part(path))
    tensors: dict[str, TensorEntry] = {}
    for part in parts:
        for name, entry in part.tensors.items():
            if name in tensors:
                raise BadFileError(
                    part.path, f"tensor {clean(name)} is also in {clean(tensors[name].path.name)}"
                )
            tensors[name] = entry
    first = parts[0]
    promised = first.metadata.get("split.tensors.count", len(tensors))
    if len(parts) > 1 and promised != len(tensors):
        raise BadFileError(
            first.path,
            f"its parts should hold {clean(str(promised))} tensors, they hold {len(tensors):,}",
        )
    return ModelFile(
        path=path,
        format="gguf",
        version=str(first.version),
        metadata=first.metadata,
        tensors=tensors,
        files=tuple(part.path for part in parts),
        size_bytes=sum(part.size_bytes for part in parts),
        digest=hashlib.sha256(b"".join(part.index_bytes for part in parts)).hexdigest(),
        header=first.header,
    )


def _all_parts(given: _Part) -> list[_Part]:
    """The parts of the model that ``given`` belongs to, in order."""
    count = given.metadata.get("split.count", 1)
    if not isinstance(count, int) or count <= 1:
        return [given]
    named = _PART.fullmatch(given.path.name)
    if named is None or int(named[3]) != count:
        raise BadFileError(
            given.path,
            f"one of {count} parts, and its name does not say which",
            hint=f"parts are named NAME-00001-of-{count:05d}.gguf; give them their names back",
        )
    parts = []
    for number in range(1, count + 1):
        path = given.path.with_name(f"{named[1]}-{number:05d}-of-{named[3]}.gguf")
        if path != given.path and not path.exists():
            raise BadFileError(
                path, f"part {number} of {count} is missing", hint="put it beside the others"
            )
        part = given if path == given.path else _read_part(path)
        said = (part.metadata.get("split.no"), part.metadata.get("split.count"))
        if said != (number - 1, count):
            raise BadFileError(
                path,
                f"named as part {number} of {count}; its metadata says split.no and split.count "
                f"{clean(repr(said))}",
            )
        parts.append(part)
    return parts


def _read_part(path: Path) -> _Part:
    with open_file(path) as file:
        _check_start(path, file.read(0, _HEADER_BYTES))
        return _parse(_Cursor(file))


def _check_start(path: Path, head: bytes) -> None:
    if head[:4] != MAGIC:
        raise BadFileError(path, f"not a GGUF file: {beginning(head[:4], MAGIC)}")
    if len(head) < _HEADER_BYTES:
        raise BadFileError(
            path, f"cut short: a GGUF header has {_HEADER_BYTES} bytes, this file {len(head)}"
        )
    version = int.from_bytes(head[4:8], "little")
    if version & 0xFFFF == 0 and version:
        raise BadFileError(
            path,
            "a big-endian GGUF file, which is not read",
            hint="gguf-convert-endian FILE little",
        )
    if version not in (2, 3):
        raise BadFileError(
            path,
            f"GGUF version {version}; versions 2 and 3 are read",
            hint="convert the model anew with a current llama.cpp" if version < 2 else "",
        )


def _parse(cursor: _Cursor) -> _Part:
    cursor.position = 4
    version: int = cursor.scalar(_U32, "the version")
    tensor_count = cursor.counted("tensors", _SMALLEST_TENSOR, MAX_TENSORS)
    key_count = cursor.counted("metadata keys", _SMALLEST_KEY, MAX_KEYS)
    metadata: dict[str, Any] = {}
    alignment_at = 0
    for _ in range(key_count):
        key = cursor.string("a metadata key", MAX_KEY_BYTES)
        if key in metadata:
            raise cursor.bad(f"the metadata key {clean(key)} stands twice")
        kind = cursor.scalar(_U32, f"the type of {clean(key)}")
        if key == "general.alignment":
            alignment_at = cursor.position
        metadata[key] = cursor.value(kind, clean(key))
    alignment = _alignment(cursor, metadata)
    index = [_index_entry(cursor) for _ in range(tensor_count)]
    tensors_at = math.ceil(cursor.position / alignment) * alignment
    tensors = _placed(cursor, index, tensors_at, alignment)
    header = tuple(
        HeaderField(name, at, cursor.raw[at : at + size], shown)
        for name, at, size, shown in (
            ("magic", 0, 4, "GGUF"),
            ("version", 4, 4, str(version)),
            ("tensor count", 8, 8, f"{tensor_count:,}"),
            ("metadata key count", 16, 8, f"{key_count:,}"),
            ("alignment", alignment_at, 4 if alignment_at else 0, str(alignment)),
            ("tensor data", tensors_at, 0, f"from byte {tensors_at:,}"),
        )
    )
    digest = hashlib.sha256(memoryview(cursor.raw)[: cursor.position]).digest()
    return _Part(cursor.path, cursor.end, version, metadata, tensors, digest, header)


def _alignment(cursor: _Cursor, metadata: dict[str, Any]) -> int:
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise cursor.bad(f"general.alignment is {clean(repr(alignment), 40)}, not a power of two")
    return alignment


def _index_entry(cursor: _Cursor) -> tuple[str, str, tuple[int, ...], int]:
    """Name, type, row-major shape and offset of the tensor whose entry comes next."""
    name = cursor.string("a tensor's name", MAX_KEY_BYTES)
    what = f"tensor {clean(name)}"
    dimensions: int = cursor.scalar(_U32, f"the rank of {what}")
    if dimensions > MAX_DIMENSIONS:
        raise cursor.bad(f"{what} has {dimensions:,} dimensions; ggml has {MAX_DIMENSIONS}")
    extents = struct.unpack(f"<{dimensions}Q", cursor.take(8 * dimensions, f"the shape of {what}"))
    code: int = cursor.scalar(_U32, f"the type of {what}")
    offset: int = cursor.scalar(_U64, f"the offset of {what}")
    if max(extents, default=0) >= MAX_VALUES or math.prod(extents) >= MAX_VALUES:
        raise cursor.bad(f"{what} has an impossible shape")
    kind = BY_GGML_CODE.get(code)
    if kind is None:  # a type of tomorrow, or one that ggml has given up: listed, not decoded
        return name, f"GGML_{code}", extents[::-1], offset
    if extents and extents[0] % kind.values:
        raise cursor.bad(
            f"{what} has rows of {extents[0]:,} values, not whole {kind.name} blocks of "
            f"{kind.values}"
        )
    return name, kind.name, extents[::-1], offset


def _placed(
    cursor: _Cursor,
    index: list[tuple[str, str, tuple[int, ...], int]],
    tensors_at: int,
    alignment: int,
) -> dict[str, TensorEntry]:
    """The entries of the index with their place in the file, each inside it."""
    tensors: dict[str, TensorEntry] = {}
    offsets = sorted(offset for *_, offset in index)
    for name, type_name, shape, offset in index:
        if type_name in BLOCK_TYPES:
            size_bytes = stored_bytes(type_name, shape)
        else:  # of a type that is not known: all up to the next tensor
            later = bisect_right(offsets, offset)
            end = offsets[later] if later < len(offsets) else cursor.end - tensors_at
            size_bytes = max(end - offset, 0)
        start = tensors_at + offset
        if name in tensors:
            raise BadFileError(cursor.path, f"two tensors are called {clean(name)}")
        if offset % alignment:
            raise BadFileError(
                cursor.path, f"tensor {clean(name)} is not aligned to {alignment}: {offset:,}"
            )
        if start + size_bytes > cursor.end:
            raise BadFileError(
                cursor.path,
                f"tensor {clean(name)} lies at bytes {start:,}..{start + size_bytes:,}, beyond the "
                f"end of the file ({cursor.end:,} bytes)",
                hint="the file is cut short; copy it again",
            )
        tensors[name] = TensorEntry(name, type_name, shape, cursor.path, start, size_bytes)
    return tensors
