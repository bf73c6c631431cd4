"""Memory-mapped files: guarded against being cut short, and their pages given back when read.

A map is as long as its file was when it was opened. Where the file becomes shorter, or its disk
fails, reading the map would end the process (SIGBUS). ``_guard.c`` has zeros read there instead and
remembers it; nothing may be made of what was read before ``check_maps`` has been asked. Without the
guard (no C compiler was at hand) the size that ``map_file`` sees is all that is known.
"""

from __future__ import annotations

import mmap
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aprtui.errors import BadFileError
from aprtui.formats.files import OpenFile, cut_short, open_file

try:
    from aprtui.formats import _guard
except ImportError:
    GUARDED = False
else:
    GUARDED = True

__all__ = [
    "GUARDED",
    "check_maps",
    "forget_pages",
    "is_whole",
    "map_file",
    "map_once",
    "mapping",
]

_watched: dict[int, Path] = {}  # by the guard's slot
_told: set[int] = set()  # slots of maps whose loss has been raised
_untold: list[Path] = []  # files whose maps are gone, with a loss that nobody has been told of


class _Map(mmap.mmap):
    """A map that is watched for as long as it is there."""

    slot = -1

    def watch(self, path: Path, *, writable: bool) -> None:
        self.slot = _guard.watch(self, writable)
        _watched[self.slot] = path

    def __del__(self) -> None:
        if self.slot < 0 or not _watched:  # which is None once the module itself is taken down
            return
        path, gone = _watched.pop(self.slot), _guard.lost(self.slot)
        _guard.forget(self.slot)  # from here on the addresses can be another map's
        if gone and self.slot not in _told:
            _untold.append(path)
        _told.discard(self.slot)


def map_file(file: OpenFile, *, writable: bool = False) -> npt.NDArray[np.uint8]:
    """All bytes of an open file that is not empty [size] uint8, none of them read yet.

    Raises BadFileError.
    """
    access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
    try:
        mapped = _Map(file.fd, file.size, access=access)
        if GUARDED:
            mapped.watch(file.path, writable=writable)
    except (OSError, ValueError) as error:  # it is shorter by now, or there are too many maps
        raise BadFileError(file.path, f"cannot be mapped: {error}") from error
    return np.frombuffer(mapped, np.uint8)


def map_once(path: Path, size: int, mtime_ns: int) -> npt.NDArray[np.uint8]:
    """``map_file`` of a file as it was found, kept for the next one who asks for the same."""
    return _kept(path, size, mtime_ns)


@lru_cache(maxsize=64)
def _kept(path: Path, size: int, mtime_ns: int) -> npt.NDArray[np.uint8]:
    with open_file(path) as file:
        if file.size < size:
            raise cut_short(path)
        return map_file(file)


def check_maps(*arrays: npt.NDArray[Any]) -> None:
    """Raise BadFileError where a map was read beyond what its file still holds.

    Of the maps that ``arrays`` are views of; without any, of all that there are and have been,
    each once.
    """
    slots = [getattr(_map_of(array), "slot", -1) for array in arrays]
    for slot in slots if arrays else _watched.keys() - _told:
        if slot >= 0 and _guard.lost(slot):
            path = _watched[slot]
            _told.add(slot)
            _kept.cache_clear()
            raise cut_short(path)
    if not arrays and _untold:
        path = _untold[-1]
        _untold.clear()
        raise cut_short(path)


def is_whole(array: npt.NDArray[Any]) -> bool:
    """Whether all that was read so far of the map behind ``array`` was there; so is no map."""
    slot = getattr(_map_of(array), "slot", -1)
    return slot < 0 or not _guard.lost(slot)


def mapping(array: Any) -> mmap.mmap | None:
    """The memory map that ``array`` is a view of, where the platform can give pages back."""
    return _map_of(array) if hasattr(mmap, "MADV_DONTNEED") else None


def _map_of(array: Any) -> mmap.mmap | None:
    while array is not None and not isinstance(array, mmap.mmap):
        array = array.obj if isinstance(array, memoryview) else getattr(array, "base", None)
    return array


def forget_pages(view: npt.NDArray[Any]) -> None:
    """Tell the system that the pages behind ``view`` of a memory map are not needed just now.

    Without it they count as the process's own. What is read again later is mapped again; nothing
    happens where the system cannot, or where ``view`` is no part of a map.
    """
    mapped = mapping(view)
    if mapped is None or not view.size:
        return
    start = view.__array_interface__["data"][0] - np.frombuffer(mapped, np.uint8).ctypes.data
    first = start - start % mmap.PAGESIZE
    mapped.madvise(mmap.MADV_DONTNEED, first, start + view.nbytes - first)
