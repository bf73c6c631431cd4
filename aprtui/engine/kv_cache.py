"""Attention over keys and values that a cache holds in 16 bits, as ggml's CPU computes it.

Source: ggml-cpu/ops.cpp, ggml_compute_forward_flash_attn_ext (public), and docs/numerics.md 2.
"""

from __future__ import annotations

import torch

from aprtui.engine.rounding import round_bf16, round_f16
from aprtui.model.config import ModelConfig

__all__ = ["CACHED", "FUSED", "SUMMED", "TILED", "attend_in_f16", "cached_operands"]

Tensor = torch.Tensor

CACHED = ("F16", "BF16")
"""Scores and softmax are computed one after the other, and rounded as the cache is."""

TILED = "F16 flash attention"
"""Fused, for 64 queries and more: keys and values come from the cache, all else is float32."""

SUMMED = "F16 flash attention summed in f16"
"""Fused, for fewer: the query is rounded as well, and the sum over values is kept in float16."""

FUSED = (TILED, SUMMED)


def cached_operands(operation: str, given: tuple[Tensor, ...], kind: str) -> tuple[Tensor, ...]:
    """The inputs of "scores" (q, k) or "attend" (softmax, v) as that kind of cache rounds them."""
    first, cached = given
    cut = round_bf16 if kind == "BF16" else round_f16
    if kind == TILED or (kind == SUMMED and operation == "attend"):
        return first, cut(cached)
    return cut(first), cut(cached)


def attend_in_f16(config: ModelConfig, weights: Tensor, v: Tensor) -> Tensor:
    """Attention [T,A,d] of softmax weights [A,T,T] over values [T,K,d], summed in float16.

    Key after key, the sum is rounded after each value and whenever a larger score rescales it; the
    division by the sum of weights comes last. The running maximum is told by the weights alone.
    """
    heads, queries, keys = weights.shape
    values = v.repeat_interleave(heads // config.num_kv_heads, dim=1).transpose(0, 1)
    total = torch.zeros(heads, queries, v.shape[2], dtype=torch.float64)
    top = torch.zeros(heads, queries, 1, dtype=torch.float64)
    for key in range(keys):
        p, held, largest = weights[:, key:, key, None], total[:, key:], top[:, key:]
        rises, seen = p > largest, p > 0
        rescaled = torch.where(rises, round_f16(held * (largest / p)), held)
        largest.copy_(torch.maximum(largest, p))
        added = round_f16(rescaled + values[:, key, None] * (p / largest))
        held.copy_(torch.where(seen, added, held))
    return (total * top / weights.sum(-1, keepdim=True)).transpose(0, 1).contiguous()
