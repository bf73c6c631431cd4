"""DeepSeek-V3.2: DeepSeek-V3 whose attention looks at the keys that an indexer chooses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from aprtui.families import decoder, deepseek_v3, routers
from aprtui.families.classic import in_folder, pass_over
from aprtui.families.family import Family
from aprtui.families.glm4moe import read_sparse_ffn
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import Table, layer_tensor
from aprtui.graph import Graph
from aprtui.graph.indexer import Indexer
from aprtui.graph.latent import LatentAttention

__all__ = ["FAMILY", "HF", "TABLE", "build_with"]

HF = {
    "vocab_size": 129_280, "hidden_size": 7168, "intermediate_size": 18_432, "num_layers": 61,
    "num_heads": 128, "num_kv_heads": 128, "hidden_act": "silu", "max_positions": 163_840,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "rope_theta": 1e4,
    "attention_bias": False, "moe_intermediate_size": 2048, "num_experts_per_tok": 8,
    "n_shared_experts": 1, "n_routed_experts": 256, "routed_scaling_factor": 2.5, "n_group": 8,
    "topk_group": 4, "norm_topk_prob": True, "kv_lora_rank": 512, "q_lora_rank": 1536,
    "qk_rope_head_dim": 64, "v_head_dim": 128, "qk_nope_head_dim": 128, "index_topk": 2048,
    "index_head_dim": 128, "index_n_heads": 64, "first_k_dense_replace": 3,
}  # fmt: skip
_EPS = 1e-6  # of the LayerNorm of the indexer's keys
_GGUF_KEYS = {
    "index_n_heads": "attention.indexer.head_count",
    "index_head_dim": "attention.indexer.key_length",
    "index_topk": "attention.indexer.top_k",
}  # fmt: skip
_MODULES = {
    "index_q.weight": ("wq_b.weight", "attn_q_b.weight"),
    "index_k.weight": ("wk.weight", "attn_k.weight"),
    "index_k_norm.weight": ("k_norm.weight", "k_norm.weight"),
    "index_k_norm.bias": ("k_norm.bias", "k_norm.bias"),
    "index_weights.weight": ("weights_proj.weight", "proj.weight"),
}  # fmt: skip
TABLE = Table((
    *deepseek_v3.TABLE.tensors,
    *(
        layer_tensor(
            role.removesuffix(".weight").replace(".", "_"),
            f"self_attn.indexer.{module}", f"indexer.{gguf}",
        )
        for role, (module, gguf) in _MODULES.items()
    ),
))  # fmt: skip


def _indexer(s: Settings, how: LatentAttention, pairs: str) -> Indexer:
    heads, size, top = (
        s.integer(name if in_folder(s) else key) for name, key in _GGUF_KEYS.items()
    )  # fmt: skip
    if how.q_rank is None:
        raise s.fail("q_lora_rank is null: the indexer's queries are made of that latent")
    if min(heads, top) < 1 or size < how.turned:
        raise s.fail(f"an indexer of {heads} heads of {size} channels that chooses {top} keys")
    assert how.table is not None
    return Indexer(heads, size, top, replace(how.table, pairs=pairs), replace(how.norm, eps=_EPS))


def _ffn(s: Settings, layers: int) -> decoder.Mixer:
    sparse = routers.read_dense_first(s, layers)
    return read_sparse_ffn(s, routers.read_mlp_types(s, sparse) if in_folder(s) else sparse)


def build_with(
    s: Settings, pairs: str, read_shared: Callable[[Settings, int], list[bool]]
) -> Graph:
    """``pairs``: those that turn in the indexer; ``read_shared``: which layers look at the keys
    that the last one before them chose."""

    def indexed(s: Settings, how: LatentAttention, layers: int) -> list[LatentAttention]:
        s.must_be("layer_types", (["indexed_attention"] * layers, None), "its layers differ")
        s.must_be("mlp_bias", (False,), "the FFN's products have biases")
        if not in_folder(s):
            s.must_be("is_causal", (True,), "its indexer then chooses among keys ahead")
        own, last = _indexer(s, how, pairs), 0
        made = []
        for layer, shared in enumerate(read_shared(s, layers)):
            last = last if shared else layer
            made.append(replace(own, shares=last if shared else None))
        return [replace(how, indexer=each) for each in made]

    pass_over(s, "num_kv_heads", null=False)
    return deepseek_v3.build_with(s, _ffn, indexed=indexed)


def build(s: Settings) -> Graph:
    return build_with(s, "halves", lambda s, layers: [False] * layers)


FAMILY = Family(
    TABLE,
    build,
    Defaults(
        hf=HF,
        gguf={"rope_theta": 1e4, "leading_dense_block_count": 0, "nextn_predict_layers": 0},
    ),
    adjacent=True,
)
