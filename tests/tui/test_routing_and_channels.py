"""Experts by token, a channel along positions and layers, a weight as a map."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from aprtui.formats.aprt import write_stage
from aprtui.formats.tracedir import SCHEMA, StageKey, write_manifest
from aprtui.tui.screens.browse import BrowseScreen
from aprtui.tui.widgets.bars import signed_columns
from aprtui.tui.widgets.channel_pane import ChannelPane
from aprtui.tui.widgets.experts_pane import ExpertsPane
from aprtui.tui.widgets.values_pane import ValuesPane
from aprtui.tui.widgets.weight_map_pane import WeightMapPane
from tests.tui.support import NARROW, WIDE, frame, opened, pane, press, screen
from tests.tui.test_looking_frames import small_model

SIZES = [WIDE, NARROW, (200, 60)]
TOKENS, EXPERTS, RANKS, CHANNELS, LAYERS = 4, 6, 2, 12, 3


def _trace(root: Path, arrays: dict[tuple[int, str], tuple[npt.NDArray[np.float32], str]]) -> Path:
    entries = []
    for (layer, stage), (array, axis) in arrays.items():
        path = f"layer-{layer}/{stage}.bin"
        write_stage(root / path, layer, array.astype(np.float32).ravel())
        entries.append({"path": path, "shape": list(array.shape), "axes": ["token", axis],
                        "positions": "all", "bytes": 12 + 4 * array.size})  # fmt: skip
    tokens = {"ids": [*range(TOKENS)], "text": ["one", " two", " three", " four"]}
    write_manifest(root, {"schema": SCHEMA, "stages": entries, "tokens": tokens})
    return root


def _routed(root: Path) -> Path:
    ids = np.array([[1, 3], [1, 0], [5, 1], [1, np.nan]], dtype=np.float32)
    weights = np.array([[0.75, 0.25], [0.6, 0.4], [0.9, 0.1], [np.inf, 0.5]], dtype=np.float32)
    logits = np.zeros((TOKENS, EXPERTS), dtype=np.float32)
    return _trace(root, {
        (0, "router_logits"): (logits, "expert"), (0, "moe_router_indices"): (ids, "rank"),
        (0, "moe_router"): (weights, "rank"), (1, "ffn_gate"): (logits, "ffn"),
    })  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
async def test_each_token_has_its_experts_with_their_weights(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    async with opened(_routed(tmp_path / "t"), size=size) as pilot:
        text = await press(pilot, "E", "tab")
        lines = [" ".join(line.split("│")[-2].split()) for line in text.splitlines() if "│" in line]
        assert "0 one e1 0.750 e3 0.250" in lines
        assert "2 three e5 0.900 e1 0.100" in lines
        assert "3 four e1 inf nan" in lines  # never a number that it is not
        assert "4 of 6 experts used" in text and "e1 has 4 tokens" in text
        await press(pilot, "j", "j", "enter")
        browse = screen(pilot)
        assert isinstance(browse, BrowseScreen)
        values = browse.panes["values"]
        assert isinstance(values, ValuesPane) and values.value == 5.0
        assert browse.stage_here == StageKey(0, "moe_router_indices")


async def test_a_layer_without_experts_says_so(tmp_path: Path) -> None:
    async with opened(_routed(tmp_path / "t")) as pilot:
        browse = screen(pilot)
        assert isinstance(browse, BrowseScreen)
        browse.stages.select(StageKey(1, "ffn_gate"))
        text = await press(pilot, "E")
        assert "No routing of this layer is in the trace." in text
        assert pane(pilot, ExpertsPane).routed is None


def _layers(root: Path) -> dict[int, npt.NDArray[np.float32]]:
    rng = np.random.default_rng(8)
    arrays = {layer: rng.standard_normal((TOKENS, CHANNELS)).astype(np.float32)
              for layer in range(LAYERS)}  # fmt: skip
    arrays[2][1, 4] = np.nan
    _trace(root, {(layer, "ffn_gate"): (array, "ffn") for layer, array in arrays.items()})
    return arrays


@pytest.mark.parametrize("size", SIZES)
async def test_a_channel_is_plotted_along_positions_and_layers(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    arrays = _layers(tmp_path / "t")
    async with opened(tmp_path / "t", size=size) as pilot:
        text = await press(pilot, "9", "tab", "l", "l", "l", "l", "j")
        found = pane(pilot, ChannelPane).along
        assert found is not None and found.layers == (0, 1, 2)
        assert found.positions == tuple(float(v) for v in arrays[0][:, 4])
        assert found.by_layer[:2] == tuple(float(arrays[layer][1, 4]) for layer in (0, 1))
        assert math.isnan(found.by_layer[2])
        assert f"channel 4 by position  1  two: {arrays[0][1, 4]:.6g}" in text
        assert "ffn_gate by layer, at 1  two" in text
        assert any("N" in line.split("│")[-2] for line in text.splitlines()[8:-2])
        await press(pilot, "enter")
        assert pane(pilot, ValuesPane).value == float(arrays[0][1, 4])


@pytest.mark.parametrize("wide", [1, 3])
def test_columns_reach_as_far_as_their_values_on_their_side_of_zero(wide: int) -> None:
    values = [4.0, -2.0, 0.0, 1.0, math.nan, math.inf, 1e-9, -1e-9]
    rows, zero = signed_columns(values, 6, wide)
    text = ["".join(part for part, _ in row) for row in rows]
    assert zero == 3 and all(len(line) == len(values) * wide for line in text)
    columns = ["".join(line[n * wide] for line in text) for n in range(len(values))]
    assert columns[0] == "████  " and columns[1] == "    ██" and columns[2] == " " * 6
    assert columns[3] == "   █  "
    assert columns[4][zero] == "N" and columns[5][zero] == "I"
    assert columns[6] == "   ▁  " and columns[7] == "    ▀ "  # whatever is not zero shows


def test_columns_of_one_sign_take_all_the_lines() -> None:
    assert signed_columns([1.0, 2.0], 4, 1)[1] == 3
    rows, zero = signed_columns([-1.0, -2.0], 4, 1)
    assert zero == 0 and "".join(part for part, _ in rows[-1]).endswith("█")
    assert signed_columns([math.nan], 3, 1)[0][signed_columns([math.nan], 3, 1)[1]] == [
        ("N", "bad")
    ]


@pytest.mark.parametrize("size", SIZES)
async def test_a_weight_is_a_map_whose_cells_are_its_largest_values(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    from aprtui.model.open import read_model_file
    from aprtui.tui.weight_sample import rows_at

    path = small_model(tmp_path / "small.gguf")
    entry = next(
        e for e in read_model_file(path).tensors.values() if e.name == "blk.0.attn_q.weight"
    )
    rows, columns = entry.shape
    known = rows_at(entry, 0, rows)
    assert known is not None
    async with opened(path, size=size) as pilot:
        await press(pilot, "j", "j", "j")
        text = await press(pilot, "6", "tab", "j", "l")
        found = pane(pilot, WeightMapPane)
        assert found.heat is not None and found.block is not None
        at = found.block
        part = known[at.top : at.bottom, at.left : at.right]
        assert found.value == float(part.ravel()[np.abs(part).argmax()])
        assert f"{found.value:.6g}" in text
        everything = found.heat.reduced.cells
        assert float(np.abs(everything).max()) == float(np.abs(known).max())
        text = await press(pilot, *["+"] * 12)
        assert "each value" in text or (rows, columns) == found.heat.levels.shape
        assert found.value in (float(v) for v in known.ravel())
        assert "choose a tensor" in await press(pilot, "tab", "k", "k")
        assert "map" in frame(pilot).lower()
