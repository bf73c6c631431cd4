"""What every matrix shares: rows by columns, the cell under the cursor beside, filter, order, keys.

A screen gives rows, columns and cells to ``set_table`` and ``put``, and says what stands around
them; enter goes where the cell's target is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Static

from aprtui.formats.tracedir import StageKey
from aprtui.text import clean, count
from aprtui.tui.carry import copy, export_rows
from aprtui.tui.keys import bindings
from aprtui.tui.paths import meant
from aprtui.tui.screens.base import MODES
from aprtui.tui.screens.sides import Sides, SidesScreen
from aprtui.tui.stage_filter import matcher
from aprtui.tui.widgets.blocks import Block, BlockPane
from aprtui.tui.widgets.frame import TitleLine
from aprtui.tui.widgets.lines import Part, PartLine, RowList
from aprtui.tui.widgets.matrix_grid import Cell, MatrixGrid, Place, Row

__all__ = ["MODE", "CellsScreen"]

MODE = "matrix"


class CellsScreen(SidesScreen):
    """A verdict above; the matrix, and the cell under the cursor beside it (or below)."""

    mode = MODE
    places: ClassVar[tuple[str, ...]] = ("matrix", "sides")
    BINDINGS: ClassVar[list[BindingType]] = bindings("matrix", "sides")  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.title_line = TitleLine((*MODES, MODE), MODE)
        self.head = Static("", id="diffhead", markup=False)
        self.grid = MatrixGrid(id="matrix")
        self.detail = BlockPane(id="celldetail")
        self.legend = PartLine(id="legend")
        self.rows: tuple[Row, ...] = ()
        self.filter = ""
        self.by_worst = False

    def body(self) -> Iterable[Widget]:
        with Vertical():
            yield self.head
            with Horizontal(id="cells"):
                yield self.grid
                yield self.detail
            yield self.legend

    # What a screen says.

    def facts_of(self, place: Place) -> list[Block]:
        """What stands beside the matrix."""
        raise NotImplementedError

    def head_lines(self) -> list[Content]:
        """The verdict."""
        raise NotImplementedError

    def legend_parts(self) -> list[Part]:
        """What the signs that are there mean."""
        raise NotImplementedError

    def title_of(self) -> str:
        """Where one is."""
        raise NotImplementedError

    @property
    def sides(self) -> Sides | None:
        """The two captures of the cell under the cursor."""
        return None

    # What is shown.

    def set_table(self, rows: Sequence[Row], columns: Sequence[str]) -> None:
        """Other rows or columns; cells are put by ``put``, those of before stay where they fit."""
        self.rows = tuple(rows)
        keys = {row.key for row in rows}
        kept = {at: cell for at, cell in self.grid.cells.items()
                if at[0] in keys and at[1] < len(columns)}  # fmt: skip
        self.grid.cells = kept
        self.grid.set_columns(columns)
        self.sift()

    def put(self, cells: Mapping[Place, Cell]) -> None:
        """Something new is known of these."""
        self.grid.put(cells)
        if self.filter or self.by_worst:
            self.sift()
        else:
            self.tell()

    def sift(self) -> None:
        """Show the rows that the filter leaves, in the order that was chosen."""
        matches = matcher(self.filter)
        shown = [row for row in self.rows if matches(row.key, self._words(row.key))]
        if self.by_worst:
            shown.sort(key=lambda row: -self._badness(row.key))
        self.grid.set_rows(shown)
        self.tell()

    def _of_row(self, key: StageKey) -> list[Cell]:
        columns = range(len(self.grid.columns))
        return [cell for n in columns if (cell := self.grid.cells.get((key, n)))]

    def _words(self, key: StageKey) -> str:
        return " ".join({f"{cell.verdict} {cell.words}" for cell in self._of_row(key)})

    def _badness(self, key: StageKey) -> float:
        return max((cell.badness for cell in self._of_row(key)), default=0.0)

    def tell(self) -> None:
        """Title, verdict, the cell under the cursor, legend and keys, as they are now."""
        self.set_title(f"{self.narrowed}{self.title_of()}")
        self.head.update(Content("\n").join(
            line.truncate(max(self.size.width - 2, 20), ellipsis=True)
            for line in self.head_lines()
        ))  # fmt: skip
        self.legend.show(self.legend_parts())
        self.show_cell()
        self.show_keys()

    @property
    def narrowed(self) -> str:
        """The title's honest remark while a filter hides rows."""
        if not self.filter:
            return ""
        shown, total = count(len(self.grid.rows)), count(len(self.rows))
        return f"showing {shown} of {total} - filter {clean(self.filter, 30)} · "

    @on(RowList.Moved, "#matrix")
    def _moved(self) -> None:
        self.tell()

    @on(BlockPane.Changed)
    def show_cell(self) -> None:
        """What is known of the cell under the cursor."""
        place = self.grid.current
        if place is None:
            hint = f"No row matches {clean(self.filter, 30)}: q shows all." if self.filter else ""
            self.detail.name_it("")
            self.detail.show([[[(hint, "warn")]]])
            return
        key, column = place
        named = clean(f"{key} · {column + 1} {self.grid.columns[column]}", 120)
        self.detail.name_it(named)
        self.detail.show(self.facts_of(place))

    @property
    def stage_here(self) -> StageKey | None:
        place = self.grid.current
        return place[0] if place is not None and self.state == "full" else None

    # Keys.

    @on(RowList.Opened, "#matrix")
    def _open(self) -> None:
        place = self.grid.current
        cell = self.grid.cells.get(place) if place is not None else None
        if place is None or cell is None:
            self.say("nothing to open here yet")
        else:
            self.open_cell(place, cell)

    def open_cell(self, place: Place, cell: Cell) -> None:
        """Go where the cell under the cursor leads."""
        if cell.target is not None:
            self.app.jump(cell.target)
        else:
            self.say(f"{cell.verdict}: no more")

    def action_sort(self) -> None:
        """As they come, or the worst first."""
        self.by_worst = not self.by_worst
        self.sift()

    def action_filter(self) -> None:
        self.ask("show only some rows: ffn, layer 3, 3..6, differs …", "filter", self.filter)

    def answering(self, purpose: str, text: str) -> None:
        if purpose == "filter" and text.strip() != self.filter:
            self.filter = text.strip()
            self.sift()

    def action_next(self, step: int) -> None:
        """The next cell of this column in which something is wrong."""
        rows, here = self.grid.rows, self.grid.cursor
        for offset in range(1, len(rows) + 1):
            row = rows[(here + step * offset) % len(rows)]
            cell = self.grid.cells.get((row.key, self.grid.column))
            if cell is not None and cell.badness > 0:
                self.grid.select(row.key)
                return
        self.say("nothing is wrong in this column")

    def action_zoom(self) -> None:
        """The matrix alone, and back."""
        self.detail.display = not self.detail.display

    def action_export(self) -> None:
        self.ask_path(
            "write the rows shown to (.csv)", "export", str(Path.cwd() / "matrix.csv"), again=False
        )

    def answered(self, purpose: str, text: str) -> None:
        super().answered(purpose, text)
        if purpose == "export" and text:
            self.say(export_rows(self.table(), meant(text)))

    def table(self) -> Iterable[Sequence[str]]:
        """The rows that are shown, in that order, as text; the first names the columns."""
        yield ("row", *self.grid.columns)
        for row in self.grid.rows:
            found = (self.grid.cells.get((row.key, n)) for n in range(len(self.grid.columns)))
            yield (
                clean(str(row.key)),
                *(f"{cell.verdict} {cell.text}".rstrip() if cell else "" for cell in found),
            )

    def action_copy_value(self) -> None:
        place = self.grid.current
        cell = self.grid.cells.get(place) if place is not None else None
        if place is not None and cell is not None:
            where = clean(f"{place[0]} {self.grid.columns[place[1]]}")
            self.say(copy(self.app, f"{where}: {cell.verdict} {cell.text}".rstrip()))

    def step_back(self) -> bool:
        if not self.filter:
            return False
        self.filter = ""
        self.sift()
        return True
