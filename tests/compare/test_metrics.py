"""Metrics equal numpy's float64 one-liners and the public tool's own numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from aprtui.compare import metric_sums
from aprtui.compare import metrics as module
from aprtui.compare.logits import logits_metrics
from aprtui.compare.metrics import Cancelled, compare_values
from aprtui.formats.aprt import read_values, write_stage
from tests.support import FIXTURES, needs_fixtures

Float32 = npt.NDArray[np.float32]

SHAPES = [
    ((7, 33), ("token", "channel")),
    ((5, 3, 8), ("token", "head", "channel")),
    ((3, 6, 6), ("head", "query", "key")),
    ((40,), ("vocab",)),
    ((1, 9), ("token", "hidden")),
]


def _random(shape: tuple[int, ...], seed: int) -> tuple[Float32, Float32]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape).astype(np.float32)
    return x, (x * 1.01 + 0.02 * rng.standard_normal(shape)).astype(np.float32)


@pytest.mark.parametrize(("shape", "axes"), SHAPES)
@pytest.mark.parametrize("block", [4, 16, 1 << 17])
def test_every_metric_is_its_formula_whatever_the_block(
    shape: tuple[int, ...], axes: tuple[str, ...], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metric_sums, "BLOCK_VALUES", block)
    monkeypatch.setattr(module, "PARALLEL_VALUES", 30)
    x, y = _random(shape, 1)
    found = compare_values(x.reshape(-1), y.reshape(-1), shape=shape, axes=axes, top=5)
    a, b = x.astype(np.float64), y.astype(np.float64)
    d = b - a
    assert found.rel_l2 == pytest.approx(np.linalg.norm(d) / np.linalg.norm(a), rel=1e-12)
    assert found.rms == pytest.approx(np.sqrt(np.mean(d**2)), rel=1e-12)
    cosine = np.vdot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b))
    assert found.cosine == pytest.approx(cosine, rel=1e-12)
    assert found.scale == pytest.approx(np.vdot(a, b) / np.vdot(a, a), rel=1e-12)
    assert found.std_ratio == pytest.approx(b.std() / a.std(), rel=1e-9)
    assert found.mean_b == pytest.approx(b.mean(), rel=1e-12, abs=1e-15)
    assert found.max_abs == np.abs(d).max()
    assert found.max_abs_index == int(np.abs(d).argmax())
    assert found.max_abs_at == np.unravel_index(found.max_abs_index, shape)
    order = np.argsort(-np.abs(d).reshape(-1), kind="stable")[:5]
    assert [element.index for element in found.top] == order.tolist()
    if axes[0] == "token":
        rows = [np.linalg.norm(d[t]) / np.linalg.norm(a[t]) for t in range(shape[0])]
    elif axes[0] == "head":
        rows = [np.linalg.norm(d[:, q]) / np.linalg.norm(a[:, q]) for q in range(shape[1])]
    else:
        rows = [np.linalg.norm(d) / np.linalg.norm(a)]
    assert found.worst_row_rel_l2 == pytest.approx(max(rows), rel=1e-12)
    assert found.worst_row == (None if axes == ("vocab",) else int(np.argmax(rows)))


@needs_fixtures
@pytest.mark.parametrize("name", ["layer-0.embedding", "layer-2.ffn_gate", "lm_head"])
def test_the_public_tools_numbers_come_out(name: str) -> None:
    told = json.loads((FIXTURES / "apr/diffs" / f"{name}.json").read_text())
    x, y = (read_values(FIXTURES / "apr" / told[f"path_{side}"]) for side in "ab")
    found = compare_values(x, y)
    assert found.count == told["dim_product"]
    assert found.max_abs == told["max_abs_diff"]
    assert found.max_abs_index == told["max_abs_diff_index"]
    # its differences are rounded to float32 before they are squared
    assert found.rms == pytest.approx(told["rms_diff"], rel=1e-7)
    assert found.cosine == pytest.approx(told["cosine_sim"], rel=1e-12)
    top = [{"index": e.index, "a": e.a, "b": e.b, "abs_diff": e.abs_diff} for e in found.top]
    assert top == told["top_diffs"]


def test_one_wrong_token_is_named_though_another_is_a_thousand_times_larger() -> None:
    x = np.ones((4, 8), dtype=np.float32)
    x[0] = 1000.0
    y = x.copy()
    y[2] = -1.0
    found = compare_values(x.reshape(-1), y.reshape(-1), shape=(4, 8), axes=("token", "hidden"))
    assert found.rel_l2 < 3e-3
    assert found.worst_row == 2
    assert found.worst_row_rel_l2 == 2.0


def test_identical_means_bits() -> None:
    x = np.array([0.0, 1.0, math.nan], dtype=np.float32)
    assert compare_values(x, x.copy()).identical
    y = x.copy()
    y[0] = -0.0
    found = compare_values(x, y)
    assert not found.identical
    assert found.max_abs == 0.0
    assert found.rel_l2 == 0.0


def test_nonfinite_values_are_counted_placed_and_kept_out_of_the_sums() -> None:
    x = np.array([[3.0, math.nan], [math.inf, 4.0]], dtype=np.float32)
    y = np.array([[3.0, math.nan], [-math.inf, 5.0]], dtype=np.float32)
    found = compare_values(x.reshape(-1), y.reshape(-1), shape=(2, 2), axes=("token", "hidden"))
    assert (found.nan_a, found.nan_b, found.inf_a, found.inf_b) == (1, 1, 1, 1)
    assert found.nonfinite_mismatches == 1
    assert found.first_nonfinite is not None
    assert found.first_nonfinite.at == (1, 0)
    assert found.rel_l2 == pytest.approx(1 / 5)
    assert found.rms == pytest.approx(math.sqrt(1 / 2))


def test_zeros_have_defined_metrics() -> None:
    zero, one = np.zeros(6, dtype=np.float32), np.ones(6, dtype=np.float32)
    both = compare_values(zero, zero.copy())
    assert (both.rel_l2, both.cosine, both.scale, both.worst_row_rel_l2) == (0.0, 1.0, 1.0, 0.0)
    against_zero = compare_values(zero, one)
    assert against_zero.rel_l2 == math.inf
    assert against_zero.cosine == 0.0
    assert math.isnan(against_zero.scale)
    assert compare_values(one, zero).rel_l2 == 1.0
    empty = compare_values(zero[:0], zero[:0])
    assert empty.identical
    assert empty.count == 0


@pytest.mark.parametrize("seed", range(8))
def test_the_cosine_of_equal_values_is_one_exactly(seed: int) -> None:
    values = np.random.default_rng(seed).standard_normal(997).astype(np.float32)
    assert compare_values(values, values.copy()).cosine == 1.0


def test_largest_values_do_not_overflow() -> None:
    x = np.full(100, 3e38, dtype=np.float32)
    found = compare_values(x, -x)
    assert found.rel_l2 == pytest.approx(2.0)
    assert found.cosine == -1.0


def test_memory_maps_are_compared_like_arrays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metric_sums, "BLOCK_VALUES", 1 << 10)
    monkeypatch.setattr(module, "RELEASE_VALUES", 1 << 11)
    monkeypatch.setattr(module, "PARALLEL_VALUES", 1 << 12)
    x, y = _random((64, 512), 2)
    for name, values in (("x", x), ("y", y)):
        write_stage(tmp_path / f"{name}.bin", 0, values)
    mapped = compare_values(read_values(tmp_path / "x.bin"), read_values(tmp_path / "y.bin"))
    assert mapped == compare_values(x.reshape(-1), y.reshape(-1))


def test_a_comparison_can_be_cancelled_and_reports_progress() -> None:
    x = np.zeros(1 << 19, dtype=np.float32)
    done: list[int] = []
    compare_values(x, x, progress=done.append)
    assert sum(done) == x.size
    with pytest.raises(Cancelled):
        compare_values(x, x, cancelled=lambda: len(done) > 0)


def test_expert_ids_are_counted_as_whole_numbers() -> None:
    x = np.array([1, 5, 7], dtype=np.float32)
    y = np.array([1, 7, 5], dtype=np.float32)
    assert compare_values(x, y, integers=True).mismatches == 2
    assert compare_values(x, x.copy(), integers=True).mismatches == 0
    assert compare_values(x, y).mismatches is None


def test_logits_tell_what_the_user_sees() -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal(1000).astype(np.float32) * 3
    y = x.copy()
    y[[17, 18]] = x.max() + np.array([1.0, 3.0], dtype=np.float32)
    found = logits_metrics(x, y)
    assert found is not None
    assert (found.argmax_a, found.argmax_b, found.argmax_equal) == (int(x.argmax()), 18, False)
    assert found.top5_overlap == 3
    assert found.margin_b == pytest.approx(2.0, rel=1e-6)
    p, q = (np.exp(v.astype(np.float64)) / np.exp(v.astype(np.float64)).sum() for v in (x, y))
    assert found.kl == pytest.approx(float(np.sum(p * np.log(p / q))), rel=1e-9)
    y[0] = math.nan
    assert logits_metrics(x, y) is None
