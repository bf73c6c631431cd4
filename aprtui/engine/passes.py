"""Sequences run pass after pass on any engine: which rows come next, and the greedy token of each.

An engine gives ``compute``: one pass over one piece of every sequence that is not done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from aprtui.engine.events import PassDone
from aprtui.engine.plan import Plan
from aprtui.engine.stacking import Stack
from aprtui.engine.stopping import raise_if_stopped
from aprtui.engine.stretches import Stretch

__all__ = ["Compute", "Outcome", "Piece", "run_passes"]


@dataclass(frozen=True)
class Piece:
    """The rows of one sequence in one pass, and the tokens that are fed."""

    sequence: int
    stretch: Stretch
    tokens: tuple[int, ...]


Compute = Callable[[Sequence[Piece]], Sequence[torch.Tensor]]
"""One pass, its stages put into the sequences' stacks: of each piece the logits [V] of its last
row."""


@dataclass(frozen=True)
class Outcome:
    """What a sequence came to: every token that was fed, and the logits [V] after the last."""

    tokens: tuple[int, ...]
    logits: torch.Tensor


def run_passes(
    plans: Sequence[Plan],
    stacks: Sequence[Stack],
    compute: Compute,
    tell: Callable[[int, PassDone], None],
) -> list[Outcome]:
    """All passes of sequences that run together; ``tell`` is given a sequence's number and what
    its pass came to."""
    fed = [list(plan.tokens) for plan in plans]
    last: dict[int, torch.Tensor] = {}
    start = time.monotonic()
    for number in range(max(len(plan.stretches) for plan in plans)):
        raise_if_stopped()
        pieces = [
            Piece(at, plan.stretches[number], _fed(fed[at], plan.stretches[number]))
            for at, plan in enumerate(plans)
            if number < len(plan.stretches)
        ]
        for piece in pieces:
            stacks[piece.sequence].begin(piece.stretch)
        for piece, logits in zip(pieces, compute(pieces), strict=True):
            at, of = piece.sequence, plans[piece.sequence].stretches
            last[at] = logits
            token = greedy(logits)
            if number + 1 < len(of) and of[number + 1].kind == "decode":
                fed[at].append(token)
            tell(at, _done(piece, number, len(of), token, plans[at], time.monotonic() - start))
    return [Outcome(tuple(fed[at]), last[at]) for at in range(len(plans))]


def greedy(logits: torch.Tensor) -> int:
    """The likeliest token; of equals, and where there is NaN, the first."""
    return int((logits == logits.max()).to(torch.uint8).argmax())


def _fed(tokens: Sequence[int], stretch: Stretch) -> tuple[int, ...]:
    return tuple(tokens[stretch.first : stretch.first + stretch.rows])


def _done(piece: Piece, number: int, of: int, token: int, plan: Plan, elapsed_s: float) -> PassDone:
    vocabulary, stretch = plan.model.vocabulary, piece.stretch
    return PassDone(
        number=number,
        of=of,
        kind=stretch.kind,
        first=stretch.first,
        rows=stretch.rows,
        token=token,
        text=vocabulary.text_of(token) if vocabulary else "",
        elapsed_s=round(elapsed_s, 4),
    )
