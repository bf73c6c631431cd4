"""Filters are of one grammar everywhere, and the cursor follows its row through them."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.pilot import Pilot

from aprtui.formats.tracedir import StageKey
from aprtui.tui.screens.browse import BrowseScreen
from aprtui.tui.screens.home import HomeScreen
from aprtui.tui.screens.model import ModelScreen
from tests.tui.support import NARROW, WIDE, frame, opened, press, screen, settle, small_trace
from tests.tui.test_looking_frames import small_model

SIZES = pytest.mark.parametrize("size", [WIDE, NARROW])


def browse(pilot: Pilot[int]) -> BrowseScreen:
    found = screen(pilot)
    assert isinstance(found, BrowseScreen)
    return found


@SIZES
async def test_words_numbers_and_ranges_find_stages_in_browse(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    async with opened(small_trace(tmp_path, layers=4), size=size) as pilot:
        cases = {
            "ffn 2": ["layer-2/ffn_out"],
            "out 1..3 attn": ["layer-1/attn_out", "layer-2/attn_out"],
            "layer-3 norm": ["layer-3/attn_norm"],
        }
        for text, found in cases.items():
            typed = ["space" if letter == " " else letter for letter in text]
            await press(pilot, "slash", *["backspace"] * 20, *typed, "enter")
            assert [str(key) for key in browse(pilot).stages.matching] == found
        assert "showing 1 of 13" in frame(pilot)


@SIZES
async def test_the_cursor_follows_its_stage_through_filters(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    async with opened(small_trace(tmp_path, layers=4), size=size) as pilot:
        stages = browse(pilot).stages
        stages.select(StageKey(2, "ffn_out"))
        await press(pilot, "slash", *"ffn", "enter")
        assert stages.current == StageKey(2, "ffn_out")
        await press(pilot, "q")
        assert stages.current == StageKey(2, "ffn_out"), "its layer unfolds where it was folded"
        await press(pilot, "slash", *"norm", "enter")
        assert stages.current == StageKey(3, "attn_norm"), "the next that is left"
        await press(pilot, "q", "slash", *"zz", "enter", "q")
        await settle(pilot)
        assert stages.current is not None


async def test_tensors_are_found_by_layer_name_and_type(tmp_path: Path) -> None:
    async with opened(small_model(tmp_path / "small.gguf")) as pilot:
        model = screen(pilot)
        assert isinstance(model, ModelScreen)
        await press(pilot, "slash", *"0", "space", *"ffn", "space", *"f32", "enter")
        names = [row.entry.name for row in model.tensors.matching]
        assert names and all("ffn" in name and name.startswith("blk.0.") for name in names)
        here = model.tensors.current
        await press(pilot, "j", "q")
        after = model.tensors.current
        assert here is not None and after is not None and after is not here and after.layer == 0
        assert after.label in frame(pilot)


async def test_home_finds_words_in_any_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small_trace(tmp_path / "first")
    small_trace(tmp_path / "second")
    async with opened() as pilot:
        home = screen(pilot)
        assert isinstance(home, HomeScreen)
        await press(pilot, "slash", *"trace", "space", *"sec", "enter")
        assert [row.name for row in home.list.rows] == ["second"]
