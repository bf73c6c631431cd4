"""Faults planted in transformers' own modules: of a capture of the faulty model the stage, its
layer and the mistake are told, and of one of the right model nothing is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from aprtui.compare.bisect import bisect
from aprtui.engine.job import TraceJob
from aprtui.engine.plan import make_plan
from aprtui.engine.run import run_trace
from aprtui.formats.tracedir import open_trace
from aprtui.model.open import open_model
from tests.families import TINY, save_tiny

pytest.importorskip("transformers", reason="transformers is a dev dependency")

from aprtui.engine.adapters import huggingface

TOKENS = tuple((11 * place + 3) % 96 for place in range(20))
Plant = Callable[[Any], None]


def _no_positions(model: Any) -> None:
    model.transformer.wpe.forward = lambda places: torch.zeros(*places.shape, 48)


def _first_row(model: Any) -> None:
    model.model.decoder.embed_positions.offset = 1


def _no_alibi(model: Any) -> None:
    attention = model.transformer.h[1].self_attention
    right = attention.forward
    attention.forward = lambda *given, alibi, **named: right(*given, alibi=alibi * 0, **named)


def _no_latent_norm(model: Any) -> None:
    model.model.layers[1].self_attn.kv_a_layernorm.forward = lambda x: x


def _not_turned(model: Any) -> None:
    attention = model.model.layers[1].self_attn
    right = attention.forward

    def forward(*given: Any, position_embeddings: Any, **named: Any) -> Any:
        cos, sin = position_embeddings
        still = torch.ones_like(cos), torch.zeros_like(sin)
        return right(*given, position_embeddings=still, **named)

    attention.forward = forward


def _faulty_rule(change: Callable[[dict[str, Any]], None]) -> Plant:
    """The delta rule of layer 2 computes with something else than it is given."""

    def plant(model: Any) -> None:
        code = sys.modules[type(model).__module__]
        right, layers = code.torch_chunk_gated_delta_rule, iter((0, 2))

        def rule(*given: Any, **named: Any) -> Any:
            if next(layers) == 2:
                change(named)
            return right(*given, **named)

        PATCHES.append((code, "torch_chunk_gated_delta_rule", rule))

    return plant


def _no_decay(named: dict[str, Any]) -> None:
    named["g"] = torch.zeros_like(named["g"])


def _no_beta(named: dict[str, Any]) -> None:
    named["beta"] = torch.ones_like(named["beta"])


def _late_conv(model: Any) -> None:
    code = sys.modules[type(model).__module__]
    right, layers = code.causal_conv1d_fn, iter((0, 2))

    def conv(x: Any, *given: Any, **named: Any) -> Any:
        late = torch.cat((torch.zeros_like(x[..., :1]), x[..., :-1]), dim=-1)
        return right(late if next(layers) == 2 else x, *given, **named)

    PATCHES.append((code, "causal_conv1d_fn", conv))


def _no_gate(model: Any) -> None:
    norm = model.model.layers[0].linear_attn.norm
    right = norm.forward
    # silu(g) is 1 at this g
    norm.forward = lambda x, gate: right(x, torch.full_like(gate, 1.2784645427610738))


def _no_skip(model: Any) -> None:
    code = sys.modules[type(model).__module__]
    right, layers = code.mamba2_chunk_scan, iter(range(3))

    def scan(*given: Any, D: Any, **named: Any) -> Any:
        return right(*given, D=D * 0 if next(layers) == 1 else D, **named)

    PATCHES.append((code, "mamba2_chunk_scan", scan))


def _late_short_conv(model: Any) -> None:
    code = sys.modules[type(model).__module__]
    right, layers = code.causal_conv1d_fn, iter((0, 2))

    def conv(x: Any, *given: Any, **named: Any) -> Any:
        late = torch.cat((torch.zeros_like(x[..., :1]), x[..., :-1]), dim=-1)
        return right(late if next(layers) == 0 else x, *given, **named)

    PATCHES.append((code, "causal_conv1d_fn", conv))


PATCHES: list[tuple[Any, str, Any]] = []
"""What a plant puts into a module of transformers, for one test."""
PLANTED: dict[str, tuple[str, Plant, dict[str, str]]] = {
    "gpt2-positions": ("gpt2", _no_positions, {"layer-0/pos_embedding": "positions_missing"}),
    "opt-offset": ("opt", _first_row, {"layer-0/pos_embedding": "positions_shifted"}),
    "bloom-alibi": ("bloom", _no_alibi, {"layer-1/attn_scores": "alibi_missing"}),
    "deepseek_v3-latent": (
        "deepseek_v3", _no_latent_norm, {"layer-1/kv_a_norm": "norm_missing"},
    ),
    "qwen3_5-decay": (
        "qwen3_5", _faulty_rule(_no_decay),
        {"layer-2/delta_out": "decay_missing", "layer-2/delta_state": "decay_missing"},
    ),
    "qwen3_next-beta": (
        "qwen3_next", _faulty_rule(_no_beta),
        {"layer-2/delta_out": "beta_missing", "layer-2/delta_state": "beta_missing"},
    ),
    "qwen3_5-conv": ("qwen3_5", _late_conv, {"layer-2/delta_conv": "conv_shifted"}),
    "qwen3_5-gate": ("qwen3_5", _no_gate, {"layer-0/delta_norm": "gate_missing"}),
    "mamba2-skip": ("mamba2", _no_skip, {"layer-1/ssm_scan": "scan_skip_missing"}),
    "lfm2-conv": ("lfm2", _late_short_conv, {"layer-0/conv": "conv_shifted"}),
    "minicpm3-rope": (
        "minicpm3", _not_turned,
        {"layer-1/q_post_rope": "rope_missing", "layer-1/k_post_rope": "rope_missing"},
    ),
}  # fmt: skip


def found_in(
    family: str,
    plant: Plant | None,
    folder: Path,
    patch: pytest.MonkeyPatch,
    dtype: str = "float32",
) -> Any:
    save_tiny(TINY[family], folder / "model")
    right = huggingface.load

    def planted(*given: Any, **named: Any) -> Any:
        model = right(*given, **named)
        if plant is not None:
            plant(model)
        while PATCHES:
            patch.setattr(*PATCHES.pop())
        return model

    patch.setattr(huggingface, "load", planted)
    job = TraceJob(
        model=str(folder / "model"), directory=str(folder / "trace"), engine="hf", tokens=TOKENS,
        dtype=dtype,
    )  # fmt: skip
    run_trace(make_plan(job), lambda event: None)
    return bisect(open_model(folder / "model"), open_trace(folder / "trace"))


@pytest.mark.parametrize("case", sorted(PLANTED))
def test_a_fault_is_located_and_named(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, plant, expected = PLANTED[case]
    found = found_in(family, plant, tmp_path, monkeypatch)
    named = {str(each.key): each.mistake and each.mistake.id for each in found.culprits}
    assert named == expected


@pytest.mark.parametrize("family", sorted({family for family, _, _ in PLANTED.values()}))
def test_the_right_model_is_cleared(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = found_in(family, None, tmp_path, monkeypatch)
    assert [str(each.key) for each in found.culprits] == [] and not found.unmeasured


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_that_transformers_adds_falcons_alibi_twice_is_found(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is planted: the mask of its eager attention holds the biases too, in the model's
    type, its SDPA's alone (5.24)."""
    found = found_in("falcon-alibi", None, tmp_path, monkeypatch, dtype)
    assert [str(each.key) for each in found.culprits] == [
        f"layer-{layer}/attn_scores" for layer in range(3)
    ]
    named = [each.mistake for each in found.culprits if each.mistake is not None]
    assert {(each.id, each.parameters["factor"]) for each in named} == {("alibi_scaled", 2.0)}
    assert len(named) == 3 and not found.unmeasured


def _alibi_once(model: Any) -> None:
    """falcon's eager attention without the biases that its mask holds in 5.24."""
    for block in model.transformer.h:
        right = block.self_attention.forward

        def forward(*given: Any, attention_mask: Any, right: Any = right, **named: Any) -> Any:
            hidden = torch.where(attention_mask < -1e3, attention_mask, 0.0)
            return right(*given, attention_mask=hidden, **named)

        block.self_attention.forward = forward


def _narrow_frequencies(model: Any) -> None:
    """As a model cast whole to bfloat16 keeps them, which then computes in another type."""
    turns = model.model.rotary_emb
    right = turns.forward

    def forward(*given: Any, **named: Any) -> Any:
        turns.inv_freq = turns.inv_freq.bfloat16().float()
        return right(*given, **named)

    turns.forward = forward


HONEST: dict[str, tuple[str, Plant, str, str]] = {
    "falcon-alibi": (
        "falcon-alibi", _alibi_once, "attn_scores", "a bias added before the rounding"),
    "frequencies": (
        "qwen2", _narrow_frequencies, "k_post_rope", "RoPE's frequencies in bfloat16"),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("case", HONEST)
def test_what_rounds_elsewhere_in_16_bits_is_cleared(
    case: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, way, stage, told = HONEST[case]
    found = found_in(family, way, tmp_path, monkeypatch, dtype)
    assert found.culprits == () and not found.unmeasured
    by = [each.by for each in found.explained if each.key.stage == stage]
    assert len(by) == 3 and all(told in each for each in by)
