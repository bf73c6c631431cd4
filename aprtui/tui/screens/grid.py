"""What the two views of one grid share: drift (Diff) and local error (bisect)."""

from __future__ import annotations

from collections.abc import Iterable

from textual.containers import Horizontal, Vertical
from textual.widget import Widget
from textual.widgets import Static

from aprtui.tui.screens.base import BaseScreen
from aprtui.tui.widgets.stage_grid import StageGrid

__all__ = ["GridScreen"]


class GridScreen(BaseScreen):
    """A verdict above, layers by stages with the cell under the cursor beside, a legend below."""

    def __init__(self) -> None:
        super().__init__()
        self.head = Static("", id="diffhead", markup=False)
        self.grid = StageGrid(id="grid")
        self.detail = Static("", id="pairdetail", markup=False, classes="frame")
        self.legend = Static("", id="legend", markup=False)

    def body(self) -> Iterable[Widget]:
        with Vertical():
            yield self.head
            with Horizontal(id="compared"):
                yield self.grid
                yield self.detail
            yield self.legend
