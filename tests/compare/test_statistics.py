"""Statistics are exact whatever the size, and equal numpy's."""

from __future__ import annotations

import math

import numpy as np
import pytest

from aprtui.compare import statistics as module
from aprtui.compare.metrics import Cancelled
from aprtui.compare.statistics import (
    histogram,
    outlier_channels,
    percentiles,
    sample,
    statistics,
)
from aprtui.formats.aprt import read_values
from tests.support import FIXTURES, needs_fixtures


@pytest.fixture(autouse=True, params=[64, 1 << 18])
def _block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", request.param)


def test_moments_are_numpys_in_float64() -> None:
    values = (np.random.default_rng(0).standard_normal(5000) + 1e4).astype(np.float32)
    wide = values.astype(np.float64)
    found = statistics(values)
    assert found.count == 5000
    assert (found.min, found.max) == (wide.min(), wide.max())
    assert found.mean == pytest.approx(wide.mean(), rel=1e-14)
    assert found.std == pytest.approx(wide.std(), rel=1e-9)
    assert found.rms == pytest.approx(np.sqrt((wide**2).mean()), rel=1e-13)


def test_percentiles_are_numpys_to_the_last_bit_of_the_ranks() -> None:
    rng = np.random.default_rng(1)
    values = (rng.standard_normal(3001) * 10.0 ** rng.integers(-20, 20, 3001)).astype(np.float32)
    wanted = [0, 0.1, 1, 33.3, 50, 99.9, 100]
    told = np.percentile(values.astype(np.float64), wanted)
    assert percentiles(values, wanted) == pytest.approx(told.tolist(), rel=1e-12)


def test_what_is_not_finite_is_counted_and_left_out() -> None:
    tiny = np.float32(1e-40)
    values = np.array(
        [math.nan, math.inf, -math.inf, -math.inf, 0.0, -0.0, tiny, 2.0], dtype=np.float32
    )
    found = statistics(values)
    assert (found.nan, found.pos_inf, found.neg_inf) == (1, 1, 2)
    assert (found.zeros, found.denormals) == (2, 1)
    assert (found.min, found.max) == (0.0, 2.0)
    assert dict(found.percentiles)[50.0] == pytest.approx(float(tiny) / 2)


def test_nothing_finite_is_not_a_number_rather_than_zero() -> None:
    for values in (np.full(3, math.nan, dtype=np.float32), np.empty(0, dtype=np.float32)):
        found = statistics(values)
        assert math.isnan(found.mean)
        assert math.isnan(found.min)
        assert found.percentiles == ()


@pytest.mark.parametrize("scale", ["linear", "symlog"])
def test_every_value_is_in_one_bar_or_beside(scale: str) -> None:
    values = (np.random.default_rng(2).standard_normal(4000) * 5).astype(np.float32)
    values[:3] = [math.nan, math.inf, 1e6]
    whole = histogram(values, 20, scale=scale)
    assert sum(whole.counts) == 3998
    assert (whole.below, whole.above, whole.nan, whole.inf) == (0, 0, 1, 1)
    assert list(whole.edges) == sorted(whole.edges)
    clipped = histogram(values, 20, scale=scale, clip=(1, 99))
    assert sum(clipped.counts) + clipped.below + clipped.above == 3998
    assert clipped.above == 40
    finite = values[np.isfinite(values)].astype(np.float64)
    assert list(clipped.counts) == np.histogram(finite, clipped.edges)[0].tolist()


def test_one_outlier_does_not_leave_all_else_in_one_bar_of_a_symlog_histogram() -> None:
    values = np.random.default_rng(3).standard_normal(4000).astype(np.float32)
    values[0] = 1e5
    assert max(histogram(values, 30).counts) == 3999
    assert max(histogram(values, 30, scale="symlog").counts) < 2000


@pytest.mark.parametrize("value", [0.0, 7.5, -1e30, 1e-42])
def test_a_constant_tensor_has_a_histogram(value: float) -> None:
    found = histogram(np.full(9, value, dtype=np.float32), 5)
    assert sum(found.counts) == 9
    assert sum(histogram(np.full(2, math.nan, dtype=np.float32), 5).counts) == 0


def test_a_sample_sees_every_channel() -> None:
    values = np.tile(np.arange(64, dtype=np.float32), 1000)
    found = sample(values, 2000)
    assert found.size == 2000
    assert len(np.unique(found)) == 64
    assert np.array_equal(sample(values[:10], 100), values[:10])


def test_outlier_channels_are_named_the_largest_first() -> None:
    values = np.ones((50, 32), dtype=np.float32)
    values[:, 7] = 20.0
    values[:, 9] = 100.0
    values[0, 9] = math.nan
    found = outlier_channels(values, 32)
    assert [channel.channel for channel in found] == [9, 7]
    assert found[1].ratio == pytest.approx(20.0)
    with pytest.raises(ValueError, match="rows of 33"):
        outlier_channels(values, 33)


def test_work_stops_when_cancelled() -> None:
    with pytest.raises(Cancelled):
        statistics(np.ones(10, dtype=np.float32), cancelled=lambda: True)


@needs_fixtures
def test_a_real_capture_of_damaged_weights_is_described() -> None:
    found = statistics(read_values(FIXTURES / "apr/traces/pycode-int8/layer-0/embedding.bin"))
    assert (found.count, found.nan, found.denormals) == (2304, 18, 21)
    assert found.min < -1e38
