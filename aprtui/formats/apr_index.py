"""The tensor index of an ``.apr`` file: entries, type codes told apart by size, byte ranges."""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from aprtui.errors import BadFileError
from aprtui.formats.blocks import BLOCK_TYPES, MAX_TENSORS, stored_bytes
from aprtui.formats.modelfile import TensorEntry
from aprtui.text import clean

__all__ = [
    "CODE_TYPES",
    "MAX_DIMS",
    "MAX_NAME_BYTES",
    "MAX_TENSORS",
    "fits",
    "pack_entry",
    "read_index",
    "reversed_entry",
]

MAX_NAME_BYTES = 256
MAX_DIMS = 8
MAX_ELEMENTS = 1 << 48
_LEAST_ENTRY_BYTES = 21  # a name of one byte, no dims
_CUT = "the file is damaged or was cut short; copy it again"

# What a type code may mean, most likely first. The size of the tensor decides: codes were
# reassigned over time, and one writer stores GGML's codes (docs/apr-format.md 1.7).
CODE_TYPES: dict[int, tuple[str, ...]] = {
    0: ("F32",),
    1: ("F16",),
    2: ("BF16", "Q4_0"),
    3: ("F64", "Q4_1"),
    4: ("I32",),
    5: ("I64",),
    6: ("Q5_0", "I8"),
    7: ("Q5_1", "U8"),
    8: ("APR_Q4", "Q8_0"),
    9: ("APR_Q8",),
    10: ("Q2_K",),
    11: ("Q3_K",),
    12: ("Q4_K",),
    13: ("Q5_K",),
    14: ("Q6_K",),
    16: ("IQ2_XXS",),
    17: ("IQ2_XS",),
    30: ("BF16",),
    128: ("APR_Q4",),
    129: ("APR_Q8",),
}
# Codes whose block types need a whole number of blocks: else sizes collide (N = 9, 22, 24).
_WHOLE_BLOCKS = frozenset({2, 3, 6, 7})
# What apr's own strict reader takes from each of its current codes.
_CURRENT = {0: "F32", 1: "F16", 3: "F64", 4: "I32", 5: "I64", 6: "I8", 7: "U8"} | {
    12: "Q4_K",
    14: "Q6_K",
    30: "BF16",
    128: "APR_Q4",
    129: "APR_Q8",
}


@dataclass(frozen=True)
class _RawEntry:
    name: str
    code: int
    shape: tuple[int, ...]
    offset: int
    size: int


def pack_entry(name: bytes, code: int, shape: tuple[int, ...], offset: int, size: int) -> bytes:
    """One index entry; ``offset`` counts from the start of the data section."""
    dims = len(shape)
    return struct.pack(
        f"<H{len(name)}sBB{dims}QQQ", len(name), name, code, dims, *shape, offset, size
    )


def read_index(
    path: Path, index: bytes, tensor_count: int, *, index_offset: int, data_offset: int, end: int
) -> tuple[dict[str, TensorEntry], list[str]]:
    """The tensors of an index section, and notes on what is odd about it.

    ``index`` holds the bytes from ``index_offset`` to ``data_offset``; ``end`` is the size of the
    file. Shapes are given as the file lists them. Raises BadFileError for an index that does not
    hold exactly ``tensor_count`` entries, or an entry that cannot be true.
    """
    if index[:2] == b"[{":
        raise BadFileError(
            path,
            "its tensor index is JSON, as one old converter wrote it",
            hint="convert the original model with apr import",
        )
    most = min(MAX_TENSORS, len(index) // _LEAST_ENTRY_BYTES)
    if tensor_count > most:
        raise BadFileError(
            path,
            f"its header counts {tensor_count:,} tensors, an index of {len(index):,} bytes "
            f"holds at most {most:,}",
            hint=_CUT,
        )
    tensors: dict[str, TensorEntry] = {}
    odd_codes: Counter[str] = Counter()
    notes = []
    for raw in _entries(path, index, index_offset, tensor_count):
        if raw.name in tensors:
            raise BadFileError(path, f"its index names the tensor {clean(raw.name)} twice")
        entry = _resolved(path, raw, data_offset, end)
        tensors[raw.name] = entry
        if _CURRENT.get(raw.code) != entry.type:
            odd_codes[f"{raw.code} for {entry.type}"] += 1
        if entry.size_bytes == 0 and 0 not in entry.shape:
            notes.append(f"{clean(raw.name)} has a shape but no bytes: a tied head's placeholder")
    if odd_codes:
        codes = ", ".join(f"{what} ({many}x)" for what, many in sorted(odd_codes.items()))
        notes.append(f"type codes that apr itself refuses or reads as something else: {codes}")
    names = [name.encode() for name in tensors]
    if any(left > right for left, right in pairwise(names)):
        notes.append("its index is not sorted by name, which apr's strict reader refuses")
    notes += _shared_ranges(path, tensors)
    return tensors, notes


def _entries(path: Path, index: bytes, start: int, count: int) -> Iterator[_RawEntry]:
    """The entries one after another, each checked to lie inside ``index``, then only padding."""
    at = 0

    def take(layout: str) -> tuple[int, ...]:
        nonlocal at
        size = struct.calcsize(layout)
        if at + size > len(index):
            raise BadFileError(
                path,
                f"its tensor index ends inside entry {number:,} of {count:,} "
                f"(byte {start + len(index):,})",
                hint=_CUT,
            )
        values = struct.unpack_from(layout, index, at)
        at += size
        return values

    for number in range(1, count + 1):
        entry_start = start + at
        (length,) = take("<H")
        if not 1 <= length <= MAX_NAME_BYTES:
            raise BadFileError(
                path,
                f"index entry {number:,} at byte {entry_start:,} has a name of {length:,} bytes; "
                f"1 to {MAX_NAME_BYTES} are allowed",
                hint=_CUT,
            )
        name = _name(path, bytes(take(f"<{length}B")), entry_start)
        code, dims = take("<BB")
        if dims > MAX_DIMS:
            raise BadFileError(
                path, f"tensor {clean(name)} has {dims} dimensions; {MAX_DIMS} is the most"
            )
        *shape, offset, size = take(f"<{dims}QQQ")
        yield _RawEntry(name, code, tuple(shape), offset, size)
    if any(index[at:]):
        raise BadFileError(
            path,
            f"its tensor index goes on after the {count:,} entries that its header counts "
            f"(byte {start + at:,})",
            hint=_CUT,
        )


def _name(path: Path, raw: bytes, entry_start: int) -> str:
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadFileError(
            path, f"the tensor name at byte {entry_start + 2:,} is not UTF-8", hint=_CUT
        ) from error
    if "\0" in name:
        raise BadFileError(path, f"the tensor name at byte {entry_start + 2:,} holds a NUL")
    return name


def _resolved(path: Path, raw: _RawEntry, data_offset: int, end: int) -> TensorEntry:
    """The entry with its type settled by size and its bytes known to lie in the file."""
    what = f"tensor {clean(raw.name)}"
    total = math.prod(raw.shape)
    if total >= MAX_ELEMENTS:
        raise BadFileError(path, f"{what} has a shape of 2^48 values or more", hint=_CUT)
    offset = data_offset + raw.offset
    if offset + raw.size > end:
        raise BadFileError(
            path,
            f"{what} takes bytes {offset:,}..{offset + raw.size:,}, the file ends at {end:,}",
            hint="the file was cut short; copy it again",
        )
    types = CODE_TYPES.get(raw.code)
    if types is None:
        raise BadFileError(path, f"{what} has the unknown type code {raw.code}")
    placeholder = raw.size == 0 and raw.name.endswith(("lm_head.weight", "output.weight"))
    if total == 0 or placeholder:
        if raw.size:
            raise BadFileError(path, f"{what} is empty by its shape but takes {raw.size:,} bytes")
        return TensorEntry(raw.name, types[0], raw.shape, path, offset, 0)
    for type_name in types:
        flat = _layout(raw.code, type_name, raw.shape, raw.size)
        if flat is not None:
            return TensorEntry(raw.name, type_name, raw.shape, path, offset, raw.size, flat)
    shape = "x".join(map(str, raw.shape)) or "scalar"
    needed = " or ".join(f"{stored_bytes(kind, raw.shape):,} as {kind}" for kind in types)
    raise BadFileError(
        path,
        f"{what} [{shape}] with type code {raw.code} takes {raw.size:,} bytes; it needs {needed}",
        hint=_CUT,
    )


def _layout(code: int, type_name: str, shape: tuple[int, ...], size: int) -> bool | None:
    """Whether blocks run flat, where ``size`` fits the shape or its reverse; None: fits neither."""
    values = BLOCK_TYPES[type_name].values
    if code in _WHOLE_BLOCKS and math.prod(shape) % values:
        return None
    flat = _flatness(type_name, shape, size)
    if flat is None and stored_bytes(type_name, shape[::-1]) == size:
        return False
    return flat


def _flatness(type_name: str, shape: tuple[int, ...], size: int) -> bool | None:
    """Whether blocks run flat when ``shape``, as it is, takes ``size`` bytes; None: it does not.

    Matrices are encoded row by row wherever that fits, other tensors flat (docs/apr-format.md 1.8).
    """
    if type_name in ("APR_Q4", "APR_Q8"):
        return True if stored_bytes(type_name, shape) == size else None
    by_rows = stored_bytes(type_name, shape) == size
    flat = stored_bytes(type_name, shape, flat=True) == size
    if by_rows and flat:
        return len(shape) > 2 and shape[-1] % BLOCK_TYPES[type_name].values != 0
    return flat if by_rows or flat else None


def fits(entry: TensorEntry) -> bool:
    """Whether the shape, in its listed order, takes exactly the entry's bytes (or none are there).

    False only for block-quantised tensors listed fastest dimension first: see reversed_entry.
    """
    if not entry.size_bytes or entry.coding is not None or entry.type not in BLOCK_TYPES:
        return True  # codings are checked part by part; of an unknown type nothing can be said
    return entry.size_bytes == stored_bytes(entry.type, entry.shape, flat=entry.flat)


def reversed_entry(entry: TensorEntry) -> TensorEntry:
    """The same bytes under the reversed shape, for files that list the fastest dimension first.

    Raises BadFileError when the reversed shape does not take the tensor's bytes.
    """
    shape = entry.shape[::-1]
    if entry.size_bytes == 0:
        return replace(entry, shape=shape)
    flat = _flatness(entry.type, shape, entry.size_bytes)
    if flat is None:
        raise BadFileError(
            entry.path,
            f"tensor {clean(entry.name)} takes {entry.size_bytes:,} bytes, which does not fit "
            f"its reversed shape {'x'.join(map(str, shape))}",
        )
    return replace(entry, shape=shape, flat=flat)


def _shared_ranges(path: Path, tensors: dict[str, TensorEntry]) -> list[str]:
    """Notes on tensors that share one range; ranges that overlap otherwise are refused."""
    ordered = sorted(
        (entry for entry in tensors.values() if entry.size_bytes),
        key=lambda entry: (entry.offset, entry.size_bytes),
    )
    notes = []
    for left, right in pairwise(ordered):
        if right.offset >= left.offset + left.size_bytes:
            continue
        pair = f"{clean(left.name)} and {clean(right.name)}"
        if (left.offset, left.size_bytes) != (right.offset, right.size_bytes):
            raise BadFileError(
                path,
                f"the bytes of {pair} overlap at byte {right.offset:,}",
                hint=_CUT,
            )
        notes.append(f"{pair} share the same bytes")
    return notes
