"""Mistakes in routing and experts: no renormalisation, ranks shifted, experts swapped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations

import numpy as np
import numpy.typing as npt

from aprtui.compare.mistakes.attempt import Attempt, Candidate, Entry
from aprtui.graph.ops import Choose, Combine, Experts, Route
from aprtui.graph.vocabulary import facts_of

__all__ = ["EXPERTS"]

Float64 = npt.NDArray[np.float64]

_MAX_PAIRS = 64


def not_renormalised(at: Attempt[Route]) -> Iterator[Candidate]:
    right = at.op.renormalise
    text = (
        "the chosen experts' weights are not divided by their sum"
        if right
        else "the chosen experts' weights are divided by their sum, which this model does not do"
    )
    yield Candidate(at.remade(replace(at.op, renormalise=not right)), text)


def _ranks(by: int, top: int) -> str:
    return f"ranks {by + 1} to {by + top} were chosen where 1 to {top} are right"


def second_ids(at: Attempt[Choose]) -> Iterator[Candidate]:
    top = at.op.top
    order = at.remade(replace(at.op, top=at.op.experts))
    for by in range(1, at.op.experts - top + 1):
        yield Candidate(order[:, by : by + top], _ranks(by, top), {"by": by})


def second_weights(at: Attempt[Route]) -> Iterator[Candidate]:
    """Weights of the next ranks, while the ids are those of the first."""
    chosen, (logits, ids) = at.graph[at.node.inputs[1]], at.inputs
    if not isinstance(chosen.op, Choose):
        return
    experts, top = chosen.op.experts, ids.shape[1]
    order = at.elsewhere(chosen, replace(chosen.op, top=experts), logits)
    plain = replace(at.op, renormalise=False)
    for by in range(1, experts - top + 1):
        given, text = (logits, order[:, by : by + top]), _ranks(by, top)
        yield Candidate(at.remade(inputs=given), text, {"by": by})
        if at.op.renormalise:
            made = at.remade(plain, inputs=given)
            yield Candidate(made, f"{text}, and not renormalised", {"by": by})


def softmax_after(at: Attempt[Route]) -> Iterator[Candidate]:
    """Softmax over the chosen alone: of their logits it equals renormalising, of their
    probabilities it does not."""
    chosen = at.remade(replace(at.op, renormalise=False, scale=1.0))
    again = replace(at.op, score="softmax", renormalise=False)
    ranks = np.broadcast_to(np.arange(chosen.shape[1], dtype=np.float64), chosen.shape)
    text = "a softmax is taken over the chosen probabilities again"
    yield Candidate(at.remade(again, inputs=(chosen, ranks)), text, {"of": "probabilities"})


def other_score(at: Attempt[Route]) -> Iterator[Candidate]:
    right = at.op.score
    for used in ("softmax", "sigmoid", "none"):
        if used == right:
            continue
        of = "the logits themselves" if used == "none" else f"{used} of the logits"
        text = f"{of} where the model says {right}"
        for renormalise in (at.op.renormalise, not at.op.renormalise):
            made = at.remade(replace(at.op, score=used, renormalise=renormalise))
            how = "" if renormalise == at.op.renormalise else ", and not" * at.op.renormalise
            how += " divided by their sum" if how or renormalise != at.op.renormalise else ""
            parameters = {"used": used, "right": right, "renormalised": renormalise}
            yield Candidate(made, text + how, parameters)


def bias_missing(at: Attempt[Choose]) -> Iterator[Candidate]:
    if at.op.bias is not None:
        made = at.remade(replace(at.op, bias=None))
        yield Candidate(made, "the experts were chosen without the correction bias")


def bias_in_weight(at: Attempt[Route]) -> Iterator[Candidate]:
    """Weights out of the scores that the experts were chosen by."""
    chosen, (logits, ids) = at.graph[at.node.inputs[1]], at.inputs
    if not isinstance(chosen.op, Choose) or chosen.op.bias is None or at.op.score == "mixer":
        return
    plain = replace(chosen, op=replace(chosen.op, groups=1, kept=1))
    scores = at.case.replay.choice_scores(plain, logits)
    made = at.remade(replace(at.op, score="none"), inputs=(scores, ids))
    yield Candidate(made, "the correction bias, meant for the choice, is in the weights")


def groups_ignored(at: Attempt[Choose]) -> Iterator[Candidate]:
    groups, kept = at.op.groups, at.op.kept
    if groups != kept:
        made = at.remade(replace(at.op, groups=1, kept=1))
        text = f"the experts were chosen from all groups where {kept} of {groups} stand for choice"
        yield Candidate(made, text, {"groups": groups, "kept": kept})


def scale_missing(at: Attempt[Route]) -> Iterator[Candidate]:
    if at.op.scale != 1.0:
        text = f"the weights are not multiplied by {at.op.scale:g}"
        made = at.remade(replace(at.op, scale=1.0))
        yield Candidate(made, text, {"used": 1.0, "right": at.op.scale})
    if at.op.by_expert is not None:
        made = at.remade(replace(at.op, by_expert=None))
        yield Candidate(made, "the weights are not multiplied by each expert's own factor")


def swapped(at: Attempt[Experts]) -> Iterator[Candidate]:
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
    for one, other in combinations(range(at.op.count), 2):
        pair = {one, other}
        if pair & innocent or not all(row & pair for row in wrong):
            continue
        tried += 1
        if tried > _MAX_PAIRS:
            return
        renamed = ids.copy()
        renamed[ids == one], renamed[ids == other] = other, one
        made = at.remade(inputs=(x, weights, renamed))
        text = f"experts {one} and {other} are swapped"
        yield Candidate(made, text, {"experts": [one, other]})


def _of_choice(
    at: Attempt[Experts], weights: Float64, ids: Float64, text: str, **parameters: object
) -> Iterator[Candidate]:
    """The experts of another choice, where the first wrong position may come of it."""
    given = (at.inputs[0], weights, ids)
    if at.may_be(given):
        yield Candidate(at.remade(inputs=given), text, parameters)


def next_experts(at: Attempt[Experts]) -> Iterator[Candidate]:
    """Every expert's number off by as much: an expert-parallel rank that counts from another."""
    _, weights, ids = at.inputs
    for by in (1, -1):
        text = f"every token is sent to the expert {by:+d} from its own"
        yield from _of_choice(at, weights, (ids + by) % at.op.count, text, by=by)


def dropped(at: Attempt[Experts]) -> Iterator[Candidate]:
    """Choices that do not count: of later ranks, or beyond what an expert takes."""
    _, weights, ids = at.inputs
    if at.op.on_input:
        return
    for ranks in range(1, ids.shape[1]):
        kept = np.where(np.arange(ids.shape[1]) < ranks, weights, 0.0)
        count = "counts" if ranks == 1 else f"{ranks} count"
        text = f"of each token's {ids.shape[1]} experts only the first {count}"
        yield from _of_choice(at, kept, ids, text, ranks=ranks)
    flat = ids.astype(int).ravel()
    before = np.array([(flat[:place] == expert).sum() for place, expert in enumerate(flat)])
    before = before.reshape(ids.shape)  # how many choices of the same expert came earlier
    for limit in sorted({*before[list(at.wrong_rows[:1])].ravel().tolist()} - {0}):
        kept = np.where(before < limit, weights, 0.0)
        text = f"an expert takes {limit} tokens, and those that come later are dropped"
        yield from _of_choice(at, kept, ids, text, capacity=limit)


_WEIGHED = "the experts are weighed by the weights of"


def weights_reversed(at: Attempt[Route]) -> Iterator[Candidate]:
    text = f"{_WEIGHED} the ranks in reverse"
    yield Candidate(at.base[:, ::-1], text, {"order": "reversed"})


def other_weights(at: Attempt[Experts]) -> Iterator[Candidate]:
    """The weights of the choice in another order than its ids."""
    _, weights, ids = at.inputs
    text = f"{_WEIGHED} the ranks in reverse"
    yield from _of_choice(at, weights[:, ::-1], ids, text, order="reversed")
    for by in (1, -1):
        text = f"{_WEIGHED} the row {-by:+d} from a token's own"
        yield from _of_choice(at, np.roll(weights, by, 0), ids, text, rows=by)


def gate_up_swapped(at: Attempt[Experts]) -> Iterator[Candidate]:
    if at.op.gate is not None:
        made = at.remade(replace(at.op, gate=at.op.up, up=at.op.gate))
        yield Candidate(made, "every expert's gate and up are in each other's place")


def weight_on_input(at: Attempt[Experts]) -> Iterator[Candidate]:
    made = at.remade(replace(at.op, on_input=not at.op.on_input))
    used, right = ("output", "input") if at.op.on_input else ("input", "output")
    text = f"the router's weight multiplies the expert's {used}, not its {right}"
    yield Candidate(made, text, {"used": used, "right": right})


def shared_missing(at: Attempt[Combine]) -> Iterator[Candidate]:
    if len(at.inputs) > 1 and _of_experts(at):
        routed, shared, *gate = at.inputs
        made = at.remade(inputs=(routed, np.zeros_like(shared), *gate))
        yield Candidate(made, "the shared expert was left out")


def _of_experts(at: Attempt[Combine]) -> bool:
    return facts_of(at.node.inputs[0].stage).experts


def mixer_missing(at: Attempt[Combine]) -> Iterator[Candidate]:
    """One of two branches that are summed, attention or a scan."""
    if not _of_experts(at):
        for place, key in enumerate(at.node.inputs):
            kept = [x * (at_place != place) for at_place, x in enumerate(at.inputs)]
            made = at.remade(inputs=kept)
            yield Candidate(made, f"{key.stage} was left out", {"missing": key.stage})


def shared_gate_missing(at: Attempt[Combine]) -> Iterator[Candidate]:
    if len(at.inputs) > 2:
        routed, shared, gate = at.inputs
        made = at.remade(inputs=(routed, shared, np.ones_like(gate)))
        yield Candidate(made, "the shared expert was added without its gate")


EXPERTS = (
    Entry("router_not_renormalised", (Route,), not_renormalised),
    Entry("router_second", (Choose,), second_ids),
    Entry("router_second", (Route,), second_weights),
    Entry("router_softmax_after", (Route,), softmax_after),
    Entry("router_score", (Route,), other_score),
    Entry("router_scale_missing", (Route,), scale_missing),
    Entry("router_bias_missing", (Choose,), bias_missing),
    Entry("router_bias_in_weight", (Route,), bias_in_weight),
    Entry("router_groups_ignored", (Choose,), groups_ignored),
    Entry("experts_swapped", (Experts,), swapped),
    Entry("experts_swapped", (Experts,), next_experts),
    Entry("experts_dropped", (Experts,), dropped),
    Entry("router_order", (Route,), weights_reversed),
    Entry("router_order", (Experts,), other_weights),
    Entry("gate_up_swapped", (Experts,), gate_up_swapped),
    Entry("weight_on_input", (Experts,), weight_on_input),
    Entry("shared_missing", (Combine,), shared_missing),
    Entry("branch_missing", (Combine,), mixer_missing),
    Entry("shared_gate_missing", (Combine,), shared_gate_missing),
)
