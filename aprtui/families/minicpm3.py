"""MiniCPM3: latent attention that turns halves, and factors on embedding, branches and logits."""

from __future__ import annotations

import math
from functools import partial

from aprtui.families import decoder, latent
from aprtui.families.classic import in_folder
from aprtui.families.decoder import Frame
from aprtui.families.family import Family
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import DENSE, PRE_NORMS, WHOLE, Table
from aprtui.graph import Graph
from aprtui.graph.latent import place_latent

__all__ = ["FAMILY"]

_FACTORS = {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 256}  # llama.cpp's too
_HF = {
    "vocab_size": 73_448, "hidden_size": 2560, "intermediate_size": 6400, "num_layers": 62,
    "num_heads": 40, "num_kv_heads": 40, "hidden_act": "silu", "max_positions": 32_768,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "rope_theta": 1e4, "attention_bias": False,
    "kv_lora_rank": 256, "q_lora_rank": 768, "qk_rope_head_dim": 32, "v_head_dim": None,
    "qk_nope_head_dim": 64, **_FACTORS,
}  # fmt: skip


def build(s: Settings) -> Graph:
    sizes, parts = latent.read_sizes(s)
    ffn, activation = decoder.read_ffn(s), s.activation("hidden_act", "silu")
    s.must_be("mlp_bias", (False,), "the FFN's products have biases")
    biased = in_folder(s) and s.flag("attention_bias")
    how = latent.read_latent(s, sizes, parts, biased=biased)
    root = math.sqrt(sizes.layers)
    depth = s.number("scale_depth", null=root)
    base = s.integer("dim_model_base", null=sizes.hidden)
    if base < 1:
        raise s.fail(f"dim_model_base is {base}")
    decoder.read_tied(s)
    return decoder.build_decoder(
        sizes,
        lambda layer: partial(place_latent, how=how),
        lambda b, x: b.gated_mlp(x, ffn, activation),
        Frame(
            embedding_scale=s.number("scale_emb"),
            branch_scale=s.say("residual_multiplier", depth / root),
            logit_scale=s.say("logit_scale", base / sizes.hidden),
        ),
    )


FAMILY = Family(
    Table((*WHOLE, *PRE_NORMS, *latent.TENSORS, *DENSE)),
    build,
    Defaults(hf=_HF, gguf={"rope_theta": 1e4, **_FACTORS}),
)
