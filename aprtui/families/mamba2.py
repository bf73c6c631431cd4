"""Mamba 2: every layer a scan, and no FFN."""

from __future__ import annotations

from functools import partial
from typing import Any

from aprtui.families import decoder
from aprtui.families.classic import both, in_folder, pass_over
from aprtui.families.family import Family
from aprtui.families.keys import anything
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import WHOLE, Table, Tensor, layer_tensor
from aprtui.graph import Graph
from aprtui.graph.mamba2 import Mamba2, place_mamba2
from aprtui.graph.recurrent import Scan
from aprtui.graph.role import Role

__all__ = ["FAMILY", "check_chunk", "check_drawn", "read_gguf_scan", "read_limits", "scan_tensors"]

_HF = {
    "vocab_size": 32_768, "hidden_size": 4096, "num_layers": 64, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False, "ssm_heads": 128, "ssm_head_dim": 64, "state_size": 128,
    "expand": 2, "conv_kernel": 4, "n_groups": 8, "use_bias": False, "use_conv_bias": True,
    "hidden_act": "silu", "max_positions": 0,
}  # fmt: skip
_ALIASES = {
    "layer_norm_epsilon": "rms_norm_eps", "num_heads": "ssm_heads", "head_dim": "ssm_head_dim",
    "rms_norm_eps": "other.rms_norm_eps", "max_position_embeddings": "other.positions",
}  # fmt: skip
_UNREAD = (  # of attention and an FFN, which it has not
    "other.positions", "num_kv_heads", "norm_before_gate", "rms_norm", "intermediate_size",
    "num_heads",
)  # fmt: skip


def scan_tensors(module: str) -> tuple[Tensor, ...]:
    """The tensors of a layer's scan, by transformers' module."""
    return (
        *both("ssm_in", f"{module}.in_proj", "ssm_in"),
        *both("ssm_conv", f"{module}.conv1d", "ssm_conv1d"),
        *both("ssm_out", f"{module}.out_proj", "ssm_out"),
        layer_tensor("ssm_dt", f"{module}.dt_bias", "ssm_dt.bias"),
        layer_tensor("ssm_a", f"{module}.A_log", "ssm_a"),
        layer_tensor("ssm_d", f"{module}.D", "ssm_d"),
        layer_tensor("ssm_norm", f"{module}.norm.weight", "ssm_norm.weight"),
    )


def check_drawn(s: Settings) -> None:
    """A key by which transformers draws the last product's weights anew as it loads them."""
    what = "transformers draws the last product's weights anew as it loads"
    s.must_be("rescale_prenorm_residual", (False,), what)


def check_chunk(s: Settings, name: str) -> None:
    """By how many tokens transformers cuts a scan: the numbers are the same."""
    if s.integer(name, 256) < 1:
        raise s.fail(f"{name} is {s.values[name]}")


def read_limits(s: Settings) -> tuple[float, float]:
    """``time_step_limit``: the bounds of the steps; none where it is not stated."""
    stated = s.take("time_step_limit", None)
    if stated is None and not s.has("time_step_limit"):
        return 0.0, float("inf")
    values = [_number(each) for each in stated] if isinstance(stated, list) else []
    if len(values) != 2 or None in values or not values[0] <= values[1]:
        raise s.fail(f"time_step_limit is {stated!r:.60}")
    return float(values[0]), float(values[1])


def _number(value: Any) -> Any:
    """A number, as transformers writes one that JSON does not have."""
    if isinstance(value, dict) and value == {"__float__": "Infinity"}:
        return float("inf")
    return value if type(value) in (int, float) else None


def read_gguf_scan(s: Settings, eps: float) -> Mamba2:
    """The scan as llama.cpp's keys say it."""
    heads, inner = s.integer("ssm.time_step_rank"), s.integer("ssm.inner_size")
    if heads < 1 or inner % heads:
        raise s.fail(f"ssm.inner_size {inner} cannot be {heads} heads")
    scan = Scan(
        heads, inner // heads, s.integer("ssm.group_count"), s.integer("ssm.state_size"),
        Role(""), Role(""), logged=False,
    )  # fmt: skip
    has_bias = s.shape("ssm_conv_bias") is not None
    biased = s.shape("ssm_in_bias") is not None
    return Mamba2(scan, s.integer("ssm.conv_kernel"), eps, "silu", has_bias, biased)


def _scan(s: Settings, hidden: int, eps: float) -> Mamba2:
    if not in_folder(s):
        for name in ("intermediate_size", "num_heads"):  # 0: it has neither
            s.take(name, None)
        return read_gguf_scan(s, eps)
    pass_over(s, *_UNREAD)
    check_drawn(s)
    check_chunk(s, "chunk_size")
    scan = Scan(
        s.integer("ssm_heads"), s.integer("ssm_head_dim"), s.integer("n_groups"),
        s.integer("state_size"), Role(""), Role(""),
    )  # fmt: skip
    inner = int(s.number("expand") * hidden)
    if min(scan.heads, scan.size, scan.groups, scan.state) < 1 or scan.heads * scan.size != inner:
        raise s.fail(f"{scan.heads} heads of {scan.size} are not {inner} channels")
    if scan.heads % scan.groups:
        raise s.fail(f"{scan.heads} heads cannot be {scan.groups} groups (n_groups)")
    low, high = read_limits(s)
    return Mamba2(
        scan, s.integer("conv_kernel"), eps, s.activation("hidden_act", "silu"),
        s.flag("use_conv_bias"), s.flag("use_bias"), low, high,
    )  # fmt: skip


def build(s: Settings) -> Graph:
    sizes = decoder.read_bare_sizes(s)
    how = _scan(s, sizes.hidden, sizes.eps)
    if how.taps < 1:
        raise s.fail(f"a convolution over {how.taps} tokens")
    decoder.read_tied(s)
    return decoder.build_decoder(sizes, lambda layer: partial(place_mamba2, how=how), None)


FAMILY = Family(
    Table((
        *WHOLE, Tensor("embedding", ("embeddings.weight", "embedding.weight")),
        layer_tensor("attn_norm", "norm.weight", "attn_norm.weight"), *scan_tensors("mixer"),
    )),
    build,
    Defaults(hf=_HF),
    aliases=_ALIASES,
    published={"norm_before_gate": anything},
)  # fmt: skip
