"""Browse's Overview: the grid that the Trace screen fills, of a trace from the disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from aprtui.formats.aprt import write_stage
from aprtui.formats.tracedir import EVENTS, MANIFEST, StageKey
from aprtui.tui.screens.browse import BrowseScreen
from aprtui.tui.trace_cells import Held
from aprtui.tui.widgets.overview_pane import OverviewPane
from aprtui.tui.widgets.values_pane import ValuesPane
from tests.tui.support import (
    NARROW,
    WIDE,
    frame,
    growing_trace,
    opened,
    pane,
    press,
    screen,
    settle,
    small_trace,
    until,
)

HUGE = 200, 60
OUT = StageKey(1, "ffn_out")


def _values(*rows: float) -> npt.NDArray[np.float32]:
    return np.repeat(np.array(rows, dtype=np.float32), 8)


@pytest.mark.parametrize("size", [WIDE, NARROW, HUGE])
async def test_the_grid_of_a_trace_is_coloured_by_what_its_files_hold(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    """A trace without a manifest's numbers is measured; NaN and damage have signs of their own."""
    trace = small_trace(tmp_path / "t", layers=3)
    write_stage(trace / "layer-1/ffn_out.bin", 1, _values(1, 2, float("nan")))
    cut = trace / "layer-2/attn_out.bin"
    cut.write_bytes(cut.read_bytes()[:20])
    async with opened(trace, size=size) as pilot:
        text = await press(pilot, "O")
        grid = pane(pilot, OverviewPane).filling.grid
        assert set(grid.cells) == {*screen(pilot).trace.records}  # type: ignore[attr-defined]
        assert grid.cells[OUT] == ("N", "bad")
        assert grid.cells[StageKey(2, "attn_out")] == ("#", "bad")
        assert grid.cells[StageKey(0, "attn_norm")][1] not in ("bad", "dim")
        assert "rms against the layer above" in text
        held = pane(pilot, OverviewPane).filling.holdings.held
        rms = float(np.sqrt(np.mean(np.arange(24.0) ** 2)))
        assert held[StageKey(0, "attn_norm")].rms == pytest.approx(rms)
        assert held[OUT] == Held(float(np.sqrt((1 + 4) / 2)), 8, 0, 108, (3, 8))
        assert (size == HUGE) == ("rms of the residual" in text)
        assert "size: 1 kB" in await press(pilot, "c", "c")


async def test_a_manifests_numbers_are_taken_as_they_are(tmp_path: Path) -> None:
    trace = small_trace(tmp_path / "t")
    manifest = json.loads((trace / MANIFEST).read_text())
    for entry in manifest["stages"]:
        entry["stats"] = {"rms": 7.0, "nan": 0, "inf": int(entry["path"] == "layer-0/attn_out.bin")}
    (trace / MANIFEST).write_text(json.dumps(manifest))
    async with opened(trace) as pilot:
        await press(pilot, "O")
        filling = pane(pilot, OverviewPane).filling
        assert {held.rms for held in filling.holdings.held.values()} == {7.0}
        assert filling.grid.cells[StageKey(0, "attn_out")] == ("I", "bad")


async def test_its_cursor_and_the_trees_are_one_and_enter_shows_the_values(tmp_path: Path) -> None:
    async with opened(small_trace(tmp_path / "t")) as pilot:
        browse = screen(pilot)
        assert isinstance(browse, BrowseScreen)
        overview = pane(pilot, OverviewPane)
        await press(pilot, "O", "j")
        assert overview.filling.grid.current == browse.stages.current == StageKey(0, "attn_out")
        text = await press(pilot, "tab", "l", "j")
        assert browse.stages.current == overview.filling.grid.current == OUT
        assert "layer 1 · ffn_out · [3 token, 8 hidden]" in text
        assert "1.06 x the layer above" in text, "the stage in numbers"
        assert overview.filling.preview.preview is not None, "and drawn, where there is room"
        await press(pilot, "enter")
        assert browse.pane == "values" and pane(pilot, ValuesPane).grid.has_focus
        await press(pilot, "enter")
        assert browse.pane == "overview" and overview.filling.grid.has_focus
        await press(pilot, "tab", "slash", *"norm", "enter", "tab", "G")
        assert browse.stages.current == StageKey(None, "final_norm")


async def test_a_trace_that_grows_fills_it(tmp_path: Path) -> None:
    trace = growing_trace(tmp_path / "t")
    async with opened(trace) as pilot:
        await press(pilot, "O")
        grid = pane(pilot, OverviewPane).filling.grid
        assert StageKey(2, "attn_norm") not in grid.cells
        write_stage(trace / "layer-2/attn_norm.bin", 2, _values(1, 2, 3))
        with (trace / EVENTS).open("a", encoding="utf-8") as events:
            events.write(json.dumps({"event": "stage"}) + "\n")
        await until(pilot, "  2  ")
        await settle(pilot)
        assert StageKey(2, "attn_norm") in grid.cells, frame(pilot)
