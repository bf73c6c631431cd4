"""Mellum 2: qwen3moe's attention and experts, windows in some layers, which have a RoPE base of
their own. llama.cpp turns all of them by the one base."""

from __future__ import annotations

from aprtui.families import decoder, routers
from aprtui.families.decoder import FULL, SLIDING
from aprtui.families.family import Family
from aprtui.families.rope import read_nested_rope, read_rope
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import (
    ATTENTION,
    DENSE,
    EXPERTS,
    OUTPUT_BIAS,
    PRE_NORMS,
    QK_NORM,
    QKV_BIAS,
    WHOLE,
    Table,
)
from aprtui.graph import Graph
from aprtui.graph.blocks import Attention
from aprtui.graph.rope import RopeTable

__all__ = ["FAMILY"]

_HF = {
    "vocab_size": 98_304, "hidden_size": 2304, "intermediate_size": 7168, "num_layers": 28,
    "num_heads": 32, "num_kv_heads": 4, "head_dim": 128, "hidden_act": "silu",
    "max_positions": 131_072, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
    "attention_bias": False, "sliding_window": 1024, "moe_intermediate_size": 896,
    "num_experts_per_tok": 8, "num_experts": 64, "norm_topk_prob": True,
}  # fmt: skip
_PERIOD = 4  # of llama.cpp's layers without a window, where no key says which slide
_TURNS = {FULL: {"rope_theta": 5e5}, SLIDING: {"rope_theta": 1e4}}


def _tables(s: Settings, head_dim: int) -> dict[str, RopeTable]:
    if s.file.format == "safetensors":
        return read_nested_rope(s, head_dim, _TURNS)
    table, local = read_rope(s, head_dim), s.number("rope_theta_local", None)
    plain = RopeTable(table.dims, table.theta, table.pairs)
    if local not in (None, table.theta):
        s.note(
            f"rope_theta_local {local:g} is not computed, as in llama.cpp v0.5.0: layers with a "
            f"window turn by {table.theta:g} too"
        )
    return {FULL: table, SLIDING: plain}


def _windows(s: Settings, layers: int) -> list[int | None]:
    if s.file.format != "safetensors":
        return decoder.windows_by_pattern(s, layers, _PERIOD)
    window = decoder.read_window(s)
    return decoder.say_windows(s, window, decoder.layer_types(s, [FULL] * layers))


def build(s: Settings) -> Graph:
    sizes = decoder.read_sizes(s)
    activation = s.activation("hidden_act", "silu")
    tables, windows = _tables(s, sizes.head_dim), _windows(s, sizes.layers)
    causal, biases = decoder.read_causal(s), decoder.read_biases(s)
    decoder.read_tied(s)
    for key in ("num_nextn_predict_layers", "num_mtp_layers", "mtp_layer_types",
                "mtp_mlp_layer_types"):  # fmt: skip
        s.must_be(key, (None, 0), "it has layers that draft tokens")
    sparse = routers.read_mlp_types(s, [True] * sizes.layers)
    routing = decoder.read_experts(
        s, "moe_intermediate_size", activation, renormalise=s.flag("norm_topk_prob")
    )
    ffn = decoder.read_mixed_ffn(s, routing, activation, sparse)

    def attention(layer: int) -> Attention:
        kind = FULL if windows[layer] is None else SLIDING
        return decoder.attention_of(
            s, sizes, table=tables[kind], norms=sizes.norm(),
            mask=decoder.mask_of(causal, windows[layer]), **biases,
        )  # fmt: skip

    return decoder.build_decoder(
        sizes,
        attention,
        ffn,
    )


_PARTS = (*WHOLE, *PRE_NORMS, *ATTENTION, *QKV_BIAS, *OUTPUT_BIAS, *QK_NORM)
FAMILY = Family(
    Table((*_PARTS, *DENSE, *EXPERTS)),
    build,
    Defaults(hf=_HF, gguf={"rope_theta": 1e4, "norm_topk_prob": True}),
)
