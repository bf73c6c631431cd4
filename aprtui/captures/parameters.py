"""A runtime's own weights, where its dump holds them: are they those of the model?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from aprtui.captures.dump import Dump, Member
from aprtui.captures.maps import DumpMap
from aprtui.captures.recognise import passes_of
from aprtui.engine.replay import Replay, halfway
from aprtui.families.registry import load_family
from aprtui.graph import Role
from aprtui.model.open import Model
from aprtui.text import clean, count, number

__all__ = ["Parameters", "compare_parameters"]

Float64 = npt.NDArray[np.float64]

_TYPES = {"bfloat16": "BF16", "float16": "F16"}
_FLOAT32 = 2.0**-23  # relative: a runtime may have converted it once


@dataclass
class Parameters:
    """``held``: how many the dump has; ``others``: the tensors of the model's file that it holds
    otherwise, and how."""

    held: int = 0
    compared: int = 0
    others: dict[str, str] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """What the manifest keeps of it."""
        said = {"compared": self.compared, "others": self.others}
        return {"parameters": said} if self.compared else {}

    @property
    def note(self) -> str:
        if not self.compared:
            held = count(self.held, "parameter")
            return f"{held} in the dump: not compared (a checkpoint folder of one rank has them)"
        same = self.compared - len(self.others)
        return f"{same} of {count(self.compared, 'parameter')} in the dump are the model's"

    @property
    def findings(self) -> list[str]:
        return [f"{name}: the runtime's own is another: {how}" for name, how in self.others.items()]


def compare_parameters(dump: Dump, convention: DumpMap, model: Model) -> Parameters:
    """Every parameter of a dump of one rank that the convention finds, against a checkpoint of the
    same names; rounded to the runtime's type they are the same numbers. Raises BadFileError."""
    first = passes_of(dump, dump.ranks[0], convention)[0]
    found = Parameters(sum(convention.is_parameter(name) for name in first))
    if not found.held or len(dump.ranks) > 1 or model.file.format != "safetensors":
        return found
    replay = Replay(model)
    for role, member in _held(dump, convention, model):
        found.compared += 1
        how = _otherwise(replay, role, member)
        if how:
            found.others[clean(model.weights[role].entry.name, 200)] = how
    return found


def _held(dump: Dump, convention: DumpMap, model: Model) -> Iterator[tuple[Role, Member]]:
    """The weights that the dump holds, each once."""
    table, seen = load_family(model.architecture).tensors, set()
    for tensors in passes_of(dump, dump.ranks[0], convention):
        for name, member in tensors.items():
            for pattern in convention.parameters:
                match = pattern.fullmatch(name)
                role = match and table.role_of(f"{match['module']}.{match['name']}")
                if role is not None and role in model.weights and role not in seen:
                    seen.add(role)
                    yield role, member


def _otherwise(replay: Replay, role: Role, member: Member) -> str:
    """How a dump's parameter differs from the model's; empty where it does not."""
    rows, columns = replay.shape(role)
    if int(np.prod(member.shape)) != rows * columns:
        return f"it has the shape {list(member.shape)}, the model's {rows} x {columns}"
    held = member.read().astype(np.float64).reshape(rows, columns)
    wrong, first = 0, ""
    for start, right in replay.blocks(role):
        own = held[start : start + len(right)]
        apart = ~(np.abs(own - right) <= _allowed(own, right, member.dtype))
        wrong += int(apart.sum())
        if apart.any() and not first:
            row, column = np.argwhere(apart)[0]
            place = f"row {start + row}, column {column}" if rows > 1 else f"channel {column}"
            at = number(float(own[row, column])), number(float(right[row, column]))
            first = f"the first at {place}: {at[0]} where the model has {at[1]}"
    return f"{count(wrong)} of {count(held.size, 'value')}, {first}" if wrong else ""


def _allowed(own: Float64, right: Float64, dtype: str) -> Float64:
    kind = _TYPES.get(dtype)
    return halfway(own, kind) if kind else _FLOAT32 * np.abs(right)
