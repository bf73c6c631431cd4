"""A sweep's matrix as one HTML file: what changed first, then every cell, then what is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import resources

from aprtui import __version__
from aprtui.report.page import document, section, table, text, verdict
from aprtui.sweep.matrix import Cell, Matrix
from aprtui.text import count

__all__ = ["html_matrix"]

_SIGNS = {
    "failed": "!", "culprits": "✕", "differs": "≠", "unmeasured": "?", "pending": "…",
    "explained": "≈", "same": "✓", "reference": "·",
}  # fmt: skip
_MEANINGS = {
    "failed": "no result: the cell has an error",
    "culprits": "a stage computes wrongly",
    "differs": "beyond the bar; not replayed",
    "unmeasured": "not everything could be compared or replayed",
    "pending": "not computed yet",
    "explained": "honest rounding accounts for every stage",
    "same": "within the bars",
    "reference": "others are held against it",
}
_LISTED = 12  # cells of one finding


def html_matrix(matrix: Matrix, rows: Sequence[str], order: str) -> str:
    """The whole document; ``rows`` and ``order`` as for ``Matrix.table``."""
    style = resources.files("aprtui.sweep").joinpath("sweep.css").read_text(encoding="utf-8")
    return document(matrix.headline, "\n".join(_sections(matrix, rows, order)), style)


def _sections(matrix: Matrix, rows: Sequence[str], order: str) -> Iterator[str]:
    against = f"held against {matrix.against}" if matrix.against else ""
    tone = {0: "good", 1: "bad", 4: "bad"}[matrix.exit_code]
    yield verdict(tone, matrix.headline, [against] if against else [])
    if matrix.changed:
        lines = [(*cell.place, cell.before or "", cell.finding) for cell in matrix.changed]
        yield section(
            "What changed", against, table(("model", "prompt", "engine", "before", "now"), lines)
        )
    yield section("Every cell", f"{' and '.join(rows)} down", _cells(matrix, rows, order))
    for title, about, verdicts in (
        ("Culprits and differences", "the same finding once", ("culprits", "differs")),
        ("Failed", "cells without a result", ("failed",)),
        ("Unmeasured", "nothing is known of some stages", ("unmeasured",)),
    ):
        found = [cell for cell in matrix.cells if cell.verdict in verdicts]
        if found:
            yield section(title, about, _findings(found))
    if matrix.notes:
        items = "".join(f"<li>{text(note)}</li>" for note in matrix.notes)
        yield section("Notes", "", f"<ul>{items}</ul>")
    yield f"<footer>aprtui {text(__version__)} · sweep {text(matrix.run)}</footer>"


def _cells(matrix: Matrix, rows: Sequence[str], order: str) -> str:
    laid = matrix.table(rows, order)
    heads = "".join(f"<th>{text(head, 200)}</th>" for head in laid.columns)
    lines = "\n".join(
        f'<tr><th scope="row">{text(label, 200)}</th>'
        + "".join(f"<td>{_cell(cell)}</td>" for cell in cells)
        + "</tr>"
        for label, cells in zip(laid.rows, laid.cells, strict=True)
    )
    known = "".join(
        f'<li><span class="cell {name}">{_SIGNS[name]} {name}</span> {text(_MEANINGS[name])}</li>'
        for name in matrix.counts
    )
    return (
        f'<div class="wide"><table class="matrix"><thead><tr><th class="corner">'
        f"{text(' / '.join(rows))}</th>{heads}</tr></thead>\n<tbody>{lines}</tbody></table></div>\n"
        f'<ul class="legend">{known}</ul>'
    )


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return ""
    more = f"<small>{text(cell.culprit, 80)}</small>" if cell.culprit else ""
    more += f"<small>{text(cell.mistake, 80)}</small>" if cell.mistake else ""
    more += f"<small>was {text(cell.before, 200)}</small>" if cell.changed else ""
    changed = " changed" if cell.changed else ""
    told = text(cell.error or cell.text, 400)
    return (
        f'<span class="cell {cell.verdict}{changed}" title="{told}">'
        f"{_SIGNS[cell.verdict]} {cell.verdict}{more}</span>"
    )


def _findings(cells: Sequence[Cell]) -> str:
    """What was found, once, and the cells that it was found in."""
    groups: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.culprit, cell.mistake, cell.error or cell.text), []).append(cell)
    return "\n".join(_finding(key, found) for key, found in groups.items())


def _finding(key: tuple[str, str, str], cells: Sequence[Cell]) -> str:
    culprit, mistake, said = key
    name = f'<span class="id">{text(mistake)}</span>' if mistake else ""
    where = "".join(f"<li>{text(' / '.join(cell.place))}</li>" for cell in cells[:_LISTED])
    rest = len(cells) - _LISTED
    more = f'<p class="quiet">and {count(rest, "more cell")}</p>' if rest > 0 else ""
    title = f"<code>{text(culprit)}</code>{name}" if culprit else count(len(cells), "cell")
    return f"<article><h3>{title}</h3><p>{text(said)}</p><ul>{where}</ul>{more}</article>"
