"""A stage that read another stage's output than its own input, or its rows in another order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from aprtui.compare.captured import Captured
from aprtui.compare.mistakes.attempt import Attempt, Candidate, Entry, ProductAttempt
from aprtui.formats.tracedir import StageKey
from aprtui.graph import Node, Role
from aprtui.graph.ops import Attend, Op, Product

__all__ = ["OF_ANY", "OF_PRODUCTS"]

Float64 = npt.NDArray[np.float64]


def _others(captured: Captured, node: Node, own: StageKey) -> Iterator[tuple[StageKey, Float64]]:
    """What B captured whole before a node, in its layer and what that was given (of the whole
    model: in the last layer), with as many values as ``own``; the nearest first."""
    graph = captured.graph
    before = graph.nodes[: graph.nodes.index(node)]
    layer = graph.num_layers - 1 if node.key.layer is None else node.key.layer
    here = [each for each in before if each.key.layer in (layer, node.key.layer)]
    keys = [*(each.key for each in here), *(key for each in here for key in each.inputs)]
    size = graph[own].shape(captured.tokens, captured.logits)
    for key in dict.fromkeys(reversed(keys)):
        alike = np.prod(graph[key].shape(captured.tokens, captured.logits)) == np.prod(size)
        if key != own and alike and captured.state(key) == "whole":
            yield key, captured.wide(key)


def other_input(at: Attempt[Op]) -> Iterator[Candidate]:
    if at.y is None or at.case.last or at.case.between:
        return
    for place, own in enumerate(at.node.inputs[:2]):
        if isinstance(at.op, Attend) and not place:  # its weights
            continue
        for key, value in _others(at.case.captured, at.node, own):
            given = list(at.inputs)
            given[place] = value.reshape(given[place].shape)
            if at.may_be(given):
                yield _named(at.remade(inputs=given), key, own)


def _named(made: Float64, key: StageKey, own: StageKey) -> Candidate:
    used, right = (key.stage, own.stage) if key.layer == own.layer else (str(key), str(own))
    text = f"computed from {used} in place of {right}"
    return Candidate(made, text, {"used": str(key), "right": str(own)})


def products_input(at: ProductAttempt) -> Iterator[Candidate]:
    node, role, replay = at.case.node, at.part.weight, at.case.replay
    if at.case.last:
        return
    for key, value in _others(at.case.captured, node, node.inputs[0]):
        x = value.reshape(-1, at.x.shape[1])[-len(at.x) :]
        near = at.plausible(lambda rows: replay.rows(role, rows), x)
        if len(x) == len(at.x) and near:
            yield _named(at.product(x), key, node.inputs[0])


def rows_interleaved(at: ProductAttempt) -> Iterator[Candidate]:
    """Two matrices of one tensor, whose rows stand one after the other and are read in turn, or the
    other way about."""
    own, replay, graph = at.part.weight, at.case.replay, at.case.captured.graph
    near = (node for node in graph if node.key.layer == at.case.key.layer)
    roles = (role for node in near if isinstance(node.op, Product) for role in node.op.matrices)
    shape = replay.shape(own)
    for other in dict.fromkeys(role for role in roles if role != own):
        for pair in ((own, other), (other, own)) if replay.shape(other) == shape else ():
            for order in _orders(shape[0]):
                yield from _in_turn(at, pair, order)


def _orders(rows: int) -> Iterator[npt.NDArray[np.int64]]:
    """Which rows of two matrices, one below the other, a matrix is taken for."""
    every = np.arange(2 * rows)
    in_turn = every.reshape(2, rows).T.ravel()
    yield from (every[::2], every[1::2], in_turn[:rows], in_turn[rows:])


def _in_turn(
    at: ProductAttempt, roles: tuple[Role, Role], order: npt.NDArray[np.int64]
) -> Iterator[Candidate]:
    replay, count = at.case.replay, len(order)

    def rows_of(rows: list[int]) -> Float64:
        wanted = order[rows]
        first, second = (replay.rows(role, (wanted % count).tolist()) for role in roles)
        return np.where((wanted < count)[:, None], first, second)

    if not at.plausible(rows_of):
        return
    x = replay.activations(at.x)
    made = np.concatenate([replay.multiplied(role, x, (at.way,))[0] for role in roles], axis=1)
    text = f"the rows of {roles[0]} and {roles[1]}, which are one tensor, are taken in turn"
    parameters = {"matrices": [str(role) for role in roles]}
    yield Candidate(at.finish(made[:, order]), text, parameters)


OF_PRODUCTS = (
    Entry("rows_interleaved", (Product,), rows_interleaved),
    Entry("other_input", (Product,), products_input),
)
OF_ANY = (Entry("other_input", (), other_input),)
