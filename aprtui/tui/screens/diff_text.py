"""The words and signs of the Diff screen: a cell of its grid, the legend, one pair in numbers."""

from __future__ import annotations

import math

from textual.content import Content

from aprtui.compare.metrics import Metrics
from aprtui.compare.pairs import FAILED, UNMEASURED, PairResult
from aprtui.text import clean, count, number
from aprtui.tui.widgets.lines import Part

__all__ = ["legend", "level_of", "pair_content", "sign_of"]


def metric_value(metrics: Metrics, metric: str) -> float:
    """A distance: 1 - cosine for the cosine, the metric itself for the others."""
    return 1.0 - metrics.cosine if metric == "cosine" else float(getattr(metrics, metric))


def sign_of(result: PairResult, metric: str, first: bool) -> Part:
    """Two characters and a style: a mark for what fails, and how large the difference is."""
    if result.kind in UNMEASURED:
        return "?", "dim"
    if result.kind in ("shape", "unreadable"):
        return ("▶" if first else "!") + ("x" if result.kind == "shape" else "#"), "bad"
    if result.kind == "nonfinite" or result.metrics is None:
        return ("▶N" if first else "!N"), "bad"
    if result.kind == "equal":
        return "=", "dim"
    level = level_of(metric_value(result.metrics, metric))
    if result.kind == "differs":
        return ("▶" if first else "!") + level, "bad"
    return level, "good"


def level_of(value: float) -> str:
    """One of eight heights, one for each power of ten from 1e-6 to 1."""
    if not math.isfinite(value):
        return "█"
    if value <= 0.0:
        return "="
    return "▁▂▃▄▅▆▇█"[max(0, min(7, math.floor(math.log10(value)) + 7))]


def legend() -> Content:
    """What the signs mean."""
    steps = (("▂", "1e-6"), ("▄", "1e-4"), ("█", "1"))
    parts: list[Content] = [Content(" ")]
    for sign, text in steps:
        parts += [Content.styled(sign, "$text-success"), Content.styled(f" {text}  ", "dim")]
    signs = (("=", "equal", "dim"), ("!", "beyond", "bold $text-error"),
             ("▶", "first", "bold $text-error"), ("N", "NaN", "bold $text-error"),
             ("x", "shape", "bold $text-error"), ("?", "missing", "dim"))  # fmt: skip
    for sign, text, style in signs:
        parts += [Content.styled(sign, style), Content.styled(f" {text}  ", "dim")]
    return Content.assemble(*parts)


def pair_content(result: PairResult) -> Content:
    """The metrics of one pair, and its class in words."""
    failed = result.kind in FAILED
    tone = (
        "bold $text-error"
        if failed
        else "dim"
        if result.kind in UNMEASURED
        else "bold $text-success"
    )
    lines = [Content.assemble((result.kind, tone), (f"  {clean(result.message, 300)}", ""))]
    m = result.metrics
    if m is None:
        return lines[0]
    shape = "x".join(map(str, result.shape)) if result.shape else f"{count(m.count)} flat"
    rows = [
        ("rel_l2", number(m.rel_l2)), ("max_abs", f"{number(m.max_abs)} at {place(m)}"),
        ("rms", number(m.rms)), ("cosine", f"1 - {number(1 - m.cosine, 3)}"),
        ("worst row", f"{number(m.worst_row_rel_l2)}"
         + (f" at {m.worst_row}" if m.worst_row is not None else "")),
        ("scale", number(m.scale, 6)), ("std B/A", number(m.std_ratio, 6)),
        ("mean", f"{number(m.mean_a, 3)} → {number(m.mean_b, 3)}"),
        ("NaN", f"{m.nan_a} → {m.nan_b}" if m.nan_a or m.nan_b else ""),
        ("Inf", f"{m.inf_a} → {m.inf_b}" if m.inf_a or m.inf_b else ""),
        ("ids", f"{m.mismatches} differ" if m.mismatches else ""),
        ("shape", shape),
    ]  # fmt: skip
    if m.logits is not None:
        rows.append(("argmax", f"{m.logits.argmax_a} → {m.logits.argmax_b}"))
        rows.append(("top 5", f"{m.logits.top5_overlap} shared · KL {number(m.logits.kl, 3)}"))
    lines += [
        Content.assemble((f"{name:<10}", "$text-primary"), value) for name, value in rows if value
    ]
    return Content("\n").join(lines)


def place(metrics: Metrics) -> str:
    """Where the largest difference is."""
    at = metrics.max_abs_at or (metrics.max_abs_index,)
    return "(" + ", ".join(map(str, at)) + ")"
