"""Home: what each trace says of itself, marking and comparing, renaming, deleting."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

import pytest
from textual.pilot import Pilot

from aprtui.errors import UsageError
from aprtui.formats.tracedir import EVENTS, MANIFEST, write_manifest
from aprtui.tui.app import AprtuiApp
from aprtui.tui.places import delete_trace, known_of, rename_trace
from aprtui.tui.screens.diff import DiffScreen
from aprtui.tui.screens.home import HomeScreen
from tests.tui.support import (
    NARROW,
    WIDE,
    frame,
    growing_trace,
    press,
    screen,
    settle,
    small_trace,
    until,
)

SAID = {
    "model": {"path": "/models/qwen2.gguf", "architecture": "qwen2"},
    "engine": {"name": "llamacpp", "device": "cuda:0", "dtype": "bfloat16"},
    "prompt": "What is 2+2?",
    "tokens": {"ids": [1, 2, 3], "text": ["a", "b", "c"]},
}  # fmt: skip


def told_trace(root: Path) -> Path:
    """A trace that says what computed it."""
    small_trace(root)
    write_manifest(root, json.loads((root / MANIFEST).read_text()) | SAID)
    return root


def home(pilot: Pilot[int]) -> HomeScreen:
    shown = screen(pilot)
    assert isinstance(shown, HomeScreen)
    return shown


async def on(pilot: Pilot[int], name: str) -> None:
    """Put the cursor on the row of that name."""
    rows = home(pilot).list
    rows.move_to([row.name for row in rows.rows].index(name))
    await settle(pilot)


@pytest.mark.parametrize("size", [WIDE, NARROW])
async def test_a_row_and_its_preview_say_what_computed_the_trace(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    told_trace(tmp_path / "one")
    async with AprtuiApp(folder=tmp_path).run_test(size=size) as pilot:
        await settle(pilot)
        text = frame(pilot)
        assert "complete · 7 files" in text and "qwen2.gguf · qwen2" in text
        assert "llamacpp · cuda:0 · bfloat16" in text and '"What is 2+2?"' in text
        row = next(line for line in text.splitlines() if " trace  one" in line.replace("│", ""))
        assert "complete" in row and "756 B" in row
        assert all(word in row for word in ("qwen2.gg", "What is", "bfloat16", "llamacpp")) == (
            size == WIDE
        )


async def test_a_stopped_trace_is_not_running_and_one_that_runs_is_followed(
    tmp_path: Path,
) -> None:
    stopped, running = growing_trace(tmp_path / "stopped"), growing_trace(tmp_path / "going")
    with (running / EVENTS).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert known_of(running).state == "running" and known_of(stopped).state == "stopped"
        async with AprtuiApp(folder=tmp_path).run_test(size=WIDE) as pilot:
            await until(pilot, "running · 7 of 75 files")
            assert home(pilot).list.rows[0].name == "going"
            fcntl.flock(lock, fcntl.LOCK_UN)
            await until(pilot, "stopped · 7 of 75 files")


async def test_two_that_are_marked_are_compared_and_the_verdict_is_told(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        small_trace(tmp_path / name)
    async with AprtuiApp(folder=tmp_path).run_test(size=WIDE) as pilot:
        await settle(pilot)
        await on(pilot, "two")
        await press(pilot, "space")
        await on(pilot, "one")
        assert "2 marked" in await press(pilot, "space")
        await press(pilot, "d")
        diff = screen(pilot)
        assert isinstance(diff, DiffScreen)
        assert (diff.job.a.name, diff.job.b.name) == ("two", "one")
        await press(pilot, "q")
        await until(pilot, "within bar")
        await on(pilot, "three")
        assert "A two with one, three" in await press(pilot, "space", "d")
        await press(pilot, "q")
        assert " 3 marked" not in await press(pilot, "q")


async def test_a_trace_is_renamed_but_never_over_another(tmp_path: Path) -> None:
    small_trace(tmp_path / "one")
    small_trace(tmp_path / "two")
    async with AprtuiApp(folder=tmp_path).run_test(size=WIDE) as pilot:
        await settle(pilot)
        await on(pilot, "one")
        assert "two is there already" in await press(pilot, "R", "ctrl+u", *"two", "enter")
        await press(pilot, "R", "ctrl+u", *"three", "enter")
        assert {row.name for row in home(pilot).list.rows} == {"two", "three"}
        assert (tmp_path / "three" / MANIFEST).is_file() and not (tmp_path / "one").exists()


async def test_where_no_row_is_shown_no_key_of_a_row_is_offered(tmp_path: Path) -> None:
    small_trace(tmp_path / "one")
    async with AprtuiApp(folder=tmp_path).run_test(size=WIDE) as pilot:
        await settle(pilot)
        foot = (await press(pilot, "/", *"none", "enter")).splitlines()[-1]
        assert "o open" in foot and not any(word in foot for word in ("mark", "sort", "diff"))
        await press(pilot, "q", "space", "/", *"none", "enter")
        assert "d diff" in frame(pilot)  # of what is marked


async def test_a_trace_is_deleted_after_a_question_and_what_is_not_its_own_stays(
    tmp_path: Path,
) -> None:
    small_trace(tmp_path / "one")
    small_trace(tmp_path / "two")
    (tmp_path / "two" / "notes.txt").write_text("mine")
    async with AprtuiApp(folder=tmp_path).run_test(size=WIDE) as pilot:
        await settle(pilot)
        await on(pilot, "one")
        assert "y and enter delete one, 7 files, 756 B" in await press(pilot, "D")
        await press(pilot, "n", "enter")
        assert (tmp_path / "one" / MANIFEST).is_file()
        await press(pilot, "D", "y", "enter")
        assert not (tmp_path / "one").exists()
        assert "other files lie there" in await press(pilot, "D", "y", "enter")
        assert [path.name for path in (tmp_path / "two").iterdir()] == ["notes.txt"]


def test_a_trace_that_is_being_written_is_neither_deleted_nor_renamed(tmp_path: Path) -> None:
    trace = growing_trace(tmp_path / "going")
    with (trace / EVENTS).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="is being written"):
            delete_trace(trace)
        with pytest.raises(UsageError, match="is being written"):
            rename_trace(trace, "other")


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\0b"])
def test_a_name_that_no_folder_beside_it_can_have_is_refused(tmp_path: Path, name: str) -> None:
    trace = small_trace(tmp_path / "one")
    with pytest.raises(UsageError):
        rename_trace(trace, name)
    assert trace.is_dir()


def test_a_damaged_manifest_says_so(tmp_path: Path) -> None:
    trace = small_trace(tmp_path / "one")
    (trace / MANIFEST).write_text("{")
    known = known_of(trace)
    assert known.state == "damaged" and "trace.json" in known.note
