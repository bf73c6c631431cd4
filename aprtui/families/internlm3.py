"""InternLM3: llama by other names of two keys; GGUF files of it bear llama's."""

from __future__ import annotations

from aprtui.families import decoder, llama
from aprtui.families.family import Family
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import ATTENTION, DENSE, PRE_NORMS, WHOLE, Table
from aprtui.graph import Graph

__all__ = ["FAMILY"]

_HF = {
    "vocab_size": 128_512, "hidden_size": 4096, "intermediate_size": 10_240, "num_layers": 48,
    "num_heads": 32, "num_kv_heads": 2, "head_dim": 128, "hidden_act": "silu",
    "max_positions": 32_768, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    "rope_theta": 1e4,
}  # fmt: skip


def build(s: Settings) -> Graph:
    for key in ("attention_bias", "qkv_bias", "bias"):  # transformers has all of them or none
        s.must_be(key, (False,), "products have biases")
    sizes = decoder.read_sizes(s)
    return llama.build_with_windows(s, sizes, [None] * sizes.layers)


FAMILY = Family(
    Table((*WHOLE, *PRE_NORMS, *ATTENTION, *DENSE)),
    build,
    Defaults(hf=_HF, apr={"rope_theta": 5e7, "rms_norm_eps": 1e-5}),
)
