"""From anything to anything: A and B, the pair, the weight, Home, and back again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from textual.pilot import Pilot

from aprtui.formats.aprt import write_stage
from aprtui.formats.tracedir import MANIFEST, StageKey, write_manifest
from aprtui.model.open import read_model_file
from aprtui.tui.app import AprtuiApp
from aprtui.tui.jumps import Jump, Jumps
from aprtui.tui.screens.base import BaseScreen
from aprtui.tui.screens.browse import BrowseScreen
from aprtui.tui.screens.diff import DiffScreen
from aprtui.tui.screens.home import HomeScreen
from aprtui.tui.screens.model import ModelScreen
from aprtui.tui.screens.pair import PairScreen
from tests.tui.support import NARROW, WIDE, frame, opened, press, screen, small_trace

HERE = StageKey(1, "ffn_out")


@pytest.fixture(scope="module")
def model() -> Iterator[Path]:
    with resources.as_file(resources.files("aprtui") / "demo" / "pycode-5m.gguf") as path:
        yield path


def two(tmp_path: Path, model: Path | None = None) -> tuple[Path, Path]:
    """Two traces that differ in HERE; both say that ``model`` computed them."""
    a, b = small_trace(tmp_path / "a"), small_trace(tmp_path / "b")
    values = np.arange(24, dtype=np.float32)
    values[11] = 480
    write_stage(b / "layer-1" / "ffn_out.bin", 1, values)
    for root in (a, b) if model is not None else ():
        assert model is not None
        said = json.loads((root / MANIFEST).read_text())
        digest = f"sha256:{read_model_file(model).digest}"
        write_manifest(root, said | {"model": {"path": str(model), "digest": digest}})
    return a, b


def at(pilot: Pilot[int], kind: type[BaseScreen], path: Path) -> StageKey | None:
    """The stage under the cursor of the screen that is shown, which is of that kind and path."""
    shown = screen(pilot)
    here = shown.here()
    assert type(shown) is kind and here is not None and path in here.paths
    return here.key


@pytest.mark.parametrize("size", [WIDE, NARROW])
async def test_a_cell_leads_to_a_and_to_b_and_back(tmp_path: Path, size: tuple[int, int]) -> None:
    a, b = two(tmp_path)
    async with opened(a, b, size=size) as pilot:
        await press(pilot, "A")
        assert at(pilot, BrowseScreen, a) == HERE
        await press(pilot, "B")
        assert at(pilot, BrowseScreen, b) == HERE
        await press(pilot, "less_than_sign")
        assert at(pilot, BrowseScreen, a) == HERE
        await press(pilot, "less_than_sign")
        assert at(pilot, DiffScreen, a) == HERE
        assert "nowhere to go back to" in await press(pilot, "less_than_sign")
        await press(pilot, "greater_than_sign", "greater_than_sign")
        assert at(pilot, BrowseScreen, b) == HERE


async def test_a_tree_row_leads_to_the_pair_of_an_open_diff(tmp_path: Path) -> None:
    a, b = two(tmp_path)
    async with opened(a, b) as pilot:
        await press(pilot, "A", "k", "equals_sign")
        assert at(pilot, PairScreen, b) == StageKey(1, "attn_out")
        await press(pilot, "B")
        assert at(pilot, BrowseScreen, b) == StageKey(1, "attn_out")
        await press(pilot, "less_than_sign")
        assert at(pilot, PairScreen, a) == StageKey(1, "attn_out")
        await press(pilot, "q")
        assert at(pilot, DiffScreen, a) == StageKey(1, "attn_out")


async def test_back_opens_again_what_was_closed(tmp_path: Path) -> None:
    a, b = two(tmp_path)
    async with opened(a) as pilot:
        await press(pilot, "d", "ctrl+u", *str(b), "enter")
        await press(pilot, "enter", "A")
        assert at(pilot, BrowseScreen, a) == HERE
        await press(pilot, "right_square_bracket", "q", "q")  # the pair, then the diff
        assert at(pilot, BrowseScreen, a) == HERE
        assert "= pair" not in frame(pilot)
        await press(pilot, "less_than_sign")
        assert at(pilot, PairScreen, a) == HERE


async def test_q_on_a_screen_that_a_jump_opened_comes_back_to_where_it_was_opened(
    tmp_path: Path,
) -> None:
    a, b = two(tmp_path)
    async with opened(a) as pilot:
        await press(pilot, "d", "ctrl+u", *str(b), "enter", "B", "q")
        assert at(pilot, DiffScreen, a) == HERE


async def test_w_names_the_weight_of_a_stage_and_b_the_stage_of_a_weight(
    tmp_path: Path, model: Path
) -> None:
    a, b = two(tmp_path, model)
    async with opened(a, b) as pilot:
        text = await press(pilot, "W")
        shown = screen(pilot)
        assert isinstance(shown, ModelScreen) and "layer-1/ffn_out reads down" in text
        row = shown.tensors.current
        assert row is not None and row.layer == 1 and "down" in row.entry.name
        assert "b browse" not in text
        await press(pilot, "less_than_sign", "A", "W")
        assert "b browse" in await press(pilot, "k")
        await press(pilot, "j", "b")
        assert at(pilot, BrowseScreen, a) == HERE


async def test_w_asks_for_the_model_that_no_trace_names(tmp_path: Path, model: Path) -> None:
    async with opened(*two(tmp_path)) as pilot:
        assert "the weight is in the model" in await press(pilot, "W")
        await press(pilot, *str(model), "enter")
        assert isinstance(screen(pilot), ModelScreen)


async def test_enter_on_a_stage_that_one_side_lacks_opens_the_other_and_says_why(
    tmp_path: Path,
) -> None:
    a, b = two(tmp_path)
    (b / "layer-1" / "ffn_out.bin").unlink()
    async with opened(a, b) as pilot:
        shown = screen(pilot)
        assert isinstance(shown, DiffScreen)
        shown.select(HERE)
        text = await press(pilot, "enter")
        assert at(pilot, BrowseScreen, a) == HERE
        assert shown.results[HERE].message[:20] in text


async def test_home_is_one_key_away_and_back_leads_out_of_it(tmp_path: Path) -> None:
    a, b = two(tmp_path)
    async with opened(a, b) as pilot:
        app = pilot.app
        assert isinstance(app, AprtuiApp)
        app.folder = tmp_path
        await press(pilot, "tilde")
        assert isinstance(screen(pilot), HomeScreen)
        await press(pilot, "less_than_sign")
        assert at(pilot, DiffScreen, a) == HERE


async def test_keys_that_have_nothing_to_do_are_not_offered(tmp_path: Path) -> None:
    a, b = two(tmp_path)
    async with opened(a) as pilot:
        text = frame(pilot)
        assert ("A B", "in Browse") not in screen(pilot).key_line.keys and "= pair" not in text
        await press(pilot, "d", "ctrl+u", *str(b), "enter")
        assert ("A B", "in Browse") in screen(pilot).key_line.keys
    async with opened(a, a) as pilot:
        assert "f first" not in frame(pilot)


def test_a_list_of_places_goes_back_and_on_and_forgets_what_lay_ahead() -> None:
    one, two_, three = (Jump("browse", (Path(name),)) for name in "abc")
    jumps = Jumps()
    assert jumps.step(True, one) is None
    jumps.leave(one)
    jumps.leave(two_)
    assert jumps.step(True, three) == two_
    assert jumps.step(True, two_) == one
    assert jumps.step(False, one) == two_
    jumps.leave(two_)
    assert jumps.step(False, one) is None
    assert jumps.step(True, replace(one, key=HERE)) == two_
