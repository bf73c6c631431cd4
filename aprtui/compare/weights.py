"""Two models' weights compared: paired by role, dequantised in blocks, one class each."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from aprtui.compare.bars import floor_of
from aprtui.compare.diff import finite_json
from aprtui.compare.model_settings import Setting, compare_configs, compare_tokenizers
from aprtui.compare.weight_floors import ROUNDING_FACTOR, passed_through, rounding_limit
from aprtui.compare.weight_looks import Look, Suspect, name_look
from aprtui.compare.weight_sides import WeightSide, operands, read_sides
from aprtui.engine.weight_blocks import (
    Operand,
    RowSums,
    WeightReader,
    measure_rows,
    same_bytes,
    side_by_side,
)
from aprtui.formats.modelfile import TensorEntry
from aprtui.model.open import Matrix
from aprtui.model.roles import Role
from aprtui.text import clean, count, number

__all__ = [
    "CLASSES",
    "SCHEMA",
    "ModelComparison",
    "ModelSide",
    "TensorResult",
    "TensorSide",
    "WeightMetrics",
    "diff_models",
    "models_json",
]

SCHEMA = "aprtui-weights-v1"
CLASSES = (  # by damage, the worst first
    "missing-a", "missing-b", "shape", "differs", "rounding", "equal", "same-bytes",
)  # fmt: skip
FAILED = ("shape", "differs")
UNMEASURED = ("missing-a", "missing-b")
_ROW_FACTOR = 4.0  # a row worse than this many medians is no rounding (specs/compare.md 6)

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class ModelSide:
    """One model as the comparison's head names it; all text is clean."""

    path: str
    format: str
    architecture: str
    size_bytes: int
    digest: str  # sha256 of header, metadata and tensor index
    types: tuple[str, ...]
    tied_head: bool


@dataclass(frozen=True)
class TensorSide:
    """Where one side of a role is stored; the name is clean text."""

    name: str
    type: str
    shape: tuple[int, int]  # [rows, columns] of the role's window; of a vector one row


@dataclass(frozen=True)
class WeightMetrics:
    """How far B's values are from A's; rows are the matrix's, sums are float64 over rows."""

    rel_l2: float
    cosine: float
    scale: float
    max_abs: float
    max_abs_at: tuple[int, int]
    worst_row_rel_l2: float
    worst_row: int
    median_row_rel_l2: float
    nonfinite_a: int
    nonfinite_b: int


@dataclass(frozen=True)
class TensorResult:
    """One role of both models. ``limit`` is the largest rel_l2 that rounding explains."""

    role: Role
    kind: str
    a: TensorSide | None
    b: TensorSide | None
    limit: float | None = None
    metrics: WeightMetrics | None = None
    looks_like: Look | None = None
    message: str = ""

    @property
    def damage(self) -> tuple[int, float]:
        """Sort key: the class first, then how far the values are apart."""
        apart = 0.0 if self.metrics is None else self.metrics.rel_l2
        return (CLASSES.index(self.kind), -apart)


@dataclass(frozen=True)
class ModelComparison:
    """Everything that one comparison of two models found; ``tensors`` are sorted by damage."""

    a: ModelSide
    b: ModelSide
    tensors: tuple[TensorResult, ...]
    config: tuple[Setting, ...]
    tokenizer: tuple[Setting, ...]
    unused_a: tuple[TensorSide, ...]
    unused_b: tuple[TensorSide, ...]
    notes: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """How many tensors are of each class; classes without one are left out."""
        found = Counter(result.kind for result in self.tensors)
        return {kind: found[kind] for kind in CLASSES if found[kind]}

    @property
    def settings(self) -> tuple[Setting, ...]:
        """Every configuration value and part of the tokenizer that is not the same."""
        return tuple(s for s in (*self.config, *self.tokenizer) if s.kind != "equal")

    @property
    def verdict(self) -> str:
        """ "fail", "unmeasured" (nothing differs, something is in one file only) or "pass"."""
        kinds = {result.kind for result in self.tensors} | {s.kind for s in self.settings}
        if kinds & set(FAILED):
            return "fail"
        return "unmeasured" if kinds & set(UNMEASURED) else "pass"

    def exit_code(self, *, allow_unmeasured: bool = False) -> int:
        """0 the same model but for rounding, 1 a difference or something in one file only."""
        if self.verdict == "unmeasured":
            return 0 if allow_unmeasured else 1
        return 1 if self.verdict == "fail" else 0


def diff_models(a: Path, b: Path, progress: Progress | None = None) -> ModelComparison:
    """Compare two models of any formats. ``progress`` is told (values done, of, the role).

    Memory: a block of each side and one float64 a row. Raises BadFileError, EngineError for a block
    type without a decoder.
    """
    sides = read_sides(a, b)
    roles = sorted({*sides[0].weights, *sides[1].weights}, key=_model_order)
    both_tied = all(side.tied for side in sides)
    if both_tied:
        roles.remove(Role("head"))
    runner = _Runner(sides, progress, sum(_values(sides, role) for role in roles))
    side_by_side(runner.run, sorted(roles, key=lambda role: -_values(sides, role)))
    results = sorted((runner.results[role] for role in roles), key=lambda result: result.damage)
    notes = [f"{name}: {note}" for name, side in zip("AB", sides, strict=True)
             for note in side.notes]  # fmt: skip
    return ModelComparison(
        _head(sides[0]),
        _head(sides[1]),
        tuple(results),
        compare_configs(*sides),
        compare_tokenizers(*sides),
        tuple(_unused(entry) for entry in sides[0].unused),
        tuple(_unused(entry) for entry in sides[1].unused),
        (*_reconciled(*sides), *notes),
    )


def _model_order(role: Role) -> tuple[float, str, int]:
    first = -1.0 if role.name == "embedding" else math.inf
    return (first if role.layer is None else role.layer, role.name, role.expert or 0)


def _values(sides: tuple[WeightSide, WeightSide], role: Role) -> int:
    matrix = sides[0].weights.get(role)
    return matrix.rows * matrix.columns if matrix is not None and role in sides[1].weights else 0


def _head(side: WeightSide) -> ModelSide:
    types = sorted({matrix.entry.type for matrix in side.weights.values()})
    return ModelSide(
        clean(str(side.path), 500), side.file.format, side.config.architecture,
        side.file.size_bytes, side.file.digest, tuple(types), side.tied,
    )  # fmt: skip


def _unused(entry: TensorEntry) -> TensorSide:
    rows = math.prod(entry.shape[:-1])
    return TensorSide(clean(entry.name), entry.type, (rows, entry.shape[-1] if entry.shape else 1))


def _reconciled(a: WeightSide, b: WeightSide) -> list[str]:
    """What was made the same before the values were compared."""
    notes = []
    if a.config.rope_layout != b.config.rope_layout:
        adjacent = "A" if a.config.rope_layout == "adjacent" else "B"
        notes.append(f"{adjacent}'s q and k rows are adjacent pairs: they are read as halves")
    if a.config.norm_offset != b.config.norm_offset:
        stored = "A" if a.config.norm_offset else "B"
        notes.append(f"{stored} stores norm weights as w and means 1 + w: 1 is added")
    if a.tied != b.tied:
        tied, own = ("A", "B") if a.tied else ("B", "A")
        notes.append(f"{tied}'s head is its embedding; {own} has a head of its own")
    return notes


class _Runner:
    """Compares roles, several at a time; each thread has its own buffers."""

    def __init__(
        self, sides: tuple[WeightSide, WeightSide], progress: Progress | None, total: int
    ) -> None:
        self._sides = sides
        self._progress = progress
        self._total = total
        self._done = 0
        self._lock = threading.Lock()
        self._own = threading.local()
        self.results: dict[Role, TensorResult] = {}

    @property
    def _readers(self) -> tuple[WeightReader, WeightReader]:
        """This thread's readers of A and B."""
        if not hasattr(self._own, "readers"):
            self._own.readers = (WeightReader(), WeightReader())
        readers: tuple[WeightReader, WeightReader] = self._own.readers
        return readers

    def run(self, role: Role) -> None:
        self.results[role] = self.compare(role)

    def compare(self, role: Role) -> TensorResult:
        found = [side.weights.get(role) for side in self._sides]
        result = TensorResult(role, "same-bytes", _place(found[0]), _place(found[1]))
        if found[0] is None or found[1] is None:
            return replace(result, kind="missing-a" if found[0] is None else "missing-b")
        a, b = operands(*self._sides, role)
        if (a.rows, a.columns) != (b.rows, b.columns):
            suspect = Suspect(role, self._sides, a, b, None, self._readers, rounding_limit(a, b))
            message = f"{a.rows:,} x {a.columns:,} in A, {b.rows:,} x {b.columns:,} in B"
            return replace(result, kind="shape", looks_like=name_look(suspect), message=message)
        if same_bytes(a, b):
            self._tell(role, a.rows * a.columns)
            return result
        sums = measure_rows(a, b, self._readers, lambda values: self._tell(role, values))
        metrics, limit = _metrics(sums), rounding_limit(a, b, sums)
        result = replace(result, kind="equal", limit=limit, metrics=metrics)
        if sums.equal:
            return result
        message = _not_rounding(metrics, limit, a.rows * a.columns, _noise(sums, a, b))
        if message and (narrowed := self._narrowed(result, a, b)) is not None:
            return narrowed
        if not message:
            return replace(result, kind="rounding")
        look = name_look(Suspect(role, self._sides, a, b, sums, self._readers, limit))
        return replace(result, kind="differs", looks_like=look, message=message)

    def _narrowed(self, result: TensorResult, a: Operand, b: Operand) -> TensorResult | None:
        """``rounding`` where a float32 side holds only numbers of a narrower float."""
        apart = 0.0 if result.metrics is None else result.metrics.rel_l2
        if apart > ROUNDING_FACTOR * floor_of("BF16"):
            return None
        narrow = [passed_through(*each) for each in zip((a, b), self._readers, strict=True)]
        limit = max((ROUNDING_FACTOR * floor_of(kind) for kind in narrow if kind), default=0.0)
        if apart > limit:
            return None
        held = [f"{name} holds {kind} numbers" for name, kind in zip("AB", narrow, strict=True)
                if kind]  # fmt: skip
        return replace(result, kind="rounding", limit=limit, message=" and ".join(held))

    def _tell(self, role: Role, values: int) -> None:
        with self._lock:
            self._done += values
            if self._progress is not None:
                self._progress(self._done, self._total, str(role))


def _place(matrix: Matrix | None) -> TensorSide | None:
    if matrix is None:
        return None
    return TensorSide(clean(matrix.entry.name), matrix.entry.type, (matrix.rows, matrix.columns))


def _metrics(sums: RowSums) -> WeightMetrics:
    """The numbers of a whole matrix from the sums of its rows; a.b = (a.a + b.b - d.d) / 2."""
    dd, aa, bb = (float(part.sum()) for part in (sums.difference, sums.a, sums.b))
    dot = (aa + bb - dd) / 2
    rows = _row_rel_l2(sums)
    worst = int(rows.argmax()) if rows.size else 0
    norms = math.sqrt(aa * bb)
    return WeightMetrics(
        rel_l2=math.sqrt(dd / aa) if aa else (math.inf if dd else 0.0),
        cosine=max(-1.0, min(1.0, dot / norms)) if norms else float(aa == bb),
        scale=dot / aa if aa else math.nan,
        max_abs=sums.max_abs,
        max_abs_at=sums.max_abs_at,
        worst_row_rel_l2=float(rows[worst]) if rows.size else 0.0,
        worst_row=worst,
        median_row_rel_l2=float(np.median(rows)) if rows.size else 0.0,
        nonfinite_a=sums.nonfinite_a,
        nonfinite_b=sums.nonfinite_b,
    )


def _row_rel_l2(sums: RowSums) -> np.ndarray[Any, np.dtype[np.float64]]:
    with np.errstate(divide="ignore", invalid="ignore"):
        rows: np.ndarray[Any, np.dtype[np.float64]] = np.where(
            sums.difference == 0, 0.0, np.sqrt(sums.difference / sums.a)
        )
    return rows


def _noise(sums: RowSums, a: Operand, b: Operand) -> np.ndarray[Any, np.dtype[np.float64]]:
    """What the rounding of each row is measured by: rel_l2, or where the whole tensor has one
    scale (APR-Q8) the plain size of the error, which then is the same for small rows and large."""
    if "APR_Q8" in (a.matrix.entry.type, b.matrix.entry.type):
        return np.sqrt(sums.difference)
    return _row_rel_l2(sums)


def _not_rounding(
    metrics: WeightMetrics,
    limit: float,
    values: int,
    noise: np.ndarray[Any, np.dtype[np.float64]],
) -> str:
    """Why the difference is not the formats' rounding; empty where it is.

    Rounding shrinks values by about the floor squared, and its mean goes to zero with the root of
    their number; a scale beyond that is an error of its own though it hide below the floor.
    """
    if metrics.nonfinite_a != metrics.nonfinite_b:
        return (
            f"{count(metrics.nonfinite_a)} NaN or infinite in A, {count(metrics.nonfinite_b)} in B"
        )
    if not metrics.rel_l2 <= limit:
        return f"rel_l2 {number(metrics.rel_l2, 3)} > {number(limit, 3)}"
    floor = limit / ROUNDING_FACTOR
    if abs(1.0 - metrics.scale) > 2 * floor**2 + 6 * floor / math.sqrt(values):
        return f"scaled by {number(metrics.scale, 5)}, more than rounding does"
    worst, median = int(noise.argmax()), float(np.median(noise))
    if noise[worst] > _ROW_FACTOR * median and noise.size > 1:
        times = noise[worst] / median if median else math.inf
        return f"row {worst:,} is {number(float(times), 3)} times the median row"
    return ""


# -- JSON ------------------------------------------------------------------------------------------


def models_json(comparison: ModelComparison, *, allow_unmeasured: bool = False) -> dict[str, Any]:
    """The whole comparison, as contracts/weights.schema.json describes it."""
    found: dict[str, Any] = finite_json(
        {
            "schema": SCHEMA,
            "a": dataclasses.asdict(comparison.a),
            "b": dataclasses.asdict(comparison.b),
            "verdict": comparison.verdict,
            "exit_code": comparison.exit_code(allow_unmeasured=allow_unmeasured),
            "counts": comparison.counts,
            "tensors": [_tensor_json(result) for result in comparison.tensors],
            "config": [dataclasses.asdict(setting) for setting in comparison.config],
            "tokenizer": [dataclasses.asdict(setting) for setting in comparison.tokenizer],
            "unused_a": [dataclasses.asdict(tensor) for tensor in comparison.unused_a],
            "unused_b": [dataclasses.asdict(tensor) for tensor in comparison.unused_b],
            "notes": list(comparison.notes),
        }
    )
    return found


def _tensor_json(result: TensorResult) -> dict[str, Any]:
    return {
        "role": result.role.name,
        "layer": result.role.layer,
        "expert": result.role.expert,
        "class": result.kind,
        "message": result.message,
        "a": result.a and dataclasses.asdict(result.a),
        "b": result.b and dataclasses.asdict(result.b),
        "limit": result.limit,
        "metrics": result.metrics and dataclasses.asdict(result.metrics),
        "looks_like": result.looks_like and dataclasses.asdict(result.looks_like),
    }
