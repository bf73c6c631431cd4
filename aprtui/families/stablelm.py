"""StableLM: llama with LayerNorms, of which a quarter of each head turns; both branches may read
one norm, and each head of queries and keys have one of its own."""

from __future__ import annotations

from dataclasses import replace

from aprtui.families import classic, decoder
from aprtui.families.decoder import Frame
from aprtui.families.family import Family
from aprtui.families.keys import anything, only
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import (
    ATTENTION,
    DENSE,
    NORM_BIASES,
    PRE_NORMS,
    QKV_BIAS,
    WHOLE,
    Table,
    layer_tensor,
)
from aprtui.graph import Graph, Role

__all__ = ["FAMILY"]

_HF = {
    "vocab_size": 50_304, "hidden_size": 2560, "intermediate_size": 6912, "num_layers": 32,
    "num_heads": 32, "num_kv_heads": 32, "hidden_act": "silu", "max_positions": 4096,
    "layer_norm_eps": 1e-5, "tie_word_embeddings": False, "rope_theta": 1e4,
    "partial_rotary_factor": 0.25, "use_qkv_bias": False, "use_parallel_residual": False,
    "qk_layernorm": False,
}  # fmt: skip


def build(s: Settings) -> Graph:
    sizes = decoder.read_sizes(s, "layer_norm_eps", nulls=())
    ffn, activation = decoder.read_ffn(s), s.activation("hidden_act", "silu")
    table = classic.read_part_rope(s, sizes.head_dim)
    if classic.in_folder(s):
        biased, parallel = s.flag("use_qkv_bias"), s.flag("use_parallel_residual")
        normed = s.flag("qk_layernorm")
    else:  # as in llama.cpp: the tensors tell
        biased, parallel = s.shape("q_bias") is not None, s.shape("ffn_norm") is None
        s.take("stablelm.use_parallel_residual", None)
        normed = s.shape("q_norms") is not None
    mask = decoder.mask_of(decoder.read_causal(s), None)
    decoder.read_tied(s)
    norms = replace(classic.layer_norm(sizes, biased=False), own=(Role("own"),))
    how = decoder.attention_of(
        s, sizes, table=table, mask=mask, qkv_bias=biased, norms=norms if normed else None
    )
    return decoder.build_decoder(
        sizes,
        lambda layer: how,
        lambda b, x: b.gated_mlp(x, ffn, activation),
        Frame(norm=classic.layer_norm(sizes), parallel=parallel),
    )


_NORMS = tuple(
    tensor
    for n in "qk"
    for tensor in (
        layer_tensor(f"{n}_norm", f"self_attn.{n}_layernorm.norms.{{expert}}.weight"),
        layer_tensor(f"{n}_norms", f"attn_{n}_norm.weight", holds=(f"{n}_norm",), packed=True),
    )
)
"""The norms of heads: a tensor each, or of all heads in one."""
FAMILY = Family(
    Table((*WHOLE, *PRE_NORMS, *NORM_BIASES, *ATTENTION, *QKV_BIAS, *DENSE, *_NORMS)),
    build,
    Defaults(hf=_HF, gguf={"rope_theta": 1e4}),
    published={
        "rotary_scaling_factor": only(1.0, 1),
        "norm_eps": anything,
        "rope_pct": anything,
    },
)
