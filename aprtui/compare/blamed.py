"""The weights that a stage reads: which of them make what is wrong, and whether they are whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from aprtui.compare.bisection import Culprit, Mistake
from aprtui.compare.captured import Captured
from aprtui.compare.case import Case
from aprtui.compare.causes import Read
from aprtui.compare.localerror import LocalError
from aprtui.graph import Graph
from aprtui.model.health import broken_weights
from aprtui.text import clean, count

__all__ = ["broken_weight", "misplaced", "otherwise_held", "reads_of"]


_MISPLACED = 2  # stages of one layer that are made with another's weights


def reads_of(case: Case, wrong: Sequence[str] = ()) -> tuple[Read, ...]:
    """The weights of a stage; ``wrong`` names parts of it, or the stage where all of it is."""
    weights, op = case.replay.model.weights, case.op
    if case.parts:
        roles = [(part.name, part.weight) for part in case.parts]
    else:
        roles = [("", role) for role in op.matrices or op.weights]
    blamed = {*wrong} - {case.key.stage}
    found = [
        Read(
            case.key,
            part if len(case.parts) > 1 else "",
            role.name,
            clean(weights[role].entry.name, 200),
            weights[role].entry.type,
            bool(op.matrices),
            bool(wrong) and (not blamed or part in blamed),
        )
        for part, role in roles
        if role in weights
    ]
    return tuple({(read.part, read.tensor): read for read in found}.values())


def otherwise_held(captured: Captured, reads: Sequence[Read]) -> str:
    """Which of the weights the runtime's own dump held otherwise, as its import found."""
    engine = captured.trace.stated.get("engine")
    settings = engine.get("settings") if isinstance(engine, dict) else None
    said = settings.get("parameters") if isinstance(settings, dict) else None
    others = said.get("others") if isinstance(said, dict) else None
    if not isinstance(others, dict):
        return ""
    told = {read.tensor: others.get(read.tensor) for read in reads if read.wrong}
    return "; ".join(
        f"the runtime's own {tensor} is another: {clean(how, 200)}"
        for tensor, how in told.items() if isinstance(how, str)
    )  # fmt: skip


def broken_weight(case: Case, error: LocalError) -> Culprit | None:
    """The culprit where NaN or Inf comes from a stage's own weights and not from its inputs."""
    if not all(np.isfinite(value).all() for value in case.given.values()):
        return None
    model = case.replay.model
    broken = [finding for node in case.chain for finding in broken_weights(model, node)]
    if not broken:
        return None
    first, named = broken[0], {name for each in broken for name in each.tensors}
    text = f"the weights hold it: {'; '.join(each.text for each in broken[:3])}"
    parameters = {"tensor": first.tensors[0], "row": first.row, "block": first.block}
    looks = (
        f"{count(error.inherited, 'value')} of {count(case.y.size)} are NaN or Inf by the weights"
    )
    return Culprit(
        case.key,
        "nonfinite",
        tuple(each.key.stage for each in case.between),
        None,
        None,
        {},
        (),
        looks,
        Mistake("weight_nonfinite", text, parameters, error.rel_l2),
        reads=tuple(read for read in reads_of(case, (case.key.stage,)) if read.tensor in named),
    )


def misplaced(culprits: Sequence[Culprit], graph: Graph) -> list[str]:
    """Layers of B whose tensors are another layer's, by the weights that they were made with."""
    layers = {str(role): role.layer for role in graph.weights}
    found: Counter[tuple[int, int]] = Counter()
    for culprit in culprits:
        own = culprit.key.layer
        used = None if culprit.mistake is None else culprit.mistake.parameters.get("weight")
        other = layers.get(str(used))
        if own is not None and other is not None and other != own:
            found[own, other] += 1
    return [
        f"layer {own} of B holds what layer {other} computes, in {count} stages: try it as layer "
        f"{other} (are its layers counted from one, or is the map off?)"
        for (own, other), count in sorted(found.items())
        if count >= _MISPLACED
    ]
