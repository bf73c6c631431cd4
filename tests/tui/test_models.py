"""Two models side by side: classes worst first, filter, sort, and the states."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

import pytest

from aprtui.tui.app import AprtuiApp
from aprtui.tui.screens.models import ModelsScreen
from tests.support import FIXTURES, needs_fixtures
from tests.tui.support import NARROW, WIDE, frame, opened, press, screen, settle, until
from tests.tui.test_compare_frames import NO_TENSORS

GGUF = FIXTURES / "models" / "pycode-5m-q4_k_m.gguf"
INT4 = FIXTURES / "apr" / "models" / "pycode-int4.apr"


@needs_fixtures
@pytest.mark.parametrize("size", [WIDE, NARROW])
async def test_two_models_show_their_tensors_worst_first(size: tuple[int, int]) -> None:
    async with opened(GGUF, INT4, size=size) as pilot:
        models = screen(pilot)
        assert isinstance(models, ModelsScreen)
        text = frame(pilot)
        assert "pass · 75 rounding" in text
        assert "layer 3 v" in text and "0.123" in text and "Q4_K / APR_Q4" in text
        text = await press(pilot, "s")
        assert "Tensors 75 · by layer" in text
        text = await press(pilot, "slash", *"rounding", "enter")
        assert (
            "showing 75 of 75 - filter rounding" in text
            and "differs" not in text.split("Tensors")[1]
        )
        assert "Tensors 75" in await press(pilot, "q")


@needs_fixtures
async def test_d_on_a_model_compares_it_with_another(qwen2: Path, qwen2_apr: Path) -> None:
    async with opened(qwen2) as pilot:
        await press(pilot, "d", "end", "ctrl+u", *str(qwen2_apr), "enter")
        assert isinstance(pilot.app.screen, ModelsScreen)
        assert "pass · 51 same-bytes" in frame(pilot)


@pytest.mark.parametrize("size", [WIDE, NARROW])
async def test_comparing_is_said_as_long_as_it_takes(tmp_path: Path, size: tuple[int, int]) -> None:
    app = AprtuiApp(folder=tmp_path)
    async with app.run_test(size=size) as pilot:
        command = (sys.executable, "-c", "import time; time.sleep(60)")
        models = ModelsScreen(tmp_path / "a", tmp_path / "b", command)
        app.go("model", lambda: models)
        await until(pilot, "Comparing every weight")
        assert models.state == "loading" and models.child.running
        await pilot.press("ctrl+q")
    async with asyncio.timeout(30):
        while models.child.running:
            await asyncio.sleep(0.01)
    assert models.child.returncode == -signal.SIGTERM


@pytest.mark.parametrize("size", [WIDE, NARROW])
@pytest.mark.parametrize(
    ("program", "state", "text"),
    [
        (f"print({json.dumps(NO_TENSORS.to_json())!r})", "empty", "Neither model has a tensor"),
        ("print('{}')", "error", "cannot be read: its schema is not aprtui-weights-v1"),
        ("import sys; sys.exit('aprtui: a.gguf: is cut short')", "error", "a.gguf: is cut short"),
        ("print('nonsense')", "error", "the comparison ended (0)"),
    ],
)
async def test_empty_and_error_say_so(
    tmp_path: Path, program: str, state: str, text: str, size: tuple[int, int]
) -> None:
    app = AprtuiApp(folder=tmp_path)
    async with app.run_test(size=size) as pilot:
        command = (sys.executable, "-c", program)
        app.go("model", lambda: ModelsScreen(tmp_path / "a", tmp_path / "b", command))
        await settle(pilot)
        assert screen(pilot).state == state
        assert text in " ".join(frame(pilot).split())
