"""Mistakes of order: steps taken twice, backwards, before another or along another axis."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from aprtui.compare.mistakes.attempt import Attempt, Candidate, Entry
from aprtui.engine.replay import heads_of
from aprtui.graph import Node
from aprtui.graph.ops import Attend, Heads, Mask, Norm, Rope, Scores, Softmax

__all__ = ["ORDER"]

Float64 = npt.NDArray[np.float64]


# -- norms and rotations ---------------------------------------------------------------------------


def norm_twice(at: Attempt[Norm]) -> Iterator[Candidate]:
    if at.op.heads is None:
        yield Candidate(at.remade(inputs=(at.base,)), "normalised twice")


def norm_whole(at: Attempt[Norm]) -> Iterator[Candidate]:
    """All heads of a position normalised together where each is by itself, or the other way."""
    op, base = at.op, at.base
    if op.heads is None or op.weight is None or op.own or op.centred or op.bias is not None:
        return
    plain = at.remade(replace(op, weight=None, whole=not op.whole))
    factor = at.case.replay.vector(op.weight) + op.offset
    factor = factor.reshape(base.shape[1:]) if factor.size > base.shape[-1] else factor
    one, other = "each head is normalised by itself", "all heads are normalised together"
    used, right = (one, other) if op.whole else (other, one)
    text = f"{used} where the model says that {right}"
    yield Candidate(plain.reshape(base.shape) * factor, text, {"whole": not op.whole})


def norm_after_rope(at: Attempt[Norm | Rope]) -> Iterator[Candidate]:
    """Heads turned and then normalised: of the rotation, or of the norm before it."""
    pair = _norm_and_rope(at)
    if pair is None:
        return
    norm, rope = pair
    assert isinstance(norm.op, Norm) and norm.op.heads is not None
    given = _value(at, norm)
    if given is None:
        return
    heads = heads_of(given, norm.op.heads)
    turned = at.elsewhere(rope, _of_heads(rope.op, heads), heads)
    made = at.elsewhere(norm, _of_heads(norm.op, heads), turned)
    yield Candidate(made.reshape(at.base.shape), "normalised after the rotation, not before it")


def _norm_and_rope(at: Attempt[Norm | Rope]) -> tuple[Node, Node] | None:
    node, graph = at.node, at.graph
    if isinstance(node.op, Rope):
        norm, rope = graph[node.inputs[0]], node
    else:
        readers = (each for each in graph if each.inputs and each.inputs[0] == node.key)
        found = next((each for each in readers if isinstance(each.op, Rope)), None)
        if found is None:
            return None
        norm, rope = node, found
    return (norm, rope) if isinstance(norm.op, Norm) and norm.op.heads is not None else None


def _value(at: Attempt[Norm | Rope], norm: Node) -> Float64 | None:
    """What a norm reads."""
    if norm in at.case.chain:
        return at.case.inputs(norm, at.how)[0]
    return at.captured(norm.inputs[0])


def _of_heads(op: object, heads: Float64) -> Norm | Rope:
    """An operation of heads that stand alone [T,heads,d]."""
    assert isinstance(op, Norm | Rope)
    return replace(op, heads=Heads(0, *heads.shape[1:]))


def rope_twice(at: Attempt[Rope]) -> Iterator[Candidate]:
    made = at.elsewhere(at.node, _of_heads(at.op, at.base), at.base)
    yield Candidate(made, "rotated twice")


def rope_backwards(at: Attempt[Rope]) -> Iterator[Candidate]:
    made = at.remade(positions=[-position for position in at.positions])
    yield Candidate(made, "rotated backwards: the sine has the other sign")


# -- attention -------------------------------------------------------------------------------------


def heads_not_transposed(at: Attempt[Attend | Rope]) -> Iterator[Candidate]:
    """[T,heads,d] whose memory is [heads,T,d], or the other way about."""
    text = "[head, position, channel] is read as [position, head, channel]: no transposition"
    if isinstance(at.op, Attend):
        yield Candidate(at.base.swapaxes(0, 1).reshape(at.base.shape), text)
        return
    x = heads_of(at.inputs[0], at.op.heads)
    mixed = x.reshape(x.shape[1], x.shape[0], -1).swapaxes(0, 1)
    yield Candidate(at.elsewhere(at.node, _of_heads(at.op, x), mixed), text)


def softcap_order(at: Attempt[Scores]) -> Iterator[Candidate]:
    if at.op.cap is not None and at.op.alibi is None:
        made = at.remade(replace(at.op, scale=1.0)) * at.op.scale
        yield Candidate(made, "the soft-cap is laid on q.k before it is scaled")


def softmax_axis(at: Attempt[Softmax]) -> Iterator[Candidate]:
    if at.op.sinks is None:
        seen = at.remade(inputs=(np.zeros_like(at.inputs[0]), *at.inputs[1:])) > 0
        grown = np.where(seen, np.exp(at.inputs[0] - at.inputs[0].max(-2, keepdims=True)), 0.0)
        made = grown / np.maximum(grown.sum(-2, keepdims=True), 1e-300)
        yield Candidate(made, "the softmax runs over the queries of a key, not over its keys")


def mask_after_softmax(at: Attempt[Softmax]) -> Iterator[Candidate]:
    """Weights of all keys, of which those that the mask hides are dropped afterwards."""
    scored = at.graph[at.node.inputs[0]]
    given = [at.captured(key) for key in scored.inputs[:2]]
    if not isinstance(scored.op, Scores) or any(value is None for value in given):
        return
    open_mask, chosen = Mask(causal=False), tuple(map(np.ones_like, at.inputs[1:]))
    known = tuple(value for value in given if value is not None)
    scores = at.elsewhere(scored, replace(scored.op, mask=open_mask), *known, *chosen)
    made = at.remade(replace(at.op, mask=open_mask), inputs=(scores, *chosen))
    seen = at.remade(inputs=(np.zeros_like(at.inputs[0]), *at.inputs[1:])) > 0
    text = "the mask is laid on after the softmax: hidden keys took their share"
    yield Candidate(np.where(seen, made, 0.0), text)


ORDER = (
    Entry("norm_twice", (Norm,), norm_twice),
    Entry("norm_whole", (Norm,), norm_whole),
    Entry("norm_after_rope", (Norm, Rope), norm_after_rope),
    Entry("rope_twice", (Rope,), rope_twice),
    Entry("rope_backwards", (Rope,), rope_backwards),
    Entry("heads_not_transposed", (Attend, Rope), heads_not_transposed),
    Entry("softcap_order", (Scores,), softcap_order),
    Entry("softmax_axis", (Softmax,), softmax_axis),
    Entry("mask_after_softmax", (Softmax,), mask_after_softmax),
)
