"""A comparison for people: plain text with a grid, or Markdown for an issue."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from aprtui.compare.diff import Comparison, Side
from aprtui.compare.pairs import FAILED, PASSED, PairResult
from aprtui.formats.tracedir import StageKey
from aprtui.graph.vocabulary import order_of, short_name
from aprtui.text import clean, cosine_text, count, number, quoted

__all__ = ["MARKS", "escaped", "markdown", "next_step", "plain", "plain_pair", "side_text"]

MARKS = {
    "equal": "=",
    "within": ".",
    "differs": "X",
    "nonfinite": "N",
    "shape": "#",
    "unreadable": "?",
    "missing-a": "a",
    "missing-b": "b",
}
_LIST = 20  # rows of a list before "and N more"
_WORST = 5
_WHY = 20  # characters of a reason that should at least be seen


def plain(comparison: Comparison, width: int | None = None) -> str:
    """The whole comparison: sides, bars, verdict, grid, what fails, the worst offenders.

    Tables leave columns out that a terminal of ``width`` has no room for.
    """
    parts = [_head(comparison), _grid(comparison.results, width), _legend(comparison.counts)]
    bad = [result for result in comparison.results if result.kind not in PASSED]
    if bad:
        parts.append("Not passed, in order of computation:\n" + _table(bad[:_LIST], width))
        if len(bad) > _LIST:
            parts[-1] += f"\n  and {count(len(bad) - _LIST)} more (--json or --markdown lists all)"
    worst = _worst(comparison.results)
    if worst:
        parts.append("Largest rel_l2:\n" + _table(worst, width))
    parts.append(_logits(comparison.results))
    parts.append(next_step(comparison))
    return "\n\n".join(part for part in parts if part)


def _head(comparison: Comparison) -> str:
    lines = [
        f"A  {side_text(comparison.a)}",
        f"B  {side_text(comparison.b)}",
        f"bar: {comparison.bars}",
    ]
    lines += [f"note: {clean(note, 500)}" for note in comparison.notes]
    lines.append(f"\n{comparison.headline}")
    return "\n".join(lines)


def next_step(comparison: Comparison) -> str:
    """The command that answers what a comparison of two traces leaves open, if it does."""
    if comparison.first_divergence is not None:
        why = "which stage computes wrongly, and how"
    elif comparison.may_hide:
        why = "whether a small fault hides below the bar"
    else:
        return ""
    known = comparison.a.model or comparison.b.model
    sides = f"{quoted(comparison.a.path)} {quoted(comparison.b.path)}"
    return f"{why}: aprtui bisect {sides}{'' if known else ' --model MODEL'}"


def side_text(side: Side) -> str:
    words = [side.path, side.status, f"{count(side.files)} files" if side.status != "file" else ""]
    words += [f"{count(side.tokens)} tokens" if side.tokens is not None else "", side.engine]
    return " · ".join(word for word in words if word)


def _grid(results: Sequence[PairResult], width: int | None) -> str:
    """Layers down, stages across in order of computation, one mark a pair; blank where a layer has
    no such stage. Columns that ``width`` has no room for stand below."""
    marks = {result.key: MARKS[result.kind] for result in results}
    layers = sorted({key.layer for key in marks if key.layer is not None})
    stages = sorted({key.stage for key in marks if key.layer is not None}, key=_in_layer)
    lines: list[str] = []
    for heads in _side_by_side([clean(short_name(stage), 60) for stage in stages], width):
        here, stages = stages[: len(heads)], stages[len(heads) :]
        lines += [""] if lines else []
        lines.append(f"layer  {' '.join(f'{head:<3}' for head in heads)}".rstrip())
        for layer in layers:
            cells = (
                f"{marks.get(StageKey(layer, stage), ''):<{max(3, len(head))}}"
                for stage, head in zip(here, heads, strict=True)
            )
            lines.append(f"{layer:>5}  {' '.join(cells)}".rstrip())
    ends = sorted((key for key in marks if key.layer is None), key=order_of)
    if ends:
        told = "  ".join(f"{clean(key.stage)} {marks[key]}" for key in ends)
        lines.append(f"model  {told}")
    return "\n".join(lines)


def _side_by_side(heads: Sequence[str], width: int | None) -> list[list[str]]:
    """The heads of the columns in as many rows as it takes; one where there is no width."""
    rows: list[list[str]] = []
    room = 0
    for head in heads:
        taken = max(3, len(head)) + 1
        if not rows or (width is not None and taken > room):
            rows.append([])
            room = (width or 0) - len("layer ")
        rows[-1].append(head)
        room -= taken
    return rows


def _in_layer(stage: str) -> tuple[int, int, str]:
    return order_of(StageKey(0, stage))


def _legend(counts: dict[str, int]) -> str:
    return "  ".join(f"{MARKS[kind]} {kind}" for kind in counts)


def _columns(result: PairResult) -> list[str]:
    metrics = result.metrics
    if metrics is None:
        return [str(result.key), result.kind, "", "", "", "", "", clean(result.message, 120)]
    at = ",".join(map(str, metrics.max_abs_at)) or str(metrics.max_abs_index)
    row = "" if metrics.worst_row is None else f" @{result.worst_place}"
    return [
        str(result.key),
        result.kind,
        f"{number(metrics.max_abs, 3)} @{at}",
        number(metrics.rms, 3),
        cosine_text(metrics.cosine),
        number(metrics.rel_l2, 3),
        f"{number(metrics.worst_row_rel_l2, 3)}{row}",
        clean(result.message, 120),
    ]


_HEADS = ["stage", "class", "max_abs @index", "rms", "cosine", "rel_l2", "worst row", "why"]
_SPARED = ["rms", "cosine", "max_abs @index", "worst row"]  # the first to go where room is short


def _table(results: Iterable[PairResult], width: int | None) -> str:
    rows = [_HEADS, *(_columns(result) for result in results)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    shown = dict(enumerate(widths[:-1]))  # all but why, which comes last and may be cut
    for name in _SPARED:
        if width is not None and 2 + sum(w + 2 for w in shown.values()) + _WHY > width:
            del shown[_HEADS.index(name)]
    lines = []
    for row in rows:
        line = "  " + "".join(f"{row[i]:<{w}}  " for i, w in shown.items()) + row[-1]
        lines.append((line if width is None else clean(line, width - 1)).rstrip())
    return "\n".join(lines)


def _worst(results: Iterable[PairResult]) -> list[PairResult]:
    measured = [r for r in results if r.metrics is not None and r.metrics.rel_l2 > 0]
    measured.sort(key=lambda r: (-(r.metrics.rel_l2 if r.metrics else 0.0), order_of(r.key)))
    return measured[:_WORST]


def _logits(results: Iterable[PairResult]) -> str:
    for result in results:
        found = result.metrics.logits if result.metrics is not None else None
        if found is not None:
            same = "the same" if found.argmax_equal else "another"
            return (
                f"next token: {same} (A {found.argmax_a}, B {found.argmax_b}), "
                f"{found.top5_overlap} of the top 5 shared, KL {number(found.kl, 3)}, "
                f"margins {number(found.margin_a, 3)} and {number(found.margin_b, 3)}"
            )
    return ""


def plain_pair(comparison: Comparison) -> str:
    """Two stage files: class, every metric, the largest differences."""
    result = comparison.results[0]
    lines = [f"A  {comparison.a.path}", f"B  {comparison.b.path}", f"bar: {comparison.bars}"]
    lines += [f"note: {clean(note, 500)}" for note in comparison.notes]
    message = f": {clean(result.message, 300)}" if result.message else ""
    lines.append(f"\n{result.key}: {result.kind}{message}")
    metrics = result.metrics
    if metrics is None:
        return "\n".join(lines)
    place = _place(result.axes, metrics.max_abs_at)
    row = "" if metrics.worst_row is None else f" at position {result.worst_place}"
    lines += [
        f"  values     {count(metrics.count)}"
        + (f" {list(result.shape)}" if result.shape is not None else ""),
        f"  max_abs    {number(metrics.max_abs, 6)} at {metrics.max_abs_index}{place}",
        f"  rms        {number(metrics.rms, 6)}",
        f"  rel_l2     {number(metrics.rel_l2, 6)}",
        f"  worst row  {number(metrics.worst_row_rel_l2, 6)}{row}",
        f"  cosine     {cosine_text(metrics.cosine, 9)}",
        f"  scale      {number(metrics.scale, 6)}",
        f"  std        A {number(metrics.std_a)}, B {number(metrics.std_b)}, "
        f"ratio {number(metrics.std_ratio, 6)}",
        f"  mean       A {number(metrics.mean_a)}, B {number(metrics.mean_b)}",
        f"  NaN, Inf   A {metrics.nan_a}, {metrics.inf_a}; B {metrics.nan_b}, {metrics.inf_b}",
    ]
    logits = _logits([result])
    lines += [f"  {logits}"] if logits else []
    if metrics.top:
        lines.append("\nLargest differences:")
    for element in metrics.top:
        lines.append(
            f"  {element.index:>10}{_place(result.axes, element.at)}  "
            f"A {number(element.a, 7)}  B {number(element.b, 7)}  "
            f"abs {number(element.abs_diff, 4)}"
        )
    return "\n".join(lines)


def _place(axes: Sequence[str] | None, at: Sequence[int]) -> str:
    named = [f"{axis} {i}" for axis, i in zip(axes or (), at, strict=False)]
    return f" ({', '.join(named)})" if named else ""


def markdown(comparison: Comparison) -> str:
    """For an issue: the verdict first, the failing pairs, then every pair folded away."""
    lines = [
        f"**{escaped(comparison.headline)}**",
        "",
        f"* A: {escaped(side_text(comparison.a))}",
        f"* B: {escaped(side_text(comparison.b))}",
        f"* bar: {escaped(str(comparison.bars))}",
        *(f"* {escaped(step)}" for step in (next_step(comparison),) if step),
        *(f"* note: {escaped(clean(note, 500))}" for note in comparison.notes),
        "",
    ]
    bad = [r for r in comparison.results if r.kind in FAILED]
    if bad:
        lines += [*_markdown_table(bad[:_LIST]), ""]
    lines += ["<details><summary>every pair, in order of computation</summary>", ""]
    lines += [*_markdown_table(comparison.results), "", "</details>"]
    return "\n".join(lines)


def _markdown_table(results: Iterable[PairResult]) -> list[str]:
    rows = [_HEADS, ["---"] * len(_HEADS), *(_columns(result) for result in results)]
    return ["| " + " | ".join(escaped(cell) for cell in row) + " |" for row in rows]


def escaped(text: str) -> str:
    for character in "\\|<>*_`[]":
        if character != "_":
            text = text.replace(character, "\\" + character)
    return text
