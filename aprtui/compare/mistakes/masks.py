"""Mistakes in masks: keys that a query sees and should not, or should see and does not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from aprtui.compare.mistakes.attempt import Attempt, Candidate, Entry
from aprtui.graph.ops import Mask, Scores, Softmax
from aprtui.text import count

__all__ = ["MASKS"]

Float64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def _masked(at: Attempt[Scores | Softmax], mask: Mask) -> Iterator[tuple[Float64, str]]:
    """The output by another mask. A softmax needs scores of keys that B's captured ones hide:
    they are made of captured q and k, and else taken as they are."""
    if isinstance(at.op, Softmax):
        scored = at.graph[at.node.inputs[0]]
        made_of = [at.captured(key) for key in scored.inputs]
        given = [value for value in made_of if value is not None]
        if isinstance(scored.op, Scores) and len(given) == len(made_of):
            scores = at.elsewhere(scored, replace(scored.op, mask=mask), *given)
            yield at.remade(replace(at.op, mask=mask), inputs=(scores, *at.inputs[1:])), ""
        yield at.remade(replace(at.op, mask=mask)), ", their scores taken as 0"
    else:
        yield at.remade(replace(at.op, mask=mask)), ""


def mask_leak(at: Attempt[Scores | Softmax]) -> Iterator[Candidate]:
    tokens = at.base.shape[-1]
    if not at.op.mask.causal:
        return
    for ahead in _leaks(at, tokens):
        what = "every later key" if ahead >= tokens - 1 else f"{ahead} keys beyond their own"
        for made, how in _masked(at, replace(at.op.mask, ahead=ahead)):
            yield Candidate(made, f"queries see {what}{how}", {"ahead": ahead})


def _leaks(at: Attempt[Scores | Softmax], tokens: int) -> list[int]:
    """How far ahead queries may see, told by B's own non-zero values where there are any."""
    if at.y is None:
        return [tokens - 1, 1]
    ahead = max(_reach(at.y), default=0)
    return [ahead] if ahead > 0 else []


def _reach(y: Float64) -> list[int]:
    """How far after each query the keys lie that B's [A,T,T] holds a value for."""
    away = np.arange(y.shape[2])[None, :] - np.arange(y.shape[1])[:, None]
    reached: list[int] = np.unique(away[(y != 0).any(axis=0)]).tolist()
    return reached


def window(at: Attempt[Scores | Softmax]) -> Iterator[Candidate]:
    right = at.op.mask
    others = (node.op.mask.window for node in at.graph if isinstance(node.op, Scores))
    choices: list[int | None] = [None, *(each for each in others if each is not None)]
    if at.y is not None:
        choices += [1 - min(_reach(at.y), default=1)]
    if right.window is not None:
        choices += [right.window - 1, right.window + 1]
    for used in dict.fromkeys(choices):
        if used == right.window or (used is not None and used < 1):
            continue
        says = "the whole prompt" if right.window is None else f"{right.window}"
        text = (
            f"the sliding window of {right.window} keys is ignored"
            if used is None
            else f"a window of {used} keys where the model says {says}"
        )
        for made, _ in _masked(at, replace(right, window=used)):
            yield Candidate(made, text, {"window": used, "right": right.window})


def chunk(at: Attempt[Scores | Softmax]) -> Iterator[Candidate]:
    right = at.op.mask
    if right.chunk is not None:
        text = f"the chunks of {right.chunk} positions are ignored"
        for made, _ in _masked(at, replace(right, chunk=None)):
            yield Candidate(made, text, {"chunk": None, "right": right.chunk})


def chunk_edge(at: Attempt[Scores | Softmax]) -> Iterator[Candidate]:
    right = at.op.mask
    if right.chunk is None:
        return
    masks = {
        f"chunks of {size} positions where the model says {right.chunk}": replace(right, chunk=size)
        for size in (right.chunk - 1, right.chunk + 1)
        if size
    }
    text = f"a window of {right.chunk} keys where the model has chunks of as many positions"
    masks[text] = replace(right, chunk=None, window=right.chunk)
    for text, mask in masks.items():
        parameters = {"chunk": mask.chunk, "window": mask.window, "right": right.chunk}
        for made, _ in _masked(at, mask):
            yield Candidate(made, text, parameters)


# -- keys that are hidden --------------------------------------------------------------------------


def keys_cut(at: Attempt[Scores | Softmax]) -> Iterator[Candidate]:
    """Keys that queries do not see: which ones, B's own zeros tell."""
    if at.y is None or at.y.ndim != 3:
        return
    seen = (at.y != 0).any(axis=0)
    right = (at.base != 0).any(axis=0)
    if not (right & ~seen).any():
        return
    made = _cut(at, seen)
    if made is not None:
        text, parameters = _said(seen, right)
        yield Candidate(made, text, parameters)


def _cut(at: Attempt[Scores | Softmax], seen: Bools) -> Float64 | None:
    """The output with ``seen`` [T,T] for a mask."""
    if isinstance(at.op, Scores):
        return np.where(seen, at.base, 0.0)
    if at.op.sinks is not None:
        return None
    scored = at.inputs[0].reshape(at.base.shape)
    held = np.where(seen, scored, -np.inf)
    with np.errstate(invalid="ignore"):
        shares = np.exp(held - held.max(axis=-1, keepdims=True))
        made: Float64 = np.nan_to_num(shares / shares.sum(axis=-1, keepdims=True))
    blind = ~(seen & (scored != 0).any(axis=0)).any(axis=1)  # they see nothing but hidden keys
    return np.where(blind[:, None] & seen, 1.0 / np.maximum(seen.sum(axis=1)[:, None], 1), made)


def _said(seen: Bools, right: Bools) -> tuple[str, dict[str, object]]:
    """The hidden keys in a sentence: a cut that all later queries share, the prompt's last keys,
    or how many queries lack any."""
    hidden = right & ~seen
    queries = np.flatnonzero(hidden.any(axis=1))
    first, tokens = int(queries[0]), len(seen)
    keys = np.flatnonzero(hidden.any(axis=0))
    low, high = int(keys[0]), int(keys[-1])
    block = np.zeros_like(hidden)
    block[first:, low : high + 1] = True
    parameters: dict[str, object] = {"from": first, "keys": [low, high]}
    if np.array_equal(hidden, block & right):
        if low == 0 and first == 0:
            kept = tokens - high - 1
            text = f"all queries see only the last {kept} keys of the prompt"
            return text, {"last": kept, **parameters}
        return f"queries from position {first} on do not see keys {low} to {high}", parameters
    text = f"{count(int(hidden.sum()))} keys that {count(len(queries), 'query')} should see are "
    return text + f"hidden, the first query is {first}", {"queries": queries.tolist()}


def sinks_missing(at: Attempt[Softmax]) -> Iterator[Candidate]:
    if at.op.sinks is not None:
        made = at.remade(replace(at.op, sinks=None))
        yield Candidate(made, "the attention sinks were left out")


MASKS = (
    Entry("window", (Scores, Softmax), window),
    Entry("chunk_missing", (Scores, Softmax), chunk),
    Entry("chunk_edge", (Scores, Softmax), chunk_edge),
    Entry("mask_leak", (Scores, Softmax), mask_leak),
    Entry("sinks_missing", (Softmax,), sinks_missing),
    Entry("keys_cut", (Scores, Softmax), keys_cut),
)
