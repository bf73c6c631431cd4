"""StarCoder2: LayerNorms and biases on every product, an FFN without a gate."""

from __future__ import annotations

from aprtui.families import classic, decoder
from aprtui.families.decoder import Frame
from aprtui.families.family import Family
from aprtui.families.keys import anything, only
from aprtui.families.rope import read_rope
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import (
    ATTENTION,
    NORM_BIASES,
    OUTPUT_BIAS,
    PRE_NORMS,
    QKV_BIAS,
    WHOLE,
    Table,
)
from aprtui.graph import Graph

__all__ = ["FAMILY"]

_HF = {
    "vocab_size": 49_152, "hidden_size": 3072, "intermediate_size": 12_288, "num_layers": 30,
    "num_heads": 24, "num_kv_heads": 2, "hidden_act": "gelu_pytorch_tanh", "max_positions": 4096,
    "layer_norm_eps": 1e-5, "tie_word_embeddings": True, "rope_theta": 1e4, "use_bias": True,
    "sliding_window": None,
}  # fmt: skip


def _biased(s: Settings) -> bool:
    """Whether all products have biases."""
    if classic.in_folder(s):
        return s.flag("use_bias")
    there = {s.shape(f"{name}_bias") is not None for name in ("q", "o", "up", "down")}
    if len(there) > 1:
        raise s.fail("some products have biases, and some have not")
    return True in there


def build(s: Settings) -> Graph:
    classic.pass_over(s, "mlp_type", "norm_type")
    sizes = decoder.read_sizes(s, "layer_norm_eps", nulls=())
    ffn, activation = decoder.read_ffn(s), s.activation("hidden_act", "gelu_tanh")
    table, biased = read_rope(s, sizes.head_dim), _biased(s)
    windows, causal = decoder.windows_but_in_gguf(s, sizes.layers), decoder.read_causal(s)
    decoder.read_tied(s)
    return decoder.build_decoder(
        sizes,
        lambda layer: decoder.attention_of(
            s, sizes, table=table, mask=decoder.mask_of(causal, windows[layer]), qkv_bias=biased,
            output_bias=biased,
        ),
        lambda b, x: b.plain_mlp(x, ffn, activation, biased=biased),
        Frame(norm=classic.layer_norm(sizes)),
    )  # fmt: skip


_UNREAD = ("activation_function", "attention_softmax_in_fp32", "layer_norm_epsilon",
           "scale_attention_softmax_in_fp32")  # fmt: skip

FAMILY = Family(
    Table((
        *WHOLE, *PRE_NORMS, *NORM_BIASES, *ATTENTION, *QKV_BIAS, *OUTPUT_BIAS,
        *classic.both("up", "mlp.c_fc", "ffn_up"), *classic.both("down", "mlp.c_proj", "ffn_down"),
    )),
    build,
    Defaults(hf=_HF, gguf={"rope_theta": 1e4}),
    aliases={"norm_epsilon": "layer_norm_eps", "layer_norm_eps": "unread_eps"},
    published={
        **dict.fromkeys(_UNREAD, anything), "scale_attn_weights": only(True),
    },
)  # fmt: skip
