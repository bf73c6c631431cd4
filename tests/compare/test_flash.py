"""Flash attention over an f16 cache is honest: explained by name, and faults in it still found.

The captures hold what ggml's loop gives, written down here from ggml-cpu/ops.cpp
(ggml_compute_forward_flash_attn_ext_f16_one_chunk and _tiled) in float32 and float16.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from aprtui.compare.bisect import bisect
from aprtui.compare.bisection import Bisection
from aprtui.compare.worker import Options
from aprtui.formats.aprt import write_stage
from aprtui.formats.tracedir import StageKey, open_trace
from aprtui.graph.select import parse_stages
from aprtui.model.open import Model, open_model
from tests.support import FIXTURES, needs_fixtures

Float32 = npt.NDArray[np.float32]
Values = npt.NDArray[np.floating[Any]]
f16, f32 = np.float16, np.float32

MODEL = FIXTURES / "models" / "qwen2-q4_k_m.gguf"
pytestmark = needs_fixtures


def one_chunk(q: Values, k: Values, v: Values, cached: bool) -> Float32:
    """Queries [n,d] of one head, the last n of the T positions of k and v [T,d]: [n,d].

    Key after key with a running maximum; over an f16 cache the sum is kept in float16.
    """
    cut, scale = (f16 if cached else f32), f32(1 / np.sqrt(q.shape[1]))
    q, k, v = q.astype(cut), k.astype(cut), v.astype(cut)
    out = np.empty(q.shape, dtype=f32)
    for row, query in enumerate(q):
        total, largest, held = f32(0), f32(-np.inf), np.zeros(q.shape[1], dtype=cut)
        for key in range(len(k) - len(q) + row + 1):
            s = f32(np.dot(k[key].astype(f32), query.astype(f32))) * scale
            down, weight = f32(1), f32(1)
            if s > largest:
                down, largest = np.exp(largest - s), s
                held = (held.astype(f32) * down).astype(cut)
            else:
                weight = np.exp(s - largest)
            held = (held.astype(f32) + v[key].astype(f32) * weight).astype(cut)
            total = total * down + weight
        out[row] = held.astype(f32) * (f32(1) / total)
    return out


def tiled(q: Float32, k: Float32, v: Float32, cached: bool) -> Float32:
    """The same in float32 throughout, over keys and values as the cache holds them."""
    if cached:
        k, v = k.astype(f16).astype(f32), v.astype(f16).astype(f32)
    s = q @ k.T * f32(1 / np.sqrt(q.shape[1]))
    s[np.triu_indices(len(q), 1)] = -np.inf
    p = np.exp(s - s.max(axis=1, keepdims=True))
    return np.asarray((p @ v) * (f32(1) / p.sum(axis=1, keepdims=True)), dtype=f32)


def flash_capture(root: Path, model: Model, tokens: int, cached: bool) -> Path:
    """One layer's q, k and v, random, and what flash attention makes of them."""
    random = np.random.default_rng(tokens)
    _, heads, size = model.graph[StageKey(0, "q_post_rope")].shape(tokens)
    groups = model.graph[StageKey(0, "k_post_rope")].shape(tokens)[1]
    qkv = random.standard_normal((tokens, (heads + 2 * groups) * size)).astype(f32)
    q = 2 * random.standard_normal((tokens, heads, size)).astype(f32)
    k = 2 * random.standard_normal((tokens, groups, size)).astype(f32)
    v = qkv[:, (heads + groups) * size :].reshape(tokens, groups, size)
    loop = one_chunk if tokens < 64 else tiled  # ggml_fa_tile_config::Q
    made = np.stack(
        [
            loop(q[:, head], k[:, group], v[:, group], cached)
            for head in range(heads)
            for group in (head // (heads // groups),)
        ],
        axis=1,
    )
    for name, values in (
        ("qkv_bias", qkv), ("q_post_rope", q), ("k_post_rope", k), ("attention", made),
    ):  # fmt: skip
        write_stage(root / "layer-0" / f"{name}.bin", 0, values)
    return root


def replayed(root: Path, model: Model) -> Bisection:
    tokens = tuple(range(len(np.fromfile(root / "layer-0" / "qkv_bias.bin", f32)[3:]) // 384))
    return bisect(
        model, open_trace(root), tokens=tokens, options=Options(parse_stages("attention"))
    )


@pytest.mark.parametrize(
    ("tokens", "cached", "by"),
    [
        (20, False, "float32"),
        (80, False, "float32"),
        (1, True, "f16 KV cache, flash attention summed in f16"),
        (20, True, "f16 KV cache, flash attention summed in f16"),
        (63, True, "f16 KV cache, flash attention summed in f16"),
        (80, True, "f16 KV cache, flash attention"),
    ],
)
def test_flash_attention_is_explained_by_name(
    tmp_path: Path, tokens: int, cached: bool, by: str
) -> None:
    model = open_model(MODEL)
    found = replayed(flash_capture(tmp_path / "b", model, tokens, cached), model)
    assert found.culprits == ()
    (explained,) = (each for each in found.explained if each.key.stage == "attention")
    if tokens == 1:  # one key has weight 1: nothing is summed
        assert explained.by.startswith("f16 KV cache")
    else:
        assert explained.by == by
    assert explained.residual_rel_l2 < (6e-5 if "summed" in by else 1e-6)


def halved(values: Float32) -> None:
    values[5:, 3, 8:16] *= f32(0.999)


def swapped(values: Float32) -> None:
    values[:, [1, 2]] = values[:, [2, 1]]


@pytest.mark.parametrize("change", [halved, swapped])
@pytest.mark.parametrize("tokens", [20, 80])
def test_a_fault_inside_flash_attention_is_still_found(
    tmp_path: Path, tokens: int, change: object
) -> None:
    assert callable(change)
    model = open_model(MODEL)
    root = flash_capture(tmp_path / "b", model, tokens, cached=True)
    path = root / "layer-0" / "attention.bin"
    values = np.fromfile(path, f32)[3:].reshape(model.graph[StageKey(0, "attention")].shape(tokens))
    change(values)
    write_stage(path, 0, values)
    found = replayed(root, model)
    assert [culprit.key.stage for culprit in found.culprits] == ["attention"]


def test_stages_that_flash_attention_keeps_apart_are_not_explained_by_it(tmp_path: Path) -> None:
    """Where the softmax was captured nothing was fused: its attention sums in float32."""
    source = FIXTURES / "captures" / "qwen2-q4_k_m" / "llamacpp-f16kv"
    shutil.copytree(source, tmp_path / "b")
    found = bisect(open_model(MODEL), open_trace(tmp_path / "b"))
    assert found.culprits == ()
    assert not any("flash" in each.by for each in found.explained)
