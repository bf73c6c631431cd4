"""A file that is cut short while it is shown does not end the UI."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np

from aprtui.formats.aprt import write_stage
from tests.tui.support import frame, opened, press, settle


async def test_a_stage_that_is_cut_short_is_shown_as_damaged(tmp_path: Path) -> None:
    for layer in (0, 1):
        values = np.ones((1 << 20) + 5, dtype=np.float32)
        write_stage(tmp_path / f"layer-{layer}" / "attn_norm.bin", layer, values)
    async with opened(tmp_path) as pilot:
        await press(pilot, "2")
        assert "1.0" in frame(pilot)
        for layer in (0, 1):
            os.truncate(tmp_path / f"layer-{layer}" / "attn_norm.bin", 4096)
        for key in ("tab", "G", "m", "i", "3", "4", "5", "tab"):
            await press(pilot, key)
        assert "cut short" in await press(pilot, "3")
        for key in ("j", "j", "k", "2", "G"):
            await press(pilot, key)
        await settle(pilot)
        assert "cut short" in frame(pilot)


async def test_a_weight_that_is_cut_short_is_an_error_line(tmp_path: Path, qwen2: Path) -> None:
    model = Path(shutil.copy(qwen2, tmp_path / "m.gguf"))
    async with opened(model) as pilot:
        os.truncate(model, 40_000)
        seen = [await press(pilot, key) for key in ("j", "j", "j", "G")]
        assert any("became" in shown and "shorter" in shown for shown in seen), seen[-1]
