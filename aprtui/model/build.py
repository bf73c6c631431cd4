"""The graph of a model of the nine families from its configuration."""

from __future__ import annotations

from aprtui.formats.tracedir import StageKey
from aprtui.graph import Graph
from aprtui.graph.blocks import Attention, Builder, Routing
from aprtui.graph.ops import Choose, Mask, Norm, Route
from aprtui.graph.rope import RopeTable
from aprtui.model.config import ModelConfig

__all__ = ["build_graph"]


def build_graph(config: ModelConfig) -> Graph:
    """Every node of the model's forward pass."""
    build = Builder(config.hidden_size)
    norm = Norm(None, config.rms_norm_eps, config.norm_offset)
    hidden = build.embedding(config.embedding_scale)
    for layer in range(config.num_layers):
        build.layer = layer
        hidden = _layer(build, config, norm, hidden)
    build.head(hidden, norm, config.vocab_size, config.logit_softcap)
    return build.graph()


def _layer(build: Builder, config: ModelConfig, norm: Norm, hidden: StageKey) -> StageKey:
    x = build.norm("attn_norm", hidden, norm)
    branch = build.attention(x, _attention(config, norm, build.layer or 0))
    if config.post_norms:
        branch = build.norm("attn_post_norm", branch, norm)
    hidden = build.residual("post_attn_residual", hidden, branch)
    x = build.norm("ffn_norm", hidden, norm)
    if config.num_experts:
        branch = build.experts(x, _routing(config))
    else:
        branch = build.gated_mlp(x, config.intermediate_size, config.activation)
    if config.post_norms:
        branch = build.norm("ffn_post_norm", branch, norm)
    return build.residual("post_ffn_residual", hidden, branch)


def _attention(config: ModelConfig, norm: Norm, layer: int) -> Attention:
    table = RopeTable(
        config.head_dim,
        config.theta(layer),
        config.rope_layout,
        config.rope_divisors,
        config.position_divisor(layer),
    )
    return Attention(
        config.num_heads,
        config.num_kv_heads,
        config.head_dim,
        config.scale,
        Mask(window=config.window(layer)),
        table,
        config.score_softcap,
        config.qkv_bias,
        config.output_bias,
        norm if config.qk_norm else None,
    )


def _routing(config: ModelConfig) -> Routing:
    return Routing(
        Choose(config.num_experts_per_tok, config.num_experts),
        Route(renormalise=config.norm_topk_prob),
        config.intermediate_size,
        config.activation,
    )
