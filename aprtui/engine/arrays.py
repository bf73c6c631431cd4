"""Any library's array as float32 in numpy. No torch here: a tensor brings its own methods."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from aprtui.errors import UsageError

__all__ = ["Float32", "as_float32"]

Float32 = npt.NDArray[np.float32]


def as_float32(value: Any, what: str) -> Float32:
    """The values as float32, C order: from numpy, a torch tensor of any device and dtype, or
    anything with ``__array__`` or DLPack. bfloat16 and float16 are widened without loss.

    Raises UsageError, naming ``what``, for what holds no real numbers.
    """
    try:
        found = _array(value)
        if found.dtype.kind not in "fiub" and found.dtype.name != "bfloat16":
            raise UsageError(f"{what} is of type {found.dtype}: real numbers are needed")
        with np.errstate(over="ignore", invalid="ignore"):
            return np.ascontiguousarray(found, dtype=np.float32).reshape(found.shape)
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        kind = f"{type(value).__module__}.{type(value).__name__}"
        raise UsageError(f"{what}: a {kind} cannot be read as an array: {error}") from error


def _array(value: Any) -> npt.NDArray[Any]:
    if callable(getattr(value, "detach", None)):  # a torch tensor: strided, real, of any device
        if value.is_complex():
            raise ValueError("it is complex")
        return np.asarray(value.detach().float().cpu().numpy())
    if hasattr(value, "__array__") or not hasattr(value, "__dlpack__"):
        try:
            return np.asarray(value)
        except (TypeError, ValueError):  # on a device: such libraries refuse a silent copy
            if not hasattr(value, "__dlpack__"):
                raise
    try:
        return np.from_dlpack(value)
    except (TypeError, ValueError, RuntimeError, BufferError):
        from aprtui.engine.dlpack import from_dlpack  # another device, or bfloat16

        return from_dlpack(value)
