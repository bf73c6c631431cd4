"""Nobody honest is accused: engines that compute in 16 bits, family by family, and numpy's own
making of what they round. A fault on top of it is found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from aprtui import api
from aprtui.compare.bisect import bisect
from aprtui.compare.bisection import Bisection
from aprtui.compare.worker import Options
from aprtui.engine.replay import types_of
from aprtui.formats.tracedir import StageKey, TraceDir, open_trace, relative_path
from aprtui.model.open import Model, open_model
from tests.compare.planting import Plant, Scene, compute, write
from tests.families import TINY, save_tiny
from tests.support import FIXTURES, needs_fixtures

Array = npt.NDArray[np.float64]
TOKENS = (3, 17, 40, 9, 5, 61, 7, 8, 23, 11)

pytestmark = needs_fixtures


def model_at(name: str) -> Path:
    return FIXTURES / ("models" if name == "pycode-5m" else "families") / name


def traced(name: str, engine: str, dtype: str, folder: Path) -> tuple[Model, TraceDir]:
    if engine == "hf":
        pytest.importorskip("transformers", reason="transformers is a dev dependency")
    path = model_at(name)
    if not path.exists():  # no fixture of the family
        path = folder.with_name("model")
        save_tiny(TINY[name], path)
    trace = api.trace(path, tokens=TOKENS, engine=engine, dtype=dtype, directory=folder)
    return open_model(path), trace


# -- real runtimes ---------------------------------------------------------------------------------

BY_TRANSFORMERS = {
    "pycode-5m": ("qkv_bias", "from the sum before it was rounded"),
    "apertus": ("ffn_silu", "rounding of inputs and outputs"),
    "bamba": ("ssm_dt", "rounding of inputs and outputs"),
    "deepseek_v3": ("k_post_rope", "rounding of inputs and outputs"),
    "falcon_h1": ("ssm_gated", "rounding of inputs and outputs"),
    "falcon_mamba": ("ssm_gated", "rounding of inputs and outputs"),
    "gemma2": ("embedding", "rounding of inputs and outputs"),
    "glm_moe_dsa": ("index_scores", "float32"),
    "gemma3n_text": ("per_layer_input", "its factor in"),
    "gemma4_text": ("per_layer_input", "rounding of inputs and outputs"),
    "gpt2": ("qkv_bias", "rounding of inputs and outputs"),
    "gpt_neox": ("post_ffn_residual", "both branches added before the residual"),
    "gpt_oss": ("attn_softmax", "rounding of inputs and outputs"),
    "jamba": ("ssm_dt", "rounding of inputs and outputs"),
    "kimi_linear": ("delta_row_decay", "rounding of inputs"),
    "lfm2_moe": ("moe_router", "rounding of inputs and outputs"),
    "mamba": ("ssm_scan", "rounding of inputs"),
    "mpt": ("attn_scores", "rounding"),
    "qwen3_next": ("delta_norm", "rounding of inputs and outputs"),
}
BY_US = {
    "apertus": ("ffn_silu", "rounding of inputs and outputs"),
    "gemma2": ("lm_head", "rounding of inputs and outputs"),
    "gemma3n_text": ("altup_corrected", "rounding of inputs and outputs"),
    "gpt2": ("attn_out", "rounding of inputs and outputs"),
    "gpt_oss": ("router_logits", "rounding of inputs and outputs"),
    "minicpm3": ("lm_head", "rounding of inputs"),
}
"""Family -> a stage that rounds inside in a way of its own, and how that is said."""
UNEVEN = {
    "falcon_h1": {
        "qkv_matmul": "",
        "ssm_in": "its factor in",
        "ssm_out": "a bias added before",
        "attn_out": "",
    },
    "falcon_mamba": {"final_norm": "weights"},
    "gemma3n": {"per_layer_norm": "its factor in", "altup_modes": "its factor in"},
    "gemma4": {"per_layer_norm": "rounding of inputs and outputs"},
    "gpt2": {"pos_embedding": "weights"},
    "laguna": {"router_logits": "a sum rounded to"},
    "ministral3": {"attn_scores": "rounding of inputs and outputs"},
}
"""Family -> stages of its tiny model, whose weights and factors no 16 bits hold, and how each is
said: which are rounded is told by transformers' own code."""

RUNS = [
    *(("hf", name, *row) for name, row in BY_TRANSFORMERS.items()),
    *(("aprtui", name, *row) for name, row in BY_US.items()),
]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("engine", "name", "stage", "by"), RUNS)
def test_an_engine_of_16_bits_is_cleared_and_a_fault_in_it_is_not(
    engine: str, name: str, stage: str, by: str, dtype: str, tmp_path: Path
) -> None:
    model, trace = traced(name, engine, dtype, tmp_path / "t")
    cleared(model, trace, {stage: by})
    found_in(model, trace, stage, dtype)


def cleared(model: Model, trace: TraceDir, stages: Mapping[str, str]) -> None:
    """Nobody is accused, and these stages are explained so."""
    found = bisect(model, trace)
    assert (found.culprits, found.unmeasured) == ((), ())
    for stage, by in stages.items():
        told = [each.by for each in found.explained if each.key.stage == stage]
        assert told and all(by in each for each in told), (stage, told)


def found_in(model: Model, trace: TraceDir, stage: str, dtype: str) -> None:
    """Faults on top of a stage are found."""
    where = next(key for key in trace.records if key.stage == stage)
    whole = trace.records[where].values().astype(np.float64)
    for fault in (lambda x: x * 1.01, three_channels):
        rewrite(trace, where, fault(whole), dtype)
        again = bisect(
            model, open_trace(trace.root), tokens=TOKENS, options=Options(stages=(stage,))
        )
        assert where in {each.key for each in again.culprits}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", UNEVEN)
def test_factors_and_weights_that_16_bits_do_not_hold(
    family: str, dtype: str, folder: Callable[[str], Path], tmp_path: Path
) -> None:
    pytest.importorskip("transformers", reason="transformers is a dev dependency")
    model = open_model(folder(family))
    trace = api.trace(model, tokens=TOKENS, engine="hf", dtype=dtype, directory=tmp_path / "t")
    cleared(model, trace, UNEVEN[family])
    found_in(model, trace, next(iter(UNEVEN[family])), dtype)


def test_sums_in_float32_whose_few_bits_fit_the_other_type(tmp_path: Path) -> None:
    """Scores of bfloat16 plus ALiBi's biases: MPT adds them in float32."""
    pytest.importorskip("transformers", reason="transformers is a dev dependency")
    settings = {"hidden_size": 64, "num_hidden_layers": 4, "vocab_size": 320}
    save_tiny(replace(TINY["mpt"], settings=settings), tmp_path / "m")
    model = open_model(tmp_path / "m")
    trace = api.trace(model, tokens=TOKENS, engine="hf", dtype="bfloat16", directory=tmp_path / "t")
    scores = [
        record.values() for key, record in trace.records.items() if key.stage == "attn_scores"
    ]
    assert ("F16",) in [types_of(each.reshape(-1)) for each in scores]
    cleared(model, trace, {"attn_scores": "bfloat16 rounding of inputs"})


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", ["bamba", "falcon_h1", "mamba2"])
def test_steps_that_a_dump_does_not_show_are_rounded_on_the_way(
    family: str, dtype: str, folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """No module of transformers gives them; the scan's output and state are in float32."""
    pytest.importorskip("transformers", reason="transformers is a dev dependency")
    model = open_model(folder(family))
    trace = api.trace(model, tokens=TOKENS, engine="hf", dtype=dtype, directory=tmp_path / "t")
    hidden = [key for key in trace.records if key.stage == "ssm_dt"]
    for key in hidden:
        trace.records[key].path.unlink()
    (trace.root / "trace.json").unlink()
    shown = open_trace(trace.root)
    found = bisect(model, shown, tokens=TOKENS)
    assert hidden and (found.culprits, found.unmeasured) == ((), ())
    spans = {each.key.stage: each.span for each in found.explained if each.span}
    assert {*spans} == {"ssm_scan", "ssm_state"}
    found_in(model, shown, "ssm_scan", "float32")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kv", ["q8_0", "q4_0"])
def test_a_quantised_cache_under_16_bits_is_explained(kv: str, dtype: str, tmp_path: Path) -> None:
    model = open_model(model_at("pycode-5m"))
    trace = api.trace(
        model, tokens=TOKENS, dtype=dtype, kv=kv, steps=1, layers="0,1", directory=tmp_path / "t"
    )
    found = bisect(model, trace)
    assert found.culprits == ()
    for stage in ("attn_scores", "attention"):
        told = {each.by for each in found.explained if each.key.stage == stage}
        assert told and all(f"{kv} KV cache" in each for each in told)


def three_channels(values: Array) -> Array:
    """The first three of each token times one and a half."""
    rows = values.reshape(len(TOKENS) if values.size % len(TOKENS) == 0 else 1, -1)
    return np.concatenate((rows[:, :3] * 1.5, rows[:, 3:]), 1)


def rewrite(trace: TraceDir, key: StageKey, values: Array, dtype: str) -> None:
    """A stage with other values, in the type of the runtime; its file alone, as a runtime without a
    manifest leaves it."""
    cut = bf16(values) if dtype == "bfloat16" else values
    cut = values.astype(np.float16) if dtype == "float16" else cut
    path = trace.root / relative_path(key)
    head = path.read_bytes()[: -4 * values.size]
    path.write_bytes(head + cut.astype("<f4").tobytes())
    (trace.root / "trace.json").unlink(missing_ok=True)


@pytest.mark.parametrize("name", ["pycode-5m", "bloom"])
def test_a_product_that_is_shown_without_its_bias_is_no_outlier(name: str, tmp_path: Path) -> None:
    """In float32 too its sums are others than those that the bias was added to."""
    model, trace = traced(name, "hf", "float32", tmp_path / "t")
    assert bisect(model, trace).culprits == ()


def test_weights_below_the_least_of_float16_are_no_outlier(tmp_path: Path) -> None:
    model, trace = traced("bamba", "aprtui", "float16", tmp_path / "t")
    assert bisect(model, trace).culprits == ()


# -- the same in numpy -----------------------------------------------------------------------------


def bf16(x: Array) -> Array:
    """x to nearest even in eight bits."""
    unit = np.ldexp(1.0, np.frexp(x)[1] - 8)
    return np.asarray(np.rint(x / unit) * unit)


def rounded(scene: Scene) -> Array:
    return bf16(scene.right)


def multiplied(scene: Scene, x: Array) -> tuple[Array, Array]:
    """(products, biases) of a stage from rows in bfloat16, with weights in it."""
    rows, parts = bf16(x).reshape(len(x), -1), scene.own.parts
    weights = [scene.replay.rows(part.weight, range(part.rows)) for part in parts]
    biases = [scene.replay.vector(part.bias) for part in parts if part.bias is not None]
    made = [rows @ bf16(weight).T for weight in weights]
    return np.concatenate(made, 1), bf16(np.concatenate(biases)) if biases else np.zeros(1)


def fused_bias(scene: Scene) -> Array:
    """Of the product as it was before it was rounded to be shown."""
    made, biases = multiplied(scene, scene.values[scene.graph[scene.node.inputs[0]].inputs[0]])
    return bf16(made + biases)


def biased_after(scene: Scene) -> Array:
    """The product is rounded, then the sum."""
    made, biases = multiplied(scene, scene.inputs[0])
    return bf16(bf16(made) + biases)


def branches_first(scene: Scene) -> Array:
    source = scene.graph[scene.node.inputs[0]]
    hidden, attention = (scene.values[key] for key in source.inputs)
    return bf16(hidden + bf16(attention + scene.inputs[1]))


def capped(scene: Scene) -> Array:
    """Product, quotient, tanh and what it is multiplied by, each rounded."""
    made, _ = multiplied(scene, scene.inputs[0][-1:])
    cap = scene.own.cap
    return np.asarray(bf16(bf16(np.tanh(bf16(bf16(made) / cap))) * cap)[0])


MADE: list[tuple[str, str, tuple[str, ...], Plant, str]] = [
    ("qwen2_moe", "layer-0/qkv_bias", ("layer-0/attn_norm", "layer-0/qkv_matmul"), fused_bias,
     "from the sum before it was rounded"),
    ("gpt2", "layer-1/attn_out", ("layer-1/attention",), biased_after,
     "bfloat16 rounding of inputs and outputs"),
    ("gpt_neox", "layer-1/post_ffn_residual",
     ("layer-0/post_ffn_residual", "layer-1/attn_out", "layer-1/post_attn_residual",
      "layer-1/ffn_out"), branches_first, "both branches added before the residual"),
    ("gemma2", "lm_head", ("final_norm",), capped, "bfloat16 rounding of inputs and outputs"),
]  # fmt: skip
FAULTS: list[Callable[[Array], Array]] = [
    lambda made: made,
    lambda made: bf16(made * 1.01),
    lambda made: np.concatenate((made[..., :3] * 1.5, made[..., 3:]), -1),
]


@pytest.mark.parametrize("fault", FAULTS, ids=["honest", "scaled", "three channels"])
@pytest.mark.parametrize(
    ("name", "stage", "before", "plant", "by"),
    MADE,
    ids=lambda x: getattr(x, "__name__", str(x))[:28],
)
def test_what_runtimes_round_is_told_from_a_fault(
    name: str,
    stage: str,
    before: tuple[str, ...],
    plant: Plant,
    by: str,
    fault: Callable[[Array], Array],
    tmp_path: Path,
) -> None:
    model = open_model(FIXTURES / "families" / name / "model.gguf")
    plants: dict[str, Plant] = dict.fromkeys(before, rounded)
    values = compute(model, {**plants, stage: lambda s: fault(plant(s))}, tokens=TOKENS)
    found: Bisection = bisect(model, write(tmp_path / "t", values), tokens=TOKENS)
    accused = {str(each.key) for each in found.culprits}
    if fault is FAULTS[0]:
        assert accused == set()
        (told,) = (each.by for each in found.explained if str(each.key) == stage)
        assert by in told
    else:
        assert accused == {stage}
