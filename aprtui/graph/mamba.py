"""A layer of Mamba (arXiv 2312.00752): a convolution, steps of a low rank, a scan of channels, a
gate."""

from __future__ import annotations

from dataclasses import dataclass, replace

from aprtui.formats.tracedir import StageKey
from aprtui.graph.blocks import Builder
from aprtui.graph.ops import Norm, Part, Product, Softplus
from aprtui.graph.recurrent import CausalConv, ChannelScan, Gated

__all__ = ["Mamba", "place_mamba"]


@dataclass(frozen=True)
class Mamba:
    """``rank``: of the steps. ``conv_bias`` and ``biased``: of the convolution, and of the first
    and the last product. ``norm``: of the steps' latent, b and c, whose weights are set where it is
    placed, if it has ``norm_weights``; None without one. ``logged``: of ``ChannelScan``."""

    channels: int
    state: int
    rank: int
    taps: int
    activation: str
    conv_bias: bool
    biased: bool
    norm: Norm | None = None
    norm_weights: bool = True
    logged: bool = True


def place_mamba(b: Builder, x: StageKey, how: Mamba) -> StageKey:
    """From the normalised input to the output projection."""
    inner = how.channels
    into = b.put("ssm_in", _product(b, "ssm_in", 2 * inner, how), x, width=2 * inner)
    bias = b.role("ssm_conv_bias") if how.conv_bias else None
    conv = CausalConv(b.role("ssm_conv"), inner, how.taps, bias, how.activation)
    mixed = b.put("ssm_conv", conv, into, width=inner)
    low, *both = (
        _normed(b, f"ssm_{name}", rows, mixed, how)
        for name, rows in {"low": how.rank, "b": how.state, "c": how.state}.items()
    )
    step = Softplus(Part("dt", b.role("ssm_dt"), inner, b.role("ssm_dt_bias")))
    dt = b.put("ssm_dt", step, low, state_head=inner)
    scan = ChannelScan(inner, how.state, b.role("ssm_a"), b.role("ssm_d"), how.logged)
    given, extents = (mixed, dt, *both), {"state_head": inner, "channel": 1}
    out = b.put("ssm_scan", scan, *given, **extents)
    b.put("ssm_state", replace(scan, last=True), *given, row=how.state, **extents)
    made = b.put("ssm_gated", Gated(inner, first=inner), out, into, width=inner)
    return b.put("attn_out", _product(b, "ssm_out", b.hidden_size, how), made)


def _normed(b: Builder, stage: str, rows: int, mixed: StageKey, how: Mamba) -> StageKey:
    """A product of what was convolved, and its norm where there is one."""
    made = b.put(stage, Product((Part(stage, b.role(stage), rows),)), mixed, width=rows)
    if how.norm is None:
        return made
    weight = b.role(f"{stage}_norm") if how.norm_weights else None
    return b.put(f"{stage}_norm", replace(how.norm, weight=weight), made, width=rows)


def _product(b: Builder, name: str, rows: int, how: Mamba) -> Product:
    bias = b.role(f"{name}_bias") if how.biased else None
    return Product((Part(name, b.role(name), rows, bias),))
