"""A trace in small, on Home: a line a layer, a cell a stage, what does not fit counted."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from aprtui.formats.tracedir import MANIFEST, StageKey
from aprtui.tui.app import AprtuiApp
from aprtui.tui.trace_cells import Held, Holdings
from aprtui.tui.widgets.palette import Depth, Palette
from aprtui.tui.widgets.thumbnail import thumbnail
from tests.tui.support import NARROW, WIDE, frame, press, settle, small_trace, until
from tests.tui.test_looking_frames import small_model

FEW = Palette(Depth.FEW)


def _holdings(layers: int) -> Holdings:
    held = {
        StageKey(layer, stage): Held(1.0)
        for layer in range(layers)
        for stage in ("attn_norm", "attn_out", "ffn_out")
    }
    return Holdings(held=held | {StageKey(None, "final_norm"): Held(1.0)})


def _texts(holdings: Holdings, width: int, lines: int) -> list[str]:
    return ["".join(text for text, _ in line) for line in thumbnail(holdings, width, lines, FEW)]


def test_layers_are_lines_and_stages_cells_in_order_of_computation() -> None:
    found = _holdings(2)
    found.held[StageKey(1, "attn_out")] = Held(math.nan, nan=3)
    del found.held[StageKey(0, "attn_out")]
    assert _texts(found, 40, 20)[:4] == ["6 stages", "   0 ░ ░", "   1 ░N░", " end ░"]


@pytest.mark.parametrize("width", range(6, 12))
@pytest.mark.parametrize("lines", range(4, 12))
def test_what_does_not_fit_is_counted(width: int, lines: int) -> None:
    said, *rows = _texts(_holdings(9), width, lines)
    assert len(rows) + 1 <= max(lines + 1, 5)
    assert ("more layer" in said) == (len(rows) < 9 + 2)
    assert ("more stage" in said) == (width < 5 + 3)


def test_of_nothing_there_is_nothing() -> None:
    assert thumbnail(Holdings(), 40, 20, FEW) == []


@pytest.mark.parametrize("size", [WIDE, NARROW, (200, 60)])
async def test_home_pictures_the_trace_under_the_cursor_where_there_is_room(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    trace = small_trace(tmp_path / "t")
    manifest = json.loads((trace / MANIFEST).read_text())
    manifest["stages"][0]["stats"] = {"rms": 1.0, "nan": 2, "inf": 0}
    (trace / MANIFEST).write_text(json.dumps(manifest))
    small_trace(tmp_path / "u", layers=3)
    async with AprtuiApp(folder=tmp_path).run_test(size=size) as pilot:
        await settle(pilot)
        await press(pilot, "s", "g")
        assert "7 stages" in frame(pilot) and "   0 N" in frame(pilot)
        text = await press(pilot, "j")
        assert "10 stages" in text and "   2 " in text and "   0 N" not in text
        assert "rms against the layer above" in text


async def test_home_says_what_the_model_under_the_cursor_is(tmp_path: Path) -> None:
    small_model(tmp_path / "a.gguf")
    (tmp_path / "b.gguf").write_bytes(b"GGUF\x03\0\0\0")
    async with AprtuiApp(folder=tmp_path).run_test(size=WIDE) as pilot:
        await settle(pilot)
        text = await press(pilot, "s", "g")
        assert "1 layer · hidden 32" in text and "15 tensors" in text
        await press(pilot, "j")
        await until(pilot, "cut short")  # why it cannot be read
