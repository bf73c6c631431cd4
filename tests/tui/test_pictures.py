"""Pictures of stages: the cursor tells values, enter leads to Values and back, keys do as told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from textual.pilot import Pilot

from aprtui.formats.aprt import write_stage
from aprtui.formats.tracedir import SCHEMA, StageKey, write_manifest
from aprtui.tui.screens.browse import BrowseScreen
from aprtui.tui.widgets.attention_pane import AttentionPane
from aprtui.tui.widgets.heatmap_pane import HeatmapPane
from aprtui.tui.widgets.values_pane import ValuesPane
from tests.tui.support import NARROW, WIDE, frame, opened, press, screen

SIZES = [WIDE, NARROW, (200, 60)]
TEXTS = ("def", " so", "ft", "max", "(")
HEADS, TOKENS, CHANNELS = 3, len(TEXTS), 40


def softmax(seed: int = 3) -> npt.NDArray[np.float32]:
    """Causal attention [HEADS, TOKENS, TOKENS], each row sums to one."""
    scores = np.random.default_rng(seed).standard_normal((HEADS, TOKENS, TOKENS))
    weights = np.exp(scores) * np.tril(np.ones((TOKENS, TOKENS)))
    return np.asarray(weights / weights.sum(axis=2, keepdims=True), dtype=np.float32)


def pictured(root: Path) -> Path:
    """A trace of one layer with attention, and an FFN whose values are known."""
    values = np.zeros((TOKENS, CHANNELS), dtype=np.float32)
    values[1, 7], values[3, 30], values[2, 11] = -9.5, 4.25, np.nan
    stages = {"attn_softmax": (softmax(), ("head", "query", "key")),
              "ffn_gate": (values, ("token", "ffn"))}  # fmt: skip
    entries = []
    for name, (array, axes) in stages.items():
        path = f"layer-0/{name}.bin"
        write_stage(root / path, 0, array.ravel())
        entries.append({"path": path, "shape": list(array.shape), "axes": list(axes),
                        "positions": "all", "bytes": 12 + 4 * array.size})  # fmt: skip
    tokens = {"ids": [*range(TOKENS)], "text": list(TEXTS)}
    write_manifest(root, {"schema": SCHEMA, "stages": entries, "tokens": tokens})
    assert json.loads((root / "trace.json").read_text())["tokens"]["text"] == list(TEXTS)
    return root


def _browse(pilot: Pilot[int]) -> BrowseScreen:
    found = screen(pilot)
    assert isinstance(found, BrowseScreen)
    return found


def _attention(pilot: Pilot[int]) -> AttentionPane:
    found = _browse(pilot).panes["attention"]
    assert isinstance(found, AttentionPane)
    return found


def _heatmap(pilot: Pilot[int]) -> HeatmapPane:
    found = _browse(pilot).panes["heatmap"]
    assert isinstance(found, HeatmapPane)
    return found


@pytest.mark.parametrize("size", SIZES)
async def test_a_head_is_a_map_with_tokens_on_both_axes_and_the_value_under_the_cursor(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    known = softmax()
    async with opened(pictured(tmp_path / "t"), size=size) as pilot:
        text = await press(pilot, "7", "tab", "j", "j", "j", "l")
        assert "head 0 of 3" in text
        lines = text.splitlines()
        assert any("0 def" in line for line in lines) and any("4 (" in line for line in lines)
        assert f"query 3, key 1  {known[0, 3, 1]:.6g}" in text
        assert "3 max →  so" in text
        text = await press(pilot, "p", "p")
        assert "head 2 of 3" in text and f"{known[2, 3, 1]:.6g}" in text
        text = await press(pilot, "p")
        assert "head 0 of 3" in text
        assert "head 2 of 3" in await press(pilot, "P")


async def test_enter_on_a_head_shows_the_value_and_enter_there_leads_back(tmp_path: Path) -> None:
    known = softmax()
    async with opened(pictured(tmp_path / "t")) as pilot:
        browse = _browse(pilot)
        await press(pilot, "G")  # the FFN's row: its layer's attention is drawn all the same
        assert browse.stage_here == StageKey(0, "ffn_gate")
        assert "layer 0 attn_softmax head 0" in await press(pilot, "7")
        await press(pilot, "tab", "p", "j", "j", "l", "l", "enter")
        assert browse.stage_here == StageKey(0, "attn_softmax") and browse.pane == "values"
        values = browse.panes["values"]
        assert isinstance(values, ValuesPane)
        assert values.value == float(known[1, 2, 2]) and browse.focused is values.grid
        text = await press(pilot, "l", "k", "enter")
        assert browse.pane == "attention" and _attention(pilot).has_focus
        assert f"query 1, key 3  {known[1, 1, 3]:.6g}" in text and "head 1 of 3" in text


@pytest.mark.parametrize("size", SIZES)
async def test_the_heatmap_tells_sign_place_and_nan_and_leads_to_the_value(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    async with opened(pictured(tmp_path / "t"), size=size) as pilot:
        browse = _browse(pilot)
        await press(pilot, "G", "4", "tab")
        pane = _heatmap(pilot)
        pane.go(1 * CHANNELS + 7)
        text = await press(pilot)
        assert "-9.5" in text and "1  so →" in text and "1 with NaN or Inf" in text
        assert pane.heat is not None and pane.heat.scale.signed
        await press(pilot, "enter")
        values = browse.panes["values"]
        assert isinstance(values, ValuesPane) and values.index == CHANNELS + 7
        assert values.value == -9.5
        await press(pilot, "escape", "4", "tab")
        assert browse.pane == "heatmap"
        pane.go(2 * CHANNELS + 11)
        assert "NaN" in (await press(pilot)).splitlines()[-3]
        assert any("N" in line for line in frame(pilot).splitlines()[5:-3])


async def test_the_heatmaps_keys_reduce_scale_and_zoom(tmp_path: Path) -> None:
    root = tmp_path / "t"
    values = np.arange(300 * 900, dtype=np.float32).reshape(300, 900) - 1000
    write_stage(root / "layer-0" / "ffn_gate.bin", 0, values.ravel())
    write_manifest(root, {"schema": SCHEMA, "stages": [
        {"path": "layer-0/ffn_gate.bin", "shape": [300, 900], "axes": ["token", "ffn"],
         "positions": "all", "bytes": 12 + 4 * values.size}]})  # fmt: skip
    async with opened(root) as pilot:
        text = await press(pilot, "4", "tab", "l", "j")
        pane = _heatmap(pilot)
        assert "largest of" in text and "log" in text and pane.block is not None
        block = pane.block
        part = values[block.top : block.bottom, block.left : block.right]
        assert pane.value == float(part.ravel()[np.abs(part).argmax()])
        text = await press(pilot, "c")
        assert "mean |x| of" in text
        assert pane.value == pytest.approx(float(np.abs(part).mean()))
        assert "linear" in await press(pilot, "L")
        before = block.rows * block.columns
        text = await press(pilot, "c", *["+"] * 9)
        assert pane.block.rows * pane.block.columns == 1 < before and "each value" in text
        assert "of 300 rows" in text
        assert f"{pane.value:.6g}" in text
        text = await press(pilot, *["-"] * 12)
        assert pane.window is None and "of 300 rows" not in text


async def test_a_stage_without_attention_says_what_would_show_it(tmp_path: Path) -> None:
    root = tmp_path / "t"
    write_stage(root / "layer-0" / "ffn_gate.bin", 0, np.ones(8, dtype=np.float32))
    async with opened(root) as pilot:
        assert "No attention of this layer is in the trace." in await press(pilot, "7")
