"""Phi (1, 1.5, 2): both branches read one LayerNorm, biases everywhere, on the head too; a part of
each head turns."""

from __future__ import annotations

from aprtui.families import classic, decoder
from aprtui.families.decoder import Frame
from aprtui.families.family import Family
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import (
    ATTENTION,
    NORM_BIASES,
    PRE_NORMS,
    QKV_BIAS,
    WHOLE,
    Table,
    Tensor,
)
from aprtui.graph import Graph

__all__ = ["FAMILY"]

_HF = {
    "vocab_size": 51_200, "hidden_size": 2048, "intermediate_size": 8192, "num_layers": 24,
    "num_heads": 32, "num_kv_heads": None, "hidden_act": "gelu_new", "max_positions": 2048,
    "layer_norm_eps": 1e-5, "tie_word_embeddings": False, "rope_theta": 1e4,
    "partial_rotary_factor": 0.5, "qk_layernorm": False,
}  # fmt: skip


def build(s: Settings) -> Graph:
    sizes = decoder.read_sizes(s, "layer_norm_eps")
    ffn, activation = decoder.read_ffn(s), s.activation("hidden_act", "gelu_tanh")
    table = classic.read_part_rope(s, sizes.head_dim)
    norm = classic.layer_norm(sizes)
    normed = classic.in_folder(s) and s.flag("qk_layernorm")
    mask = decoder.mask_of(decoder.read_causal(s), None)
    decoder.read_tied(s)
    how = decoder.attention_of(
        s, sizes, table=table, mask=mask, qkv_bias=True, output_bias=True,
        norms=norm if normed else None,
    )  # fmt: skip
    return decoder.build_decoder(
        sizes,
        lambda layer: how,
        lambda b, x: b.plain_mlp(x, ffn, activation, biased=True),
        Frame(norm=norm, parallel=True, head_bias=True),
    )


FAMILY = Family(
    Table((
        *WHOLE, Tensor("head_bias", ("lm_head.bias", "output.bias")), PRE_NORMS[0],
        NORM_BIASES[0], NORM_BIASES[-1], *ATTENTION[:-1], *QKV_BIAS,
        *classic.both("o", "self_attn.dense", "attn_output"),
        *classic.both("q_norm", "self_attn.q_layernorm"),
        *classic.both("k_norm", "self_attn.k_layernorm"),
        *classic.both("up", "mlp.fc1", "ffn_up"), *classic.both("down", "mlp.fc2", "ffn_down"),
    )),
    build,
    Defaults(hf=_HF, gguf={"rope_theta": 1e4}),
)  # fmt: skip
