"""numpy's containers: ``.npy`` files and ``.npz`` archives of them. Pickled objects are refused."""

from __future__ import annotations

import io
import math
import tokenize
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from aprtui.captures.dump import MAX_MEMBER_BYTES, MAX_TENSORS, Array, Member
from aprtui.captures.zipped import Record, records_of
from aprtui.errors import BadFileError
from aprtui.formats.files import first_bytes, open_file
from aprtui.text import clean

__all__ = ["read_npy", "read_npz"]

_MAX_HEADER_BYTES = 10_000
_HEAD_BYTES = _MAX_HEADER_BYTES + 12
_DAMAGED = (ValueError, SyntaxError, tokenize.TokenError, RecursionError, TypeError, KeyError,
            MemoryError, OverflowError)  # fmt: skip


def read_npy(path: Path, name: str) -> Member:
    """The one array of an ``.npy`` file. Raises BadFileError."""
    dtype, shape, fortran, start = _header(path, name, first_bytes(path, _HEAD_BYTES))
    nbytes = math.prod(shape) * dtype.itemsize

    def load() -> Array:
        with open_file(path) as file:
            raw = file.array(start, nbytes)
        return _shaped(np.frombuffer(raw, dtype=dtype), shape, fortran)

    with open_file(path) as file:
        if file.size != start + nbytes:
            raise _other_size(path, name, file.size - start, nbytes)
    return Member(name, dtype.name, shape, path, nbytes, load)


def read_npz(path: Path) -> dict[str, Member]:
    """The arrays of an ``.npz`` archive by name. Raises BadFileError."""
    records = records_of(path)
    if len(records) > MAX_TENSORS:
        raise BadFileError(path, f"{len(records):,} arrays; {MAX_TENSORS:,} is the most")
    found: dict[str, Member] = {}
    for record in records.values():
        if not record.name.endswith(".npy"):
            raise BadFileError(path, f"record {clean(record.name)} of the archive is no array")
        name = record.name.removesuffix(".npy")
        found[name] = _packed(record, name)
    return found


def _packed(record: Record, name: str) -> Member:
    dtype, shape, fortran, start = _header(record.path, name, record.head(_HEAD_BYTES))
    nbytes = math.prod(shape) * dtype.itemsize
    if record.size != start + nbytes:
        raise _other_size(record.path, name, record.size - start, nbytes)

    def load() -> Array:
        raw = record.read(MAX_MEMBER_BYTES + _HEAD_BYTES)
        return _shaped(np.frombuffer(raw, dtype=dtype, offset=start), shape, fortran)

    return Member(name, dtype.name, shape, record.path, nbytes, load)


def _header(path: Path, name: str, head: bytes) -> tuple[np.dtype[Any], tuple[int, ...], bool, int]:
    """Type, shape, whether columns come first, and where the values begin."""
    reading = io.BytesIO(head)
    try:
        version = np.lib.format.read_magic(reading)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of headers from Python 2: advice for their writer
            shape, fortran, dtype = read(reading, max_header_size=_MAX_HEADER_BYTES)
    except _DAMAGED as error:
        raise BadFileError(path, f"array {clean(name)} has no header of numpy's") from error
    if dtype.hasobject:
        raise BadFileError(
            path,
            f"array {clean(name)} holds pickled objects, which can run code as they are opened",
            hint="save it as numbers: numpy.asarray(x, dtype=numpy.float32)",
        )
    if dtype.kind not in "fiub" or dtype.subdtype is not None or dtype.itemsize > 8:
        raise BadFileError(
            path,
            f"array {clean(name)} is of type {clean(str(dtype))}: real numbers are needed",
            hint="bfloat16 is saved as float32 without loss",
        )
    if any(extent < 0 for extent in shape) or len(shape) > 16:
        raise BadFileError(path, f"array {clean(name)} has an impossible shape")
    return dtype, tuple(map(int, shape)), bool(fortran), reading.tell()


def _shaped(values: Array, shape: tuple[int, ...], fortran: bool) -> Array:
    return values.reshape(shape, order="F" if fortran else "C")


def _other_size(path: Path, name: str, there: int, needed: int) -> BadFileError:
    return BadFileError(
        path, f"array {clean(name)} takes {needed:,} bytes by its header, {there:,} are there"
    )
