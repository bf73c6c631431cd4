"""Finding back: the last place in a trace, and traces that run on by themselves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aprtui.engine.events import Started
from aprtui.engine.folder import trace_folder
from aprtui.formats.tracedir import StageKey
from aprtui.tui.app import AprtuiApp
from aprtui.tui.running import running_pid
from aprtui.tui.screens.browse import BrowseScreen
from aprtui.tui.screens.diff import DiffScreen
from aprtui.tui.session import (
    MAX_SPOTS,
    Spot,
    last_verdicts,
    left_running,
    recall,
    remember,
    remember_running,
    remember_verdict,
    session_file,
)
from tests.tui.support import WIDE, frame, opened, press, screen, settle, small_trace

HOLDER = """
import sys, time
from pathlib import Path
from aprtui.engine.folder import trace_folder
with trace_folder(Path(sys.argv[1])):
    print("running", flush=True)
    time.sleep(60)
"""


async def test_a_trace_opens_where_it_was_left(tmp_path: Path) -> None:
    trace = small_trace(tmp_path)
    async with opened(trace) as pilot:
        await press(pilot, "G", "5")
    async with opened(trace) as pilot:
        browse = screen(pilot)
        assert isinstance(browse, BrowseScreen)
        assert (browse.stages.current, browse.pane) == (StageKey(None, "final_norm"), "stats")


async def test_a_comparison_opens_with_the_metric_and_the_cell_that_were_left(
    tmp_path: Path,
) -> None:
    a, b = small_trace(tmp_path / "a"), small_trace(tmp_path / "b")
    async with opened(a, b) as pilot:
        await press(pilot, "m", "G")
    async with opened(a, b) as pilot:
        diff = screen(pilot)
        assert isinstance(diff, DiffScreen)
        assert (diff.metric, diff.grid.current) == ("max_abs", StageKey(None, "final_norm"))


def test_places_are_kept_for_the_last_few_paths_only() -> None:
    for number in range(MAX_SPOTS + 3):
        remember(Spot(StageKey(number, "attn_out")), Path(f"/t/{number}"))
    assert recall(Path("/t/2")) == Spot()
    assert recall(Path("/t/3")).key == StageKey(3, "attn_out")
    assert len(json.loads(session_file().read_bytes())["spots"]) == MAX_SPOTS


def test_what_a_replay_named_stays_until_a_side_changes_or_it_is_named_anew(tmp_path: Path) -> None:
    a, b, c = (small_trace(tmp_path / name, layers=1) for name in "abc")

    def kept() -> str:
        return last_verdicts()[str(b)]

    remember_verdict(b, a, "1 of 7 beyond")
    remember_verdict(b, a, "x computes wrongly", telling=True)
    remember_verdict(b, a, "2 of 7 beyond")
    assert kept() == "x computes wrongly"
    remember_verdict(b, a, "y computes wrongly", telling=True)
    assert kept() == "y computes wrongly"
    os.utime(b / "trace.json", ns=(1, 1))  # traced anew
    remember_verdict(b, a, "within bar")
    assert kept() == "within bar"
    remember_verdict(b, a, "x computes wrongly", telling=True)
    remember_verdict(b, c, "within bar of c")
    assert kept() == "within bar of c"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"spots": 3, "left": 4}', '{"spots": {"/t": [1]}, "left": [7]}']
)
def test_a_damaged_session_counts_as_none_and_is_replaced(text: str) -> None:
    session_file().parent.mkdir(parents=True)
    session_file().write_text(text)
    assert recall(Path("/t")) == Spot() and left_running() == ()
    remember(Spot(pane="stats"), Path("/t"))
    assert recall(Path("/t")).pane == "stats"


def test_a_trace_is_running_as_long_as_its_process_holds_it(tmp_path: Path) -> None:
    with trace_folder(tmp_path / "t") as folder:
        folder.tell(Started(pid=1))  # a file's word is not taken for it
        assert running_pid(tmp_path / "t") == os.getpid()
    assert running_pid(tmp_path / "t") is None
    assert running_pid(tmp_path / "nothing") is None


async def test_a_trace_left_running_is_found_and_x_stops_it(tmp_path: Path) -> None:
    trace = small_trace(tmp_path / "far" / "t", manifest=False)
    for file in trace.rglob("*.bin"):
        file.rename(file.with_suffix(".kept"))
    command = [sys.executable, "-c", HOLDER, str(trace)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"running\n"
        for file in trace.rglob("*.kept"):
            file.rename(file.with_suffix(".bin"))
        remember_running(trace)
        (tmp_path / "here").mkdir()
        async with AprtuiApp(folder=tmp_path / "here").run_test(size=WIDE) as pilot:
            await settle(pilot)
            assert "running" in frame(pilot)
            text = await press(pilot, "enter")
            assert "running, x stops it" in text
            assert f"asked process {holder.pid} to stop" in await press(pilot, "x")
            assert holder.wait(timeout=30) == -15
            for _ in range(300):
                if "x stops it" not in frame(pilot):
                    break
                await pilot.pause(0.05)
            assert "no trace is running here" in await press(pilot, "x")
