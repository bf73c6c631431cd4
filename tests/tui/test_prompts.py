"""Questions for a path: completed, kept, read as the shell would; and keys that take a click."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.pilot import Pilot

from aprtui.tui.app import AprtuiApp
from aprtui.tui.paths import completed, meant, paths_after
from aprtui.tui.screens.browse import BrowseScreen
from aprtui.tui.screens.diff import DiffScreen
from aprtui.tui.screens.help import HelpScreen
from aprtui.tui.screens.model import ModelScreen
from aprtui.tui.screens.trace import TraceScreen
from aprtui.tui.widgets.prompt import Prompt
from tests.tui.support import NARROW, WIDE, frame, opened, press, screen, settle, small_trace, until
from tests.tui.test_looking_frames import small_model
from tests.tui.test_trace import RUN, _form

SIZES = pytest.mark.parametrize("size", [WIDE, NARROW])
Size = tuple[int, int]


def asked(pilot: Pilot[int]) -> Prompt:
    return screen(pilot).query_one(Prompt)


# -- what is typed ---------------------------------------------------------------------------------


def test_a_path_is_read_as_the_shell_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a b").mkdir()
    (tmp_path / "away" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "away" / "deep")
    assert meant(f"  {tmp_path}//a b/ ") == tmp_path / "a b"
    assert meant(f"'{tmp_path}/a b'") == tmp_path / "a b"
    assert meant(f"file://{tmp_path}/a b") == tmp_path / "a b"
    assert meant("~/a b") == meant("$HOME/./a b") == tmp_path / "a b"
    assert meant("~/link/../x") == tmp_path.resolve() / "away" / "x", (
        "as the system goes, not as text"
    )
    assert meant("~no-such-user-here/x") == Path("~no-such-user-here/x")


def test_a_path_is_completed_as_far_as_there_is_one_way(tmp_path: Path) -> None:
    for name in ("trace-a", "trace-b", ".hidden"):
        (tmp_path / name).mkdir()
    (tmp_path / "model.gguf").touch()
    assert completed(f"{tmp_path}/tr") == (f"{tmp_path}/trace-", ["trace-a", "trace-b"])
    assert completed(f"{tmp_path}/trace-a") == (f"{tmp_path}/trace-a/", ["trace-a"])
    assert completed(f"{tmp_path}/mo")[0] == f"{tmp_path}/model.gguf"
    assert completed(f"{tmp_path}/zz") == (f"{tmp_path}/zz", [])
    assert paths_after(f"{tmp_path}/.h") == [f"{tmp_path}/.hidden/"]
    assert paths_after(f"{tmp_path}/x\0/") == [] and paths_after(f"{tmp_path}/model.gguf/") == []


@SIZES
async def test_tab_completes_the_other_trace_and_what_was_typed_is_offered_again(
    tmp_path: Path, size: Size
) -> None:
    a, b = small_trace(tmp_path / "one"), small_trace(tmp_path / "two")
    async with opened(a, size=size) as pilot:
        await press(pilot, "d")
        asked(pilot).value = f"{tmp_path}/"
        assert "one  two" in await press(pilot, "tab")
        await press(pilot, "t", "tab")
        assert asked(pilot).value == f"{b}/"
        await press(pilot, "escape", "d")
        assert asked(pilot).value == f"{b}/", "esc keeps it for the next time"
        await press(pilot, "enter")
        diff = screen(pilot)
        assert isinstance(diff, DiffScreen) and diff.job.b == b


async def test_the_shadow_of_a_path_is_taken_by_the_right_arrow(tmp_path: Path) -> None:
    a, b = small_trace(tmp_path / "one"), small_trace(tmp_path / "two")
    async with opened(a) as pilot:
        await press(pilot, "d")
        asked(pilot).value = f"{tmp_path}/t"
        asked(pilot).cursor_position = len(asked(pilot).value)
        await until(pilot, f"{b.name}/")
        await press(pilot, "right")
        assert asked(pilot).value == f"{b}/"


async def test_a_file_that_is_written_is_named_anew_each_time(tmp_path: Path) -> None:
    async with opened(small_trace(tmp_path)) as pilot:
        await press(pilot, "e", *"x", "escape", "j", "e")
        assert asked(pilot).value == "layer-0-attn_out.npy"


# -- a run that waits for its plan -----------------------------------------------------------------


async def test_r_starts_the_trace_as_soon_as_the_plan_is_there(tmp_path: Path) -> None:
    async with AprtuiApp(folder=tmp_path).run_test(size=WIDE) as pilot:
        trace = await _form(pilot, tmp_path, RUN)
        assert isinstance(trace, TraceScreen)
        trace.planning.begin()
        trace.action_run()  # what r does, before the plan can be there
        assert trace.planning.wanted and not trace.running
        await until(pilot, "as soon as the plan")
        await settle(pilot)
        assert "complete" in frame(pilot)


async def test_a_change_of_the_form_takes_the_run_back(tmp_path: Path) -> None:
    async with AprtuiApp(folder=tmp_path).run_test(size=WIDE) as pilot:
        trace = await _form(pilot, tmp_path, RUN)
        trace.planning.begin()
        trace.action_run()
        trace.planning.begin()  # what a letter in a field does
        assert not trace.planning.wanted
        await settle(pilot)
        assert not trace.running and trace.ended is None


# -- clicks ----------------------------------------------------------------------------------------


async def click_on(pilot: Pilot[int], text: str, line: int, into: int = 0) -> str:
    """Click on ``text`` in that line of the frame; the frame after that."""
    row = frame(pilot).splitlines()[line]
    assert text in row, row
    height = len(frame(pilot).splitlines())
    await pilot.click(offset=(row.index(text) + into, line % height))
    await settle(pilot)
    return frame(pilot)


@SIZES
async def test_a_key_in_the_foot_takes_a_click(tmp_path: Path, size: Size) -> None:
    async with opened(small_trace(tmp_path), size=size) as pilot:
        assert "log counts" in await click_on(pilot, "L log", -1)
        assert "─ layer 0 · attn_norm" in frame(pilot)
        await click_on(pilot, "j k stage", -1)
        await click_on(pilot, "j k stage", -1, into=2)
        assert "─ layer 0 · attn_norm" in frame(pilot)
        await click_on(pilot, "? help", -1)
        assert isinstance(pilot.app.screen, HelpScreen)
        await press(pilot, "escape")
        await click_on(pilot, "tab pane", -1, into=2)
        browse = screen(pilot)
        assert isinstance(browse, BrowseScreen) and browse.shown_pane.target().has_focus


async def test_both_keys_of_one_word_take_clicks_of_their_own(tmp_path: Path) -> None:
    a, b = small_trace(tmp_path / "a"), small_trace(tmp_path / "b")
    async with opened(a, b, size=(160, 40)) as pilot:
        await click_on(pilot, "A B in Browse", -1, into=2)
        browse = screen(pilot)
        assert isinstance(browse, BrowseScreen) and browse.path == b


async def test_a_word_of_the_header_takes_a_click(tmp_path: Path) -> None:
    model = small_model(tmp_path / "small.gguf")
    async with opened(model) as pilot:
        await press(pilot, "t")
        assert isinstance(screen(pilot), TraceScreen)
        await click_on(pilot, "Model", 0)
        assert isinstance(screen(pilot), ModelScreen)
        assert "Diff is not open" in await click_on(pilot, "Diff", 0)
        await click_on(pilot, " ?", 0, into=1)
        assert isinstance(pilot.app.screen, HelpScreen)
    async with opened(model, size=NARROW) as pilot:
        await click_on(pilot, " ?", 0, into=1)
        assert isinstance(pilot.app.screen, HelpScreen)


async def test_a_tab_takes_a_click(tmp_path: Path) -> None:
    async with opened(small_trace(tmp_path)) as pilot:
        await click_on(pilot, "5 Stats", 2)
        browse = screen(pilot)
        assert isinstance(browse, BrowseScreen) and browse.pane == "stats"
