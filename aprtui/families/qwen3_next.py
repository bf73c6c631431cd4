"""Qwen3-Next: most layers a gated delta rule, every fourth an attention whose output is gated;
experts beside a shared one that a sigmoid weighs."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from aprtui.families import decoder, gemma
from aprtui.families.classic import in_folder
from aprtui.families.decoder import FULL, Frame
from aprtui.families.family import Family
from aprtui.families.qwen2moe import SHARED
from aprtui.families.rope import read_rope, turns_by_axes
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import (
    ATTENTION,
    DENSE,
    EXPERTS,
    PRE_NORMS,
    QK_NORM,
    WHOLE,
    Table,
    layer_tensor,
)
from aprtui.graph import Graph
from aprtui.graph.delta import Delta, place_delta
from aprtui.graph.ops import Sigmoid
from aprtui.graph.recurrent import DeltaRule

__all__ = ["FAMILY", "HF", "TENSORS", "build_with", "sparse_ffn"]

HF = {
    "vocab_size": 151_936, "hidden_size": 2048, "intermediate_size": 5632, "num_layers": 48,
    "num_heads": 16, "num_kv_heads": 2, "hidden_act": "silu", "max_positions": 32_768,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "rope_theta": 1e4, "head_dim": 256,
    "partial_rotary_factor": 0.25, "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_num_key_heads": 16,
    "linear_num_value_heads": 32, "decoder_sparse_step": 1, "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512, "num_experts_per_tok": 10, "num_experts": 512,
    "norm_topk_prob": True, "mlp_only_layers": None,
}  # fmt: skip
_LINEAR, _PERIOD = "linear_attention", 4  # the last of so many layers has attention
_UNIT = 1e-6  # of the length of queries and keys, in transformers
_FUSED = ("delta_q", "delta_k", "delta_v")
TENSORS = (
    *WHOLE, PRE_NORMS[0], *ATTENTION[1:3], *ATTENTION[-1:], *QK_NORM,
    layer_tensor("ffn_norm", "post_attention_layernorm.weight", "post_attention_norm.weight"),
    layer_tensor("q_gate", "self_attn.q_proj.weight", "attn_q.weight",
                 holds=("q", "attn_gate"), by_query=True),
    layer_tensor("delta_in", "linear_attn.in_proj_qkvz.weight", "ssm_in.weight",
                 holds=(*_FUSED, "delta_z"), by_head=True),
    layer_tensor("delta_ba", "linear_attn.in_proj_ba.weight", "ssm_ba.weight",
                 holds=("delta_b", "delta_a"), by_head=True),
    layer_tensor("delta_qkv", "linear_attn.in_proj_qkv.weight", "attn_qkv.weight", holds=_FUSED),
    layer_tensor("delta_z", "linear_attn.in_proj_z.weight", "attn_gate.weight"),
    layer_tensor("delta_b", "linear_attn.in_proj_b.weight", "ssm_beta.weight"),
    layer_tensor("delta_a", "linear_attn.in_proj_a.weight", "ssm_alpha.weight"),
    layer_tensor("delta_log", "linear_attn.A_log", "ssm_a"),
    layer_tensor("delta_dt", "linear_attn.dt_bias", "ssm_dt.bias"),
    layer_tensor("delta_conv", "linear_attn.conv1d.weight", "ssm_conv1d.weight"),
    layer_tensor("delta_norm", "linear_attn.norm.weight", "ssm_norm.weight"),
    layer_tensor("delta_o", "linear_attn.out_proj.weight", "ssm_out.weight"),
)  # fmt: skip


def _linear(s: Settings, layers: int) -> list[bool]:
    """Which layers have a delta rule."""
    if in_folder(s):
        period = s.take("full_attention_interval", _PERIOD)
        types = s.per_layer("layer_types", (str,), None)
        if types is None:
            if type(period) is not int or period < 1:
                raise s.fail(f"full_attention_interval is {period!r:.40}")
            return [bool((layer + 1) % period) for layer in range(layers)]
        if not set(types) <= {FULL, _LINEAR}:
            raise s.fail("layer_types has another kind than full_attention and linear_attention")
        return [kind == _LINEAR for kind in types]
    period = s.integer("full_attention_interval", _PERIOD)
    stated = s.per_layer("attention.recurrent_layers", (bool,), None)
    return stated or [bool((layer + 1) % period) for layer in range(layers)]


def _delta(s: Settings, eps: float, *, dealt: bool) -> Delta:
    if in_folder(s):
        rule = DeltaRule(
            s.integer("linear_num_key_heads"), s.integer("linear_num_value_heads"),
            s.integer("linear_key_head_dim"), s.integer("linear_value_head_dim"), _UNIT,
        )  # fmt: skip
        taps = s.integer("linear_conv_kernel_dim")
    else:
        heads, inner = s.integer("ssm.time_step_rank"), s.integer("ssm.inner_size")
        rule = DeltaRule(
            s.integer("ssm.group_count"), heads, s.integer("ssm.state_size"), inner // heads, eps,
            dealt=dealt,
        )  # fmt: skip
        taps = s.integer("ssm.conv_kernel")
    sizes = (rule.key_heads, rule.heads, rule.key, rule.value, taps)
    if min(sizes) < 1 or rule.heads % rule.key_heads:
        raise s.fail(f"{rule.heads} value heads cannot share {rule.key_heads} key heads")
    logged = in_folder(s)  # the converter stores -exp(A)
    return Delta(rule, taps, eps, s.values["activation"], logged)


def sparse_ffn(s: Settings, layers: int) -> decoder.Mixer:
    """Experts and a shared one, in all layers or some."""
    activation, sparse = s.values["activation"], decoder.sparse_layers(s, layers)
    routing = decoder.read_experts(
        s, "moe_intermediate_size", activation, renormalise=s.flag("norm_topk_prob", True)
    )
    routing = replace(routing, shared_size=s.integer("shared_expert_intermediate_size"))
    return decoder.read_mixed_ffn(s, routing, activation, sparse)


def build_with(s: Settings, read_ffn: decoder.ReadFfn, *, dealt: bool) -> Graph:
    """``dealt``: value heads go round the key heads in the family's GGUFs."""
    sizes = decoder.read_sizes(s, nulls=())
    s.activation("hidden_act", "silu")
    linear = _linear(s, sizes.layers)
    delta = _delta(s, sizes.eps, dealt=dealt)
    if in_folder(s) and s.take("partial_rotary_factor") is None:
        raise s.fail("partial_rotary_factor is null, which is no value of it")
    turns_by_axes(s)
    beside = ("mrope_section", "mrope_interleaved")
    table = read_rope(s, sizes.head_dim, partial=True, beside=beside)
    mask = decoder.mask_of(decoder.read_causal(s), None)
    s.must_be("attention_bias", (False,), "the gates of the attention have biases")
    offset = gemma.norm_offset(s)
    s.say("delta_layers", tuple(linear))
    ffn = read_ffn(s, sizes.layers)
    decoder.read_tied(s)
    how = decoder.attention_of(
        s, sizes, table=table, mask=mask, norms=sizes.norm(offset), gate=Sigmoid
    )
    return decoder.build_decoder(
        sizes,
        lambda layer: partial(place_delta, how=delta) if linear[layer] else how,
        ffn,
        Frame(offset=offset),
    )


def build(s: Settings) -> Graph:
    return build_with(s, sparse_ffn, dealt=False)


FAMILY = Family(
    Table((*TENSORS, *DENSE, *EXPERTS, *SHARED)),
    build,
    Defaults(hf=HF, gguf={"rope_theta": 1e4, "norm_topk_prob": True}),
)
