"""Kernels of the operations with a memory (``graph.recurrent``), each written once against an
arithmetic, as those of ``engine.ops`` are."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as functional

from aprtui.graph.ops import Op
from aprtui.graph.recurrent import (
    CausalConv,
    ChannelScan,
    Columns,
    Decay,
    DeltaRule,
    Gated,
    GatedNorm,
    Scan,
    Steps,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from aprtui.engine.ops import Pass

__all__ = ["RECURRENT", "channel_scan", "delta_rule", "delta_scan", "linear_scan"]

Tensor = torch.Tensor


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def causal_conv(ar: Pass, op: CausalConv, x: Tensor) -> Tensor:
    """[T,C]."""
    wide = _wide(x[:, op.first : op.first + op.channels])
    weight = torch.cat([_wide(ar.vector(role)).reshape(-1, op.taps) for role in op.filters])
    padded = torch.cat((ar.recall(wide.new_zeros(op.taps - 1, op.channels)), wide))
    ar.keep(padded[len(x) :])
    made = torch.zeros_like(wide)
    for tap in range(op.taps):
        made = made + padded[tap : tap + len(x)] * weight[:, tap]
    if op.bias is not None:
        made = made + _wide(ar.vector(op.bias))
    return ar.activate(ar.cut(made.to(x.dtype)), op.activation)


def columns(ar: Pass, op: Columns, x: Tensor, y: Tensor) -> Tensor:
    """[T,size]."""
    return x[:, op.first : op.first + op.size] * y[:, op.second : op.second + op.size]


def gated(ar: Pass, op: Gated, x: Tensor, gate: Tensor) -> Tensor:
    """[T,size]."""
    factor = ar.activate(gate[:, op.first : op.first + op.size], op.activation)
    return x.reshape(len(x), op.size) * ar.cut(factor)


def decay(ar: Pass, op: Decay, x: Tensor) -> Tensor:
    """[T,N], or [T,N,each]."""
    a = _wide(ar.vector(op.a))
    a = -a.exp() if op.logged else a
    steps = ar.step(_wide(ar.product(x, op.part.weight)) + _wide(ar.addend(op.dt)))
    steps = ar.step(ar.map(functional.softplus, steps))
    if not op.each:
        return (a * steps).to(x.dtype)
    return (a[:, None] * steps.reshape(len(x), -1, op.each)).to(x.dtype)


def gated_norm(ar: Pass, op: GatedNorm, x: Tensor, gate: Tensor) -> Tensor:
    """x [T,...] normalised, ``size`` values at a time, and gated."""
    wide = _wide(x).reshape(len(x), -1, op.size)
    gates = _wide(gate).reshape(len(x), -1)[:, : wide.shape[1] * op.size]
    factor = ar.wide_activate(gates, op.activation).reshape(wide.shape)
    wide = wide * factor if op.before else wide
    apart = wide.reshape(*wide.shape[:-1], op.groups, -1)
    apart = apart * torch.rsqrt(apart.square().mean(-1, keepdim=True) + op.eps)
    made = ar.step(ar.step(apart.reshape(wide.shape)) * _wide(ar.vector(op.weight)))
    return (made if op.before else made * factor).reshape(_written(op, x)).to(x.dtype)


def _written(op: GatedNorm, x: Tensor) -> tuple[int, ...]:
    """The output's shape: the heads of what comes in, or rows of one norm."""
    return tuple(x.shape) if x.shape[-1] == op.size else (len(x), x[0].numel())


def delta_rule(ar: Pass, op: DeltaRule, x: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    """[T,N,value], or the last state [N,key,value]. Both are one computation, made once where they
    follow one another."""

    def made() -> tuple[Tensor, Tensor]:
        q, k, v = _heads(op, x)
        state = ar.recall(v.new_zeros(op.heads, op.key, op.value))
        kept = _wide(g).reshape(len(g), op.heads, -1)
        return delta_scan(q, k, v, kept, _wide(beta), state, ar.stride)

    return _once(ar, (x, g, beta), made, last=op.state)


def _once(
    ar: Pass, given: tuple[Tensor, ...], made: Callable[[], tuple[Tensor, Tensor]], *, last: bool
) -> Tensor:
    """What a rule gives out, or the ``last`` state, which is kept for the next pass; in the type of
    what it was given. Made once where both follow one another."""
    kept = ar.scanned
    again = kept is not None and len(kept[0]) == len(given)
    if kept is not None and again and all(map(operator.is_, kept[0], given)):
        ar.scanned = None
        return kept[1][int(last)]
    out, state = made()
    ar.keep(state)
    found = (out.to(given[0].dtype), state.to(given[0].dtype))
    ar.scanned = (given, found)
    return found[int(last)]


def _heads(op: DeltaRule, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q and k of each value head, of length one and q over sqrt(key), and v: [T,N,size]."""
    width = op.key_heads * op.key
    q, k, v = torch.split(_wide(x), [width, width, op.heads * op.value], dim=1)
    times = op.heads // op.key_heads
    made = []
    for part in (q, k):
        heads = part.reshape(len(x), op.key_heads, op.key)
        heads = heads * torch.rsqrt(heads.square().sum(-1, keepdim=True) + op.eps)
        again = heads.repeat(1, times, 1) if op.dealt else heads.repeat_interleave(times, dim=1)
        made.append(again)
    return made[0] * op.key**-0.5, made[1], v.reshape(len(x), op.heads, op.value)


def delta_scan(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """What comes out [T,N,value] and the state [N,key,value] behind it, ``chunk`` tokens at a time.
    g [T,N,1], or of each row of the state its own [T,N,key].

    Within a chunk the corrections u_t = beta_t (v_t - k_t' S_t) depend on one another through a
    triangular system (arXiv 2406.06484), which is solved at once.
    """
    out = []
    for first in range(0, len(q), chunk):
        some = slice(first, first + chunk)
        made, state = _chunk(q[some], k[some], v[some], g[some], beta[some], state)
        out.append(made)
    return torch.cat(out), state


def _between(kept: Tensor) -> Tensor:
    """What is kept at token t of what token s wrote, 0 where s is later: [N,t,s], of kept [N,t]."""
    apart = kept[:, :, None] - kept[:, None, :]
    later = torch.ones(apart.shape[1:], dtype=torch.bool, device=kept.device).triu(1)
    return apart.masked_fill(later, float("-inf")).exp()


def _met(x: Tensor, k: Tensor, kept: Tensor) -> Tensor:
    """x [N,t,key] at token t times what is left of k [N,s,key] of token s: [N,t,s]. Of rows that
    decay apart a head at a time: each of its products has a factor of its own."""
    if kept.shape[-1] == 1:
        return x @ k.transpose(1, 2) * _between(kept[..., 0])
    rows = (
        (x[head, :, None] * k[head, None] * _between(kept[head].T).permute(1, 2, 0)).sum(-1)
        for head in range(len(kept))
    )
    return torch.stack(list(rows))


def _chunk(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    q, k, v, g = (each.transpose(0, 1) for each in (q, k, v, g))  # [N,t,size]
    kept = g.cumsum(1)  # of the state before the chunk, at each token
    weight = beta.T[:, :, None]
    # What token s adds is decayed from s to t.
    system = (_met(k, k, kept) * weight).tril(-1)
    right = weight * (v - (kept.exp() * k) @ state)
    u = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    out = (kept.exp() * q) @ state + _met(q, k, kept) @ u
    last = kept[:, -1:]
    written = (last - kept).exp() * k
    state = last.exp().transpose(1, 2) * state + written.transpose(1, 2) @ u
    return out.transpose(0, 1), state


def steps(ar: Pass, op: Steps, x: Tensor) -> Tensor:
    """[T,N]."""
    raw = ar.step(_wide(x[:, op.first : op.first + op.heads]) + _wide(ar.vector(op.dt)))
    return ar.map(functional.softplus, raw).clamp(op.low, op.high).to(x.dtype)


def scan(ar: Pass, op: Scan, x: Tensor, dt: Tensor) -> Tensor:
    """[T,N,size], or the last state [N,state,size]; made once where they follow one another."""

    def made() -> tuple[Tensor, Tensor]:
        inner, shared = op.heads * op.size, op.groups * op.state
        values, *both = torch.split(_wide(x), [inner, shared, shared], dim=1)
        values = values.reshape(len(x), op.heads, op.size)
        times = op.heads // op.groups
        b, c = (
            each.reshape(len(x), op.groups, op.state).repeat_interleave(times, dim=1)
            for each in both
        )
        wide, rates = _wide(dt), _rates(ar, op)
        state = ar.recall(values.new_zeros(op.heads, op.state, op.size))
        given = values * wide[:, :, None], rates * wide
        out, state = linear_scan(c, b, *given, state, ar.stride)
        return out + values * _wide(ar.vector(op.skip))[:, None], state

    return _once(ar, (x, dt), made, last=op.last)


def _rates(ar: Pass, op: Scan | ChannelScan) -> Tensor:
    """How fast a state fades, of each head or channel: below 0."""
    a = _wide(ar.vector(op.a))
    return -a.exp() if op.logged else a


def scan_channels(ar: Pass, op: ChannelScan, x: Tensor, dt: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """[T,C,1], or the last state [C,state,1]; made once where they follow one another."""

    def made() -> tuple[Tensor, Tensor]:
        a, values = _rates(ar, op).reshape(op.channels, op.state), _wide(x)
        state = ar.recall(values.new_zeros(op.channels, op.state, 1))[:, :, 0]
        out, state = channel_scan(
            values, _wide(dt), _wide(b), _wide(c), a, state, ar.stride, ar.cut
        )
        return (out + values * _wide(ar.vector(op.skip)))[:, :, None], state[:, :, None]

    return _once(ar, (x, dt, b, c), made, last=op.last)


def channel_scan(
    x: Tensor, dt: Tensor, b: Tensor, c: Tensor, a: Tensor, state: Tensor, chunk: int,
    cut: Callable[[Tensor], Tensor] = lambda x: x,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """S = exp(a dt) S + dt x b', of which S c comes out [T,C], and the S behind it [C,state]. What
    a token brings is computed ``chunk`` tokens at a time, the states one after the other. ``cut``:
    of the states that meet c, and of what comes out."""
    out = []
    for first in range(0, len(x), chunk):
        some = slice(first, first + chunk)
        kept = (dt[some, :, None] * a).exp()
        states = (dt[some] * x[some])[:, :, None] * b[some, None, :]
        for place in range(len(states)):
            state = states[place].add_(kept[place] * state)
        out.append(cut(cut(states) @ c[some, :, None])[:, :, 0])
        state = state.clone()
    return torch.cat(out), state


def linear_scan(
    c: Tensor, b: Tensor, v: Tensor, g: Tensor, state: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """S = exp(g) S + b v', of which c'S comes out [T,N,size], and the S behind it [N,state,size],
    ``chunk`` tokens at a time."""
    out = []
    for first in range(0, len(c), chunk):
        some = slice(first, first + chunk)
        c_, b_, v_ = (each[some].transpose(0, 1) for each in (c, b, v))  # [N,t,size]
        kept = g[some].T.cumsum(1)
        weights = c_ @ b_.transpose(1, 2) * _between(kept)
        made = kept.exp()[:, :, None] * (c_ @ state) + weights @ v_
        out.append(made.transpose(0, 1))
        last = kept[:, -1:]
        written = (last - kept).exp()[:, :, None] * b_
        state = last.exp()[:, :, None] * state + written.transpose(1, 2) @ v_
    return torch.cat(out), state


RECURRENT: dict[type[Op], Callable[..., Tensor]] = {
    CausalConv: causal_conv,
    ChannelScan: scan_channels,
    Columns: columns,
    Decay: decay,
    DeltaRule: delta_rule,
    Gated: gated,
    GatedNorm: gated_norm,
    Scan: scan,
    Steps: steps,
}
