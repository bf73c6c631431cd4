"""A layer of Mamba 2 (arXiv 2405.21060): one product, a convolution, a scan, a gated norm or a gate
alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

from aprtui.formats.tracedir import StageKey
from aprtui.graph.blocks import Builder
from aprtui.graph.ops import Part, Product
from aprtui.graph.recurrent import CausalConv, Gated, GatedNorm, Scan, Steps

__all__ = ["PARTS", "Mamba2", "place_mamba2"]

PARTS = ("ssm_z", "ssm_x", "ssm_b", "ssm_c", "ssm_step")
"""Of the first product: the gate, what is scanned, its keys and queries, and the steps."""


@dataclass(frozen=True)
class Mamba2:
    """``low`` and ``high`` bound the steps; ``conv_bias`` and ``biased``: of the convolution, and
    of the first product; ``out_biased``: of the last one, None: as the first.

    ``normed``: there is a norm, which the gate comes before where ``gate_first``. ``scales``: the
    factors on the PARTS of the first product, which are tensors of their own then, ``scale_in``:
    that on all of it, and ``scale_out``: that on the last one.
    """

    scan: Scan
    taps: int
    eps: float
    activation: str
    conv_bias: bool
    biased: bool
    low: float = 0.0
    high: float = float("inf")
    out_biased: bool | None = None
    normed: bool = True
    gate_first: bool = True
    scales: tuple[float, ...] = ()
    scale_in: float = 1.0
    scale_out: float = 1.0


def place_mamba2(b: Builder, x: StageKey, how: Mamba2, last: str = "attn_out") -> StageKey:
    """From the normalised input to the output projection, whose stage is ``last``."""
    scan = how.scan
    inner = scan.heads * scan.size
    channels = inner + 2 * scan.groups * scan.state
    width = inner + channels + scan.heads
    into = b.put("ssm_in", Product(_first(b, how), given=how.scale_in), x, width=width)
    bias = b.role("ssm_conv_bias") if how.conv_bias else None
    conv = CausalConv(b.role("ssm_conv"), channels, how.taps, bias, how.activation, first=inner)
    mixed = b.put("ssm_conv", conv, into, width=channels)
    steps = Steps(b.role("ssm_dt"), inner + channels, scan.heads, how.low, how.high)
    dt = b.put("ssm_dt", steps, into, state_head=scan.heads)
    scan = replace(scan, a=b.role("ssm_a"), skip=b.role("ssm_d"))
    extents = {"state_head": scan.heads, "channel": scan.size}
    out = b.put("ssm_scan", scan, mixed, dt, **extents)
    b.put("ssm_state", replace(scan, last=True), mixed, dt, row=scan.state, **extents)
    if how.normed:
        norm = GatedNorm(b.role("ssm_norm"), inner, how.eps, "silu", how.gate_first, scan.groups)
        made = b.put("ssm_norm", norm, out, into, width=inner)
    else:
        made = b.put("ssm_gated", Gated(inner), out, into, width=inner)
    biased = how.biased if how.out_biased is None else how.out_biased
    part = replace(_part(b, "ssm_out", b.hidden_size, biased), scale=how.scale_out)
    return b.put(last, Product((part,)), made)


def _first(b: Builder, how: Mamba2) -> tuple[Part, ...]:
    """One matrix, or its PARTS with a scale each."""
    scan = how.scan
    inner, shared = scan.heads * scan.size, scan.groups * scan.state
    rows = (inner, inner, shared, shared, scan.heads)
    if not how.scales:
        return (_part(b, "ssm_in", sum(rows), how.biased),)
    named = zip(PARTS, rows, how.scales, strict=True)
    return tuple(replace(_part(b, n, each, how.biased), scale=scale) for n, each, scale in named)


def _part(b: Builder, name: str, rows: int, biased: bool) -> Part:
    return Part(name, b.role(name), rows, b.role(f"{name}_bias") if biased else None)
