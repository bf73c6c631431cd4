"""What stands beside the grid: a pair's class and metrics, its worst elements, its layers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from aprtui.compare.bars import Bars
from aprtui.compare.logits import TopLogits
from aprtui.compare.metrics import Metrics
from aprtui.compare.pairs import FAILED, UNMEASURED, PairResult
from aprtui.formats.tracedir import StageKey
from aprtui.text import clean, count, number
from aprtui.tui.bisected import Finding
from aprtui.tui.screens.diff_text import near_one, place
from aprtui.tui.widgets.bars import bar
from aprtui.tui.widgets.blocks import Block, Line, named, wrapped
from aprtui.tui.widgets.drift_chart import Drift
from aprtui.tui.widgets.lines import fit, right

__all__ = ["finding_block", "layers_block", "pair_blocks", "top_block"]


def pair_blocks(result: PairResult, bars: Bars | None, width: int) -> list[Block]:
    """The class in words with the metrics, then the worst elements."""
    failed = result.kind in FAILED
    tone = "bad" if failed else "dim" if result.kind in UNMEASURED else "good"
    verdict: Block = [[(result.kind, tone)]]
    if result.message:
        verdict = wrapped(clean(result.message, 300), "", width, f"{result.kind}  ")
        verdict[0][0] = (f"{result.kind}  ", tone)
    m = result.metrics
    if m is None:
        return [verdict]
    shape = wrapped(_shape(result, m), "", width, f"{'shape':<11}")
    return [verdict + _metrics_block(result, m, bars) + shape, _worst_block(result, m, width)]


def _metrics_block(result: PairResult, m: Metrics, bars: Bars | None) -> Block:
    limits = bars.limits(result.key) if bars is not None else {}
    where = f" at {result.worst_place}" if m.worst_row is not None else ""
    rows = [
        ("NaN", f"{m.nan_a} in A, {m.nan_b} in B" if m.nan_a or m.nan_b else "", ""),
        ("Inf", f"{m.inf_a} in A, {m.inf_b} in B" if m.inf_a or m.inf_b else "", ""),
        ("ids", f"{m.mismatches} differ" if m.mismatches else "", ""),
        ("rel_l2", number(m.rel_l2), "rel_l2"),
        ("worst row", number(m.worst_row_rel_l2) + where, "worst_row_rel_l2"),
        ("max_abs", f"{number(m.max_abs)} at {place(result, m)}", "max_abs"),
        ("rms", number(m.rms), "rms"),
        ("cosine", near_one(m.cosine), "cosine"),
        ("scale", number(m.scale, 6), "scale"),
        ("std B/A", number(m.std_ratio, 6), "std_ratio"),
        ("mean", f"{number(m.mean_a, 3)} → {number(m.mean_b, 3)}", ""),
        ("std", f"{number(m.std_a, 3)} → {number(m.std_b, 3)}", ""),
    ]  # fmt: skip
    beyond = {entry.metric for entry in result.exceeded}
    block: Block = []
    for name, text, metric in rows:
        if not text:
            continue
        line: Line = [(f"{name:<11}", "head"), (text, "")]
        if metric in limits:
            line.append((f"  bar {limits[metric]:g}", "bad" if metric in beyond else "dim"))
        block.append(line)
    return block


def _shape(result: PairResult, m: Metrics) -> str:
    if not result.shape:
        return f"{count(m.count)} flat"
    axes = result.axes or ("",) * len(result.shape)
    parts = zip(result.shape, axes, strict=False)
    return " x ".join(f"{size} {clean(axis, 12)}".rstrip() for size, axis in parts)


def _worst_block(result: PairResult, m: Metrics, width: int) -> Block:
    """The elements that are furthest apart."""
    worst = [element for element in m.top if element.abs_diff != 0]
    if not worst:
        return []
    names = [",".join(map(str, result.standing(e.at) or (e.index,))) for e in worst]
    lead = max(8, *map(len, names)) + 1
    cell = max(8, min(11, (width - lead) // 3))
    lines: Block = [[(fit("worst at", lead), "head"), (right("A", cell), "a"),
                     (right("B", cell), "b"), (right("d", cell), "d")]]  # fmt: skip
    for name, e in zip(names, worst, strict=True):
        values = (("a", e.a), ("b", e.b), ("d", e.b - e.a))
        lines.append(
            [
                (fit(name, lead), ""),
                *((right(_short(v, cell - 1), cell), style) for style, v in values),
            ]
        )
    return lines


def _short(value: float, cells: int) -> str:
    """The number with as many digits as fit."""
    texts = (number(value, digits) for digits in (4, 3, 2))
    return next((text for text in texts if len(text) <= cells), number(value, 1))


def finding_block(finding: Finding, tone: str, width: int) -> Block:
    """What the replay found of the stage."""
    block: Block = [[(finding.kind, tone)]]
    for name, text in ((name, text) for name, text in finding.lines if text):
        block += wrapped(text, "", width, f"{name:<12}" if name else "")
    return block


def top_block(a: Sequence[TopLogits], b: Sequence[TopLogits], result: PairResult) -> Block:
    """The tokens that each side finds likeliest, and what that means for the next one."""
    heads = (("A", "a"), ("p", "dim"), ("B", "b"), ("p", "dim"))
    lines: Block = [
        [(fit(f"top {len(a)}", 8), "head"), *((right(name, 7), tone) for name, tone in heads)]
    ]
    for left, other in zip(a, b, strict=False):
        lines.append([
            (" " * 8, ""), (right(str(left.token), 7), ""),
            (right(number(left.probability, 2), 7), "dim"),
            (right(str(other.token), 7), "" if left.token == other.token else "bad"),
            (right(number(other.probability, 2), 7), "dim"),
        ])  # fmt: skip
    logits = result.metrics.logits if result.metrics else None
    if logits is not None:
        same = "the same token" if logits.argmax_equal else "another token"
        lines += named([
            ("next", f"{logits.argmax_a} → {logits.argmax_b}, {same}"),
            ("shared", f"{logits.top5_overlap} of the top 5"),
            ("KL", f"{number(logits.kl, 3)} nats"),
            ("margin", f"{number(logits.margin_a, 3)} → {number(logits.margin_b, 3)}"),
        ])  # fmt: skip
    return lines


def layers_block(
    key: StageKey, drifts: Iterable[Drift], width: int, lines: int, what: str
) -> Block:
    """The same stage (or weight) in every layer; as many around it as ``lines`` have room for."""
    rows = [
        drift for drift in drifts if drift.key.stage == key.stage and drift.key.layer is not None
    ]
    if len(rows) < 2 or lines < 3:
        return []
    room = lines - 1
    here = next((n for n, drift in enumerate(rows) if drift.key == key), 0)
    first = max(0, min(here - room // 2, len(rows) - room))
    block: Block = [[(fit(f"{what} of {clean(key.stage, 40)} by layer", width), "head")]]
    for drift in rows[first : first + room]:
        value, bar_width = drift.value, width - 17
        text = drift.sign if value is None else number(value, 3)
        if value == math.inf:
            text = {"N": "NaN or Inf", "x": "shape", "#": "damaged"}.get(drift.sign, "infinite")
        share = 0.0 if not value else (math.log10(min(value, 10.0)) + 8) / 9
        block.append([
            (f"{drift.key.layer:>4} ", "accent" if drift.key == key else "dim"),
            (bar(share, bar_width), drift.style), (right(text, 11), ""),
        ])  # fmt: skip
    return block
