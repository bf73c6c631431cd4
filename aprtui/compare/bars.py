"""How close two captures must be: bars chosen by what is compared, with the reason for each."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from aprtui.compare.metrics import Metrics
from aprtui.errors import UsageError
from aprtui.formats.tracedir import StageKey, TraceDir
from aprtui.graph.vocabulary import STAGES, facts_of
from aprtui.text import clean, nearest, number

__all__ = [
    "BAR",
    "FILE_BARS",
    "LONG_BAR",
    "METRICS",
    "Bars",
    "Exceeded",
    "Override",
    "check_overrides",
    "choose_bars",
    "describe",
    "floor_of",
    "judge",
    "local_bars",
    "parse_bar",
]

FLOORS = {  # relative RMS that rounding one matrix to the format leaves (docs/compare.md 3,
    # measured by tests/benchmarks/format_floors.py)
    "F64": 0.0, "F32": 0.0, "F16": 3e-4, "BF16": 2.3e-3, "Q8_0": 0.005, "Q6_K": 0.017,
    "Q5_K": 0.035, "Q5_1": 0.04, "Q5_0": 0.046, "Q4_K": 0.07, "Q4_1": 0.08, "Q4_0": 0.08,
    "Q3_K": 0.14, "Q2_K": 0.27, "IQ4_XS": 0.08, "IQ4_NL": 0.08, "IQ3_S": 0.14, "IQ3_XXS": 0.19,
    "IQ2_S": 0.26, "IQ2_XS": 0.31, "IQ2_XXS": 0.36, "IQ1_M": 0.47, "IQ1_S": 0.51,
    "TQ1_0": 0.83, "TQ2_0": 0.83, "MXFP4": 0.12, "NVFP4": 0.1,
    "FP8_E4M3": 0.027, "FP8_E5M2": 0.052, "INT8": 0.012, "BNB_INT8": 0.01,
    "BNB_NF4": 0.1, "BNB_FP4": 0.14, "MXFP4_HF": 0.13, "MXFP4_CT": 0.13, "MLX_MXFP4": 0.13,
    "NVFP4_MO": 0.1, "NVFP4_CT": 0.1,
}  # fmt: skip
_PLAIN_ROUNDING = {8: 0.0075, 6: 0.025, 5: 0.05, 4: 0.12, 3: 0.24, 2: 0.55}
"""Of GPTQ_4, AWQ_4, MLX_4, CT_INT4 and their like: integers with a scale a group of columns."""
_FLOOR_BY_BITS = {8: 0.005, 6: 0.017, 5: 0.035, 4: 0.08, 3: 0.14, 2: 0.27, 1: 0.5}
ROUNDS_ACTIVATIONS = frozenset({"llama.cpp", "apr"})
BAR, LONG_BAR, LONG_PROMPT = 1e-5, 3e-5, 500
"""float32 agrees with float64 to BAR, the longer sums of prompts beyond LONG_PROMPT tokens to
LONG_BAR only (docs/numerics.md 1). The worst row may have ten times that."""

# Metric -> how it is held against its bar.
_AT_MOST = ("rel_l2", "worst_row_rel_l2", "max_abs", "rms", "kl", "mismatches")
_AT_LEAST = ("cosine", "argmax_equal", "top5_overlap")
_FROM_ONE = ("scale", "std_ratio")
_ALIASES = {
    "worst_row": "worst_row_rel_l2",
    "max_abs_diff": "max_abs",
    "rms_diff": "rms",
    "cosine_sim": "cosine",
}
METRICS = (*_AT_MOST, *_AT_LEAST, *_FROM_ONE)


@dataclass(frozen=True)
class Override:
    """``--bar [GLOB:]METRIC=LIMIT``; the glob is matched against stage and ``layer-N/stage``."""

    metric: str
    limit: float
    pattern: str = "*"

    def matches(self, key: StageKey) -> bool:
        return fnmatchcase(key.stage, self.pattern) or fnmatchcase(str(key), self.pattern)

    def __str__(self) -> str:
        scope = "" if self.pattern == "*" else f"{clean(self.pattern)}:"
        return f"{scope}{self.metric}={self.limit:g}"


@dataclass(frozen=True)
class Exceeded:
    """One bar that a pair does not hold."""

    metric: str
    value: float
    limit: float


_TIGHT = 1e-4


@dataclass(frozen=True)
class Bars:
    """What every pair must hold, and why; ``overrides`` replace single limits, the last wins."""

    rel_l2: float
    worst_row_rel_l2: float
    reason: str
    overrides: tuple[Override, ...] = field(default=())

    def may_hide(self, kinds: Iterable[str]) -> bool:
        """Whether a small mistake, of one block of weights say, may be among pairs of these kinds:
        the bar is loose, and they are not all equal."""
        return self.rel_l2 > _TIGHT and set(kinds) != {"equal"}

    def limits(self, key: StageKey) -> dict[str, float]:
        """The limit of each metric for one stage.

        An override of rel_l2 moves the bar of the worst row along, unless that has its own.
        Expert ids are whole numbers: only how many differ counts.
        """
        found = {o.metric: o.limit for o in self.overrides if o.matches(key)}
        if facts_of(key.stage).integers:
            return {"mismatches": found.get("mismatches", 0.0)}
        limits = {"rel_l2": self.rel_l2, "worst_row_rel_l2": self.worst_row_rel_l2}
        if "rel_l2" in found and self.rel_l2:
            factor = self.worst_row_rel_l2 / self.rel_l2
            limits["worst_row_rel_l2"] = found["rel_l2"] * factor
        return limits | found

    def __str__(self) -> str:
        text = f"rel_l2 {self.rel_l2:.3g}, worst row {self.worst_row_rel_l2:.3g}: {self.reason}"
        if self.overrides:
            text += f"; overridden by --bar {' '.join(map(str, self.overrides))}"
        return text


FILE_BARS = Bars(
    0.1, 0.4, "unknown arithmetic (two files, no manifest): one side may quantise activations"
)


def parse_bar(text: str) -> Override:
    """``rel_l2=1e-3`` or ``ffn_*:rel_l2=5e-2``. Raises UsageError."""
    left, equals, limit_text = text.rpartition("=")
    pattern, _, metric = left.rpartition(":")
    metric = _ALIASES.get(metric.strip().lower(), metric.strip().lower())
    if not equals or metric not in METRICS:
        near = nearest(metric, METRICS) if metric else None
        raise UsageError(
            f"--bar {clean(text)!r} cannot be read",
            hint=(f"did you mean {near}? " if near else "")
            + f"write METRIC=LIMIT or STAGES:METRIC=LIMIT; metrics: {', '.join(METRICS)}",
        )
    try:
        limit = float(limit_text)
    except ValueError:
        limit = math.nan
    if math.isnan(limit):
        raise UsageError(f"--bar {clean(text)!r}: {clean(limit_text)!r} is not a number")
    if limit < 0:
        raise UsageError(f"--bar {clean(text)!r}: a bar is not negative")
    return Override(metric, limit, pattern.strip() or "*")


def check_overrides(overrides: Iterable[Override], captured: Iterable[StageKey]) -> None:
    """Raise UsageError for an override whose pattern matches no known and no captured stage."""
    keys = [*(StageKey(None, kind.name) for kind in STAGES), *captured]
    for override in overrides:
        if not any(override.matches(key) for key in keys):
            near = nearest(override.pattern, dict.fromkeys(key.stage for key in keys))
            raise UsageError(
                f"--bar {override}: no stage is called {clean(override.pattern, 60)}",
                hint=f"did you mean {clean(near)}?" if near else "as in 'ffn_*:rel_l2=1e-3'",
            )


def judge(metrics: Metrics, bars: Bars, key: StageKey) -> tuple[Exceeded, ...]:
    """Every bar that ``metrics`` exceed; a metric that is not a number exceeds its bar."""
    exceeded = []
    for metric, limit in bars.limits(key).items():
        value = _value_of(metrics, metric)
        if value is None:
            continue
        if metric in _AT_MOST:
            holds = value <= limit
        elif metric in _AT_LEAST:
            holds = value >= limit
        else:
            holds = abs(value - 1) <= limit
        if not holds:
            exceeded.append(Exceeded(metric, value, limit))
    return tuple(exceeded)


def _value_of(metrics: Metrics, metric: str) -> float | None:
    if metric in ("kl", "argmax_equal", "top5_overlap"):
        return None if metrics.logits is None else float(getattr(metrics.logits, metric))
    value = getattr(metrics, metric)
    return None if value is None else float(value)


# -- what is being compared ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Side:
    """The arithmetic of one capture as its manifest, or its plan, states it."""

    engine: str
    dtype: str
    digest: str
    types: Mapping[str, tuple[str, ...]]
    layers: int
    tokens: int
    rounds: bool


def choose_bars(a: TraceDir, b: TraceDir, overrides: Iterable[Override] = ()) -> Bars:
    """The bars for comparing two captures, by the table of docs/compare.md 3."""
    chosen = tuple(overrides)
    sides = [_side(trace) for trace in (a, b)]
    if sides[0] is None or sides[1] is None:
        silent = " and ".join(name for name, side in zip("AB", sides, strict=True) if side is None)
        verb = "has" if len(silent) == 1 else "have"
        reason = (
            f"unknown arithmetic ({silent} {verb} no manifest): one side may quantise activations"
        )
        return Bars(0.1, 0.4, reason, chosen)
    return _of_known(sides[0], sides[1], chosen)


def _of_known(a: _Side, b: _Side, overrides: tuple[Override, ...]) -> Bars:
    causes: list[tuple[float, str]] = []
    same_weights = bool(a.digest) and a.digest == b.digest
    if not same_weights and _matrices(a) != _matrices(b):
        floors = [_coarsest(side) for side in (a, b)]
        layers = max(a.layers, b.layers, 1)
        bar = math.hypot(floors[0][1], floors[1][1]) * math.sqrt(layers)
        names = " and ".join(f"{name} {floor:.2g}" for name, floor in floors)
        causes.append((bar, f"different quantisation: {names} in quadrature x sqrt({layers})"))
    for dtype, bar in (("bfloat16", 2e-2), ("float16", 3e-3)):
        if dtype in (a.dtype, b.dtype):
            causes.append((bar, f"{dtype} arithmetic rounds activations"))
    rounding = [side.engine for side in (a, b) if side.rounds]
    if rounding:
        causes.append((0.1, f"{clean(rounding[0])} quantises activations before each product"))
    if causes:
        causes.sort(reverse=True)
        weights = "the same header" if same_weights else "the same block types"
        known = "" if causes[0][1].startswith("different") else f"{weights}; "
        return Bars(
            causes[0][0], 4 * causes[0][0], known + "; ".join(t for _, t in causes), overrides
        )
    bar = _float32(max(a.tokens, b.tokens))
    what = "same model header" if same_weights else "same block types"
    long = f", more than {LONG_PROMPT} tokens" if bar > BAR else ""
    return Bars(bar, 10 * bar, f"{what}, both float32{long}", overrides)


def local_bars(tokens: int, overrides: tuple[Override, ...] = ()) -> Bars:
    """Those of a stage against the replay of its own inputs."""
    bar = _float32(tokens)
    return Bars(bar, 10 * bar, "local error", overrides)


def _float32(tokens: int) -> float:
    return LONG_BAR if tokens > LONG_PROMPT else BAR


def _side(trace: TraceDir) -> _Side | None:
    model, engine = _mapping(trace.stated.get("model")), _mapping(trace.stated.get("engine"))
    if not engine.get("name"):
        return None
    types = {
        str(role): (names,) if isinstance(names, str) else tuple(map(str, names))
        for role, names in _mapping(model.get("types")).items()
        if isinstance(names, (str, list))
    }
    name = str(engine["name"])
    quantised = any(kind != "F32" for kinds in types.values() for kind in kinds)
    stated = engine.get("activations")
    rounds = (
        stated not in ("exact", "float32")
        if isinstance(stated, str)
        else name in ROUNDS_ACTIVATIONS and (quantised or not types)
    )
    layers = _mapping(model.get("config")).get("num_layers")
    return _Side(
        name,
        str(engine.get("dtype", "float32")),
        str(model.get("digest", "")),
        types,
        layers if isinstance(layers, int) else 1,
        len(trace.token_ids or ()),
        rounds,
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _matrices(side: _Side) -> dict[str, frozenset[str]]:
    """Block types of the roles that are matrices; norms and biases are never quantised."""
    return {
        role: frozenset(kinds)
        for role, kinds in side.types.items()
        if not role.endswith(("norm", "bias", "freqs"))
    }


def _coarsest(side: _Side) -> tuple[str, float]:
    kinds = {kind for found in _matrices(side).values() for kind in found}
    floors = {kind: floor_of(kind) for kind in kinds}
    if not floors:
        return "unknown types", _FLOOR_BY_BITS[4]
    name = max(floors, key=lambda kind: (floors[kind], kind))
    return clean(name, 20), floors[name]


def floor_of(kind: str) -> float:
    """The rounding floor of a block type; by its bits where the table does not have it."""
    kind = kind.partition("+")[0]  # of an adapted weight its base's
    if kind in FLOORS:
        return FLOORS[kind]
    plain = re.fullmatch(r"(?:GPTQ|AWQ|MLX|CT)_(?:INT)?([2-8])", kind)
    if plain:
        return _PLAIN_ROUNDING[int(plain[1])]
    bits = re.search(r"Q([1-8])", kind)
    return _FLOOR_BY_BITS.get(int(bits[1]), 0.08) if bits else 0.08


def describe(exceeded: Iterable[Exceeded]) -> str:
    """``rel_l2 0.31 > 0.1`` for each bar that was exceeded."""
    signs = {**dict.fromkeys(_AT_MOST, ">"), **dict.fromkeys(_AT_LEAST, "<")}
    return ", ".join(
        f"{e.metric} {number(e.value, 3)} {signs.get(e.metric, 'off 1 by over')} {e.limit:g}"
        for e in exceeded
    )
