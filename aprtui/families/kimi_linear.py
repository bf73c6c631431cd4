"""Kimi Linear: most layers a delta rule whose state decays row by row, the others latent attention
without RoPE; experts chosen by sigmoids beside a shared one, the first layers dense."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from aprtui.families import decoder, deepseek_v3, latent, routers
from aprtui.families.classic import in_folder, pass_over
from aprtui.families.decoder import FULL
from aprtui.families.family import Family
from aprtui.families.glm4moe import read_sparse_ffn
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import Table, Tensor, layer_tensor
from aprtui.graph import Graph
from aprtui.graph.delta import Delta, place_delta
from aprtui.graph.latent import place_latent
from aprtui.graph.recurrent import DeltaRule

__all__ = ["FAMILY"]

_HF = {
    "vocab_size": 163_840, "hidden_size": 2304, "intermediate_size": 9216, "num_layers": 27,
    "num_heads": 32, "num_kv_heads": 32, "hidden_act": "silu", "max_positions": 1_048_576,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "attention_bias": False,
    "moe_intermediate_size": 1024, "num_experts_per_tok": 8, "n_shared_experts": 1,
    "num_experts": 256, "routed_scaling_factor": 2.446, "n_group": 1, "topk_group": 1,
    "norm_topk_prob": True, "kv_lora_rank": 512, "q_lora_rank": None, "qk_rope_head_dim": 64,
    "v_head_dim": 128, "qk_nope_head_dim": 128, "linear_head_dim": 128, "linear_num_heads": 32,
    "linear_conv_kernel_dim": 4, "first_k_dense_replace": 1,
}  # fmt: skip
_ALIASES = {
    "model_max_length": "max_positions", "moe_renormalize": "norm_topk_prob",
    "num_expert_group": "n_group", "num_experts_per_token": "num_experts_per_tok",
    "num_shared_experts": "n_shared_experts",
}  # fmt: skip
_LINEAR, _PERIOD = "linear_attention", 4
_UNIT = 1e-6  # of the length of queries and keys, in transformers
_OLDER = {"head_dim": "linear_head_dim", "num_heads": "linear_num_heads",
          "short_conv_kernel_size": "linear_conv_kernel_dim"}  # fmt: skip
_LISTS = ("full_attn_layers", "kda_layers")
"""Keys of ``linear_attn_config`` in the published config.json: sizes, and layers from 1 on."""


def _module(role: str, module: str, gguf: str) -> Tensor:
    return layer_tensor(role, f"self_attn.{module}.weight", f"{gguf}.weight")


TENSORS = (
    *deepseek_v3.TABLE.tensors,
    # transformers saves dense FFNs as it does those of experts.
    *(layer_tensor(n, f"block_sparse_moe.{n}_proj.weight") for n in ("gate", "up", "down")),
    *(_module(part, f"{part}_proj", f"attn_{part}") for part in "kv"),
    *(_module(f"delta_conv_{part}", f"{part}_conv1d", f"ssm_conv1d_{part}") for part in "qkv"),
    *(
        layer_tensor(role, f"self_attn.{module}", f"self_attn.forget_gate.{module}", gguf)
        for role, module, gguf in (
            ("delta_a_low", "f_a_proj.weight", "ssm_f_a.weight"),
            ("delta_a", "f_b_proj.weight", "ssm_f_b.weight"),
            ("delta_log", "A_log", "ssm_a"),
            ("delta_dt", "dt_bias", "ssm_dt.bias"),
        )
    ),
    _module("delta_b", "b_proj", "ssm_beta"),
    _module("delta_z_low", "g_a_proj", "ssm_g_a"),
    _module("delta_z", "g_b_proj", "ssm_g_b"),
    _module("delta_norm", "o_norm", "ssm_norm"),
)  # fmt: skip


def _older(s: Settings) -> dict[str, Any]:
    """``linear_attn_config``, whose numbers count before those beside it."""
    found = s.take("linear_attn_config", {})
    if not isinstance(found, dict) or not set(found) <= {*_OLDER, *_LISTS}:
        raise s.fail("linear_attn_config is no object, or has a key that is not known")
    return found


def _linear(s: Settings, layers: int) -> list[bool]:
    """Which layers have a delta rule."""
    if not in_folder(s):
        heads = s.take("num_kv_heads")
        if not isinstance(heads, list) or len(heads) < layers:
            raise s.fail(f"num_kv_heads is no list of {layers} numbers, 0 for a delta rule")
        return [not of_layer for of_layer in heads[:layers]]
    types, lists = s.per_layer("layer_types", (str,), None), [_older(s).get(n) for n in _LISTS]
    if types is None and set(_LISTS) <= set(_older(s)):
        both = [each for found in lists if isinstance(found, list) for each in found]
        if len(both) != layers or any(both.count(layer + 1) != 1 for layer in range(layers)):
            raise s.fail("linear_attn_config does not name every layer once, from 1 on")
        return [layer + 1 in (lists[1] or ()) for layer in range(layers)]
    if types is None:
        return [not layer or bool(layer % _PERIOD) for layer in range(layers)]
    if not set(types) <= {FULL, _LINEAR}:
        raise s.fail("layer_types has another kind than full_attention and linear_attention")
    return [kind == _LINEAR for kind in types]


def _delta(s: Settings, sizes: decoder.Sizes) -> Delta:
    size, heads, taps = (
        (_older(s).get(key, s.integer(name)) for key, name in _OLDER.items())
        if in_folder(s)
        else (s.integer("kda.head_dim"), sizes.heads, s.integer("ssm.conv_kernel"))
    )
    if any(type(each) is not int or each < 1 for each in (size, heads, taps)):
        raise s.fail(f"a delta rule of {heads} heads of {size} channels behind {taps} taps")
    rule = DeltaRule(heads, heads, size, size, _UNIT if in_folder(s) else sizes.eps)
    how = Delta(rule, taps, sizes.eps, s.values["activation"], in_folder(s))
    return replace(how, rank=size, gate="sigmoid", split=True, roles="")


def build(s: Settings) -> Graph:
    deepseek_v3.pass_over_drafts(s)
    pass_over(s, "rope_theta", "head_dim", "qk_head_dim")
    for key in ("rope_scaling", "rope_parameters"):
        s.must_be(key, (None, {}), "nothing turns that it could scale")
    for key, only in (("mla_use_nope", True), ("moe_router_activation_func", "sigmoid"),
                      ("use_grouped_topk", True), ("expert_weights_norm", True)):  # fmt: skip
        s.must_be(key, (only,), "the family computes otherwise")
    sizes, parts = latent.read_sizes(s, bound=False)
    linear = _linear(s, sizes.layers)
    s.say("delta_layers", tuple(linear))
    biased = in_folder(s) and s.flag("attention_bias")
    how = latent.read_latent(s, sizes, parts, biased=biased, turns=False)
    sparse = routers.read_dense_first(s, sizes.layers)
    sparse = routers.read_mlp_types(s, sparse) if in_folder(s) else sparse
    ffn = read_sparse_ffn(s, sparse, "num_experts")
    delta = _delta(s, sizes)
    decoder.read_tied(s)
    return decoder.build_decoder(
        sizes,
        lambda layer: (
            partial(place_delta, how=delta) if linear[layer] else partial(place_latent, how=how)
        ),
        ffn,
    )


FAMILY = Family(
    Table(TENSORS),
    build,
    Defaults(hf=_HF, gguf={"expert_weights_norm": True, "leading_dense_block_count": 0}),
    _ALIASES,
)
