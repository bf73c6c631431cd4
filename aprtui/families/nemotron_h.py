"""Nemotron-H and Nemotron 3: every layer one branch behind its norm, which is a Mamba 2 scan,
attention that turns nothing, an FFN without a gate, or experts without one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from aprtui.families import decoder, routers
from aprtui.families.classic import both, in_folder, pass_over
from aprtui.families.family import Family
from aprtui.families.keys import anything
from aprtui.families.mamba2 import check_chunk, read_gguf_scan, scan_tensors
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import WHOLE, Table, Tensor, layer_tensor
from aprtui.formats.tracedir import StageKey
from aprtui.graph import Graph
from aprtui.graph.blocks import Builder
from aprtui.graph.mamba2 import Mamba2, place_mamba2
from aprtui.graph.recurrent import Scan
from aprtui.graph.role import Role

__all__ = ["FAMILY"]

_HF = {
    "vocab_size": 131_072, "hidden_size": 4096, "num_heads": 32, "num_kv_heads": 8,
    "head_dim": 128, "max_positions": 4096, "intermediate_size": 21_504, "mlp_hidden_act": "relu2",
    "mlp_bias": False, "tie_word_embeddings": False, "rms_norm_eps": 1e-5, "ssm_state_size": 128,
    "mamba_num_heads": 128, "mamba_head_dim": 64, "mamba_hidden_act": "silu", "n_groups": 8,
    "conv_kernel": 4, "use_conv_bias": True, "use_bias": False, "time_step_min": 0.001,
    "n_routed_experts": 8, "moe_intermediate_size": 7688, "num_experts_per_tok": 2,
    "moe_shared_expert_intermediate_size": 7688, "routed_scaling_factor": 1.0, "n_group": 1,
    "topk_group": 1, "norm_topk_prob": True,
}  # fmt: skip
_ALIASES = {
    "layer_norm_epsilon": "rms_norm_eps", "rms_norm_eps": "other.rms_norm_eps",
    "num_hidden_layers": "other.layers", "num_local_experts": "n_routed_experts",
    "layer_types": "layers_block_type", "mamba_n_groups": "n_groups", "mamba_d_conv": "conv_kernel",
    "mamba_dt_min": "time_step_min", "mamba_conv_bias": "use_conv_bias",
    "mamba_chunk_size": "chunk_size",
}  # fmt: skip
_UNREAD = (  # by transformers' model
    "other.rms_norm_eps", "other.layers", "sliding_window", "mtp_layers_block_type",
    "mtp_hybrid_override_pattern", "mamba_expand", "mamba_dt_max", "mamba_dt_limit",
    "mamba_dt_init_floor", "layer_norm_eps",
)  # fmt: skip
_UNREAD_VALUES = (
    "num_logits_to_keep", "attention_bias", "use_mamba_kernels", "mamba_proj_bias",
    "mamba_ssm_cache_dtype", "time_step_limit", "expand", "moe_shared_expert_overlap",
    "n_shared_experts", "num_nextn_predict_layers",
)  # fmt: skip
_SCAN, _ATTENTION, _EXPERTS, _FFN = "linear_attention", "full_attention", "moe", "mlp"
_LETTERS = {"M": _SCAN, "E": _EXPERTS, "*": _ATTENTION, "-": _FFN}
_OLD = {"mamba": _SCAN, "attention": _ATTENTION}


def _kinds(s: Settings) -> list[str]:
    """What each layer is."""
    if not in_folder(s):
        return _gguf_kinds(s, s.integer("num_layers"))
    pattern, types = s.take("hybrid_override_pattern", None), s.take("layers_block_type", None)
    if types is None and pattern is None:
        types = [_SCAN, _EXPERTS, _ATTENTION, _FFN]
    if types is None:
        types = [_LETTERS.get(each) for each in pattern] if isinstance(pattern, str) else pattern
    kinds = types if isinstance(types, list) else []
    found = [_OLD.get(each, each) for each in kinds if isinstance(each, str)]
    if not found or len(found) != len(kinds) or not set(found) <= set(_LETTERS.values()):
        raise s.fail(f"layers_block_type is {types!r:.60}")
    s.say("num_layers", len(found))
    return found


def _gguf_kinds(s: Settings, layers: int) -> list[str]:
    """By the key/value heads and the width of each layer's FFN, as llama.cpp tells them apart."""
    heads, widths = (
        stated if isinstance(stated := s.take(name), list) else [stated] * layers
        for name in ("num_kv_heads", "intermediate_size")
    )
    if not len(heads) == len(widths) == layers or not all(
        type(each) is int for each in (*heads, *widths)
    ):
        raise s.fail("num_kv_heads or intermediate_size is not one number a layer")
    ffn = _FFN if s.shape("router") is None else _EXPERTS
    return [
        _ATTENTION if of_key else (ffn if width else _SCAN)
        for of_key, width in zip(heads, widths, strict=True)
    ]


def _read_scan(s: Settings, eps: float) -> Mamba2:
    if not in_folder(s):
        return read_gguf_scan(s, eps)
    check_chunk(s, "chunk_size")
    scan = Scan(
        s.integer("mamba_num_heads"), s.integer("mamba_head_dim"), s.integer("n_groups"),
        s.integer("ssm_state_size"), Role(""), Role(""),
    )  # fmt: skip
    if min(scan.heads, scan.size, scan.groups, scan.state) < 1 or scan.heads % scan.groups:
        raise s.fail(f"{scan.heads} heads of {scan.size} cannot be {scan.groups} groups (n_groups)")
    return Mamba2(
        scan, s.integer("conv_kernel"), eps, s.activation("mamba_hidden_act", "silu"),
        s.flag("use_conv_bias"), s.flag("use_bias"), low=s.number("time_step_min"),
    )  # fmt: skip


def _read_experts(s: Settings) -> decoder.Mixer:
    activation = s.activation("mlp_hidden_act", "relu2")
    renormalise = in_folder(s) and s.flag("norm_topk_prob")
    routing = decoder.read_experts(
        s, "moe_intermediate_size", activation, renormalise=renormalise,
        names=("n_routed_experts", "num_experts_per_tok"),
    )  # fmt: skip
    scale = "routed_scaling_factor"
    routing = routers.read_sigmoid(s, routing, scale, renormalise=renormalise)
    routing = routers.read_groups(s, routing)
    if in_folder(s):
        size = s.integer("moe_shared_expert_intermediate_size")
        routing = replace(routing, shared_size=size, shared_gate=False)
    else:
        routing = routers.read_shared(s, routing, "")
    latent = s.integer("moe_latent_size", None, null=None) or 0
    routing = replace(routing, gated=False, latent=latent)
    return lambda b, x: b.experts(x, routing)


def _read_attention(s: Settings, sizes: decoder.Sizes) -> decoder.Mixer:
    mask = decoder.mask_of(decoder.read_causal(s), None)
    how = decoder.attention_of(s, sizes, table=None, mask=mask)
    s.say("rope_layout", "adjacent" if s.adjacent_rows else "halves")  # as the converter left them
    return lambda b, x: b.attention(x, how)


def _read_ffn(s: Settings) -> decoder.Mixer:
    stated = s.take("intermediate_size")
    size = max(stated) if isinstance(stated, list) else s.integer("intermediate_size")
    activation = s.activation("mlp_hidden_act", "relu2")
    return lambda b, x: b.plain_mlp(x, s.say("intermediate_size", size), activation)


def _read_sizes(s: Settings, layers: int) -> decoder.Sizes:
    stated = s.take("num_kv_heads")
    heads = max(stated) or 1 if isinstance(stated, list) else None
    if in_folder(s):
        pass_over(s, *_UNREAD)
        pass_over(s, *_UNREAD_VALUES, null=False)
        s.must_be("mlp_bias", (False,), "the FFN's products have biases")
        return decoder.read_sizes(s, nulls=("num_kv_heads",), layers=layers)
    pass_over(s, "rope_dim", "rope_theta")
    eps = "rms_norm_eps" if s.has("rms_norm_eps") else "layer_norm_eps"
    pass_over(s, "layer_norm_eps")
    return decoder.read_sizes(s, eps, nulls=(), kv_heads=heads, layers=layers)


def _check_head(s: Settings) -> None:
    """transformers ties nothing here, whatever config.json says."""
    if in_folder(s) and s.flag("tie_word_embeddings") and s.shape("head") is None:
        raise s.fail("there is no lm_head.weight, and the family has no tied models")
    decoder.read_tied(s)


def build(s: Settings) -> Graph:
    kinds = _kinds(s)
    sizes = _read_sizes(s, len(kinds))
    scan = _read_scan(s, sizes.eps)
    readers: Mapping[str, Callable[[], Any]] = {
        _SCAN: lambda: partial(place_mamba2, how=scan),
        _ATTENTION: lambda: _read_attention(s, sizes),
        _EXPERTS: lambda: _read_experts(s),
        _FFN: lambda: _read_ffn(s),
    }
    s.say("scan_layers", tuple(kind == _SCAN for kind in kinds))
    made: dict[str, Callable[[Builder, StageKey], StageKey]] = {
        kind: readers[kind]() for kind in dict.fromkeys(kinds)
    }
    _pass_over_absent(s, made)
    _check_head(s)
    return decoder.build_decoder(sizes, lambda layer: made[kinds[layer]], None)


def _pass_over_absent(s: Settings, kinds: Mapping[str, Any]) -> None:
    """Keys of the branches that no layer is."""
    ffn = ("mlp_hidden_act", "intermediate_size")
    experts = (
        "n_routed_experts", "moe_intermediate_size", "num_experts_per_tok",
        "moe_shared_expert_intermediate_size", "routed_scaling_factor", "n_group", "topk_group",
        "norm_topk_prob", "moe_latent_size",
    )  # fmt: skip
    pass_over(s, "intermediate_size")
    if _EXPERTS not in kinds:
        pass_over(s, *experts, *(ffn if _FFN not in kinds else ()))


FAMILY = Family(
    Table((
        *WHOLE, Tensor("embedding", ("embeddings.weight",)), *scan_tensors("mixer"),
        layer_tensor("attn_norm", "norm.weight", "attn_norm.weight"),
        *(layer_tensor(n, f"mixer.{n}_proj.weight", f"attn_{n}.weight") for n in "qkv"),
        layer_tensor("o", "mixer.o_proj.weight", "attn_output.weight"),
        *(t for n in ("up", "down") for t in both(n, f"mixer.{n}_proj", f"ffn_{n}")),
        layer_tensor("latent_down", "mixer.fc1_latent_proj.weight", "ffn_latent_down.weight"),
        layer_tensor("latent_up", "mixer.fc2_latent_proj.weight", "ffn_latent_up.weight"),
        layer_tensor("router", "mixer.gate.weight", "ffn_gate_inp.weight"),
        layer_tensor("correction_bias", "mixer.gate.e_score_correction_bias", "exp_probs_b.bias"),
        *(
            tensor for n in ("up", "down") for tensor in (
                layer_tensor(f"expert_{n}", f"mixer.experts.{{expert}}.{n}_proj.weight"),
                layer_tensor(f"experts_{n}", f"ffn_{n}_exps.weight", f"mixer.experts.{n}_proj",
                             holds=(f"expert_{n}",), packed=True),
                layer_tensor(f"shared_expert_{n}", f"mixer.shared_experts.{n}_proj.weight",
                             f"ffn_{n}_shexp.weight"),
            )
        ),
    )),
    build,
    Defaults(hf=_HF, gguf={"expert_gating_func": 2, "intermediate_size": 0}),
    aliases=_ALIASES,
    adjacent_in_gguf=True,
    published=dict.fromkeys(
        ("attention_head_dim", "norm_eps", "partial_rotary_factor", "rope_theta"), anything
    ),
)  # fmt: skip
