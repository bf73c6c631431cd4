"""A layer of the gated delta rule: convolution, decay, state, gated norm. Qwen3-Next's decays by
head; Kimi Linear's rows of the state each by its own, made of a latent as the gate is."""

from __future__ import annotations

from dataclasses import dataclass, replace

from aprtui.formats.tracedir import StageKey
from aprtui.graph.blocks import Builder
from aprtui.graph.ops import Part, Product, Sigmoid
from aprtui.graph.recurrent import CausalConv, Decay, DeltaRule, GatedNorm

__all__ = ["Delta", "place_delta"]


@dataclass(frozen=True)
class Delta:
    """``taps`` of the convolution; ``eps`` of the norm; ``logged``: of ``Decay``.

    ``rank``: of the latents that gate and decay are made of, then each row of the state has a decay
    of its own; 0 where both are made of the layer's input. ``gate``: its activation. ``split``: the
    convolution's weights are a tensor each, of q, k and v. ``roles`` begins the names of the
    weights of q, k, v and the output.
    """

    rule: DeltaRule
    taps: int
    eps: float
    activation: str
    logged: bool
    rank: int = 0
    gate: str = "silu"
    split: bool = False
    roles: str = "delta_"


def place_delta(b: Builder, x: StageKey, how: Delta) -> StageKey:
    """From the normalised input to the output projection."""
    rule = how.rule
    keys, values = rule.key_heads * rule.key, rule.heads * rule.value
    rows = {"q": keys, "k": keys, "v": values}
    parts = tuple(Part(n, b.role(f"{how.roles}{n}"), each) for n, each in rows.items())
    width = 2 * keys + values
    qkv = b.put("delta_qkv", Product(parts), x, width=width)
    gate = Product((Part("gate", b.role("delta_z"), values),))
    gates = b.put("delta_gate", gate, _low(b, x, how, "gate", "z"), width=values)
    beta = b.put("delta_beta", Sigmoid(Part("beta", b.role("delta_b"), rule.heads)), x,
                 state_head=rule.heads)  # fmt: skip
    kept = _decay(b, x, how)
    first, *more = (f"delta_conv_{n}" for n in rows) if how.split else ("delta_conv",)
    conv = CausalConv(b.role(first), width, how.taps, activation=how.activation,
                      more=tuple(map(b.role, more)))  # fmt: skip
    mixed = b.put("delta_conv", conv, qkv, width=width)
    extents = {"state_head": rule.heads, "channel": rule.value}
    out = b.put("delta_out", rule, mixed, kept, beta, **extents)
    b.put("delta_state", replace(rule, state=True), mixed, kept, beta, row=rule.key, **extents)
    norm = GatedNorm(b.role("delta_norm"), rule.value, how.eps, how.gate)
    made = b.put("delta_norm", norm, out, gates, **extents)
    last = Part("o", b.role(f"{how.roles}o"), b.hidden_size)
    return b.put("attn_out", Product((last,)), made)


def _low(b: Builder, x: StageKey, how: Delta, name: str, role: str) -> StageKey:
    """The latent of the gate or of the decay; x itself where they have none."""
    if not how.rank:
        return x
    part = Part(f"{name}_low", b.role(f"delta_{role}_low"), how.rank)
    return b.put(f"delta_{name}_low", Product((part,)), x, width=how.rank)


def _decay(b: Builder, x: StageKey, how: Delta) -> StageKey:
    rule, each = how.rule, how.rule.key if how.rank else 0
    step = Part("decay", b.role("delta_a"), rule.heads * (each or 1))
    decay = Decay(step, b.role("delta_log"), b.role("delta_dt"), how.logged, each)
    low, extents = _low(b, x, how, "decay", "a"), {"state_head": rule.heads}
    if not each:
        return b.put("delta_decay", decay, low, **extents)
    return b.put("delta_row_decay", decay, low, row=each, **extents)
