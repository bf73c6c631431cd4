"""Which of a transformers model's modules gives which stage: the table, and how it is read."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

import torch

from aprtui.formats.tracedir import StageKey
from aprtui.graph import Graph

__all__ = [
    "HALVES", "PLAIN", "QUERY_GATE", "SOURCES", "TOGETHER", "Source", "meant", "source_of",
]  # fmt: skip


@dataclass(frozen=True)
class Source:
    """Modules that give a stage, named as ``hooks`` names them: of the decoder for a stage of the
    whole model, else of its layer (whose own name is empty).

    ``unless``: not where the layer has this stage too; one module's name has two meanings then.
    ``beside``: only where there is this module as well, which tells which meaning it is.
    """

    stage: str
    modules: str | tuple[str, ...]
    unless: str = ""
    beside: str = ""


_PROJECTIONS = tuple(
    (f"{name}.q_proj", f"{name}.k_proj", f"{name}.v_proj")
    for name in ("self_attn", "attn", "mixer", "shared_transformer.self_attn")
)
# Of which the rows of q, k and v stand by key/value head, and those where they never do.
_BY_HEAD = tuple(f"{name}.query_key_value" for name in ("attention", "self_attn", "self_attention"))
_FUSED = (*_BY_HEAD, "self_attn.qkv_proj", "attn.c_attn", "attn.Wqkv")
_QKV: tuple[str | tuple[str, ...], ...] = (*_PROJECTIONS, *_FUSED)
_SHARED = "shared_mlp.input_linear"
_BLOCK = "shared_transformer"
_GATED = {  # the modules of an FFN with a gate, by its stages
    "gate": "gate_proj",
    "up": "up_proj",
    "silu": "act_fn",
    "swigl": "down_proj:input",
    "out": "down_proj",
}
HALVES = {  # gate and up, side by side, of these
    "mlp.gate_up_proj": "ffn",
    _SHARED: "shared_ffn",
    f"{_BLOCK}.feed_forward.gate_up_proj": "block",
}

_MOST_STREAMS = 8
TOGETHER, QUERY_GATE = " by head", "q, k and v with a gate"
PLAIN = " unscaled"  # a product whose factors its layer multiplies by

# The first that the model has the modules of is taken.
SOURCES = (
    Source("embedding", "wte", beside="wpe"),
    Source("embedding_narrow", "embed_tokens"),
    Source("embedding", "project_in"),
    Source("embedding", "embed_tokens", beside="embed_positions"),
    Source("embedding", "embed_tokens", beside="altup_projections"),
    Source("embedding", "word_embeddings", beside="word_embeddings_layernorm"),
    # The table's rows, scaled where the model scales them.
    *(Source("embedding", f"{layers}.0:input") for layers in ("layers", "h", "blocks")),
    *(Source("pos_embedding", f"{layers}.0:input") for layers in ("layers", "h")),
    Source("embedding_norm", "word_embeddings_layernorm"),
    *(
        Source("attn_norm", name)
        for name in ("input_layernorm", "attention_layernorm", "ln_1", "self_attn_layer_norm",
                     "norm_1", "ln_attn", "operator_norm", "norm")
    ),
    *(Source("qkv_matmul", modules, unless="qkv_bias") for modules in _QKV),
    *(Source("qkv_bias", modules) for modules in _QKV),
    *(
        Source(stage, modules, unless=unless)  # where values are keys, and where both are another's
        for stage, unless in (("qkv_matmul", "qkv_bias"), ("qkv_bias", ""))
        for modules in (_PROJECTIONS[0][:2], _PROJECTIONS[0][0])
    ),
    *(
        Source(stage, f"self_attn.{module}")
        for stage, module in {
            "q_a": "q_a_proj",
            "q_a_norm": "q_a_layernorm",
            "kv_a": "kv_a_proj_with_mqa",
            "kv_a_norm": "kv_a_layernorm",
            "kv_b": "kv_b_proj",
            "delta_gate_low": "g_a_proj",
            "delta_decay_low": "forget_gate.f_a_proj",
            "index_q": "indexer.wq_b",
            "index_k": "indexer.wk",
            "index_k_norm": "indexer.k_norm",
            "index_weights": "indexer.weights_proj",
        }.items()
    ),
    Source("q_b", "self_attn.q_b_proj"),
    Source("q_b", "self_attn.q_proj"),
    Source("q_norm", "self_attn.q_norm"),
    Source("k_norm", "self_attn.k_norm"),
    Source("v_norm", "self_attn.v_norm"),
    Source("q_norm", "self_attn.query_layernorm"),
    Source("k_norm", "self_attn.key_layernorm"),
    Source("q_post_rope", "self_attn.query_layernorm:input"),
    Source("k_post_rope", "self_attn.key_layernorm:input"),
    Source("q_norm", "self_attn.q_layernorm"),
    Source("k_norm", "self_attn.k_layernorm"),
    *(
        Source(stage, f"{_BLOCK}{module}")
        for stage, module in {
            "block_in": ".input_layernorm:input",
            "block_norm": ".input_layernorm",
            "block_attn_out": ".self_attn.o_proj",
            "block_ffn_norm": ".pre_ff_layernorm",
            "block_silu": ".feed_forward.act_fn",
            "block_swigl": ".feed_forward.down_proj:input",
            "block_out": "",
        }.items()
    ),
    Source("block_linear", "linear", beside=_BLOCK),
    Source("scan_in", "mamba_decoder.input_layernorm:input"),
    Source("scan_norm", "mamba_decoder.input_layernorm"),
    Source("scan_norm", "input_layernorm"),
    Source("attn_gate", "self_attn.gate_proj"),
    Source("attn_gate", "self_attn.g_proj"),
    Source("conv_in", "conv.in_proj"),
    Source("conv_out", "conv.out_proj:input"),
    Source("attn_gate", _PROJECTIONS[0]),
    Source("attn_gated", "self_attn.o_proj:input"),
    *(
        Source("attn_out", name)
        for name in ("self_attn.o_proj", "mixer.o_proj", "linear_attn.out_proj", "conv.out_proj",
                     "mixer.out_proj", "mamba.out_proj", "mamba_decoder.mamba.out_proj",
                     "self_attn.dense",
                     "attention.dense", "attn.c_proj", "attn.out_proj", "self_attn.out_proj",
                     "self_attention.dense")
    ),
    Source("ssm_out", "mamba.out_proj"),
    Source("attn_post_norm", "post_self_attn_layernorm"),
    Source("attn_post_norm", "post_attention_layernorm"),
    # Norms behind their branches.
    Source("post_attn_residual", "self_attn_layer_norm:input", unless="attn_norm"),
    Source("ffn_norm", "self_attn_layer_norm", unless="attn_norm"),
    Source("ffn_residual", "final_layer_norm:input", unless="attn_norm"),
    Source("post_attn_residual", "pre_feedforward_layernorm:input"),
    Source("post_attn_residual", "pre_mlp_layernorm:input"),
    Source("post_attn_residual", "feedforward_layernorm:input"),
    Source("post_attn_residual", "post_attention_layernorm:input",
            beside="post_self_attn_layernorm"),
    Source("post_attn_residual", "post_attention_layernorm:input", unless="attn_post_norm"),
    Source("post_attn_residual", "mlp:input", unless="attn_norm"),
    *(
        Source("post_attn_residual", f"{name}:input")
        for name in ("ln_2", "final_layer_norm", "norm_2", "ffn_norm", "pre_ff_layernorm")
    ),
    *(
        Source(stage.format(part), f"mixer.{inner}{module}")
        for part, inner in (("", ""), ("shared_", "shared_experts."))
        for stage, module in {
            "{}ffn_up": "up_proj",
            "{}ffn_silu": "act_fn",
            "{}ffn_out": "down_proj",
        }.items()
    ),
    Source("router_logits", "mixer.gate[0]"),
    Source("moe_router", "mixer.gate[1]"),
    Source("moe_router_indices", "mixer.gate[2]"),
    Source("moe_latent", "mixer.fc1_latent_proj"),
    Source("moe_ffn_out", "mixer.experts"),
    Source("moe_latent_out", "mixer.fc2_latent_proj"),
    Source("ffn_out", "mixer", beside="mixer.experts"),
    Source("ffn_norm", "pre_feedforward_layernorm"),
    Source("ffn_norm", "pre_mlp_layernorm"),
    Source("ffn_norm", "feedforward_layernorm"),
    Source("ffn_norm", "post_attention_layernorm", beside="post_self_attn_layernorm"),
    Source("ffn_norm", "post_attention_layernorm", unless="attn_post_norm"),
    *(
        Source("ffn_norm", name)
        for name in ("ln_2", "final_layer_norm", "norm_2", "ln_mlp", "ffn_norm",
                     "pre_ff_layernorm")
    ),
    Source("ffn_gate", "mlp.gate_proj"),
    Source("ffn_gate", "feed_forward.w1"),
    Source("ffn_silu", "feed_forward.act_fn"),
    Source("ffn_up", "feed_forward.w3"),
    Source("ffn_swigl", "feed_forward.w2:input"),
    Source("router_logits", "feed_forward.gate[0]"),
    Source("moe_router", "feed_forward.gate[1]"),
    Source("moe_router_indices", "feed_forward.gate[2]"),
    Source("moe_ffn_out", "feed_forward.experts"),
    *(Source(f"{name}_gate", module) for module, name in HALVES.items()),
    *(Source(f"{name}_up", module) for module, name in HALVES.items()),
    Source("shared_ffn_silu", "shared_mlp.activation"),
    Source("shared_ffn_swigl", "shared_mlp.output_linear:input"),
    Source("shared_ffn_out", "shared_mlp"),
    Source("ffn_up", "mlp.up_proj"),
    *(
        Source("ffn_up", name)
        for name in ("mlp.c_fc", "mlp.fc1", "mlp.dense_h_to_4h", "mlp.fc_in", "fc1", "ffn.up_proj")
    ),
    *(
        Source("ffn_silu", name)
        for name in ("mlp.act_fn", "mlp.activation_fn", "mlp.act", "mlp.gelu_impl", "ffn.act",
                     "activation_fn")
    ),
    Source("ffn_swigl", "mlp.down_proj:input"),
    Source("router_logits", "mlp.gate[0]"),
    Source("moe_router", "mlp.gate[1]"),
    Source("moe_router_indices", "mlp.gate[2]"),
    Source("router_logits", "mlp.router[0]"),
    Source("moe_router", "mlp.router[1]"),
    Source("moe_router_indices", "mlp.router[2]"),
    Source("router_logits", "block_sparse_moe.router[0]"),
    Source("moe_router", "block_sparse_moe.router[1]"),
    Source("moe_router_indices", "block_sparse_moe.router[2]"),
    Source("moe_ffn_out", "mlp.experts"),
    Source("moe_ffn_out", "block_sparse_moe.experts"),
    *(
        Source(f"shared_ffn_{stage}", f"mlp.{shared}.{module}")
        for shared in ("shared_expert", "shared_experts", "shared_mlp")
        for stage, module in _GATED.items()
    ),
    Source("router_logits", "feed_forward.router[0]", beside="feed_forward.router",
           unless="shared_ffn_out"),
    Source("moe_router", "feed_forward.router[1]", unless="shared_ffn_out"),
    Source("moe_router_indices", "feed_forward.router[2]", unless="shared_ffn_out"),
    Source("router_logits", "feed_forward.router[1]"),
    *(
        Source(stage.format(part), f"feed_forward.{inner}{module}")
        for part, inner in (("", ""), ("shared_", "shared_expert."))
        for stage, module in {
            "{}ffn_gate": "gate_proj",
            "{}ffn_up": "up_proj",
            "{}ffn_silu": "activation_fn",
            "{}ffn_swigl": "down_proj:input",
        }.items()
    ),
    Source("shared_ffn_out", "feed_forward.shared_expert"),
    Source("ffn_out", "feed_forward[0]", beside="feed_forward.router"),
    Source("ffn_out", "feed_forward"),
    Source("shared_gate", "mlp.shared_expert_gate"),
    *(Source("ffn_out", name) for name in ("mlp.dense_4h_to_h", "ffn.down_proj", "fc2")),
    Source("ffn_out", "mlp", unless="shared_post_norm"),
    Source("router_norm", "router.proj:input"),
    Source("router_logits", "router.proj"),
    Source("moe_router", "router[1]"),
    Source("moe_router_indices", "router[2]"),
    Source("moe_norm", "pre_feedforward_layernorm_2"),
    Source("moe_ffn_out", "experts"),
    Source("moe_post_norm", "post_feedforward_layernorm_2"),
    Source("shared_post_norm", "post_feedforward_layernorm_1"),
    *(
        Source(f"shared_ffn_{stage}", f"mlp.{module}", beside="post_feedforward_layernorm_1")
        for stage, module in _GATED.items()
    ),
    Source("ffn_out", "block_sparse_moe", unless="shared_ffn_out"),
    Source("ffn_post_norm", "post_feedforward_layernorm"),
    Source("ffn_post_norm", "post_mlp_layernorm"),
    Source("per_layer_embedding", "embed_tokens_per_layer"),
    Source("per_layer_projection", "per_layer_model_projection"),
    Source("per_layer_norm", "per_layer_projection_norm"),
    *(
        Source(stage, tuple(f"{name}.{place}" for place in range(many)))
        for stage, name in {
            "altup_projected": "altup_projections",
            "altup_unprojected": "altup_unembed_projections",
        }.items()
        for many in range(_MOST_STREAMS - 1, 0, -1)
    ),
    Source("altup_merged", "norm:input"),
    Source("altup_active", "input_layernorm:input"),
    Source("laurel_in", "laurel.linear_left"),
    Source("laurel_out", "laurel.linear_right"),
    Source("laurel_norm", "laurel.post_laurel_norm"),
    Source("laurel", "laurel"),
    Source("laurel_residual", "pre_feedforward_layernorm:input"),
    Source("ffn_sparse", "mlp.act_fn:input"),
    Source("altup_first", "per_layer_input_gate:input"),
    Source("ffn_residual", "per_layer_input_gate:input", unless="altup_first"),
    Source("per_layer_gate", "per_layer_input_gate"),
    Source("per_layer_act", "act_fn"),
    Source("per_layer_gated", "per_layer_projection:input"),
    Source("per_layer_out", "per_layer_projection"),
    Source("per_layer_post_norm", "post_per_layer_input_norm"),
    Source("post_ffn_residual", ""),
    Source("head_narrow", "project_out"),
    *(
        Source("final_norm", name)
        for name in ("norm", "embedding_norm", "ln_f", "final_layer_norm", "final_layernorm",
                     "norm_f")
    ),
)  # fmt: skip


def meant(module: torch.nn.Module, source: Source, stage: str, gate: Source | None = None) -> str:
    """What a part is told that a source gives: the stage, two of them side by side, or one whose
    columns stand by key/value head; ``gate``: where the layer has its attention's gate from, which
    may be the queries' projection."""
    if source.modules in HALVES:
        return str(source.modules)
    if gate is not None and source.modules == gate.modules == _PROJECTIONS[0]:
        return QUERY_GATE
    one = source.modules if isinstance(source.modules, str) else ""
    linear = one in _FUSED and isinstance(module.get_submodule(one), torch.nn.Linear)
    if one in _BY_HEAD or (linear and one == "attn.c_attn"):
        return f"{stage}{TOGETHER}"
    names = (one,) if one else source.modules
    plain = all(_is_linear(module, name) for name in names)
    return f"{stage}{PLAIN}" if plain else stage


def _is_linear(module: torch.nn.Module, name: str) -> bool:
    """Whether it is the output of a matrix product."""
    found = dict(module.named_modules()).get(name)
    return isinstance(found, torch.nn.Linear)


def source_of(key: StageKey, names: Collection[str], graph: Graph) -> Source | None:
    """The first source of a stage whose modules are there; None without one, or without it."""
    if key not in graph:
        return None
    return next((each for each in SOURCES if _gives(each, key, names, graph)), None)


def _gives(source: Source, key: StageKey, names: Collection[str], graph: Graph) -> bool:
    """Whether the modules are there and mean this stage."""
    if source.stage != key.stage or StageKey(key.layer, source.unless) in graph:
        return False
    if source.beside and source.beside not in names:
        return False
    normed = graph.by_key.get(StageKey(key.layer, "ffn_norm"))
    if key.stage == "post_attn_residual" and normed is not None and normed.inputs != (key,):
        return False  # both branches read the same hidden
    modules = (source.modules,) if isinstance(source.modules, str) else source.modules
    return all(re.split(r"[:\[]", name)[0] in names for name in modules)
