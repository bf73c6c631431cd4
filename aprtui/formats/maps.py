"""Memory-mapped arrays: the pages that were read are given back, so that memory stays bounded."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["forget_pages", "mapping"]


def mapping(array: Any) -> mmap.mmap | None:
    """The memory map that ``array`` is a view of, where the platform can give pages back."""
    if not hasattr(mmap, "MADV_DONTNEED"):
        return None
    while array is not None:
        if isinstance(array, mmap.mmap):
            return array
        array = getattr(array, "base", None)
    return None


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
