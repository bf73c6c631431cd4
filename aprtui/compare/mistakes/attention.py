"""Mistakes in scores, softmax and attention: scale, masks, windows, heads, stale rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from aprtui.compare.mistakes.anywhere import fitted_scales
from aprtui.compare.mistakes.attempt import Attempt, Candidate, Entry
from aprtui.formats.tracedir import StageKey
from aprtui.model.config import ModelConfig

__all__ = ["ATTENTION"]

Float64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


# -- scores ----------------------------------------------------------------------------------------


def _raw_scores(q: Float64, k: Float64, config: ModelConfig, groups: list[int]) -> Float64:
    """Scores [A,T,T] of q [T,A,d] and k [T,K,d] without a mask; head h reads kv head groups[h]."""
    product: Float64 = np.einsum("thd,shd->hts", q, k[:, groups], optimize=True)
    scores = product * config.scale
    cap = config.score_softcap
    return scores if cap is None else np.tanh(scores / cap) * cap


def _grouped(config: ModelConfig) -> list[int]:
    return [head // (config.num_heads // config.num_kv_heads) for head in range(config.num_heads)]


def _dealt(config: ModelConfig) -> list[int]:
    return [head % config.num_kv_heads for head in range(config.num_heads)]


def _seen(config: ModelConfig, layer: int, tokens: int) -> Mask:
    window = config.window(layer)
    return _mask(tokens, 0, window)


def _mask(tokens: int, ahead: int, window: int | None) -> Mask:
    """Which keys each query sees: up to ``ahead`` beyond itself, ``window`` of them back."""
    away = np.arange(tokens)[:, None] - np.arange(tokens)[None, :]
    seen = away >= -ahead
    return seen if window is None else seen & (away < window)


def score_scale(at: Attempt) -> Iterator[Candidate]:
    if at.y is None:
        return
    cap, right = at.config.score_softcap, at.config.scale
    seen = _seen(at.config, at.layer, at.y.shape[-1])
    y = at.y if cap is None else np.arctanh(np.clip(at.y / cap, -1 + 1e-7, 1 - 1e-7)) * cap
    plain = at.remade(dataclasses.replace(at.config, score_softcap=None))
    usual = [1.0 / right, at.config.head_dim**-0.5 / right, at.config.head_dim**-0.5]
    for factor in (*usual, *fitted_scales(y[:, seen], plain[:, seen], at.rounded)):
        config = dataclasses.replace(at.config, score_scale=right * factor)
        text = f"q.k is scaled by {right * factor:.7g} where {right:.7g} is right"
        parameters = {"factor": factor, "scale": right * factor, "right": right}
        if factor != 1.0:
            yield Candidate(at.remade(config), text, parameters)


def kv_tiling(at: Attempt) -> Iterator[Candidate]:
    dealt = _dealt(at.config)
    if dealt == _grouped(at.config):
        return
    text = "query heads are dealt round the kv heads (h mod K) where they are grouped (h div A/K)"
    if at.operation == "scores":
        q, k = at.inputs
        made = _raw_scores(q, k, at.config, dealt)
        made[:, ~_seen(at.config, at.layer, q.shape[0])] = 0.0
    else:
        made = _attend(at, at.inputs[0], dealt)
    yield Candidate(made, text)


def softcap_missing(at: Attempt) -> Iterator[Candidate]:
    if at.config.score_softcap is not None:
        made = at.remade(dataclasses.replace(at.config, score_softcap=None))
        yield Candidate(made, "the soft-cap on the scores was left out")


# -- masks: scores and softmax ---------------------------------------------------------------------


def _softmax(scores: Float64, seen: Mask) -> Float64:
    held = np.where(seen, scores, -np.inf)
    powers = np.exp(held - held.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


def _unmasked(at: Attempt) -> Iterator[tuple[Float64, str]]:
    """Scores of every key: of captured q and k, and the captured scores as they are."""
    if at.operation == "scores":
        q, k = at.inputs
        yield _raw_scores(q, k, at.config, _grouped(at.config)), ""
        return
    captured = at.case.captured
    keys = [StageKey(at.layer, stage) for stage in ("q_post_rope", "k_post_rope")]
    if all(captured.state(key) == "whole" for key in keys):
        q, k = (captured.wide(key) for key in keys)
        yield _raw_scores(q, k, at.config, _grouped(at.config)), ""
    yield at.inputs[0], ", their scores taken as 0"


def _masked(at: Attempt, scores: Float64, seen: Mask) -> Float64:
    return np.where(seen, scores, 0.0) if at.operation == "scores" else _softmax(scores, seen)


def mask_leak(at: Attempt) -> Iterator[Candidate]:
    tokens, window = at.inputs[0].shape[-1], at.config.window(at.layer)
    if at.operation == "scores":
        tokens = at.inputs[0].shape[0]
    for scores, how in _unmasked(at):
        for ahead in _leaks(at, tokens):
            what = "every later key" if ahead >= tokens - 1 else f"{ahead} keys beyond their own"
            made = _masked(at, scores, _mask(tokens, ahead, window))
            yield Candidate(made, f"queries see {what}{how}", {"ahead": ahead})


def _leaks(at: Attempt, tokens: int) -> list[int]:
    """How far ahead queries may see, told by B's own non-zero values where there are any."""
    if at.y is None:
        return [tokens - 1, 1]
    away = np.arange(tokens)[None, :] - np.arange(tokens)[:, None]
    held = (at.y != 0).any(axis=0)
    ahead = int(away[held].max()) if held.any() else 0
    return [ahead] if ahead > 0 else []


def window(at: Attempt) -> Iterator[Candidate]:
    tokens = at.inputs[0].shape[0] if at.operation == "scores" else at.inputs[0].shape[-1]
    right = at.config.window(at.layer)
    choices: list[int | None] = [None, at.config.sliding_window, _window_of(at)]
    if right is not None:
        choices += [right - 1, right + 1]
    for scores, _ in _unmasked(at):
        for used in dict.fromkeys(choices):
            if used == right or (used is not None and used < 1):
                continue
            says = "the whole prompt" if right is None else f"{right}"
            text = (
                f"the sliding window of {right} keys is ignored"
                if used is None
                else f"a window of {used} keys where the model says {says}"
            )
            made = _masked(at, scores, _mask(tokens, 0, used))
            yield Candidate(made, text, {"window": used, "right": right})


def _window_of(at: Attempt) -> int | None:
    """The window that B's own non-zero values tell."""
    if at.y is None:
        return None
    away = np.arange(at.y.shape[1])[:, None] - np.arange(at.y.shape[2])[None, :]
    held = (at.y != 0).any(axis=0)
    return int(away[held].max()) + 1 if held.any() else None


# -- attention -------------------------------------------------------------------------------------


def _values(at: Attempt) -> Float64:
    config, qkv = at.config, at.inputs[1]
    start = config.q_size + config.kv_size
    return qkv[:, start:].reshape(qkv.shape[0], config.num_kv_heads, config.head_dim)


def _attend(at: Attempt, weights: Float64, groups: list[int]) -> Float64:
    mixed: Float64 = np.einsum("hts,shd->thd", weights, _values(at)[:, groups], optimize=True)
    return mixed


def other_head(at: Attempt) -> Iterator[Candidate]:
    """Heads that hold what another head (or another kv head) makes; the rest must be right."""
    if at.y is None:
        return
    axis = 1 if at.operation == "attend" else 0
    y, base = np.moveaxis(at.y, axis, 0), np.moveaxis(at.base, axis, 0)
    heads = range(y.shape[0])
    bar = 8e-3 if at.rounded else at.case.limits[1]
    wrong = [h for h in heads if _far(y[h], base[h]) > bar]
    if not wrong or len(wrong) == y.shape[0] == 1:
        return
    made = base.copy()
    uses: dict[str, dict[str, int]] = {}
    for head in wrong:
        found = next(
            ((name, other, values) for name, other, values in _instead(at, head, base)
             if _far(y[head], values) <= bar), None)  # fmt: skip
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


def _instead(at: Attempt, head: int, base: Float64) -> Iterator[tuple[str, int, Float64]]:
    config = at.config
    for other in range(base.shape[0]):
        if other != head:
            yield "output_of_head", other, base[other]
    groups = config.num_heads // config.num_kv_heads
    for kv_head in range(config.num_kv_heads):
        if kv_head == head // groups:
            continue
        if at.operation == "attend":
            yield "kv_head", kv_head, at.inputs[0][head] @ _values(at)[:, kv_head]
        elif at.operation == "scores":
            q, k = at.inputs
            single = _raw_scores(q[:, [head]], k, config, [kv_head])[0]
            yield "kv_head", kv_head, single * _seen(config, at.layer, q.shape[0])


def _far(y: Float64, made: Float64) -> float:
    norm = float(np.linalg.norm(made))
    return float(np.linalg.norm(y - made)) / norm if norm else float(np.linalg.norm(y) > 0)


def stale_row(at: Attempt) -> Iterator[Candidate]:
    """One key's value row is not this pass's: which row it is instead is fitted."""
    if at.y is None:
        return
    weights, values, config = at.inputs[0], _values(at), at.config
    tokens, groups = values.shape[0], config.num_heads // config.num_kv_heads
    away = (at.y - at.base).reshape(tokens, config.num_kv_heads, groups, config.head_dim)
    split = weights.reshape(config.num_kv_heads, groups, tokens, tokens)
    for key in at.wrong_rows[:1]:  # its own query is the first that sees it
        column = split[..., key]  # [K, groups, T]
        moved = np.einsum("kgt,tkgd->kd", column, away, optimize=True)
        moved /= np.maximum(np.square(column).sum(axis=(1, 2)), 1e-300)[:, None]
        rest = away - np.einsum("kgt,kd->tkgd", column, moved, optimize=True)
        if groups * (tokens - key) < 2 or np.linalg.norm(rest) > 0.1 * np.linalg.norm(away):
            continue
        yield from _stale(at, key, values[key] + moved)


def _stale(at: Attempt, key: int, used: Float64) -> Iterator[Candidate]:
    values, weights, config = _values(at), at.inputs[0], at.config
    tokens = values.shape[0]
    choices: list[tuple[Float64, int | str | None]] = [
        (values[other], other) for other in range(tokens) if other != key
    ]
    choices.sort(key=lambda choice: float(np.linalg.norm(choice[0] - used)))
    choices = [*choices[:2], (np.zeros_like(used), "zero"), (used, None)]
    groups = config.num_heads // config.num_kv_heads
    for row, source in choices:
        change = np.repeat(row - values[key], groups, axis=0)  # [A, d]
        made = at.base + np.einsum("ht,hd->thd", weights[:, :, key], change, optimize=True)
        said = {None: "a row of no position of this prompt", "zero": "zeros"}.get(
            source if not isinstance(source, int) else "", f"the row of position {source}"
        )
        text = f"position {key}'s value row is stale: {said} was used"
        yield Candidate(made, text, {"position": key, "taken_from": source})


ATTENTION = (
    Entry("kv_tiling", ("scores", "attend"), kv_tiling),
    Entry("softcap_missing", ("scores",), softcap_missing),
    Entry("score_scale", ("scores",), score_scale),
    Entry("window", ("scores", "softmax"), window),
    Entry("mask_leak", ("scores", "softmax"), mask_leak),
    Entry("other_head", ("scores", "softmax", "attend"), other_head),
    Entry("stale_row", ("attend",), stale_row),
)
