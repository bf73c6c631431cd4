"""A dump that is opened in the app: the form, the job's progress, what it says, where it leads."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from textual.widgets import Input

from aprtui.tui.app import AprtuiApp
from aprtui.tui.opened import Opened
from aprtui.tui.screens.browse import BrowseScreen
from aprtui.tui.screens.diff import DiffScreen
from aprtui.tui.screens.home import HomeScreen
from aprtui.tui.screens.importing import ImportScreen
from aprtui.tui.source import kind_of
from tests.support import FIXTURES, SMALL, needs_fixtures
from tests.tui.support import NARROW, WIDE, assert_frame, frame, press, settle, small_trace, until

DUMP = SMALL / "dumps" / "vllm"
RESULT = {"event": "result", "contradictions": [], "findings": []}


def child(folder: Path, *lines: object, code: int = 0, waits: bool = False) -> tuple[str, ...]:
    """A command that notes what it was asked for and says these lines."""
    script = folder / "importer.py"
    said = "\n".join(json.dumps(line) for line in lines)
    script.write_text(
        "import sys, json, time\n"
        f"open({str(folder / 'asked.json')!r}, 'w').write(json.dumps(sys.argv[1:]))\n"
        f"print({said!r}, flush=True)\n"
        f"{'time.sleep(60)' if waits else ''}\nsys.exit({code})\n"
    )
    return (sys.executable, str(script))


def app_at(folder: Path) -> AprtuiApp:
    return AprtuiApp((), folder=folder)


async def shown(pilot, command: tuple[str, ...], model: str = "m.gguf") -> ImportScreen:  # type: ignore[no-untyped-def]
    form = ImportScreen(DUMP, model, command=command)
    pilot.app.answers = []
    pilot.app.push_screen(form, pilot.app.answers.append)
    await settle(pilot)
    return form


@pytest.mark.parametrize("size", [WIDE, NARROW])
async def test_the_form_says_what_the_dump_is(tmp_path: Path, size: tuple[int, int]) -> None:
    async with app_at(tmp_path).run_test(size=size) as pilot:
        form = await shown(pilot, child(tmp_path), "")
        assert form.focused is not None and form.focused.id == "field-model"
        form.query_one("#field-into", Input).value = "vllm-trace"
        await settle(pilot)
        assert_frame(pilot, "import-form")


async def test_what_is_asked_for_goes_to_the_command_and_the_trace_is_answered(
    tmp_path: Path,
) -> None:
    done = {**RESULT, "directory": str(tmp_path / "made")}
    async with app_at(tmp_path).run_test(size=NARROW) as pilot:
        form = await shown(
            pilot, child(tmp_path, {"event": "progress", "done": 1, "total": 2}, done)
        )
        form.query_one("#field-sequence", Input).value = "1"
        form.query_one("#field-into", Input).value = "here"
        await press(pilot, "enter")
        assert pilot.app.answers == [tmp_path / "made"]  # type: ignore[attr-defined]
    asked = json.loads((tmp_path / "asked.json").read_text())
    assert asked == [
        "import-trace", "--model", "m.gguf", "--sequence", "1", "-o", "here", "--events", "--",
        str(DUMP),
    ]  # fmt: skip


async def test_without_a_model_nothing_runs(tmp_path: Path) -> None:
    async with app_at(tmp_path).run_test(size=NARROW) as pilot:
        await shown(pilot, child(tmp_path, RESULT), "")
        text = await press(pilot, "enter")
        assert "the model that was run is needed" in text
    assert not (tmp_path / "asked.json").exists()


async def test_an_error_is_said_and_leads_to_the_field_that_it_asks_for(tmp_path: Path) -> None:
    error = {"event": "error", "message": "a batch of 3 sequences: \x1b[31m0, 1, 2",
             "hint": "--sequence 0 chooses one", "exit_code": 2}  # fmt: skip
    async with app_at(tmp_path).run_test(size=NARROW) as pilot:
        form = await shown(pilot, child(tmp_path, error, code=2))
        text = await press(pilot, "enter")
        assert "a batch of 3 sequences" in text and "\x1b" not in text
        assert form.focused is not None and form.focused.id == "field-sequence"
        assert isinstance(pilot.app.screen, ImportScreen)


async def test_findings_are_read_before_the_trace_opens(tmp_path: Path) -> None:
    done = {**RESULT, "findings": ["rank 1 differs"], "directory": str(tmp_path)}
    async with app_at(tmp_path).run_test(size=NARROW) as pilot:
        await shown(pilot, child(tmp_path, done, code=1))
        text = await press(pilot, "enter")
        assert "rank 1 differs" in text and "enter opens it" in text
        await press(pilot, "enter")
        assert pilot.app.answers == [tmp_path]  # type: ignore[attr-defined]


async def test_escape_stops_the_job_and_then_closes(tmp_path: Path) -> None:
    line = {"event": "progress", "done": 3, "total": 9}
    async with app_at(tmp_path).run_test(size=NARROW) as pilot:
        await shown(pilot, child(tmp_path, line, waits=True))
        await pilot.press("enter")
        await until(pilot, "3 of 9 stages")
        text = await press(pilot, "escape")
        assert "stopped" in text
        await press(pilot, "escape")
        assert pilot.app.answers == [None]  # type: ignore[attr-defined]


async def test_a_child_that_dies_says_its_last_line(tmp_path: Path) -> None:
    async with app_at(tmp_path).run_test(size=NARROW) as pilot:
        await shown(pilot, child(tmp_path, code=4))
        assert "the import ended (4)" in await press(pilot, "enter")


async def test_a_dump_lies_over_home_wherever_it_is_opened(tmp_path: Path) -> None:
    assert kind_of(DUMP).kind == kind_of(SMALL / "dumps" / "mlx.npz").kind == "dump"
    for opened in (Opened("dump", DUMP), Opened("folder", DUMP)):
        app = AprtuiApp((opened,), folder=tmp_path)
        async with app.run_test(size=NARROW) as pilot:
            await until(pilot, "is another tool's dump")
            await press(pilot, "escape")
            assert isinstance(pilot.app.screen, HomeScreen)


async def test_both_sides_of_a_diff_may_be_dumps(tmp_path: Path) -> None:
    trace = small_trace(tmp_path / "t")
    app = AprtuiApp((Opened("dump", DUMP), Opened("trace", trace)), folder=tmp_path)
    async with app.run_test(size=NARROW) as pilot:
        await until(pilot, "vllm is another tool's dump")
        pilot.app.screen.dismiss(trace)
        await settle(pilot)
        assert isinstance(pilot.app.screen, DiffScreen)
        assert (pilot.app.screen.job.a, pilot.app.screen.job.b) == (trace, trace)


@needs_fixtures
async def test_a_real_dump_becomes_a_trace_that_is_browsed(tmp_path: Path) -> None:
    model = str(FIXTURES / "models" / "pycode-5m")
    app = AprtuiApp((Opened("dump", DUMP),), folder=tmp_path, model=model)
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, "names of hooks on")
        form = pilot.app.screen
        form.query_one("#field-into", Input).value = str(tmp_path / "made")
        await press(pilot, "enter")
        await settle(pilot)
        assert isinstance(pilot.app.screen, BrowseScreen)
        assert "17 tokens in 2 passes" in frame(pilot)
