"""What a notebook shows of our values: one small HTML table, every text of it escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from aprtui.text import clean, count

__all__ = ["MOST_ROWS", "html_table"]

MOST_ROWS = 40  # what comes after is counted
_CELL = 200  # characters


def html_table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A ``<table>`` under its caption; texts may hold what files said. Styles are the notebook's.

    Rows beyond ``MOST_ROWS`` are counted in a last line.
    """
    listed = list(rows)
    parts = [f"<table><caption>{_escape(caption, 500)}</caption>"]
    if listed:
        parts.append(f"<thead>{_row('th', head)}</thead>")
    parts.append(f"<tbody>{''.join(_row('td', row) for row in listed[:MOST_ROWS])}</tbody>")
    if len(listed) > MOST_ROWS:
        more = f"and {count(len(listed) - MOST_ROWS, 'more row')}"
        parts.append(f"<tfoot><tr><td colspan={len(head)}>{more}</td></tr></tfoot>")
    return "".join([*parts, "</table>"])


def _row(tag: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{_escape(cell, _CELL)}</{tag}>' for cell in cells)}</tr>"


def _escape(text: str, limit: int) -> str:
    return html.escape(clean(text, limit))
