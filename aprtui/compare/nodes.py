"""A capture of llama.cpp's nodes of a model that no family file describes: there is nothing to
replay them by, so that only a reference can say where they part."""

from __future__ import annotations

from dataclasses import replace

from aprtui.compare.bars import choose_bars
from aprtui.compare.bisection import Bisection, Divergence, Unmeasured
from aprtui.compare.pairs import FAILED, compare_traces
from aprtui.formats.modulecalls import nodes_of
from aprtui.formats.tracedir import TraceDir

__all__ = ["bisect_nodes"]

_WHY = "a node of llama.cpp under its own name: no family file says how it is computed"


def bisect_nodes(model: str, b: TraceDir, a: TraceDir | None = None) -> Bisection:
    """Every node unmeasured, with the first at which ``a`` and ``b`` differ."""
    bars = choose_bars(a or b, b)
    tokens = len(b.token_ids or ())
    found = Bisection(
        (),
        (),
        tuple(Unmeasured(key, _WHY) for key in nodes_of(b) if key in b.records),
        None,
        (bars.rel_l2, bars.worst_row_rel_l2),
        tokens,
        "given" if tokens else "unknown",
        ("nodes are compared with a reference's, and not replayed: aprtui diff A B",),
        model=model,
        a=None if a is None else str(a.root),
        b=str(b.root),
    )
    if a is None:
        return found
    first = next((pair for pair in compare_traces(a, b, bars) if pair.kind in FAILED), None)
    if first is None:
        return found
    return replace(found, first_divergence=Divergence(first.key, first.kind, first.message))
