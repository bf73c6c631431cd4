"""Hunyuan: llama with a QK norm once the heads are turned; the FFN dense, or experts beside a
shared one of the same size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from aprtui.families import decoder
from aprtui.families.family import Family
from aprtui.families.keys import anything, only
from aprtui.families.rope import read_rope
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import (
    ATTENTION,
    DENSE,
    EXPERTS,
    OUTPUT_BIAS,
    PRE_NORMS,
    QKV_BIAS,
    SHARED_EXPERT,
    WHOLE,
    Table,
    layer_tensor,
)
from aprtui.formats.tracedir import StageKey
from aprtui.graph import Graph
from aprtui.graph.blocks import Builder

__all__ = ["FAMILY", "MOE"]

_HF = {
    "vocab_size": 290_943, "hidden_size": 4096, "intermediate_size": 11_008, "num_layers": 32,
    "num_heads": 32, "num_kv_heads": None, "head_dim": None, "hidden_act": "silu",
    "max_positions": 2048, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "rope_theta": 1e4,
    "attention_bias": False,
}  # fmt: skip
_SCALINGS = {kind: kind for kind in ("default", "linear", "llama3", "yarn")} | {"dynamic": "alpha"}


def _ffn(s: Settings, activation: str) -> Callable[[Builder, StageKey], StageKey]:
    size = decoder.read_ffn(s)
    return lambda b, x: b.gated_mlp(x, size, activation)


def _experts(s: Settings, activation: str) -> Callable[[Builder, StageKey], StageKey]:
    """Experts of F = ``intermediate_size``: what is said of another size is not read."""
    size = decoder.read_ffn(s)
    for key in ("moe_intermediate_size", "shared_expert_intermediate_size"):
        s.take(key, None)
    for key in ("num_shared_expert", "expert_shared_count"):
        s.must_be(key, (1, [1] * s.values["num_layers"]), "there is another number of them")
    routing = decoder.read_experts(
        s, "intermediate_size", activation, renormalise=True, names=("num_experts", "moe_topk")
    )
    routing = replace(routing, shared_size=size, shared_gate=False)
    return lambda b, x: b.experts(x, routing)


def _build(
    s: Settings, read: Callable[[Settings, str], Callable[[Builder, StageKey], StageKey]]
) -> Graph:
    sizes = decoder.read_sizes(s)
    ffn = read(s, s.activation("hidden_act", "silu"))
    s.must_be("use_qk_norm", (True,), "q and k are not normalised")
    table = read_rope(s, sizes.head_dim, kinds=_SCALINGS)
    mask, biases = decoder.mask_of(decoder.read_causal(s), None), decoder.read_biases(s)
    decoder.read_tied(s)
    how = decoder.attention_of(s, sizes, table=table, mask=mask, norms=sizes.norm(), **biases)
    how = replace(how, norm_after_rope=True)
    return decoder.build_decoder(sizes, lambda layer: how, ffn)


_QK_NORM = tuple(
    layer_tensor(f"{part}_norm", f"self_attn.{name}_layernorm.weight", f"attn_{part}_norm.weight")
    for part, name in {"q": "query", "k": "key"}.items()
)
_ROUTER = layer_tensor("router", "mlp.gate.wg.weight")
_PARTS = (*WHOLE, *PRE_NORMS, *ATTENTION, *QKV_BIAS, *OUTPUT_BIAS, *_QK_NORM)
_GGUF = {"rope_theta": 1e4}
_TOKENS = ("im_end_id", "im_newline_id", "im_start_id", "mask_init_id", "text_end_id",
           "text_start_id")  # fmt: skip
_LATENT = ("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
_PUBLISHED = {
    **dict.fromkeys(_TOKENS, anything), **dict.fromkeys(_LATENT, only(None)),
    "add_classification_head": only(False), "attention_head_dim": anything, "class_num": anything,
    "cla_share_factor": anything, "dense_list": anything, "norm_type": only("rms"),
    "org_vocab_size": anything, "pool_type": anything, "position_embedding_xdrope": only(False),
    "use_cla": only(False), "use_mla": only(False), "use_rotary_pos_emb": only(True),
}  # fmt: skip

FAMILY = Family(
    Table((*_PARTS, *DENSE)),
    lambda s: _build(s, _ffn),
    Defaults(hf=_HF, gguf=_GGUF),
    published=_PUBLISHED,
)
MOE = Family(
    Table((*_PARTS, *EXPERTS, _ROUTER, *SHARED_EXPERT)),
    lambda s: _build(s, _experts),
    Defaults(hf={**_HF, "num_experts": 1, "moe_topk": 1}, gguf=_GGUF),
    published={
        **_PUBLISHED,
        "moe_layer_num_skipped": only(0),
        "use_mixed_mlp_moe": only(True),
        "group_limited_greedy": only(False),
        "norm_topk_prob": only(True),
        "moe_intermediate_size": anything,
        "num_shared_expert": anything,
    },
)
