"""The rounding of other engines, held against gguf-py's codecs and llama.cpp's own output."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import gguf
import gguf.quants
import numpy as np
import pytest
import torch

from aprtui.engine.replay import Replay
from aprtui.engine.rounding import (
    PARTNERS,
    gelu_f16_table,
    round_bf16,
    round_f16,
    round_q8_0,
    round_q8_1,
    round_q8_k,
)
from aprtui.formats.aprt import read_values
from aprtui.formats.modelfile import TensorEntry
from aprtui.graph import Role
from aprtui.model.open import Matrix, open_model
from tests.support import FIXTURES, needs_fixtures


def _rows(seed: int, rows: int = 4, columns: int = 512) -> torch.Tensor:
    values = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    return torch.from_numpy(values).double()


def test_q8_0_away_from_zero_is_gguf_pys_codec() -> None:
    x = _rows(1)
    kind = gguf.GGMLQuantizationType.Q8_0
    stored = gguf.quants.quantize(x.numpy().astype(np.float32), kind)
    expected = gguf.quants.dequantize(stored, kind).astype(np.float64)
    np.testing.assert_array_equal(round_q8_0(x, half_even=False).numpy(), expected)


def test_q8_0_rounds_ties_as_told() -> None:
    x = torch.zeros(1, 32, dtype=torch.float64)
    x[0, 0], x[0, 1], x[0, 2] = 127.0, 2.5, -2.5  # the scale is 1
    assert round_q8_0(x)[0, :3].tolist() == [127.0, 2.0, -2.0]
    assert round_q8_0(x, half_even=False)[0, :3].tolist() == [127.0, 3.0, -3.0]


def test_q8_k_maps_the_largest_to_minus_127() -> None:
    x = torch.zeros(1, 256, dtype=torch.float64)
    x[0, 0], x[0, 1], x[0, 2] = -254.0, 254.0, 5.0  # equal magnitudes: the first one's sign counts
    assert round_q8_k(x)[0, :3].tolist() == [-254.0, 254.0, 4.0]


def test_q8_1_keeps_a_sum_of_its_own() -> None:
    values, sums = round_q8_1(_rows(2))
    own = values.reshape(4, 16, 32).sum(-1)
    assert float((sums - own).abs().max()) > 0
    torch.testing.assert_close(sums, own, rtol=2e-3, atol=2e-2)


def test_the_inverse_scale_is_rounded_once() -> None:
    """torch's ``127.0 / x`` rounds twice; one bit of it moves an activation that lies at a tie.

    Blocks whose largest value is not 127, their other values next to k + 1/2 steps: ggml's
    quantize_row_q8_0 (AVX) and quantize_row_q8_K in numpy's float32.
    """
    random = np.random.default_rng(7)
    largest = random.uniform(0.5, 2, (2000, 1)).astype(np.float32)
    ties = (random.integers(-120, 120, (2000, 255)) + 0.5).astype(np.float32)
    x = np.hstack([largest, ties * (largest / np.float32(127))])
    inverse = np.float32(-127) / largest
    steps = np.minimum(127, np.rint(x * inverse))
    expected = steps.astype(np.float64) * (np.float32(1) / inverse).astype(np.float64)
    np.testing.assert_array_equal(round_q8_k(torch.from_numpy(x)).numpy(), expected)
    x = x[:, :32]
    steps = np.rint(x * (np.float32(127) / largest)).astype(np.float64)
    scale = (largest / np.float32(127)).astype(np.float16).astype(np.float64)
    np.testing.assert_array_equal(round_q8_0(torch.from_numpy(x.copy())).numpy(), steps * scale)


@pytest.mark.parametrize("rounding", [round_q8_0, round_q8_k, lambda x: round_q8_1(x)[0]])
def test_zero_blocks_stay_zero(rounding: object) -> None:
    assert callable(rounding)
    assert not rounding(torch.zeros(2, 256, dtype=torch.float64)).any()


def test_bf16_and_f16_round_to_nearest_even() -> None:
    x = torch.tensor([1.0 + 2**-8, 1.0 + 3 * 2**-8, 1.0 + 2**-11], dtype=torch.float64)
    assert round_bf16(x).tolist() == [1.0, 1.0 + 2**-6, 1.0]
    assert round_f16(x)[2].item() == 1.0


def test_the_gelu_table_takes_and_gives_f16() -> None:
    x = torch.tensor([-11.0, 12.3456789, 0.1234567], dtype=torch.float64)
    found = gelu_f16_table(x)
    assert found[:2].tolist() == [0.0, 12.3456789]
    assert found[2].item() == float(np.float16(found[2].item()))
    assert found[2].item() == pytest.approx(0.0677832, abs=5e-5)


def test_partners_are_those_of_ggmls_cpu() -> None:
    said = {"Q4_K": "Q8_K", "IQ2_XS": "Q8_K", "Q4_0": "Q8_0", "Q5_1": "Q8_1", "F16": "F16"}
    assert {name: PARTNERS[name][0] for name in said} == said
    assert PARTNERS["F32"] == ()


def _dot_q4_1_q8_1(stored: bytes, x: np.ndarray) -> float:
    """One row of Q4_1 blocks times one row of activations, as ggml's integer kernel sums it."""
    total = 0.0
    for block in range(len(stored) // 20):
        raw = stored[20 * block : 20 * block + 20]
        scale, minimum = np.frombuffer(raw[:4], "<f2").astype(np.float64)
        packed = np.frombuffer(raw[4:], np.uint8).astype(np.int64)
        weights = np.concatenate([packed & 15, packed >> 4])
        part = x[32 * block : 32 * block + 32].astype(np.float32)
        d = np.float32(np.abs(part).max() / np.float32(127.0))
        q = np.rint(part * (np.float32(127.0) / np.abs(part).max())).astype(np.int64)
        s = np.float64(np.float16(d * np.float32(q.sum())))
        total += scale * np.float64(np.float16(d)) * float((weights * q).sum()) + minimum * s
    return total


def test_q8_1_multiplies_the_minimum_by_the_blocks_own_sum(tmp_path: Path, qwen2: Path) -> None:
    random = np.random.default_rng(4)
    weights = random.standard_normal((3, 256)).astype(np.float32) + np.float32(0.5)
    stored = gguf.quants.quantize(weights, gguf.GGMLQuantizationType.Q4_1)
    path = tmp_path / "matrix"
    path.write_bytes(stored.tobytes())
    entry = TensorEntry("m", "Q4_1", (3, 256), path, 0, stored.nbytes)
    role = Role("gate", 0)
    model = dataclasses.replace(open_model(qwen2), weights={role: Matrix(entry, 0, 3, 256)})
    x = random.standard_normal((2, 256))
    x = x.astype(np.float32).astype(np.float64)
    made = Replay(model).products(role, x, ("Q8_1",))[0]
    expected = [[_dot_q4_1_q8_1(stored[row].tobytes(), line) for row in range(3)] for line in x]
    np.testing.assert_allclose(made, expected, rtol=1e-10)


@needs_fixtures
@pytest.mark.parametrize(
    ("model", "rounding"), [("qwen2-q4_k_m", "Q8_K"), ("llamaspm-q4_0", "Q8_0")]
)
def test_llama_cpps_own_product_is_reproduced(model: str, rounding: str) -> None:
    capture = FIXTURES / "captures" / model / "llamacpp" / "layer-1"
    replay = Replay(open_model(FIXTURES / "models" / f"{model}.gguf"))
    role = Role("gate", 1)
    columns = replay.shape(role)[1]
    x = np.asarray(read_values(capture / "ffn_norm.bin"), np.float64).reshape(-1, columns)
    y = np.asarray(read_values(capture / "ffn_gate.bin"), np.float64).reshape(len(x), -1)
    plain, rounded = replay.products(role, x, ("", rounding))
    assert np.linalg.norm(y - plain) > 5e-3 * np.linalg.norm(y)
    assert np.linalg.norm(y - rounded) < 5e-7 * np.linalg.norm(y)
