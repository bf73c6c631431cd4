"""GGUFs that llama.cpp's converter made none of for the shared fixtures: with weights that numpy
draws, so that what llama.cpp made of them can be kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from tests.as_gguf import write_gguf
from tests.families import TINY, save_tiny
from tests.gguf_keys import add_key, with_keys
from tests.support import FIXTURES

__all__ = ["DRAWN", "WRITTEN", "write_drawn"]


def _drawn(rng: np.random.Generator, *shape: int) -> npt.NDArray[np.float32]:
    return (0.2 * rng.standard_normal(shape)).astype(np.float32)


def _kimi_linear(folder: Path) -> Path:
    """As published: queries without a latent, which libllama v0.5.0 does not read."""
    tiny = TINY["kimi_linear"]
    save_tiny(replace(tiny, settings={**tiny.settings, "q_lora_rank": None}), folder)
    path, rng = folder / "model.safetensors", np.random.default_rng(19)
    tensors = {name: _drawn(rng, *each.shape) for name, each in sorted(load_file(path).items())}
    save_file(tensors, path, {"format": "pt"})
    write_gguf(folder, "kimi_linear", folder / "model.gguf")
    return folder / "model.gguf"


def _latent(folder: Path) -> Path:
    """Nemotron 3's experts, which work on a latent: the fixture's with such experts."""
    rng, latent = np.random.default_rng(3), 20
    shapes = {
        "ffn_down_exps": (4, latent, 32), "ffn_up_exps": (4, 32, latent),
        "ffn_latent_down": (latent, 64), "ffn_latent_up": (64, latent),
    }  # fmt: skip
    tensors = {f"blk.2.{name}.weight": _drawn(rng, *shape) for name, shape in shapes.items()}
    source = FIXTURES / "families" / "nemotron_h" / "model.gguf"
    return with_keys(source, folder / "model.gguf", {"moe_latent_size": latent}, tensors)


def write_drawn(
    path: Path, arch: str, keys: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> Path:
    """A file of these keys, and of tensors of these shapes that numpy draws."""
    writer, rng = gguf.GGUFWriter(path, arch), np.random.default_rng(11)
    for key, value in keys.items():
        add_key(writer, f"{arch}.{key}", value)
    writer.add_tokenizer_model("none")
    for name, shape in shapes.items():
        drawn = _drawn(rng, *shape)
        writer.add_tensor(name, drawn + 1 if "norm" in name else drawn)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


HIDDEN, INNER, HEADS, KEYS, SIZE, TOKENS_KNOWN, EXPERTS = 32, 48, 4, 2, 8, 96, 6
_WHOLE: dict[str, tuple[int, ...]] = {
    "token_embd": (TOKENS_KNOWN, HIDDEN), "output": (TOKENS_KNOWN, HIDDEN), "output_norm": (HIDDEN,)
}  # fmt: skip
_ATTENTION: dict[str, tuple[int, ...]] = {
    "attn_norm": (HIDDEN,), "attn_q": (HEADS * SIZE, HIDDEN), "attn_k": (KEYS * SIZE, HIDDEN),
    "attn_v": (KEYS * SIZE, HIDDEN), "attn_output": (HIDDEN, HEADS * SIZE),
}  # fmt: skip
_FFN: dict[str, tuple[int, ...]] = {
    "ffn_norm": (HIDDEN,), "ffn_gate": (INNER, HIDDEN), "ffn_up": (INNER, HIDDEN),
    "ffn_down": (HIDDEN, INNER),
}  # fmt: skip
_MOE: dict[str, tuple[int, ...]] = {
    "ffn_norm": (HIDDEN,), "ffn_gate_inp": (EXPERTS, HIDDEN),
    "ffn_gate_exps": (EXPERTS, INNER, HIDDEN), "ffn_up_exps": (EXPERTS, INNER, HIDDEN),
    "ffn_down_exps": (EXPERTS, HIDDEN, INNER),
}  # fmt: skip
_QK_NORM: dict[str, tuple[int, ...]] = {"attn_q_norm": (SIZE,), "attn_k_norm": (SIZE,)}
_FUSED: dict[str, tuple[int, ...]] = {
    "attn_norm": (HIDDEN,), "attn_qkv": ((HEADS + 2 * KEYS) * SIZE, HIDDEN),
    "attn_output": (HIDDEN, HEADS * SIZE), **_QK_NORM,
}  # fmt: skip
_BESIDE: dict[str, tuple[int, ...]] = {
    "exp_probs_b.bias": (EXPERTS,), "ffn_gate_shexp": (40, HIDDEN), "ffn_up_shexp": (40, HIDDEN),
    "ffn_down_shexp": (HIDDEN, 40),
}  # fmt: skip
_SHARED: dict[str, tuple[int, ...]] = {
    "ffn_gate_shexp": (INNER, HIDDEN), "ffn_up_shexp": (INNER, HIDDEN),
    "ffn_down_shexp": (HIDDEN, INNER),
}  # fmt: skip
_KEYS: dict[str, Any] = {
    "block_count": 3, "context_length": 128, "embedding_length": HIDDEN,
    "feed_forward_length": INNER, "attention.head_count": HEADS, "attention.head_count_kv": KEYS,
    "attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 500.0, "vocab_size": TOKENS_KNOWN,
}  # fmt: skip
_SIZED: dict[str, Any] = {"attention.key_length": SIZE, "attention.value_length": SIZE}
_ROUTED: dict[str, Any] = {
    "expert_count": EXPERTS, "expert_used_count": 2, "expert_feed_forward_length": INNER
}  # fmt: skip
_AXES: dict[str, Any] = {"rope.dimension_sections": [1, 1, 2, 0], "n_deepstack_layers": 2}
_Layers = tuple[dict[str, tuple[int, ...]], ...]
DRAWN: dict[str, tuple[str, dict[str, Any], _Layers]] = {
    "qwen3vl": ("qwen3vl", {**_SIZED, **_AXES}, ({**_ATTENTION, **_QK_NORM, **_FFN},) * 3),
    "qwen3vlmoe": (
        "qwen3vlmoe", {**_SIZED, **_AXES, "rope.dimension_sections": [2, 1, 1, 0], **_ROUTED},
        ({**_ATTENTION, **_QK_NORM, **_MOE},) * 3,
    ),
    "internlm2": ("internlm2", {}, ({**_ATTENTION, **_FFN},) * 3),
    "minicpm": (
        "minicpm", {"embedding_scale": 3.0, "residual_scale": 0.6, "logit_scale": 0.5},
        ({**_ATTENTION, **_FFN},) * 3,
    ),
    "minicpm-silent": ("minicpm", {}, ({**_ATTENTION, **_FFN},) * 3),
    "ling": (
        "bailingmoe", {
            **_ROUTED, "expert_shared_count": 1, "expert_weights_scale": 1.5,
            "expert_weights_norm": True, "rope.dimension_count": SIZE,
        },
        ({**_ATTENTION, **_MOE, **_SHARED},) * 3,
    ),
    "ling2": (
        "bailingmoe2", {
            **_ROUTED, "leading_dense_block_count": 1, "expert_shared_count": 1,
            "expert_shared_feed_forward_length": 40, "expert_weights_scale": 2.5,
            "expert_weights_norm": True, "expert_gating_func": 2, "expert_group_count": 3,
            "expert_group_used_count": 2, "rope.dimension_count": 4,
        },
        ({**_FUSED, **_FFN}, *({**_FUSED, **_MOE, **_BESIDE},) * 2),
    ),
    "baichuan": ("baichuan", {"block_count": 32}, ({**_ATTENTION, **_FFN},) * 32),
    "baichuan-alibi": ("baichuan", {"block_count": 40}, ({**_ATTENTION, **_FFN},) * 40),
}  # fmt: skip
"""Architectures without a fixture: what llama.cpp calls each, keys beyond the common ones, and the
tensors of its layers."""


def _of_arch(name: str, folder: Path) -> Path:
    arch, keys, layers = DRAWN[name]
    shapes = {f"{name}.weight": shape for name, shape in _WHOLE.items()}
    for layer, tensors in enumerate(layers):
        for tensor, shape in tensors.items():
            ending = "" if tensor.endswith(".bias") else ".weight"
            shapes[f"blk.{layer}.{tensor}{ending}"] = shape
    return write_drawn(folder / "model.gguf", arch, {**_KEYS, **keys}, shapes)


WRITTEN: dict[str, Callable[[Path], Path]] = {
    "kimi_linear": _kimi_linear,
    "nemotron_h-latent": _latent,
    **{name: partial(_of_arch, name) for name in DRAWN},
}
"""Each makes its GGUF in a folder that is there."""
