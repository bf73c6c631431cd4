"""OLMo 2: norms only after the branches, and a QK norm over the whole width of Q and of K."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from aprtui.families import decoder
from aprtui.families.decoder import FULL, SLIDING, Frame, Sizes
from aprtui.families.family import Family
from aprtui.families.rope import read_rope
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import (
    ATTENTION,
    DENSE,
    OUTPUT_BIAS,
    POST_NORMS,
    QK_NORM,
    QKV_BIAS,
    WHOLE,
    Table,
)
from aprtui.graph import Graph
from aprtui.graph.rope import RopeTable

__all__ = ["FAMILY", "build_with"]

_HF = {
    "vocab_size": 50_304, "hidden_size": 4096, "intermediate_size": 11_008, "num_layers": 32,
    "num_heads": 32, "num_kv_heads": None, "hidden_act": "silu", "max_positions": 2048,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "rope_theta": 1e4,
    "attention_bias": False,
}  # fmt: skip
_PERIOD = 4  # of layers without a window, where there are windows


def build_with(
    s: Settings, sizes: Sizes, tables: Mapping[str, RopeTable], windows: Sequence[int | None]
) -> Graph:
    """OLMo 3's graph too, whose layers differ in their window and turn by two tables."""
    ffn, activation = decoder.read_ffn(s), s.activation("hidden_act", "silu")
    biases, causal = decoder.read_biases(s), decoder.read_causal(s)
    norms = replace(sizes.norm(), whole=True)
    decoder.read_tied(s)
    return decoder.build_decoder(
        sizes,
        lambda layer: decoder.attention_of(
            s, sizes, table=tables[FULL if windows[layer] is None else SLIDING],
            mask=decoder.mask_of(causal, windows[layer]), norms=norms, **biases,
        ),
        lambda b, x: b.gated_mlp(x, ffn, activation),
        Frame(before=False, after=True),
    )  # fmt: skip


def build(s: Settings) -> Graph:
    sizes, windows = decoder.read_sizes(s), []
    table = read_rope(s, sizes.head_dim)
    plain = RopeTable(table.dims, table.theta, table.pairs)
    if s.file.format == "gguf" and s.has("sliding_window"):  # OLMo 3's files bear the same name
        s.must_be("rope_theta_local", (table.theta,), "layers with a window turn by another base")
        windows = decoder.windows_by_pattern(s, sizes.layers, _PERIOD)
    return build_with(s, sizes, {FULL: table, SLIDING: plain}, windows or [None] * sizes.layers)


FAMILY = Family(
    Table((*WHOLE, *POST_NORMS, *ATTENTION, *QKV_BIAS, *OUTPUT_BIAS, *QK_NORM, *DENSE)),
    build,
    Defaults(
        hf=_HF,
        gguf={"rope_theta": 1e4, "tie_word_embeddings": False},
        apr={"rope_theta": 1e4, "rms_norm_eps": 1e-5},
    ),
)
