"""Honest numerics are explained, by name and with what they leave; nothing else is."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from aprtui import api
from aprtui.cli.main import main
from aprtui.compare.bisect import bisect
from aprtui.compare.bisection import Bisection
from aprtui.compare.localerror import local_error
from aprtui.engine.replay import Arithmetic
from aprtui.formats.aprt import write_stage
from aprtui.formats.tracedir import StageKey, open_trace
from aprtui.model.open import open_model
from tests.compare.planting import TOKENS, compute, model_of, write
from tests.support import FIXTURES, needs_fixtures

RECORDED = [
    ("qwen2-q4_k_m", "llamacpp", {"activations rounded to Q8_K": 21, "float32": 50}),
    ("llamaspm-q4_0", "llamacpp", {"activations rounded to Q8_0": 20}),
    ("qwen2-q4_k_m", "llamacpp-f16kv", {"f16 KV cache": 8, "activations rounded to Q8_K": 21}),
    ("gemma3-q4_0", "llamacpp", {"f16 GELU table": 7, "activations rounded to Q8_0": 35}),
    ("qwen3moe-q4_k_m", "llamacpp", {"activations rounded to Q8_K": 9}),
    ("qwen3-q6_k", "float64", {"float32": 75}),
]


def _by(found: Bisection) -> Counter[str]:
    assert found.culprits == ()
    return found.explanations


@needs_fixtures
@pytest.mark.parametrize(("model", "engine", "expected"), RECORDED)
def test_recorded_engines_are_explained_by_name(
    model: str, engine: str, expected: dict[str, int]
) -> None:
    trace = open_trace(FIXTURES / "captures" / model / engine)
    found = bisect(open_model(FIXTURES / "models" / f"{model}.gguf"), trace)
    assert expected.items() <= _by(found).items()
    assert max(each.residual_rel_l2 for each in found.explained) <= 1e-6


@needs_fixtures
def test_parts_of_one_product_are_explained_each_by_itself() -> None:
    root = FIXTURES / "apr"
    found = bisect(
        open_model(root / "models/qwen2-import.apr"), open_trace(root / "traces/qwen2-import")
    )
    parts = [dict(each.parts) for each in found.explained if each.parts]
    rounded = "activations rounded to Q8_K"
    assert parts == [{"q": rounded, "k": rounded, "v": "float32"}] * 2


@needs_fixtures
def test_the_plain_error_is_told_beside_the_residual() -> None:
    trace = open_trace(FIXTURES / "captures/qwen2-q4_k_m/llamacpp")
    found = bisect(open_model(FIXTURES / "models/qwen2-q4_k_m.gguf"), trace)
    gate = next(e for e in found.explained if e.key == StageKey(1, "ffn_gate"))
    assert gate.local_rel_l2 > 5e-3
    assert gate.residual_rel_l2 < 1e-6


@needs_fixtures
def test_a_planted_fault_hides_in_no_explanation() -> None:
    case = FIXTURES / "faults/scale-1.02-scores-L2-bf16"
    found = bisect(open_model(FIXTURES / "models/qwen3-q6_k.gguf"), open_trace(case))
    assert [str(culprit.key) for culprit in found.culprits] == ["layer-2/attn_scores"]
    assert set(found.explanations) == {"bfloat16 rounding of inputs and outputs"}


@needs_fixtures
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("model", ["qwen2-q4_k_m", "qwen3-q6_k", "gemma3-q4_0", "qwen3moe-q4_k_m"])
def test_a_trace_of_ours_in_low_precision_is_innocent(
    model: str, dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = FIXTURES / "models" / f"{model}.gguf"
    tokens = ",".join(map(str, TOKENS))
    trace = tmp_path / "trace"
    words = ["--tokens", tokens, "--dtype", dtype, "-o", str(trace), "--device", "cpu"]
    assert main(["trace", str(path), *words]) == 0
    assert main(["bisect", str(trace), "--json"]) == 0
    found = json.loads(capsys.readouterr().out.partition("{")[2].join(["{", ""]))
    kinds = {each["by"] for each in found["explained"]}
    assert f"{dtype} weights, {dtype} rounding of inputs and outputs" in kinds


@needs_fixtures
@pytest.mark.parametrize("rounding", ["Q8_0 (ties away from zero)", "Q8_1", "F16", "BF16", "Q8_K"])
def test_every_rounding_of_activations_is_told_apart(rounding: str, tmp_path: Path) -> None:
    model = model_of(FIXTURES / "models/qwen2-q4_k_m.gguf")
    trace = write(tmp_path, compute(model, {}, Arithmetic(rounding)))
    found = bisect(model, trace, tokens=TOKENS)
    name = {"F16": "float16 rounding of inputs", "BF16": "bfloat16 rounding of inputs"}.get(
        rounding, f"activations rounded to {rounding}"
    )
    products = {"qkv_matmul", "attn_out", "ffn_gate", "ffn_up", "ffn_out", "lm_head"}
    by = {each.by for each in found.explained if each.key.stage in products}
    if rounding.startswith(("Q8_1", "Q8_0")):  # without minima, or ties, they are the same
        assert by <= {name, "activations rounded to Q8_0"}
    else:
        assert by == {name}


@needs_fixtures
@pytest.mark.parametrize(("kind", "name"), [("<f2", "float16"), (None, "float32")])
def test_norms_and_biases_that_a_runtime_keeps_in_16_bits(
    kind: str | None, name: str, tmp_path: Path
) -> None:
    """As OpenVINO does with an F16 GGUF: computed in float32, by numpy here."""
    path = FIXTURES / "models" / "pycode-5m-q4_k_m.gguf"
    trace = api.trace(path, tokens=TOKENS, directory=tmp_path / "t")
    held = {each.name: np.asarray(each.data) for each in gguf.GGUFReader(path).tensors}

    def kept(weight: str) -> npt.NDArray[np.float32]:
        stored = held[f"blk.1.{weight}"]
        return stored.astype(kind or "<f4").astype("<f4")

    x = np.asarray(trace["layer-0/post_ffn_residual"], np.float64)
    normed = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6) * kept("attn_norm.weight")
    bias = np.concatenate([kept(f"attn_{part}.bias") for part in "qkv"])
    added = np.asarray(trace["layer-1/qkv_matmul"]) + bias
    for stage, values in (("attn_norm", normed), ("qkv_bias", added)):
        write_stage(trace.records[StageKey(1, stage)].path, 1, values.astype(np.float32))
    found = api.bisect(tmp_path / "t", layers="1", stages="attn_norm,qkv_bias")
    by = f"{name} weights" if kind else name
    assert (found.culprits, found.explanations) == ((), {by: 2})


@needs_fixtures
def test_a_fused_attention_is_replayed_from_q_k_and_v(tmp_path: Path) -> None:
    model = model_of(FIXTURES / "models/qwen2-q4_k_m.gguf")
    values = compute(model, {}, Arithmetic("partner", attention="F16"))
    trace = write(tmp_path, values, frozenset({"attn_scores", "attn_softmax"}))
    found = bisect(model, trace, tokens=TOKENS)
    assert _by(found)["f16 KV cache"] == 4
    spans = {each.span for each in found.explained if each.key.stage == "attention"}
    assert spans == {("attn_scores", "attn_softmax")}


# -- the error itself ------------------------------------------------------------------------------


def test_the_worst_row_is_not_hidden_by_large_ones() -> None:
    right = np.ones((100, 8)) * 1e6
    right[40] = 1.0
    y = right.copy()
    y[40] += 0.5
    found = local_error(y, right, 0)
    assert found.rel_l2 < 1e-5
    assert (found.worst_row, found.worst_row_rel_l2) == (40, 0.5)
    assert not found.within((1e-5, 1e-4))


def test_logits_are_one_row() -> None:
    right = np.array([1.0, 2.0, 1e-6])
    found = local_error(right + np.array([0.0, 0.0, 1e-6]), right, 0)
    assert found.worst_row_rel_l2 == found.rel_l2 < 1e-6
    assert found.worst == (2,)


def test_a_scale_is_an_error_though_the_cosine_is_one() -> None:
    right = np.random.default_rng(1).standard_normal((3, 50))
    assert local_error(right * 1.001, right, 0).rel_l2 == pytest.approx(1e-3)


def test_nan_is_counted_where_it_is_born_and_where_it_is_inherited() -> None:
    right = np.ones((2, 3, 3))
    y = right.copy()
    y[1, 2, 0] = np.nan
    right[0, 0, 0] = y[0, 0, 0] = np.nan
    found = local_error(y, right, 1)
    assert (found.born, found.inherited, found.measured) == (1, 1, 16)
    assert (found.worst, found.rel_l2) == ((1, 2, 0), 0.0)
    assert not found.within((1.0, 1.0))


def test_a_value_that_float32_cannot_hold_is_not_finite() -> None:
    found = local_error(np.array([[np.inf, 1.0]]), np.array([[1e39, 1.0]]), 0)
    assert (found.born, found.inherited) == (0, 1)


def test_rounding_of_the_output_excuses_half_a_unit_and_no_more() -> None:
    right = np.random.default_rng(2).standard_normal((40, 64))
    bits = right.astype(np.float32).view(np.uint32)
    kept = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).astype(np.uint32)
    rounded = kept.view(np.float32).astype(np.float64)
    assert local_error(rounded, right, 0).rel_l2 > 1e-3
    assert local_error(rounded, right, 0, "BF16").rel_l2 < 1e-8
    assert local_error(rounded, right * 1.002, 0, "BF16").rel_l2 > 1e-4


def test_zeros_where_the_replay_is_zero_are_right() -> None:
    assert local_error(np.zeros((2, 2)), np.zeros((2, 2)), 0).within((0.0, 0.0))
    assert local_error(np.ones((2, 2)), np.zeros((2, 2)), 0).rel_l2 == np.inf
