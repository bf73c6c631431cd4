"""Models whose layers differ, and stages that the vocabulary does not know, on every grid."""

from __future__ import annotations

from pathlib import Path

import pytest

from aprtui.cli.diff_text import plain
from aprtui.compare.diff import diff_traces
from aprtui.engine.events import parse_event
from aprtui.formats.tracedir import StageKey, open_trace
from aprtui.report.build import build_report
from aprtui.report.picture import grid_svg, grid_text
from aprtui.tui.screens.trace_text import output_stage, planned_stages
from aprtui.tui.widgets.stage_grid import StageGrid
from tests.differing import FOREIGN, differing, write_differing, write_foreign
from tests.tui.support import NARROW, WIDE, assert_frame, opened, press, screen

SIZES = pytest.mark.parametrize("size", [WIDE, NARROW])


@SIZES
async def test_what_a_layer_does_not_have_is_blank_and_never_missing(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    sides = write_differing(tmp_path / "a"), write_differing(tmp_path / "b", noise=1e-3)
    async with opened(*sides, size=size) as pilot:
        assert_frame(pilot, "layers-that-differ")
        grid = screen(pilot).query_one("#grid", StageGrid)
        assert set(grid.cells) == {node.key for node in differing()}
        assert not any("?" in sign for sign, _ in grid.cells.values())
        # Moving down a column passes over layers without it; across a row over blanks.
        grid.select(StageKey(0, "ffn_gate"))
        await press(pilot, "j")
        assert grid.current is not None and grid.current.layer == 1
        grid.select(StageKey(1, "ffn_norm"))
        await press(pilot, "l")
        assert grid.current == StageKey(1, "router_logits")


@SIZES
async def test_names_that_nobody_knows_are_shown_whole(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    sides = write_foreign(tmp_path / "a"), write_foreign(tmp_path / "b", noise=0.5)
    async with opened(*sides, size=size) as pilot:
        assert_frame(pilot, "unknown-stages")
    async with opened(sides[0], size=size) as pilot:
        assert_frame(pilot, "unknown-stages-browsed")


async def test_columns_too_wide_for_the_screen_scroll_under_the_cursor(tmp_path: Path) -> None:
    sides = write_foreign(tmp_path / "a"), write_foreign(tmp_path / "b", noise=0.5)
    async with opened(*sides, size=(60, 24)) as pilot:
        grid = screen(pilot).query_one("#grid", StageGrid)
        text = await press(pilot, "dollar_sign")
        assert grid.current is not None and grid.current.stage == sorted(FOREIGN)[-1]
        assert grid.current.stage in text
        await pilot.click(grid, offset=(grid.size.width - 4, 1))
        assert grid.current is not None and grid.current.layer == 0


def test_the_text_grid_breaks_where_the_terminal_ends(tmp_path: Path) -> None:
    a, b = write_differing(tmp_path / "a"), write_differing(tmp_path / "b", noise=1e-3)
    comparison = diff_traces(open_trace(a), open_trace(b))
    wide, narrow = (plain(comparison, width).splitlines() for width in (None, 80))
    assert sum(line.startswith("layer ") for line in wide) == 1
    heads = [line for line in narrow if line.startswith("layer ")]
    assert len(heads) == 2 and max(map(len, heads)) <= 80
    assert (
        " ".join(line.removeprefix("layer").strip() for line in heads)
        == wide[next(n for n, line in enumerate(wide) if line.startswith("layer "))]
        .removeprefix("layer")
        .strip()
    )


def test_a_report_draws_blanks_and_whole_names(tmp_path: Path) -> None:
    a, b = write_foreign(tmp_path / "a"), write_foreign(tmp_path / "b", noise=0.5)
    traces = open_trace(a), open_trace(b)
    report = build_report(*traces, diff_traces(*traces), commands=())
    text, picture = grid_text(report.grid), grid_svg(report.grid)
    for stage in FOREIGN:
        assert stage in text.splitlines()[0] and f">{stage}<" in picture
    assert text.splitlines()[2].split() == ["1", "X", "X"]
    assert not report.unmeasured


def test_a_plan_has_a_cell_for_what_is_computed_alone() -> None:
    graph = differing()
    line = (
        '{"event":"plan","directory":"d","model":"","architecture":"","num_layers":4,"tokens":[1],'
        '"token_texts":[],"stages":STAGES,"layers":[0,1,2,3],"files":1,"write_bytes":1,'
        '"free_bytes":1,"read_bytes":1,"memory_bytes":1,"device":"","device_name":"","dtype":"",'
        '"only_in":ONLY}'
    )
    only = graph.only_in(graph.stages, range(4))
    stages = str(list(graph.stages)).replace("'", '"')
    told = str({k: list(v) for k, v in only.items()}).replace("'", '"')
    event = parse_event(line.replace("STAGES", stages).replace("ONLY", told))
    assert set(planned_stages(event)) == {node.key for node in graph}  # type: ignore[arg-type]
    assert output_stage(event) == "post_ffn_residual"  # type: ignore[arg-type]
