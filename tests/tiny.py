"""Tiny models with random float32 weights, written as .apr in either naming scheme."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aprtui.formats.apr_write import OutgoingTensor, write_apr

__all__ = ["HF_TENSORS", "METADATA", "write_tiny"]

Array = npt.NDArray[np.float32]

METADATA: dict[str, Any] = {
    "model_type": "llama", "architecture": "llama", "hidden_size": 16, "num_layers": 2,
    "num_heads": 4, "num_kv_heads": 2, "vocab_size": 24, "intermediate_size": 32,
    "max_position_embeddings": 64, "rope_theta": 10000.0, "rope_type": 2, "rms_norm_eps": 1e-5,
}  # fmt: skip


def _layer(number: int) -> dict[str, tuple[int, ...]]:
    prefix = f"model.layers.{number}."
    return {
        f"{prefix}input_layernorm.weight": (16,),
        f"{prefix}self_attn.q_proj.weight": (16, 16),
        f"{prefix}self_attn.k_proj.weight": (8, 16),
        f"{prefix}self_attn.v_proj.weight": (8, 16),
        f"{prefix}self_attn.o_proj.weight": (16, 16),
        f"{prefix}post_attention_layernorm.weight": (16,),
        f"{prefix}mlp.gate_proj.weight": (32, 16),
        f"{prefix}mlp.up_proj.weight": (32, 16),
        f"{prefix}mlp.down_proj.weight": (16, 32),
    }


HF_TENSORS: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (24, 16),
    **_layer(0),
    **_layer(1),
    "model.norm.weight": (16,),
    "lm_head.weight": (24, 16),
}


def write_tiny(
    path: Path,
    *,
    metadata: Mapping[str, Any] | None = None,
    without: tuple[str, ...] = (),
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    extra: Mapping[str, Array] | None = None,
) -> Path:
    """A two-layer llama; ``metadata`` and ``shapes`` replace entries, None drops one."""
    said = {
        key: value for key, value in {**METADATA, **(metadata or {})}.items() if value is not None
    }
    random = np.random.default_rng(5)
    listed = {**HF_TENSORS, **(shapes or {})}
    arrays = {
        name: random.standard_normal(shape).astype(np.float32) * np.float32(0.2)
        for name, shape in listed.items()
        if name not in without
    } | dict(extra or {})

    def tensor(name: str, values: Array) -> OutgoingTensor:
        return OutgoingTensor(name, "F32", values.shape, lambda: [values.tobytes()])

    write_apr(path, said, [tensor(name, values) for name, values in arrays.items()])
    return path
