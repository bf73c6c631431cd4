"""Mistakes in layers with a memory: convolutions, decays, states that are lost, gated norms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from aprtui.compare.mistakes.attempt import Attempt, Candidate, Entry
from aprtui.graph.ops import ACTIVATIONS
from aprtui.graph.recurrent import (
    CausalConv,
    ChannelScan,
    Decay,
    DeltaRule,
    Gated,
    GatedNorm,
    Scan,
    Steps,
)

__all__ = ["RECURRENT"]

Float64 = npt.NDArray[np.float64]

_CHUNKS = (16, 32, 64, 128, 256)
_EDGES = 4  # between passes that are tried by themselves


def conv_shifted(at: Attempt[CausalConv]) -> Iterator[Candidate]:
    (x,) = at.inputs
    for by in range(1, at.op.taps):
        late = np.concatenate([np.zeros_like(x[:by]), x[:-by]])
        text = f"the convolution sees tokens {by} too late"
        yield Candidate(at.remade(inputs=(late,)), text, {"by": by})
        early = np.concatenate([x[by:], np.zeros_like(x[:by])])
        text = f"the convolution sees tokens {by} too early, before they are there"
        yield Candidate(at.remade(inputs=(early,)), text, {"by": -by})


def conv_activation_missing(at: Attempt[CausalConv]) -> Iterator[Candidate]:
    made = at.remade(replace(at.op, activation="none"))
    yield Candidate(made, f"the convolution is not followed by {at.op.activation}")


def decay_missing(at: Attempt[DeltaRule | Scan | ChannelScan]) -> Iterator[Candidate]:
    if isinstance(at.op, DeltaRule):
        x, decay, beta = at.inputs
        made = at.remade(inputs=(x, np.zeros_like(decay), beta))
    else:
        made = _undecayed(at, at.op)
    yield Candidate(made, "the state is not decayed")


def _scanned(at: Attempt[Any]) -> tuple[Float64, Float64, Float64, Float64]:
    """What is scanned [T,N,d], its steps [T,N], and by what each token is written and reads
    [T,N,state]."""
    if isinstance(at.op, ChannelScan):
        x, dt, *both = at.inputs
        values = x[:, :, None]
        b, c = (np.repeat(each[:, None, :], x.shape[1], axis=1) for each in both)
        return values, dt, b, c
    x, dt = at.inputs
    inner = at.op.heads * at.op.size
    values = x[:, :inner].reshape(len(x), at.op.heads, at.op.size)
    groups = x[:, inner:].reshape(len(x), 2, at.op.groups, at.op.state)
    b, c = np.repeat(groups, at.op.heads // at.op.groups, axis=2).swapaxes(0, 1)
    return values, dt, b, c


def _undecayed(at: Attempt[Any], op: Scan | ChannelScan) -> Float64:
    values, dt, b, c = _scanned(at)
    written = values * dt[:, :, None]
    if op.last:
        return np.asarray(np.einsum("tns,tnd->nsd", b, written))
    read = np.tril(np.einsum("tns,uns->ntu", c, b))
    skip = at.case.replay.vector(op.skip)
    return np.asarray(np.einsum("ntu,und->tnd", read, written) + values * skip[:, None])


def steps_missing(at: Attempt[Scan | ChannelScan]) -> Iterator[Candidate]:
    """Steps that decay the state and do not weigh what is written into it."""
    values, dt, _, _ = _scanned(at)
    if not (dt > 0).all():
        return
    plain = values / dt[:, :, None]
    given = [plain.reshape(len(plain), -1), *at.inputs[1:]]
    if isinstance(at.op, Scan):
        given[0] = np.concatenate([given[0], at.inputs[0][:, given[0].shape[1] :]], axis=1)
    made = at.remade(inputs=given)
    if not at.op.last:
        made = made + (values - plain) * at.case.replay.vector(at.op.skip)[:, None]
    yield Candidate(made, "what is written into the state is not multiplied by the step")


def beta_missing(at: Attempt[DeltaRule]) -> Iterator[Candidate]:
    x, decay, beta = at.inputs
    made = at.remade(inputs=(x, decay, np.ones_like(beta)))
    yield Candidate(made, "what is written into the state is not weighed by beta")


def value_heads_dealt(at: Attempt[DeltaRule | Scan]) -> Iterator[Candidate]:
    if isinstance(at.op, Scan):
        yield from _groups_dealt(at, at.op)
    elif at.op.heads != at.op.key_heads:
        used = "dealt round the key heads" if not at.op.dealt else "grouped by key head"
        made = at.remade(replace(at.op, dealt=not at.op.dealt))
        yield Candidate(made, f"value heads are {used}", {"heads": at.op.heads})


def _groups_dealt(at: Attempt[DeltaRule | Scan], op: Scan) -> Iterator[Candidate]:
    if 1 < op.groups < op.heads:
        x, dt = at.inputs
        inner = op.heads * op.size
        of_groups = x[:, inner:].reshape(len(x), 2, op.groups, op.state)
        dealt = np.tile(of_groups, (1, 1, op.heads // op.groups, 1)).reshape(len(x), -1)
        given = (np.concatenate([x[:, :inner], dealt], axis=1), dt)
        made = at.remade(replace(op, groups=op.heads), inputs=given)
        yield Candidate(made, "heads are dealt round the groups", {"heads": op.heads})


def state_lost(at: Attempt[CausalConv | DeltaRule | Scan | ChannelScan]) -> Iterator[Candidate]:
    """At the edges of the capture's passes, at one of them, or every so many tokens."""
    tokens = len(at.inputs[0])
    passes = at.case.captured.rows.passes
    edges = [row for row in range(1, tokens) if passes[row] != passes[row - 1]]
    if edges:
        yield Candidate(_begun_anew(at, edges), "what is carried along is lost between passes")
    for edge in edges[:_EDGES] if len(edges) > 1 else ():
        text = f"what is carried along is lost before pass {passes[edge]}"
        yield Candidate(_begun_anew(at, [edge]), text, {"pass": passes[edge]})
    for chunk in _CHUNKS:
        if chunk < tokens:
            made = _begun_anew(at, range(chunk, tokens, chunk))
            yield Candidate(made, f"the state is lost every {chunk} tokens", {"chunk": chunk})


def _begun_anew(
    at: Attempt[CausalConv | DeltaRule | Scan | ChannelScan], edges: Sequence[int]
) -> Float64:
    """The output where the rows from each edge on know nothing of those before."""
    starts = [0, *edges]
    cuts = [slice(*ends) for ends in zip(starts, [*edges, None], strict=True)]
    if at.node.timeless:
        return at.remade(inputs=[x[cuts[-1]] for x in at.inputs])
    return np.concatenate([at.remade(inputs=[x[cut] for x in at.inputs]) for cut in cuts])


def scan_skip_missing(at: Attempt[Scan | ChannelScan]) -> Iterator[Candidate]:
    if at.op.last:
        return
    skip = at.case.replay.vector(at.op.skip)
    values = _scanned(at)[0]
    yield Candidate(at.base - values * skip[:, None], "what goes past the state is left out")


def steps_unbounded(at: Attempt[Steps]) -> Iterator[Candidate]:
    if (at.op.low, at.op.high) != (0.0, float("inf")):
        made = at.remade(replace(at.op, low=0.0, high=float("inf")))
        text = f"the steps are not kept between {at.op.low:g} and {at.op.high:g}"
        yield Candidate(made, text)


def decay_weight(at: Attempt[Decay | Scan | ChannelScan]) -> Iterator[Candidate]:
    made = at.remade(replace(at.op, logged=not at.op.logged))
    taken = "as it is" if at.op.logged else "as its logarithm"
    yield Candidate(made, f"the decay's weight is taken {taken}")


def gate_missing(at: Attempt[Gated | GatedNorm]) -> Iterator[Candidate]:
    x, gate = at.inputs
    plain = replace(at.op, activation="none")
    yield Candidate(at.remade(plain, inputs=(x, np.ones_like(gate))), "the output is not gated")
    for name in ACTIVATIONS:
        if name != at.op.activation:
            made = at.remade(replace(at.op, activation=name))
            text = f"the gate's activation is {name} where {at.op.activation} is right"
            yield Candidate(made, text, {"used": name, "right": at.op.activation})


def gate_order(at: Attempt[GatedNorm]) -> Iterator[Candidate]:
    made = at.remade(replace(at.op, before=not at.op.before))
    order = "after" if at.op.before else "before"
    yield Candidate(made, f"the gate multiplies {order} the norm")


RECURRENT = (
    Entry("conv_shifted", (CausalConv,), conv_shifted),
    Entry("conv_activation_missing", (CausalConv,), conv_activation_missing),
    Entry("decay_missing", (DeltaRule, Scan, ChannelScan), decay_missing),
    Entry("steps_missing", (Scan, ChannelScan), steps_missing),
    Entry("beta_missing", (DeltaRule,), beta_missing),
    Entry("value_heads_dealt", (DeltaRule, Scan), value_heads_dealt),
    Entry("state_lost", (CausalConv, DeltaRule, Scan, ChannelScan), state_lost),
    Entry("scan_skip_missing", (Scan, ChannelScan), scan_skip_missing),
    Entry("steps_unbounded", (Steps,), steps_unbounded),
    Entry("decay_weight", (Decay, Scan, ChannelScan), decay_weight),
    Entry("gate_missing", (Gated, GatedNorm), gate_missing),
    Entry("gate_order", (GatedNorm,), gate_order),
)
