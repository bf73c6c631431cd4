"""The lens as a grid: layers by positions, and a token followed through all of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aprtui.formats.aprt import read_values
from aprtui.tui.screens.browse import BrowseScreen
from aprtui.tui.widgets.lens_pane import LensPane, lens_rows
from tests.support import FIXTURES, needs_fixtures
from tests.tui.support import NARROW, WIDE, frame, opened, pane, press, screen, small_trace, until

NAME = "pycode-5m-q4_k_m"
CAPTURE = FIXTURES / "captures" / NAME / "float64"
MODEL = str(FIXTURES / "models" / f"{NAME}.gguf")


@needs_fixtures
@pytest.mark.parametrize("size", [WIDE, NARROW, (200, 60)])
async def test_each_layer_says_its_likeliest_token_at_each_position(size: tuple[int, int]) -> None:
    logits = read_values(CAPTURE / "lm_head.bin").astype(np.float64)
    async with opened(CAPTURE, size=size, model=MODEL) as pilot:
        await press(pilot, "8", "tab", "G")
        grid = pane(pilot, LensPane)
        assert [record.key.layer for record in grid.rows] == [0, 0, 1, 2, 3, 4, 5, None]
        assert grid.guess is not None and grid.guess.id == int(logits.argmax())
        text = frame(pilot)
        assert "emb" in text and "end" in text and "final_norm" in text
        assert f"{grid.guess.text!r} {100 * grid.guess.probability:.1f} %" in text
        assert grid.column == grid.columns - 1
        await press(pilot, "0", "g")
        assert (grid.row, grid.column) == (0, 0)


@needs_fixtures
async def test_t_follows_a_token_and_tells_its_rank_and_probability_everywhere() -> None:
    logits = read_values(CAPTURE / "lm_head.bin").astype(np.float64)
    wanted = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    async with opened(CAPTURE, model=MODEL) as pilot:
        await press(pilot, "8", "tab", "g")
        grid = pane(pilot, LensPane)
        guess = grid.guess
        assert guess is not None
        await press(pilot, "t", "G")
        await until(pilot, "here rank")
        await press(pilot)
        rank = 1 + int((logits > logits[guess.id]).sum())
        lens = grid.lens(len(grid.rows) - 1)
        assert lens is not None and lens.asked[-1] is not None
        assert abs(lens.asked[-1][0] - rank) <= 1
        assert lens.asked[-1][1] == pytest.approx(wanted[guess.id], rel=1e-2)
        assert grid.column == grid.columns - 1  # as before it was followed
        assert f"'{guess.text}' is followed  here rank {lens.asked[-1][0]:,}" in frame(pilot)
        text = await press(pilot, "g", "t")
        assert grid.chosen is None and "is followed" not in text


@needs_fixtures
async def test_enter_shows_the_rows_values() -> None:
    async with opened(CAPTURE, model=MODEL) as pilot:
        await press(pilot, "8", "tab")
        await until(pilot, "%")
        await press(pilot, "g", "j", "j", "0", "l", "enter")
        browse = screen(pilot)
        assert isinstance(browse, BrowseScreen)
        key = browse.stage_here
        assert browse.pane == "values" and key is not None
        assert (key.layer, key.stage) == (1, "post_ffn_residual")
        assert "(1, 0)" in frame(pilot)


async def test_without_a_model_it_says_what_to_do_and_without_a_stream_why(
    tmp_path: Path,
) -> None:
    async with opened(small_trace(tmp_path / "t")) as pilot:
        text = await press(pilot, "8")
        assert "no manifest and no plan says which model this was" in text and "o names" in text
        browse = screen(pilot)
        assert isinstance(browse, BrowseScreen) and browse.trace is not None
        assert [record.key.stage for record in lens_rows(browse.trace)] == ["final_norm"]
