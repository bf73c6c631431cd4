"""A table in a few cells: each shows the value of largest magnitude in it, NaN before all."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from aprtui.compare.metrics import Cancelled
from aprtui.tui import reduce
from aprtui.tui.reduce import Window, coarser, reduce_values


def _by_hand(block: npt.NDArray[np.float32], how: str) -> float:
    flat = [float(x) for x in block.ravel()]
    if how == "mean":
        return float(np.mean([abs(x) for x in flat]))
    if any(x != x for x in flat):
        return float("nan")
    return max(flat, key=abs)


@pytest.mark.parametrize("how", ["largest", "mean"])
@pytest.mark.parametrize("cells", [(1, 1), (3, 5), (7, 40), (100, 100)])
def test_each_cell_is_what_its_block_says(
    how: str, cells: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reduce, "BLOCK_VALUES", 100)  # several blocks, some across cells
    values = np.random.default_rng(1).standard_normal((23, 40)).astype(np.float32)
    values[4, 7] = values[22, 39] = np.nan
    values[9, 3] = -np.inf
    window = Window(2, 23, 3, 40)
    found = reduce_values(values.ravel(), 40, window, *cells, how)
    assert found.cells.shape == (min(cells[0], 21), min(cells[1], 37))
    assert found.row_edges[0] == 2 and found.row_edges[-1] == 23
    for row, column in np.ndindex(*found.cells.shape):
        at = found.block(row, column)
        block = values[at.top : at.bottom, at.left : at.right]
        assert block.size
        np.testing.assert_allclose(found.cells[row, column], _by_hand(block, how), rtol=1e-6)
        assert found.place(at.top, at.left) == (row, column)
        assert found.place(at.bottom - 1, at.right - 1) == (row, column)


@pytest.mark.parametrize("how", ["largest", "mean"])
def test_coarser_cells_are_as_if_made_at_once(how: str) -> None:
    values = np.random.default_rng(2).standard_normal((17, 29)).astype(np.float32)
    values[16, 2] = np.nan
    fine = reduce_values(values.ravel(), 29, Window(0, 17, 0, 29), 11, 13, how)
    found = coarser(fine, 4, 5)
    assert found.cells.shape == (4, 5) and np.isnan(found.cells).sum() == 1
    for row, column in np.ndindex(4, 5):
        at = found.block(row, column)
        by_hand = _by_hand(values[at.top : at.bottom, at.left : at.right], how)
        np.testing.assert_allclose(found.cells[row, column], by_hand, rtol=1e-6)


def test_a_short_last_row_ends_in_zeros_and_an_empty_window_has_no_cells() -> None:
    values = np.ones(7, dtype=np.float32)
    found = reduce_values(values, 5, Window(0, 2, 0, 5), 2, 5, "largest")
    assert found.cells.tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert reduce_values(values, 5, Window(0, 0, 0, 5), 2, 5, "largest").cells.size == 0


def test_it_stops_when_nobody_looks_any_more() -> None:
    with pytest.raises(Cancelled):
        reduce_values(np.ones(9, np.float32), 3, Window(0, 3, 0, 3), 2, 2, "mean", lambda: True)


def test_a_nearer_window_stays_within_the_one_before() -> None:
    whole = Window(0, 100, 0, 50)
    assert whole.nearer(50, 25, 20, 10) == Window(40, 60, 20, 30)
    assert whole.nearer(1, 49, 20, 10) == Window(0, 20, 40, 50)
    assert whole.nearer(1, 49, 200, 100) == whole
