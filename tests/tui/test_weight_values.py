"""The Model screen's grid of a weight's values: by row and block, with the block's scale."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from aprtui.engine.dequantise import decode_tensor
from aprtui.formats.quantised.scales import scale_of
from aprtui.model.open import read_model_file
from aprtui.text import number
from aprtui.tui.screens.model import ModelScreen
from aprtui.tui.weight_values import read_window
from tests.support import SMALL
from tests.tui.support import frame, opened, press, until

CODED = ("gptq-4-actorder", "bnb-nf4-nested", "fp8-block", "ct-int4-zero")
QWEN2 = SMALL / "models" / "qwen2-q4_k_m.gguf"


@pytest.mark.parametrize("case", CODED)
def test_a_window_holds_the_values_that_the_engine_decodes(case: str) -> None:
    folder = SMALL / "quantised" / case
    entry = read_model_file(folder).tensors["model.layers.0.mlp.down_proj.weight"]
    table = read_window(folder, entry, 100)
    due = decode_tensor(entry, torch.device("cpu")).numpy()
    assert (table.rows, table.columns) == due.shape
    assert np.array_equal(table.values, due[table.first : table.first + len(table.values)])
    assert table.cell(100, 7) == due[100, 7]


def test_blocks_of_a_gguf_file_are_decoded_here() -> None:
    for entry in read_model_file(QWEN2).tensors.values():
        if len(entry.shape) == 2:
            table = read_window(Path("nowhere"), entry, entry.shape[0] - 1)
            due = decode_tensor(entry, torch.device("cpu")).numpy()
            last = entry.shape[0] - 1
            assert table.cell(last, 3) == due[last, 3]
            assert table.cell(table.first - 1, 0) is None


async def test_the_grid_says_the_block_and_scale_of_what_is_under_the_cursor(
    tmp_path: Path,
) -> None:
    folder = Path(shutil.copytree(SMALL / "quantised" / "gptq-4", tmp_path / "m"))
    entry = read_model_file(folder).tensors["model.layers.0.mlp.down_proj.weight"]
    due = decode_tensor(entry, torch.device("cpu")).numpy()
    async with opened(folder, size=(120, 40)) as pilot:
        assert isinstance(pilot.app.screen, ModelScreen)
        await press(pilot, "/", *"down", "enter", "j", "5", "tab")
        await until(pilot, "scale")
        text = await press(pilot, "j", "j", *"l" * 65)
        scale = scale_of(entry, 2, 65)
        assert scale is not None
        assert f"row 2, column 65 · {number(float(due[2, 65]), 6)}" in text
        assert "block 1 (columns 64..127)" in text and f"scale {number(scale.value, 6)}" in text
        text = await press(pilot, "G", "$")
        assert f"row 127, column 191 · {number(float(due[127, 191]), 6)}" in text


async def test_a_place_is_gone_to_and_enter_leads_to_the_map_and_back() -> None:
    entry = read_model_file(QWEN2).tensors["blk.0.ffn_gate.weight"]
    due = decode_tensor(entry, torch.device("cpu")).numpy()
    async with opened(QWEN2, size=(120, 40)) as pilot:
        assert isinstance(pilot.app.screen, ModelScreen)
        await press(pilot, "/", *"0 gate", "enter", "5", ":", *"17,100", "enter")
        await until(pilot, f"row 17, column 100 · {number(float(due[17, 100]), 6)}")
        assert "9,999 is outside 512 x 256" in await press(pilot, ":", *"9,999", "enter")
        await press(pilot, "enter")
        await until(pilot, "  largest ")
        shown = re.search(r" (\d+)(?:\.\.(\d+))? x (\d+)(?:\.\.(\d+))?  largest", frame(pilot))
        assert shown is not None
        top, bottom, left, right = (int(shown[n] or shown[n - 1]) for n in (1, 2, 3, 4))
        assert top <= 17 <= bottom and left <= 100 <= right
        row, column = np.unravel_index(
            np.abs(due[top : bottom + 1, left : right + 1]).argmax(),
            (bottom + 1 - top, right + 1 - left),
        )
        await press(pilot, "enter")
        await until(pilot, f"row {top + row}, column {left + column} · ")


async def test_a_weight_that_no_engine_reads_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(SMALL / "quantised" / "gptq-4", tmp_path / "m"))
    monkeypatch.setattr("aprtui.tui.weight_values.command_of", lambda module: ("false",))
    async with opened(folder, size=(120, 40)) as pilot:
        await press(pilot, "/", *"down", "enter", "j", "5")
        await until(pilot, "the engine ended with 1")
        assert "scale" not in frame(pilot)
