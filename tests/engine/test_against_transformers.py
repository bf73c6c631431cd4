"""Each family agrees with Hugging Face transformers, on tiny models made from a config here."""

from __future__ import annotations

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

transformers = pytest.importorskip("transformers", reason="transformers is a dev dependency")

TOKENS = tuple((11 * place + 3) % 96 for place in range(24))
BAR = 1e-5  # docs/numerics.md 1
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 16}  # fmt: skip

COMMON: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "attn_implementation": "eager", "initializer_range": 0.2,
}  # fmt: skip

# family -> (class of the config, its settings beyond the common ones)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("Qwen2", {}),
    "llama": ("Llama", {"rms_norm_eps": 1e-5}),
    "llama3-scaling": ("Llama", {"rope_parameters": LLAMA3}),
    "llama-head_dim": ("Llama", {"head_dim": 20}),
    "mistral-window": ("Mistral", {"sliding_window": 5}),
    "mixtral": ("Mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3-tied": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3moe": (
        "Qwen3Moe",
        {"head_dim": 16, "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 32,
         "norm_topk_prob": True},
    ),
    "qwen3moe-plain": (
        "Qwen3Moe",
        {"head_dim": 16, "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 32,
         "norm_topk_prob": False},
    ),
    "gemma": ("Gemma", {"head_dim": 16}),
    "gemma2": (
        "Gemma2",
        {"head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 20,
         "attn_logit_softcapping": 5.0, "final_logit_softcapping": 4.0},
    ),
    "gemma3": (
        "Gemma3Text", {"head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 20,
                       "num_hidden_layers": 7},
    ),
}  # fmt: skip


def save_model(family: str, folder: Path) -> Any:
    """A tiny model with seeded random weights, saved as safetensors; norms away from their 1."""
    name, settings = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**{**COMMON, **settings})
    torch.manual_seed(7)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model = model.to(torch.float32).eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            if "norm" in key or key.endswith("bias"):
                value.add_(torch.randn_like(value) * 0.2)
    model.save_pretrained(folder)
    return model


def assert_near(found: Path, expected: torch.Tensor) -> None:
    reference: npt.NDArray[np.float64] = expected.detach().double().numpy().reshape(-1)
    values = read_values(found).astype(np.float64)
    assert values.size == reference.size, found
    error = np.linalg.norm(values - reference) / np.linalg.norm(reference)
    assert error <= BAR, f"{found.relative_to(found.parents[1])}: {error:.2e}"


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_family_agrees_with_transformers(family: str, tmp_path: Path) -> None:
    model = save_model(family, tmp_path / "model")
    with torch.no_grad():
        theirs = model(torch.tensor([TOKENS]), output_hidden_states=True, output_attentions=True)
    job = TraceJob(
        model=str(tmp_path / "model"), directory=str(tmp_path / "trace"), tokens=TOKENS,
        logits="all",
    )  # fmt: skip
    run_trace(make_plan(job), lambda event: None)
    trace = tmp_path / "trace"
    assert_near(trace / "layer-0" / "embedding.bin", theirs.hidden_states[0])
    for layer, hidden in enumerate(theirs.hidden_states[1:-1]):
        assert_near(trace / f"layer-{layer}" / "post_ffn_residual.bin", hidden)
    for layer, weights in enumerate(theirs.attentions):
        assert_near(trace / f"layer-{layer}" / "attn_softmax.bin", weights)
    assert_near(trace / "final_norm.bin", theirs.hidden_states[-1])
    assert_near(trace / "lm_head.bin", theirs.logits)
