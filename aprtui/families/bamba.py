"""Bamba: layers of a Mamba 2 scan among some of attention, of whose heads a half turns. Its GGUFs
bear Granite's name and are read as such."""

from __future__ import annotations

from functools import partial

from aprtui.families import decoder
from aprtui.families.classic import pass_over, read_real
from aprtui.families.family import Family
from aprtui.families.granitemoehybrid import MAMBA, read_scan
from aprtui.families.mamba2 import scan_tensors
from aprtui.families.rope import read_rope
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import (
    ATTENTION,
    OUTPUT_BIAS,
    PRE_NORMS,
    QKV_BIAS,
    WHOLE,
    Table,
    layer_tensor,
)
from aprtui.graph import Graph
from aprtui.graph.mamba2 import place_mamba2

__all__ = ["FAMILY"]

_HF = {
    **MAMBA, "vocab_size": 128_000, "hidden_size": 4096, "intermediate_size": 14_336,
    "num_layers": 32, "num_heads": 32, "num_kv_heads": 8, "hidden_act": "silu",
    "max_positions": 262_144, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    "rope_theta": 1e4, "attention_bias": False, "partial_rotary_factor": 0.5,
    "z_loss_coefficient": 0.0,
}  # fmt: skip
_ALIASES = {"partial_rotary_factor": "other.partial", "layer_types": "layers_block_type"}


def build(s: Settings) -> Graph:
    pass_over(s, "num_logits_to_keep", "attn_rotary_emb")
    read_real(s, "z_loss_coefficient")  # of training
    s.must_be("other.partial", (0.5,), "transformers takes 0.5, or what rope_parameters says")
    s.must_be("mlp_bias", (False,), "the FFN's products have biases")
    sizes = decoder.read_sizes(s)
    ffn, activation = decoder.read_ffn(s), s.activation("hidden_act", "silu")
    indices = s.take("attn_layer_indices", None) or []
    if not isinstance(indices, list) or not all(type(each) is int for each in indices):
        raise s.fail(f"attn_layer_indices is {indices!r:.60}")
    table, biases = read_rope(s, sizes.head_dim, partial=True), decoder.read_biases(s)
    mask = decoder.mask_of(decoder.read_causal(s), None)
    scan = read_scan(s, sizes.hidden, sizes.eps, activation)
    decoder.read_tied(s)
    how = decoder.attention_of(s, sizes, table=table, mask=mask, **biases)
    return decoder.build_decoder(
        sizes,
        lambda layer: how if layer in indices else partial(place_mamba2, how=scan),
        lambda b, x: b.gated_mlp(x, ffn, activation),
    )


FAMILY = Family(
    Table((
        *WHOLE, PRE_NORMS[0], layer_tensor("ffn_norm", "pre_ff_layernorm.weight"), *ATTENTION,
        *QKV_BIAS, *OUTPUT_BIAS, *scan_tensors("mamba"),
        *(
            layer_tensor(part, f"feed_forward.{part}_proj.weight")
            for part in ("gate", "up", "down")
        ),
    )),
    build,
    Defaults(hf=_HF),
    aliases=_ALIASES,
)  # fmt: skip
