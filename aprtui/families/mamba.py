"""Mamba: every layer a scan of single channels, and no FFN. Falcon Mamba's GGUFs bear its name, and
say that they have norms of the steps, b and c."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from aprtui.families import decoder
from aprtui.families.classic import both, in_folder, pass_over, read_real
from aprtui.families.family import Family
from aprtui.families.keys import anything, only
from aprtui.families.mamba2 import check_drawn
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import WHOLE, Table, Tensor, layer_tensor
from aprtui.graph import Graph
from aprtui.graph.mamba import Mamba, place_mamba
from aprtui.graph.ops import Norm

__all__ = ["ALIASES", "FAMILY", "HF", "TABLE", "build_with", "channel_tensors", "checked"]
__all__ += ["read_gguf_channels", "read_rank"]

HF = {
    "vocab_size": 50_280, "hidden_size": 768, "num_layers": 32, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True, "state_size": 16, "expand": 2, "conv_kernel": 4,
    "time_step_rank": "auto", "use_bias": False, "use_conv_bias": True, "hidden_act": "silu",
    "max_positions": 0, "time_step_scale": 1.0,
}  # fmt: skip
ALIASES = {
    "layer_norm_epsilon": "rms_norm_eps", "rms_norm_eps": "other.rms_norm_eps",
    "max_position_embeddings": "other.positions",
}  # fmt: skip
_UNREAD = ("other.rms_norm_eps", "other.positions", "num_heads", "num_kv_heads")
_UNREAD_VALUES = (  # of how the scan is computed, and of drawing weights
    "use_mambapy",
    "use_falcon_mambapy",
    "use_associative_scan",
    "time_step_init_scheme",
)


def channel_tensors(module: str) -> tuple[Tensor, ...]:
    """The tensors of a layer's scan of channels, by transformers' module."""
    return (
        *both("ssm_in", f"{module}.in_proj", "ssm_in"),
        *both("ssm_conv", f"{module}.conv1d", "ssm_conv1d"),
        layer_tensor("ssm_from", f"{module}.x_proj.weight", "ssm_x.weight",
                     holds=("ssm_low", "ssm_b", "ssm_c")),
        *both("ssm_dt", f"{module}.dt_proj", "ssm_dt"),
        layer_tensor("ssm_a", f"{module}.A_log", "ssm_a"),
        layer_tensor("ssm_d", f"{module}.D", "ssm_d"),
        *both("ssm_out", f"{module}.out_proj", "ssm_out"),
    )  # fmt: skip


def read_rank(s: Settings, name: str, hidden: int) -> int:
    """The rank of the steps, a sixteenth of the hidden size where it is "auto"."""
    stated = s.take(name)
    rank = math.ceil(hidden / 16) if stated == "auto" else stated
    if type(rank) is not int or rank < 1:
        raise s.fail(f"{name} is {stated!r:.20}")
    return int(s.say(name, rank))


def checked(s: Settings, how: Mamba) -> Mamba:
    if min(how.channels, how.state, how.rank, how.taps) < 1:
        raise s.fail(
            f"a scan of {how.channels} channels, states of {how.state}, steps of rank {how.rank} "
            f"and a convolution over {how.taps} tokens cannot be"
        )
    return how


def read_gguf_channels(s: Settings, norm: Norm | None, *, norm_weights: bool = True) -> Mamba:
    """The scan as llama.cpp's keys say it."""
    return checked(s, Mamba(
        s.integer("ssm.inner_size"), s.integer("ssm.state_size"),
        s.integer("ssm.time_step_rank"), s.integer("ssm.conv_kernel"), "silu",
        s.shape("ssm_conv_bias") is not None, s.shape("ssm_in_bias") is not None, norm,
        norm_weights, logged=False,
    ))  # fmt: skip


def _read_channels(s: Settings, hidden: int, norm: Norm | None) -> Mamba:
    pass_over(s, *_UNREAD)
    pass_over(s, *_UNREAD_VALUES, null=False)
    read_real(s, "time_step_scale")  # of drawing weights
    check_drawn(s)
    inner = s.integer("intermediate_size", s.integer("expand") * hidden)
    return checked(s, Mamba(
        inner, s.integer("state_size"),
        read_rank(s, "time_step_rank", hidden), s.integer("conv_kernel"),
        s.activation("hidden_act", "silu"), s.flag("use_conv_bias"), s.flag("use_bias"), norm,
        norm_weights=False,
    ))  # fmt: skip


def build_with(s: Settings, norm_eps: str | None) -> Graph:
    """``norm_eps``: config.json's key of the norms of the steps, b and c."""
    sizes = decoder.read_bare_sizes(s)
    if in_folder(s):
        norm = None if norm_eps is None else Norm(None, s.number(norm_eps))
        how = _read_channels(s, sizes.hidden, norm)
    else:
        for name in ("intermediate_size", "num_heads"):  # 0: it has neither
            s.take(name, None)
        normed: Any = s.flag("ssm.dt_b_c_rms", False)
        how = read_gguf_channels(s, Norm(None, sizes.eps) if normed else None, norm_weights=False)
    decoder.read_tied(s)
    return decoder.build_decoder(sizes, lambda layer: partial(place_mamba, how=how), None)


def build(s: Settings) -> Graph:
    return build_with(s, None)


TABLE = Table((
    *WHOLE, Tensor("embedding", ("embeddings.weight", "embedding.weight")),
    layer_tensor("attn_norm", "norm.weight", "attn_norm.weight"), *channel_tensors("mixer"),
))  # fmt: skip
_PUBLISHED = (
    "d_inner",
    "d_model",
    "fused_add_norm",
    "n_layer",
    "pad_vocab_size_multiple",
    "ssm_cfg",
)

FAMILY = Family(
    TABLE,
    build,
    Defaults(hf=HF),
    aliases=ALIASES,
    published={**dict.fromkeys(_PUBLISHED, anything), "rms_norm": only(True)},
)
