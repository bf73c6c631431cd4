"""The grid of a trace is coloured by what its files hold, and tells the stage under the cursor."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from textual.app import App, ComposeResult

from aprtui.engine.events import StageWritten
from aprtui.formats.aprt import write_stage
from aprtui.formats.tracedir import StageKey
from aprtui.tui.app import AprtuiApp
from aprtui.tui.trace_cells import Held, Holdings, Look, holdings_of
from aprtui.tui.widgets.filling import Filling
from aprtui.tui.widgets.palette import HALF, LEVELS
from tests.tui.support import NARROW, WIDE, settle

OUT = "ffn_out"


def _holdings(*rms: float, nan: int = 0, inf: int = 0, size_bytes: int = 0) -> Holdings:
    held = {
        StageKey(layer, OUT): Held(value, nan, inf, size_bytes) for layer, value in enumerate(rms)
    }
    return Holdings(held=held)


@pytest.mark.parametrize(
    ("above", "here", "level"),
    [(1.0, 1.2, 0), (1.0, 0.85, 0), (1.0, 1.5, 2), (1.0, 2.5, 3), (1.0, 5.0, 4), (1.0, 1e9, HALF),
     (1.0, 0.3, -3), (1.0, 0.0, -HALF), (0.0, 1.0, HALF), (0.0, 0.0, 0)],
)  # fmt: skip
def test_growth_is_told_in_levels_of_the_factor(above: float, here: float, level: int) -> None:
    assert _holdings(above, here).level(StageKey(1, OUT)) == level


def test_growth_is_against_the_nearest_layer_above_that_has_a_number() -> None:
    found = _holdings(2.0, math.nan, 4.0)
    assert found.growth(StageKey(2, OUT)) == 2.0
    assert found.growth(StageKey(0, OUT)) is None and found.growth(StageKey(1, OUT)) is None
    found.held[StageKey(None, "lm_head")] = Held(3.0)
    assert found.growth(StageKey(None, "lm_head")) is None


@pytest.mark.parametrize("look", Look)
@pytest.mark.parametrize("by", ["growth", "rms", "size"])
def test_nan_and_inf_are_signs_of_their_own_whatever_the_colours_mean(by: str, look: Look) -> None:
    found = _holdings(math.nan, nan=1, inf=5)
    found.by = by
    found.held[StageKey(1, OUT)] = Held(math.inf, inf=5)
    assert found.cell(StageKey(0, OUT), look) == ("N", "bad")
    assert found.cell(StageKey(1, OUT), look) == ("I", "bad")
    assert ("1 NaN, 5 Inf  ", "bad") in found.told(StageKey(0, OUT))


def test_colours_mean_growth_then_rms_then_size_and_the_legend_says_which() -> None:
    found = _holdings(0.01, 100.0, size_bytes=1 << 20)
    signs = []
    for word in ("layer above", "rms: 0.001", "size: 1 kB", "layer above"):
        for look in Look:
            assert any(word in text for text, _ in found.legend(look)), word
        signs.append([found.cell(StageKey(layer, OUT), Look.COLOURS)[1] for layer in (0, 1)])
        found.next_way()
    assert signs[0] == ["dim", f"sign {HALF}"]
    levels = [int(style.split()[1]) for style in signs[1]]
    assert 0 < levels[0] < levels[1] < LEVELS
    assert signs[2][0] == signs[2][1] and signs[2][0].startswith("size ")


def test_a_manifest_says_the_same() -> None:
    assert holdings_of({"rms": 1.5, "nan": 0, "inf": 2}) == Held(1.5, 0, 2)
    broken = holdings_of({"rms": "NaN", "nan": 3})
    assert math.isnan(broken.rms) and broken.nan == 3 and math.isnan(holdings_of({}).rms)


class _Grid(App[int]):
    CSS_PATH = "../../aprtui/tui/theme.tcss"
    COMPONENT_CLASSES = AprtuiApp.COMPONENT_CLASSES

    def compose(self) -> ComposeResult:
        yield Filling(id="filling")


def _event(layer: int, stage: str, rms: float, done: int) -> StageWritten:
    return StageWritten(layer, stage, "", 108, done, 4, 108 * done, 0.1, rms, 0, 0, 0, 0, (3, 8),
                        ("token", "hidden"))  # fmt: skip


@pytest.mark.parametrize("size", [WIDE, NARROW, (200, 60)])
async def test_what_a_small_model_leaves_free_shows_the_stage_under_the_cursor(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    values = np.arange(24, dtype=np.float32) - 3
    for layer in (0, 1):
        write_stage(tmp_path / f"layer-{layer}" / "ffn_out.bin", layer, values * (1 + 3 * layer))
    async with _Grid().run_test(size=size) as pilot:
        filling = pilot.app.query_one(Filling)
        filling.begin([StageKey(0, OUT), StageKey(1, OUT)], ("Hi", " there", "!"))
        filling.set_running(True)
        for layer in (0, 1):
            part = filling.landed(_event(layer, OUT, 10.0 * (1 + 3 * layer), layer + 1), tmp_path)
            filling.grid.put({StageKey(layer, OUT): part})
        filling.show_cell()
        await settle(pilot)
        assert filling.preview.display
        filling.grid.focus()
        await pilot.press("j")
        await settle(pilot)
        strips = pilot.app.screen._compositor.render_strips()
        text = "\n".join(strip.text for strip in strips)
        assert "layer 1 · ffn_out · [3 token, 8 hidden]" in text
        assert "4 x the layer above" in text and "rms 40" in text
        assert "min -12" in text and "max 80" in text
        assert ("0 Hi" in text) == (size[0] >= 100)


async def test_a_stage_whose_file_is_gone_leaves_the_room_empty(tmp_path: Path) -> None:
    async with _Grid().run_test(size=WIDE) as pilot:
        filling = pilot.app.query_one(Filling)
        filling.begin([StageKey(0, OUT)], ())
        filling.set_running(True)
        filling.landed(_event(0, OUT, 1.0, 1), tmp_path / "nowhere")
        filling.show_cell()
        await settle(pilot)
        assert filling.preview.preview is None
