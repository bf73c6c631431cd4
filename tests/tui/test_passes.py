"""The axis of passes: Diff's grid of one pass's rows, and Browse's way from pass to pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from aprtui.compare.bars import choose_bars
from aprtui.compare.pairs import DiffOptions, compare_traces
from aprtui.formats.rows import Rows
from aprtui.formats.tracedir import StageKey, open_trace
from aprtui.tui.screens.browse import BrowseScreen
from aprtui.tui.screens.diff import DiffScreen
from aprtui.tui.widgets.values_pane import ValuesPane
from aprtui.writer import CaptureWriter
from tests.tui.support import frame, opened, press, screen

Array = npt.NDArray[np.float32]
TOKENS = 6
PASSES = Rows(tuple(range(TOKENS)), (0, 0, 0, 0, 1, 2))
NORM, SCORES, STATE = (StageKey(0, name) for name in ("attn_norm", "attn_scores", "delta_state"))


def values() -> dict[StageKey, Array]:
    made = np.random.default_rng(3)
    return {
        key: made.standard_normal(shape).astype(np.float32)
        for key, shape in (
            (NORM, (TOKENS, 8)), (SCORES, (2, TOKENS, TOKENS)), (STATE, (2, 3, 4)),
            (StageKey(None, "lm_head"), (2, 16)),
        )
    }  # fmt: skip


def written(root: Path, stages: dict[StageKey, Array], rows: Rows | None = None) -> Path:
    with CaptureWriter(root, tokens=range(TOKENS), engine={"name": "m"}, rows=rows) as capture:
        for key, value in stages.items():
            some = (4, 5) if key.stage == "lm_head" and rows is not None else None
            if key.stage == "lm_head" and rows is None:
                value = value[-1]
            capture.put(key.stage, value, layer=key.layer, positions=some)
    return root


def two(tmp_path: Path) -> tuple[Path, Path]:
    """A prefill, and the same with position 5 wrong, which pass 2 made."""
    right = values()
    a = written(tmp_path / "a", {k: v for k, v in right.items() if k.stage != "lm_head"})
    wrong = {key: value.copy() for key, value in right.items() if key.stage != "lm_head"}
    wrong[NORM][5, 3] += 2.0
    wrong[SCORES][1, 5, 0] += 2.0
    return a, written(tmp_path / "b", wrong, PASSES)


def test_the_rows_of_one_pass_are_compared_alone(tmp_path: Path) -> None:
    a, b = (open_trace(each) for each in two(tmp_path))
    bars = choose_bars(a, b)
    for left, right in ((a, b), (b, a)):  # either side's passes count, where the other has one
        for number in (0, 1, 2):
            options = DiffOptions(of_pass=number)
            found = {each.key: each for each in compare_traces(left, right, bars, options)}
            kind = "differs" if number == 2 else "equal"
            assert [found[key].kind for key in (NORM, SCORES)] == [kind, kind]
            assert found[STATE].kind == "missing-b"  # a state has no rows
            assert found[STATE].message == f"has no row of pass {number}"
    (norm,) = (each for each in compare_traces(a, b, bars, options) if each.key == NORM)
    assert norm.metrics is not None and norm.shape == (1, 8)
    assert norm.standing(norm.metrics.max_abs_at) == (5, 3) and norm.worst_place == "5"
    whole = {each.key: each for each in compare_traces(a, b, bars)}
    assert whole[NORM].worst_place == "5 p2" and whole[STATE].rows is None
    assert whole[STATE].kind == "equal"


async def test_diff_goes_from_pass_to_pass(tmp_path: Path) -> None:
    async with opened(*two(tmp_path)) as pilot:
        diff = screen(pilot)
        assert isinstance(diff, DiffScreen) and "p pass" in frame(pilot)
        assert diff.grid.cells[NORM][1] == "bad"
        for number, place in ((0, "positions 0-3"), (1, "position 4"), (2, "position 5")):
            await press(pilot, "p")
            text = frame(pilot)
            assert f"only pass {number} of 0-2, {place}" in text
            assert diff.grid.cells[NORM] == (("▶▇", "bad") if number == 2 else ("=", "dim"))
            assert diff.grid.cells[STATE] == ("?", "dim")
        assert "at (5, 3)" in frame(pilot)
        await press(pilot, "p")
        assert "only pass" not in frame(pilot) and diff.grid.cells[STATE] == ("=", "dim")
        await press(pilot, "P")
        assert "only pass 2 of 0-2" in frame(pilot)


async def test_diff_of_two_prefills_offers_no_passes(tmp_path: Path) -> None:
    a, _ = two(tmp_path)
    async with opened(a, written(tmp_path / "c", {NORM: values()[NORM]})) as pilot:
        assert "p pass" not in frame(pilot)
        await press(pilot, "p")
        assert "only pass" not in frame(pilot)


async def test_browse_goes_from_pass_to_pass_and_says_them_by_the_cell(tmp_path: Path) -> None:
    _, b = two(tmp_path)
    async with opened(b) as pilot:
        browse = screen(pilot)
        assert isinstance(browse, BrowseScreen)
        await press(pilot, "2", "tab")
        pane = browse.panes["values"]
        assert isinstance(pane, ValuesPane)
        rows = []
        for _ in range(3):
            await press(pilot, "p")
            rows.append(pane.grid.row)
        assert rows == [4, 5, 0]
        await press(pilot, "P")
        assert pane.grid.row == 5 and "(5 p2, 0)" in frame(pilot)
        browse.stages.select(SCORES)
        await press(pilot, "p")
        assert pane.table is not None and pane.table.row_label(pane.grid.row) == "h0 q4 p1"
