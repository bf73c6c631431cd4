"""The keys of the comparing screens: filter, sort, zoom, copy, export; one cursor throughout."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from aprtui.compare.bars import Bars
from aprtui.compare.pairs import PairResult, compare_pair, pair_up
from aprtui.formats.aprt import write_stage
from aprtui.formats.tracedir import StageKey, open_trace
from aprtui.tui.app import AprtuiApp
from aprtui.tui.bisected import seen
from aprtui.tui.screens.bisect import BisectScreen
from aprtui.tui.screens.diff import DiffScreen
from aprtui.tui.screens.diff_text import times_bar, worst_first
from aprtui.tui.screens.home import HomeScreen
from aprtui.tui.screens.models import ModelsScreen
from aprtui.tui.screens.pair import PairScreen
from aprtui.tui.stage_filter import matcher
from tests.support import SMALL
from tests.tui.support import NARROW, WIDE, frame, opened, press, screen, settle, small_trace, until
from tests.tui.test_compare_frames import FOUND, two

FLOAT64 = SMALL / "captures" / "qwen2-q4_k_m" / "float64"
BAD_BLOCK = SMALL / "faults" / "bad-block-gate-L3-ggml"
NAN, SHAPE, DAMAGED = StageKey(2, "attn_norm"), StageKey(2, "ffn_out"), StageKey(3, "ffn_out")
MISSING = StageKey(0, "ffn_out")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def the_diff(pilot: Pilot[int]) -> DiffScreen:
    found = screen(pilot)
    assert isinstance(found, DiffScreen)
    return found


# -- what a filter finds ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", True),
        ("ffn", True),
        ("FFN_gate", True),
        ("attn", False),
        ("layer-1", True),
        ("layer 1", True),
        ("1", True),
        ("layer-12", False),
        ("0..2", True),
        ("2..4", False),
        ("differs", True),
        ("ffn differs 1", True),
        ("ffn within", False),
        ("layer-1/ffn", True),
    ],
)
def test_a_filter_takes_words_of_the_name_the_layer_and_the_class(text: str, found: bool) -> None:
    assert matcher(text)(StageKey(1, "ffn_gate"), "differs beyond") is found


def test_layer_1_is_not_layer_12_and_the_whole_model_belongs_to_no_layer() -> None:
    matches = matcher("1")
    assert not matches(StageKey(12, "ffn_gate"), "") and not matches(StageKey(None, "lm_head"), "")


# -- the order of the list -------------------------------------------------------------------------


def results_of(a: Path, b: Path) -> dict[StageKey, PairResult]:
    bars = Bars(0.1, 0.4, "a test")
    pairs = pair_up(open_trace(a), open_trace(b))
    return {pair.key: compare_pair(pair, bars) for pair in pairs}


def test_the_worst_stand_first_by_class_and_what_is_unmeasured_apart() -> None:
    a, b = two()
    for layer, factor in ((0, 1.3), (1, 1.9), (3, 1.5)):
        values = np.arange(24, dtype=np.float32) + layer
        write_stage(b / f"layer-{layer}" / "attn_norm.bin", layer, values * np.float32(factor))
    rows = worst_first(tuple(results_of(a, b)), results_of(a, b), "rel_l2")
    assert rows[:3] == [NAN, SHAPE, DAMAGED]
    differing = [StageKey(layer, "attn_norm") for layer in (1, 3, 0)]
    assert rows[3:6] == differing
    assert rows[6] == StageKey(1, "attn_out")  # within
    assert rows[-2:] == ["unmeasured 1: nothing is known of these", MISSING]


def test_how_far_beyond_its_bar_a_pair_is_counts_in_bars() -> None:
    a, b = small_trace(Path("a")), small_trace(Path("b"))
    write_stage(b / "layer-0" / "attn_norm.bin", 0, np.arange(24, dtype=np.float32) * 1.5)
    result = results_of(a, b)[StageKey(0, "attn_norm")]
    assert times_bar(result) == pytest.approx(0.5 / 0.1, rel=1e-6)


# -- Diff ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [NARROW, WIDE])
async def test_a_filter_narrows_grid_and_list_and_the_title_says_so(size: tuple[int, int]) -> None:
    async with opened(*two(), size=size) as pilot:
        diff = the_diff(pilot)
        text = await press(pilot, "slash", *"attn_out")
        assert "showing 4 of 13 - filter attn_out" in text.splitlines()[0]
        assert {key.stage for key in diff.grid.cells} == {"attn_out"}
        await press(pilot, "enter", "s")
        assert [key.stage for key in diff.order] == ["attn_out"] * 4
        assert "showing" not in await press(pilot, "q") and len(diff.grid.cells) == 13
        assert isinstance(pilot.app.screen, DiffScreen)


async def test_a_filter_takes_classes_and_says_when_nothing_matches() -> None:
    async with opened(*two()) as pilot:
        diff = the_diff(pilot)
        await press(pilot, "slash", *"unmeasured", "enter")
        assert list(diff.grid.cells) == [MISSING]
        await press(pilot, "slash", "ctrl+u", *"beyond", "enter")
        assert list(diff.grid.cells) == [NAN, SHAPE, DAMAGED]
        text = await press(pilot, "slash", "ctrl+u", *"[/x]", "enter")
        assert "showing 0 of 13 - filter [/x]" in text and "No stage matches [/x]" in text
        await press(pilot, "j", "n", "s", "enter", "y", "z", "G")
        assert diff.current is None


async def test_grid_and_list_have_one_cursor_and_n_goes_on_in_the_order_that_is_shown() -> None:
    async with opened(*two()) as pilot:
        diff = the_diff(pilot)
        assert diff.current == NAN
        await press(pilot, "n")
        assert diff.current == SHAPE
        await press(pilot, "s")
        assert diff.listed and diff.current == SHAPE and diff.focused is diff.rows
        await press(pilot, "n", "n")
        assert diff.current == NAN
        await press(pilot, "N")
        assert diff.current == DAMAGED
        await press(pilot, "s")
        assert not diff.listed and diff.grid.current == DAMAGED


async def test_the_list_passes_over_the_line_that_sets_the_unmeasured_apart() -> None:
    async with opened(*two()) as pilot:
        diff = the_diff(pilot)
        await press(pilot, "s", "G")
        assert diff.current == MISSING
        await press(pilot, "k")
        assert diff.current == StageKey(None, "final_norm")
        await press(pilot, "j")
        assert diff.current == MISSING


async def test_the_metric_orders_the_list_anew() -> None:
    a, b = small_trace(Path("a")), small_trace(Path("b"))
    small, large = np.full(24, 1e-3, dtype=np.float32), np.full(24, 1e3, dtype=np.float32)
    for side, factor in ((a, 1.0), (b, 2.0)):
        write_stage(side / "layer-0" / "attn_norm.bin", 0, small * np.float32(factor))
    for side, factor in ((a, 1.0), (b, 1.2)):
        write_stage(side / "layer-1" / "attn_norm.bin", 1, large * np.float32(factor))
    async with opened(a, b) as pilot:
        diff = the_diff(pilot)
        await press(pilot, "s")
        assert diff.order[:2] == [StageKey(0, "attn_norm"), StageKey(1, "attn_norm")]
        assert "max_abs" in await press(pilot, "m")
        assert diff.order[:2] == [StageKey(1, "attn_norm"), StageKey(0, "attn_norm")]


async def test_enter_opens_the_pair_from_the_list_and_the_cursor_comes_back_with_one() -> None:
    async with opened(*two()) as pilot:
        diff = the_diff(pilot)
        await press(pilot, "s", "j", "j", "j", "enter")
        pair = screen(pilot)
        assert isinstance(pair, PairScreen) and pair.key == StageKey(1, "attn_out")
        await press(pilot, "n", "q")
        assert pilot.app.screen is diff and diff.current == StageKey(1, "ffn_out")


async def test_zoom_gives_the_grid_the_whole_width_and_the_facts_come_back() -> None:
    async with opened(*two()) as pilot:
        diff = the_diff(pilot)
        await press(pilot, "z")
        assert not diff.detail.display and diff.grid.size.width == 120
        assert "rel_l2     0.02703" in await press(pilot, "z")


async def test_what_is_shown_can_be_copied_and_written() -> None:
    async with opened(*two()) as pilot:
        await press(pilot, "y")
        assert "layer-2/attn_norm nonfinite" in Path("cache/aprtui/clipboard").read_text()
        await press(pilot, "Y")
        assert Path("cache/aprtui/clipboard").read_text().strip() == "b/layer-2/attn_norm.bin"
        await press(pilot, "slash", *"attn_out", "enter")
        assert "wrote" in await press(pilot, "e", "enter")
        assert "there already" in await press(pilot, "e", "enter")
    rows = list(csv.reader(Path("stages.csv").read_text().splitlines()))
    assert rows[0][:4] == ["layer", "stage", "class", "rel_l2"] and len(rows) == 5
    assert rows[2][:3] == ["1", "attn_out", "within"] and float(rows[2][3]) > 0


async def test_r_reads_both_again() -> None:
    a, b = two()
    async with opened(a, b) as pilot:
        values = np.arange(24, dtype=np.float32)
        write_stage(b / "layer-0" / "ffn_out.bin", 0, values)
        assert "0 unmeasured" not in frame(pilot) and "1 unmeasured" in frame(pilot)
        text = await press(pilot, "r")
        assert "unmeasured ·" not in text and "11 of 13 pairs" in text
        assert the_diff(pilot).current == NAN


async def test_moving_up_and_down_keeps_to_the_column_across_the_last_row() -> None:
    async with opened(FLOAT64, BAD_BLOCK) as pilot:
        diff = the_diff(pilot)
        diff.select(StageKey(3, "ffn_up"))
        await press(pilot, "j")
        assert diff.current == StageKey(None, "lm_head")
        await press(pilot, "h")
        assert diff.current == StageKey(None, "final_norm")
        await press(pilot, "k")
        assert diff.current == StageKey(3, "ffn_up")
        await press(pilot, "0", "g")
        assert diff.current == StageKey(0, "embedding")
        await press(pilot, "j")
        assert diff.current == StageKey(1, "attn_norm")
        await press(pilot, "$", "ctrl+d")
        assert diff.current == StageKey(None, "lm_head")
        await press(pilot, "ctrl+u")
        assert diff.current == StageKey(0, "post_ffn_residual")


async def test_another_theme_colours_what_was_drawn_before() -> None:
    async with opened(*two()) as pilot:
        diff = the_diff(pilot)
        pilot.app.theme = "textual-dark"
        await settle(pilot)
        before = [widget.line_style("head") for widget in (diff.grid, diff.chart, diff.detail)]
        await press(pilot, "f2")
        after = [widget.line_style("head") for widget in (diff.grid, diff.chart, diff.detail)]
        assert all(old != new for old, new in zip(before, after, strict=True))


# -- one pair --------------------------------------------------------------------------------------


async def test_the_keys_of_the_pair() -> None:
    async with opened(FLOAT64, BAD_BLOCK) as pilot:
        the_diff(pilot).select(StageKey(3, "ffn_gate"))
        text = await press(pilot, "enter")
        pair = screen(pilot)
        assert isinstance(pair, PairScreen)
        assert "clipped" in text and "log counts" in text
        text = await press(pilot, "c", "L")
        assert "linear counts · full" in text
        await press(pilot, "tab", "l")
        assert pair.grids["a"].column == pair.grids["d"].column == 18
        await press(pilot, "y")
        assert "A " in Path("cache/aprtui/clipboard").read_text()
        await press(pilot, "Y")
        assert Path("cache/aprtui/clipboard").read_text().strip().endswith("ffn_gate.bin")
        await press(pilot, "z")
        assert not pair.query_one("#above").display
        await press(pilot, "z")
        assert pair.query_one("#above").display
        assert "wrote" in await press(pilot, "e", "enter")
    with np.load("layer-3-ffn_gate.npz") as kept:
        assert np.array_equal(kept["d"], kept["b"] - kept["a"]) and kept["a"].shape == (12, 512)


def cells_of(pair: PairScreen) -> set[tuple[int, int]]:
    return {(grid.row, grid.column) for grid in pair.grids.values()}


@pytest.mark.parametrize("size", [NARROW, WIDE])
async def test_a_place_by_number_moves_a_b_and_d(size: tuple[int, int]) -> None:
    async with opened(FLOAT64, BAD_BLOCK, size=size) as pilot:
        the_diff(pilot).select(StageKey(3, "ffn_gate"))
        await press(pilot, "enter", "colon", *"7,301")
        await until(pilot, "go to 7,301")
        await press(pilot, "enter")
        pair = screen(pilot)
        assert isinstance(pair, PairScreen)
        assert cells_of(pair) == {(7, 301)} and pair.focused is pair.grids["a"]
        await press(pilot, "tab", "l", "y")
        assert "(7, 302) A " in Path("cache/aprtui/clipboard").read_text()
        pair.jump(":0,0")
        assert cells_of(pair) == {(0, 0)} and pair.focused is pair.grids["b"]
        pair.jump("513")
        assert cells_of(pair) == {(1, 1)}
        pair.worst.focus()
        assert "301 " not in await press(pilot, "z")
        pair.jump("11,511")
        await settle(pilot)
        assert cells_of(pair) == {(11, 511)} and pair.query_one("#below").display


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("12,0", "12,0 is outside 12 x 512"),
        ("-1,3", "-1,3 is outside 12 x 512"),
        (":0,512", ":0,512 is outside 12 x 512"),
        ("6144", "6144 is outside 0..6143"),
        ("1,2,3", "1,2,3 is outside 12 x 512"),
        ("1,,3", "write position,channel, not '1,,3'"),
        ("-", "write position,channel, not '-'"),
        ("9" * 5000, "write position,channel, not '999"),
    ],
)
async def test_a_place_that_is_not_there_says_why(place: str, why: str) -> None:
    async with opened(FLOAT64, BAD_BLOCK) as pilot:
        the_diff(pilot).select(StageKey(3, "ffn_gate"))
        await press(pilot, "enter", "tab")
        pair = screen(pilot)
        assert isinstance(pair, PairScreen)
        before = cells_of(pair)
        await press(pilot, "colon")
        pilot.app.screen.query_one(Input).value = place
        await until(pilot, "go to ")
        assert why in await press(pilot, "enter")
        assert cells_of(pair) == before


async def test_a_pair_that_cannot_be_read_has_no_place_to_go_to() -> None:
    a, b = two()
    async with opened(a, b) as pilot:
        (b / "layer-2" / "attn_norm.bin").unlink()
        await press(pilot, "enter")
        pair = screen(pilot)
        assert isinstance(pair, PairScreen) and pair.state == "error"
        pair.jump("0,0")
        await settle(pilot)
        assert "no values to go to" in frame(pilot)


# -- local error -----------------------------------------------------------------------------------


async def test_the_keys_of_local_error() -> None:
    trace = open_trace(small_trace(Path("t")))
    pairs = {pair.key: pair for pair in pair_up(trace, trace)}
    results = {key: compare_pair(pair, Bars(0.1, 0.4, "a test")) for key, pair in pairs.items()}
    async with AprtuiApp().run_test(size=WIDE) as pilot:
        await settle(pilot)
        root = Path("t")
        bisect = BisectScreen(root, root, Path("m.gguf"), pairs, results, seen(FOUND))
        pilot.app.push_screen(bisect)
        await press(pilot, "n")
        assert bisect.current == StageKey(1, "ffn_out")
        await press(pilot, "s")
        assert bisect.order[0] == StageKey(1, "ffn_out")
        assert bisect.order[1] == StageKey(1, "attn_out")  # the larger of the explained errors
        text = await press(pilot, "slash", *"q8_k", "enter")
        assert "showing 2 of 7 - filter q8_k" in text
        await press(pilot, "y")
        assert "activations rounded to Q8_K" in Path("cache/aprtui/clipboard").read_text()
        await press(pilot, "e", "enter")
        assert len(Path("stages.csv").read_text().splitlines()) == 3
        await press(pilot, "q")
        assert pilot.app.screen is bisect and not bisect.filter
        await press(pilot, "s", "z", "z", "enter")
        assert isinstance(pilot.app.screen, PairScreen)
        await press(pilot, "q", "v")
        assert isinstance(pilot.app.screen, HomeScreen)


# -- Home and two models ---------------------------------------------------------------------------


async def test_home_sorts_opens_any_path_and_compares() -> None:
    two()
    elsewhere = small_trace(Path("elsewhere") / "deep" / "c").parents[1]
    async with AprtuiApp(folder=Path()).run_test(size=NARROW) as pilot:
        await settle(pilot)
        home = screen(pilot)
        assert isinstance(home, HomeScreen)
        await press(pilot, "s")
        assert [row.name for row in home.list.rows] == ["a", "b", "elsewhere/deep/c"]
        await press(pilot, "d", *"b", "enter")
        assert isinstance(pilot.app.screen, DiffScreen)
        await press(pilot, "q", "o", "ctrl+u", *str(elsewhere), "enter")
        inner = screen(pilot)
        assert isinstance(inner, HomeScreen) and inner.folder == elsewhere
        text = await press(pilot, "o", "ctrl+u", *"nowhere", "enter")
        assert "nowhere" in text.splitlines()[-1]


async def test_n_in_two_models_goes_to_the_next_that_differs() -> None:
    from tests.tui.test_compare_frames import COMPARED, Held, as_told

    app = AprtuiApp()
    async with app.run_test(size=WIDE) as pilot:
        await settle(pilot)
        models = ModelsScreen(Path("a.gguf"), Path("b.apr"))
        models.child = Held(as_told(COMPARED), code=1)
        app.go("model", lambda: models)
        await settle(pilot)
        await press(pilot, "n")
        assert models.list.current is not None and models.list.current.role == "layer 1 v"
        await press(pilot, "n")
        assert models.list.current.role == "layer 1 k bias"
        await press(pilot, "y")
        assert "B has no such tensor" in Path("cache/aprtui/clipboard").read_text()
        await press(pilot, "e", "enter")
        assert len(Path("tensors.csv").read_text().splitlines()) == 5
        assert a_line(frame(pilot), "tensors.csv")


def a_line(text: str, words: str) -> bool:
    return any(words in line for line in text.splitlines())
