"""Jamba: layers of a Mamba scan, whose steps, b and c are normalised, among some of attention that
turns nothing; some FFNs are of experts, whose weights are divided by no sum."""

from __future__ import annotations

from functools import partial

from aprtui.families import decoder
from aprtui.families.classic import in_folder, pass_over
from aprtui.families.family import Family
from aprtui.families.keys import anything, only
from aprtui.families.mamba import channel_tensors, checked, read_gguf_channels, read_rank
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import ATTENTION, PACKED_EXPERTS, PRE_NORMS, WHOLE, Table, layer_tensor
from aprtui.formats.tracedir import StageKey
from aprtui.graph import Graph
from aprtui.graph.blocks import Builder
from aprtui.graph.mamba import Mamba, place_mamba

__all__ = ["FAMILY"]

_HF = {
    "vocab_size": 65_536, "hidden_size": 4096, "intermediate_size": 14_336, "num_layers": 32,
    "num_heads": 32, "num_kv_heads": 8, "hidden_act": "silu", "max_positions": 262_144,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "num_experts": 16,
    "num_experts_per_tok": 2, "expert_layer_period": 2, "expert_layer_offset": 1,
    "attn_layer_period": 8, "attn_layer_offset": 4, "mamba_d_state": 16, "mamba_d_conv": 4,
    "mamba_expand": 2, "mamba_dt_rank": "auto", "mamba_conv_bias": True, "mamba_proj_bias": False,
}  # fmt: skip


def _every(s: Settings, what: str, layers: int) -> list[bool]:
    """Which layers are of a kind: one in each period, from an offset on."""
    period, offset = s.integer(f"{what}_layer_period"), s.integer(f"{what}_layer_offset")
    if period < 1 or offset >= period:
        raise s.fail(f"{what}_layer_offset {offset} is not below {what}_layer_period {period}")
    return [layer % period == offset for layer in range(layers)]


def _attended(s: Settings, layers: int) -> list[bool]:
    """Which layers have attention."""
    if in_folder(s):
        return _every(s, "attn", layers)
    stated = s.take("num_kv_heads")
    heads = stated if isinstance(stated, list) else [stated] * layers
    if len(heads) != layers or not all(type(each) is int for each in heads):
        raise s.fail(f"num_kv_heads is {stated!r:.60}")
    return [each > 0 for each in heads]


def _sparse(s: Settings, layers: int) -> list[bool]:
    """Which layers' FFN is of experts: of a GGUF those that have a router."""
    if in_folder(s):
        every = _every(s, "expert", layers)
        return every if s.integer("num_experts") > 1 else [False] * layers
    return [f"blk.{layer}.ffn_gate_inp.weight" in s.file.tensors for layer in range(layers)]


def _read_scan(s: Settings, sizes: decoder.Sizes) -> Mamba:
    if not in_folder(s):
        return read_gguf_channels(s, sizes.norm())
    pass_over(s, "use_mambapy", "use_associative_scan", "use_mamba_kernels", null=False)
    return checked(s, Mamba(
        s.integer("mamba_expand") * sizes.hidden, s.integer("mamba_d_state"),
        read_rank(s, "mamba_dt_rank", sizes.hidden), s.integer("mamba_d_conv"),
        s.activation("hidden_act", "silu"), s.flag("mamba_conv_bias"), s.flag("mamba_proj_bias"),
        sizes.norm(),
    ))  # fmt: skip


def _read_ffn(s: Settings, sparse: list[bool]) -> decoder.Mixer:
    activation = s.activation("hidden_act", "silu")
    if not any(sparse):
        pass_over(s, "num_experts", "num_experts_per_tok")
        size = decoder.read_ffn(s)
        return lambda b, x: b.gated_mlp(x, size, activation)
    routing = decoder.read_experts(s, "intermediate_size", activation, renormalise=False)
    size = decoder.read_ffn(s)

    def place(b: Builder, x: StageKey) -> StageKey:
        if sparse[b.layer or 0]:
            return b.experts(x, routing)
        return b.gated_mlp(x, size, activation)

    return place


def build(s: Settings) -> Graph:
    stated = s.take("num_kv_heads")
    heads = max(stated) or 1 if isinstance(stated, list) else None
    sizes = decoder.read_sizes(s, nulls=(), kv_heads=heads)
    attended, sparse = _attended(s, sizes.layers), _sparse(s, sizes.layers)
    scan, ffn = _read_scan(s, sizes), _read_ffn(s, sparse)
    mask = decoder.mask_of(decoder.read_causal(s), None)
    s.say("scan_layers", tuple(not each for each in attended))
    s.say("sparse_layers", tuple(sparse))
    decoder.read_tied(s)
    how = decoder.attention_of(s, sizes, table=None, mask=mask)
    return decoder.build_decoder(
        sizes, lambda layer: how if attended[layer] else partial(place_mamba, how=scan), ffn
    )


_PARTS = ("gate", "up", "down")
FAMILY = Family(
    Table((
        *WHOLE, PRE_NORMS[0], *ATTENTION, *channel_tensors("mamba"), *PACKED_EXPERTS,
        layer_tensor("ffn_norm", "pre_ff_layernorm.weight", "ffn_norm.weight"),
        layer_tensor("ssm_low_norm", "mamba.dt_layernorm.weight", "ssm_dt_norm.weight"),
        layer_tensor("ssm_b_norm", "mamba.b_layernorm.weight", "ssm_b_norm.weight"),
        layer_tensor("ssm_c_norm", "mamba.c_layernorm.weight", "ssm_c_norm.weight"),
        layer_tensor("router", "feed_forward.router.weight", "ffn_gate_inp.weight"),
        *(layer_tensor(n, f"feed_forward.{n}_proj.weight", f"ffn_{n}.weight") for n in _PARTS),
        *(layer_tensor(f"expert_{n}", f"feed_forward.experts.{{expert}}.{n}_proj.weight")
          for n in _PARTS),
        layer_tensor("experts_gate_up", "feed_forward.experts.gate_up_proj",
                     holds=("expert_gate", "expert_up"), packed=True),
        layer_tensor("experts_down_hf", "feed_forward.experts.down_proj", holds=("expert_down",),
                     packed=True),
    )),
    build,
    Defaults(hf=_HF),
    published={"mamba_inner_layernorms": only(True), "n_ctx": anything},
)  # fmt: skip
