"""A folder that grows while it is looked at, and one that takes long to read."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from textual.pilot import Pilot

from aprtui.compare.pairs import compare_pair
from aprtui.formats.aprt import write_stage
from aprtui.formats.tracedir import (
    EVENTS,
    MANIFEST,
    StageKey,
    Told,
    TraceDir,
    open_trace,
    relative_path,
)
from aprtui.tui import comparing, following
from aprtui.tui.app import AprtuiApp
from aprtui.tui.screens import browse
from aprtui.tui.screens.diff import DiffScreen
from aprtui.tui.screens.home import HomeScreen
from tests.tui.support import (
    NARROW,
    WIDE,
    assert_frame,
    frame,
    growing_trace,
    opened,
    press,
    screen,
    settle,
    small_trace,
    until,
)

SIZES = pytest.mark.parametrize("size", [NARROW, WIDE], ids=["80x24", "120x40"])
WRONG = StageKey(1, "attn_out")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often a folder was read, a pair compared, and a folder asked whether it grew."""
    found: Counter[str] = Counter()

    def counting(module: object, name: str) -> None:
        real = getattr(module, name)

        def call(what: Any, *more: Any, **named: Any) -> Any:
            of = what.name if isinstance(what, Path) else str(what.key)
            found[f"{name} {of}"] += 1
            return real(what, *more, **named)

        monkeypatch.setattr(module, name, call)

    counting(comparing, "load_trace")
    counting(comparing, "compare_pair")
    counting(following, "_mark_of")
    return found


def the_diff(pilot: Pilot[int]) -> DiffScreen:
    found = screen(pilot)
    assert isinstance(found, DiffScreen)
    return found


def ramp(add: float) -> npt.NDArray[np.float32]:
    """What ``small_trace`` holds in layer ``add``."""
    return np.arange(24, dtype=np.float32) + np.float32(add)


def grow(trace: Path, key: StageKey, values: npt.NDArray[np.float32]) -> None:
    """Write one more stage as a trace does: the file, then the event that tells of it."""
    write_stage(trace / relative_path(key), key.layer, values)
    tell(trace)


def tell(trace: Path) -> None:
    with (trace / EVENTS).open("a", encoding="utf-8") as events:
        events.write("{}\n")


async def asked(pilot: Pilot[int], calls: Counter[str]) -> None:
    """Until B was asked some times more whether it grew, and what that began has ended."""
    end = calls["_mark_of b"] + 3
    await come(pilot, lambda: calls["_mark_of b"] >= end)
    await settle(pilot)


async def come(pilot: Pilot[int], to_pass: Callable[[], bool]) -> None:
    for _ in range(600):
        if to_pass():
            return
        await pilot.pause(0.02)
    raise AssertionError(f"never came:\n{frame(pilot)}")


# -- Diff follows ----------------------------------------------------------------------------------


@SIZES
async def test_new_pairs_appear_by_themselves_and_the_cursor_stays_on_its_line(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    a, b = growing_trace(tmp_path / "a", layers=40), growing_trace(tmp_path / "b", layers=35)
    async with opened(a, b, size=size) as pilot:
        diff = the_diff(pilot)
        assert "106 of 121 pairs · 15 unmeasured" in frame(pilot)
        diff.select(StageKey(39, "attn_out"))
        await press(pilot, "k", "k", "k")
        here, first = diff.current, diff.grid.first
        assert here == StageKey(36, "attn_out") and first > 0
        grow(b, StageKey(35, "attn_norm"), ramp(35))
        await until(pilot, "107 of 121 pairs")
        grow(b, StageKey(50, "ffn_up"), ramp(0))  # a row and a column more
        await until(pilot, "107 of 122 pairs · 15 unmeasured")
        assert diff.current == here and diff.grid.first == first
        assert "comparing" not in frame(pilot)


async def test_the_list_keeps_its_line_while_what_is_worse_comes_in_above(tmp_path: Path) -> None:
    a, b = small_trace(tmp_path / "a", layers=40), growing_trace(tmp_path / "b", layers=30)
    async with opened(a, b) as pilot:
        diff = the_diff(pilot)
        await press(pilot, "s", *["ctrl+d"] * 2, "k", "k")
        here, line = diff.current, diff.rows.cursor - diff.rows.first
        assert diff.rows.first > 0
        grow(b, StageKey(35, "attn_out"), ramp(40))
        await until(pilot, "1 beyond bar")
        assert diff.rows.rows[0] == StageKey(35, "attn_out")
        assert diff.current == here and diff.rows.cursor - diff.rows.first == line


async def test_only_what_is_new_is_read_and_measured(tmp_path: Path, calls: Counter[str]) -> None:
    a, b = small_trace(tmp_path / "a"), growing_trace(tmp_path / "b")
    (b / "layer-1" / "attn_out.bin").unlink()
    async with opened(a, b) as pilot:
        await asked(pilot, calls)
        assert calls["load_trace a"] == calls["load_trace b"] == 1, "nothing grew"
        tell(b)
        await asked(pilot, calls)
        assert calls["load_trace b"] == 2 and calls[f"compare_pair {WRONG}"] == 1
        grow(b, WRONG, ramp(9))
        await until(pilot, "1 beyond bar · first layer-1/attn_out")
        assert calls["load_trace a"] == 1, "A is whole"
        assert calls["compare_pair layer-0/attn_out"] == 1
        assert calls[f"compare_pair {WRONG}"] == 2


async def test_a_file_written_anew_in_the_same_size_is_measured_anew(tmp_path: Path) -> None:
    a, b = small_trace(tmp_path / "a"), growing_trace(tmp_path / "b")
    async with opened(a, b) as pilot:
        assert "nothing beyond the bar" in frame(pilot)
        grow(b, WRONG, ramp(9))
        await until(pilot, "1 beyond bar · first layer-1/attn_out")


async def test_the_manifest_ends_it_after_all_is_read_once_more(
    tmp_path: Path, calls: Counter[str]
) -> None:
    a, b = small_trace(tmp_path / "a"), growing_trace(tmp_path / "b")
    async with opened(a, b) as pilot:
        assert "! B is incomplete: what is written appears by itself" in frame(pilot)
        shutil.copy(small_trace(tmp_path / "whole") / MANIFEST, b / MANIFEST)
        await come(pilot, lambda: "B is incomplete" not in frame(pilot))
        await settle(pilot)
        assert "7 of 7 pairs" in frame(pilot)
        assert calls["compare_pair layer-0/attn_out"] == 2, "the manifest says more of each"
        before = calls["_mark_of b"]
        the_diff(pilot)._follow()
        assert calls["_mark_of b"] == before, "nobody asks any more"


async def test_files_of_another_program_are_followed_into_a_layer_that_is_there(
    tmp_path: Path,
) -> None:
    a, b = small_trace(tmp_path / "a"), small_trace(tmp_path / "b", manifest=False)
    (b / "layer-1" / "attn_out.bin").unlink()
    async with opened(a, b) as pilot:
        assert "6 of 7 pairs · 1 unmeasured" in frame(pilot)
        write_stage(b / "layer-1" / "attn_out.bin", 1, ramp(1))
        await until(pilot, "7 of 7 pairs")


async def test_a_trace_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    a, b = small_trace(tmp_path / "a"), tmp_path / "b"
    b.mkdir()
    async with opened(a, b) as pilot:
        assert "aprtui trace MODEL makes one" in frame(pilot)
        (b / EVENTS).write_text("")
        await until(pilot, "0 of 7 pairs · 7 unmeasured")
        growing_trace(b)
        await until(pilot, "7 of 7 pairs")
        await press(pilot, "j")
        assert the_diff(pilot).current == StageKey(1, "attn_norm")


async def test_two_traces_without_a_stage_fill_by_themselves(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    for side in (a, b):
        side.mkdir()
        (side / EVENTS).write_text("")
    async with opened(a, b) as pilot:
        assert "Neither trace holds a stage yet." in frame(pilot)
        for side in (a, b):
            growing_trace(side)
        await until(pilot, "7 of 7 pairs")


async def test_a_folder_that_goes_away_is_told_and_taken_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    a, b = small_trace(Path("a")), growing_trace(Path("b[x]\x1b[31m\u202e"))
    async with opened(a, b) as pilot:
        diff = the_diff(pilot)
        diff.select(StageKey(1, "ffn_out"))
        b.rename("elsewhere")
        await until(pilot, "cannot be read")
        assert diff.state == "error" and r"b[x]\x1b[31m\u202e" in frame(pilot)
        assert "\x1b" not in frame(pilot)
        await press(pilot, "j", "enter", "y", "f", "n", "s", "s", "space", "space")
        Path("elsewhere").rename(b)
        await until(pilot, "7 of 7 pairs")
        assert diff.state == "full" and diff.current == StageKey(1, "ffn_out")


async def test_a_file_that_goes_away_while_it_is_compared_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = small_trace(tmp_path / "a"), growing_trace(tmp_path / "b")
    real = compare_pair

    def gone(pair: Any, *more: Any, **named: Any) -> Any:
        if pair.key == StageKey(None, "final_norm"):
            shutil.rmtree(b, ignore_errors=True)
            raise OSError(116, "Stale file handle")
        return real(pair, *more, **named)

    monkeypatch.setattr(comparing, "compare_pair", gone)
    async with opened(a, b) as pilot:
        await until(pilot, "cannot be read")


async def test_space_stops_following_and_goes_on(tmp_path: Path, calls: Counter[str]) -> None:
    a, b = small_trace(tmp_path / "a"), growing_trace(tmp_path / "b")
    async with opened(a, b) as pilot:
        assert "· paused" in await press(pilot, "space")
        grow(b, WRONG, ramp(9))
        the_diff(pilot)._follow()
        await settle(pilot)
        assert calls["load_trace b"] == 1
        assert "paused" not in await press(pilot, "space")
        await until(pilot, "1 beyond bar")


async def test_what_an_older_reading_still_says_does_no_harm(tmp_path: Path) -> None:
    a, b = small_trace(tmp_path / "a"), growing_trace(tmp_path / "b")
    async with opened(a, b) as pilot:
        diff = the_diff(pilot)
        assert diff.paired is not None
        late = replace(diff.paired, kept=frozenset(diff.results))
        await pilot.press("r")
        diff.post_message(comparing.Compared(late, (), True))
        await settle(pilot)
        assert "7 of 7 pairs" in frame(pilot) and "comparing" not in frame(pilot)


async def test_a_question_keeps_the_keys_while_a_trace_comes_to_be(tmp_path: Path) -> None:
    a, b = small_trace(tmp_path / "a"), tmp_path / "b"
    b.mkdir()
    async with opened(a, b) as pilot:
        await press(pilot, "d", *"xy")
        growing_trace(b)
        await until(pilot, "7 of 7 pairs")
        await press(pilot, "z")
        assert screen(pilot)._prompt.value == "xyz"


async def test_a_model_that_is_none_does_not_end_the_comparison(tmp_path: Path) -> None:
    a, b = small_trace(tmp_path / "a"), growing_trace(tmp_path / "b")
    async with opened(a, b) as pilot:
        await press(pilot, "b", *"nowhere.gguf", "enter")
        await press(pilot, "q")
        grow(b, WRONG, ramp(9))
        await until(pilot, "1 beyond bar")


# -- reading says how far it is --------------------------------------------------------------------


class SlowDisk:
    """``load_trace`` as it is when the disk is slow: some files are found, the rest takes long."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: object) -> None:
        self.goes_on, self.ended = threading.Event(), False
        self._real = getattr(module, "load_trace")  # noqa: B009 - of any module that has it
        monkeypatch.setattr(module, "load_trace", self._load)
        monkeypatch.setattr(following, "COUNT_S", 0.0)

    def _load(self, path: Path, model: str, told: Told) -> TraceDir:
        told(4_100, 10_000)
        self.goes_on.wait()
        told(4_164, 10_000)
        self.ended = True
        found: TraceDir = self._real(path, model, told)
        return found


@SIZES
@pytest.mark.parametrize("name", ["browse", "diff"])
async def test_reading_many_files_says_how_many_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, size: tuple[int, int]
) -> None:
    monkeypatch.chdir(tmp_path)
    a, b = small_trace(Path("a")), small_trace(Path("b"))
    app, disk = AprtuiApp(), SlowDisk(monkeypatch, browse if name == "browse" else comparing)
    async with app.run_test(size=size) as pilot:
        app.open_browse(a) if name == "browse" else app.open_diff(a, b)
        try:
            await until(pilot, "4,100 of 10,000 files")
            assert_frame(pilot, f"{name}-reading")
        finally:
            disk.goes_on.set()
        await settle(pilot)
        assert screen(pilot).state == "full"


async def test_leaving_ends_a_reading_that_takes_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, disk = AprtuiApp(folder=tmp_path), SlowDisk(monkeypatch, browse)
    async with app.run_test(size=WIDE) as pilot:
        await settle(pilot)
        app.open_browse(small_trace(tmp_path / "t"))
        try:
            await until(pilot, "Reading t … 4,100 of 10,000 files")
            await pilot.press("q")
            await pilot.pause()
            assert isinstance(app.screen, HomeScreen)
        finally:
            disk.goes_on.set()
        await settle(pilot)
        assert not disk.ended


def test_a_folder_is_counted_while_it_is_listed(tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    open_trace(small_trace(tmp_path / "t", layers=50), lambda *so_far: told.append(so_far))
    assert told == [(64, 151), (128, 151)]
    told.clear()
    trace = growing_trace(tmp_path / "g", layers=50, files=200)
    open_trace(trace, lambda *so_far: told.append(so_far))
    assert told == [(64, 200), (128, 200)]
