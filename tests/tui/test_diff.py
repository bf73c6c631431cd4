"""Diff: the grid of two traces, the metric, what is unmeasured, and the pair view."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from aprtui.formats.aprt import write_stage
from aprtui.formats.tracedir import MANIFEST, StageKey, write_manifest
from aprtui.model.open import read_model_file
from aprtui.tui.screens.bisect import BisectScreen
from aprtui.tui.screens.browse import BrowseScreen
from aprtui.tui.screens.diff import DiffScreen
from aprtui.tui.screens.diff_text import level_of
from aprtui.tui.screens.pair import PairScreen
from tests.support import FIXTURES, needs_fixtures
from tests.tui.support import NARROW, WIDE, frame, opened, press, screen, settle, small_trace


def _two(tmp_path: Path) -> tuple[Path, Path]:
    """A and B that differ from layer 1's attn_out on, B without layer 0's ffn_out."""
    a, b = small_trace(tmp_path / "a"), small_trace(tmp_path / "b")
    values = np.arange(24, dtype=np.float32).reshape(3, 8) + 1
    values[2, 3] = 500.0
    write_stage(b / "layer-1" / "attn_out.bin", 1, values)
    (b / "layer-0" / "ffn_out.bin").unlink()
    return a, b


@pytest.mark.parametrize("size", [WIDE, NARROW])
async def test_the_first_divergence_is_marked_and_missing_is_unmeasured(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    async with opened(*_two(tmp_path), size=size) as pilot:
        diff = screen(pilot)
        assert isinstance(diff, DiffScreen)
        text = frame(pilot)
        assert "1 unmeasured" in text and "first layer-1/attn_out" in text
        assert diff.grid.cells[StageKey(0, "ffn_out")] == ("?", "dim")
        assert diff.grid.cells[StageKey(0, "attn_norm")] == ("=", "dim")
        assert diff.grid.cells[StageKey(1, "attn_out")] == ("▶█", "bad")
        assert diff.grid.current == StageKey(1, "attn_out")


async def test_a_narrow_legend_names_the_signs_that_are_there(tmp_path: Path) -> None:
    a, b = _two(tmp_path)
    (b / "layer-0" / "attn_out.bin").write_bytes(b"APRT")
    async with opened(a, b, size=NARROW) as pilot:
        legend = frame(pilot).splitlines()[-2]
        assert "# damaged" in legend and "? unmeasured" in legend and "NaN" not in legend


async def test_a_grid_that_has_room_shows_every_column(tmp_path: Path) -> None:
    """Also one whose cursor was put somewhere before it knew its width."""
    async with opened(*_two(tmp_path)) as pilot:
        diff = screen(pilot)
        assert isinstance(diff, DiffScreen)
        diff.grid.first_column = 2
        diff.grid.select(StageKey(1, "ffn_out"))
        await settle(pilot)
        assert diff.grid.first_column == 0 and "attn_norm" in frame(pilot).splitlines()[4]


async def test_the_metric_key_goes_round_and_the_details_name_the_worst_place(
    tmp_path: Path,
) -> None:
    async with opened(*_two(tmp_path)) as pilot:
        assert "max_abs    480 at (2, 3)" in frame(pilot)
        for metric in ("max_abs", "rms", "cosine", "rel_l2"):
            assert f" {metric} · 6 of 7" in await press(pilot, "m")


async def test_enter_opens_the_pair_with_both_histograms_and_the_worst_element_first(
    tmp_path: Path,
) -> None:
    async with opened(*_two(tmp_path)) as pilot:
        text = await press(pilot, "enter")
        pair = screen(pilot)
        assert isinstance(pair, PairScreen)
        assert "A and B over one axis · log counts" in text and "d = B - A" in text
        assert "(2, 3)" in text and "480" in text
        assert (pair.grids["d"].row, pair.grids["d"].column) == (2, 3)
        text = await press(pilot, "s")
        assert "Worst rows" in text
        text = await press(pilot, "s")
        assert "Worst columns" in text and pair.grids["a"].column == 3
        await press(pilot, "n")
        assert pair.key == StageKey(1, "ffn_out")
        await press(pilot, "q")
        assert isinstance(pilot.app.screen, DiffScreen)


async def test_a_narrow_list_of_the_worst_names_each_place_in_full(tmp_path: Path) -> None:
    async with opened(*_two(tmp_path), size=NARROW) as pilot:
        text = await press(pilot, "enter")
        pair = screen(pilot)
        assert isinstance(pair, PairScreen)
        assert "(2, 3) " in text
        for width in (42, 30, 20, 14):
            assert "(2, 3)" in pair.worst.row_parts(0, width)[0][0]


def _of_tokens(folder: Path, tokens: list[int], **more: object) -> Path:
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).unlink()
    write_manifest(folder, manifest | {"tokens": {"ids": tokens}} | more)
    return folder


async def test_different_prompts_are_compared_only_when_that_is_asked_for(tmp_path: Path) -> None:
    a, b = _two(tmp_path)
    async with opened(_of_tokens(a, [1, 2, 3]), _of_tokens(b, [1, 2, 4])) as pilot:
        diff = screen(pilot)
        assert isinstance(diff, DiffScreen)
        text = frame(pilot)
        assert diff.state == "error" and not diff.results
        assert "the prompts differ" in text.splitlines()[0]
        assert "different from token 2 on" in text and "--ignore-tokens" in text
        text = await press(pilot, "i")
        assert "6 of 7 pairs" in text and "the prompts differ" in text.splitlines()[0]


@needs_fixtures
async def test_b_takes_the_model_that_the_manifest_names_and_asks_when_it_changed(
    tmp_path: Path,
) -> None:
    a, b = _two(tmp_path)
    model = tmp_path / "m.gguf"
    model.write_bytes((FIXTURES / "models" / "qwen2-q4_k_m.gguf").read_bytes())
    named = {"path": str(model), "digest": f"sha256:{read_model_file(model).digest}"}
    _of_tokens(b, [1, 2, 3], model=named)
    async with opened(a, b) as pilot:
        await press(pilot, "b")
        assert isinstance(pilot.app.screen, BisectScreen)
    _of_tokens(b, [1, 2, 3], model=named | {"digest": f"sha256:{'0' * 64}"})
    async with opened(a, b) as pilot:
        await press(pilot, "b")
        diff = screen(pilot)
        assert isinstance(diff, DiffScreen) and diff._prompt.display


async def test_a_pair_that_was_not_measured_says_why(tmp_path: Path) -> None:
    async with opened(*_two(tmp_path)) as pilot:
        diff = screen(pilot)
        assert isinstance(diff, DiffScreen)
        diff.grid.select(StageKey(0, "ffn_out"))
        await press(pilot, "enter")
        assert "the manifest names it and its file is gone" in frame(pilot)
        assert isinstance(pilot.app.screen, BrowseScreen)  # of the side that has it


async def test_two_stage_files_stand_side_by_side(tmp_path: Path) -> None:
    a, b = _two(tmp_path)
    files = (side / "layer-1" / "attn_out.bin" for side in (a, b))
    async with opened(*files) as pilot:
        assert "1 of 1 pairs" in frame(pilot)
        await settle(pilot)
        assert "differs" in frame(pilot)


@needs_fixtures
async def test_an_honest_engine_lies_within_the_bar_and_says_why_it_is_so_wide() -> None:
    folder = FIXTURES / "captures" / "qwen2-q4_k_m"
    async with opened(folder / "float64", folder / "llamacpp", size=NARROW) as pilot:
        text = frame(pilot)
        assert "71 of 71 pairs" in text
        assert "nothing beyond a loose bar: b replays each stage" in text
        assert "unknown arithmetic" in text


@pytest.mark.parametrize(
    ("value", "sign"), [(0.0, "="), (3e-9, "▁"), (2e-4, "▄"), (2e-2, "▆"), (7.0, "█")]
)
def test_a_sign_tells_the_power_of_ten(value: float, sign: str) -> None:
    assert level_of(value) == sign
