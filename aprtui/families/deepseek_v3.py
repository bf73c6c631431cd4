"""DeepSeek-V3 and R1, Kimi K2: latent attention, experts in groups chosen by a sigmoid and a bias,
shared ones, the first layers dense. Their GGUFs, V2's and GLM-4.7-Flash's bear one name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from aprtui.families import decoder, latent, routers
from aprtui.families.classic import in_folder
from aprtui.families.family import Family
from aprtui.families.glm4moe import read_sparse_ffn
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import (
    CORRECTION_BIAS,
    DENSE,
    EXPERTS,
    PRE_NORMS,
    SHARED_EXPERT,
    WHOLE,
    Table,
)
from aprtui.graph import Graph
from aprtui.graph.latent import LatentAttention, place_latent
from aprtui.graph.ops import Temperature

__all__ = ["FAMILY", "TABLE", "build_with", "pass_over_drafts", "softmax_ffn"]

_HF = {
    "vocab_size": 129_280, "hidden_size": 7168, "intermediate_size": 18_432, "num_layers": 61,
    "num_heads": 128, "num_kv_heads": 128, "hidden_act": "silu", "max_positions": 4096,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "rope_theta": 1e4,
    "attention_bias": False, "moe_intermediate_size": 2048, "num_experts_per_tok": 8,
    "n_shared_experts": 1, "n_routed_experts": 256, "routed_scaling_factor": 2.5, "n_group": 8,
    "topk_group": 4, "first_k_dense_replace": 3, "norm_topk_prob": True, "kv_lora_rank": 512,
    "q_lora_rank": 1536, "qk_rope_head_dim": 64, "v_head_dim": 128, "qk_nope_head_dim": 128,
    "rope_interleave": True,
}  # fmt: skip
_WARMTH = "attention.temperature_scale"
_SIGMOID = 2  # of llama.cpp's gating functions
_FLASH = {"num_layers": (47, 48), "vocab_size": (154_880,)}  # GLM-4.7-Flash, as llama.cpp knows it


def pass_over_drafts(s: Settings) -> None:
    """Keys of a head that drafts tokens, of training, and of how experts are spread."""
    for key in ("num_mtp_layers", "num_nextn_predict_layers", "ep_size", "aux_loss_alpha",
                "seq_aux", "nextn_predict_layers"):  # fmt: skip
        s.take(key, None)
    s.must_be("moe_layer_freq", (1,), "some layers have no experts")


def _temperature(s: Settings) -> Temperature | None:
    """Mistral Large 3's, as llama.cpp reads it: it grows at each multiple of a length."""
    strength, span = s.number(_WARMTH), s.integer("attention.temperature_length", 0)
    if strength and span < 1:
        raise s.fail(f"attention.temperature_length is {span}: the temperature grows by it")
    s.say("query_temperature", strength)
    return Temperature(strength, float(span)) if strength else None


def sigmoid_ffn(s: Settings, layers: int) -> decoder.Mixer:
    """Experts chosen by sigmoids in all but the first layers."""
    return read_sparse_ffn(s, routers.read_dense_first(s, layers))


def softmax_ffn(s: Settings, layers: int) -> decoder.Mixer:
    """Experts chosen by softmax, as V2's are; GGUF sums a group's two best scores, config.json's
    "group_limited_greedy" takes the best."""
    sparse = routers.read_dense_first(s, layers)
    activation = s.activation("hidden_act", "silu")
    names = ("n_routed_experts", "num_experts_per_tok")
    folder = in_folder(s)
    renormalise = not folder and s.flag("expert_weights_norm", False)
    routing = decoder.read_experts(
        s, "moe_intermediate_size", activation, renormalise=renormalise, names=names
    )
    how = s.choice("topk_method", ("greedy", "group_limited_greedy"), "greedy") if folder else ""
    if how == "greedy":
        s.take("n_group", None)
        s.take("topk_group", None)
    else:
        routing = routers.read_groups(s, routing)
    scale = s.number("routed_scaling_factor" if folder else "expert_weights_scale")
    if scale <= 0:
        raise s.fail(f"routed_scaling_factor is {scale:g}")
    route = replace(routing.route, scale=scale)
    choose = routing.choose
    if choose.groups > 1:
        choose = replace(choose, best=1 if folder else 2)
    if choose.groups > 1 and not folder:
        s.note(
            "a group of experts scores the sum of its two best, as in llama.cpp: no key says "
            "that it is the best one's (topk_method group_limited_greedy)"
        )
    corrected = not folder and s.shape("correction_bias") is not None
    routing = replace(routing, route=route, choose=choose, corrected=corrected)
    routing = routers.read_shared(s, routing, "n_shared_experts")
    ffn = decoder.read_ffn(s)
    return lambda b, x: (
        b.experts(x, routing) if sparse[b.layer or 0] else b.gated_mlp(x, ffn, activation)
    )


def build_with(
    s: Settings, ffn: decoder.ReadFfn, *, adjacent: bool = True,
    indexed: Callable[[Settings, LatentAttention, int], list[LatentAttention]] | None = None,
) -> Graph:  # fmt: skip
    """``ffn``: of so many layers; ``adjacent``: neighbouring channels turn; ``indexed``: the
    attention of each of so many layers, where keys are chosen."""
    pass_over_drafts(s)
    sizes, parts = latent.read_sizes(s)
    biased = in_folder(s) and s.flag("attention_bias")
    how = latent.read_latent(s, sizes, parts, biased=biased, grown=True)
    pairs = "adjacent" if adjacent else "halves"
    if s.known(_WARMTH):
        how = replace(how, temperature=_temperature(s))
    assert how.table is not None
    how = replace(how, table=replace(how.table, pairs=s.say("rope_layout", pairs)))
    each = [how] * sizes.layers if indexed is None else indexed(s, how, sizes.layers)
    made = ffn(s, sizes.layers)
    decoder.read_tied(s)
    return decoder.build_decoder(sizes, lambda layer: partial(place_latent, how=each[layer]), made)


def build(s: Settings) -> Graph:
    if in_folder(s):
        adjacent = s.flag("rope_interleave", null=False)
        return build_with(s, sigmoid_ffn, adjacent=adjacent)
    flash = all(s.take(key) in values for key, values in _FLASH.items())
    gating = s.take("expert_gating_func", 0) or (_SIGMOID if flash else 1)
    if gating not in (1, _SIGMOID):
        raise s.fail(f"expert_gating_func is {gating!r:.20}, which is not computed here")
    if gating == _SIGMOID:
        s.assume("expert_gating_func", _SIGMOID)
        return build_with(s, sigmoid_ffn)
    s.note("expert_gating_func is not stated or 1: softmax, as llama.cpp takes it for deepseek2")
    return build_with(s, softmax_ffn)


TABLE = Table((
    *WHOLE, *PRE_NORMS, *latent.TENSORS, *DENSE, *EXPERTS, *SHARED_EXPERT, *CORRECTION_BIAS,
))  # fmt: skip
FAMILY = Family(
    TABLE,
    build,
    Defaults(
        hf=_HF,
        gguf={
            "rope_theta": 1e4,
            "leading_dense_block_count": 0,
            "expert_weights_scale": 1.0,
            _WARMTH: 0.0,
        },
    ),
    adjacent=True,
)
