"""A layer of Mamba 2 (arXiv 2405.21060): one product, a convolution, a scan, a gated norm."""

from __future__ import annotations

from dataclasses import dataclass, replace

from aprtui.formats.tracedir import StageKey
from aprtui.graph.blocks import Builder
from aprtui.graph.ops import Part, Product
from aprtui.graph.recurrent import CausalConv, GatedNorm, Scan, Steps

__all__ = ["Mamba2", "place_mamba2"]


@dataclass(frozen=True)
class Mamba2:
    """``low`` and ``high`` bound the steps; ``conv_bias`` and ``biased``: of the convolution, and
    of both products."""

    scan: Scan
    taps: int
    eps: float
    activation: str
    conv_bias: bool
    biased: bool
    low: float = 0.0
    high: float = float("inf")


def place_mamba2(b: Builder, x: StageKey, how: Mamba2) -> StageKey:
    """From the normalised input to the output projection."""
    scan = how.scan
    inner = scan.heads * scan.size
    channels = inner + 2 * scan.groups * scan.state
    width = inner + channels + scan.heads
    into = b.put("ssm_in", _product(b, "ssm_in", width, how), x, width=width)
    bias = b.role("ssm_conv_bias") if how.conv_bias else None
    conv = CausalConv(b.role("ssm_conv"), channels, how.taps, bias, how.activation, first=inner)
    mixed = b.put("ssm_conv", conv, into, width=channels)
    steps = Steps(b.role("ssm_dt"), inner + channels, scan.heads, how.low, how.high)
    dt = b.put("ssm_dt", steps, into, state_head=scan.heads)
    scan = replace(scan, a=b.role("ssm_a"), skip=b.role("ssm_d"))
    extents = {"state_head": scan.heads, "channel": scan.size}
    out = b.put("ssm_scan", scan, mixed, dt, **extents)
    b.put("ssm_state", replace(scan, last=True), mixed, dt, row=scan.state, **extents)
    norm = GatedNorm(b.role("ssm_norm"), inner, how.eps, "silu", True, scan.groups)
    made = b.put("ssm_norm", norm, out, into, width=inner)
    return b.put("attn_out", _product(b, "ssm_out", b.hidden_size, how), made)


def _product(b: Builder, name: str, rows: int, how: Mamba2) -> Product:
    bias = b.role(f"{name}_bias") if how.biased else None
    return Product((Part(name, b.role(name), rows, bias),))
