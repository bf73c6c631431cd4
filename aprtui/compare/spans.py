"""Spans with products inside that B did not capture: may honest rounding explain their error?"""

from __future__ import annotations

from collections.abc import Iterable

from aprtui.compare.case import Case
from aprtui.compare.explain import Explanation
from aprtui.engine.replay import Replay
from aprtui.graph import Node
from aprtui.graph.ops import Choose, Route

__all__ = ["ExactTypes", "may_be_rounding"]

_SPAN = 0.1  # what rounding of activations may make of a span with products inside
_FLIPPED = 1 / 32  # what a few activations that rounded the other way may make of one position:
# a unit is 1/127 of its block's largest
_FLOAT32 = 1e-3  # what may be left where products do not round: two float16 units, of a KV cache


def may_be_rounding(case: Case, found: Explanation, *, shown_exact: bool = False) -> bool:
    """Whether rounding inside the span, which nothing captured, could make such an error.

    Rounding touches every position: where most of them are reproduced, only single units can have
    gone the other way in the rest. ``shown_exact``: the capture's products with weights of these
    types do not round at all.
    """
    error = found.residual
    products = _products(case)
    if not case.between or not any(products) or error.born:
        return False
    if shown_exact:
        return error.rel_l2 <= _FLOAT32
    bar = case.limits[0]
    if found.plain.median_row_rel_l2 <= bar:
        return any(products[:-1]) and found.plain.worst_row_rel_l2 <= _FLOAT32
    if error.median_row_rel_l2 <= bar:
        return error.worst_row_rel_l2 <= _FLIPPED
    return any(products[:-1]) and error.rel_l2 < _SPAN


def _products(case: Case) -> list[bool]:
    """Which nodes of the chain round what nothing shows. A router's logits are not among them:
    experts are chosen from them by every engine alike, so each rounding of them is tried whole."""
    chosen_by = (node for node in case.chain if isinstance(node.op, Choose | Route))
    routed = {key for node in chosen_by for key in node.inputs}
    return [bool(node.op.matrices) and node.key not in routed for node in case.chain]


class ExactTypes:
    """The block types of weights whose products a capture computes without rounding activations."""

    def __init__(self, bar: float) -> None:
        self._bar = bar
        self._exact: set[str] = set()
        self._rounded: set[str] = set()

    def learn(self, case: Case, found: Explanation) -> None:
        """Take in what explains a product that was replayed from captured inputs."""
        if case.between or found.residual.rel_l2 > self._bar:  # a bar that was moved
            return
        for part in case.parts:
            plain = found.parts.get(part.name, found.by) == "float32"
            kinds = self._exact if plain else self._rounded
            kinds.add(case.replay.type_of(part.weight))

    def join(self, other: ExactTypes) -> None:
        """Take in what another has learnt."""
        self._exact |= other._exact
        self._rounded |= other._rounded

    def cover(self, replay: Replay, span: Iterable[Node]) -> bool:
        """Whether every product of ``span`` is with weights of such a type."""
        types = {replay.type_of(role) for node in span for role in node.op.matrices}
        return types <= self._exact - self._rounded
