"""Two models' weights compared: paired by role, by their bytes and then by their values."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from aprtui.compare.computation import compare_graphs, same_value
from aprtui.compare.model_settings import compare_configs, compare_tokenizers
from aprtui.compare.weight_judge import Judge
from aprtui.compare.weight_results import ModelComparison, ModelSide, TensorResult, TensorSide
from aprtui.compare.weight_sides import WeightSide, operands, read_sides
from aprtui.engine.processors import processors
from aprtui.formats.modelfile import TensorEntry
from aprtui.graph import Role
from aprtui.model.open import Matrix
from aprtui.model.operand import Operand, same_bytes
from aprtui.text import clean

__all__ = ["Progress", "diff_models"]

Progress = Callable[[int, int, str], None]
_Sides = tuple[WeightSide, WeightSide]


def diff_models(
    a: Path,
    b: Path,
    progress: Progress | None = None,
    adapters: tuple[Path | None, Path | None] = (None, None),
) -> ModelComparison:
    """Compare two models of any formats, ``adapters`` laid on their weights.

    ``progress`` is told (values done, of, the role). Memory: a block of each side and some numbers
    a row. Raises BadFileError, EngineError for a block type without a decoder.
    """
    sides = read_sides(a, b, adapters)
    roles = sorted({*sides[0].weights, *sides[1].weights}, key=_model_order)
    if all(side.tied for side in sides):
        roles.remove(Role("head"))
    results = sorted(_results(sides, roles, progress), key=lambda result: result.damage)
    notes = [f"{name}: {note}" for name, side in zip("AB", sides, strict=True)
             for note in side.notes]  # fmt: skip
    eps = [side.settings.get("rms_norm_eps") for side in sides]
    folded = frozenset(result.role for result in results if result.folded)
    graphs = sides[0].graph, sides[1].graph
    otherwise = compare_graphs(*graphs, same_eps=same_value(*eps), folded=folded)
    same_pass = all(each.kind == "slight" for each in otherwise)
    return ModelComparison(
        _head(sides[0]),
        _head(sides[1]),
        tuple(results),
        otherwise,
        compare_configs(*sides, same_pass=same_pass),
        compare_tokenizers(*sides),
        tuple(_unused(entry) for entry in sides[0].unused),
        tuple(_unused(entry) for entry in sides[1].unused),
        (*_reconciled(*sides), *_folded(folded), *notes),
    )


def _results(sides: _Sides, roles: list[Role], progress: Progress | None) -> list[TensorResult]:
    """One result a role, in the order of ``roles``.

    Bytes first: where all are the same nothing is decoded, and torch is not even imported.
    """
    found, pairs = {}, {}
    for role in roles:
        left, right = (side.weights.get(role) for side in sides)
        found[role] = TensorResult(role, "same-bytes", _place(left), _place(right))
        if left is None or right is None:
            kind = "missing-a" if left is None else "missing-b"
            found[role] = replace(found[role], kind=kind)
        else:
            pairs[role] = operands(*sides, role)
    tell = _Teller(progress, sum(map(_values, pairs.values())))
    others = _not_same_bytes(pairs, tell)
    if others:
        Judge(sides, tell).judge_all(found, others)
    return [found[role] for role in roles]


def _not_same_bytes(
    pairs: dict[Role, tuple[Operand, Operand]], tell: Callable[[Role, int], None]
) -> dict[Role, tuple[Operand, Operand]]:
    """The pairs that are stored otherwise, the largest first: the last ones end together."""
    order = sorted(pairs, key=lambda role: -_values(pairs[role]))

    def same(role: Role) -> bool:
        if not same_bytes(*pairs[role]):
            return False
        tell(role, _values(pairs[role]))
        return True

    with ThreadPoolExecutor(processors()) as threads:
        return {
            role: pairs[role]
            for role, equal in zip(order, threads.map(same, order), strict=True)
            if not equal
        }


class _Teller:
    """Adds up what is compared, for a line of progress; any thread may call it."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0
        self._lock = threading.Lock()

    def __call__(self, role: Role, values: int) -> None:
        with self._lock:
            self._done += values
            if self._progress is not None:
                self._progress(self._done, self._total, str(role))


def _model_order(role: Role) -> tuple[float, str, int]:
    first = -1.0 if role == Role("embedding") else math.inf
    return (first if role.layer is None else role.layer, role.name, role.expert or 0)


def _values(pair: tuple[Operand, Operand]) -> int:
    return pair[0].rows * pair[0].columns


def _place(matrix: Matrix | None) -> TensorSide | None:
    if matrix is None:
        return None
    return TensorSide(clean(matrix.entry.name), matrix.entry.type, (matrix.rows, matrix.columns))


def _head(side: WeightSide) -> ModelSide:
    types = sorted({matrix.entry.type for matrix in side.weights.values()})
    return ModelSide(
        clean(str(side.path), 500), side.file.format, side.architecture,
        side.file.size_bytes, side.file.digest, tuple(types), side.tied,
    )  # fmt: skip


def _unused(entry: TensorEntry) -> TensorSide:
    rows = math.prod(entry.shape[:-1])
    return TensorSide(clean(entry.name), entry.type, (rows, entry.shape[-1] if entry.shape else 1))


def _folded(roles: frozenset[Role]) -> list[str]:
    """The weights of which one file holds the factors that the other's pass multiplies by."""
    names = ", ".join(sorted({role.name for role in roles}))
    return [f"factors of the pass are multiplied into weights of the other: {names}"] * bool(roles)


def _reconciled(a: WeightSide, b: WeightSide) -> list[str]:
    """What was made the same before the values were compared."""
    notes = []
    if a.rope_layout != b.rope_layout:
        adjacent = "A" if a.rope_layout == "adjacent" else "B"
        notes.append(f"{adjacent}'s q and k rows are adjacent pairs: they are read as halves")
    if a.norm_offset != b.norm_offset:
        stored = "A" if a.norm_offset else "B"
        notes.append(f"{stored} stores norm weights as w and means 1 + w: 1 is added")
    if bool(a.logged) != bool(b.logged):
        stored = "A" if a.logged else "B"
        notes.append(f"{stored} stores decays as logarithms: they are read as -exp(w)")
    if a.dealt or b.dealt:
        dealt = "A" if a.dealt else "B"
        notes.append(f"{dealt}'s value heads go round the key heads: compared by key head")
    if a.tied != b.tied:
        tied, own = ("A", "B") if a.tied else ("B", "A")
        notes.append(f"{tied}'s head is its embedding; {own} has a head of its own")
    return notes
