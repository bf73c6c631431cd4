"""A report as one HTML file: no scripts, nothing from elsewhere, light and dark."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources

from aprtui.report.build import DIFFERENCE_HEADS, EXPLANATION_HEADS
from aprtui.report.model import CulpritLine, Report
from aprtui.report.picture import grid_svg, legend
from aprtui.text import clean, count, size

__all__ = ["html_report"]

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def html_report(report: Report) -> str:
    """The whole document. Every text is cleaned and escaped: names in it come from files."""
    style = resources.files("aprtui.report").joinpath("report.css").read_text(encoding="utf-8")
    body = "\n".join(part for part in _sections(report) if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(report.headline)}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _text(text: object, limit: int = 500) -> str:
    return escape(clean(str(text), limit))


def _sections(report: Report) -> Iterable[str]:
    yield _verdict(report)
    if report.culprits:
        cards = "\n".join(map(_culprit, report.culprits))
        yield _section("Culprits", "stages whose own arithmetic is wrong", cards)
    yield _section(
        "Every stage",
        "layers down, stages across, in order of computation",
        f'<div class="wide">{grid_svg(report.grid)}</div>\n{_legend()}\n'
        f'<p class="quiet">Bar: {_text(report.bars)}.</p>',
    )
    if report.explanations:
        rows = [(e.by, str(e.stages), e.local_error, e.residual) for e in report.explanations]
        yield _section(
            "Innocent",
            "reproduced from B's own inputs by honest arithmetic: no bug",
            _table(EXPLANATION_HEADS, rows, numeric=(1, 2, 3)),
        )
    if report.differences:
        more = f'<p class="quiet">and {count(report.more_differences)} more</p>'
        yield _section(
            "Where it shows",
            "stages that do not pass; what one gets wrong all later ones inherit",
            _table(DIFFERENCE_HEADS, report.differences, numeric=(2, 3, 4, 5))
            + more * bool(report.more_differences),
        )
    if report.unmeasured:
        table = _table(("stages", "why"), report.unmeasured)
        yield _section("Unmeasured", "nothing is known of these", table)
    if report.marked:
        yield _section("Marked", "notes of who looked", _table(("where", "note"), report.marked))
    yield _section("What was compared", "", _compared(report))
    if report.commands:
        lines = "\n".join(_text(command, 4000) for command in report.commands)
        yield _section("To repeat it", "", f"<pre><code>{lines}</code></pre>")
    if report.notes:
        items = "".join(f"<li>{_text(note)}</li>" for note in report.notes)
        yield _section("Notes", "", f"<ul>{items}</ul>")
    versions = " · ".join(f"{_text(name)} {_text(value)}" for name, value in report.versions)
    yield f"<footer>{versions}</footer>"


def _verdict(report: Report) -> str:
    sentences = "".join(f"<p>{_text(sentence)}</p>" for sentence in report.sentences)
    signs = {"bad": "✕", "good": "✓", "unknown": "?"}
    return (
        f'<header class="{report.tone}"><span class="sign" aria-hidden="true">'
        f"{signs[report.tone]}</span><div><h1>{_text(report.headline)}</h1>{sentences}</div></header>"
    )


def _section(title: str, about: str, content: str) -> str:
    small = f" <small>{_text(about)}</small>" if about else ""
    return f"<section>\n<h2>{_text(title)}{small}</h2>\n{content}\n</section>"


def _culprit(culprit: CulpritLine) -> str:
    name = f'<span class="id">{_text(culprit.mistake_id)}</span>' if culprit.mistake_id else ""
    numbers = "".join(
        f"<div><dt>{_text(what)}</dt><dd>{_text(value)}</dd></div>"
        for what, value in culprit.numbers
    )
    note = f'<p class="quiet">{_text(culprit.note)}</p>' if culprit.note else ""
    return (
        f"<article><h3><code>{_text(culprit.stage)}</code>{name}</h3>"
        f"<p>{_text(culprit.what)}</p><dl>{numbers}</dl>{note}</article>"
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


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], numeric: Sequence[int] = ()) -> str:
    def cells(row: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=number' if place in numeric else ''}>{_text(cell)}</{tag}>"
            for place, cell in enumerate(row)
        )

    lines = "\n".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return (
        f'<div class="wide"><table><thead><tr>{cells(heads, "th")}</tr></thead>\n'
        f"<tbody>{lines}</tbody></table></div>"
    )


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
            f'<span class="token" title="{token}">{_text(text, 60)}</span>'
            for token, text in zip(report.token_ids, texts, strict=False)
        )
        rows.append(f"<dt>{count(len(report.token_ids))} tokens</dt><dd>{chips}</dd>")
    return f'<dl class="facts">{"".join(rows)}</dl>'


def _fact(name: str, path: str, what: str, digest: str) -> str:
    return (
        f"<dt>{_text(name)}</dt><dd><code>{_text(path, 1000)}</code><br>{_text(what)}<br>"
        f'<span class="digest">sha256 {_text(digest)}</span></dd>'
    )
