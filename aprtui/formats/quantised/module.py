"""The stored tensors of one module of a checkpoint, and what is asked of them by name and shape."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from aprtui.errors import BadFileError
from aprtui.formats.modelfile import ModelFile, TensorEntry, tensor_bytes
from aprtui.formats.quantised.declared import Quantisation
from aprtui.text import clean

__all__ = ["FLOATS", "Module", "modules_of"]

FLOATS = ("F32", "F16", "BF16")
_SPLIT = re.compile(
    r"(?P<module>.+?)(?P<dot>\.)(?P<part>weight(?:_scale(?:_inv|_2)?|_zero_point|_packed|_shape"
    r"|_g_idx|_global_scale|_format)?"
    r"|weight\.(?:absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.bitsandbytes__\w+)"
    r"|input_scale|input_zero_point|input_global_scale|activation_scale|output_scale"
    r"|qscale_weight|qscale_act|qweight|qzeros|scales|g_idx|biases|SCB)"
    r"|(?P<packed>.+?)_(?P<half>blocks|scales)"
)
"""A tensor's name: the module, and the part of its weight that the tensor is."""


@dataclass(frozen=True)
class Module:
    """One module's tensors by part, and the quantisation that its checkpoint states."""

    file: ModelFile
    name: str
    parts: Mapping[str, TensorEntry]
    said: Quantisation | None

    def has(self, *names: str) -> bool:
        return all(name in self.parts for name in names)

    def first(self, *names: str) -> TensorEntry | None:
        """The first of these parts that is there."""
        return next((self.parts[name] for name in names if name in self.parts), None)

    @property
    def method(self) -> str:
        return self.said.method if self.said is not None else ""

    def setting(self, name: str) -> Any:
        """A key of the configuration, this module's own where it has one (MLX); None without."""
        if self.said is None:
            return None
        own = self.said.keys.get(self.name)
        if isinstance(own, Mapping) and name in own:
            return own[name]
        return self.said.keys.get(name)

    def number(self, *names: str) -> int | None:
        """The first of these settings that is an integer."""
        found = (self.setting(name) for name in names)
        return next((n for n in found if isinstance(n, int) and not isinstance(n, bool)), None)

    def refuse(self, entry: TensorEntry, what: str, *, hint: str = "") -> NoReturn:
        """Raises BadFileError that names a tensor and what contradicts itself."""
        raise BadFileError(entry.path, f"tensor {clean(entry.name)}: {what}", hint=hint)

    def need(self, part: str, of: TensorEntry, what: str) -> TensorEntry:
        """A part without which ``of`` means nothing."""
        if part not in self.parts:
            self.refuse(
                of,
                f"holds {what}, and {clean(self.name)}.{part} is not there",
                hint="the checkpoint is incomplete; download or convert it again",
            )
        return self.parts[part]

    def check(self, entry: TensorEntry, types: tuple[str, ...], *shapes: tuple[int, ...]) -> None:
        """Raises BadFileError where a tensor is of another type or of none of these shapes."""
        if entry.type not in types:
            self.refuse(entry, f"is {entry.type} where {' or '.join(types)} is due")
        if shapes and entry.shape not in shapes:
            due = " or ".join(str(list(shape)) for shape in shapes)
            self.refuse(entry, f"is {list(entry.shape)} where the codes need {due}")

    def numbers(self, part: str, most: int) -> list[int]:
        """The values of a small tensor of integers."""
        entry = self.parts[part]
        kind = {"I32": "<i4", "I64": "<i8"}.get(entry.type)
        if kind is None or math.prod(entry.shape) > most:
            self.refuse(entry, f"is {entry.type} {list(entry.shape)}, not a few integers")
        return [int(each) for each in np.frombuffer(tensor_bytes(entry).tobytes(), kind)]


def modules_of(file: ModelFile) -> dict[str, Module]:
    """The modules that have more than a plain weight, or a weight of codes, by name."""
    found: dict[str, dict[str, TensorEntry]] = {}
    for entry in file.tensors.values():
        match = _SPLIT.fullmatch(entry.name)
        if match is None:
            continue
        if match["half"] is not None:
            found.setdefault(match["packed"], {})[f"_{match['half']}"] = entry
        else:
            found.setdefault(match["module"], {})[match["part"]] = entry
    return {
        name: Module(file, name, parts, file.quantisation)
        for name, parts in found.items()
        if set(parts) - {"weight"} or parts["weight"].type not in (*FLOATS, "F64")
    }
