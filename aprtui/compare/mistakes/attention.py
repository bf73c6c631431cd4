"""Mistakes in scores, softmax and attention: scale, heads, stale rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from aprtui.compare.mistakes.anywhere import fitted_scales
from aprtui.compare.mistakes.attempt import Attempt, Candidate, Entry
from aprtui.compare.mistakes.cache import CACHE
from aprtui.compare.mistakes.masks import MASKS
from aprtui.engine.replay import heads_of
from aprtui.graph.ops import Attend, Heads, Norm, Rope, Scores, Softmax
from aprtui.text import ranges

__all__ = ["ATTENTION"]

Float64 = npt.NDArray[np.float64]

_BEFORE = 4  # keys up to the first wrong position that may be the stale one


# -- scores ----------------------------------------------------------------------------------------


def _queries_and_keys(op: Scores, inputs: Sequence[Float64]) -> tuple[Float64, Float64]:
    """Queries [T,A,d] and keys [T,K,d] out of the inputs of scores."""
    q, k = inputs[:2]
    return (
        q if op.queries is None else heads_of(q, op.queries),
        k if op.keys is None else heads_of(k, op.keys),
    )


def score_scale(at: Attempt[Scores]) -> Iterator[Candidate]:
    if at.y is None:
        return
    cap, right = at.op.cap, at.op.scale
    y = at.y - (at.base - at.remade(replace(at.op, alibi=None)))
    y = y if cap is None else np.arctanh(np.clip(y / cap, -1 + 1e-7, 1 - 1e-7)) * cap
    plain = at.remade(
        replace(at.op, cap=None, alibi=None)
    )  # 0 where a key is hidden: such take no part
    root = float(_queries_and_keys(at.op, at.inputs)[0].shape[-1]) ** -0.5
    usual = [1.0 / right, root / right, root]
    for factor in (*usual, *fitted_scales(np.where(plain != 0.0, y, 0.0), plain, at.rounded)):
        text = f"q.k is scaled by {right * factor:.7g} where {right:.7g} is right"
        parameters = {"factor": factor, "scale": right * factor, "right": right}
        if factor != 1.0:
            yield Candidate(at.remade(replace(at.op, scale=right * factor)), text, parameters)


def _dealt(heads: int, kv_heads: int) -> list[int] | None:
    """The query heads in the order in which grouping hands each the kv head that dealing would
    (h mod K); None where both are the same."""
    order = [head for kv_head in range(kv_heads) for head in range(kv_head, heads, kv_heads)]
    return None if order == list(range(heads)) else order


_DEALT = "query heads are dealt round the kv heads (h mod K) where they are grouped (h div A/K)"


def scores_dealt(at: Attempt[Scores]) -> Iterator[Candidate]:
    order = _dealt(at.op.heads, at.op.kv_heads)
    if order is not None:
        q, k = _queries_and_keys(at.op, at.inputs)
        made = at.remade(
            replace(at.op, queries=None, keys=None), inputs=(q[:, order], k, *at.inputs[2:])
        )
        yield Candidate(made[np.argsort(order)], _DEALT)


def values_dealt(at: Attempt[Attend]) -> Iterator[Candidate]:
    order = _dealt(at.op.heads, at.op.values.count)
    if order is not None:
        weights, values = at.inputs
        made = at.remade(inputs=(weights[order], values))
        yield Candidate(made[:, np.argsort(order)], _DEALT)


def softcap_missing(at: Attempt[Scores]) -> Iterator[Candidate]:
    if at.op.cap is not None:
        made = at.remade(replace(at.op, cap=None))
        yield Candidate(made, "the soft-cap on the scores was left out")


def alibi_missing(at: Attempt[Scores]) -> Iterator[Candidate]:
    if at.op.alibi is not None:
        made = at.remade(replace(at.op, alibi=None))
        yield Candidate(made, "the biases of ALiBi are not added to the scores")


def alibi_scaled(at: Attempt[Scores]) -> Iterator[Candidate]:
    if at.op.alibi is None or at.y is None:
        return
    biases = at.remade(replace(at.op, scale=0.0, cap=None))
    for factor in fitted_scales(at.y - at.base + biases, biases, at.rounded):
        text = f"the biases of ALiBi are multiplied by {factor:g}"
        yield Candidate(at.base + (factor - 1.0) * biases, text, {"factor": factor})
    if kind := at.how.stage:  # a mask in the engine's type, and scores in float32
        mask = at.case.replay.rounded(biases, kind)
        plain = at.remade(replace(at.op, alibi=None))
        text = "the biases of ALiBi are added twice, once in 16 bits"
        yield Candidate(plain + biases + mask, text, {"factor": 2.0})


def temperature_missing(at: Attempt[Scores]) -> Iterator[Candidate]:
    if at.op.temperature is not None:
        made = at.remade(replace(at.op, temperature=None))
        yield Candidate(made, "the queries are not multiplied by their position's temperature")


def turned(at: Attempt[Scores]) -> Iterator[Candidate]:
    """Q and K of a layer that turns nothing, turned as the other layers' are."""
    of_layer = (node for node in at.graph if node.key.layer == at.node.key.layer)
    turns = [node for node in at.graph if isinstance(node.op, Rope)]
    if not turns or any(isinstance(node.op, Rope) for node in of_layer):
        return
    rope = turns[0].op
    assert isinstance(rope, Rope)
    made = [
        at.elsewhere(turns[0], replace(rope, heads=Heads(0, *x.shape[1:])), x)
        for x in _queries_and_keys(at.op, at.inputs)
    ]
    plain = replace(at.op, queries=None, keys=None)
    scores = at.remade(plain, inputs=(*made, *at.inputs[2:]))
    yield Candidate(scores, "q and k are rotated in a layer that turns nothing by its position")


# -- heads that are nothing -----------------------------------------------------------------------


def heads_zero(at: Attempt[Scores | Softmax | Attend | Rope | Norm]) -> Iterator[Candidate]:
    """Whole heads of zeros where the others are right."""
    names = at.node.axis_names()
    axis = next((i for i, name in enumerate(names) if name in ("head", "kv_head")), None)
    if at.y is None or axis is None or at.y.ndim != len(names):
        return
    y, base = np.moveaxis(at.y, axis, 0), np.moveaxis(at.base, axis, 0)
    heads = [h for h in range(len(y)) if not np.any(y[h]) and np.any(base[h])]
    if heads and len(heads) < len(y):
        made = base.copy()
        made[heads] = 0.0
        said = f"head {heads[0]} is" if len(heads) == 1 else f"heads {ranges(heads)} are"
        yield Candidate(np.moveaxis(made, 0, axis), f"{said} all zero", {"heads": heads})


# -- attention -------------------------------------------------------------------------------------


def other_head(at: Attempt[Scores | Softmax | Attend]) -> Iterator[Candidate]:
    """Heads that hold what another head (or another kv head) makes; the rest must be right."""
    if at.y is None:
        return
    axis = at.node.axis_names().index("head")
    y, base = np.moveaxis(at.y, axis, 0), np.moveaxis(at.base, axis, 0)
    wrong = [h for h in range(y.shape[0]) if _far(y[h], base[h]) > at.bar]
    if not wrong or len(wrong) == y.shape[0] == 1:
        return
    made = base.copy()
    uses: dict[str, dict[str, int]] = {}
    for head in wrong:
        found = next(
            ((name, other, values) for name, other, values in _instead(at, head, base)
             if _far(y[head], values) <= at.bar), None)  # fmt: skip
        if found is None:
            return
        uses.setdefault(found[0], {})[str(head)] = found[1]
        made[head] = found[2]
    said = "; ".join(
        f"head {head} uses {name.replace('_', ' ')} {other}"
        for name, pairs in uses.items()
        for head, other in pairs.items()
    )
    parameters: dict[str, object] = {"heads": wrong, **uses}
    if len(wrong) == 1:
        name, pairs = next(iter(uses.items()))
        parameters = {"head": wrong[0], name: pairs[str(wrong[0])]}
    yield Candidate(np.moveaxis(made, 0, axis), said, parameters)


def _instead(
    at: Attempt[Scores | Softmax | Attend], head: int, base: Float64
) -> Iterator[tuple[str, int, Float64]]:
    """What another head makes, and what this one makes of each other kv head."""
    for other in range(base.shape[0]):
        if other != head:
            yield "output_of_head", other, base[other]
    op = at.op
    if isinstance(op, Softmax):
        return
    kv_heads = op.values.count if isinstance(op, Attend) else op.kv_heads
    for kv_head in range(kv_heads):
        if kv_head != head // (op.heads // kv_heads):
            yield "kv_head", kv_head, _with_kv_head(at, head, kv_head)


def _with_kv_head(at: Attempt[Scores | Softmax | Attend], head: int, kv_head: int) -> Float64:
    """One head's scores [T,T] or attention [T,d] by one kv head."""
    op = at.op
    if isinstance(op, Attend):
        weights, values = at.inputs
        alone = replace(op, heads=1, values=op.values.one(kv_head))
        made: Float64 = at.remade(alone, inputs=(weights[[head]], values))[:, 0]
        return made
    assert isinstance(op, Scores)
    q, k = _queries_and_keys(op, at.inputs)
    single = replace(op, heads=1, kv_heads=1, queries=None, keys=None)
    made = at.remade(single, inputs=(q[:, [head]], k[:, [kv_head]], *at.inputs[2:]))[0]
    return made


def _far(y: Float64, made: Float64) -> float:
    norm = float(np.linalg.norm(made))
    return float(np.linalg.norm(y - made)) / norm if norm else float(np.linalg.norm(y) > 0)


def stale_row(at: Attempt[Attend]) -> Iterator[Candidate]:
    """One key's value row is not this pass's: which row it is instead is fitted."""
    if at.y is None:
        return
    weights, values = at.inputs[0], heads_of(at.inputs[1], at.op.values)
    tokens, kv_heads, size = values.shape
    groups = at.op.heads // kv_heads
    away = (at.y - at.base).reshape(tokens, kv_heads, groups, size)
    split = weights.reshape(kv_heads, groups, tokens, tokens)
    for key in _stale_keys(at):
        column = split[..., key]  # [K, groups, T]
        moved = np.einsum("kgt,tkgd->kd", column, away, optimize=True)
        moved /= np.maximum(np.square(column).sum(axis=(1, 2)), 1e-300)[:, None]
        rest = away - np.einsum("kgt,kd->tkgd", column, moved, optimize=True)
        if groups * (tokens - key) < 2 or np.linalg.norm(rest) > 0.1 * np.linalg.norm(away):
            continue
        yield from _stale(at, key, values, values[key] + moved)


def _stale_keys(at: Attempt[Attend]) -> list[int]:
    """The keys that may be stale, the likeliest first: its own query is the first that sees it,
    and may hardly look at it."""
    return [
        key for first in at.wrong_rows[:1] for key in range(first, first - _BEFORE, -1) if key >= 0
    ]


def _stale(at: Attempt[Attend], key: int, values: Float64, used: Float64) -> Iterator[Candidate]:
    choices: list[tuple[Float64, int | str | None]] = [
        (values[other], other) for other in range(len(values)) if other != key
    ]
    choices.sort(key=lambda choice: float(np.linalg.norm(choice[0] - used)))
    choices = [*choices[:2], (np.zeros_like(used), "zero"), (used, None)]
    for row, source in choices:
        changed = at.inputs[1].reshape(len(values), -1).copy()
        changed[key, at.op.values.columns] = row.reshape(-1)
        made = at.remade(inputs=(at.inputs[0], changed))
        said = {None: "a row of no position of this prompt", "zero": "zeros"}.get(
            source if not isinstance(source, int) else "", f"the row of position {source}"
        )
        text = f"position {key}'s value row is stale: {said} was used"
        yield Candidate(made, text, {"position": key, "taken_from": source})


ATTENTION = (
    Entry("kv_tiling", (Scores,), scores_dealt),
    Entry("kv_tiling", (Attend,), values_dealt),
    Entry("softcap_missing", (Scores,), softcap_missing),
    Entry("score_scale", (Scores,), score_scale),
    Entry("temperature_missing", (Scores,), temperature_missing),
    Entry("alibi_missing", (Scores,), alibi_missing),
    Entry("alibi_scaled", (Scores,), alibi_scaled),
    Entry("nope_rotated", (Scores,), turned),
    Entry("heads_zero", (Scores, Softmax, Attend, Rope, Norm), heads_zero),
    *CACHE,
    *MASKS,
    Entry("other_head", (Scores, Softmax, Attend), other_head),
    Entry("stale_row", (Attend,), stale_row),
)
