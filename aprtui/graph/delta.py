"""A layer of the gated delta rule (Qwen3-Next): convolution, decay, state, gated norm."""

from __future__ import annotations

from dataclasses import dataclass, replace

from aprtui.formats.tracedir import StageKey
from aprtui.graph.blocks import Builder
from aprtui.graph.ops import Part, Product, Sigmoid
from aprtui.graph.recurrent import CausalConv, Decay, DeltaRule, GatedNorm

__all__ = ["Delta", "place_delta"]


@dataclass(frozen=True)
class Delta:
    """``taps`` of the convolution; ``eps`` of the norm; ``logged``: of ``Decay``."""

    rule: DeltaRule
    taps: int
    eps: float
    activation: str
    logged: bool


def place_delta(b: Builder, x: StageKey, how: Delta) -> StageKey:
    """From the normalised input to the output projection."""
    rule = how.rule
    keys, values = rule.key_heads * rule.key, rule.heads * rule.value
    rows = {"q": keys, "k": keys, "v": values}
    parts = tuple(Part(n, b.role(f"delta_{n}"), each) for n, each in rows.items())
    width = 2 * keys + values
    qkv = b.put("delta_qkv", Product(parts), x, width=width)
    gate = Product((Part("gate", b.role("delta_z"), values),))
    gates = b.put("delta_gate", gate, x, width=values)
    beta = b.put("delta_beta", Sigmoid(Part("beta", b.role("delta_b"), rule.heads)), x,
                 state_head=rule.heads)  # fmt: skip
    step = Part("decay", b.role("delta_a"), rule.heads)
    decay = Decay(step, b.role("delta_log"), b.role("delta_dt"), how.logged)
    kept = b.put("delta_decay", decay, x, state_head=rule.heads)
    conv = CausalConv(b.role("delta_conv"), width, how.taps, activation=how.activation)
    mixed = b.put("delta_conv", conv, qkv, width=width)
    extents = {"state_head": rule.heads, "channel": rule.value}
    out = b.put("delta_out", rule, mixed, kept, beta, **extents)
    b.put("delta_state", replace(rule, state=True), mixed, kept, beta, row=rule.key, **extents)
    norm = GatedNorm(b.role("delta_norm"), rule.value, how.eps)
    made = b.put("delta_norm", norm, out, gates, **extents)
    last = Part("o", b.role("delta_o"), b.hidden_size)
    return b.put("attn_out", Product((last,)), made)
