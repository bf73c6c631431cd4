"""GLM-5: DeepSeek-V3.2 whose indexer turns neighbouring channels, and whose layers may look at the
keys that an earlier one chose."""

from __future__ import annotations

from aprtui.families import deepseek_v32
from aprtui.families.classic import in_folder
from aprtui.families.family import Family
from aprtui.families.settings import Defaults, Settings
from aprtui.graph import Graph

__all__ = ["FAMILY"]

_HF = {
    **deepseek_v32.HF,
    "vocab_size": 154_880, "hidden_size": 6144, "intermediate_size": 12_288, "num_layers": 78,
    "num_heads": 64, "num_kv_heads": 64, "max_positions": 202_752, "rms_norm_eps": 1e-5,
    "n_group": 1, "topk_group": 1, "q_lora_rank": 2048, "v_head_dim": 256,
    "qk_nope_head_dim": 192, "index_n_heads": 32,
}  # fmt: skip
_LONG = (
    1_048_576  # positions from which on llama.cpp takes the file for GLM-5.2, whose layers share
)
_KINDS = {"F": "full", "S": "shared"}


def _shared(s: Settings, layers: int) -> list[bool]:
    """Which layers have no indexer of their own: never the first."""
    if in_folder(s):
        types = _types(s, layers)
    else:
        stated = s.per_layer("attention.indexer.types", (bool,), None)
        if stated is None and s.values["max_positions"] >= _LONG:
            raise s.fail("attention.indexer.types is not stated, and a model of so many positions "
                         "may share indexers")  # fmt: skip
        types = ["shared" if own is False else "full" for own in stated or [True] * layers]
    if len(types) != layers or not set(types) <= set(_KINDS.values()) or types[0] != "full":
        raise s.fail("indexer_types must say full or shared of each layer, full of the first")
    return [kind == "shared" for kind in types]


def _types(s: Settings, layers: int) -> list[str]:
    """``indexer_types``, else a pattern, else how often a layer chooses."""
    stated, pattern = s.take("indexer_types", None), s.take("index_topk_pattern", None)
    every, first = s.take("index_topk_freq", 1), s.take("index_skip_topk_offset", 2)
    for found in (stated, pattern):
        if isinstance(found, list):
            return [str(each) for each in found]
        if found is not None and found is pattern and isinstance(pattern, str):
            return [_KINDS.get(letter, letter) for letter in pattern]
        if found is not None:
            raise s.fail("indexer_types or index_topk_pattern cannot be read")
    if type(every) is not int or type(first) is not int:
        raise s.fail("index_topk_freq or index_skip_topk_offset is no whole number")
    spared = (max(layer - first + 1, 0) % max(every, 1) for layer in range(layers))
    return ["shared" if each else "full" for each in spared]


def build(s: Settings) -> Graph:
    return deepseek_v32.build_with(s, "adjacent", _shared)


FAMILY = Family(
    deepseek_v32.TABLE,
    build,
    Defaults(
        hf=_HF,
        gguf={
            "rope_theta": 1e4, "leading_dense_block_count": 0, "nextn_predict_layers": 0,
            "expert_gating_func": 2,
        },
    ),
    adjacent=True,
)  # fmt: skip
