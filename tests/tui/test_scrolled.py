"""Facts that do not fit are counted in the frame and reached with Tab."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from aprtui.tui.screens.diff import DiffScreen
from aprtui.tui.widgets.tensor_pane import TensorPane
from tests.tui.support import NARROW, WIDE, frame, opened, pane, press, screen
from tests.tui.test_compare_frames import two
from tests.tui.test_looking_frames import small_model

MORE = re.compile(r"(\d+) more lines?(, tab reaches them)?")


async def test_the_facts_of_a_pair_are_all_reached_at_80x24(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with opened(*two(), size=NARROW) as pilot:
        diff = screen(pilot)
        assert isinstance(diff, DiffScreen)
        text = await press(pilot, "f")
        found = MORE.search(text)
        assert found is not None and found[2]
        last = "".join(part for part, _ in diff.detail.all_lines()[-1]).strip()
        assert last not in text
        text = await press(pilot, "tab", "G")
        assert diff.detail.has_focus and last in text and MORE.search(text) is None
        text = await press(pilot, "tab")
        assert diff.grid.has_focus and MORE.search(text) is not None and last not in text


async def test_the_facts_of_a_tensor_are_all_reached_at_80x24(tmp_path: Path) -> None:
    model = small_model(tmp_path / "small.gguf")
    async with opened(model, size=NARROW) as pilot:
        text = await press(pilot, "j", "j")
        assert MORE.search(text) is not None
        tensor = pane(pilot, TensorPane)
        last = "".join(part for part, _ in tensor.all_lines()[-1]).strip()
        text = await press(pilot, "tab", "G")
        assert tensor.first > 0 and MORE.search(text) is None and last in text
        await press(pilot, "tab", "3")
        assert MORE.search(frame(pilot)) is None, "another pane has lines of its own"
    async with opened(model, size=WIDE) as pilot:
        assert MORE.search(await press(pilot, "j", "j")) is None
