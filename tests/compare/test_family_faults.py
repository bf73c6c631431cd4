"""One fault in a node of each kind of operation, all in one capture of each family: every one is
located exactly, and nothing else is accused. What transformers computes is cleared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aprtui.compare.bisect import bisect
from aprtui.engine.job import TraceJob
from aprtui.engine.plan import make_plan
from aprtui.engine.run import run_trace
from aprtui.formats.tracedir import StageKey, open_trace
from aprtui.graph import Graph
from aprtui.graph.indexer import ChooseKeys
from aprtui.graph.ops import Choose, Combine
from aprtui.model.open import open_model
from tests.compare.planting import Array, Scene, compute, write
from tests.families import TINY, save_tiny

pytest.importorskip("transformers", reason="transformers is a dev dependency")

TOKENS = tuple((11 * place + 3) % 96 for place in range(12))


def one_of_each_kind(graph: Graph) -> dict[str, StageKey]:
    """By operation a node that has it, of another layer from kind to kind; of a sum with nothing to
    add none, which only repeats its input."""
    kinds: dict[str, list[StageKey]] = {}
    for node in graph:
        if not (isinstance(node.op, Combine) and len(node.inputs) == 1):
            kinds.setdefault(type(node.op).__name__, []).append(node.key)
    return {kind: keys[7 * place % len(keys)] for place, (kind, keys) in enumerate(kinds.items())}


def faulty(s: Scene) -> Array:
    """A third more in one row; of ids another expert, of keys another one."""
    out, node = s.right.copy(), s.node
    if isinstance(node.op, Choose):
        unused = [n for n in range(node.op.experts) if n not in out[5]]
        out[5, -1] = unused[0]
        return out
    if isinstance(node.op, ChooseKeys):
        row = out[0, -1]
        row[[np.argmax(row), np.argmin(row)]] = 0, 1
        return out
    row = (slice(None),) * node.position_axis + (5,)
    out[(slice(0, len(out) // 2),) if node.last else row] *= 4 / 3
    return out


@pytest.mark.parametrize("family", sorted(TINY))
def test_a_fault_in_each_kind_of_node_is_located_exactly(family: str, tmp_path: Path) -> None:
    save_tiny(TINY[family], tmp_path / "model")
    model = open_model(tmp_path / "model")
    planted = {str(key) for key in one_of_each_kind(model.graph).values()}
    values = compute(model, dict.fromkeys(planted, faulty), tokens=TOKENS)
    found = bisect(model, write(tmp_path / "trace", values), tokens=TOKENS)
    assert {str(culprit.key) for culprit in found.culprits} == planted


@pytest.mark.parametrize("family", sorted(set(TINY) - {"falcon", "falcon-alibi"}))
def test_what_transformers_computes_is_cleared(family: str, tmp_path: Path) -> None:
    """Not falcon's: its RoPE stays inside its attention, and ALiBi it adds twice."""
    save_tiny(TINY[family], tmp_path / "model")
    job = TraceJob(
        model=str(tmp_path / "model"), directory=str(tmp_path / "trace"), engine="hf", tokens=TOKENS
    )
    run_trace(make_plan(job), lambda event: None)
    found = bisect(open_model(tmp_path / "model"), open_trace(tmp_path / "trace"))
    assert not (found.culprits or found.unmeasured)
