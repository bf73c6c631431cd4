"""One stage computed again: against captures that a float64 numpy pass wrote."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from aprtui.engine.replay import ACTIVATIONS, Replay, activate, halfway, representable
from aprtui.formats.tracedir import StageKey, open_trace
from aprtui.graph import Role
from aprtui.graph.ops import Product
from aprtui.model.open import open_model
from tests.support import FIXTURES, needs_fixtures

MODELS = ("qwen2-q4_k_m", "llama-q4_k_m", "qwen3-q6_k", "qwen3moe-q4_k_m", "gemma3-q4_0")


@needs_fixtures
@pytest.mark.parametrize("name", MODELS)
def test_every_stage_from_its_own_inputs_agrees_with_float64(name: str) -> None:
    model = open_model(FIXTURES / "models" / f"{name}.gguf")
    folder = FIXTURES / "captures" / name
    tokens = tuple(json.loads((folder / "capture.json").read_text())["token_ids"])
    trace = open_trace(folder / "float64")
    replay = Replay(model, tokens)

    def captured(key: StageKey) -> np.ndarray:
        if key not in trace.records:  # the router's logits, which numpy kept to itself
            (x,) = model.graph[key].inputs
            return replay.run(model.graph[key], [captured(x)])
        shape = model.graph[key].shape(len(tokens))
        return trace.records[key].values().reshape(shape).astype(np.float64)

    for node in model.graph:
        made = replay.run(node, [captured(key) for key in node.inputs])
        expected = captured(node.key)
        assert np.linalg.norm(made - expected) <= 2e-7 * np.linalg.norm(expected), str(node.key)


def test_a_product_is_one_of_its_parts(qwen2: Path) -> None:
    replay = Replay(open_model(qwen2))
    node = replay.model.graph[StageKey(1, "qkv_matmul")]
    assert isinstance(node.op, Product)
    x = np.random.default_rng(1).standard_normal((3, 256))
    parts = [replay.products(part.weight, x)[0] for part in node.op.parts]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), replay.run(node, (x,)))


def test_the_transposed_product_uses_columns_as_rows(qwen2: Path) -> None:
    replay = Replay(open_model(qwen2))
    role = Role("gate", 0)
    x = np.random.default_rng(1).standard_normal((3, 512))
    whole = replay.rows(role, range(512))
    np.testing.assert_allclose(replay.transposed(role, x), x @ whole, rtol=1e-12, atol=1e-12)


def test_rows_of_the_table_are_found_and_others_are_not(qwen2: Path) -> None:
    replay = Replay(open_model(qwen2))
    wanted = replay.rows(Role("embedding"), (7, 2000, 0)) * 16.0
    wanted = np.concatenate([wanted, wanted[:1] * 1.001])
    assert replay.find_rows(Role("embedding"), wanted, 16.0) == [7, 2000, 0, None]


def test_activations_at_one() -> None:
    one = np.array([1.0])
    known = {"silu": 0.7310586, "gelu": 0.8413447, "gelu_tanh": 0.8411920,
             "quick_gelu": 0.8457958, "relu": 1.0, "relu2": 1.0, "sigmoid": 0.7310586,
             "none": 1.0}  # fmt: skip
    assert set(known) == set(ACTIVATIONS)
    for name, value in known.items():
        assert activate(one, name)[0] == pytest.approx(value, abs=1e-6)


def test_a_low_precision_output_is_recognised() -> None:
    ones = np.array([1.0, 0.5, -3.0], np.float32)
    assert representable(ones) == "BF16"
    assert representable(ones + np.float32(2**-9)) == "F16"
    assert representable(ones + np.float32(2**-20)) == ""
    assert representable(np.zeros(3, np.float32)) == ""


def test_half_a_unit_in_the_last_place() -> None:
    assert halfway(np.array([1.0, 3.0]), "BF16").tolist() == [2**-8, 2**-7]
    assert halfway(np.array([1.0]), "F16").tolist() == [2**-11]
