"""Jais 2: LayerNorms with biases, biases on every product, an FFN without a gate, squared ReLU."""

from __future__ import annotations

from dataclasses import replace

from aprtui.families import decoder
from aprtui.families.decoder import Frame
from aprtui.families.family import Family
from aprtui.families.rope import read_rope
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import (
    ATTENTION,
    DENSE,
    MLP_BIAS,
    NORM_BIASES,
    OUTPUT_BIAS,
    PRE_NORMS,
    QKV_BIAS,
    WHOLE,
    Table,
)
from aprtui.graph import Graph, Role

__all__ = ["FAMILY"]

_HF = {
    "vocab_size": 150_272, "hidden_size": 3328, "intermediate_size": 26_624, "num_layers": 32,
    "num_heads": 26, "num_kv_heads": None, "head_dim": None, "hidden_act": "relu2",
    "max_positions": 8192, "layer_norm_eps": 1e-5, "tie_word_embeddings": False,
    "rope_theta": 1e4, "attention_bias": True, "mlp_bias": True,
}  # fmt: skip


def build(s: Settings) -> Graph:
    sizes = decoder.read_sizes(s, "layer_norm_eps")
    if s.file.format == "safetensors" and sizes.hidden % sizes.heads:
        raise s.fail(f"hidden_size {sizes.hidden} is no multiple of num_heads {sizes.heads}")
    ffn, activation = decoder.read_ffn(s), s.activation("hidden_act", "relu2")
    table, biased = read_rope(s, sizes.head_dim), decoder.read_mlp_bias(s)
    mask, biases = decoder.mask_of(decoder.read_causal(s), None), decoder.read_biases(s)
    norm = replace(sizes.norm(), centred=True, bias=Role("bias"))
    decoder.read_tied(s)
    how = decoder.attention_of(s, sizes, table=table, mask=mask, **biases)
    return decoder.build_decoder(
        sizes,
        lambda layer: how,
        lambda b, x: b.plain_mlp(x, ffn, activation, biased=biased),
        Frame(norm=norm),
    )


FAMILY = Family(
    Table((
        *WHOLE, *PRE_NORMS, *NORM_BIASES, *ATTENTION, *QKV_BIAS, *OUTPUT_BIAS, *DENSE[1:],
        *MLP_BIAS[1:],
    )),
    build,
    Defaults(
        hf=_HF, gguf={"rope_theta": 1e4}, apr={"rope_theta": 1e4, "layer_norm_eps": 1e-5}
    ),
)  # fmt: skip
