"""Only the cells that look different are sent, and the terminal shows what was drawn."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyte
import pytest
from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from textual._compositor import CompositorUpdate, LayoutUpdate
from textual.app import App
from textual.geometry import Region
from textual.pilot import Pilot
from textual.strip import Strip

from aprtui.formats.layout import MANIFEST
from aprtui.tui.sent import Sent
from tests.tui.support import NARROW, opened, press, settle, small_trace

CONSOLE = Console(color_system="truecolor", force_terminal=True, width=200, legacy_windows=False)
PLAIN, LOUD = Style(), Style(bold=True, color="red")


class Seen:
    """A terminal that reads what an app sends."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.terminal = pyte.Screen(*NARROW)
        self._stream = pyte.Stream(self.terminal)
        self.sent = ""

        def display(_: object, __: object, update: object) -> None:
            if isinstance(update, CompositorUpdate):
                self.read(update)

        monkeypatch.setattr(App, "_display", display)

    def read(self, update: CompositorUpdate) -> None:
        found = update.render_segments(CONSOLE)
        self.sent += found
        self._stream.feed(found)

    def cells(self) -> list[list[object]]:
        lines = [self.terminal.buffer[y] for y in range(self.terminal.lines)]
        return [[_shown(line[x]) for x in range(self.terminal.columns)] for line in lines]


def _shown(cell: Any) -> object:
    """A cell as a person sees it: of a blank only the ground."""
    ground = cell.fg if cell.reverse else cell.bg
    return (" ", ground, cell.underscore) if cell.data == " " else cell


def _whole(pilot: Pilot[int]) -> list[list[object]]:
    """The screen as Textual draws it at once, in a terminal of its own."""
    size = pilot.app.size
    terminal = pyte.Screen(size.width, size.height)
    update = pilot.app.screen._compositor.render_full_update()
    pyte.Stream(terminal).feed(update.render_segments(CONSOLE))
    lines = [terminal.buffer[y] for y in range(size.height)]
    return [[_shown(line[x]) for x in range(size.width)] for line in lines]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    return Seen(monkeypatch)


def test_of_a_look_only_what_changes_is_sent() -> None:
    """Cells far apart that look alike are told their look once; of two colours the one that is
    another; of attributes all."""
    sent = Sent()
    ground, amber, blue = ("on #121212", "#ffc473 on #121212", "#57a5e2 on #121212")

    def line(*looks: str) -> str:
        parts = [(" " * 20, ground), ("x", looks[0]), (" " * 20, ground), ("x", looks[1])]
        return _rest(sent, *((text, Style.parse(look)) for text, look in parts))

    line(ground, ground)
    assert line(amber, amber).count("38;2;255;196;115") == 1
    assert line(blue, amber) == "\x1b[1;21H\x1b[0;38;2;87;165;226;48;2;18;18;18mx\x1b[0m"
    assert line(amber, blue).count("48;2;18;18;18") == 1
    assert line(f"bold {amber}", blue).count("\x1b[0;1;38") == 1


async def test_the_terminal_shows_what_is_drawn_whatever_is_pressed(
    tmp_path: Path, seen: Seen
) -> None:
    trace = small_trace(tmp_path)
    said = json.loads((trace / MANIFEST).read_text())
    said["tokens"] = {"ids": [1, 2, 3], "text": ["漢字", "e\u0301🙂", "a"]}
    (trace / MANIFEST).write_text(json.dumps(said))
    async with opened(trace, size=NARROW) as pilot:
        drawn = ""
        for keys in ("j", "2 tab l j", "tab O tab j l", "question_mark", "escape f2 z G"):
            drawn += await press(pilot, *keys.split())
            assert seen.cells() == _whole(pilot), keys
        assert "漢" in drawn and "type to search" in drawn

        seen.sent = ""
        pilot.app.screen.refresh()
        await settle(pilot)
        assert seen.sent == ""  # all of it stands there already
        seen.terminal.reset()
        await press(pilot, "ctrl+l")
        assert seen.cells() == _whole(pilot)
        seen.terminal.resize(30, 100)
        await pilot.resize_terminal(100, 30)
        await press(pilot, "k")
        assert seen.cells() == _whole(pilot)


def _update(*parts: tuple[str, Style]) -> LayoutUpdate:
    strip = Strip([Segment(text, style) for text, style in parts])
    return LayoutUpdate([[strip]], Region(0, 0, strip.cell_length, 1))


def _rest(sent: Sent, *parts: tuple[str, Style]) -> str:
    return sent.rest_of(_update(*parts)).render_segments(CONSOLE)


def _text(raw: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*[mH]", "", raw)


def test_what_differs_is_sent_where_it_stands() -> None:
    sent = Sent()
    assert _text(_rest(sent, ("layer 12 of 40, ffn_gate", PLAIN))) == "layer 12 of 40, ffn_gate"
    found = _rest(sent, ("layer 13 of 40, ffn_down", PLAIN))
    assert found.startswith("\x1b[1;8H") and _text(found) == "3down"
    assert _rest(sent, ("layer 13 of 40, ffn_down", PLAIN)) == ""
    assert _text(_rest(sent, ("layer", LOUD), (" 13 of 40, ffn_down", PLAIN))) == "layer"
    assert _rest(sent, ("layer ", LOUD), ("13 of 40, ffn_down", PLAIN)) == ""  # a blank is a blank


def test_a_text_that_a_terminal_may_measure_otherwise_is_sent_whole() -> None:
    sent = Sent()
    for text in ("漢字 12", "漢字 13", "漢字 13", "abcd 13"):
        assert _text(_rest(sent, (text, PLAIN))) == text
    assert _rest(sent, ("abcd 13", PLAIN)) == ""
