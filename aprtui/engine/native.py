"""The block decoders in C (``_native.c``), where they were built when aprtui was installed.

They give block_decoders.py's values bit for bit, several times as fast, and let other threads run.
``APRTUI_NATIVE=off`` leaves them out, to compare.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

try:
    from aprtui.engine import _native
except ImportError:  # there was no compiler
    BUILT, NATIVE_TYPES = False, frozenset[str]()
else:
    BUILT = True
    NATIVE_TYPES = (
        frozenset() if os.environ.get("APRTUI_NATIVE") == "off" else frozenset(_native.TYPES)
    )

__all__ = ["BUILT", "NATIVE_TYPES", "decode_array", "decode_blocks"]


def decode_blocks(type_name: str, blocks: Tensor, out: Tensor) -> bool:
    """Write the values of ``blocks`` [n, block_bytes] uint8 into ``out`` [n, block_values] float32.

    False, and nothing done, where C cannot: a type or a device that it does not know, memory with
    gaps.
    """
    if type_name not in NATIVE_TYPES or not (blocks.is_cpu and out.is_cpu):
        return False
    if not (blocks.is_contiguous() and out.is_contiguous()):
        return False
    _native.decode(type_name, blocks.data_ptr(), blocks.numel(), out.data_ptr(), out.numel())
    return True


def decode_array(
    type_name: str, stored: npt.NDArray[np.uint8], out: npt.NDArray[np.float32]
) -> bool:
    """The same with NumPy's arrays, contiguous, of any shape: no torch is needed for it.

    Raises ValueError where ``stored`` has not the bytes of ``out``'s values.
    """
    if type_name not in NATIVE_TYPES:
        return False
    addresses = (array.__array_interface__["data"][0] for array in (stored, out))
    _native.decode(type_name, next(addresses), stored.size, next(addresses), out.size)
    return True
