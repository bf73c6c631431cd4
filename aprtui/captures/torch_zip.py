"""``torch.save``'s zip, read by a reader of our own that can call nothing.

The pickle inside is a program. Of its opcodes only those that build tensors, dicts, lists, tuples,
str, int, float, bool, None and OrderedDict are followed; a tensor is where its values lie, its
sizes and strides. Whatever else it names is said and refused. Nothing is imported, nothing is run.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aprtui.captures.dump import MAX_MEMBER_BYTES, MAX_TENSORS, Array, Member, decoded, item_bytes
from aprtui.captures.zipped import Record, records_of
from aprtui.errors import BadFileError
from aprtui.text import clean

__all__ = ["read_torch"]

_MAX_PICKLE_BYTES = 32 << 20
_MAX_OPCODES = 4_000_000
_MAX_DEPTH = 16
_LONGEST_NAME = 1000
_REBUILDS = "torch._utils._rebuild_"
_STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16", "LongStorage": "int64", "IntStorage": "int32",
    "ShortStorage": "int16", "CharStorage": "int8", "ByteStorage": "uint8", "BoolStorage": "bool",
}  # fmt: skip


@dataclass(frozen=True)
class _Global:
    """A name of a module, which is never looked up."""

    name: str


@dataclass(frozen=True)
class _Storage:
    """Flat values: the record that holds them, and how many."""

    record: Record
    dtype: str
    count: int


@dataclass(frozen=True)
class _Tensor:
    """A view of a storage, in values: from ``offset`` on, ``strides`` apart."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def load(self) -> Array:
        raw = self.storage.record.read(MAX_MEMBER_BYTES)
        flat = decoded(raw, self.storage.dtype)[self.offset :]
        steps = tuple(stride * flat.itemsize for stride in self.strides)
        return np.lib.stride_tricks.as_strided(flat, self.shape, steps, writeable=False).copy()


class _Mark:
    """Where an opcode's operands begin on the stack."""


def read_torch(path: Path, alone: str) -> tuple[dict[str, Member], bool]:
    """The tensors of a ``torch.save`` file by name, and whether it holds just one.

    An element of a list or tuple is named ``NAME.0``, of a dict inside ``NAME.key``; a file of one
    tensor names it ``alone``. Raises BadFileError for a pickle that names anything but tensors and
    plain containers.
    """
    records = records_of(path)
    pickles = [name for name in records if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise BadFileError(path, "a zip archive that torch.save did not write: no data.pkl in it")
    root = pickles[0].removesuffix("data.pkl")
    order = records.get(f"{root}byteorder")
    if order is not None and order.read(16) != b"little":
        raise BadFileError(path, "saved on a big-endian machine, which is not read here")
    value = _Unpickled(path, records, f"{root}data/").value(
        records[pickles[0]].read(_MAX_PICKLE_BYTES)
    )
    if isinstance(value, _Tensor):
        return {alone: _member(path, alone, value)}, True
    found: dict[str, Member] = {}
    for name, tensor in _named(path, value):
        if name in found:
            raise BadFileError(path, f"two tensors of it are named {clean(name)}")
        found[name] = _member(path, name, tensor)
    return found, False


def _member(path: Path, name: str, tensor: _Tensor) -> Member:
    dtype = tensor.storage.dtype
    taken = max(tensor.storage.count, math.prod(tensor.shape)) * item_bytes(dtype)
    return Member(name, dtype, tensor.shape, path, taken, tensor.load)


def _named(path: Path, value: Any) -> Iterator[tuple[str, _Tensor]]:
    """Every tensor below a value with its name; anything else that is plain is passed over."""
    seen = 0
    stack: list[tuple[str, Any, int]] = [("", value, 0)]
    while stack:
        name, each, depth = stack.pop()
        seen += 1
        wide = isinstance(each, (dict, list, tuple)) and len(each) > MAX_TENSORS
        if wide or seen > MAX_TENSORS or depth > _MAX_DEPTH or len(name) > _LONGEST_NAME:
            raise BadFileError(path, "its containers are too many or too deep to be a dump")
        if isinstance(each, _Tensor):
            yield name, each
        elif isinstance(each, (dict, list, tuple)):
            items = each.items() if isinstance(each, dict) else enumerate(each)
            below = [(f"{name}.{key}" if name else str(key), item) for key, item in items]
            stack += [(key, item, depth + 1) for key, item in reversed(below)]


class _Unpickled:
    """One run through a pickle's opcodes, with a stack and a memo of plain values."""

    def __init__(self, path: Path, records: dict[str, Record], below: str) -> None:
        self._path = path
        self._records = records
        self._below = below
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def value(self, raw: bytes) -> Any:
        """What the pickle builds. Raises BadFileError."""
        try:
            for done, (opcode, argument, _) in enumerate(pickletools.genops(raw)):
                if opcode.name == "STOP":
                    return self._stack.pop()
                if done > _MAX_OPCODES:
                    raise self._bad("is longer than any dump's")
                self._follow(opcode.name, argument)
        except BadFileError:
            raise
        except (
            ValueError,
            IndexError,
            KeyError,
            TypeError,
            AttributeError,
            OverflowError,
        ) as error:
            raise self._bad("is damaged") from error
        raise self._bad("has no end")

    def _bad(self, what: str) -> BadFileError:
        return BadFileError(self._path, f"its pickle {what}")

    def _follow(self, name: str, argument: Any) -> None:
        if name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name]())
        elif name in _LITERALS:
            self._stack.append(argument)
        elif name in _TUPLES:
            count = _TUPLES[name]
            self._stack[-count:] = [tuple(self._stack[-count:])]
            if len(self._stack[-1]) != count:
                raise IndexError("a stack that is too short")
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self._memo[argument] = self._stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self._stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            self._stack.append(self._memo[argument])
        elif name not in ("PROTO", "FRAME"):
            step = _STEPS.get(name)
            if step is None:
                raise self._bad(f"holds {name}, which dumps of tensors do not need: refused")
            step(self, argument)

    def _since_mark(self) -> list[Any]:
        place = len(self._stack) - 1
        while not isinstance(self._stack[place], _Mark):
            place -= 1
            if place < 0:
                raise IndexError("no mark")
        items = self._stack[place + 1 :]
        del self._stack[place:]
        return items

    def _mark(self, argument: Any) -> None:
        self._stack.append(_Mark())

    def _tuple(self, argument: Any) -> None:
        self._stack.append(tuple(self._since_mark()))

    def _append(self, argument: Any) -> None:
        value = self._stack.pop()
        self._list().append(value)

    def _appends(self, argument: Any) -> None:
        values = self._since_mark()
        self._list().extend(values)

    def _list(self) -> list[Any]:
        found = self._stack[-1]
        if not isinstance(found, list):
            raise TypeError("no list")
        return found

    def _set_item(self, argument: Any) -> None:
        pair = self._stack[-2:]
        del self._stack[-2:]
        self._set(pair)

    def _set_items(self, argument: Any) -> None:
        self._set(self._since_mark())

    def _set(self, items: list[Any]) -> None:
        found = self._stack[-1]
        keys, values = items[::2], items[1::2]
        if not isinstance(found, dict) or not all(type(key) in (str, int) for key in keys):
            raise TypeError("no dict of names")
        found.update(zip(keys, values, strict=True))

    def _global(self, argument: Any) -> None:
        self._named_global(str(argument).replace(" ", "."))

    def _stack_global(self, argument: Any) -> None:
        module, name = self._stack[-2:]
        del self._stack[-2:]
        self._named_global(f"{module}.{name}")

    def _named_global(self, name: str) -> None:
        storage = name.removeprefix("torch.")
        if name not in _REBUILT and not (name.startswith("torch.") and storage in _STORAGES):
            other = name.startswith(_REBUILDS)  # of float8, sparse, quantised tensors and the like
            hint = "save tensors as float32" if other else "save tensors alone"
            raise BadFileError(
                self._path,
                f"its pickle would call {clean(name)}: refused, nothing was run",
                hint=f"{hint}, in dicts, lists or tuples",
            )
        self._stack.append(_Global(name))

    def _reduce(self, argument: Any) -> None:
        called, given = self._stack[-2:]
        del self._stack[-2:]
        if not isinstance(called, _Global) or called.name not in _REBUILT:
            raise TypeError("called what is no name")
        self._stack.append(_REBUILT[called.name](self, *given))

    def _ordered(self, items: Any = ()) -> dict[Any, Any]:
        if items:
            raise TypeError("an OrderedDict of arguments")
        return {}

    def _parameter(self, tensor: Any, requires_grad: Any, hooks: Any) -> _Tensor:
        if not isinstance(tensor, _Tensor):
            raise TypeError("a parameter of no tensor")
        return tensor

    def _tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> _Tensor:
        if not isinstance(storage, _Storage) or len(shape) != len(strides) or len(shape) > 16:
            raise TypeError("a tensor without a storage")
        numbers = (offset, *shape, *strides)
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError("a tensor of impossible extents")
        reach = sum((extent - 1) * step for extent, step in zip(shape, strides, strict=True))
        if all(shape) and offset + reach >= storage.count:
            raise self._bad(f"holds a tensor that reaches beyond its {storage.count:,} values")
        return _Tensor(storage, offset, shape, strides)

    def _storage(self, argument: Any) -> None:
        kind, what, key, _, count = self._stack.pop()
        if kind != "storage" or not isinstance(what, _Global) or type(count) is not int:
            raise TypeError("a storage that says nothing")
        dtype = _STORAGES[what.name.removeprefix("torch.")]
        record = self._records.get(f"{self._below}{key}")
        if record is None or record.size != count * item_bytes(dtype):
            raise self._bad(f"names values {clean(str(key), 40)} that the file does not hold whole")
        self._stack.append(_Storage(record, dtype, count))


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple,
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
}  # fmt: skip
_LITERALS = frozenset({
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE",
})  # fmt: skip
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_STEPS: dict[str, Callable[[_Unpickled, Any], None]] = {
    "MARK": _Unpickled._mark, "TUPLE": _Unpickled._tuple, "APPEND": _Unpickled._append,
    "APPENDS": _Unpickled._appends, "SETITEM": _Unpickled._set_item,
    "SETITEMS": _Unpickled._set_items, "GLOBAL": _Unpickled._global,
    "STACK_GLOBAL": _Unpickled._stack_global, "REDUCE": _Unpickled._reduce,
    "BINPERSID": _Unpickled._storage,
}  # fmt: skip
# The names that may be "called", each by what stands here.
_REBUILT: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": _Unpickled._tensor,
    "torch._utils._rebuild_parameter": _Unpickled._parameter,
    "collections.OrderedDict": _Unpickled._ordered,
}
