"""What runtimes of 16 and 8 bits compute is explained from numpy's own making of it; a fault on
top of it is not."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

import gguf
import gguf.quants
import numpy as np
import numpy.typing as npt
import pytest

from aprtui.compare.bisect import bisect
from aprtui.compare.bisection import Bisection
from aprtui.engine.replay import Replay
from aprtui.formats.tracedir import StageKey
from aprtui.graph.ops import Part
from aprtui.model.open import Model, open_model
from tests.compare.planting import Plant, Scene, compute, write
from tests.support import FIXTURES, needs_fixtures

Array = npt.NDArray[np.float64]
TOKENS = (476, 668, 997, 11, 295, 313, 258, 329)

pytestmark = needs_fixtures


def bf16(x: Array) -> Array:
    """x to nearest even in eight bits."""
    unit = np.ldexp(1.0, np.frexp(x)[1] - 8)
    return np.asarray(np.rint(x / unit) * unit)


@pytest.fixture(scope="module")
def model() -> Model:
    return open_model(FIXTURES / "models" / "qwen2-q4_k_m.gguf")


def bisected(
    root: Path, model: Model, plants: dict[str, Plant], without: frozenset[str] = frozenset()
) -> Bisection:
    values = compute(model, plants, tokens=TOKENS)
    return bisect(model, write(root / "trace", values, without), tokens=TOKENS)


def explained(found: Bisection, name: str) -> str:
    assert found.culprits == ()
    (by,) = (each.by for each in found.explained if str(each.key) == name)
    return by


# -- what the runtimes do, in numpy ----------------------------------------------------------------


def summed(scene: Scene) -> Array:
    return bf16(scene.right)


def fused_norm(scene: Scene) -> Array:
    """Of the residual sum before it was rounded; the row is rounded before the weight."""
    hidden, branch = (scene.values[key] for key in scene.graph[scene.node.inputs[0]].inputs)
    x = hidden + branch
    row = bf16(x / np.sqrt(np.square(x).mean(-1, keepdims=True) + scene.own.eps))
    return bf16(row * bf16(scene.replay.vector(scene.own.weight)))


def rotated_by_rounded_tables(scene: Scene) -> Array:
    """cos and sin in bfloat16, one rounding at the end."""
    heads, table = scene.own.heads, scene.own.table
    x = scene.inputs[0].reshape(len(TOKENS), -1)[:, heads.columns]
    x = x.reshape(len(TOKENS), heads.count, heads.size)
    assert table.pairs == "halves" and table.dims == heads.size
    half = heads.size // 2
    angle = np.outer(np.arange(len(TOKENS)), table.theta ** (-np.arange(half) / half))
    cos, sin = bf16(np.cos(angle))[:, None], bf16(np.sin(angle))[:, None]
    one, two = x[..., :half], x[..., half:]
    return bf16(np.concatenate((one * cos - two * sin, two * cos + one * sin), -1))


def flash(scene: Scene) -> Array:
    """exp(s - max) is rounded before the values, divided by the sum of what was not."""
    count, kv_heads, size = scene.heads
    q, k = scene.value("q_post_rope"), scene.value("k_post_rope")
    v = scene.inputs[1].reshape(len(TOKENS), -1)[:, scene.own.values.columns]
    v = v.reshape(len(TOKENS), kv_heads, size)
    out = np.zeros((len(TOKENS), count, size))
    for head in range(count):
        shared = head * kv_heads // count
        s = q[:, head] @ k[:, shared].T / np.sqrt(size)
        s = np.where(np.tri(len(TOKENS)) > 0, s, -np.inf)
        p = np.exp(s - s.max(-1, keepdims=True))
        out[:, head] = bf16(p) @ v[:, shared] / p.sum(-1, keepdims=True)
    return bf16(out)


def int8_in_blocks_of_32(scene: Scene) -> Array:
    x = scene.inputs[0].astype(np.float32).reshape(len(TOKENS), -1, 32)
    scale = np.abs(x).max(-1, keepdims=True) / np.float32(127)
    rounded = np.rint(x / scale).astype(np.float64) * scale
    return np.asarray(rounded.reshape(len(TOKENS), -1) @ whole(scene, scene.own.parts[0]).T)


def cached(x: Array, kind: str) -> Array:
    """Rows of heads as a cache in a type of GGUF's holds them, by its own package."""
    if kind == "BF16":
        return bf16(x)
    if kind == "F16":
        return x.astype(np.float16).astype(np.float64)
    known = gguf.GGMLQuantizationType[kind]
    coded = gguf.quants.quantize(x.astype(np.float32).reshape(-1, x.shape[-1]), known)
    return gguf.quants.dequantize(coded, known).astype(np.float64).reshape(x.shape)


def scores_from_cache(kind: str, query: str) -> Plant:
    def plant(scene: Scene) -> Array:
        q, k = scene.inputs
        q, k = cached(q, query) if query else q, cached(k, kind)
        groups = q.shape[1] // k.shape[1]
        made = np.einsum("tad,sad->ats", q, k.repeat(groups, 1)) / np.sqrt(q.shape[2])
        return np.asarray(np.where(np.tri(len(TOKENS)) > 0, made, 0.0))

    return plant


def tf32(x: Array) -> Array:
    """x to nearest even in eleven bits."""
    unit = np.ldexp(1.0, np.frexp(x)[1] - 11)
    return np.asarray(np.rint(x / unit) * unit)


def product_in_tf32(scene: Scene) -> Array:
    return tf32(scene.inputs[0]) @ tf32(whole(scene, scene.own.parts[0])).T


def swiglu_in_one_kernel(scene: Scene) -> Array:
    """Sigmoid, SiLU and product each rounded."""
    gate = scene.value("ffn_gate")
    return bf16(bf16(gate * bf16(1 / (1 + np.exp(-gate)))) * scene.inputs[1])


def biased_once(scene: Scene) -> Array:
    """The product plus its bias, from weights in bfloat16, with one rounding."""
    x = bf16(scene.values[scene.graph[scene.node.inputs[0]].inputs[0]])
    parts = [x @ bf16(whole(scene, part)).T for part in scene.own.parts]
    biases = [bf16(scene.replay.vector(part.bias)) for part in scene.own.parts]
    return bf16(np.concatenate(parts, 1) + np.concatenate(biases))


def whole(scene: Scene, part: Part) -> Array:
    """The matrix of a part."""
    return scene.replay.rows(part.weight, range(part.rows))


RESIDUAL, NORM = "layer-1/post_attn_residual", "layer-1/ffn_norm"
HIDDEN_PROBABILITIES = frozenset({"attn_scores", "attn_softmax"})


# -- the promises ----------------------------------------------------------------------------------


def test_a_norm_of_the_sum_before_it_was_rounded(tmp_path: Path, model: Model) -> None:
    found = bisected(tmp_path, model, {RESIDUAL: summed, NORM: fused_norm})
    assert "from the sum before it was rounded" in explained(found, NORM)


def test_rope_tables_of_16_bits(tmp_path: Path, model: Model) -> None:
    name = "layer-1/q_post_rope"
    found = bisected(tmp_path, model, {name: rotated_by_rounded_tables})
    assert "RoPE tables in bfloat16" in explained(found, name)


def test_flash_attention_of_16_bits(tmp_path: Path, model: Model) -> None:
    plants: dict[str, Plant] = dict.fromkeys(
        ("layer-1/q_post_rope", "layer-1/k_post_rope", "layer-1/qkv_bias"), summed
    )
    name = "layer-1/attention"
    found = bisected(tmp_path, model, {**plants, name: flash}, HIDDEN_PROBABILITIES)
    assert "flash attention" in explained(found, name)


def test_activations_in_int8_with_a_float32_scale(tmp_path: Path, model: Model) -> None:
    name = "layer-1/ffn_out"
    found = bisected(tmp_path, model, {name: int8_in_blocks_of_32})
    by = explained(found, name)
    assert by == "activations rounded to int8 in blocks of 32, float32 scale"


def test_a_product_and_its_bias_rounded_once(tmp_path: Path, model: Model) -> None:
    name = "layer-1/qkv_bias"
    plants: dict[str, Plant] = {"layer-1/attn_norm": summed, name: biased_once}
    values = compute(model, plants, tokens=TOKENS)
    hidden = frozenset({"qkv_matmul"})
    found = bisect(model, write(tmp_path / "trace", values, hidden), tokens=TOKENS)
    assert "bfloat16 rounding of inputs and outputs" in explained(found, name)


@pytest.mark.parametrize(
    ("kind", "query", "by"),
    [
        ("Q8_0", "Q8_0", "q8_0 KV cache"),
        ("Q8_0", "", "q8_0 KV cache, with a float32 query"),
        ("Q4_0", "Q8_0", "q4_0 KV cache"),
        ("Q4_0", "", "q4_0 KV cache, with a float32 query"),
        ("F16", "F16", "f16 KV cache"),
        ("F16", "", "f16 KV cache, with a float32 query"),
        ("BF16", "", "bf16 KV cache, with a float32 query"),
    ],
)
def test_a_cache_of_any_type(tmp_path: Path, model: Model, kind: str, query: str, by: str) -> None:
    name = "layer-1/attn_scores"
    found = bisected(tmp_path, model, {name: scores_from_cache(kind, query)})
    assert explained(found, name) == by


def test_products_in_tf32(tmp_path: Path, model: Model) -> None:
    name = "layer-1/ffn_up"
    found = bisected(tmp_path, model, {name: product_in_tf32})
    assert explained(found, name) == "TF32 products"


def test_swiglu_in_one_kernel(tmp_path: Path, model: Model) -> None:
    plants: dict[str, Plant] = dict.fromkeys(("layer-1/ffn_gate", "layer-1/ffn_up"), summed)
    name = "layer-1/ffn_swigl"
    values = compute(model, {**plants, name: swiglu_in_one_kernel}, tokens=TOKENS)
    hidden = frozenset({"ffn_silu"})
    found = bisect(model, write(tmp_path / "trace", values, hidden), tokens=TOKENS)
    by = next(each.by for each in found.explained if str(each.key) == name)
    assert by == "bfloat16 rounding of inputs and outputs"


FAULTS: list[tuple[str, Callable[[Scene], Array], Callable[[Array], Array]]] = [
    (NORM, fused_norm, lambda made: made * 1.01),
    ("layer-1/q_post_rope", rotated_by_rounded_tables, lambda made: np.roll(made, 1, axis=0)),
    ("layer-1/attention", flash, lambda made: made * 1.02),
    ("layer-1/ffn_out", int8_in_blocks_of_32, lambda made: made * 1.001),
    ("layer-1/qkv_bias", biased_once, lambda made: made * 1.01),
]


@pytest.mark.parametrize(("name", "honest", "fault"), FAULTS, ids=[row[0] for row in FAULTS])
def test_a_fault_on_top_of_an_honest_rounding_is_a_culprit(
    tmp_path: Path,
    model: Model,
    name: str,
    honest: Callable[[Scene], Array],
    fault: Callable[[Array], Array],
) -> None:
    plants: dict[str, Plant] = {
        RESIDUAL: summed,
        "layer-1/attn_norm": summed,
        name: lambda scene: bf16(fault(honest(scene))) if "ffn_out" not in name
        else fault(honest(scene)),
    }  # fmt: skip
    found = bisected(tmp_path, model, plants, HIDDEN_PROBABILITIES | {"qkv_matmul"})
    assert name in {str(each.key) for each in found.culprits}


# -- how a product is summed -----------------------------------------------------------------------


def summed_by_ranks(count: int) -> Plant:
    """Each rank's share of the columns, its sum rounded before they are added."""

    def plant(scene: Scene) -> Array:
        x, weight = scene.inputs[0].reshape(len(TOKENS), -1), bf16(whole(scene, scene.own.parts[0]))
        parts = zip(np.split(bf16(x), count, 1), np.split(weight, count, 1), strict=True)
        return bf16(np.sum([bf16(a @ b.T) for a, b in parts], axis=0))

    return plant


@pytest.mark.parametrize("count", [2, 4])
def test_shares_of_ranks_are_rounded_before_they_are_added(
    tmp_path: Path, model: Model, count: int
) -> None:
    name = "layer-1/attn_out"
    plants: dict[str, Plant] = {"layer-1/attention": summed, name: summed_by_ranks(count)}
    found = bisected(tmp_path, model, plants)
    assert f"sums of {count} ranks, each rounded to bfloat16" in explained(found, name)


def test_a_share_that_is_lost_is_a_culprit(tmp_path: Path, model: Model) -> None:
    def lost(scene: Scene) -> Array:
        x, weight = scene.inputs[0].reshape(len(TOKENS), -1), bf16(whole(scene, scene.own.parts[0]))
        half = x.shape[1] // 2
        return bf16(bf16(x[:, :half]) @ weight[:, :half].T)

    name = "layer-1/attn_out"
    found = bisected(tmp_path, model, {"layer-1/attention": summed, name: lost})
    assert [str(each.key) for each in found.culprits] == [name]


def test_one_running_sum_in_float16(tmp_path: Path, model: Model) -> None:
    def running(scene: Scene) -> Array:
        x = scene.inputs[0].astype(np.float16)
        weight = whole(scene, scene.own.parts[0]).astype(np.float16)
        total = np.zeros((len(x), len(weight)), dtype=np.float16)
        for column in range(x.shape[1]):
            total += x[:, column, None] * weight[None, :, column]
        return total.astype(np.float64)

    name = "layer-1/ffn_gate"
    found = bisected(tmp_path, model, {"layer-1/ffn_norm": half, name: running})
    assert "terms summed one by one in float16" in explained(found, name)


def half(scene: Scene) -> Array:
    return np.asarray(scene.right.astype(np.float16).astype(np.float64))


def float8(x: Array, together: tuple[int, ...] | None) -> Array:
    """x in e4m3 by its own bits, with a scale for what lies along the axes ``together``."""
    scale = np.abs(x).max(together, keepdims=True).astype(np.float32) / np.float32(448)
    scaled = (x.astype(np.float32) / scale).astype(np.float64)
    exponent = np.maximum(np.frexp(scaled)[1], -5)
    unit = np.ldexp(1.0, exponent - 4)
    return np.asarray(np.clip(np.rint(scaled / unit) * unit, -448, 448) * scale)


@pytest.mark.parametrize(("each_row", "by"), [(False, "per tensor"), (True, "per row")])
def test_weights_that_are_rounded_to_float8_when_they_are_loaded(
    tmp_path: Path, model: Model, each_row: bool, by: str
) -> None:
    def plant(scene: Scene) -> Array:
        weight = float8(whole(scene, scene.own.parts[0]), (1,) if each_row else None)
        x = float8(scene.inputs[0], (1,) if each_row else None)
        return np.asarray(x @ weight.T)

    name = "layer-1/ffn_up"
    found = bisected(tmp_path, model, {name: plant})
    assert explained(found, name).startswith(f"float8 e4m3 weights {by}, activations rounded to")


def test_products_in_tf32_as_cuda_rounds_to_it(tmp_path: Path, model: Model) -> None:
    def away(x: Array) -> Array:
        unit = np.ldexp(1.0, np.frexp(x)[1] - 11)
        return np.asarray(np.sign(x) * np.floor(np.abs(x) / unit + 0.5) * unit)

    name = "layer-1/ffn_up"
    plants: dict[str, Plant] = {
        name: lambda scene: away(scene.inputs[0]) @ away(whole(scene, scene.own.parts[0])).T
    }
    found = bisected(tmp_path, model, plants)
    assert explained(found, name) == "TF32 products (ties away from zero)"


def test_a_checkpoint_says_which_rounding_of_activations_is_tried_first(tmp_path: Path) -> None:
    with tarfile.open(FIXTURES / "cases/reports/fp8-block-folder.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    model = open_model(next(tmp_path.rglob("config.json")).parent)

    def rounded(scene: Scene) -> Array:  # blocks of 128 columns, of which there are 64
        x = float8(scene.inputs[0], (1,))
        return np.asarray(x @ whole(scene, scene.own.parts[0]).T)

    name = "layer-0/ffn_gate"
    tokens = tuple(token % model.graph.vocab_size for token in TOKENS)
    values = compute(model, {name: rounded}, tokens=tokens)
    found = bisect(model, write(tmp_path / "trace", values, frozenset()), tokens=tokens)
    assert explained(found, name) == "activations rounded to float8 e4m3 per token, float32 scale"
    (role,) = model.graph[StageKey(0, "ffn_gate")].op.matrices
    stated = Replay(model).stated_roundings(role)
    assert stated == ("float8 e4m3 per token, float32 scale",)
