"""The words and signs of the Diff screen: cells of its grid, lines of its list."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

from aprtui.compare.metrics import Metrics
from aprtui.compare.pairs import FAILED, PASSED, UNMEASURED, PairResult
from aprtui.formats.tracedir import StageKey
from aprtui.text import clean, cosine_text, number
from aprtui.tui.widgets.drift_chart import Drift
from aprtui.tui.widgets.lines import Part, fit, right

__all__ = ["TABLE_HEAD", "drift_of", "in_short", "legend", "level_of", "metric_value", "near_one",
           "place", "row_head", "row_of", "sign_of", "table_row", "words_of",
           "worst_first"]  # fmt: skip

TABLE_HEAD = ("layer", "stage", "class", "rel_l2", "worst_row_rel_l2", "max_abs", "rms", "cosine",
              "scale", "max_abs_at", "message")  # fmt: skip
_TAIL = 45  # cells of a line of the list behind the stage's name
# The list's order of classes: what fails first; what was not measured is no score, and apart.
_RANKS = {kind: n for n, kind in enumerate(("nonfinite", "shape", "unreadable", "differs",
                                            "within", "equal"))}  # fmt: skip

_LEVELS = "▁▂▃▄▅▆▇█"
_LEGEND: tuple[tuple[str, tuple[Part, ...]], ...] = (
    ("*", (("*", "bad"), (" culprit  ", "dim"))),
    (_LEVELS, (("▂", "good"), (" 1e-6  ", "dim"), ("▄", "good"), (" 1e-4  ", "dim"),
               ("█", "good"), (" 1  ", "dim"))),
    ("=", (("=", ""), (" equal  ", "dim"))),
    ("!", (("!", "bad"), (" beyond  ", "dim"))),
    ("▶", (("▶", "bad"), (" first  ", "dim"))),
    ("?", (("?", ""), (" unmeasured  ", "dim"))),
    ("N", (("N", "bad"), (" NaN  ", "dim"))),
    ("x", (("x", "bad"), (" shape  ", "dim"))),
    ("#", (("#", "bad"), (" damaged  ", "dim"))),
    ("·", (("·", ""), (" not measured yet  ", "dim"))),
)  # fmt: skip


def legend(signs: Iterable[str]) -> list[Part]:
    """What those of the signs mean that are there: the line would not hold all."""
    there = set("".join(signs))
    entries = (parts for any_of, parts in _LEGEND if not there.isdisjoint(any_of))
    return [(" ", ""), *chain.from_iterable(entries)]


def metric_value(metrics: Metrics, metric: str) -> float:
    """A distance: 1 - cosine for the cosine, the metric itself for the others."""
    return 1.0 - metrics.cosine if metric == "cosine" else float(getattr(metrics, metric))


def sign_of(result: PairResult | None, metric: str, first: bool) -> Part:
    """Two characters and a style: a mark for what fails, and how large the difference is."""
    if result is None:
        return "·", "dim"
    if result.kind in UNMEASURED:
        return "?", "dim"
    mark = "▶" if first else "!"
    if result.kind in ("shape", "unreadable"):
        return mark + ("x" if result.kind == "shape" else "#"), "bad"
    if result.kind == "nonfinite" or result.metrics is None:
        return f"{mark}N", "bad"
    if result.kind == "equal":
        return "=", "dim"
    level = level_of(metric_value(result.metrics, metric))
    return (mark + level, "bad") if result.kind == "differs" else (level, "good")


def level_of(value: float) -> str:
    """One of eight heights, one for each power of ten from 1e-6 to 1."""
    if not math.isfinite(value):
        return "█"
    if value <= 0.0:
        return "="
    return _LEVELS[max(0, min(7, math.floor(math.log10(value)) + 7))]


def drift_of(key: StageKey, result: PairResult | None, metric: str) -> Drift:
    """The pair's column in the chart; what fails without a number stands to the top."""
    sign, style = sign_of(result, metric, False)
    if result is None or result.kind in UNMEASURED:
        return Drift(key, None, style, sign)
    failed = result.kind in FAILED
    if result.metrics is None or result.kind == "nonfinite":
        return Drift(key, math.inf, style, sign[-1])
    return Drift(key, metric_value(result.metrics, metric), "bad" if failed else "good")


# -- the list --------------------------------------------------------------------------------------


def words_of(result: PairResult | None) -> str:
    """What a filter finds of a pair: its class, and the class's class."""
    if result is None:
        return "waiting"
    group = {**dict.fromkeys(UNMEASURED, "unmeasured"), **dict.fromkeys(FAILED, "beyond")}
    return f"{result.kind} {group.get(result.kind, 'passed')}"


def times_bar(result: PairResult) -> float:
    """How many times its bar a pair is, by the bar that it exceeds most; 0 where it holds all."""
    return max((e.value / e.limit if e.limit else math.inf for e in result.exceeded), default=0.0)


def worst_first(
    keys: Sequence[StageKey], results: Mapping[StageKey, PairResult], metric: str
) -> list[StageKey | str]:
    """Classes first; those that differ by rel_l2's bars or by the chosen metric; unmeasured apart.

    Where a pair stands among its equals is its place in order of computation.
    """
    measured: list[StageKey] = []
    apart: list[StageKey] = []
    waiting: list[StageKey] = []
    for key in keys:
        result = results.get(key)
        kind = "" if result is None else result.kind
        (waiting if not kind else apart if kind in UNMEASURED else measured).append(key)

    def badness(key: StageKey) -> tuple[int, float]:
        result = results[key]
        if result.metrics is None:
            return _RANKS[result.kind], 0.0
        by_bar = metric == "rel_l2" and result.kind == "differs"
        value = times_bar(result) if by_bar else metric_value(result.metrics, metric)
        return _RANKS[result.kind], -value if value == value else -math.inf

    rows: list[StageKey | str] = [*sorted(measured, key=badness)]
    if apart:
        rows += [f"unmeasured {len(apart)}: nothing is known of these", *apart]
    if waiting:
        rows += [f"waiting {len(waiting)}", *waiting]
    return rows


def row_head(metric: str, width: int) -> list[Part]:
    """The head of the list."""
    name = "1 - cosine" if metric == "cosine" else metric
    return [(fit("    layer  stage", width - _TAIL) + fit("class", 11) + right(name, 10)
             + right("x bar", 8) + "  worst at", "head")]  # fmt: skip


def row_of(
    key: StageKey, result: PairResult | None, metric: str, sign: Part, width: int
) -> list[Part]:
    """Sign, layer, stage, class, the metric, how many times its bar, and where it is worst."""
    layer = "end" if key.layer is None else str(key.layer)
    kind = "" if result is None else result.kind
    tone = "bad" if kind in FAILED else "good" if kind in PASSED else "dim"
    parts = [
        (f" {sign[0]:>2} ", sign[1]),
        (right(layer, 5) + "  " + fit(clean(key.stage, 60), width - _TAIL - 12) + " ", ""),
        (fit(kind, 11), tone),
    ]
    metrics = None if result is None else result.metrics
    if result is None or metrics is None or kind == "nonfinite":
        return [*parts, (clean(result.message, 200) if result else "", "dim")]
    times = times_bar(result)
    return [*parts, (right(number(metric_value(metrics, metric), 3), 10), ""),
            (right(number(times, 2) if times else "", 8), "bad"),
            (f"  {place(result, metrics)}", "")]  # fmt: skip


def near_one(cosine: float) -> str:
    """A cosine by what it lacks of 1, which alone tells good ones apart."""
    return "1" if cosine == 1.0 else f"1 - {number(1.0 - cosine, 3)}"


def place(result: PairResult, metrics: Metrics) -> str:
    """Where the largest difference is."""
    at = result.standing(metrics.max_abs_at) or (metrics.max_abs_index,)
    return "(" + ", ".join(map(str, at)) + ")"


def table_row(key: StageKey, result: PairResult | None) -> tuple[str, ...]:
    """The pair as a line of a .csv file; TABLE_HEAD names its fields."""
    first = ("" if key.layer is None else str(key.layer), clean(key.stage))
    if result is None or result.metrics is None:
        return (*first, result.kind if result else "", *[""] * (len(TABLE_HEAD) - 4),
                clean(result.message, 500) if result else "")  # fmt: skip
    m = result.metrics
    numbers = (m.rel_l2, m.worst_row_rel_l2, m.max_abs, m.rms, m.cosine, m.scale)
    known = [repr(value) for value in numbers]
    return (*first, result.kind, *known, place(result, m), result.message)


def in_short(key: StageKey, result: PairResult) -> str:
    """The pair in one line, to be pasted somewhere."""
    text = f"{clean(str(key))} {result.kind}"
    m = result.metrics
    if m is not None:
        worst = f"worst_row {number(m.worst_row_rel_l2)} max_abs {number(m.max_abs)}"
        text += f" rel_l2 {number(m.rel_l2)} {worst}"
        text += f" at {place(result, m)} cosine {cosine_text(m.cosine, 9)}"
    return f"{text} {result.message}".rstrip()
