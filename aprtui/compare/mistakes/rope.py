"""Mistakes in RoPE: left out, the other pairs, another base, other positions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from aprtui.compare.mistakes.attempt import Attempt, Candidate, Entry, neat
from aprtui.engine.replay import heads_of
from aprtui.graph.ops import Heads, Rope, SharedRope

__all__ = ["ROPE"]

Float64 = npt.NDArray[np.float64]

_USUAL_BASES = (1e4, 5e5, 1e6, 1e5, 1e7, 1.6e5, 8e6, 5e6)
_MAX_SHIFT = 32


def _x(at: Attempt[Rope | SharedRope]) -> Float64:
    """The heads [T,heads,d] as they are before they are turned."""
    if isinstance(at.op, Rope):
        return heads_of(at.inputs[0], at.op.heads)
    shared, own = heads_of(at.inputs[0], at.op.shared), heads_of(at.inputs[1], at.op.own)
    return np.concatenate([own, shared.repeat(own.shape[1], axis=1)], axis=2)


def _skipped(op: Rope | SharedRope) -> int:
    """The first channels of each head, which stand still."""
    return op.skip if isinstance(op, Rope) else op.own.size


def _tabled(at: Attempt[Rope | SharedRope], **changes: object) -> Float64:
    """The rotation by a table that is changed so."""
    return at.remade(replace(at.op, table=replace(at.op.table, **changes)))  # type: ignore[arg-type]


def missing(at: Attempt[Rope | SharedRope]) -> Iterator[Candidate]:
    yield Candidate(_x(at), "not rotated at all")


def style(at: Attempt[Rope | SharedRope]) -> Iterator[Candidate]:
    right = at.op.table.pairs
    used = "adjacent" if right == "halves" else "halves"
    pairs = {"adjacent": "adjacent pairs (2i, 2i+1)", "halves": "halves (i, i+d/2)"}
    text = f"rotated {pairs[used]} where these rows need {pairs[right]}"
    yield Candidate(_tabled(at, pairs=used), text, {"used": used, "right": right})


def theta(at: Attempt[Rope | SharedRope]) -> Iterator[Candidate]:
    right = at.op.table.theta
    others = (node.op.table.theta for node in at.graph if isinstance(node.op, Rope | SharedRope))
    tried = [each for each in dict.fromkeys((*others, *_USUAL_BASES)) if each != right]
    for used in (*tried, *_fitted_bases(at)):
        text = f"base {used:g} where the model says {right:g}"
        yield Candidate(_tabled(at, theta=used), text, {"theta": used, "right": right})


def _turns(at: Attempt[Rope | SharedRope], x: Float64) -> npt.NDArray[np.complex128]:
    """The pairs of what is turned of x [T,heads,d] as complex numbers [T,heads,dims/2]."""
    dims, skipped = at.op.table.dims, _skipped(at.op)
    turned = x[..., skipped : skipped + dims]
    if at.op.table.pairs == "halves":
        return np.asarray(turned[..., : dims // 2] + 1j * turned[..., dims // 2 :])
    return np.asarray(turned[..., ::2] + 1j * turned[..., 1::2])


def _fitted_bases(at: Attempt[Rope | SharedRope]) -> Iterator[float]:
    """The base that the angles at position 1 tell, then refined on the last position."""
    if at.y is None or at.y.shape[0] < 2:
        return
    table = at.op.table
    dims, divisors = table.dims, np.asarray(table.divisors or np.ones(table.dims // 2))
    turn = (_turns(at, at.y) * np.conj(_turns(at, _x(at)))).sum(axis=1)  # [T, dims/2]
    pairs = np.arange(1, dims // 2)
    known = 1.0 / (divisors[1:] * table.position_divisor)
    angle = np.angle(turn[1, 1:]) / known
    use = (angle > 1e-4) & (angle < 3.0)
    if not use.any():
        return
    slopes = -np.log(angle[use]) * dims / (2.0 * pairs[use])
    weight = pairs[use] * angle[use]
    log_base = float((slopes * weight).sum() / weight.sum())
    for position in range(2, at.y.shape[0]):
        guess = position * known * np.exp(-2.0 * pairs * log_base / dims)
        off = np.angle(turn[position, 1:] * np.exp(-1j * guess))
        slope = -guess * 2.0 * pairs / dims
        strength = np.abs(turn[position, 1:])
        log_base += float((off * slope * strength).sum() / (slope**2 * strength).sum())
    yield from neat(float(np.exp(log_base)), 1e-2 if at.rounded else 1e-4)


def freqs_ignored(at: Attempt[Rope | SharedRope]) -> Iterator[Candidate]:
    if at.op.table.divisors:
        text = "the model's rope_freqs (llama3 scaling) were ignored"
        yield Candidate(_tabled(at, divisors=()), text)


def magnitude(at: Attempt[Rope | SharedRope]) -> Iterator[Candidate]:
    right = at.op.table.magnitude
    if right != 1.0:
        text = f"cos and sin are not multiplied by {right:g}"
        yield Candidate(_tabled(at, magnitude=1.0), text, {"used": 1.0, "right": right})


def partial(at: Attempt[Rope]) -> Iterator[Candidate]:
    right, size = at.op.table.dims, at.op.heads.size
    if right != size and not at.op.table.divisors and not at.op.skip:
        text = f"all {size} channels of a head are rotated where the first {right} are"
        made = at.remade(replace(at.op, table=replace(at.op.table, dims=size)))
        yield Candidate(made, text, {"used": size, "right": right})


def shift(at: Attempt[Rope | SharedRope]) -> Iterator[Candidate]:
    steps = [by for by in range(-_MAX_SHIFT, _MAX_SHIFT + 1) if by]
    if at.y is not None:
        steps = [steps[_nearest(at, 0, steps)]]
    for by in steps:
        text = f"every position is counted {by:+d}"
        positions = range(by, by + len(_x(at)))
        yield Candidate(at.remade(positions=positions), text, {"by": by})


def _nearest(at: Attempt[Rope | SharedRope], row: int, positions: Sequence[float]) -> int:
    """Which of ``positions`` turns one row of the input nearest to what B holds there."""
    assert at.y is not None
    apart = []
    for first in range(0, len(positions), 256):
        some = positions[first : first + 256]
        given = [np.broadcast_to(x[row], (len(some), *x.shape[1:])) for x in at.inputs]
        turned = at.remade(inputs=given, positions=some)
        apart.append(np.square(turned - at.y[row]).sum(axis=(1, 2)))
    return int(np.argmin(np.concatenate(apart)))


def position(at: Attempt[Rope | SharedRope]) -> Iterator[Candidate]:
    right = list(range(len(_x(at))))
    divisor = at.op.table.position_divisor
    if divisor != 1.0:
        text = f"positions are not divided by {divisor:g}"
        yield Candidate(_tabled(at, position_divisor=1.0), text, {"divisor": 1.0})
    if len(at.wrong_rows) == 1:
        wrong, positions = at.wrong_rows[0], right.copy()
        used = _nearest(at, wrong, range(max(64, 4 * len(right))))
        positions[wrong] = used
        text = f"position {wrong} is rotated as position {used}"
        made = at.remade(positions=positions)
        yield Candidate(made, text, {"position": wrong, "used": used})
        return
    for used in dict.fromkeys((len(right) - 1, 1, 0)):
        text = f"every position is rotated as position {used}"
        made = at.remade(positions=[used] * len(right))
        yield Candidate(made, text, {"used": used})


def other_part(at: Attempt[Rope | SharedRope]) -> Iterator[Candidate]:
    """The first channels of each head turned where the last ones are."""
    if not _skipped(at.op):
        return
    x = _x(at)
    first = Rope(at.op.table, Heads(0, x.shape[1], x.shape[2]))
    of_queries = next(node for node in at.graph if isinstance(node.op, Rope))
    text = f"the first {at.op.table.dims} channels of a head are rotated where the last are"
    yield Candidate(at.elsewhere(of_queries, first, x), text)


_BOTH = (Rope, SharedRope)
ROPE = (
    Entry("rope_missing", _BOTH, missing),
    Entry("rope_other_part", _BOTH, other_part),
    Entry("rope_style", _BOTH, style),
    Entry("rope_freqs_ignored", _BOTH, freqs_ignored),
    Entry("rope_magnitude", _BOTH, magnitude),
    Entry("rope_partial", (Rope,), partial),
    Entry("rope_shift", _BOTH, shift),
    Entry("rope_position", _BOTH, position),
    Entry("rope_theta", _BOTH, theta),
)
