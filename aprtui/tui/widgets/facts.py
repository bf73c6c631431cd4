"""Facts as lines: names at the left, values wrapped beside them; and a list of them to scroll."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass

from rich.cells import cell_len

from aprtui.tui.widgets.lines import Part, RowList, fit

__all__ = ["Fact", "FactList", "fact_lines"]


@dataclass(frozen=True)
class Fact:
    """One thing that is known. ``aside`` stands dimmed behind the value; all of it is clean."""

    name: str
    value: str
    aside: str = ""
    tone: str = ""


@dataclass(frozen=True)
class _Line:
    fact: Fact
    parts: list[Part]


def fact_lines(facts: Iterable[Fact], width: int) -> list[list[Part]]:
    """The facts in lines of ``width`` cells; an aside goes on a line of its own if it must."""
    return [line.parts for line in _lines(list(facts), width)]


def _lines(facts: list[Fact], width: int) -> list[_Line]:
    longest = max((cell_len(fact.name) for fact in facts), default=0)
    column = min(longest, max(width * 9 // 20, 7)) + 1
    found: list[_Line] = []
    for fact in facts:
        found += [_Line(fact, parts) for parts in _wrapped(fact, column, width)]
    return found


def _wrapped(fact: Fact, column: int, width: int) -> list[list[Part]]:
    name = cell_len(fact.name)
    if name >= column and name + cell_len(fact.value) + 3 <= width:
        column = name + 1  # it reaches into the values' column, and the value still fits
    lines: list[list[Part]] = []
    lead: Part = (" " + fit(fact.name, column), "head")
    if name >= column:  # the name has a line of its own
        lines.append([(" " + fit(fact.name, width - 2), "head")])
        column, lead = 3, ("    ", "")
    room = max(width - column - 2, 8)
    texts = _broken(fact.value, room)
    for text in texts:
        lines.append([lead, (text, fact.tone)])
        lead = (" " * (column + 1), "")
    if fact.aside:
        if cell_len(texts[-1]) + cell_len(fact.aside) + 2 <= room:
            lines[-1].append(("  " + fact.aside, "dim"))
        else:
            lines += [[lead, (text, "dim")] for text in _broken(fact.aside, room)]
    return lines


def _broken(text: str, room: int) -> list[str]:
    """The text in pieces of ``room`` cells, broken at blanks where there are any."""
    if cell_len(text) <= room:
        return [text]
    narrow = room if cell_len(text) == len(text) else room // 2  # wide characters take two cells
    return textwrap.wrap(text, max(narrow, 4), break_on_hyphens=False) or [""]


class FactList(RowList):
    """Facts, a line at a time."""

    blurred = ""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._facts: list[Fact] = []
        self._lines: list[_Line] = []

    def show_facts(self, facts: Iterable[Fact]) -> None:
        self._facts = list(facts)
        self._wrap()

    def on_resize(self) -> None:
        self._wrap()

    def _wrap(self) -> None:
        self._lines = _lines(self._facts, max(self.size.width, 20))
        self.rows_changed()

    @property
    def current(self) -> Fact | None:
        return self._lines[self.cursor].fact if self._lines else None

    def row_count(self) -> int:
        return len(self._lines)

    def row_parts(self, row: int, width: int) -> list[Part]:
        return self._lines[row].parts
