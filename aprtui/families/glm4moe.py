"""GLM-4.5: half of each head turned, dense layers first, then experts chosen by DeepSeek-V3's
router beside a shared one."""

from __future__ import annotations

from collections.abc import Callable

from aprtui.families import decoder, routers
from aprtui.families.family import Family
from aprtui.families.rope import read_rope, turns_by_axes
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import (
    ATTENTION,
    CORRECTION_BIAS,
    DENSE,
    EXPERTS,
    PRE_NORMS,
    QK_NORM,
    QKV_BIAS,
    SHARED_EXPERT,
    WHOLE,
    Table,
    layer_tensor,
)
from aprtui.formats.tracedir import StageKey
from aprtui.graph import Graph
from aprtui.graph.blocks import Builder

__all__ = ["FAMILY", "read_sparse_ffn"]

_HF = {
    "vocab_size": 151_552, "hidden_size": 4096, "intermediate_size": 10_944, "num_layers": 46,
    "num_heads": 96, "num_kv_heads": 8, "hidden_act": "silu", "max_positions": 131_072,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "rope_theta": 1e4,
    "partial_rotary_factor": 0.5, "attention_bias": False, "moe_intermediate_size": 1408,
    "num_experts_per_tok": 8, "n_shared_experts": 1, "n_routed_experts": 128,
    "routed_scaling_factor": 1.0, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
    "norm_topk_prob": True, "use_qk_norm": False,
}  # fmt: skip


def read_sparse_ffn(
    s: Settings,
    sparse: list[bool],
    count: str = "n_routed_experts",
    shared: str = "n_shared_experts",
) -> Callable[[Builder, StageKey], StageKey]:
    """Some layers dense, the others of experts in groups and shared ones: DeepSeek-V3's keys.

    ``count`` and ``shared``: what config.json calls the numbers of experts.
    """
    activation = s.activation("hidden_act", "silu")
    s.must_be("scoring_func", ("sigmoid",), "the router does not score by a sigmoid")
    s.must_be("topk_method", ("noaux_tc",), "the router chooses otherwise")
    renormalise = s.file.format == "safetensors" and s.flag("norm_topk_prob")
    routing = decoder.read_experts(
        s, "moe_intermediate_size", activation, renormalise=renormalise,
        names=(count, "num_experts_per_tok"),
    )  # fmt: skip
    scale = "routed_scaling_factor"
    routing = routers.read_sigmoid(s, routing, scale, renormalise=renormalise)
    routing = routers.read_shared(s, routers.read_groups(s, routing), shared)
    return decoder.read_mixed_ffn(s, routing, activation, sparse)


def build(s: Settings) -> Graph:
    sizes = decoder.read_sizes(s)
    ffn = read_sparse_ffn(s, routers.read_dense_first(s, sizes.layers))
    turns_by_axes(s)
    table = read_rope(s, sizes.head_dim, partial=True)
    mask = decoder.mask_of(decoder.read_causal(s), None)
    in_folder = s.file.format == "safetensors"
    normed = s.flag("use_qk_norm") if in_folder else s.shape("q_norm") is not None
    for key in ("num_mtp_layers", "num_nextn_predict_layers"):  # of a head that drafts tokens
        s.take(key, None)
    biased = decoder.read_biases(s)["qkv_bias"]
    decoder.read_tied(s)
    how = decoder.attention_of(
        s, sizes, table=table, mask=mask, norms=sizes.norm() if normed else None, qkv_bias=biased
    )
    return decoder.build_decoder(sizes, lambda layer: how, ffn)


_NORMS = (  # llama.cpp calls the second by its place too
    PRE_NORMS[0],
    layer_tensor("ffn_norm", "post_attention_layernorm.weight", "post_attention_norm.weight"),
)
_PARTS = (*WHOLE, *_NORMS, *ATTENTION, *QKV_BIAS, *QK_NORM)
FAMILY = Family(
    Table((*_PARTS, *DENSE, *EXPERTS, *SHARED_EXPERT, *CORRECTION_BIAS)),
    build,
    Defaults(hf=_HF, gguf={"rope_theta": 1e4, "nextn_predict_layers": 0, "expert_gating_func": 2}),
)
