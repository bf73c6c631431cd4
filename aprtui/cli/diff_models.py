"""Two models compared on the command line: text, Markdown or JSON, and a line of progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from aprtui.cli.output import print_event, print_json
from aprtui.cli.status_line import StatusLine
from aprtui.compare.model_settings import Setting
from aprtui.compare.weight_results import SOUND, ModelComparison, ModelSide, TensorResult
from aprtui.compare.weights import Progress, diff_models
from aprtui.formats.summary import finite_json
from aprtui.text import clean, count, number, size

__all__ = ["run_models"]

EVERY_S = 0.1  # between two lines of progress
_Table = Callable[[Sequence[Sequence[str]], Sequence[str]], str]
_LIST = 20  # rows of a table before "and N more"
_OTHERWISE = {
    "differs": "Computed otherwise:",
    "slight": "No file says it, and numbers hardly feel it:",
}
_VERDICTS = {
    "pass": "the same model",
    "fail": "not the same model",
    "unmeasured": "not known to be the same: something is in one file only",
}


def run_models(
    a: Path,
    b: Path,
    *,
    as_json: bool = False,
    as_markdown: bool = False,
    as_events: bool = False,
    allow_unmeasured: bool = False,
    adapters: tuple[Path | None, Path | None] = (None, None),
) -> int:
    """Compare, print, and tell by the exit code: 0 the same but for rounding, 1 not."""
    with StatusLine() as tell:

        def progress(done: int, total: int, role: str) -> None:
            tell(f"{100 * done // max(total, 1)} % of {count(total)} weights, {role}")

        comparison = diff_models(a, b, _events() if as_events else progress, adapters)
    if as_events:
        said = finite_json(comparison.to_json(allow_unmeasured=allow_unmeasured))
        print_event("result", **said)
    elif as_json:
        print_json(comparison.to_json(allow_unmeasured=allow_unmeasured))
    else:
        print(_text(comparison, _markdown_table if as_markdown else _plain_table))
    return comparison.exit_code(allow_unmeasured=allow_unmeasured)


def _events() -> Progress:
    """Progress as JSON lines, ten a second at most, and the last one."""
    last = 0.0

    def progress(done: int, total: int, role: str) -> None:
        nonlocal last
        if done >= total or time.monotonic() - last >= EVERY_S:
            last = time.monotonic()
            print_event("progress", done=done, total=total, tensor=role)

    return progress


def _text(comparison: ModelComparison, table: _Table) -> str:
    found = ", ".join(f"{count(n)} {kind}" for kind, n in comparison.counts.items())
    verdict = _VERDICTS[comparison.verdict]
    if comparison.verdict == "pass" and comparison.counts.get("rounding"):
        verdict += ", but for the rounding of its formats"
    blank = "\n\n"
    bullet = "* " if table is _markdown_table else ""
    sides = (("A", comparison.a), ("B", comparison.b))
    head = "\n".join(f"{bullet}{_side(name, side)}" for name, side in sides)
    parts = [head, f"{comparison.verdict.upper()}: {verdict}"]
    parts += _otherwise(comparison, bullet)
    parts.append(f"tensors: {found}")
    parts += [f"{bullet}{clean(pattern, 300)}" for pattern in comparison.patterns]
    wrong = [result for result in comparison.tensors if result.kind not in SOUND]
    if wrong:
        parts.append("Tensors, the worst first:" + blank + _tensors(wrong, table))
    if comparison.settings:
        parts.append("Configuration and tokenizer:" + blank + _settings(comparison.settings, table))
    rounded = [result for result in comparison.tensors if result.kind == "rounding"]
    if rounded:
        parts.append(
            "Rounding, the largest of each pair of types:" + blank + _rounded(rounded, table)
        )
    for name, unused in (("A", comparison.unused_a), ("B", comparison.unused_b)):
        if unused:
            shown = ", ".join(f"{t.name} ({t.type})" for t in unused[:_LIST])
            more = f" and {count(len(unused) - _LIST)} more" if len(unused) > _LIST else ""
            parts.append(f"in {name}, without a part in the pass: {shown}{more}")
    if comparison.notes:
        parts.append("\n".join(f"{bullet}note: {note}" for note in comparison.notes))
    return blank.join(parts)


def _otherwise(comparison: ModelComparison, bullet: str) -> list[str]:
    """What the passes do otherwise, that which decides the verdict first."""
    found = []
    for kind, said in _OTHERWISE.items():
        lines = [clean(str(each), 300) for each in comparison.computation if each.kind == kind]
        more = [f"and {count(len(lines) - _LIST)} more (--json lists all)"] * (len(lines) > _LIST)
        lines = [f"{bullet or '  '}{line}" for line in (*lines[:_LIST], *more)]
        found += ["\n".join((said, *lines))] if lines else []
    return found


def _side(name: str, side: ModelSide) -> str:
    tied = ", tied head" if side.tied_head else ""
    return (
        f"{name}  {side.path}: {side.format}, {side.architecture}, {size(side.size_bytes)}, "
        f"{' '.join(side.types)}{tied}"
    )


def _tensors(results: Sequence[TensorResult], table: _Table) -> str:
    rows = []
    for result in results[:_LIST]:
        metrics = result.metrics
        look = result.looks_like
        looks = "" if look is None else look.text
        if look is not None and look.residual_rel_l2 is not None:
            looks += f" (residual {number(look.residual_rel_l2, 2)})"
        rows.append((
            str(result.role),
            result.kind,
            "" if metrics is None else number(metrics.rel_l2, 3),
            "" if result.limit is None else number(result.limit, 3),
            _types(result),
            "; ".join(text for text in (looks, result.message) if text),
        ))  # fmt: skip
    text = table(rows, ("tensor", "class", "rel_l2", "limit", "types", "looks like"))
    if len(results) > _LIST:
        text += f"\n\nand {count(len(results) - _LIST)} more (--json lists all)"
    return text


def _types(result: TensorResult) -> str:
    names = [side.type if side is not None else "none" for side in (result.a, result.b)]
    return names[0] if names[0] == names[1] else f"{names[0]} / {names[1]}"


def _settings(settings: Iterable[Setting], table: _Table) -> str:
    rows = [(s.key, s.kind, s.a, s.b, s.message) for s in settings]
    return table(rows, ("key", "class", "A", "B", "where"))


def _rounded(results: Iterable[TensorResult], table: _Table) -> str:
    worst: dict[str, list[TensorResult]] = {}
    for result in results:  # sorted by damage: the first of a pair of types is its largest
        worst.setdefault(_types(result), []).append(result)
    rows = [
        (types, count(len(found)), number(found[0].metrics.rel_l2, 3) if found[0].metrics else "",
         number(found[0].limit or 0.0, 3), str(found[0].role))
        for types, found in worst.items()
    ]  # fmt: skip
    return table(rows, ("types", "tensors", "rel_l2", "limit", "of"))


def _plain_table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    cells = [[clean(cell, 160) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[place]) for row in cells) for place in range(len(header))]
    return "\n".join(
        "  "
        + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )


def _markdown_table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in row)} |" for row in lines)


def _cell(text: str) -> str:
    """Text that no Markdown reads as markup."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>|" else c for c in clean(text, 160))
