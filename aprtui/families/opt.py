"""OPT: LayerNorms before the branches, biases, ReLU, learned positions from the third row of their
table on. OPT-350m, which normalises behind its branches, is not computed."""

from __future__ import annotations

from aprtui.families import classic, decoder, gpt2
from aprtui.families.decoder import Frame
from aprtui.families.family import Family
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import NORM_BIASES, WHOLE, Table, layer_tensor
from aprtui.graph import Graph

__all__ = ["FAMILY"]

_HF = {
    "vocab_size": 50_272, "hidden_size": 768, "num_layers": 12, "num_heads": 12, "ffn_dim": 3072,
    "max_positions": 2048, "activation_function": "relu", "tie_word_embeddings": True,
}  # fmt: skip
_ONLY = {
    "do_layer_norm_before": True, "_remove_final_layer_norm": False, "enable_bias": True,
    "layer_norm_elementwise_affine": True,
}  # fmt: skip
_EPS = 1e-5  # there is no key for it
_FIRST = 2  # the row of position 0


def build(s: Settings) -> Graph:
    classic.pass_over(s, "intermediate_size")
    for key, value in _ONLY.items():
        s.must_be(key, (value,), "norms or biases are elsewhere")
    sizes = decoder.read_sizes(s, _EPS, kv_heads=0)
    s.must_be("word_embed_proj_dim", (None, sizes.hidden), "the embedding has another width")
    ffn, activation = s.integer("ffn_dim"), s.activation("activation_function", "relu")
    mask = decoder.mask_of(decoder.read_causal(s), None)
    decoder.read_tied(s)
    how = decoder.attention_of(s, sizes, table=None, mask=mask, qkv_bias=True, output_bias=True)
    rows = s.values["max_positions"] + _FIRST
    return decoder.build_decoder(
        sizes,
        lambda layer: how,
        lambda b, x: b.plain_mlp(x, ffn, activation, biased=True),
        Frame(norm=classic.layer_norm(sizes), positions=(rows, _FIRST)),
    )


FAMILY = Family(
    Table((
        *WHOLE, NORM_BIASES[-1], gpt2.POSITIONS,
        *classic.both("attn_norm", "self_attn_layer_norm"),
        *classic.both("ffn_norm", "final_layer_norm"),
        *(layer_tensor(part, f"self_attn.{part}_proj.weight") for part in "qkv"),
        *(layer_tensor(f"{part}_bias", f"self_attn.{part}_proj.bias") for part in "qkv"),
        *classic.both("o", "self_attn.out_proj"), *classic.both("up", "fc1"),
        *classic.both("down", "fc2"),
    )),
    build,
    Defaults(hf=_HF),
)  # fmt: skip
