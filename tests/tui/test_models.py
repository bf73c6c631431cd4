"""Two models side by side: classes worst first, filter, sort, and the states."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from aprtui.compare.weight_results import TensorResult, TensorSide
from aprtui.graph import Role
from aprtui.tui.app import AprtuiApp
from aprtui.tui.screens.model import ModelScreen
from aprtui.tui.screens.models import ModelsScreen
from tests.support import FIXTURES, SMALL, needs_fixtures
from tests.tui.support import NARROW, WIDE, frame, opened, press, screen, settle, until
from tests.tui.test_compare_frames import COMPARED, NO_TENSORS, as_told

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


async def test_a_tensor_leads_to_each_model_that_has_it_and_back(tmp_path: Path) -> None:
    """Enter, A and B; ``<`` comes back to the comparison, which is not made again."""
    path = tmp_path / "m.gguf"
    path.symlink_to(SMALL / "models" / "qwen2-q4_k_m.gguf")
    gate, up = (
        TensorResult(Role(name, 0), kind, a, TensorSide(f"blk.0.ffn_{name}.weight", "F32", (2, 2)))
        for name, kind, a in (
            ("gate", "differs", TensorSide("blk.0.ffn_gate.weight", "F32", (2, 2))),
            ("up", "missing-a", None),
        )
    )
    said = json.dumps(as_told(replace(COMPARED, tensors=(gate, up))))
    async with AprtuiApp(folder=tmp_path).run_test(size=WIDE) as pilot:
        app = pilot.app
        assert isinstance(app, AprtuiApp)
        models = ModelsScreen(path, path, (sys.executable, "-c", f"print({said!r})"))
        app.go("model", lambda: models)
        await settle(pilot)
        assert "n next · A B in Model" in frame(pilot)
        for key in ("A", "B", "enter"):
            await press(pilot, key)
            await until(pilot, "blk.0.ffn_gate.weight")
            assert isinstance(screen(pilot), ModelScreen)
            await press(pilot, "<")
            assert screen(pilot) is models
        assert "n next · B in Model" in await press(pilot, "j")
        await press(pilot, "enter")
        await until(pilot, "blk.0.ffn_up.weight")
        assert isinstance(screen(pilot), ModelScreen)
        await press(pilot, "<", ":", *"layer 0 gate", "enter")
        assert screen(pilot) is models and models.list.cursor == 0


@pytest.mark.parametrize("size", [WIDE, NARROW])
async def test_comparing_is_said_as_long_as_it_takes(tmp_path: Path, size: tuple[int, int]) -> None:
    app = AprtuiApp(folder=tmp_path)
    async with app.run_test(size=size) as pilot:
        said = '{"event": "progress", "done": 1200, "total": 4800, "tensor": "layer 3 gate"}'
        program = f"import time; print({said!r}, flush=True); time.sleep(60)"
        command = (sys.executable, "-c", program)
        models = ModelsScreen(tmp_path / "a", tmp_path / "b", command)
        app.go("model", lambda: models)
        await until(pilot, "1,200 of 4,800 weights · layer 3 gate")
        assert "Comparing every weight" in frame(pilot)
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
        (f"print({json.dumps(as_told(NO_TENSORS))!r})", "empty", "Neither model has a tensor"),
        (
            """print('{"event": "result"}')""",
            "error",
            "cannot be read: its schema is not aprtui-weights-v1",
        ),
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
