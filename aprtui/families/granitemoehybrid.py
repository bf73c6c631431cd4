"""Granite 4 hybrid: layers of a Mamba 2 scan among some of attention, experts beside a shared one,
or that one alone, and Granite's multipliers."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from aprtui.families import decoder, granite
from aprtui.families.classic import in_folder, pass_over
from aprtui.families.family import Family
from aprtui.families.keys import only
from aprtui.families.mamba2 import check_chunk, read_gguf_scan, read_limits, scan_tensors
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
from aprtui.graph import Graph
from aprtui.graph.mamba2 import Mamba2, place_mamba2
from aprtui.graph.recurrent import Scan
from aprtui.graph.role import Role

__all__ = ["FAMILY", "MAMBA", "read_inner_scan", "read_scan"]

MAMBA = {
    "mamba_n_heads": 128, "mamba_n_groups": 1, "mamba_d_state": 256, "mamba_d_head": "auto",
    "mamba_d_conv": 4, "mamba_expand": 2, "mamba_conv_bias": True, "mamba_proj_bias": False,
}  # fmt: skip
_HF = {
    **granite.HF, **MAMBA, "num_experts": 8, "num_experts_per_tok": 2,
    "shared_intermediate_size": 1024, "position_embedding_type": None,
}  # fmt: skip
_SCANS, _ATTENTION = ("mamba", "linear_attention"), ("attention", "full_attention")
_SHARED = (
    layer_tensor("shared_in", "shared_mlp.input_linear.weight",
                 holds=("shared_expert_gate", "shared_expert_up")),
    layer_tensor("shared_expert_down", "shared_mlp.output_linear.weight"),
)  # fmt: skip
_EXPERTS = (
    layer_tensor(
        "router", "block_sparse_moe.router.layer.weight", "block_sparse_moe.router.weight"
    ),
    layer_tensor("experts_in", "block_sparse_moe.input_linear.weight",
                 "block_sparse_moe.experts.gate_up_proj",
                 holds=("expert_gate", "expert_up"), packed=True),
    layer_tensor("experts_out", "block_sparse_moe.output_linear.weight",
                 "block_sparse_moe.experts.down_proj", holds=("expert_down",), packed=True),
)  # fmt: skip


def _scans(s: Settings, layers: int) -> list[bool]:
    """Which layers are scans."""
    if not in_folder(s):
        stated = s.take("num_kv_heads")
        heads = stated if isinstance(stated, list) else [stated] * layers
        if len(heads) != layers or not all(type(each) is int for each in heads):
            raise s.fail(f"num_kv_heads is {stated!r:.60}")
        return [each == 0 for each in heads]
    types = s.per_layer("layer_types", (str,), None)
    if types is None:
        return [True] * layers
    if not set(types) <= {*_SCANS, *_ATTENTION}:
        raise s.fail("layer_types has another kind than mamba and attention")
    return [kind in _SCANS for kind in types]


def read_scan(s: Settings, hidden: int, eps: float, activation: str) -> Mamba2:
    """The scan of every layer that is one, as config.json's mamba_* keys or llama.cpp's say."""
    if not in_folder(s):
        return read_gguf_scan(s, eps)
    return read_inner_scan(s, s.integer("mamba_expand") * hidden, eps, activation)


def read_inner_scan(s: Settings, inner: int, eps: float, activation: str) -> Mamba2:
    """A scan of so many channels, as config.json's mamba_* keys say."""
    check_chunk(s, "mamba_chunk_size")
    heads, stated = s.integer("mamba_n_heads"), s.take("mamba_d_head")
    size = inner // heads if stated == "auto" else stated
    if heads < 1 or type(size) is not int or heads * size != inner:
        raise s.fail(
            f"mamba_n_heads {heads} of mamba_d_head {stated!r:.20} are not {inner} channels"
        )
    groups = s.integer("mamba_n_groups")
    if groups < 1 or heads % groups:
        raise s.fail(f"{heads} heads cannot be {groups} groups (mamba_n_groups)")
    scan = Scan(heads, size, groups, s.integer("mamba_d_state"), Role(""), Role(""))
    low, high = read_limits(s)
    return Mamba2(
        scan, s.integer("mamba_d_conv"), eps, activation, s.flag("mamba_conv_bias"),
        s.flag("mamba_proj_bias"), low, high,
    )  # fmt: skip


def _ffn(s: Settings, activation: str) -> decoder.Mixer:
    shared_key = "shared_intermediate_size" if in_folder(s) else "shared_expert_intermediate_size"
    if (in_folder(s) and s.take("num_experts") == 0) or s.shape("router") is None:
        pass_over(s, "num_experts_per_tok")
        if not in_folder(s):
            size = decoder.read_ffn(s)
            return lambda b, x: b.gated_mlp(x, size, activation)
        pass_over(s, "intermediate_size")
        size = s.integer(shared_key)
        return lambda b, x: b.gated_mlp(x, size, activation, roles="shared_expert_")
    routing = decoder.read_experts(s, "intermediate_size", activation, renormalise=True)
    routing = replace(routing, shared_size=s.integer(shared_key), shared_gate=False)
    return lambda b, x: b.experts(x, routing)


def build(s: Settings) -> Graph:
    scans = _scans(s, s.integer("num_layers"))
    stated = s.take("num_kv_heads")
    heads = max(stated) or 1 if isinstance(stated, list) else None
    sizes = decoder.read_sizes(s, kv_heads=heads)
    activation = s.activation("hidden_act", "silu")
    how, frame = granite.read_attention(s, sizes, partial=not in_folder(s)), granite.read_frame(s)
    if in_folder(s) and s.take("position_embedding_type") != "rope":
        s.must_be("position_embedding_type", (None, "nope"), "positions are told otherwise")
        how = replace(how, table=None)
    scan = read_scan(s, sizes.hidden, sizes.eps, activation)
    s.say("scan_layers", tuple(scans))
    ffn = _ffn(s, activation)
    decoder.read_tied(s)
    return decoder.build_decoder(
        sizes, lambda layer: partial(place_mamba2, how=scan) if scans[layer] else how, ffn, frame
    )


FAMILY = Family(
    Table((
        *WHOLE, *PRE_NORMS, *ATTENTION, *QKV_BIAS, *OUTPUT_BIAS, *DENSE, *EXPERTS, *SHARED_EXPERT,
        *_SHARED, *_EXPERTS, *scan_tensors("mamba"),
    )),
    build,
    Defaults(hf=_HF, gguf={**granite.GGUF, "logit_scale": 1.0}),
    aliases={"layers_block_type": "layer_types"},
    published={"normalization_function": only("rmsnorm")},
    adjacent_in_gguf=True,
)  # fmt: skip
