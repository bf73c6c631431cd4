"""What a person keeps: places with a note, and a report by one key that takes them in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from aprtui.errors import BadFileError
from aprtui.formats.aprt import write_stage
from aprtui.formats.tracedir import StageKey
from aprtui.report.bookmarks import (
    Bookmark,
    add,
    bookmarks,
    bookmarks_file,
    bookmarks_on,
    remove,
)
from aprtui.tui.bisected import seen
from aprtui.tui.screens.bookmarks import BookmarksScreen
from aprtui.tui.screens.browse import BrowseScreen
from aprtui.tui.screens.diff import DiffScreen
from aprtui.tui.screens.model import ModelScreen
from tests.tui.support import NARROW, WIDE, frame, opened, press, screen, small_trace
from tests.tui.test_compare_frames import FOUND
from tests.tui.test_looking_frames import small_model

SIZES = pytest.mark.parametrize("size", [WIDE, NARROW])
Size = tuple[int, int]


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def place(note: str = "", path: str = "/t", stage: str = "ffn_out") -> Bookmark:
    return Bookmark("browse", (path,), StageKey(1, stage), "", note, "2026-11-28")


# -- the file --------------------------------------------------------------------------------------


def test_bookmarks_are_kept_one_a_place_and_forgotten() -> None:
    assert bookmarks() == ()
    add(place("first"))
    add(place("other", stage="q"))
    add(place("second thoughts"))
    assert [each.note for each in bookmarks()] == ["other", "second thoughts"]
    remove(place("other", stage="q"))
    assert [each.note for each in bookmarks()] == ["second thoughts"]


def test_only_notes_on_what_is_compared_are_taken_in() -> None:
    add(place("on a", "/a"))
    add(place("on c", "/c"))
    add(Bookmark("pair", ("/a", "/b"), StageKey(0, "q"), "", "on both", "2026-11-28"))
    assert [each.note for each in bookmarks_on((Path("/a"), Path("/b")))] == ["on a", "on both"]


@pytest.mark.parametrize(
    "text", ["{", "{}", '{"schema": "aprtui-bookmarks-v1", "bookmarks": [{"screen": 3}]}']
)
def test_a_damaged_file_is_said_and_never_replaced(text: str) -> None:
    bookmarks_file().parent.mkdir(parents=True)
    bookmarks_file().write_text(text)
    for change in (bookmarks, lambda: add(place())):
        with pytest.raises(BadFileError):
            change()
    assert bookmarks_file().read_text() == text


# -- keys ------------------------------------------------------------------------------------------


@SIZES
async def test_a_stage_is_marked_with_a_note_listed_and_jumped_to(
    tmp_path: Path, size: Size
) -> None:
    trace = small_trace(tmp_path / "t")
    before = sorted(trace.rglob("*"))
    async with opened(trace, size=size) as pilot:
        await press(pilot, "j", "asterisk", *"odd", "enter")
        assert "marked" in frame(pilot)
        await press(pilot, "j", "j", "apostrophe")
        assert isinstance(pilot.app.screen, BookmarksScreen)
        assert "layer-0/attn_out" in frame(pilot) and "odd" in frame(pilot)
        await press(pilot, "enter")
        browse = screen(pilot)
        assert isinstance(browse, BrowseScreen)
        assert browse.stages.current == StageKey(0, "attn_out")
        await press(pilot, "apostrophe", "D")
        assert "Nothing is marked yet" in frame(pilot)
        await press(pilot, "q")
        assert screen(pilot) is browse and bookmarks() == ()
    assert sorted(trace.rglob("*")) == before, "nothing is written into a capture"


async def test_a_tensor_is_marked_too_and_found_from_another_screen(tmp_path: Path) -> None:
    model = small_model(tmp_path / "small.gguf")
    async with opened(model) as pilot:
        await press(pilot, "j", "j", "asterisk", *"big", "enter", "~")
        await press(pilot, "apostrophe", "enter")
        found = screen(pilot)
        assert isinstance(found, ModelScreen) and found.tensors.current is not None
        assert found.tensors.current.entry.name == "blk.0.attn_norm.weight"


async def test_a_damaged_file_of_bookmarks_is_said(tmp_path: Path) -> None:
    bookmarks_file().parent.mkdir(parents=True)
    bookmarks_file().write_text("{")
    async with opened(small_trace(tmp_path / "t")) as pilot:
        assert "bookmarks.json" in await press(pilot, "apostrophe")
        await press(pilot, "asterisk", *"odd", "enter")
        assert "! " in frame(pilot).splitlines()[-1] and bookmarks_file().read_text() == "{"


@SIZES
async def test_one_key_writes_a_report_with_the_notes(tmp_path: Path, size: Size) -> None:
    a, b = small_trace(tmp_path / "a"), small_trace(tmp_path / "b")
    write_stage(b / "layer-1" / "ffn_out.bin", 1, np.zeros(24, dtype=np.float32))
    async with opened(a, b, size=size) as pilot:
        diff = screen(pilot)
        assert isinstance(diff, DiffScreen)
        await press(pilot, "f", "asterisk", *"why", "enter", "R")
        assert "b-report.html" in frame(pilot)
        await press(pilot, "enter")
        assert "wrote" in frame(pilot) and "1 marked" in frame(pilot)
        written = Path("b-report.html").read_text()
        assert "layer-1/ffn_out" in written and "why" in written and "aprtui report" in written
        await press(pilot, "R", "enter")
        assert "is there already" in frame(pilot)
        await press(pilot, "R", *"r.json", "enter")
        found = json.loads(Path("r.json").read_text())
        assert found["marked"] == [{"where": "layer-1/ffn_out", "note": "why"}]
        assert found["verdict"] == "fail" and found["bisect"] is None


async def test_the_report_takes_in_what_the_replay_found(tmp_path: Path) -> None:
    a, b = small_trace(tmp_path / "a"), small_trace(tmp_path / "b")
    async with opened(a, b) as pilot:
        diff = screen(pilot)
        assert isinstance(diff, DiffScreen)
        diff._keep(seen(FOUND))
        await press(pilot, "R", *"r.md", "enter")
        assert "is doubled" in Path("r.md").read_text()


async def test_where_nothing_is_compared_there_is_no_report(tmp_path: Path) -> None:
    async with opened(small_trace(tmp_path / "t"), size=(160, 40)) as pilot:
        assert "R report" not in frame(pilot)
        assert "a report is of two traces" in await press(pilot, "R")
