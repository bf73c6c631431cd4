"""Sums over rows: C and NumPy's passes against plain float64, whatever the values."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from aprtui.engine import row_sums
from aprtui.engine.row_sums import RowSums, measure_rows
from aprtui.engine.weight_blocks import WeightReader
from aprtui.formats.modelfile import TensorEntry
from aprtui.model.open import Matrix
from aprtui.model.operand import Operand

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
HAS_C = row_sums._HAS_C


@pytest.fixture(
    params=[pytest.param(True, marks=pytest.mark.skipif(not HAS_C, reason="no C")), False],
    ids=["c", "numpy"],
)
def by_c(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(row_sums, "_HAS_C", request.param)
    return bool(request.param)


def test_where_a_compiler_is_at_hand_the_sums_in_c_were_built() -> None:
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    if shutil.which("cc") is None or not headers.exists():
        pytest.skip("there is no C compiler here")
    from aprtui.engine import _row_sums

    assert callable(_row_sums.measure)


def stored(path: Path, values: Float32) -> Operand:
    path.write_bytes(values.astype("<f4").tobytes())
    entry = TensorEntry(path.name, "F32", values.shape, path, 0, values.nbytes)
    return Operand(Matrix(entry, 0, *values.shape))


def measured(tmp_path: Path, x: Float32, y: Float32) -> RowSums:
    a, b = stored(tmp_path / "a", x), stored(tmp_path / "b", y)
    return measure_rows(a, b, (WeightReader(), WeightReader()))


def wide(values: Float32) -> Float64:
    return values.astype(np.float64)


@pytest.mark.parametrize("shape", [(1, 1), (3, 15), (7, 16), (5, 33), (40, 1500), (300, 4001)])
def test_the_sums_of_each_row_are_those_of_float64(
    tmp_path: Path, by_c: bool, shape: tuple[int, int]
) -> None:
    """The last shape takes several blocks."""
    random = np.random.default_rng(sum(shape))
    x = random.standard_normal(shape).astype(np.float32)
    y = x + np.float32(0.01) * random.standard_normal(shape).astype(np.float32)
    found, d = measured(tmp_path, x, y), wide(y - x)
    size = np.sqrt((d * d).sum(axis=1) * (wide(x) ** 2).sum(axis=1))
    np.testing.assert_allclose(found.difference, (d * d).sum(axis=1), rtol=1e-6)
    np.testing.assert_allclose(found.a, (wide(x) ** 2).sum(axis=1), rtol=1e-6)
    np.testing.assert_allclose(found.b, (wide(y) ** 2).sum(axis=1), rtol=1e-6)
    assert (np.abs(found.along - (wide(x) * d).sum(axis=1)) <= 1e-6 * size).all()
    assert found.max_abs == np.abs(y - x).max()
    assert np.abs(y - x)[found.max_abs_at] == found.max_abs
    assert not found.equal


def test_sampled_values_are_the_values_themselves(tmp_path: Path, by_c: bool) -> None:
    x = np.random.default_rng(1).standard_normal((90, 300)).astype(np.float32)
    found = measured(tmp_path, x, x[::-1].copy())
    places = list(row_sums.sampled_places(300))
    assert (places[0], places[-1], len(places)) == (0, 299, 16)
    assert (found.sample_a == x[:, places]).all()
    assert (found.sample_b == x[::-1][:, places]).all()


@pytest.mark.parametrize(
    ("x", "y", "difference", "max_abs", "nonfinite"),
    [
        (np.nan, np.nan, 0.0, 0.0, (1, 1)),
        (np.inf, np.inf, 0.0, 0.0, (1, 1)),
        (1.0, np.nan, np.inf, np.inf, (0, 1)),
        (np.inf, -np.inf, np.inf, np.inf, (1, 1)),
        (3e38, -3e38, 3.6e77, 6e38, (0, 0)),  # the squares are beyond float32
        (1e-40, 3e-40, 4e-80, 2e-40, (0, 0)),  # and here below it
    ],
)
def test_values_that_float32_sums_cannot_hold(
    tmp_path: Path,
    by_c: bool,
    x: float,
    y: float,
    difference: float,
    max_abs: float,
    nonfinite: tuple[int, int],
) -> None:
    a = np.ones((6, 50), dtype=np.float32)
    b = a.copy()
    if abs(x) < 1e-30:
        a[4], b[4] = 0, 0
    a[4, 20], b[4, 20] = x, y
    found = measured(tmp_path, a, b)
    if abs(x) > 1e-30 or np.isnan(x):
        assert found.difference[4] == pytest.approx(difference)
    assert found.max_abs == pytest.approx(max_abs)
    assert (found.nonfinite_a, found.nonfinite_b) == nonfinite
    assert found.equal == (max_abs == 0)
    assert found.max_abs_at == ((4, 20) if max_abs else (0, 0))
    assert not found.difference[[0, 1, 2, 3, 5]].any()


def test_progress_adds_up_to_every_value(tmp_path: Path, by_c: bool) -> None:
    x = np.zeros((300, 4001), dtype=np.float32)
    told: list[int] = []
    a, b = stored(tmp_path / "a", x), stored(tmp_path / "b", x)
    measure_rows(a, b, (WeightReader(), WeightReader()), told.append)
    assert sum(told) == x.size
