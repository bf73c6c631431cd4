"""The app around the screens: home, help, modes, size, themes, and no torch in this process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from aprtui.errors import BadFileError
from aprtui.formats.aprt import write_stage
from aprtui.tui.app import AprtuiApp, theme_for
from aprtui.tui.config import Config, read_config
from aprtui.tui.places import places_below
from aprtui.tui.screens.browse import BrowseScreen
from aprtui.tui.screens.help import HelpScreen
from aprtui.tui.screens.home import HomeScreen
from tests.tui.support import NARROW, WIDE, frame, opened, press, screen, settle, small_trace, until


async def test_home_is_empty_and_says_what_to_do(tmp_path: Path) -> None:
    async with AprtuiApp(folder=tmp_path).run_test(size=NARROW) as pilot:
        await settle(pilot)
        assert screen(pilot).state == "empty"
        assert "aprtui demo" in frame(pilot)


async def test_home_lists_traces_and_enter_opens_one(tmp_path: Path) -> None:
    small_trace(tmp_path / "deep" / "one")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    async with AprtuiApp(folder=tmp_path).run_test(size=WIDE) as pilot:
        await settle(pilot)
        text = frame(pilot)
        assert "complete " in text and "model.gguf" in text
        await press(pilot, "slash", *"deep", "enter")
        await press(pilot, "enter")
        assert isinstance(pilot.app.screen, BrowseScreen)
        await press(pilot, "q")
        assert isinstance(pilot.app.screen, HomeScreen)


async def test_home_lists_a_per_op_folder_once_and_claims_nothing_it_did_not_check(
    tmp_path: Path,
) -> None:
    for side in ("cpu", "gpu"):
        for position in ("pos-0000", "pos-0001"):
            write_stage(tmp_path / "D" / side / position / "layer-0" / "attn_out.bin", 0,
                        np.ones(4, dtype=np.float32))  # fmt: skip
    trace = small_trace(tmp_path / "t")
    (trace / "layer-0" / "ffn_out.bin").unlink()
    places = {Path(place.path).name: place.remark for place in places_below(tmp_path)}
    assert places == {"D": "per-op, cpu and gpu", "t": "2 layers"}


def test_a_folder_that_is_a_trace_hides_nothing_that_lies_below_it(tmp_path: Path) -> None:
    small_trace(small_trace(tmp_path) / "deep" / "t")
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    found = [str(Path(place.path).relative_to(tmp_path)) for place in places_below(tmp_path)]
    assert found == [".", "m.gguf", "deep/t"]


@pytest.mark.parametrize("size", [WIDE, NARROW])
async def test_help_shows_the_keys_of_the_screen_first_and_searches(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    async with opened(small_trace(tmp_path), size=size) as pilot:
        text = await press(pilot, "question_mark")
        assert isinstance(pilot.app.screen, HelpScreen)
        assert "Header: bytes decoded" in text
        text = await press(pilot, *"quit")
        assert "quit from anywhere" in text and "Header: bytes decoded" not in text
        await press(pilot, "escape")
        assert isinstance(pilot.app.screen, BrowseScreen)


async def test_the_foot_names_keys_of_the_pane_that_is_shown(tmp_path: Path) -> None:
    async with opened(small_trace(tmp_path)) as pilot:
        assert "L log" in frame(pilot)
        text = await press(pilot, "2")
        assert "m max" in text and "L log" not in text


async def test_modes_are_kept_apart_and_a_bracket_goes_round(tmp_path: Path) -> None:
    a, b = small_trace(tmp_path / "a"), small_trace(tmp_path / "b")
    async with opened(a) as pilot:
        app = pilot.app
        assert isinstance(app, AprtuiApp)
        app.open_diff(a, b)
        await settle(pilot)
        assert app.current_mode == "diff"
        await press(pilot, "right_square_bracket")
        assert app.current_mode == "browse"
        await press(pilot, "left_square_bracket")
        assert app.current_mode == "diff"
        await press(pilot, "q")
        assert app.current_mode == "browse"


async def test_a_bracket_with_one_mode_open_says_why_it_goes_nowhere(tmp_path: Path) -> None:
    async with opened(small_trace(tmp_path)) as pilot:
        assert "only Browse is open" in await press(pilot, "right_square_bracket")


async def test_only_q_quits_at_the_top(tmp_path: Path) -> None:
    a, b = small_trace(tmp_path / "a"), small_trace(tmp_path / "b")
    async with opened(a) as pilot:
        app = pilot.app
        assert isinstance(app, AprtuiApp)
        assert "q quits" in await press(pilot, "escape")
        for key in ("ctrl+c", "ctrl+z"):
            assert "^q quits" in await press(pilot, key)
        app.open_diff(a, b)
        await settle(pilot)
        await press(pilot, "escape")
        assert app.current_mode == "browse"
        await press(pilot, "escape")
        assert app.is_running
        await press(pilot, "q")
        assert not app.is_running


async def test_a_key_can_be_remapped_in_the_config(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('theme = "textual-light"\n[keys]\nhelp = "f1"\n')
    app = AprtuiApp(folder=tmp_path, config=read_config(file))
    async with app.run_test(size=WIDE) as pilot:
        await settle(pilot)
        assert app.theme == "textual-light"
        await press(pilot, "question_mark")
        assert not isinstance(app.screen, HelpScreen)
        await press(pilot, "f1")
        assert isinstance(app.screen, HelpScreen)


@pytest.mark.parametrize("text", ["[keys", '[keys]\nhlep = "f1"', "[keys]\nhelp = 3", "theme = 3"])
def test_a_config_that_cannot_be_meant_is_an_error_that_names_it(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)
    with pytest.raises(BadFileError, match=r"config\.toml"):
        read_config(file)


def test_without_a_config_the_table_stands(tmp_path: Path) -> None:
    assert read_config(tmp_path / "none.toml") == Config()


async def test_too_small_a_terminal_gets_one_line_and_grows_back(tmp_path: Path) -> None:
    async with opened(small_trace(tmp_path)) as pilot:
        await pilot.resize_terminal(20, 5)
        await until(pilot, "needs")
        assert "Stages" not in frame(pilot)
        await pilot.resize_terminal(*NARROW)
        await until(pilot, "Stages")


@pytest.mark.parametrize(
    ("environment", "theme"),
    [
        ({"TERM": "xterm"}, "ansi-dark"),
        ({"TERM": "screen"}, "ansi-dark"),
        ({"TERM": "xterm-256color"}, "textual-dark"),
        ({"TERM": "xterm", "COLORTERM": "truecolor"}, "textual-dark"),
    ],
)
def test_the_theme_fits_the_colours_of_the_terminal(
    environment: dict[str, str], theme: str
) -> None:
    assert theme_for(environment) == theme


@pytest.mark.parametrize("theme", ["textual-light", "ansi-dark", "ansi-light"])
async def test_every_pane_draws_in_every_theme(tmp_path: Path, theme: str) -> None:
    async with opened(small_trace(tmp_path)) as pilot:
        pilot.app.theme = theme
        for pane in "12345":
            await press(pilot, pane)
        assert screen(pilot).state == "full"


def test_no_screen_brings_torch_into_this_process(tmp_path: Path) -> None:
    small_trace(tmp_path / "t")
    program = f"""
import asyncio, sys
from pathlib import Path
from aprtui.tui.app import AprtuiApp
from aprtui.tui.source import kind_of
import aprtui.tui.screens.pair, aprtui.tui.screens.trace, aprtui.tui.screens.model
import aprtui.tui.screens.help
async def main():
    trace = kind_of(Path({str(tmp_path / "t")!r}))
    for paths in ((), (trace,), (trace, trace)):
        async with AprtuiApp(paths, folder=Path({str(tmp_path)!r})).run_test() as pilot:
            await pilot.pause()
            await pilot.app.workers.wait_for_complete()
asyncio.run(main())
print("torch" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
