"""Every node of every family computed again in float64 from what the pass captured, and long
prompts against transformers."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aprtui.engine.forward import BlockSink, forward
from aprtui.engine.ops import Pass
from aprtui.engine.replay import Replay
from aprtui.engine.weights import WeightStream
from aprtui.formats.tracedir import StageKey
from aprtui.model.open import open_model
from tests.engine.mutations import our_logits
from tests.families import TINY, save_tiny

pytest.importorskip("transformers", reason="transformers is a dev dependency")

TOKENS = tuple((11 * place + 3) % 96 for place in range(24))
LONG = tuple((17 * place + place // 7) % 96 for place in range(600))
NEAR = 5e-6  # of float32 to float64, of one node
BAR = 1e-5  # docs/numerics.md 1


class _Keeping:
    """A tap that keeps every stage."""

    def __init__(self, shapes: dict[StageKey, tuple[int, ...]]) -> None:
        self.values: dict[StageKey, torch.Tensor] = {}
        self._shapes = shapes

    def put(self, key: StageKey, value: torch.Tensor) -> None:
        self.values[key] = value.clone()

    def open_blocks(self, key: StageKey) -> BlockSink | None:
        whole = self.values[key] = torch.zeros(self._shapes[key])

        class Sink:
            def put(self, first_head: int, first_query: int, block: torch.Tensor) -> None:
                heads, queries, keys = block.shape
                whole[first_head:, first_query:][:heads, :queries, :keys] = block

            def close(self) -> None: ...

        return Sink()


@pytest.mark.parametrize("family", sorted(TINY))
def test_every_node_is_replayed_from_its_own_inputs(family: str, tmp_path: Path) -> None:
    save_tiny(TINY[family], tmp_path)
    model = open_model(tmp_path)
    tap = _Keeping({node.key: node.shape(len(TOKENS), "all") for node in model.graph})
    with torch.inference_mode():
        forward(
            model.graph,
            Pass(WeightStream(model, torch.device("cpu"), torch.float32), TOKENS, "all"),
            tap,
        )
    wide = {key: value.double().numpy() for key, value in tap.values.items()}
    replay = Replay(model, TOKENS, "all")
    for node in model.graph:
        made = replay.run(node, [wide[key] for key in node.inputs])
        away = np.linalg.norm(made.reshape(-1) - wide[node.key].reshape(-1))
        assert away <= NEAR * np.linalg.norm(made), f"{node.key}: {away:.1e}"


@pytest.mark.parametrize("family", sorted(TINY))
def test_a_long_prompt_has_transformers_logits(family: str, tmp_path: Path) -> None:
    tiny = TINY[family]
    longer = {name: 640 for name in ("max_position_embeddings", *tiny.lengths)}
    model: Any = save_tiny(replace(tiny, settings={**tiny.settings, **longer}), tmp_path)
    importlib.import_module("transformers").logging.set_verbosity_error()
    with torch.no_grad():
        theirs = model(torch.tensor([LONG])).logits[0]
    apart = (our_logits(tmp_path, LONG) - theirs).norm() / theirs.norm()
    assert apart <= BAR, f"{apart:.1e}"
