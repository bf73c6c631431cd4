"""Mistakes in RoPE: left out, the other pairs, another base, other positions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from aprtui.compare.mistakes.attempt import Attempt, Candidate, Entry, neat
from aprtui.compare.mistakes.norms import heads_of

__all__ = ["ROPE"]

Float64 = npt.NDArray[np.float64]

_OPERATIONS = ("q_rope", "k_rope")
_USUAL_BASES = (1e4, 5e5, 1e6, 1e5, 1e7, 1.6e5, 8e6, 5e6)
_MAX_SHIFT = 32


def _x(at: Attempt) -> Float64:
    return heads_of(at, at.operation[0])


def _frequencies(at: Attempt, theta: float | None = None) -> Float64:
    """Angle by which each pair turns from one position to the next [d/2]."""
    config = at.config
    pairs = np.arange(config.head_dim // 2)
    base = config.theta(at.layer) if theta is None else theta
    turn = base ** (-2.0 * pairs / config.head_dim)
    if config.rope_divisors:
        turn = turn / np.asarray(config.rope_divisors)
    return np.asarray(turn / config.position_divisor(at.layer))


def _halves(x: Float64, layout: str) -> tuple[Float64, Float64]:
    half = x.shape[-1] // 2
    return (x[..., :half], x[..., half:]) if layout == "halves" else (x[..., ::2], x[..., 1::2])


def _rotate(x: Float64, angles: Float64, layout: str) -> Float64:
    """x [T,heads,d] turned by angles [T, d/2]."""
    cos, sin = np.cos(angles)[:, None, :], np.sin(angles)[:, None, :]
    first, second = _halves(x, layout)
    turned = (first * cos - second * sin, second * cos + first * sin)
    if layout == "halves":
        return np.concatenate(turned, axis=-1)
    return np.stack(turned, axis=-1).reshape(x.shape)


def _at_positions(at: Attempt, positions: Float64, theta: float | None = None) -> Float64:
    angles = np.outer(positions, _frequencies(at, theta))
    return _rotate(_x(at), angles, at.config.rope_layout)


def missing(at: Attempt) -> Iterator[Candidate]:
    yield Candidate(_x(at), "not rotated at all")


def style(at: Attempt) -> Iterator[Candidate]:
    right = at.config.rope_layout
    used = "adjacent" if right == "halves" else "halves"
    pairs = {"adjacent": "adjacent pairs (2i, 2i+1)", "halves": "halves (i, i+d/2)"}
    made = at.remade(dataclasses.replace(at.config, rope_layout=used))
    text = f"rotated {pairs[used]} where these rows need {pairs[right]}"
    yield Candidate(made, text, {"used": used, "right": right})


def theta(at: Attempt) -> Iterator[Candidate]:
    right = at.config.theta(at.layer)
    positions = np.arange(_x(at).shape[0], dtype=np.float64)
    others = (at.config.rope_theta, at.config.rope_theta_local or right, *_USUAL_BASES)
    tried = [each for each in dict.fromkeys(others) if each != right]
    for used in (*tried, *_fitted_bases(at)):
        text = f"base {used:g} where the model says {right:g}"
        parameters = {"theta": used, "right": right}
        yield Candidate(_at_positions(at, positions, used), text, parameters)


def _fitted_bases(at: Attempt) -> Iterator[float]:
    """The base that the angles at position 1 tell, then refined on the last position."""
    if at.y is None or at.y.shape[0] < 2:
        return
    config, layout = at.config, at.config.rope_layout
    x, y = (first + 1j * second for first, second in
            (_halves(_x(at), layout), _halves(at.y, layout)))  # fmt: skip
    turn = (y * np.conj(x)).sum(axis=1)  # [T, d/2]
    pairs = np.arange(1, config.head_dim // 2)
    known = _frequencies(at, 1.0)[1:]  # divisors alone
    angle = np.angle(turn[1, 1:]) / known
    use = (angle > 1e-4) & (angle < 3.0)
    if not use.any():
        return
    slopes = -np.log(angle[use]) * config.head_dim / (2.0 * pairs[use])
    weight = pairs[use] * angle[use]
    log_base = float((slopes * weight).sum() / weight.sum())
    for position in range(2, at.y.shape[0]):
        guess = position * known * np.exp(-2.0 * pairs * log_base / config.head_dim)
        off = np.angle(turn[position, 1:] * np.exp(-1j * guess))
        slope = -guess * 2.0 * pairs / config.head_dim
        strength = np.abs(turn[position, 1:])
        log_base += float((off * slope * strength).sum() / (slope**2 * strength).sum())
    yield from neat(float(np.exp(log_base)), 1e-2 if at.rounded else 1e-4)


def freqs_ignored(at: Attempt) -> Iterator[Candidate]:
    if at.config.rope_divisors:
        made = at.remade(dataclasses.replace(at.config, rope_divisors=()))
        yield Candidate(made, "the model's rope_freqs (llama3 scaling) were ignored")


def shift(at: Attempt) -> Iterator[Candidate]:
    positions = np.arange(_x(at).shape[0], dtype=np.float64)
    steps = [by for by in range(-_MAX_SHIFT, _MAX_SHIFT + 1) if by]
    if at.y is not None:
        steps = [steps[_nearest(at, 0, np.asarray(steps, np.float64))]]
    for by in steps:
        text = f"every position is counted {by:+d}"
        yield Candidate(_at_positions(at, positions + by), text, {"by": by})


def _nearest(at: Attempt, row: int, positions: Float64) -> int:
    """Which of ``positions`` turns one row of the input nearest to what B holds there."""
    assert at.y is not None
    heads = _x(at)[row]
    apart = []
    for first in range(0, positions.size, 256):
        angles = np.outer(positions[first : first + 256], _frequencies(at))
        x = np.broadcast_to(heads, (len(angles), *heads.shape))
        turned = _rotate(x, angles, at.config.rope_layout)
        apart.append(np.square(turned - at.y[row]).sum(axis=(1, 2)))
    return int(np.argmin(np.concatenate(apart)))


def position(at: Attempt) -> Iterator[Candidate]:
    right = np.arange(_x(at).shape[0], dtype=np.float64)
    if at.config.position_divisor(at.layer) != 1.0:
        divisor = at.config.position_divisor(at.layer)
        text = f"positions are not divided by {divisor:g}"
        yield Candidate(_at_positions(at, right * divisor), text, {"divisor": 1.0})
    if len(at.wrong_rows) == 1:
        wrong, positions = at.wrong_rows[0], right.copy()
        used = _nearest(at, wrong, np.arange(max(64.0, 4.0 * right.size)))
        positions[wrong] = used
        text = f"position {wrong} is rotated as position {used}"
        yield Candidate(_at_positions(at, positions), text, {"position": wrong, "used": used})
        return
    for used in dict.fromkeys((right.size - 1, 1, 0)):
        text = f"every position is rotated as position {used}"
        yield Candidate(_at_positions(at, np.full_like(right, used)), text, {"used": used})


ROPE = (
    Entry("rope_missing", _OPERATIONS, missing),
    Entry("rope_style", _OPERATIONS, style),
    Entry("rope_freqs_ignored", _OPERATIONS, freqs_ignored),
    Entry("rope_shift", _OPERATIONS, shift),
    Entry("rope_position", _OPERATIONS, position),
    Entry("rope_theta", _OPERATIONS, theta),
)
