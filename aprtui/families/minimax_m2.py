"""MiniMax-M2: a QK norm over the whole width, part of each head turned, sigmoid experts."""

from __future__ import annotations

from dataclasses import replace

from aprtui.families import decoder, routers
from aprtui.families.family import Family
from aprtui.families.keys import anything, only
from aprtui.families.rope import read_rope
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import (
    ATTENTION,
    CORRECTION_BIAS,
    EXPERTS,
    PRE_NORMS,
    QK_NORM,
    WHOLE,
    Table,
)
from aprtui.graph import Graph

__all__ = ["FAMILY"]

_HF = {
    "vocab_size": 200_064, "hidden_size": 3072, "intermediate_size": 1536, "num_layers": 62,
    "num_heads": 48, "num_kv_heads": 8, "head_dim": 128, "hidden_act": "silu",
    "max_positions": 196_608, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
    "rope_theta": 5e6, "num_experts_per_tok": 8, "num_experts": 256,
}  # fmt: skip
_BETAS = tuple(f"layernorm_{part}_beta" for part in ("full_attention", "linear_attention", "mlp"))


def _turned_share(s: Settings, head_dim: int) -> None:
    """Published folders say how many channels turn, not which share of them."""
    turned = s.integer("rotary_dim", None)
    if turned is not None and not s.has("partial_rotary_factor"):
        s.assume("partial_rotary_factor", turned / head_dim)


def build(s: Settings) -> Graph:
    sizes = decoder.read_sizes(s)
    activation = s.activation("hidden_act", "silu")
    s.must_be("scoring_func", ("sigmoid",), "the router does not score by a sigmoid")
    s.must_be("use_routing_bias", (True,), "the router chooses without a bias")
    s.must_be("use_qk_norm", (True,), "q and k are not normalised")
    s.must_be("qk_norm_type", ("per_layer",), "q and k are normalised head by head")
    s.must_be("shared_intermediate_size", (0,), "the layers have shared experts")
    s.must_be("attn_type_list", ([1] * sizes.layers,), "some layers have linear attention")
    _turned_share(s, sizes.head_dim)
    table = read_rope(s, sizes.head_dim, partial=True)
    mask = decoder.mask_of(decoder.read_causal(s), None)
    decoder.read_tied(s)
    size_key = "intermediate_size" if s.file.format == "safetensors" else "moe_intermediate_size"
    if size_key != "intermediate_size":
        s.take("intermediate_size", None)
    routing = decoder.read_experts(s, size_key, activation, renormalise=True)
    s.assume("routed_scaling_factor", 1.0)
    routers.refuse_weights(s)
    routing = routers.read_sigmoid(s, routing, "routed_scaling_factor", renormalise=True, eps=0.0)
    how = decoder.attention_of(
        s, sizes, table=table, mask=mask, norms=replace(sizes.norm(), whole=True)
    )
    return decoder.build_decoder(sizes, lambda layer: how, lambda b, x: b.experts(x, routing))


FAMILY = Family(
    Table((*WHOLE, *PRE_NORMS, *ATTENTION, *QK_NORM, *EXPERTS, *CORRECTION_BIAS)),
    build,
    Defaults(hf=_HF, gguf={"rope_theta": 1e4, "tie_word_embeddings": False}),
    published={
        "max_model_len": anything,
        "mlp_intermediate_size": anything,
        **dict.fromkeys(_BETAS, only(1, 1.0)),
    },
)
