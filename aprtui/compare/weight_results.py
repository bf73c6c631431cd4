"""What a comparison of two models found: a class and numbers for each tensor, and the JSON."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aprtui.compare.causes import shared_by
from aprtui.compare.computation import Otherwise
from aprtui.compare.model_settings import Setting
from aprtui.compare.weight_floors import EXACT
from aprtui.formats.summary import finite_json
from aprtui.graph import Role
from aprtui.notebook import html_table
from aprtui.text import count, number

__all__ = [
    "CLASSES",
    "SCHEMA",
    "SOUND",
    "Look",
    "ModelComparison",
    "ModelSide",
    "TensorResult",
    "TensorSide",
    "WeightMetrics",
]

SCHEMA = "aprtui-weights-v1"
CLASSES = (  # by damage, the worst first
    "missing-a", "missing-b", "shape", "differs", "rounding", "equal", "same-bytes",
)  # fmt: skip
FAILED = ("shape", "differs")
UNMEASURED = ("missing-a", "missing-b")
_SHARED = ("low_rank", "scaled", "transposed", "zeros", "pair_order")
SOUND = ("rounding", "equal", "same-bytes")


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
class Look:
    """What B holds instead. ``residual_rel_l2`` is None where nothing finite can be compared."""

    id: str
    text: str
    residual_rel_l2: float | None
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TensorResult:
    """One role of both models. ``limit`` is the largest rel_l2 that rounding explains. ``folded``:
    the values are the same once each side's are multiplied as its pass multiplies what they make.
    """

    role: Role
    kind: str
    a: TensorSide | None
    b: TensorSide | None
    limit: float | None = None
    metrics: WeightMetrics | None = None
    looks_like: Look | None = None
    message: str = ""
    folded: bool = False

    @property
    def damage(self) -> tuple[int, float]:
        """Sort key: the class first, then how far the values are apart."""
        apart = 0.0 if self.metrics is None else self.metrics.rel_l2
        return (CLASSES.index(self.kind), -apart)


@dataclass(frozen=True, repr=False)
class ModelComparison:
    """Everything that one comparison of two models found; ``tensors`` are sorted by damage."""

    a: ModelSide
    b: ModelSide
    tensors: tuple[TensorResult, ...]
    computation: tuple[Otherwise, ...]  # what the passes do otherwise, in order of computation
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
    def rounded(self) -> bool:
        """Whether a tensor of either file is only near the other's, as a narrower format leaves it:
        a product by one is then not the product by the other."""
        return any(
            each.kind == "rounding" and (each.metrics is None or each.metrics.rel_l2 > EXACT)
            for each in self.tensors
        )

    @property
    def settings(self) -> tuple[Setting, ...]:
        """Every configuration value and part of the tokenizer that is not the same."""
        return tuple(s for s in (*self.config, *self.tokenizer) if s.kind != "equal")

    @property
    def patterns(self) -> tuple[str, ...]:
        """What the tensors that differ have in common: one look, one role, one block type."""
        wrong = [result for result in self.tensors if result.kind in FAILED]
        alike: dict[str, list[TensorResult]] = {}
        for result in wrong:
            if result.looks_like is not None and result.looks_like.id in _SHARED:
                alike.setdefault(result.looks_like.text, []).append(result)
        found = [
            f"{count(len(group), 'tensor')} ({_roles(group)}): {text}"
            for text, group in alike.items()
            if len(group) > 1
        ]
        right = [_kind(result) for result in self.tensors if result.kind in SOUND]
        shared = shared_by([_kind(result) for result in wrong], right)
        return (*found, f"all {shared} differ, and nothing else") if shared else tuple(found)

    @property
    def verdict(self) -> str:
        """ "fail", "unmeasured" (nothing differs, something is in one file only) or "pass"."""
        kinds = {result.kind for result in self.tensors} | {s.kind for s in self.settings}
        kinds |= {each.kind for each in self.computation}
        if kinds & set(FAILED):
            return "fail"
        return "unmeasured" if kinds & set(UNMEASURED) else "pass"

    def exit_code(self, *, allow_unmeasured: bool = False) -> int:
        """0 the same model but for rounding, 1 a difference or something in one file only."""
        if self.verdict == "unmeasured":
            return 0 if allow_unmeasured else 1
        return 1 if self.verdict == "fail" else 0

    def to_json(self, *, allow_unmeasured: bool = False) -> dict[str, Any]:
        """What ``aprtui diff --json`` prints of two models: contracts/weights.schema.json."""
        found: dict[str, Any] = finite_json(
            {
                "schema": SCHEMA,
                "a": dataclasses.asdict(self.a),
                "b": dataclasses.asdict(self.b),
                "verdict": self.verdict,
                "exit_code": self.exit_code(allow_unmeasured=allow_unmeasured),
                "counts": self.counts,
                "patterns": list(self.patterns),
                "tensors": [_tensor_json(result) for result in self.tensors],
                "computation": [dataclasses.asdict(each) for each in self.computation],
                "config": [dataclasses.asdict(setting) for setting in self.config],
                "tokenizer": [dataclasses.asdict(setting) for setting in self.tokenizer],
                "unused_a": [dataclasses.asdict(tensor) for tensor in self.unused_a],
                "unused_b": [dataclasses.asdict(tensor) for tensor in self.unused_b],
                "notes": list(self.notes),
            }
        )
        return found

    def __repr__(self) -> str:
        found = ", ".join(f"{count(n)} {kind}" for kind, n in self.counts.items())
        return f"<two models: {self.verdict}; tensors: {found}>"

    def _repr_html_(self) -> str:
        """For notebooks: the tensors that are not the same, the worst first."""
        rows = [
            (
                str(result.role),
                result.kind,
                "" if result.metrics is None else number(result.metrics.rel_l2, 3),
                "" if result.looks_like is None else result.looks_like.text,
            )
            for result in self.tensors
            if result.kind not in SOUND
        ]
        return html_table(repr(self), ("tensor", "class", "rel_l2", "looks like"), rows)


def _kind(result: TensorResult) -> tuple[str, str]:
    """(the role, the stored type of B) of a tensor."""
    return result.role.name, "" if result.b is None else result.b.type


def _roles(results: Sequence[TensorResult]) -> str:
    return ", ".join(dict.fromkeys(result.role.name for result in results))


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
        "folded": result.folded,
    }
