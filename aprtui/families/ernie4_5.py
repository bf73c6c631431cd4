"""ERNIE 4.5: llama whose pairs of channels lie side by side in every format."""

from __future__ import annotations

from aprtui.families import decoder
from aprtui.families.family import Family
from aprtui.families.keys import only
from aprtui.families.rope import read_rope
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import ATTENTION, DENSE, PRE_NORMS, WHOLE, Table
from aprtui.graph import Graph

__all__ = ["FAMILY"]

_HF = {
    "vocab_size": 103_424, "hidden_size": 1024, "intermediate_size": 3072, "num_layers": 18,
    "num_heads": 16, "num_kv_heads": 2, "head_dim": 128, "hidden_act": "silu",
    "max_positions": 131_072, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
    "rope_theta": 5e5,
}  # fmt: skip


def build(s: Settings) -> Graph:
    sizes = decoder.read_sizes(s)
    ffn, activation = decoder.read_ffn(s), s.activation("hidden_act", "silu")
    s.must_be("use_bias", (False, None), "the products have biases")
    table = read_rope(s, sizes.head_dim)
    mask = decoder.mask_of(decoder.read_causal(s), None)
    decoder.read_tied(s)
    how = decoder.attention_of(s, sizes, table=table, mask=mask)
    return decoder.build_decoder(
        sizes, lambda layer: how, lambda b, x: b.gated_mlp(x, ffn, activation)
    )


FAMILY = Family(
    Table((*WHOLE, *PRE_NORMS, *ATTENTION, *DENSE)),
    build,
    Defaults(hf=_HF, gguf={"rope_theta": 1e4}),
    adjacent=True,
    published={"compression_ratio": only(1.0), "use_rmsnorm": only(True)},
)
