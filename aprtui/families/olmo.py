"""OLMo: LayerNorms without weights, a limit of q, k and v."""

from __future__ import annotations

from aprtui.families import classic, decoder
from aprtui.families.decoder import Frame
from aprtui.families.family import Family
from aprtui.families.rope import read_rope
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import ATTENTION, DENSE, OUTPUT_BIAS, QKV_BIAS, WHOLE, Table
from aprtui.graph import Graph

__all__ = ["FAMILY"]

_HF = {
    "vocab_size": 50_304, "hidden_size": 4096, "intermediate_size": 11_008, "num_layers": 32,
    "num_heads": 32, "num_kv_heads": None, "hidden_act": "silu", "max_positions": 2048,
    "tie_word_embeddings": False, "rope_theta": 1e4, "attention_bias": False, "clip_qkv": None,
}  # fmt: skip
_EPS = 1e-5  # of transformers, which has no key for it
_TENSORS = tuple(tensor for tensor in WHOLE if tensor.role != "final_norm")


def build(s: Settings) -> Graph:
    sizes = decoder.read_sizes(s, _EPS if classic.in_folder(s) else "layer_norm_eps")
    ffn, activation = decoder.read_ffn(s), s.activation("hidden_act", "silu")
    table, biases = read_rope(s, sizes.head_dim), decoder.read_biases(s)
    if classic.in_folder(s):
        clip = s.number("clip_qkv", null=None)
        if clip is not None and clip <= 0:
            raise s.fail(f"clip_qkv is {clip:g}, no limit")
    else:
        clip = s.number("attention.clamp_kqv", 0.0) or None
    mask = decoder.mask_of(decoder.read_causal(s), None)
    decoder.read_tied(s)
    how = decoder.attention_of(s, sizes, table=table, mask=mask, clip=clip, **biases)
    return decoder.build_decoder(
        sizes,
        lambda layer: how,
        lambda b, x: b.gated_mlp(x, ffn, activation),
        Frame(norm=classic.layer_norm(sizes, biased=False), bare_norms=True),
    )


FAMILY = Family(
    Table((*_TENSORS, *ATTENTION, *QKV_BIAS, *OUTPUT_BIAS, *DENSE)),
    build,
    Defaults(hf=_HF, gguf={"rope_theta": 1e4}),
    adjacent_in_gguf=True,
)
