"""Zamba 2: every layer a Mamba 2 scan; before some of them a block of attention and an FFN, of
which there are one or two that take turns, adapted at each use by matrices of low rank."""

from __future__ import annotations

from aprtui.families import decoder
from aprtui.families.classic import both, pass_over
from aprtui.families.family import Family
from aprtui.families.mamba2 import check_chunk, scan_tensors
from aprtui.families.rope import read_rope
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import WHOLE, Table, layer_tensor
from aprtui.graph import Graph
from aprtui.graph.blocks import Builder
from aprtui.graph.mamba2 import Mamba2, place_mamba2
from aprtui.graph.recurrent import Scan
from aprtui.graph.role import Role
from aprtui.graph.shared_block import SharedBlock, place_block

__all__ = ["FAMILY"]

_HF = {
    "vocab_size": 32_000, "max_positions": 4096, "hidden_size": 2560, "num_layers": 54,
    "mamba_d_state": 64, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_ngroups": 1,
    "time_step_min": 0.001, "n_mamba_heads": 8, "add_bias_linear": False,
    "intermediate_size": None, "hidden_act": "gelu", "num_heads": 32, "num_kv_heads": None,
    "num_mem_blocks": 1, "use_shared_attention_adapter": False, "adapter_rank": 128,
    "use_mem_rope": False, "rope_theta": 1e4, "rms_norm_eps": 1e-5, "use_long_context": False,
    "tie_word_embeddings": True,
}  # fmt: skip
_ALIASES = {"layer_types": "layers_block_type", "attention_head_dim": "head_dim"}
_UNREAD = (  # by transformers' model, whose convolutions always have a bias
    "time_step_limit", "kv_channels", "num_query_groups", "ffn_hidden_size",
    "use_shared_mlp_adapter",
)  # fmt: skip
_UNREAD_VALUES = ("use_mamba_kernels", "use_mem_eff_path", "use_conv_bias", "num_logits_to_keep")
_SCAN, _HYBRID = "linear_attention", "hybrid"
_DEFAULT = "S" + 7 * "SSSSSH" + "SSSSHSSSHSS"  # of 54 layers
_LONG = 16_384  # positions, where use_long_context says so
_NORM_EPS = 1e-5  # of the scan's gated norm, which has no key
_BLOCK = "shared_transformer."
_FFN = f"{_BLOCK}feed_forward."
_OF_FFN = f"{_FFN}gate_up_proj_adapter_list.{{expert}}."
_TABLE = Table((
    *WHOLE, *scan_tensors("mamba"), *scan_tensors("mamba_decoder.mamba"),
    layer_tensor("scan_norm", "input_layernorm.weight", "mamba_decoder.input_layernorm.weight"),
    layer_tensor("block_linear", "linear.weight"),
    layer_tensor("block_norm", f"{_BLOCK}input_layernorm.weight"),
    layer_tensor("block_ffn_norm", f"{_BLOCK}pre_ff_layernorm.weight"),
    *(layer_tensor(part, f"{_BLOCK}self_attn.{part}_proj.weight") for part in "qkvo"),
    layer_tensor("gate_up", f"{_FFN}gate_up_proj.weight", holds=("gate", "up")),
    layer_tensor("gate_up_bias", f"{_FFN}gate_up_proj.bias", holds=("gate_bias", "up_bias")),
    *both("down", f"{_FFN}down_proj"),
    *(
        layer_tensor(f"{n}_{end}", f"{_BLOCK}self_attn.linear_{n}_adapter_list.{{expert}}.{at}")
        for n in "qkv" for end, at in (("low", "0.weight"), ("high", "1.weight"))
    ),
    layer_tensor("ffn_low", f"{_OF_FFN}0.weight"),
    layer_tensor("gate_up_high", f"{_OF_FFN}1.weight", holds=("gate_high", "up_high")),
))  # fmt: skip
_OF_BLOCK = [tensor for tensor in _TABLE.tensors if _BLOCK in tensor.names[0]]


def _hybrids(s: Settings) -> list[int]:
    """The layers that have a block before their scan."""
    layers = s.integer("num_layers")
    types = s.per_layer("layers_block_type", (str,), None)
    if types is None and layers != len(_DEFAULT):
        raise s.fail(f"num_layers is {layers} and layers_block_type is not stated")
    types = types or [_HYBRID if each == "H" else _SCAN for each in _DEFAULT]
    if not set(types) <= {"mamba", _SCAN, _HYBRID}:
        raise s.fail("layers_block_type has another kind than mamba and hybrid")
    found = [layer for layer, kind in enumerate(types) if kind == _HYBRID]
    s.must_be("hybrid_layer_ids", (found,), "layers_block_type says otherwise")
    return list(s.say("block_layers", tuple(found)))


def _lend(s: Settings, hybrids: list[int]) -> None:
    """Blocks take turns; where weights are tied, the first layer with one may hold it for all."""
    turn = s.integer("num_mem_blocks")
    for use, layer in enumerate(hybrids):
        owner = hybrids[use % turn] if s.flag("tie_word_embeddings") else layer
        for tensor in _OF_BLOCK:
            number = use if "{expert}" in tensor.names[0] else None
            own, lent = (Role(tensor.role, each, number) for each in (layer, owner))
            s.lent[Role(tensor.role, layer)] = own, lent
            others = () if number is None else range(use % turn, len(hybrids), turn)
            s.unread_roles |= {own._replace(expert=each) for each in others}


def _read_scan(s: Settings, hidden: int) -> Mamba2:
    check_chunk(s, "chunk_size")
    inner, heads = s.integer("mamba_expand") * hidden, s.integer("n_mamba_heads")
    groups = s.integer("mamba_ngroups")
    if heads < 1 or groups < 1 or inner % heads or heads % groups:
        raise s.fail(f"{inner} channels cannot be {heads} heads of {groups} groups (n_mamba_heads)")
    s.must_be("mamba_headdim", (inner // heads,), "mamba_expand and n_mamba_heads say otherwise")
    scan = Scan(heads, inner // heads, groups, s.integer("mamba_d_state"), Role(""), Role(""))
    return Mamba2(
        scan, s.integer("mamba_d_conv"), _NORM_EPS, "silu", True, s.flag("add_bias_linear"),
        low=s.number("time_step_min"),
    )  # fmt: skip


def _read_block(s: Settings, sizes: decoder.Sizes) -> SharedBlock:
    if s.flag("use_long_context"):
        s.say("max_positions", _LONG)
    table, turns = read_rope(s, sizes.head_dim), s.flag("use_mem_rope")
    adapted, rank = s.flag("use_shared_attention_adapter"), s.integer("adapter_rank")
    if adapted and sizes.kv_heads != sizes.heads:
        raise s.fail("use_shared_attention_adapter is true, and num_kv_heads is not num_heads")
    how = decoder.attention_of(
        s, sizes, table=table if turns else None, scale=(sizes.head_dim / 2) ** -0.5,
        mask=decoder.mask_of(decoder.read_causal(s), None), rank=rank if adapted else 0,
    )  # fmt: skip
    size = s.integer("intermediate_size", null=4 * sizes.hidden)
    activation = s.activation("hidden_act", "gelu")
    return SharedBlock(how, sizes.norm(), size, activation, rank, s.flag("add_bias_linear"))


def _read_sizes(s: Settings) -> decoder.Sizes:
    """A head of the block is twice as wide as in attention over the hidden alone."""
    hidden, heads = s.integer("hidden_size"), s.integer("num_heads")
    if 2 * hidden % heads:
        raise s.fail(f"2 x {hidden} channels cannot be {heads} heads (num_heads)")
    s.must_be("head_dim", (2 * hidden // heads,), "hidden_size and num_heads say otherwise")
    s.must_be("attention_hidden_size", (2 * hidden,), "hidden_size says otherwise")
    return decoder.read_sizes(s, nulls=("num_kv_heads",), head_dim=2 * hidden // heads)


def build(s: Settings) -> Graph:
    pass_over(s, *_UNREAD)
    pass_over(s, *_UNREAD_VALUES, null=False)
    hybrids, sizes = _hybrids(s), _read_sizes(s)
    scan, block = _read_scan(s, sizes.hidden), _read_block(s, sizes)
    decoder.read_tied(s)
    _lend(s, hybrids)
    b = Builder(sizes.hidden)
    hidden = embedding = b.embedding(sizes.vocab)
    for layer in range(sizes.layers):
        b.layer, x = layer, hidden
        if layer in hybrids:
            x = b.residual("scan_in", hidden, place_block(b, hidden, embedding, block))
        mixed = place_mamba2(b, b.norm("scan_norm", x, sizes.norm()), scan)
        hidden = b.residual("post_ffn_residual", hidden, mixed)
    b.head(hidden, sizes.norm(), sizes.vocab)
    return b.graph()


FAMILY = Family(_TABLE, build, Defaults(hf=_HF), aliases=_ALIASES)
