"""Each family on a prompt of 600 tokens, far beyond its windows, chunks and trained positions:
every stage that transformers shows is ours."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from aprtui.engine.adapters import huggingface
from aprtui.engine.forward import BlockSink, forward
from aprtui.engine.job import TraceJob
from aprtui.engine.ops import Pass
from aprtui.engine.plan import make_plan
from aprtui.engine.weights import WeightStream
from aprtui.formats.tracedir import StageKey
from tests.families import TINY, save_tiny

pytest.importorskip("transformers", reason="transformers is a dev dependency")

STEPS = {"phimoe": 13, "gemma4": 5}
"""How the prompt goes on from token to token: with 11, as for the others, one expert of phimoe lies
within 2e-7 of the edge of SparseMixer's threshold, where either side may be computed; and
transformers' float32 of gemma4 is itself 1.1e-5 from float64 (ours 5e-6)."""
UNLIKE = {"falcon", "falcon-alibi"}
"""falcon's RoPE stays inside its attention; with ALiBi transformers adds that twice, as
tests/compare/test_planted_in_transformers.py shows."""
BAR = 1e-5  # docs/numerics.md 1; of attention over 512 tokens as well
CPU = torch.device("cpu")


class _Blocks:
    """A tensor [A,T,T] put together of its pieces."""

    def __init__(self, whole: torch.Tensor) -> None:
        self._whole = whole

    def put(self, first_head: int, first_query: int, block: torch.Tensor) -> None:
        heads, queries, keys = block.shape
        self._whole[first_head : first_head + heads, first_query : first_query + queries, :keys] = (
            block
        )

    def close(self) -> None: ...


class _Kept:
    def __init__(self, shapes: dict[StageKey, tuple[int, ...]]) -> None:
        self.values: dict[StageKey, torch.Tensor] = {}
        self._shapes = shapes

    def put(self, key: StageKey, value: torch.Tensor) -> None:
        self.values[key] = value.clone()

    def open_blocks(self, key: StageKey) -> BlockSink:
        whole = torch.zeros(self._shapes[key])
        self.values[key] = whole
        return _Blocks(whole)


def prompt(family: str) -> tuple[int, ...]:
    return tuple((STEPS.get(family, 11) * n + n // 96 + 3) % 96 for n in range(600))


@pytest.mark.parametrize("family", sorted(set(TINY) - UNLIKE))
def test_every_stage_of_600_tokens_is_transformers(family: str, tmp_path: Path) -> None:
    tiny, tokens = TINY[family], prompt(family)
    save_tiny(replace(tiny, settings={**tiny.settings, "max_position_embeddings": 1024}), tmp_path)
    job = TraceJob(model=str(tmp_path), engine="hf", tokens=tokens, logits="all")
    plan = make_plan(job)
    graph = plan.model.graph
    kept = _Kept({node.key: node.shape(len(tokens)) for node in graph})
    with torch.inference_mode():
        forward(graph, Pass(WeightStream(plan.model, CPU, torch.float32), tokens, "all"), kept)
    shown = set()

    def put(key: StageKey, theirs: torch.Tensor) -> None:
        ours, theirs = kept.values.pop(key).double(), theirs.double()
        shown.add(key)
        apart = float((ours.reshape(theirs.shape) - theirs).norm() / theirs.norm())
        assert apart <= BAR, f"{key}: {apart:.1e}"

    huggingface.run(plan, CPU, put)
    assert shown == {node.key for node in graph}
