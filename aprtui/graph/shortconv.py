"""A layer of a short convolution, gated on both sides (LFM2)."""

from __future__ import annotations

from dataclasses import dataclass

from aprtui.formats.tracedir import StageKey
from aprtui.graph.blocks import Builder
from aprtui.graph.ops import Part, Product
from aprtui.graph.recurrent import CausalConv, Columns

__all__ = ["ShortConv", "place_short_conv"]


@dataclass(frozen=True)
class ShortConv:
    """A convolution over ``taps`` tokens; ``biased``: it and both products have biases."""

    taps: int
    biased: bool


def place_short_conv(b: Builder, x: StageKey, how: ShortConv) -> StageKey:
    """From the normalised input to the output projection."""
    size = b.hidden_size
    into = b.put("conv_in", _product(b, "conv_in", 3 * size, how), x, width=3 * size)
    gated = b.put("conv_x", Columns(0, 2 * size, size), into, into, width=size)
    bias = b.role("conv_bias") if how.biased else None
    conv = CausalConv(b.role("conv"), size, how.taps, bias, "none")
    mixed = b.put("conv", conv, gated, width=size)
    made = b.put("conv_out", Columns(0, size, size), mixed, into, width=size)
    return b.put("attn_out", _product(b, "conv_out", size, how), made)


def _product(b: Builder, name: str, rows: int, how: ShortConv) -> Product:
    bias = b.role(f"{name}_bias") if how.biased else None
    return Product((Part(name, b.role(name), rows, bias),))
