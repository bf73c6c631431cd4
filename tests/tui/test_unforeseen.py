"""A fault of ours in the UI is said in one sentence, and the UI goes on where it can."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.widgets import Input

from aprtui.crash import crash_folder
from aprtui.tui.screens import browse
from aprtui.tui.screens.trace import TraceScreen
from tests.support import SMALL
from tests.tui.support import frame, opened, press, screen, small_trace, until


def fail(*arguments: object, **more: object) -> None:
    raise ValueError("what a file holds")


async def test_a_screen_that_never_came_says_why_and_can_be_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(browse, "load_trace", fail)
    async with opened(small_trace(tmp_path)) as pilot:
        text = frame(pilot)
        assert "! a fault of aprtui's own: ValueError at tui/screens/browse.py" in text
        assert str(crash_folder()) in text.replace("\n", "")
        assert "what a file holds" not in text
        assert len(pilot.app.unforeseen) == 1  # type: ignore[attr-defined]
        pilot.app.unforeseen.clear()  # type: ignore[attr-defined]
        await pilot.press("q")


async def test_what_is_shown_stays_when_a_worker_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(small_trace(tmp_path)) as pilot:
        monkeypatch.setattr(browse, "fulfil", fail)
        text = await press(pilot, "j")
        assert "! a fault of aprtui's own: ValueError" in text and "attn_out" in text
        monkeypatch.undo()
        await press(pilot, "j", "5")
        assert "largest" in frame(pilot) or "mean" in frame(pilot)
        pilot.app.unforeseen.clear()  # type: ignore[attr-defined]


async def test_a_tensor_without_values_says_so() -> None:
    async with opened(SMALL / "attacks" / "empty-tensor.safetensors") as pilot:
        seen = [await press(pilot, key) for key in ("j", "j", "j")]
        assert any("no values" in text for text in seen)


async def test_an_engine_that_cannot_be_started_is_a_trace_that_failed(tmp_path: Path) -> None:
    model = SMALL / "models" / "qwen2-q4_k_m.gguf"
    async with opened(model) as pilot:
        await press(pilot, "t")
        trace = screen(pilot)
        assert isinstance(trace, TraceScreen)
        trace.form.query_one("#field-into", Input).value = str(tmp_path / "t")
        await until(pilot, "71 files")
        trace.client.child.command = ("/nowhere",)
        text = await press(pilot, "r")
        assert "/nowhere cannot be read or written" in text and not trace.running
