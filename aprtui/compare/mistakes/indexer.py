"""Mistakes of an indexer of keys: a choice that is not looked at, of another size, by other
scores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from aprtui.compare.mistakes.attempt import Attempt, Candidate, Entry
from aprtui.graph.indexer import ChooseKeys, IndexScores
from aprtui.graph.ops import Scores, Softmax

__all__ = ["INDEXER"]


def choice_ignored(at: Attempt[Scores | Softmax]) -> Iterator[Candidate]:
    own = 2 if isinstance(at.op, Scores) else 1  # inputs of an attention that looks at all keys
    if len(at.inputs) <= own:
        return
    text, every = (
        "queries look at all keys where an indexer chose some",
        np.ones_like(at.inputs[own]),
    )
    yield Candidate(at.remade(inputs=(*at.inputs[:own], every)), text)
    if isinstance(at.op, Softmax):  # B's scores hide what was not chosen
        scored = at.graph[at.node.inputs[0]]
        given = [value for key in scored.inputs[:2] if (value := at.captured(key)) is not None]
        if len(given) == 2:
            scores = at.elsewhere(scored, scored.op, *given, every)
            yield Candidate(at.remade(inputs=(scores, every)), text)


def choice_count(at: Attempt[ChooseKeys]) -> Iterator[Candidate]:
    right = at.op.top
    found = [] if at.y is None else [int(at.y.sum(-1).max())]
    for used in dict.fromkeys((*found, right - 1, right + 1)):
        if used > 0 and used != right:
            made = at.remade(replace(at.op, top=used))
            text = f"{used} keys are chosen where the model says {right}"
            yield Candidate(made, text, {"used": used, "right": right})


def relu_missing(at: Attempt[IndexScores]) -> Iterator[Candidate]:
    q, k, weights = at.inputs
    made = at.base - at.remade(inputs=(-q, k, weights))  # x is relu(x) - relu(-x)
    yield Candidate(made, "the indexer's products count below zero too: no ReLU")


def weights_missing(at: Attempt[IndexScores]) -> Iterator[Candidate]:
    q, k, weights = at.inputs
    made = at.remade(inputs=(q, k, np.ones_like(weights)))
    yield Candidate(made, "the indexer's heads all count the same")


INDEXER = (
    Entry("choice_ignored", (Scores, Softmax), choice_ignored),
    Entry("choice_count", (ChooseKeys,), choice_count),
    Entry("index_relu_missing", (IndexScores,), relu_missing),
    Entry("index_weights_missing", (IndexScores,), weights_missing),
)
