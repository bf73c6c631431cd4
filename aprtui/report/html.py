"""A report as one HTML file: no scripts, nothing from elsewhere, light and dark."""

from __future__ import annotations

from collections.abc import Iterable

from aprtui.report.build import DIFFERENCE_HEADS, EXPLANATION_HEADS
from aprtui.report.model import CulpritLine, Report
from aprtui.report.page import document, section, table, text, verdict
from aprtui.report.picture import grid_svg, legend
from aprtui.text import count, size

__all__ = ["html_report"]


def html_report(report: Report) -> str:
    """The whole document. Every text is cleaned and escaped: names in it come from files."""
    return document(report.headline, "\n".join(part for part in _sections(report) if part))


def _sections(report: Report) -> Iterable[str]:
    yield verdict(report.tone, report.headline, report.sentences)
    if report.culprits:
        cards = "\n".join(map(_culprit, report.culprits))
        yield section("Culprits", "stages whose own arithmetic is wrong", cards)
    yield section(
        "Every stage",
        "layers down, stages across, in order of computation",
        f'<div class="wide">{grid_svg(report.grid)}</div>\n{_legend()}\n'
        f'<p class="quiet">Bar: {text(report.bars)}.</p>',
    )
    if report.explanations:
        rows = [(e.by, str(e.stages), e.local_error, e.residual) for e in report.explanations]
        yield section(
            "Innocent",
            "reproduced from B's own inputs by honest arithmetic: no bug",
            table(EXPLANATION_HEADS, rows, numeric=(1, 2, 3)),
        )
    if report.differences:
        more = f'<p class="quiet">and {count(report.more_differences)} more</p>'
        yield section(
            "Where it shows",
            "stages that do not pass; what one gets wrong all later ones inherit",
            table(DIFFERENCE_HEADS, report.differences, numeric=(2, 3, 4, 5))
            + more * bool(report.more_differences),
        )
    if report.unmeasured:
        reasons = table(("stages", "why"), report.unmeasured)
        yield section("Unmeasured", "nothing is known of these", reasons)
    if report.marked:
        yield section("Marked", "notes of who looked", table(("where", "note"), report.marked))
    yield section("What was compared", "", _compared(report))
    if report.commands:
        lines = "\n".join(text(command, 4000) for command in report.commands)
        yield section("To repeat it", "", f"<pre><code>{lines}</code></pre>")
    if report.notes:
        items = "".join(f"<li>{text(note)}</li>" for note in report.notes)
        yield section("Notes", "", f"<ul>{items}</ul>")
    versions = " · ".join(f"{text(name)} {text(value)}" for name, value in report.versions)
    yield f"<footer>{versions}</footer>"


def _culprit(culprit: CulpritLine) -> str:
    name = f'<span class="id">{text(culprit.mistake_id)}</span>' if culprit.mistake_id else ""
    numbers = "".join(
        f"<div><dt>{text(what)}</dt><dd>{text(value)}</dd></div>" for what, value in culprit.numbers
    )
    note = f'<p class="quiet">{text(culprit.note)}</p>' if culprit.note else ""
    return (
        f"<article><h3><code>{text(culprit.stage)}</code>{name}</h3>"
        f"<p>{text(culprit.what)}</p><dl>{numbers}</dl>{note}</article>"
    )


def _legend() -> str:
    items = []
    for kind, mark, meaning in legend:
        dot = '<circle class="dot" cx="11" cy="8" r="3.5"/>' if "culprit" in kind else ""
        inside = (
            f'<text class="in" x="11" y="12" text-anchor="middle">{mark}</text>' if mark else dot
        )
        items.append(
            f'<li><svg width="22" height="16" aria-hidden="true"><rect class="{kind}" x="1" y="1" '
            f'width="20" height="14" rx="3"/>{inside}</svg>{meaning}</li>'
        )
    return f'<ul class="legend">{"".join(items)}</ul>'


def _compared(report: Report) -> str:
    rows = []
    for capture in report.captures:
        what = f"{capture.engine}; {capture.status}, {count(capture.files)} files"
        digest = f"{capture.digest} of {capture.digest_of}"
        rows.append(_fact(f"{capture.name}, {capture.role}", capture.path, what, digest))
    model = report.model
    if model is not None:
        what = f"{model.architecture}, {model.format}, {size(model.size_bytes)}, "
        what += f"{' '.join(model.types)}; {model.dimensions}"
        rows.append(_fact("model", model.path, what, f"{model.digest} of header and index"))
    if report.token_ids:
        texts = report.token_texts or tuple(map(str, report.token_ids))
        chips = "".join(
            f'<span class="token" title="{token}">{text(said, 60)}</span>'
            for token, said in zip(report.token_ids, texts, strict=False)
        )
        rows.append(f"<dt>{count(len(report.token_ids))} tokens</dt><dd>{chips}</dd>")
    return f'<dl class="facts">{"".join(rows)}</dl>'


def _fact(name: str, path: str, what: str, digest: str) -> str:
    return (
        f"<dt>{text(name)}</dt><dd><code>{text(path, 1000)}</code><br>{text(what)}<br>"
        f'<span class="digest">sha256 {text(digest)}</span></dd>'
    )
