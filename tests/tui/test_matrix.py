"""Matrix: many traces against the first; from a cell to its pair in Diff and back."""

from __future__ import annotations

import csv
import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from aprtui.formats.aprt import write_stage
from aprtui.formats.tracedir import StageKey
from aprtui.tui.app import AprtuiApp
from aprtui.tui.screens.browse import BrowseScreen
from aprtui.tui.screens.diff import DiffScreen
from aprtui.tui.screens.home import HomeScreen
from aprtui.tui.screens.matrix import MatrixScreen
from aprtui.tui.screens.pair import PairScreen
from aprtui.tui.session import last_verdicts
from tests.tui.support import (
    NARROW,
    WIDE,
    assert_frame,
    frame,
    growing_trace,
    opened,
    press,
    screen,
    settle,
    small_trace,
    until,
)

PARTS = StageKey(1, "attn_out")


def _four(folder: Path) -> tuple[Path, ...]:
    """A; the same; one that parts at layer 1's attn_out; one without layer 0's ffn_out."""
    paths = tuple(small_trace(folder / name) for name in ("a", "same", "late", "less"))
    values = np.arange(24, dtype=np.float32).reshape(3, 8) + 1
    values[2, 3] = 500.0
    write_stage(paths[2] / "layer-1" / "attn_out.bin", 1, values)
    (paths[3] / "layer-0" / "ffn_out.bin").unlink()
    return paths


@pytest.mark.parametrize("size", [WIDE, NARROW])
async def test_many_traces_are_a_matrix(tmp_path: Path, size: tuple[int, int]) -> None:
    async with opened(*_four(tmp_path), size=size) as pilot:
        matrix = screen(pilot)
        assert isinstance(matrix, MatrixScreen)
        text = frame(pilot)
        assert "1 same" in text and "2 late" in text and "3 less" in text
        assert "21 of 21 cells · 1 unmeasured · 1 beyond bar · 1 of 3 part" in text
        assert matrix.grid.cells[PARTS, 1].sign == "▶█"
        assert matrix.grid.cells[PARTS, 1].tone == "bad"
        assert matrix.grid.cells[PARTS, 0].sign == "="
        assert matrix.grid.cells[StageKey(0, "ffn_out"), 2].sign == "?"
        assert matrix.grid.current == (PARTS, 1)  # the first divergence of the first that parts
        assert_frame(pilot, "matrix")
    verdict = last_verdicts()[str(tmp_path / "late")]
    assert verdict == "1 of 7 beyond, first layer-1/attn_out · against a"


async def test_enter_opens_the_pair_in_diff_and_back_comes_to_the_cell(tmp_path: Path) -> None:
    paths = _four(tmp_path)
    async with opened(*paths) as pilot:
        matrix = pilot.app.screen
        text = await press(pilot, "enter")
        assert isinstance(pilot.app.screen, PairScreen)
        assert "480" in text
        await press(pilot, "q")
        diff = pilot.app.screen
        assert isinstance(diff, DiffScreen)
        assert (diff.job.a, diff.job.b) == (paths[0].absolute(), paths[2].absolute())
        await press(pilot, "<")
        assert pilot.app.screen is matrix
        assert isinstance(matrix, MatrixScreen) and matrix.grid.current == (PARTS, 1)
        await press(pilot, ">")
        assert pilot.app.screen is not matrix
        await press(pilot, "q", "q")
        assert pilot.app.screen is matrix


async def test_the_keys_of_a_cell_lead_to_its_sides(tmp_path: Path) -> None:
    paths = _four(tmp_path)
    async with opened(*paths) as pilot:
        await press(pilot, "B")
        browse = pilot.app.screen
        assert isinstance(browse, BrowseScreen)
        assert browse.path.absolute() == paths[2].absolute()
        await press(pilot, "<", "d")
        assert isinstance(pilot.app.screen, DiffScreen)
        await press(pilot, "<", "g", "j", "j", "l", "enter")
        browse = pilot.app.screen  # what only A has
        assert isinstance(browse, BrowseScreen)
        assert browse.path.absolute() == paths[0].absolute()


async def test_columns_rows_filter_order_and_metric(tmp_path: Path) -> None:
    async with opened(*_four(tmp_path)) as pilot:
        matrix = screen(pilot)
        assert isinstance(matrix, MatrixScreen)
        await press(pilot, "h", "h", "l", "l")
        assert matrix.grid.column == 2 and "neither" not in frame(pilot)
        text = await press(pilot, "/", *"differs", "enter")
        assert "showing 1 of 7 - filter differs" in text
        assert [row.key for row in matrix.grid.rows] == [PARTS]
        await press(pilot, "q", "/", *"layer 1", "enter")
        assert {row.key.layer for row in matrix.grid.rows} == {1}
        await press(pilot, "q", "s")
        assert matrix.grid.rows[0].key == PARTS
        await press(pilot, "s", "m")
        assert matrix.metric == "max_abs" and matrix.grid.cells[PARTS, 1].text == "480"
        await press(pilot, "g", "h", "n")
        assert matrix.grid.current == (PARTS, 1)
        await press(pilot, "g", "f")
        assert matrix.grid.current == (PARTS, 1)


async def test_the_rows_shown_are_written_to_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with opened(*_four(tmp_path)) as pilot:
        await press(pilot, "e", "enter")
    rows = list(csv.reader((tmp_path / "matrix.csv").open()))
    assert rows[0] == ["row", "same", "late", "less"] and len(rows) == 8
    assert rows[5][0] == "layer-1/attn_out" and rows[5][2].startswith("differs ")


async def test_three_marked_on_home_are_compared(tmp_path: Path) -> None:
    _four(tmp_path)
    app = AprtuiApp((), folder=tmp_path)
    async with app.run_test(size=WIDE) as pilot:
        await settle(pilot)
        assert isinstance(app.screen, HomeScreen)
        text = await press(pilot, "s", "g", "space", "space", "space")
        assert "3 marked" in text
        await press(pilot, "d")
        matrix = app.screen
        assert isinstance(matrix, MatrixScreen)
        assert [path.name for path in matrix.job.paths] == ["a", "late", "less"]
        await press(pilot, "q")
        assert isinstance(app.screen, HomeScreen)


async def test_other_prompts_stand_in_the_way_until_they_are_ignored(tmp_path: Path) -> None:
    paths = _four(tmp_path)
    for path, ids in ((paths[0], [1, 2, 3]), (paths[2], [1, 2, 4])):
        manifest = json.loads((path / "trace.json").read_text())
        (path / "trace.json").write_text(json.dumps(manifest | {"tokens": {"ids": ids}}))
    async with opened(*paths) as pilot:
        text = frame(pilot)
        assert "late: the captures are of different prompts" in text
        text = await press(pilot, "i")
        assert "21 of 21 cells" in text and "the prompts differ" in text


async def test_traces_that_grow_are_followed(tmp_path: Path) -> None:
    a, b = small_trace(tmp_path / "a"), small_trace(tmp_path / "b")
    c = growing_trace(tmp_path / "c", layers=1)
    async with opened(a, b, c) as pilot:
        matrix = screen(pilot)
        assert isinstance(matrix, MatrixScreen)
        assert matrix.grid.cells[StageKey(1, "ffn_out"), 1].sign == "?"
        write_stage(c / "layer-1" / "ffn_out.bin", 1, np.arange(24, dtype=np.float32) + 1)
        with (c / "events.jsonl").open("a") as events:
            events.write("\n")
        matrix.follower.forget()
        for _ in range(400):
            if matrix.grid.cells[StageKey(1, "ffn_out"), 1].sign == "=":
                break
            await pilot.pause(0.02)
        else:
            raise AssertionError(frame(pilot))


async def test_two_folders_of_prompts_are_a_matrix_of_prompts(tmp_path: Path) -> None:
    for side in ("one", "two"):
        for number in (1, 2):
            small_trace(tmp_path / side / f"prompt-{number}")
    async with opened(tmp_path / "one", tmp_path / "two") as pilot:
        text = frame(pilot)
        assert "one with two · 2 prompts" in text and "2 prompt-2" in text
        await press(pilot, "l", "d")
        diff = pilot.app.screen
        assert isinstance(diff, DiffScreen) and diff.job.b.name == "prompt-2"


async def test_more_columns_than_fit_are_reached_sideways(tmp_path: Path) -> None:
    paths = [small_trace(tmp_path / f"t{n:02}", layers=1) for n in range(24)]
    async with opened(*paths, size=NARROW) as pilot:
        matrix = screen(pilot)
        assert isinstance(matrix, MatrixScreen)
        assert matrix.grid.column_width == 4 and "»" in frame(pilot)
        text = await press(pilot, "$")
        assert matrix.grid.column == 22 and " 23" in text and "23 t23" in text
        await until(pilot, "«")


async def test_one_folder_of_prompts_is_shown_on_home(tmp_path: Path) -> None:
    for number in (1, 2):
        small_trace(tmp_path / "one" / f"prompt-{number}")
    async with opened(tmp_path / "one") as pilot:
        text = frame(pilot)
        assert isinstance(pilot.app.screen, HomeScreen)
        assert "prompt-1" in text and "prompt-2" in text


async def test_a_cell_of_two_folders_of_prompts_opens_the_pair_with_both_folders_named(
    tmp_path: Path,
) -> None:
    for side, prompt in product(("good", "bad"), (1, 2)):
        small_trace(tmp_path / side / f"prompt-{prompt}", layers=1)
    async with opened(tmp_path / "good", tmp_path / "bad") as pilot:
        await until(pilot, "2 prompts")
        await press(pilot, "enter")
        await until(pilot, "A good/prompt-1   B bad/prompt-1")
