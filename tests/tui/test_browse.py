"""Browse: the tree, panes that follow it, and folders that are damaged, growing or foreign."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from aprtui.errors import UsageError
from aprtui.formats.aprt import write_stage
from aprtui.formats.tracedir import StageKey, open_trace
from aprtui.tui.messages import Surveyed
from aprtui.tui.screens.browse import BrowseScreen
from aprtui.tui.screens.measuring import look_at, stated
from aprtui.tui.stage_table import table_of
from aprtui.tui.widgets.lines import whole_fields
from aprtui.tui.widgets.values_pane import ValuesPane
from tests.support import FIXTURES, needs_fixtures
from tests.tui.support import (
    NARROW,
    WIDE,
    frame,
    growing_trace,
    opened,
    pane,
    press,
    screen,
    settle,
    small_trace,
    until,
)

TRACES = FIXTURES / "apr" / "traces"


@needs_fixtures
@pytest.mark.parametrize("size", [WIDE, NARROW])
async def test_the_header_pane_follows_the_cursor_without_enter(size: tuple[int, int]) -> None:
    async with opened(TRACES / "qwen2-import", size=size) as pilot:
        text = await press(pilot, "1")
        assert "41 50 52 54" in text and "APRT" in text
        assert "00 00 00 00   layer 0" in text
        assert "9,228 = 12 + 4 x 2,304  ok" in text
        text = await press(pilot, "j", "j")
        assert "qkv_matmul · [9 token, 384 qkv]" in text
        assert "3,456 values" in text


@needs_fixtures
@pytest.mark.parametrize("folder", sorted(TRACES.iterdir()) if TRACES.is_dir() else [])
async def test_every_folder_that_apr_wrote_opens_and_says_that_it_is_foreign(folder: Path) -> None:
    async with opened(folder, size=NARROW) as pilot:
        text = frame(pilot)
        assert screen(pilot).state == "full"
        assert "foreign: no trace.json" in text
        for pane in "12345":
            await press(pilot, pane, "j")


@needs_fixtures
async def test_shapes_come_from_a_model_when_one_is_given() -> None:
    model = FIXTURES / "apr" / "models" / "qwen3-import.apr"
    async with opened(TRACES / "qwen3-import", model=str(model)) as pilot:
        assert "shapes from the model" in frame(pilot)


async def test_layers_fold_and_the_filter_says_how_much_it_shows(tmp_path: Path) -> None:
    async with opened(small_trace(tmp_path)) as pilot:
        text = frame(pilot)
        assert "▾ layer 0" in text and "▸ layer 1" in text
        text = await press(pilot, "h", "h")
        assert "▸ layer 0" in text and "  ffn_out" not in text
        text = await press(pilot, "slash", *"ffn", "enter")
        assert "showing 2 of 7 · filter ffn" in text
        text = await press(pilot, "q")
        assert "showing" not in text


async def test_values_jump_to_a_place_the_maximum_and_a_nan(tmp_path: Path) -> None:
    trace = small_trace(tmp_path)
    values = np.zeros((3, 8), dtype=np.float32)
    values[1, 5], values[2, 7] = -9.0, np.nan
    write_stage(trace / "layer-0" / "attn_norm.bin", 0, values)
    async with opened(trace) as pilot:
        browse = screen(pilot)
        assert isinstance(browse, BrowseScreen)
        await press(pilot, "2", "tab", "m")
        assert (pane(pilot, ValuesPane).grid.row, pane(pilot, ValuesPane).grid.column) == (1, 5)
        assert "(1, 5)" in frame(pilot) and "-9.0" in frame(pilot)
        await press(pilot, "i")
        assert (pane(pilot, ValuesPane).grid.row, pane(pilot, ValuesPane).grid.column) == (2, 7)
        browse.jump("0,3")
        assert "(0, 3)" in await press(pilot, "l", "h")
        browse.jump("9,3")
        await settle(pilot)
        assert "9,3 is outside 3 x 8" in frame(pilot)


def test_a_place_past_the_end_of_a_short_last_row_is_none(tmp_path: Path) -> None:
    trace = open_trace(small_trace(tmp_path, manifest=False))
    table = table_of(trace.records[StageKey(0, "attn_norm")])
    assert (table.rows, table.columns, table.index_of("2,3")) == (3, 10, 23)
    with pytest.raises(UsageError, match="2,4 is outside 24"):
        table.index_of("2,4")


async def test_the_palette_goes_to_a_position_and_channel(tmp_path: Path) -> None:
    async with opened(small_trace(tmp_path)) as pilot:
        await press(pilot, "2", "colon", "2", "comma", "6")
        await pilot.pause(0.1)
        await press(pilot, "enter")
        assert "(2, 6)" in frame(pilot)


async def test_the_histogram_counts_slices_and_ranges(tmp_path: Path) -> None:
    async with opened(small_trace(tmp_path)) as pilot:
        text = frame(pilot)
        assert "linear counts" in text and "by token" in text
        assert "log counts" in await press(pilot, "L")
        assert "symlog range" in await press(pilot, "c")
        assert "token 0 of 3" in await press(pilot, "p")
        assert "token 1 of 3" in await press(pilot, "p")
        assert "hidden 0 of 8" in await press(pilot, "a")


async def test_the_statistics_line_and_the_stats_pane_agree(tmp_path: Path) -> None:
    async with opened(small_trace(tmp_path)) as pilot:
        text = await press(pilot, "5")
        assert "min 0  max 23  mean 11.5" in text
        assert "largest channels" in text


async def test_a_nan_is_told_apart_from_numbers(tmp_path: Path) -> None:
    trace = small_trace(tmp_path)
    values = np.full((3, 8), np.nan, dtype=np.float32)
    write_stage(trace / "layer-0" / "attn_norm.bin", 0, values)
    async with opened(trace) as pilot:
        text = frame(pilot)
        assert "NaN 24" in text and "24 NaN, 0 Inf not drawn" in text
        for pane in "245":
            await press(pilot, pane)


async def test_a_damaged_file_is_marked_and_its_bytes_can_still_be_seen(tmp_path: Path) -> None:
    trace = small_trace(tmp_path)
    path = trace / "layer-0" / "attn_norm.bin"
    path.write_bytes(path.read_bytes()[:50])
    async with opened(trace) as pilot:
        text = await press(pilot, "1")
        assert "1 damaged" in text
        assert "! attn_norm" in text
        assert "is cut short: 108 bytes promised by its header, 50 there" in text


async def test_a_growing_trace_is_followed_and_says_how_much_is_there(tmp_path: Path) -> None:
    trace = growing_trace(tmp_path)
    async with opened(trace) as pilot:
        assert "incomplete, 7 of 75" in frame(pilot)
        write_stage(trace / "lm_head.bin", None, np.ones(16, dtype=np.float32))
        await until(pilot, "incomplete, 8 of 75")
        assert "lm_head" in frame(pilot)


async def test_a_growing_trace_that_goes_away_is_told_and_what_is_known_of_it_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trace = growing_trace(Path("t"))
    async with opened(trace) as pilot:
        trace.rename("elsewhere")
        await until(pilot, "t: cannot be read")
        assert "attn_norm" in frame(pilot) and screen(pilot).state == "full"


async def test_pausing_before_anything_is_read_is_no_error(tmp_path: Path) -> None:
    async with opened(tmp_path) as pilot:
        assert "holds no trace" in await press(pilot, "space")


async def test_a_trace_that_has_written_nothing_yet_is_empty_and_not_an_error(
    tmp_path: Path,
) -> None:
    (tmp_path / "events.jsonl").write_text("")
    async with opened(tmp_path) as pilot:
        assert screen(pilot).state == "empty"
        assert "No stage has been written yet." in frame(pilot)


async def test_a_folder_without_a_trace_says_what_to_do(tmp_path: Path) -> None:
    async with opened(tmp_path) as pilot:
        assert screen(pilot).state == "error"
        assert "holds no trace" in frame(pilot) and "aprtui trace MODEL" in frame(pilot)


async def test_one_stage_file_opens_with_the_shape_its_folder_tells(tmp_path: Path) -> None:
    trace = small_trace(tmp_path)
    async with opened(trace / "layer-1" / "ffn_out.bin") as pilot:
        text = frame(pilot)
        assert "ffn_out.bin · one stage file" in text
        assert "layer 1 · ffn_out" in text


async def test_a_hostile_file_name_is_shown_and_not_obeyed(tmp_path: Path) -> None:
    path = tmp_path / "a[b]\x1b[31m\u202e.bin"
    write_stage(path, None, np.ones(4, dtype=np.float32))
    async with opened(path) as pilot:
        text = frame(pilot)
        assert r"a[b]\x1b[31m\u202e.bin" in text and "\x1b" not in text


async def test_zoom_hides_the_tree_and_q_brings_it_back(tmp_path: Path) -> None:
    async with opened(small_trace(tmp_path)) as pilot:
        assert "Stages" not in await press(pilot, "z")
        assert "Stages" in await press(pilot, "q")


async def test_values_are_exported_once_and_never_over_another_file(tmp_path: Path) -> None:
    async with opened(small_trace(tmp_path / "t")) as pilot:
        target = tmp_path / "out.npy"
        browse = screen(pilot)
        browse.answered("export", str(target))
        assert np.load(target).shape == (3, 8)
        browse.answered("export", str(target))
        await settle(pilot)
        assert "is there already" in frame(pilot)


@pytest.mark.parametrize("width", range(8, 60))
def test_a_line_of_fields_never_shows_half_a_number(width: int) -> None:
    parts = [(" ", ""), ("min ", "head"), ("-1.25  ", ""), ("max ", "head"), ("2.119e+05  ", ""),
             ("rms ", "head"), ("0.75  ", "")]  # fmt: skip
    text = "".join(text for text, _ in whole_fields(parts, width)).split()
    assert set(text) <= {"min", "-1.25", "max", "2.119e+05", "rms", "0.75"} or "…" in text[-1]


def test_a_stat_that_is_a_string_is_shown_and_does_not_break_the_tree(tmp_path: Path) -> None:
    trace = open_trace(small_trace(tmp_path))
    record = next(iter(trace.records.values()))
    for said in ("NaN", "nonsense", "Inf"):
        found = Surveyed()
        odd = dataclasses.replace(record, stats={"rms": said, "min": 1.5})
        look_at(odd, found)
        assert not found.damage and record.key in found.rms
        assert any(said in text for text, _ in stated(odd))
