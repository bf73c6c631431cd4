"""What a bisection found, as plain values and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aprtui.compare.causes import Cause, Read
from aprtui.formats.rows import Rows
from aprtui.formats.summary import finite_json
from aprtui.formats.tracedir import StageKey
from aprtui.notebook import html_table
from aprtui.text import clean, count, number

__all__ = [
    "OTHER_MODEL", "SCHEMA", "Bisection", "Culprit", "Divergence", "Explained", "Mistake",
    "Unmeasured", "Within",
]  # fmt: skip

SCHEMA = "aprtui-bisect-v1"
_MANY = 4
OTHER_MODEL = (
    "says that it was captured from another model file"  # how that note begins, after A or B
)


@dataclass(frozen=True)
class Mistake:
    """What was done instead, proven: ``residual_rel_l2`` is what the mistake leaves unexplained."""

    id: str
    text: str
    parameters: Mapping[str, Any]
    residual_rel_l2: float


@dataclass(frozen=True)
class Culprit:
    """A stage whose own arithmetic is wrong.

    ``kind``: "differs", "nonfinite" (NaN or Inf born here) or "shape". ``span`` names the stages
    before it that B did not capture. ``local_rel_l2`` is the error against float64, None for a
    size. ``parts`` are the matrices concerned where a stage has several; ``reads`` the weights that
    they are.
    """

    key: StageKey
    kind: str
    span: tuple[str, ...]
    local_rel_l2: float | None
    worst_row_rel_l2: float | None
    worst: Mapping[str, int]
    parts: tuple[str, ...]
    looks_like: str
    mistake: Mistake | None
    inherited_rel_l2: float | None = None
    rows: Rows | None = None
    where: str = ""
    reads: tuple[Read, ...] = ()

    @property
    def text(self) -> str:
        """What it does wrong, where that is known; else what the error looks like."""
        return self.looks_like if self.mistake is None else self.mistake.text


@dataclass(frozen=True)
class Explained:
    """A stage that honest numerics reproduce from B's own inputs.

    ``hidden_weight``, of a product: how far one weight may be off, in typical weights of its
    matrix, before it would be seen.
    """

    key: StageKey
    by: str
    parts: Mapping[str, str]
    residual_rel_l2: float
    local_rel_l2: float
    span: tuple[str, ...] = ()
    inherited_rel_l2: float | None = None
    hidden_weight: float | None = None


@dataclass(frozen=True)
class Within:
    """A fused stage of 16 bits whose error is rounding, though no arithmetic reproduces it.

    Under the best of them ``units`` of ``type``'s last place are left (RMS), of ``bar_units`` that
    the roundings inside may make; the error looks like noise. ``local_rel_l2`` is that against
    float64.
    """

    key: StageKey
    type: str
    units: float
    bar_units: float
    local_rel_l2: float
    span: tuple[str, ...] = ()
    inherited_rel_l2: float | None = None

    @property
    def text(self) -> str:
        return f"{number(self.units, 2)} of {number(self.bar_units, 2)} units of {self.type}"


@dataclass(frozen=True)
class Unmeasured:
    """A stage that could not be replayed, and why. ``damaged``: its file, or an input's."""

    key: StageKey
    why: str
    damaged: bool = False


@dataclass(frozen=True)
class Divergence:
    """Where A and B first differ: the pair's class (compare.pairs) and why."""

    key: StageKey
    kind: str
    message: str


@dataclass(frozen=True, repr=False)
class Bisection:
    """Everything that one bisection found, in order of computation.

    ``model``, ``a`` and ``b`` are the paths of what was replayed. ``reference`` is what replaying A
    found: it is replayed where B has no culprit and they differ all the same. ``weighted`` names
    the stages whose operation reads weights; ``causes`` are the culprits by what is wrong: the same
    mistake of many stages is one. ``wire.from_json`` makes of ``to_json`` the same value again.
    """

    culprits: tuple[Culprit, ...]
    explained: tuple[Explained, ...]
    unmeasured: tuple[Unmeasured, ...]
    first_divergence: Divergence | None
    bar: tuple[float, float]
    tokens: int
    token_source: str
    notes: tuple[str, ...]
    reference: Bisection | None = None
    weighted: frozenset[str] = frozenset()
    model: str = ""
    a: str | None = None
    b: str = ""
    within: tuple[Within, ...] = ()
    causes: tuple[Cause, ...] = ()

    @property
    def headline(self) -> str:
        """Who computes wrongly, or that nobody does, in one line."""
        replayed = self.replayed
        if self.culprits:
            first, total = self.culprits[0].key, len(self.culprits)
            if total == 1:
                return f"{first} computes wrongly"
            one = ", all by one cause" if len(self.causes) == 1 and self.causes[0].id else ""
            return f"{total} stages compute wrongly, the first is {first}{one}"
        if not replayed:
            return "Nothing could be replayed"
        if self.unmeasured:
            left = count(len(self.unmeasured), "stage")
            return f"No culprit among {replayed} stages, but {left} could not be replayed"
        rounded = f", {len(self.within)} of them within rounding" if self.within else ""
        return f"No culprit: all {replayed} stages compute what the model says{rounded}"

    @property
    def floor(self) -> Explained | None:
        """The product that hides most of a single wrong weight; None where none was judged so."""
        judged = [each for each in self.explained if each.hidden_weight is not None]
        return max(judged, key=lambda each: each.hidden_weight or 0.0, default=None)

    @property
    def replayed(self) -> int:
        """How many stages were."""
        return len(self.explained) + len(self.within) + len(self.culprits)

    @property
    def swapped(self) -> bool:
        """Whether A is the side that computes wrongly."""
        return self.reference is not None and bool(self.reference.culprits)

    @property
    def exit_code(self) -> int:
        """0 no culprit on either side and all of B measured, 1 otherwise, 3 for a damaged file."""
        if any(item.damaged for item in self.unmeasured):
            return 3
        return 1 if self.culprits or self.unmeasured or self.swapped else 0

    @property
    def other_model(self) -> bool:
        """Whether so many of the stages that use weights are wrong that these may be another's."""
        wrong = sum(each.key.stage in self.weighted for each in self.culprits)
        right = sum(each.key.stage in self.weighted for each in self.explained)
        return wrong >= _MANY and wrong >= 9 * right

    @property
    def verdict(self) -> str:
        """ "culprits", "unmeasured" (none, but not everything could be replayed) or "clean"."""
        if self.culprits:
            return "culprits"
        return "unmeasured" if self.unmeasured else "clean"

    @property
    def explanations(self) -> Counter[str]:
        """How many stages each kind of honest numerics explains."""
        return Counter(explained.by for explained in self.explained)

    def to_json(self) -> dict[str, Any]:
        """What ``aprtui bisect --json`` prints: contracts/bisect.schema.json."""
        other, divergence = self.reference, self.first_divergence
        document: dict[str, Any] = {
            "schema": SCHEMA,
            "model": self.model,
            "a": self.a,
            "b": self.b,
            **self._side_json(),
            "first_divergence": None
            if divergence is None
            else {
                **_place(divergence.key),
                "class": divergence.kind,
                "message": divergence.message,
            },
            "reference": None if other is None else other._side_json(),
        }
        checked: dict[str, Any] = finite_json(document)
        return checked

    def _side_json(self) -> dict[str, Any]:
        """What replaying one side found."""
        return {
            "verdict": self.verdict,
            "exit_code": self.exit_code,
            "tokens": {"count": self.tokens, "source": self.token_source},
            "bar": {"rel_l2": self.bar[0], "worst_row_rel_l2": self.bar[1]},
            "causes": [each.to_json() for each in self.causes],
            "culprits": [_culprit_json(each) for each in self.culprits],
            "explained": [_explained_json(each) for each in self.explained],
            "within_rounding": [_within_json(each) for each in self.within],
            "unmeasured": [_unmeasured_json(each) for each in self.unmeasured],
            "weighted": sorted(self.weighted),
            "notes": list(self.notes),
        }

    def __repr__(self) -> str:
        within = f", {len(self.within)} within rounding" if self.within else ""
        innocent = f"{len(self.explained)} explained{within}, {len(self.unmeasured)} unmeasured"
        in_a = f"; in A {self.reference.headline}" if self.reference and self.swapped else ""
        return f"<bisection of {clean(self.b, 500)}: {self.headline}{in_a}; {innocent}>"

    def _repr_html_(self) -> str:
        """For notebooks: the culprits, of A where B has none, and what was done instead."""
        side = self.reference if self.reference and self.swapped else self
        rows = [
            (
                str(each.key),
                "" if each.local_rel_l2 is None else number(each.local_rel_l2, 3),
                each.text,
                "" if each.mistake is None else each.mistake.id,
                "" if each.mistake is None else number(each.mistake.residual_rel_l2, 2),
            )
            for each in side.culprits
        ]
        head = ("culprit", "local error", "what it does", "mistake", "leaves")
        return html_table(repr(self), head, rows)


def _place(key: StageKey) -> dict[str, Any]:
    return {"layer": key.layer, "stage": key.stage}


def _within_json(within: Within) -> dict[str, Any]:
    return {
        **_place(within.key),
        "span": list(within.span),
        "type": within.type,
        "units": within.units,
        "bar_units": within.bar_units,
        "local_rel_l2": within.local_rel_l2,
        "inherited_rel_l2": within.inherited_rel_l2,
    }


def _unmeasured_json(item: Unmeasured) -> dict[str, Any]:
    return {**_place(item.key), "why": item.why, "damaged": item.damaged}


def _culprit_json(culprit: Culprit) -> dict[str, Any]:
    mistake = culprit.mistake
    return {
        **_place(culprit.key),
        "span": list(culprit.span),
        "kind": culprit.kind,
        "local_rel_l2": culprit.local_rel_l2,
        "worst_row_rel_l2": culprit.worst_row_rel_l2,
        "inherited_rel_l2": culprit.inherited_rel_l2,
        "worst": dict(culprit.worst),
        "rows": None if culprit.rows is None else culprit.rows.to_json(),
        "where": culprit.where,
        "parts": list(culprit.parts),
        "tensors": [
            {
                "part": read.part,
                "role": read.role,
                "name": read.tensor,
                "type": read.type,
                "product": read.product,
            }
            for read in culprit.reads
        ],
        "looks_like": culprit.looks_like,
        "mistake": None
        if mistake is None
        else {
            "id": mistake.id,
            "text": mistake.text,
            "parameters": dict(mistake.parameters),
            "residual_rel_l2": mistake.residual_rel_l2,
        },
    }


def _explained_json(explained: Explained) -> dict[str, Any]:
    return {
        **_place(explained.key),
        "span": list(explained.span),
        "by": explained.by,
        "parts": dict(explained.parts),
        "residual_rel_l2": explained.residual_rel_l2,
        "local_rel_l2": explained.local_rel_l2,
        "inherited_rel_l2": explained.inherited_rel_l2,
        "hidden_weight": explained.hidden_weight,
    }
