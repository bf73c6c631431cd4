"""One pair in pictures: A and B over one axis, |d| by its powers of ten, d along both axes."""

from __future__ import annotations

from collections.abc import Sequence

from aprtui.compare.statistics import Histogram
from aprtui.text import count, number
from aprtui.tui.pair_view import SORTS, PairView, Profile, Worst
from aprtui.tui.widgets.bars import axis_parts, histogram_rows, profile
from aprtui.tui.widgets.lines import Part, Picture, RowList, fit, right

__all__ = ["PairPicture", "WorstList"]

_NAME = 12  # cells of "per channel"


class PairPicture(Picture):
    """The shared histograms, then d by itself; low frames leave out what is least needed."""

    view: PairView | None = None
    logarithmic = True

    def show(self, view: PairView | None) -> None:
        self.view = view
        self.refresh()

    def picture(self) -> list[list[Part]]:
        view = self.view
        if view is None:
            return [[("  counting …", "dim")]]
        largest = [f"max {number(max(p.rms), 3)} at {p.worst}" for p in view.profiles]
        cells = max(map(len, largest), default=0)
        profiles = [
            self._profile(each, fit(text, cells))
            for each, text in zip(view.profiles, largest, strict=True)
        ]
        room = self.size.height - len(profiles)
        tall = max((room - 1) * 2 // 5, 1) if room >= 6 else max((room - 2) // 2, 1)
        a, b, d = view.histograms
        lines = [*self._side("a", a, tall), *self._side("b", b, tall)]
        lead = len(lines[0][0][0])
        lines.append(axis_parts(a, lead))
        left = room - len(lines) - 1
        if left >= 1:
            lines += self._distances(d, left, lead)
        return [*lines, *profiles]

    def _side(self, name: str, counts: Histogram, tall: int) -> list[list[Part]]:
        rows = histogram_rows(counts.counts, tall, self.logarithmic, name)
        rows[-1] = [(f" {name.upper()}" + rows[-1][0][0][2:], name), *rows[-1][1:]]
        return rows

    def _distances(self, d: Histogram, tall: int, lead: int) -> list[list[Part]]:
        """|d| by powers of ten over its axis."""
        if not any(d.counts):
            return [[(" |d|  no finite element differs", "dim")]]
        rows = histogram_rows(d.counts, tall, self.logarithmic, "d")
        rows[-1] = [(" |d|" + rows[-1][0][0][4:], "d"), *rows[-1][1:]]
        return [*rows, self._powers(d, lead)]

    @property
    def beside(self) -> str:
        """What the axis of A and B leaves out, of A and of B; empty when that is nothing."""
        if self.view is None:
            return ""
        a, b, _ = self.view.histograms
        left_out = [("outside", a.below + a.above, b.below + b.above),
                    ("NaN or Inf", a.nan + a.inf, b.nan + b.inf)]  # fmt: skip
        return " · ".join(
            f"{what} {count(in_a)} / {count(in_b)}" for what, in_a, in_b in left_out if in_a or in_b
        )

    def _powers(self, d: Histogram, lead: int) -> list[Part]:
        """The axis of |d|: its powers of ten, and how many elements do not differ at all."""
        same = f"{count(d.nan)} equal" if d.nan else ""
        low, high = (number(10**power, 2) for power in (d.edges[0], d.edges[-1]))
        middle = right(same, max(len(d.counts) - len(low) - len(high) - 1, 0))
        return [(" " * lead, ""), (f"{low}{middle} {high}", "dim")]

    def _profile(self, known: Profile, largest: str) -> list[Part]:
        width = max(self.size.width - _NAME - len(largest) - 3, 4)
        text = profile(known.rms, width)
        return [(fit(f" per {known.axis}", _NAME) + " ", "head"), (fit(text, width), "d"),
                (f" {largest}", "dim")]  # fmt: skip


class WorstList(RowList):
    """The worst elements, rows or columns; the grids follow its cursor."""

    view: PairView | None = None
    sort = SORTS[0]

    def show(self, view: PairView | None) -> None:
        self.view, self.cursor = view, 0
        self.rows_changed()

    @property
    def rows(self) -> Sequence[Worst]:
        return self.view.worst[self.sort] if self.view else ()

    def row_count(self) -> int:
        return len(self.rows)

    def head_parts(self, width: int) -> list[Part]:
        what = {"elements": "place", "rows": "row", "columns": "column"}[self.sort]
        lead = "" if self.sort == "elements" else "rms "
        place, cell, _, shown = self._columns(width)
        names = "".join(right(f"{lead}{name}", cell) for name in shown.upper())
        return [(" " + fit(what, place) + names.replace("D", "d"), "head")]

    def row_parts(self, row: int, width: int) -> list[Part]:
        entry = self.rows[row]
        place, cell, digits, shown = self._columns(width)
        values = {"a": entry.a, "b": entry.b, "d": entry.distance}
        return [
            (" " + fit(entry.label, place), ""),
            *((right(number(values[name], digits), cell), name) for name in shown),
        ]

    def _columns(self, width: int) -> tuple[int, int, int, str]:
        """Cells of the place, cells of a number, its digits, and which numbers fit beside it."""
        longest = max((len(entry.label) for entry in self.rows), default=4)
        for cell, digits, shown in ((11, 4, "abd"), (10, 3, "abd"), (10, 3, "bd"), (10, 3, "d")):
            place = width - 1 - cell * len(shown)
            if place >= longest:
                return place, cell, digits, shown
        return max(width - 1, 0), 0, 0, ""
