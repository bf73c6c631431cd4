"""K-EXAONE: qwen3's attention, turned in the layers with a window alone; glm4moe's FFN."""

from __future__ import annotations

from aprtui.families import decoder, routers
from aprtui.families.family import Family
from aprtui.families.glm4moe import read_sparse_ffn
from aprtui.families.rope import read_rope
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import (
    ATTENTION,
    CORRECTION_BIAS,
    DENSE,
    EXPERTS,
    PRE_NORMS,
    QK_NORM,
    SHARED_EXPERT,
    WHOLE,
    Table,
)
from aprtui.graph import Graph
from aprtui.graph.blocks import Attention

__all__ = ["FAMILY"]

_HF = {
    "vocab_size": 102_400, "hidden_size": 4096, "intermediate_size": 16_384, "num_layers": 32,
    "num_heads": 32, "num_kv_heads": 32, "hidden_act": "silu", "max_positions": 2048,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "rope_theta": 1e4,
    "sliding_window": 4096, "first_k_dense_replace": 1, "moe_intermediate_size": 1024,
    "num_experts": 64, "num_experts_per_tok": 8, "num_shared_experts": 1,
    "norm_topk_prob": True, "routed_scaling_factor": 2.5, "n_group": 1, "topk_group": 1,
}  # fmt: skip
_PERIOD = 4  # of layers without a window


def build(s: Settings) -> Graph:
    sizes = decoder.read_sizes(s)
    sparse = routers.read_mlp_types(s, routers.read_dense_first(s, sizes.layers))
    ffn = read_sparse_ffn(s, sparse, "num_experts", "num_shared_experts")
    table, causal = read_rope(s, sizes.head_dim), decoder.read_causal(s)
    windows, window = decoder.windows_by_pattern(s, sizes.layers, _PERIOD), decoder.read_window(s)
    decoder.read_tied(s)

    def attention(layer: int) -> Attention:
        turned = window is None or windows[layer] is not None
        return decoder.attention_of(
            s, sizes, table=table if turned else None, norms=sizes.norm(),
            mask=decoder.mask_of(causal, windows[layer]),
        )  # fmt: skip

    return decoder.build_decoder(sizes, attention, ffn)


_PARTS = (*WHOLE, *PRE_NORMS, *ATTENTION, *QK_NORM, *DENSE)
FAMILY = Family(
    Table((*_PARTS, *EXPERTS, *SHARED_EXPERT, *CORRECTION_BIAS)),
    build,
    Defaults(hf=_HF, gguf={"rope_theta": 1e4, "nextn_predict_layers": 0}),
)
