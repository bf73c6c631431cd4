"""Mistakes in RoPE: left out, the other pairs, another base, other positions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from aprtui.compare.mistakes.attempt import Attempt, Candidate, Entry, neat
from aprtui.engine.replay import heads_of
from aprtui.families.rope_kinds import llama3_divisors, yarn_divisors
from aprtui.graph.ops import Heads, Rope, SharedRope
from aprtui.graph.rope import RopeTable

__all__ = ["ROPE"]

Float64 = npt.NDArray[np.float64]

_USUAL_BASES = (1e4, 5e5, 1e6, 1e5, 1e7, 1.6e5, 8e6, 5e6)
_MAX_POSITION = 1 << 17  # how far a position is looked for
_AT_ONCE = 1 << 13
_FACTORS = (2.0, 4.0, 8.0, 16.0, 32.0, 40.0, 64.0)
_TRAINED = (4096.0, 8192.0, 16384.0, 32768.0, 65536.0, 131072.0, 2048.0)


def _x(at: Attempt[Rope | SharedRope]) -> Float64:
    """The heads [T,heads,d] as they are before they are turned."""
    if isinstance(at.op, Rope):
        return heads_of(at.inputs[0], at.op.heads)
    shared, own = heads_of(at.inputs[0], at.op.shared), heads_of(at.inputs[1], at.op.own)
    return np.concatenate([own, shared.repeat(own.shape[1], axis=1)], axis=2)


def _may_be(at: Attempt[Rope | SharedRope], table: RopeTable) -> bool:
    """Whether a table turns the last position near to what B holds there."""
    if at.y is None:
        return True
    row = len(at.y) - 1
    angles = np.exp(1j * row * _frequencies(at, table)) * table.magnitude
    made, y = _turns(at, _x(at))[row] * angles, _turns(at, at.y)[row]
    return bool(np.linalg.norm(y - made) <= 0.02 * np.linalg.norm(made))


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
    if at.y is None or at.y.shape[0] < 2 or at.positions[0]:
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
    yield from neat(float(np.exp(log_base)), 1e-2 if at.rounded or at.how.frequencies else 1e-4)


def freqs_ignored(at: Attempt[Rope | SharedRope]) -> Iterator[Candidate]:
    if at.op.table.divisors:
        text = "the model's rope_freqs (llama3 scaling) were ignored"
        yield Candidate(_tabled(at, divisors=()), text)


def magnitude(at: Attempt[Rope | SharedRope]) -> Iterator[Candidate]:
    right = at.op.table.magnitude
    tries = [1.0] if right != 1.0 else []
    if at.y is not None:
        tries += neat(right * _grown(at), 1e-2 if at.rounded else 1e-4)
    for used in tries:
        text = f"cos and sin are multiplied by {used:.7g} where the model says {right:.7g}"
        if used == 1.0:
            text = f"cos and sin are not multiplied by {right:.7g}"
        yield Candidate(_tabled(at, magnitude=used), text, {"used": used, "right": right})


def _grown(at: Attempt[Rope | SharedRope]) -> float:
    """By how much B's pairs are longer than right ones."""
    assert at.y is not None
    y, base = np.abs(_turns(at, at.y)), np.abs(_turns(at, at.base))
    return float((y * base).sum() / max(np.square(base).sum(), 1e-300))


def other_table(at: Attempt[Rope | SharedRope]) -> Iterator[Candidate]:
    """Frequencies that a scaling makes, with or without its magnitude."""
    table = at.op.table
    plain = {"divisors": (), "position_divisor": 1.0, "magnitude": 1.0}
    for factor in _FACTORS:
        parameters: dict[str, object] = {"kind": "linear", "factor": factor}
        text = f"positions are divided by {factor:g} (linear scaling), which this model does not do"
        yield Candidate(_tabled(at, **plain | {"position_divisor": factor}), text, parameters)
    if at.y is None:
        return
    fitted = table.magnitude * _grown(at)
    for factor in _FACTORS:
        for trained in _TRAINED:
            divisors = yarn_divisors(table.dims, table.theta, factor, trained)
            usual = 0.1 * math.log(factor) + 1.0
            for used in dict.fromkeys((usual, 1.0, fitted)):
                text = f"turned by YaRN of factor {factor:g}, {trained:g} positions, its range "
                text += f"rounded (truncate), magnitude {used:.6g}, which this model does not say"
                parameters = {"kind": "yarn", "factor": factor, "original": trained,
                              "magnitude": used}  # fmt: skip
                changes = plain | {"divisors": divisors, "magnitude": used}
                if _may_be(at, replace(table, **changes)):  # type: ignore[arg-type]
                    yield Candidate(_tabled(at, **changes), text, parameters)
    for factor in (8.0, 32.0):
        divisors = llama3_divisors(table.dims, table.theta, factor, 1.0, 4.0, 8192.0)
        text = f"turned by llama3's scaling of factor {factor:g}, which this model does not say"
        made = _tabled(at, **plain | {"divisors": divisors})
        yield Candidate(made, text, {"kind": "llama3", "factor": factor})


def partial(at: Attempt[Rope]) -> Iterator[Candidate]:
    right, size = at.op.table.dims, at.op.heads.size
    if at.op.table.divisors or at.op.skip:
        return
    for used in dict.fromkeys((size, size // 2, size // 4, 3 * size // 4)):
        if used != right and used and used % 2 == 0:
            text = f"the first {used} channels of a head are rotated where the first {right} are"
            text = text if used < size else text.replace(f"the first {size}", f"all {size}", 1)
            made = at.remade(replace(at.op, table=replace(at.op.table, dims=used)))
            yield Candidate(made, text, {"used": used, "right": right})


def shift(at: Attempt[Rope | SharedRope]) -> Iterator[Candidate]:
    steps = [by for by in range(-32, 33) if by]
    if at.y is not None:
        steps = [_position_of(at, 0, _MAX_POSITION) - int(at.positions[0])]
    for by in steps:
        text = f"every position is counted {by:+d}"
        moved = [position + by for position in at.positions]
        yield Candidate(at.remade(positions=moved), text, {"by": by})


def positions(at: Attempt[Rope | SharedRope]) -> Iterator[Candidate]:
    """Each row at a position of its own, as in a padded batch; they are fitted."""
    if at.y is None or len(at.wrong_rows) < 2:
        return
    used = [_position_of(at, row, _AT_ONCE) for row in range(len(at.y))]
    text = f"the rows are rotated as positions {', '.join(map(str, used[:12]))}"
    text += ", ..." if len(used) > 12 else ""
    yield Candidate(at.remade(positions=used), text, {"positions": used})


def _frequencies(at: Attempt[Rope | SharedRope], table: RopeTable) -> Float64:
    """By what angle each pair turns from one position to the next, as the engine keeps it."""
    pairs = np.arange(table.dims // 2)
    divisors = np.asarray(table.divisors or np.ones(len(pairs))) * table.position_divisor
    exact: Float64 = table.theta ** (-2.0 * pairs / table.dims) / divisors
    return at.case.replay.rounded(exact[None], at.how.frequencies).reshape(-1)


@lru_cache(maxsize=4)
def _ahead(frequencies: tuple[float, ...]) -> npt.NDArray[np.complex128]:
    """What takes back the turns of the first positions [_AT_ONCE, dims/2]."""
    return np.asarray(np.exp(-1j * np.outer(np.arange(_AT_ONCE), frequencies)))


def _position_of(at: Attempt[Rope | SharedRope], row: int, most: int) -> int:
    """The position, near 0 first, by which one row of the input is turned to what B holds."""
    assert at.y is not None
    table = at.op.table.at(len(at.y))
    turn = (_turns(at, at.y)[row] * np.conj(_turns(at, _x(at))[row])).sum(axis=0)
    frequency = _frequencies(at, table)
    ahead = _ahead(tuple(frequency.tolist()))
    best, found = -math.inf, 0
    for first in sorted(range(-most, most, _AT_ONCE), key=abs):
        likeness = (ahead @ (np.exp(-1j * first * frequency) * turn)).real
        place = int(np.argmax(likeness))
        if likeness[place] > best * (1 + 1e-9):
            best, found = float(likeness[place]), first + place
        if best > (1 - 1e-9) * float(np.abs(turn).sum()):
            break
    return found


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
    right = at.positions
    divisor = at.op.table.position_divisor
    if divisor != 1.0:
        text = f"positions are not divided by {divisor:g}"
        yield Candidate(_tabled(at, position_divisor=1.0), text, {"divisor": 1.0})
    if len(at.wrong_rows) == 1:
        wrong, positions = at.wrong_rows[0], right.copy()
        used = _nearest(at, wrong, range(max(64, 4 * (1 + int(right[-1])))))
        positions[wrong] = used
        text = f"position {right[wrong]:g} is rotated as position {used}"
        made = at.remade(positions=positions)
        yield Candidate(made, text, {"position": int(right[wrong]), "used": used})
        return
    if 1 < len(at.wrong_rows) < len(right):
        yield from _some_shifted(at, right)
    for used in dict.fromkeys((int(right[-1]), 1, 0)):
        text = f"every position is rotated as position {used}"
        made = at.remade(positions=[used] * len(right))
        yield Candidate(made, text, {"used": used})


def _some_shifted(at: Attempt[Rope | SharedRope], right: Sequence[float]) -> Iterator[Candidate]:
    """Some rows turned as if they stood elsewhere, all by as much: the decode steps, say."""
    wrong = at.wrong_rows
    by = _position_of(at, wrong[0], _MAX_POSITION) - int(right[wrong[0]])
    moved = [place + by if row in wrong else place for row, place in enumerate(right)]
    where = at.case.captured.rows.where(wrong)
    text = f"{where}: counted {by:+d}, the others right"
    parameters = {"by": by, "positions": [int(right[row]) for row in wrong]}
    yield Candidate(at.remade(positions=moved), text, parameters)


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
    Entry("rope_table", _BOTH, other_table),
    Entry("rope_positions", _BOTH, positions),
)
