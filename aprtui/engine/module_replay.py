"""Modules of transformers computed again in float64, by their own code, from captured inputs.

NumPy outside: a door through which comparing code reaches torch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from aprtui.engine.adapters.hf_attention import eager_of
from aprtui.engine.module_trace import load_modules
from aprtui.engine.modules import ATTENTION
from aprtui.errors import AprtuiError
from aprtui.text import clean

__all__ = ["LostArgument", "ModuleReplay"]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Read = Callable[[Mapping[str, Any]], Float32]
_TYPES = {
    name: getattr(torch, name)
    for name in ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8",
                 "uint8", "bool")
}  # fmt: skip
_CAUGHT = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, AprtuiError)


class LostArgument(Exception):
    """Why a call cannot be made again."""


class ModuleReplay:
    """One model's modules. ``read`` gives a captured tensor's values, flat. Raises BadFileError."""

    def __init__(self, model: Path, read: Read) -> None:
        cpu = torch.device("cpu")  # its fused experts know no float64
        self._model = load_modules(model, "float32", cpu, experts_implementation="eager")
        self._modules = dict(self._model.named_modules())
        self._read = read

    def parameters(self, names: set[str]) -> tuple[int, int]:
        """(parameters in these modules, parameters of the whole model)."""
        held = {
            id(each): each.numel()
            for name in names
            if name in self._modules
            for each in self._modules[name].parameters()
        }
        return sum(held.values()), sum(each.numel() for each in self._model.parameters())

    def run(self, call: Mapping[str, Any], dtype: str = "float64") -> list[Float64]:
        """The outputs of one call, in the order of its ``out``, computed in a dtype.

        Raises LostArgument where the call cannot be made again.
        """
        name, kind = str(call["name"]), _TYPES[dtype]
        attention = name.endswith(ATTENTION) and name not in self._modules
        module = self._modules.get(name.removesuffix(ATTENTION) if attention else name)
        if module is None:
            raise LostArgument(f"the model has no module {clean(name)}")
        try:
            args = [self._given(each, kind) for each in call["args"]]
            named = {key: self._given(each, kind) for key, each in call["kwargs"].items()}
            twin = _in_dtype(module, kind)
            with torch.inference_mode():
                made = eager_of(twin)(twin, *args, **named) if attention else twin(*args, **named)
            return [_array(made, each["index"]) for each in call["out"]]
        except _CAUGHT as error:
            said = clean(str(error).strip().split("\n", 1)[0], 200)
            raise LostArgument(f"its own code does not run alone: {said}") from error

    def _given(self, said: Mapping[str, Any], kind: torch.dtype) -> Any:
        """An argument as it was; floating ones in the dtype that is computed in."""
        if "lost" in said:
            raise LostArgument(f"it was given a {clean(str(said['lost']), 60)}, which is not kept")
        if "items" in said:
            return tuple(self._given(each, kind) for each in said["items"])
        if "stage" not in said:
            return said["value"]
        stored = _TYPES[str(said["dtype"])]
        shape = [int(extent) for extent in said["shape"]]
        values = torch.from_numpy(np.array(self._read(said))).reshape(shape)
        return values.to(kind if stored.is_floating_point else stored)


def _in_dtype(module: torch.nn.Module, kind: torch.dtype) -> torch.nn.Module:
    """A copy whose weights are of a dtype, as the library loads them: what a module makes itself,
    as RoPE's frequencies, stays as it is unless it is to be wider."""
    twin = copy.deepcopy(module).eval()
    if kind == torch.float64:
        return twin.to(kind)
    stored = set(twin.state_dict())
    named = (*twin.named_parameters(), *twin.named_buffers())
    for name, value in named:
        if name in stored and value.is_floating_point():
            value.data = value.data.to(kind)
    return twin


def _array(made: Any, index: int | None) -> Float64:
    value = made if index is None else made[index]
    return np.asarray(value.detach().double().cpu().numpy())
