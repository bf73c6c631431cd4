"""Mistakes in routing and experts: no renormalisation, ranks shifted, experts swapped."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import combinations

import numpy as np
import numpy.typing as npt

from aprtui.compare.mistakes.attempt import Attempt, Candidate, Entry
from aprtui.graph import Role

__all__ = ["EXPERTS"]

Float64 = npt.NDArray[np.float64]

_MAX_PAIRS = 64


def _probabilities(at: Attempt) -> Float64:
    name = at.case.replay.product_rounding(Role("router", at.layer), at.how)
    logits = at.case.replay.products(Role("router", at.layer), at.inputs[0], (name,))[0]
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


def _ranked(probabilities: Float64) -> npt.NDArray[np.int64]:
    return np.argsort(-probabilities, axis=1, kind="stable")


def _normalised(values: Float64) -> Float64:
    return np.asarray(values / values.sum(-1, keepdims=True))


def not_renormalised(at: Attempt) -> Iterator[Candidate]:
    right = at.config.norm_topk_prob
    made = at.remade(dataclasses.replace(at.config, norm_topk_prob=not right))
    text = (
        "the chosen experts' weights are not divided by their sum"
        if right
        else "the chosen experts' weights are divided by their sum, which this model does not do"
    )
    yield Candidate(made, text)


def second(at: Attempt) -> Iterator[Candidate]:
    probabilities, k = _probabilities(at), at.config.num_experts_per_tok
    order = _ranked(probabilities)
    for by in range(1, probabilities.shape[1] - k + 1):
        ids = order[:, by : by + k]
        text = f"ranks {by + 1} to {by + k} were chosen where 1 to {k} are right"
        if at.operation == "router_indices":
            yield Candidate(ids.astype(np.float64), text, {"by": by})
            continue
        chosen = np.take_along_axis(probabilities, ids, axis=1)
        yield Candidate(_normalised(chosen), text, {"by": by})
        yield Candidate(chosen, f"{text}, and not renormalised", {"by": by})


def softmax_after(at: Attempt) -> Iterator[Candidate]:
    """Softmax over the chosen alone: of their logits it equals renormalising, of their
    probabilities it does not."""
    probabilities, k = _probabilities(at), at.config.num_experts_per_tok
    chosen = np.take_along_axis(probabilities, _ranked(probabilities)[:, :k], axis=1)
    powers = np.exp(chosen)
    yield Candidate(
        _normalised(powers),
        "a softmax is taken over the chosen probabilities again",
        {"of": "probabilities"},
    )
    if not at.config.norm_topk_prob:
        yield Candidate(
            _normalised(chosen),
            "softmax over the chosen experts' logits where it is over all experts'",
            {"of": "logits"},
        )


def swapped(at: Attempt) -> Iterator[Candidate]:
    """Two experts' weights in each other's place: every wrong token uses one of them."""
    if at.y is None:
        return
    x, weights, ids = at.inputs
    rows = [set(row) for row in ids.astype(int).tolist()]
    wrong = [rows[row] for row in at.wrong_rows]
    right = [row for place, row in enumerate(rows) if place not in at.wrong_rows]
    if not wrong:
        return
    innocent: set[int] = set().union(*right)
    tried = 0
    for one, other in combinations(range(at.config.num_experts), 2):
        pair = {one, other}
        if pair & innocent or not all(row & pair for row in wrong):
            continue
        tried += 1
        if tried > _MAX_PAIRS:
            return
        renamed = ids.copy()
        renamed[ids == one], renamed[ids == other] = other, one
        made = at.case.replay.run(at.node, (x, weights, renamed), at.how)
        text = f"experts {one} and {other} are swapped"
        yield Candidate(made, text, {"experts": [one, other]})


EXPERTS = (
    Entry("router_not_renormalised", ("router",), not_renormalised),
    Entry("router_second", ("router", "router_indices"), second),
    Entry("router_softmax_after", ("router",), softmax_after),
    Entry("experts_swapped", ("experts",), swapped),
)
