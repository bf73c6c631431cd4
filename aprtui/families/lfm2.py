"""LFM2: most layers a short convolution gated on both sides, the others an attention with norms of
queries and keys."""

from __future__ import annotations

from functools import partial

from aprtui.families import decoder
from aprtui.families.classic import both, in_folder
from aprtui.families.decoder import FULL
from aprtui.families.family import Family
from aprtui.families.keys import anything, only
from aprtui.families.rope import read_rope
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import DENSE, WHOLE, Table, Tensor, layer_tensor
from aprtui.graph import Graph
from aprtui.graph.shortconv import ShortConv, place_short_conv

__all__ = ["ALIASES", "FAMILY", "HF", "PUBLISHED", "TENSORS", "build_with"]

HF = {
    "vocab_size": 65_536, "hidden_size": 2560, "intermediate_size": 12_288, "num_layers": 32,
    "num_heads": 32, "num_kv_heads": 8, "max_positions": 128_000, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True, "rope_theta": 1e6, "conv_bias": False, "conv_L_cache": 3,
    "block_multiple_of": 256, "block_ffn_dim_multiplier": 1.0, "block_auto_adjust_ff_dim": True,
    "full_attn_idxs": None,
}  # fmt: skip
ALIASES = {
    "norm_eps": "rms_norm_eps", "rms_norm_eps": "other.rms_norm_eps",
    "tie_embedding": "tie_word_embeddings", "block_ff_dim": "intermediate_size",
}  # fmt: skip
PUBLISHED = {
    **dict.fromkeys(("block_use_swiglu", "use_pos_enc"), only(True)),
    **dict.fromkeys(
        ("block_dim", "block_norm_eps", "conv_dim", "conv_dim_out", "num_heads", "theta"), anything
    ),
}
_CONV = "conv"
TENSORS = (
    *WHOLE, Tensor("final_norm", ("embedding_norm.weight", "token_embd_norm.weight")),
    layer_tensor("attn_norm", "operator_norm.weight", "attn_norm.weight"),
    layer_tensor("ffn_norm", "ffn_norm.weight"),
    *(layer_tensor(part, f"self_attn.{part}_proj.weight", f"attn_{part}.weight") for part in "qkv"),
    layer_tensor("o", "self_attn.out_proj.weight", "attn_output.weight"),
    layer_tensor("q_norm", "self_attn.q_layernorm.weight", "attn_q_norm.weight"),
    layer_tensor("k_norm", "self_attn.k_layernorm.weight", "attn_k_norm.weight"),
    *both("conv_in", "conv.in_proj", "shortconv.in_proj"),
    *both("conv", "conv.conv", "shortconv.conv"),
    *both("conv_out", "conv.out_proj", "shortconv.out_proj"),
)  # fmt: skip


def _convs(s: Settings, layers: int) -> list[bool]:
    """Which layers are convolutions."""
    if not in_folder(s):
        stated = s.take("num_kv_heads")
        heads = stated if isinstance(stated, list) else [stated] * layers
        if len(heads) != layers or not all(type(each) is int for each in heads):
            raise s.fail(f"num_kv_heads is {stated!r:.60}")
        return [each == 0 for each in heads]
    full = s.take("full_attn_idxs", None)
    types = s.per_layer("layer_types", (str,), None)
    if types is None and s.known("full_attn_idxs"):
        full = list(range(layers)) if full is None else full
        if not isinstance(full, list):
            raise s.fail(f"full_attn_idxs is {full!r:.60}")
        return [layer not in full for layer in range(layers)]
    if types is None:
        raise s.fail("layer_types is not stated")
    if not set(types) <= {FULL, _CONV}:
        raise s.fail("layer_types has another kind than full_attention and conv")
    return [kind == _CONV for kind in types]


def _ffn_size(s: Settings) -> int:
    """F, which config.json may say before it is adjusted."""
    size: int = s.integer("intermediate_size")
    if in_folder(s) and s.flag("block_auto_adjust_ff_dim"):
        size = int(2 * size / 3)
        factor, step = (
            s.number("block_ffn_dim_multiplier", null=None),
            s.integer("block_multiple_of"),
        )
        if factor is not None:
            if step < 1:
                raise s.fail(f"block_multiple_of is {step}")
            size = step * ((int(factor * size) + step - 1) // step)
    elif in_folder(s):
        s.take("block_ffn_dim_multiplier")
        s.take("block_multiple_of")
    return int(s.say("intermediate_size", size))


def read_ffn(s: Settings, layers: int) -> decoder.Mixer:
    size = _ffn_size(s)
    return lambda b, x: b.gated_mlp(x, size, "silu")


def build_with(s: Settings, read: decoder.ReadFfn) -> Graph:
    """``read``: the FFNs' keys."""
    convs = _convs(s, s.integer("num_layers"))
    stated = s.take("num_kv_heads")
    heads = max(stated) if isinstance(stated, list) else None
    sizes = decoder.read_sizes(s, nulls=(), kv_heads=heads)
    taps = s.integer("conv_L_cache" if in_folder(s) else "shortconv.l_cache")
    if taps < 1:
        raise s.fail(f"a convolution over {taps} tokens")
    biased = s.flag("conv_bias") if in_folder(s) else s.shape("conv_bias") is not None
    conv = ShortConv(taps, biased)
    table, mask = read_rope(s, sizes.head_dim), decoder.mask_of(decoder.read_causal(s), None)
    s.say("conv_layers", tuple(convs))
    ffn = read(s, sizes.layers)
    decoder.read_tied(s)
    how = decoder.attention_of(s, sizes, table=table, mask=mask, norms=sizes.norm())
    return decoder.build_decoder(
        sizes, lambda layer: partial(place_short_conv, how=conv) if convs[layer] else how, ffn
    )


def build(s: Settings) -> Graph:
    return build_with(s, read_ffn)


FAMILY = Family(
    Table((*TENSORS, *DENSE)),
    build,
    Defaults(hf=HF, gguf={"rope_theta": 1e4}),
    aliases=ALIASES,
    published=PUBLISHED,
)
