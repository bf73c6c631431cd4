"""A report as Markdown for an issue; nothing that a file said is read as markup."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from aprtui.report.build import DIFFERENCE_HEADS, EXPLANATION_HEADS
from aprtui.report.model import Report
from aprtui.report.picture import grid_text
from aprtui.text import clean, count, size

__all__ = ["markdown_report"]

_MARKUP = re.compile(r"([\\`*_\[\]#|~<>&@]|:(?=//))")
_SIGNS = {"bad": "❌", "good": "✅", "unknown": "❔"}


def markdown_report(report: Report) -> str:
    """The whole document, the verdict first."""
    return "\n\n".join(_parts(report)) + "\n"


def _parts(report: Report) -> Iterable[str]:
    yield f"# {_SIGNS[report.tone]} {_text(report.headline)}"
    yield "\n".join(f"* {_text(sentence)}" for sentence in report.sentences)
    if report.culprits:
        heads = ("culprit", "what it does instead", "numbers")
        rows = [
            (
                _code(culprit.stage),
                _text(culprit.what)
                + (f" ({_code(culprit.mistake_id)})" if culprit.mistake_id else "")
                + (f"; {_text(culprit.note)}" if culprit.note else ""),
                _text(", ".join(f"{what} {value}" for what, value in culprit.numbers)),
            )
            for culprit in report.culprits
        ]
        yield f"## Culprits\n\n{_table(heads, rows)}"
    yield (
        "## Every stage\n\n`=` bit-identical, `.` within its bar, `X` beyond it, `N` NaN or Inf, "
        "`#` another shape, `?` unreadable, `a` `b` not in A or B, `[ ]` culprit\n\n"
        f"{_fenced(grid_text(report.grid))}\n\nBar: {_text(report.bars)}."
    )
    if report.explanations:
        found = [
            tuple(map(_text, (e.by, e.stages, e.local_error, e.residual)))
            for e in report.explanations
        ]
        yield f"## Innocent\n\n{_table(EXPLANATION_HEADS, found)}"
    if report.differences:
        more = f"\n\nand {count(report.more_differences)} more" if report.more_differences else ""
        shown = [[_text(cell) for cell in row] for row in report.differences]
        yield f"## Where it shows\n\n{_table(DIFFERENCE_HEADS, shown)}{more}"
    if report.unmeasured:
        shown = [[_text(cell) for cell in row] for row in report.unmeasured]
        yield f"## Unmeasured\n\n{_table(('stages', 'why'), shown)}"
    if report.marked:
        shown = [[_text(cell) for cell in row] for row in report.marked]
        yield f"## Marked\n\n{_table(('where', 'note'), shown)}"
    yield f"## What was compared\n\n{_compared(report)}"
    if report.commands:
        yield "## To repeat it\n\n" + _fenced("\n".join(clean(c, 4000) for c in report.commands))
    if report.notes:
        yield "## Notes\n\n" + "\n".join(f"* {_text(note)}" for note in report.notes)
    yield ", ".join(f"{_text(name)} {_text(value)}" for name, value in report.versions)


def _compared(report: Report) -> str:
    lines = [
        f"* {capture.name}, {capture.role}: {_code(capture.path)}, {_text(capture.engine)}, "
        f"{capture.status}, {count(capture.files)} files; "
        f"sha256 of {_text(capture.digest_of)} {_code(capture.digest)}"
        for capture in report.captures
    ]
    model = report.model
    if model is not None:
        lines.append(
            f"* model: {_code(model.path)}, {model.architecture}, {_text(model.format)}, "
            f"{size(model.size_bytes)}, {_text(' '.join(model.types))}; {model.dimensions}; "
            f"sha256 of header and index {_code(model.digest)}"
        )
    if report.token_ids:
        ids = ",".join(map(str, report.token_ids))
        lines.append(f"* {count(len(report.token_ids))} tokens: {_code(ids, 4000)}")
        if report.token_texts:
            lines.append(f"* prompt: {_code(''.join(report.token_texts), 2000)}")
    return "\n".join(lines)


def _text(text: object) -> str:
    return _MARKUP.sub(r"\\\1", clean(str(text), 500))


def _code(text: str, limit: int = 1000) -> str:
    """A code span: its fence is longer than any run of backticks inside."""
    shown = clean(text, limit).replace("|", "\\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    space = " " if shown[:1] in ("`", " ", "") or shown[-1:] in ("`", " ") else ""
    return f"{fence}{space}{shown}{space}{fence}"


def _fenced(text: str) -> str:
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)
