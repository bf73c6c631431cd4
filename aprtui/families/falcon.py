"""Falcon: both branches of one hidden, each with a LayerNorm of its own or both with one; rows of
q, k and v stand by key/value head. Some turn nothing and have ALiBi, in bfloat16 and scaled as the
scores are."""

from __future__ import annotations

from dataclasses import replace

from aprtui.families import classic, decoder
from aprtui.families.decoder import Frame, Sizes
from aprtui.families.family import Family
from aprtui.families.keys import only
from aprtui.families.rope import read_rope
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import NORM_BIASES, WHOLE, Table
from aprtui.graph import Graph

__all__ = ["FAMILY"]

_HF = {
    "vocab_size": 65_024, "hidden_size": 4544, "num_layers": 32, "num_heads": 71,
    "num_kv_heads": None, "activation": "gelu", "max_positions": 2048, "layer_norm_eps": 1e-5,
    "tie_word_embeddings": True, "rope_theta": 1e4, "ffn_hidden_size": None, "bias": False,
    "alibi": False, "new_decoder_architecture": False, "multi_query": True, "parallel_attn": True,
    "num_ln_in_parallel_attn": None,
}  # fmt: skip
_ALIASES = {
    "num_kv_heads": "num_kv_heads", "num_key_value_heads": "unread_kv_heads",
    "layer_norm_epsilon": "layer_norm_eps", "n_embed": "hidden_size",
}  # fmt: skip
_TWO = ("attn_norm_2", "attn_norm")  # of the attention and of the FFN, as llama.cpp calls them


def _order(s: Settings) -> tuple[bool, tuple[str, str] | None]:
    """Whether both branches are added at once, and their norms where they have one each."""
    if not classic.in_folder(s):
        return True, _TWO if s.shape("attn_norm_2") is not None else None
    newer, parallel = s.flag("new_decoder_architecture"), s.flag("parallel_attn")
    norms = s.integer("num_ln_in_parallel_attn", null=2 if newer else 1)
    if (newer and not parallel) or norms not in (1, 2) or (norms == 2 and not newer and parallel):
        raise s.fail(
            f"new_decoder_architecture {newer} with parallel_attn {parallel} and "
            f"num_ln_in_parallel_attn {norms}: no published model has it"
        )
    return parallel, _TWO if newer and norms == 2 else None


def _sizes(s: Settings) -> Sizes:
    if not classic.in_folder(s):
        return decoder.read_sizes(s, "layer_norm_eps")
    classic.pass_over(s, "unread_kv_heads", "intermediate_size")
    newer, one = s.flag("new_decoder_architecture"), s.flag("multi_query")
    if newer:
        return decoder.read_sizes(s, "layer_norm_eps")
    stated = s.take("num_kv_heads")
    heads = s.integer("num_heads")
    if not one and stated not in (None, heads):
        raise s.fail(f"num_kv_heads is {stated!r:.40} and each of the {heads} heads has its own")
    return decoder.read_sizes(s, "layer_norm_eps", kv_heads=1 if one else 0)


def build(s: Settings) -> Graph:
    sizes, (parallel, two) = _sizes(s), _order(s)
    ffn = classic.read_ffn(s, "ffn_hidden_size", sizes.hidden)
    activation = s.activation("activation", "gelu_tanh")
    table, biased = read_rope(s, sizes.head_dim), classic.in_folder(s) and s.flag("bias")
    mask = decoder.mask_of(decoder.read_causal(s), None)
    decoder.read_tied(s)
    scale = sizes.head_dim**-0.5
    alibi = replace(classic.alibi(sizes.heads), narrow=True, scale=scale)
    sloped = classic.in_folder(s) and s.flag("alibi", null=False)
    how = decoder.attention_of(
        s, sizes, table=None if sloped else table, alibi=alibi if sloped else None, mask=mask,
        scale=scale, qkv_bias=biased, output_bias=biased,
    )  # fmt: skip
    return decoder.build_decoder(
        sizes,
        lambda layer: how,
        lambda b, x: b.plain_mlp(x, ffn, activation, biased=biased),
        Frame(norm=classic.layer_norm(sizes), parallel=parallel, two_norms=two),
    )


FAMILY = Family(
    Table((
        *WHOLE, NORM_BIASES[-1],
        *classic.both("attn_norm", "input_layernorm", "ln_mlp", "attn_norm"),
        *classic.both("attn_norm_2", "ln_attn", "attn_norm_2"),
        *classic.both("ffn_norm", "post_attention_layernorm"),
        *classic.fused("self_attention.query_key_value", by_head=True),
        *classic.both("o", "self_attention.dense", "attn_output"),
        *classic.both("up", "mlp.dense_h_to_4h", "ffn_up"),
        *classic.both("down", "mlp.dense_4h_to_h", "ffn_down"),
    )),
    build,
    Defaults(hf=_HF, gguf={"rope_theta": 1e4}),
    aliases=_ALIASES,
    published={"apply_residual_connection_post_layernorm": only(False)},
)  # fmt: skip
