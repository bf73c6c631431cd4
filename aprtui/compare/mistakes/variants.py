"""Mistakes in what some families alone have: a gate on attention, scaled values, xIELU, a clamp on
the experts' gates, the weight on an expert's input."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from aprtui.compare.mistakes.attempt import Attempt, Candidate, Entry
from aprtui.graph.ops import (
    Activate,
    Attend,
    Experts,
    Multiply,
    Op,
    Part,
    Product,
    Sigmoid,
    Softplus,
    Xielu,
)

__all__ = ["VARIANTS"]

_CURVES: dict[type[Op], str] = {Sigmoid: "sigmoid", Softplus: "softplus", Product: "none"}


def gate_missing(at: Attempt[Multiply]) -> Iterator[Candidate]:
    weighed, gate = at.node.inputs
    if isinstance(at.graph[gate].op, Sigmoid | Softplus):
        text = f"{weighed.stage} was not multiplied by its gate ({gate.stage})"
        yield Candidate(at.inputs[0], text, {"gate": gate.stage})


def gate_curve(at: Attempt[Sigmoid | Softplus]) -> Iterator[Candidate]:
    part, right = at.op.part, _CURVES[type(at.op)]
    for kind, used in _CURVES.items():
        if used == right:
            continue
        made = at.remade(_through(kind, part))
        text = f"the gate is {used} of its product where the model says {right}"
        yield Candidate(made, text, {"used": used, "right": right})


def _through(kind: type[Op], part: Part) -> Op:
    if kind is Sigmoid:
        return Sigmoid(part)
    return Softplus(part) if kind is Softplus else Product((part,))


def value_scale_missing(at: Attempt[Attend]) -> Iterator[Candidate]:
    if at.op.scale != 1.0:
        text = f"the values are not multiplied by {at.op.scale:g}"
        made = at.remade(replace(at.op, scale=1.0))
        yield Candidate(made, text, {"used": 1.0, "right": at.op.scale})


def xielu(at: Attempt[Xielu]) -> Iterator[Candidate]:
    right = at.op
    raw = {
        "positive": _before_softplus(right.positive),
        "negative": _before_softplus(right.negative - right.beta),
    }
    changed: dict[str, Op] = {
        "the factors above and below 0 are swapped": replace(
            right, positive=right.negative, negative=right.positive
        ),
        "beta * x is left out": replace(right, beta=0.0),
        "beta is not added to the factor below 0": replace(
            right, negative=right.negative - right.beta
        ),
        "the factors are taken as stored, without softplus": replace(
            right, positive=raw["positive"], negative=raw["negative"] + right.beta
        ),
    }
    for used in ("silu", "relu2", "relu", "gelu", "gelu_tanh"):
        changed[f"{used} where the model says xIELU"] = Activate(used)
    for text, op in changed.items():
        yield Candidate(at.remade(op), text, {"right": "xielu"})


def _before_softplus(value: float) -> float:
    """x of log(1 + exp(x)); nothing to be had of what is not positive."""
    return math.log(math.expm1(value)) if 0 < value < 700 else value


def clamp_missing(at: Attempt[Experts]) -> Iterator[Candidate]:
    clamp = at.op.clamp
    if clamp is not None:
        unlimited = replace(at.op, clamp=replace(clamp, limit=math.inf))
        text = f"the experts' gate and up are not held within {clamp.limit:g}"
        yield Candidate(at.remade(unlimited), text, {"limit": None, "right": clamp.limit})
        plain = replace(at.op, clamp=None)
        text = f"{at.op.activation}(gate) * up in the experts, whose gate is another"
        yield Candidate(at.remade(plain), text, {"used": at.op.activation})


def expert_bias_missing(at: Attempt[Experts]) -> Iterator[Candidate]:
    if at.op.biased:
        made = at.remade(replace(at.op, biased=False))
        yield Candidate(made, "the experts' biases were left out")


VARIANTS = (
    Entry("gate_missing", (Multiply,), gate_missing),
    Entry("gate_curve", (Sigmoid, Softplus), gate_curve),
    Entry("value_scale_missing", (Attend,), value_scale_missing),
    Entry("xielu", (Xielu,), xielu),
    Entry("expert_clamp_missing", (Experts,), clamp_missing),
    Entry("expert_bias_missing", (Experts,), expert_bias_missing),
)
