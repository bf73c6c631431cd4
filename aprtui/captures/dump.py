"""A dump as its container holds it: tensors by name, pass by pass, none read before it is asked
for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aprtui.errors import BadFileError
from aprtui.formats.blocks import MAX_TENSORS
from aprtui.formats.files import open_file
from aprtui.text import clean, size

__all__ = [
    "MAX_MEMBER_BYTES",
    "MAX_TENSORS",
    "Array",
    "Dump",
    "Member",
    "Pass",
    "Rank",
    "decoded",
    "file_member",
    "item_bytes",
]  # fmt: skip

Array = npt.NDArray[Any]
MAX_MEMBER_BYTES = 2 << 30  # of one tensor as it is read

# Stored type -> how its bytes are read; bfloat16 is widened afterwards.
_STORED = {
    "float64": "<f8", "float32": "<f4", "float16": "<f2", "bfloat16": "<u2",
    "int64": "<i8", "int32": "<i4", "int16": "<i2", "int8": "i1", "uint8": "u1", "bool": "?",
}  # fmt: skip


@dataclass(frozen=True)
class Member:
    """One tensor of a dump. ``load`` reads it from the file ``path``: real numbers of ``shape``."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    nbytes: int
    load: Callable[[], Array]

    def read(self) -> Array:
        """The values; bfloat16 widened to float32. Raises BadFileError, for over 2 GiB too."""
        if self.nbytes > MAX_MEMBER_BYTES:
            raise BadFileError(
                self.path,
                f"tensor {clean(self.name)} has {size(self.nbytes)}; "
                f"{size(MAX_MEMBER_BYTES)} is the most that is read of one",
                hint="dump fewer tokens",
            )
        return self.load()


Pass = Mapping[str, Member]


@dataclass(frozen=True)
class Rank:
    """What one process of a run wrote: its passes in order, each tensors by name.

    ``tensor`` and ``pipeline`` are its places among the ranks that share a layer and the layers;
    ``files`` the passes' own files or folders.
    """

    name: str
    passes: tuple[Pass, ...]
    files: tuple[str, ...]
    tensor: int = 0
    pipeline: int = 0


@dataclass(frozen=True)
class Dump:
    """What was opened: one rank, or all of a run's, in the order of their places."""

    path: Path
    container: str  # for people: "an .npz archive"
    ranks: tuple[Rank, ...]


def decoded(raw: npt.NDArray[np.uint8] | bytes, dtype: str) -> Array:
    """Flat values of stored little-endian bytes. Raises KeyError for a type that is not read."""
    values = np.frombuffer(raw, dtype=_STORED[dtype])
    if dtype == "bfloat16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values


def item_bytes(dtype: str) -> int:
    """Bytes of one value. Raises KeyError for a type that is not read."""
    return np.dtype(_STORED[dtype]).itemsize


def file_member(
    name: str, dtype: str, shape: tuple[int, ...], path: Path, offset: int, nbytes: int
) -> Member:
    """A tensor that lies in a file as it is, row-major. Raises BadFileError for its type."""
    if dtype not in _STORED:
        raise BadFileError(path, f"tensor {clean(name)} is of type {clean(dtype)}, not read here")

    def load() -> Array:
        with open_file(path) as file:
            return decoded(file.array(offset, nbytes), dtype).reshape(shape)

    return Member(name, dtype, shape, path, nbytes, load)
