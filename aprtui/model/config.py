"""The dimensions and the arithmetic of one model, as plain values that every part reads."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

__all__ = ["FAMILIES", "ModelConfig"]

FAMILIES = (
    "qwen2", "llama", "mistral", "mixtral", "qwen3", "qwen3moe", "gemma", "gemma2", "gemma3"
)  # fmt: skip


@dataclass(frozen=True)
class ModelConfig:
    """One model's dimensions and the choices in its arithmetic (specs/numerics.md 3).

    Symbols as in specs/stages.md: H ``hidden_size``, A ``num_heads``, K ``num_kv_heads``,
    d ``head_dim``, F ``intermediate_size`` (of one expert where there are experts),
    V ``vocab_size``, E ``num_experts``, k ``num_experts_per_tok``.
    """

    architecture: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    max_positions: int = 0
    rope_layout: str = "halves"  # "halves" (i, i+d/2) or "adjacent" (2i, 2i+1)
    rope_scale: float = 1.0  # positions are divided by this (linear scaling, global layers)
    rope_theta_local: float | None = None  # of layers with a sliding window (gemma3)
    score_scale: float | None = None  # None: 1/sqrt(head_dim)
    score_softcap: float | None = None
    logit_softcap: float | None = None
    sliding_window: int | None = None
    window_layers: tuple[bool, ...] = ()  # which layers slide; empty: all, where a window is set
    activation: str = "silu"  # or "gelu_tanh"
    embedding_scale: float = 1.0
    norm_offset: float = 0.0  # 1.0 where the stored norm weight means 1 + w
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    rope_divisors: tuple[float, ...] = ()  # [d/2] angles are divided by these (llama3's rope_freqs)
    tied_head: bool = False
    num_experts: int = 0
    num_experts_per_tok: int = 0
    norm_topk_prob: bool = True

    @property
    def q_size(self) -> int:
        """A*d, the width of Q."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """K*d, the width of K and of V."""
        return self.num_kv_heads * self.head_dim

    @property
    def scale(self) -> float:
        """The factor on q.k."""
        return self.head_dim**-0.5 if self.score_scale is None else self.score_scale

    def window(self, layer: int) -> int | None:
        """How many keys a query of ``layer`` sees, itself included; None: all before it."""
        if self.sliding_window is None:
            return None
        return self.sliding_window if not self.window_layers or self.window_layers[layer] else None

    def theta(self, layer: int) -> float:
        """The RoPE base of ``layer``."""
        local = self.rope_theta_local
        return local if local is not None and self.window(layer) is not None else self.rope_theta

    def position_divisor(self, layer: int) -> float:
        """What positions of ``layer`` are divided by before rotating."""
        slides = self.rope_theta_local is not None and self.window(layer) is not None
        return 1.0 if slides else self.rope_scale

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)
