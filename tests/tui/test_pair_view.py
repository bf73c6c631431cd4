"""What the pair view and the chart draw, against numpy done plainly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from textual.app import App, ComposeResult

from aprtui.compare.bars import Bars
from aprtui.compare.logits import top_logits
from aprtui.compare.metrics import Cancelled
from aprtui.compare.pairs import compare_pair, pair_up
from aprtui.formats.aprt import write_stage
from aprtui.formats.tracedir import MANIFEST, SCHEMA, StageKey, open_trace, write_manifest
from aprtui.tui.app import AprtuiApp
from aprtui.tui.pair_view import DECADES, Difference, PairView, view_of
from aprtui.tui.widgets.bars import profile
from aprtui.tui.widgets.drift_chart import Drift, DriftChart

SHAPE = (70, 1100)  # more than one block of rows


def _view(folder: Path, span: str = "full", bins: int = 32) -> tuple[PairView, np.ndarray]:
    """A pair of [70 token, 1100 ffn], and d in float64."""
    generator = np.random.default_rng(3)
    a = generator.standard_normal(SHAPE).astype(np.float32)
    b = (a * (1 + 1e-3 * generator.standard_normal(SHAPE))).astype(np.float32)
    b[5] = a[5]
    b[9, 17] += 4.0
    a[2, 3] = 900.0
    for side, values in (("a", a), ("b", b)):
        write_stage(folder / side / "layer-0" / "ffn_up.bin", 0, values)
        entry = {"path": "layer-0/ffn_up.bin", "shape": list(SHAPE), "axes": ["token", "ffn"],
                 "positions": "all", "bytes": 12 + values.nbytes}  # fmt: skip
        write_manifest(folder / side, {"schema": SCHEMA, "stages": [entry]})
    pair = pair_up(open_trace(folder / "a"), open_trace(folder / "b"))[0]
    result = compare_pair(pair, Bars(0.1, 0.4, "a test"))
    found = view_of(pair, result, bins, span, lambda: False)
    return found, b.astype(np.float64) - a.astype(np.float64)


def test_the_histogram_of_d_counts_each_power_of_ten(tmp_path: Path) -> None:
    view, d = _view(tmp_path)
    counted = view.histograms[2]
    magnitudes = np.abs(d[d != 0])
    top = np.log10(magnitudes.max())
    steps = np.linspace(top - DECADES, top, 33)
    expected, _ = np.histogram(np.log10(magnitudes), steps)
    assert counted.counts == tuple(expected)
    assert counted.nan == np.count_nonzero(d == 0)
    assert counted.below + sum(counted.counts) + counted.nan == d.size


def test_profiles_and_the_worst_rows_and_columns_are_the_rms_of_d(tmp_path: Path) -> None:
    view, d = _view(tmp_path)
    tokens, channels = view.profiles
    assert (tokens.axis, channels.axis) == ("token", "channel")
    assert tokens.rms == pytest.approx(np.sqrt((d * d).mean(axis=1)), rel=1e-12)
    assert channels.rms == pytest.approx(np.sqrt((d * d).mean(axis=0)), rel=1e-12)
    assert tokens.rms[5] == 0.0
    assert (tokens.worst, channels.worst) == ("2", "3")
    row, column = view.worst["rows"][0], view.worst["columns"][0]
    assert (row.row, row.column, column.column) == (2, 3, 3)
    assert [entry.row for entry in view.worst["rows"]] == list(np.argsort(-(d * d).sum(axis=1)))


def test_an_outlier_lies_outside_the_clipped_axis_and_inside_the_full_one(tmp_path: Path) -> None:
    clipped, _ = _view(tmp_path / "clipped", "clipped")
    full, _ = _view(tmp_path / "full", "full")
    a, b, _ = clipped.histograms
    assert (a.below + a.above, b.below + b.above) == (1, 0)
    assert a.edges == b.edges and a.edges[-1] < 20.0
    a, b, _ = full.histograms
    assert a.below + a.above + b.below + b.above == 0 and a.edges[-1] == 900.0


@pytest.mark.parametrize("stated", ["a", "b"])
def test_a_side_that_states_no_shape_is_laid_out_as_the_other(tmp_path: Path, stated: str) -> None:
    whole, _ = _view(tmp_path)
    for side in {"a", "b"} - {stated}:
        (tmp_path / side / MANIFEST).unlink()
    pair = pair_up(open_trace(tmp_path / "a"), open_trace(tmp_path / "b"))[0]
    view = view_of(pair, compare_pair(pair, Bars(0.1, 0.4, "a test")), 32, "full", lambda: False)
    assert (view.a.shape, view.b.shape) == (SHAPE, SHAPE)
    at = 2, 1001
    assert Difference(view.a, view.b).cell(*at) == Difference(whole.a, whole.b).cell(*at)
    assert view.worst == whole.worst and view.profiles == whole.profiles


def test_counting_ends_when_it_is_cancelled(tmp_path: Path) -> None:
    _view(tmp_path)
    pair = pair_up(open_trace(tmp_path / "a"), open_trace(tmp_path / "b"))[0]
    result = compare_pair(pair, Bars(0.1, 0.4, "a test"))
    with pytest.raises(Cancelled):
        view_of(pair, result, 8, "full", lambda: True)


@given(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=40))
def test_the_likeliest_tokens_are_those_of_a_softmax(logits: list[float]) -> None:
    row = np.array(logits, dtype=np.float32)
    found = top_logits(row)
    wide = row.astype(np.float64)
    chances = np.exp(wide - wide.max()) / np.exp(wide - wide.max()).sum()
    assert [entry.logit for entry in found] == sorted(wide, reverse=True)[:5]
    for entry in found:
        assert entry.logit == wide[entry.token]
        assert entry.probability == pytest.approx(chances[entry.token], rel=1e-9)


def test_logits_that_are_not_finite_have_no_likeliest_token() -> None:
    assert top_logits(np.array([1.0, np.nan], dtype=np.float32)) == ()


def test_a_profile_shows_every_value_that_is_not_zero_and_keeps_the_largest_of_many() -> None:
    assert profile([0.0, 1e-9, 1.0], 9) == "   ▁▁▁███"
    assert profile([0.0, 8.0, 0.0, 4.0], 2) == "█▄"
    assert profile([0.0, 0.0], 2).strip() == ""


# -- the chart -------------------------------------------------------------------------------------


class _Charted(App[None]):
    """A chart of 60 x 8 inside its frame."""

    COMPONENT_CLASSES = AprtuiApp.COMPONENT_CLASSES

    def __init__(self, *drifts: Drift) -> None:
        super().__init__()
        self.chart, self.drifts = DriftChart(id="chart"), drifts

    def compose(self) -> ComposeResult:
        yield self.chart

    def on_mount(self) -> None:
        self.chart.show(self.drifts, 0.1)
        self.chart.mark(self.drifts[-1].key)


async def _lines(*drifts: Drift) -> list[str]:
    """The chart's lines from the top: 8 of columns, the cursor, the layers."""
    app = _Charted(*drifts)
    async with app.run_test(size=(60, 10)) as pilot:
        await pilot.pause()
        return [app.chart.render_line(y).text[9:].rstrip() for y in range(10)]


async def test_a_column_is_as_high_as_its_power_of_ten_and_the_bar_is_a_line() -> None:
    keys = [StageKey(layer, "ffn_out") for layer in range(5)]
    lines = await _lines(
        Drift(keys[0], 0.0, "dim"), Drift(keys[1], 1e-3, "good"), Drift(keys[2], 1.0, "bad"),
        Drift(keys[3], None, "dim", "?"), Drift(keys[4], float("inf"), "bad", "N"),
    )  # fmt: skip
    columns = [line.ljust(15)[::3] for line in lines[:8]]  # three cells each; 1e-4 to 10
    assert columns[-1] == "=░░?N"
    heights = [sum(line[n] not in " ─" for line in columns) for n in range(5)]
    assert heights == [1, 2, 7, 1, 8]
    assert [line for line in columns if "─" in line] == ["──░─░"]
    assert lines[8] == " " * 12 + "▲" and lines[9] == "0  1  2  3  4"


async def test_more_stages_than_columns_share_them_and_the_largest_shows() -> None:
    drifts = [Drift(StageKey(n // 20, f"s{n}"), 1e-3, "good") for n in range(400)]
    drifts[150] = Drift(drifts[150].key, 1.0, "bad")
    lines = await _lines(*drifts)
    high = [line for line in lines[:8] if "░" in line or "▄" in line]
    assert lines[1].strip("─ ") != "" and len(high[0].strip("─ ")) == 1
    assert len(lines[7]) == 50
