"""Gemma 2: gemma with norms on both sides of each branch, caps on scores and logits, and a window
in every other layer."""

from __future__ import annotations

from aprtui.families import decoder, gemma
from aprtui.families.decoder import Frame
from aprtui.families.family import Family
from aprtui.families.keys import anything
from aprtui.families.rope import read_rope
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import (
    ATTENTION,
    DENSE,
    OUTPUT_BIAS,
    POST_NORMS,
    QKV_BIAS,
    SANDWICH_NORMS,
    WHOLE,
    Table,
)
from aprtui.graph import Graph

__all__ = ["FAMILY"]

_HF = {
    "vocab_size": 256_000, "hidden_size": 2304, "intermediate_size": 9216, "num_layers": 26,
    "num_heads": 8, "num_kv_heads": 4, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
    "max_positions": 8192, "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "rope_theta": 1e4,
    "attention_bias": False, "query_pre_attn_scalar": 256, "sliding_window": 4096,
    "logit_softcap": 30.0, "score_softcap": 50.0,
}  # fmt: skip
_27B_LAYERS = 46  # of the model whose queries are scaled by H/A instead of the head size


def _windows(s: Settings, layers: int) -> list[int | None]:
    return decoder.windows_by_pattern(s, layers, 2, stated=False)


def build(s: Settings) -> Graph:
    sizes = decoder.read_sizes(s)
    ffn, activation = decoder.read_ffn(s), s.activation("hidden_activation", "gelu_tanh")
    gemma.other_activation(s, "hidden_act", activation)
    s.must_be("use_bidirectional_attention", (None, False), "tokens see those that follow")
    table, biases = read_rope(s, sizes.head_dim), decoder.read_biases(s)
    s.must_be("rope_theta_local", (table.theta,), "layers with a window turn by another base")
    windows, causal = _windows(s, sizes.layers), decoder.read_causal(s)
    scale = decoder.query_scale(s, sizes, _27B_LAYERS)
    cap = s.number("score_softcap", null=None)
    frame = Frame(
        after=True,
        offset=gemma.norm_offset(s),
        embedding_scale=gemma.embedding_scale(s, sizes),
        logit_cap=s.number("logit_softcap", null=None),
    )
    decoder.read_tied(s)
    return decoder.build_decoder(
        sizes,
        lambda layer: decoder.attention_of(
            s, sizes, table=table, mask=decoder.mask_of(causal, windows[layer]), scale=scale,
            cap=cap, **biases,
        ),
        lambda b, x: b.gated_mlp(x, ffn, activation),
        frame,
    )  # fmt: skip


FAMILY = Family(
    Table((*WHOLE, *SANDWICH_NORMS, *POST_NORMS, *ATTENTION, *QKV_BIAS, *OUTPUT_BIAS, *DENSE)),
    build,
    Defaults(
        hf=_HF,
        gguf={
            "rope_theta": 1e4, "sliding_window": 4096, "score_softcap": 50.0,
            "logit_softcap": 30.0,
        },
        apr={
            "rope_theta": 1e4, "rms_norm_eps": 1e-6, "sliding_window": 4096,
            "score_softcap": 50.0, "logit_softcap": 30.0,
        },
    ),
    published={"sliding_window_size": anything},
)  # fmt: skip
