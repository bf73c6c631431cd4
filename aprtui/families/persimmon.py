"""Persimmon: LayerNorms of queries and keys too, biases, squared ReLU; q, k and v of each head
stand together; half of each head turns."""

from __future__ import annotations

from aprtui.families import classic, decoder
from aprtui.families.decoder import Frame
from aprtui.families.family import Family
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import NORM_BIASES, PRE_NORMS, WHOLE, Table
from aprtui.graph import Graph

__all__ = ["FAMILY"]

_HF = {
    "vocab_size": 262_144, "hidden_size": 4096, "intermediate_size": 16_384, "num_layers": 36,
    "num_heads": 64, "hidden_act": "relu2", "max_positions": 16_384, "layer_norm_eps": 1e-5,
    "tie_word_embeddings": False, "rope_theta": 1e4, "partial_rotary_factor": 0.5,
    "qk_layernorm": True,
}  # fmt: skip


def build(s: Settings) -> Graph:
    sizes = decoder.read_sizes(s, "layer_norm_eps", kv_heads=0)
    ffn, activation = decoder.read_ffn(s), s.activation("hidden_act", "relu2")
    table, norm = classic.read_part_rope(s, sizes.head_dim), classic.layer_norm(sizes)
    mask = decoder.mask_of(decoder.read_causal(s), None)
    decoder.read_tied(s)
    how = decoder.attention_of(
        s, sizes, table=table, mask=mask, qkv_bias=True, output_bias=True,
        norms=norm if s.flag("qk_layernorm") else None,
    )  # fmt: skip
    return decoder.build_decoder(
        sizes,
        lambda layer: how,
        lambda b, x: b.plain_mlp(x, ffn, activation, biased=True),
        Frame(norm=norm),
    )


FAMILY = Family(
    Table((
        *WHOLE, *PRE_NORMS, *NORM_BIASES, *classic.fused("self_attn.query_key_value", by_head=True),
        *classic.both("o", "self_attn.dense"), *classic.both("q_norm", "self_attn.q_layernorm"),
        *classic.both("k_norm", "self_attn.k_layernorm"),
        *classic.both("up", "mlp.dense_h_to_4h"), *classic.both("down", "mlp.dense_4h_to_h"),
    )),
    build,
    Defaults(hf=_HF),
)  # fmt: skip
