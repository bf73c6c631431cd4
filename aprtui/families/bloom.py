"""BLOOM: ALiBi, a LayerNorm of the embedding too, biases everywhere; q, k and v of each head stand
together."""

from __future__ import annotations

from aprtui.families import classic, decoder
from aprtui.families.decoder import Frame
from aprtui.families.family import Family
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import NORM_BIASES, PRE_NORMS, WHOLE, Table, Tensor
from aprtui.graph import Graph

__all__ = ["FAMILY"]

_HF = {
    "vocab_size": 250_880, "hidden_size": 64, "num_layers": 2, "num_heads": 8,
    "layer_norm_eps": 1e-5, "tie_word_embeddings": True, "max_positions": 0,
    "apply_residual_connection_post_layernorm": False,
}  # fmt: skip
_ALIASES = {
    "n_layer": "num_layers", "n_head": "num_heads", "n_embed": "hidden_size",
    "layer_norm_epsilon": "layer_norm_eps",
}  # fmt: skip
_UNREAD = (
    "intermediate_size", "max_position_embeddings", "seq_length", "n_inner",
    "attention_softmax_in_fp32", "masked_softmax_fusion", "offset_alibi", "bias_dropout_fusion",
    "skip_bias_add", "skip_bias_add_qkv",
)  # fmt: skip
_NAMES = ("word_embeddings_layernorm", "token_embd_norm")
_EMBEDDING_NORM = (
    Tensor("embedding_norm", tuple(f"{name}.weight" for name in _NAMES)),
    Tensor("embedding_norm_bias", tuple(f"{name}.bias" for name in _NAMES)),
)


def build(s: Settings) -> Graph:
    if classic.in_folder(s):
        classic.pass_over(s, *_UNREAD)
        s.flag("slow_but_exact", False)
    s.must_be(
        "apply_residual_connection_post_layernorm", (False,), "branches are added to the norm's"
    )
    sizes = decoder.read_sizes(s, "layer_norm_eps", kv_heads=0)
    ffn = 4 * sizes.hidden if classic.in_folder(s) else decoder.read_ffn(s)
    mask = decoder.mask_of(decoder.read_causal(s), None)
    decoder.read_tied(s)
    how = decoder.attention_of(
        s, sizes, table=None, mask=mask, alibi=classic.alibi(sizes.heads), qkv_bias=True,
        output_bias=True,
    )  # fmt: skip
    return decoder.build_decoder(
        sizes,
        lambda layer: how,
        lambda b, x: b.plain_mlp(x, ffn, "gelu_tanh", biased=True),
        Frame(norm=classic.layer_norm(sizes), embedding_norm=True),
    )


FAMILY = Family(
    Table((
        *WHOLE, *_EMBEDDING_NORM, *PRE_NORMS, *NORM_BIASES,
        *classic.fused("self_attention.query_key_value", by_head=True),
        *classic.both("o", "self_attention.dense", "attn_output"),
        *classic.both("up", "mlp.dense_h_to_4h", "ffn_up"),
        *classic.both("down", "mlp.dense_4h_to_h", "ffn_down"),
    )),
    build,
    Defaults(hf=_HF),
    aliases=_ALIASES,
)  # fmt: skip
