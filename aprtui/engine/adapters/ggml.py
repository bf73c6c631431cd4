"""ggml's tensors seen through ctypes: name, operation, sources and values of one graph node.

Layout: ``struct ggml_tensor`` of ggml.h (public), checked against the library's own accessors the
first time a node is seen, since llama-cpp-python publishes no binding of it.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from aprtui.errors import EngineError

__all__ = ["Ggml", "Node"]

_SOURCES, _NAME_BYTES = 10, 64
_TYPES = {0: np.dtype(np.float32), 26: np.dtype(np.int32)}  # ggml_type: F32, I32

Values = npt.NDArray[np.float32] | npt.NDArray[np.int32]


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * _SOURCES),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * _NAME_BYTES),
    )


@dataclass(frozen=True)
class Node:
    """One node of the compute graph.

    ``sources`` are the names of its inputs; ``shape`` is in numpy's order (ggml's ``ne`` reversed,
    leading ones dropped); ``first_param`` is the first operation parameter as a float;
    ``readable``: whether its values can be had, as float32 or int32 in order.
    """

    name: str
    op: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    first_param: float = 0.0
    readable: bool = True

    @property
    def label(self) -> str:
        """The name without its layer: ``Qcur`` of ``Qcur-3``."""
        return self.name.rpartition("-")[0] or self.name

    @property
    def layer(self) -> int | None:
        number = self.name.rpartition("-")[2]
        return int(number) if number.isdecimal() and "-" in self.name else None


class Ggml:
    """Reads nodes out of one loaded library. ``version`` names the package in errors."""

    def __init__(self, library: Any, version: str) -> None:
        self._version = version
        self._checked = False
        try:
            self._name = _bind(library.ggml_get_name, ctypes.c_void_p, ctypes.c_void_p)
            self._elements = _bind(library.ggml_nelements, ctypes.c_int64, ctypes.c_void_p)
            self._whole = _bind(library.ggml_is_contiguous, ctypes.c_bool, ctypes.c_void_p)
            self._op_name = _bind(library.ggml_op_name, ctypes.c_char_p, ctypes.c_int)
            self._get = _bind(
                library.ggml_backend_tensor_get,
                None,
                *(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t),
            )
        except AttributeError as error:
            raise self._differs(str(error)) from error

    def node(self, address: int) -> Node:
        """The node at an address that the callback was given. Raises EngineError."""
        tensor = _Tensor.from_address(address)
        if not self._checked:
            self._check(address, tensor)
        names = []
        for source in tensor.src:
            if source:
                names.append(_text(_Tensor.from_address(source).name))
        shape = tuple(reversed(tensor.ne))
        while len(shape) > 1 and shape[0] == 1:
            shape = shape[1:]
        return Node(
            _text(tensor.name),
            (self._op_name(tensor.op) or b"").decode("ascii", "replace"),
            tuple(names),
            shape,
            ctypes.c_float.from_buffer_copy(ctypes.c_int32(tensor.op_params[0])).value,
            tensor.type in _TYPES and bool(self._whole(address)),
        )

    def values(self, address: int) -> Values:
        """A copy of the node's values in numpy's order, from whatever device holds them."""
        tensor = _Tensor.from_address(address)
        kind = _TYPES.get(tensor.type)
        if kind is None or not self._whole(address):
            raise self._differs(
                f"{_text(tensor.name)} is of ggml type {tensor.type}, or not contiguous"
            )
        out = np.empty(tuple(reversed(tensor.ne)), dtype=kind)
        self._get(address, out.ctypes.data, 0, out.nbytes)
        while out.ndim > 1 and out.shape[0] == 1:
            out = out[0]
        return out

    def _check(self, address: int, tensor: _Tensor) -> None:
        """Two facts that a moved field would break. Raises EngineError."""
        at = self._name(address) - address
        extents = list(tensor.ne)
        if at != _Tensor.name.offset or not all(0 < extent < 1 << 40 for extent in extents):
            raise self._differs(f"a tensor's name lies at byte {at}")
        if math.prod(extents) != self._elements(address):
            raise self._differs("a tensor's extents are elsewhere")
        self._checked = True

    def _differs(self, why: str) -> EngineError:
        return EngineError(
            f"the callback of llama-cpp-python {self._version} differs from what is known: {why}",
            hint="0.3.36 is known to work: pip install llama-cpp-python==0.3.36",
        )


def _bind(function: Any, result: Any, *arguments: Any) -> Any:
    """A binding of its own, so that nobody else's argument types are changed."""
    prototype = ctypes.CFUNCTYPE(result, *arguments)
    return prototype(ctypes.cast(function, ctypes.c_void_p).value or 0)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "replace")
