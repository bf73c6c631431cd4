"""The palette goes to stages, tensors, files and themes; tab completes."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

from aprtui.errors import BadFileError
from aprtui.formats.tracedir import StageKey
from aprtui.tui.app import AprtuiApp
from aprtui.tui.config import Config, read_config
from aprtui.tui.screens.browse import BrowseScreen
from aprtui.tui.screens.diff import DiffScreen
from aprtui.tui.screens.home import HomeScreen
from aprtui.tui.screens.model import ModelScreen
from tests.tui.support import NARROW, WIDE, frame, opened, press, screen, settle, small_trace, until


@pytest.mark.parametrize("size", [WIDE, NARROW])
async def test_a_layer_and_a_stage_lead_there_past_a_filter(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    async with opened(small_trace(tmp_path, layers=13), size=size) as pilot:
        await press(pilot, "slash", *"norm", "enter")
        await press(pilot, "colon", *"layer 12 ffn_out")
        await until(pilot, "layer 12 ffn_out")
        await press(pilot, "enter")
        browse = screen(pilot)
        assert isinstance(browse, BrowseScreen)
        assert browse.stages.current == StageKey(12, "ffn_out") and not browse.stages.filter
        await press(pilot, "less_than_sign")
        assert browse.stages.current == StageKey(0, "attn_norm")


async def test_tab_completes_what_is_typed(tmp_path: Path) -> None:
    small_trace(tmp_path / "deep" / "one")
    async with opened(small_trace(tmp_path / "t")) as pilot:
        await press(pilot, "colon", *f"{tmp_path}/de")
        await until(pilot, f"{tmp_path}/deep/"[-20:])
        await press(pilot, "tab", *"on")
        await until(pilot, "deep/one/")
        await press(pilot, "tab", "enter")
        here = screen(pilot).here()
        assert here is not None and here.paths == (tmp_path / "deep" / "one",)
        await press(pilot, "less_than_sign")
        here = screen(pilot).here()
        assert here is not None and here.paths == (tmp_path / "t",)


async def test_a_folder_that_is_no_trace_is_shown_by_home(tmp_path: Path) -> None:
    small_trace(tmp_path / "deep" / "one")
    async with opened(small_trace(tmp_path / "t")) as pilot:
        await press(pilot, "colon", *f"{tmp_path}/deep")
        await until(pilot, "deep/")
        await press(pilot, "enter")
        home = screen(pilot)
        assert isinstance(home, HomeScreen) and home.folder == tmp_path / "deep"


async def test_a_tensor_is_found_by_role_and_layer_and_by_its_name(tmp_path: Path) -> None:
    with resources.as_file(resources.files("aprtui") / "demo" / "pycode-5m.gguf") as path:
        async with opened(path) as pilot:
            model = screen(pilot)
            assert isinstance(model, ModelScreen)
            for typed in ("layer 3 gate", "blk.3.ffn_gate"):
                await press(pilot, "g", "colon", *typed)
                await until(pilot, "blk.3.ffn_gate.weight")
                await press(pilot, "enter")
                row = model.tensors.current
                assert row is not None and row.entry.name == "blk.3.ffn_gate.weight"


async def test_stages_of_other_screens_that_are_open_are_found_too(tmp_path: Path) -> None:
    a, b = small_trace(tmp_path / "a"), small_trace(tmp_path / "b")
    async with opened(a, b) as pilot:
        await press(pilot, "A", "right_square_bracket")
        assert isinstance(screen(pilot), DiffScreen)
        await press(pilot, "colon", *"layer 0 attn_out")
        await until(pilot, "attn_out · in a")
        await press(pilot, "down", "enter")
        browse = screen(pilot)
        assert isinstance(browse, BrowseScreen)
        assert browse.stages.current == StageKey(0, "attn_out")


async def test_any_theme_is_taken_by_name_and_stays(tmp_path: Path) -> None:
    trace = small_trace(tmp_path / "t")
    async with opened(trace) as pilot:
        await press(pilot, "colon", *"theme dra")
        await until(pilot, "theme dracula")
        await press(pilot, "enter")
        assert pilot.app.theme == "dracula" and "theme dracula" in frame(pilot)
    async with opened(trace) as pilot:
        assert pilot.app.theme == "dracula"
        await press(pilot, "f2")
        chosen = pilot.app.theme
    async with opened(trace) as pilot:
        assert pilot.app.theme == chosen != "dracula"
    other = AprtuiApp(folder=tmp_path, config=Config(theme="nord"))  # named since: it is newer
    async with other.run_test() as pilot:
        await settle(pilot)
        assert pilot.app.theme == "nord"


def test_a_theme_that_does_not_exist_is_refused_with_one_that_does(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('theme = "drakula"')
    with pytest.raises(BadFileError, match="no theme drakula") as caught:
        read_config(file)
    assert "did you mean dracula?" in caught.value.hint and "nord" in caught.value.hint
