"""`aprtui diff A B C ...`: traces against the first as a matrix, in text, Markdown or JSON."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from aprtui import api
from aprtui.cli.diff_text import MARKS, escaped, next_step, side_text
from aprtui.cli.output import print_json
from aprtui.cli.status_line import values_compared
from aprtui.compare.matrix import Matrix
from aprtui.compare.pairs import FAILED, PASSED, PairResult
from aprtui.errors import UsageError
from aprtui.formats.tracedir import StageKey
from aprtui.model.open import is_model_path
from aprtui.text import clean, count, number

__all__ = ["markdown", "plain", "run_many"]

_LIST = 20  # rows of the table before "and N more"
_LEAST = 12  # cells of a column
_NAME = 26  # of the stage's


def run_many(args: argparse.Namespace) -> int:
    """Compare, print, and tell by the exit code."""
    paths: list[Path] = [args.a, args.b, *args.more]
    if args.save is not None or args.judge is not None or args.adapter_a or args.adapter_b:
        raise UsageError("many traces take no --save, --judge and --adapter", hint="--json keeps")
    model = next((path for path in paths if path.is_file() or is_model_path(path)), None)
    if model is not None:
        raise UsageError(
            f"{clean(str(model))}: no trace folder, and a matrix is made of these",
            hint="two stage files, or two models, are compared by themselves",
        )
    with values_compared() as progress:
        found = api.diff_many(
            *paths,
            model=args.model,
            stages=args.stages,
            layers=args.layers,
            bars=args.bar,
            positions=args.positions,
            ignore_tokens=args.ignore_tokens,
            top=args.top,
            progress=progress,
        )
    if args.json:
        print_json(found.to_json(allow_unmeasured=args.allow_unmeasured))
    elif args.markdown:
        print(markdown(found))
    else:
        print(plain(found, shutil.get_terminal_size().columns if sys.stdout.isatty() else None))
    return found.exit_code(allow_unmeasured=args.allow_unmeasured)


def plain(matrix: Matrix, width: int | None = None) -> str:
    """The verdict, a line a trace, the stages that do not pass everywhere, what to do next.

    Of a terminal that is ``width`` wide the last columns are left out, and a line says so.
    """
    parts = [_head(matrix), _columns(matrix), _table(matrix, width), _next(matrix)]
    return "\n\n".join(part for part in parts if part)


def _head(matrix: Matrix) -> str:
    lines = []
    if matrix.one_reference:
        lines.append(f"A  {side_text(matrix.columns[0].a)}")
    for bar in dict.fromkeys(str(column.bars) for column in matrix.columns):
        of = [
            str(n) for n, column in enumerate(matrix.columns, 1) if str(column.bars) == bar
        ]  # fmt: skip
        which = "" if len(of) == len(matrix.columns) else f" of {', '.join(of)}"
        lines.append(f"bar{which}: {bar}")
    for note in dict.fromkeys(note for column in matrix.columns for note in column.notes):
        lines.append(f"note: {clean(note, 500)}")
    return "\n".join([*lines, f"\n{matrix.headline}"])


def _columns(matrix: Matrix) -> str:
    """Each trace: its number above its column, its name, what it comes to."""
    wide = max(map(len, matrix.labels))
    lines = []
    for place, (label, column) in enumerate(zip(matrix.labels, matrix.columns, strict=True), 1):
        lines.append(f"{place:>3}  {label:<{wide}}  {clean(column.headline, 300)}")
        if not matrix.one_reference:
            lines.append(f"     {'':<{wide}}  {column.a.path} against {column.b.path}")
    return "\n".join(lines)


def _open_rows(matrix: Matrix) -> list[StageKey]:
    """The stages that do not pass everywhere."""
    return [
        key
        for key in matrix.rows
        if any(key in cells and cells[key].kind not in PASSED for cells in matrix.cells)
    ]


def _table(matrix: Matrix, width: int | None) -> str:
    rows = _open_rows(matrix)
    if not rows:
        return ""
    shown = len(matrix.columns)
    if width is not None:
        shown = max(1, min(shown, (width - 2 - _NAME) // _LEAST))
    firsts = [column.first_divergence for column in matrix.columns]
    lines = [
        "Not passed everywhere, in order of computation (rel_l2; > where a column first differs):",
        f"  {'stage':<{_NAME}}" + "".join(f"{n:<{_LEAST}}" for n in range(1, shown + 1)).rstrip(),
    ]
    for key in rows[:_LIST]:
        cells = (
            _cell(key, matrix.cells[n], firsts[n]) for n in range(shown)
        )  # fmt: skip
        named = clean(str(key), _NAME - 2)
        lines.append(f"  {named:<{_NAME}}" + "".join(f"{c:<{_LEAST}}" for c in cells).rstrip())
    if len(rows) > _LIST:
        lines.append(f"  and {count(len(rows) - _LIST)} more (--json or --markdown lists all)")
    if shown < len(matrix.columns):
        lines.append(f"  no room for columns {shown + 1} to {len(matrix.columns)}: `| less -S`")
    there = {cells[key].kind for cells in matrix.cells for key in rows[:_LIST] if key in cells}
    lines.append("  " + "  ".join(f"{MARKS[kind]} {kind}" for kind in MARKS if kind in there))
    return "\n".join(lines)


def _cell(key: StageKey, cells: Mapping[StageKey, PairResult], first: PairResult | None) -> str:
    """``>X 0.012``: the first divergence of its column, the class's mark, the distance."""
    result = cells.get(key)
    if result is None:
        return ""
    mark = ">" if first is not None and first.key == key else " "
    apart = "" if result.metrics is None else number(result.metrics.rel_l2, 3)
    return f"{mark}{MARKS[result.kind]} {apart}".rstrip()


def _next(matrix: Matrix) -> str:
    """What answers the question of the first column that fails, or may hide something."""
    first = sorted(matrix.columns, key=lambda column: column.verdict != "fail")
    return next((step for column in first if (step := next_step(column))), "")


def markdown(matrix: Matrix) -> str:
    """For an issue: the verdict, a line a trace, then every row folded away."""
    lines = [f"**{escaped(matrix.headline)}**", ""]
    if matrix.one_reference:
        lines.append(f"* A: {escaped(side_text(matrix.columns[0].a))}")
    for label, column in zip(matrix.labels, matrix.columns, strict=True):
        lines.append(f"* {escaped(f'{label}: {column.headline} (bar: {column.bars})')}")
    failing = [key for key in _open_rows(matrix) if any(
        key in cells and cells[key].kind in FAILED for cells in matrix.cells)]  # fmt: skip
    if failing:
        lines += ["", *_markdown_table(matrix, failing[:_LIST])]
    lines += ["", "<details><summary>every stage, in order of computation</summary>", ""]
    return "\n".join([*lines, *_markdown_table(matrix, matrix.rows), "", "</details>"])


def _markdown_table(matrix: Matrix, rows: Iterable[StageKey]) -> list[str]:
    table: list[Sequence[str]] = [("stage", *matrix.labels), ["---"] * (1 + len(matrix.labels))]
    for key in rows:
        found = (cells.get(key) for cells in matrix.cells)
        table.append((str(key), *("" if r is None else _said(r) for r in found)))
    return ["| " + " | ".join(escaped(cell) for cell in row) + " |" for row in table]


def _said(result: PairResult) -> str:
    apart = "" if result.metrics is None else f" {number(result.metrics.rel_l2, 3)}"
    return f"{result.kind}{apart}"
