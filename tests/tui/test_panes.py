"""Panes behind one protocol: a row of the table makes a pane; what it has nothing for is said."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from textual.strip import Strip

from aprtui.formats.aprt import write_stage
from aprtui.tui.keys import KEYS
from aprtui.tui.measure import Measured
from aprtui.tui.panes import PANES, PaneRow, place_of
from aprtui.tui.screens.paned import PanedScreen
from aprtui.tui.widgets.lines import Lines
from aprtui.tui.widgets.pane import Nothing, Pane
from aprtui.tui.widgets.stage_pane import StagePane, StageSeen, Work
from tests.tui.support import NARROW, WIDE, frame, opened, press, screen, settle, small_trace

ROWS = [(mode, row) for mode, rows in PANES.items() for row in rows]


@pytest.mark.parametrize(("mode", "row"), ROWS, ids=lambda each: getattr(each, "name", each))
def test_a_row_names_a_pane_and_has_its_number(mode: str, row: PaneRow) -> None:
    assert issubclass(row.load(), Pane)
    (key,) = (k for k in KEYS if k.where == mode and k.action == f"pane({row.name!r})")
    number = str(1 + PANES[mode].index(row))
    assert key.keys == (row.key or number,) and key.description == row.about
    assert len(key.keys[0]) == 1  # a tenth pane has a letter


class Largest(Lines, StagePane):
    """The largest value, once it is known: all that a new pane must say."""

    said = ""

    def nothing(self, seen: StageSeen) -> Nothing | None:
        norm = seen.record.key.stage.endswith("norm")
        return super().nothing(seen) if norm else Nothing("only of norms", "n goes to one")

    def work(self) -> Work:
        return Work("largest", lambda table, cancelled: float(table.values.max()))

    def give(self, measured: Measured | None, made: object) -> None:
        if isinstance(made, float):
            self.said, self.drawn = f"the largest is {made}", self.seen
            self.refresh()

    def forget(self) -> None:
        self.said = ""

    def render_line(self, y: int) -> Strip:
        return self.strip([(self.said if y == 0 else "", "")], self.size.width)


@pytest.mark.parametrize("size", [WIDE, NARROW])
async def test_a_new_pane_is_one_file_and_one_row(
    tmp_path: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = ModuleType("aprtui.tui.widgets.largest_pane")
    file.Largest = Largest  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, file.__name__, file)
    row = PaneRow("largest", "largest_pane:Largest", "Largest: the largest value", "X")
    monkeypatch.setitem(PANES, "browse", (*PANES["browse"], row))
    async with opened(small_trace(tmp_path), size=size) as pilot:
        browse = screen(pilot)
        assert isinstance(browse, PanedScreen)
        assert browse.tabs.labels()["largest"].strip()[0] == "X"
        browse.set_pane("largest")
        await settle(pilot)
        assert "the largest is 23.0" in frame(pilot)
        text = await press(pilot, "j")
        assert "only of norms" in text and "n goes to one" in text and "23.0" not in text
        assert "largest" in browse.tabs.empty and "stats" not in browse.tabs.empty
        assert place_of("browse", "largest") not in browse.active_places()


async def test_a_pane_that_has_nothing_keeps_its_keys_to_itself(tmp_path: Path) -> None:
    trace = small_trace(tmp_path, manifest=False)
    write_stage(trace / "layer-0" / "attn_out.bin", 0, np.zeros(0, dtype=np.float32))
    async with opened(trace) as pilot:
        assert "c range" in frame(pilot)
        text = await press(pilot, "j")
        assert "This stage holds no values." in text and "c range" not in text
        await press(pilot, "c", "tab")  # nothing hears it, nothing takes the focus
        browse = screen(pilot)
        assert isinstance(browse, PanedScreen) and browse.listing.has_focus
        assert "c range" in await press(pilot, "j")
