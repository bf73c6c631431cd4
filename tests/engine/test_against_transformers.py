"""Each family agrees with Hugging Face transformers, on tiny models made from a config here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from aprtui.engine.job import TraceJob
from aprtui.engine.plan import make_plan
from aprtui.engine.run import run_trace
from aprtui.formats.aprt import read_values
from aprtui.graph.vocabulary import STAGES
from tests.families import TINY, save_tiny

transformers = pytest.importorskip("transformers", reason="transformers is a dev dependency")

TOKENS = tuple((11 * place + 3) % 96 for place in range(24))
BAR = 1e-5  # docs/numerics.md 1
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 16}  # fmt: skip

YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
        "original_max_position_embeddings": 8}  # fmt: skip
TRUNCATED = {"beta_fast": 4.0, "beta_slow": 2.0, "truncate": False}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-biases": ("llama", {"attention_bias": True}),
    "llama-relu": ("llama", {"hidden_act": "relu"}),
    "llama-two-sided": ("llama", {"is_causal": False}),
    "llama-linear": ("llama", {"rope_parameters": {
        "rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}),
    "llama-llama3": ("llama", {"rope_parameters": LLAMA3}),
    "llama-dynamic": ("llama", {"max_position_embeddings": 16, "rope_parameters": {
        "rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}}),
    "llama-yarn": ("llama", {"rope_parameters": YARN}),
    "llama-yarn-truncate": ("llama", {"rope_parameters": YARN | TRUNCATED}),
    "llama-yarn-mscale": ("llama", {"rope_parameters": YARN | {
        "mscale": 1.0, "mscale_all_dim": 0.5}}),
    "qwen3moe-plain": ("qwen3moe", {"norm_topk_prob": False}),
    "qwen3moe-window": ("qwen3moe", {"use_sliding_window": True, "sliding_window": 5}),
    "gemma2-uncapped": ("gemma2", {
        "attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "gemma2-gelu": ("gemma2", {"hidden_activation": "gelu"}),
    "gemma3-two-sided": ("gemma3", {"use_bidirectional_attention": True, "sliding_window": 9}),
    "afmoe-unscaled": ("afmoe", {"mup_enabled": False, "num_dense_layers": 2}),
    "laguna-elements": ("laguna", {"gating": "per-element", "rope_parameters": {
        "full_attention": YARN | {"partial_rotary_factor": 0.5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 500.0}}}),
    "mimo-plain": ("mimo", {"attention_bias": False, "attention_value_scale": None,
                            "norm_topk_prob": False}),
    "opt-bare": ("opt", {"enable_bias": False, "layer_norm_elementwise_affine": False,
                         "word_embed_proj_dim": 32}),
    "opt-endless": ("opt", {"_remove_final_layer_norm": True}),
    "zamba2-plain": ("zamba2", {"use_shared_attention_adapter": False, "use_mem_rope": False,
                                "add_bias_linear": False, "num_mem_blocks": 1,
                                "num_key_value_heads": 2, "rms_norm_eps": 1e-3}),
    "zamba2-apart": ("zamba2", {"tie_word_embeddings": False}),
    "gemma3-scaled": ("gemma3", {"rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 5e3}}}),
}  # fmt: skip
"""What a family may be besides its row of tests/families.py."""
CASES = {**{name: (name, {}) for name in TINY}, **VARIANTS}


_WITHOUT_EMBEDDING = {
    "mamba",
    "mamba2",
    "falcon_mamba",
}  # transformers' hidden states begin behind the first layer


def assert_near(found: Path, expected: torch.Tensor) -> None:
    reference: npt.NDArray[np.float64] = expected.detach().double().numpy().reshape(-1)
    values = read_values(found).astype(np.float64)
    assert values.size == reference.size, found
    error = np.linalg.norm(values - reference) / np.linalg.norm(reference)
    assert error <= BAR, f"{found.relative_to(found.parents[1])}: {error:.2e}"


def entering(trace: Path) -> str:
    """The stage that the first layer is given: the last one before it."""
    before = [stage.name for stage in STAGES if stage.scope == "first" and stage.residual]
    before += ["altup_streams"]
    return [name for name in before if (trace / "layer-0" / f"{name}.bin").exists()][-1]


def leaving(trace: Path, layer: int) -> Path:
    """A layer's output: where it has several streams, all of them."""
    names = ("altup_out", "post_ffn_residual")
    paths = (trace / f"layer-{layer}" / f"{name}.bin" for name in names)
    return next(path for path in paths if path.exists())


@pytest.mark.parametrize("case", sorted(CASES))
def test_family_agrees_with_transformers(case: str, tmp_path: Path) -> None:
    family, settings = CASES[case]
    tiny = TINY[family]
    tiny = replace(tiny, settings={**tiny.settings, **settings})
    model = save_tiny(tiny, tmp_path / "model")
    with torch.no_grad():
        theirs = model(torch.tensor([TOKENS]), output_hidden_states=True, output_attentions=True)
    job = TraceJob(
        model=str(tmp_path / "model"), directory=str(tmp_path / "trace"), tokens=TOKENS,
        logits="all",
    )  # fmt: skip
    run_trace(make_plan(job), lambda event: None)
    trace = tmp_path / "trace"
    hidden_states = list(theirs.hidden_states)
    if hidden_states[0].dim() == 4:  # streams first
        hidden_states = [each.permute(1, 2, 0, 3) if each.dim() == 4 else each
                         for each in hidden_states]  # fmt: skip
    if family in _WITHOUT_EMBEDDING:
        hidden_states.insert(0, model.get_input_embeddings()(torch.tensor([TOKENS])))
    assert_near(trace / "layer-0" / f"{entering(trace)}.bin", hidden_states[0])
    for layer, hidden in enumerate(hidden_states[1:-1]):
        assert_near(leaving(trace, layer), hidden)
    softmaxes = [
        trace / f"layer-{layer}" / "attn_softmax.bin"
        for layer in range(model.config.num_hidden_layers)
    ]
    softmaxes = [each for each in softmaxes if each.exists()]  # of layers that have attention
    weights = [each for each in getattr(theirs, "attentions", None) or () if each is not None]
    for found, expected in zip(softmaxes, weights, strict=True):
        assert_near(found, expected)
    last = hidden_states[-1]
    end = leaving(trace, model.config.num_hidden_layers - 1)
    behind = (trace / f"{name}.bin" for name in ("head_narrow", "final_norm"))
    head = next((path for path in behind if path.exists()), end)  # what it reads
    streams = last.numel() != read_values(head).size
    assert_near(end if streams else head, last)
    assert_near(trace / "lm_head.bin", theirs.logits)
