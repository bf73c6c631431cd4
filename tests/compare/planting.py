"""Captures computed from a model with one stage made wrong by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aprtui.engine.replay import EXACT, Arithmetic, Replay
from aprtui.formats.aprt import write_stage
from aprtui.formats.tracedir import StageKey, TraceDir, open_trace, relative_path
from aprtui.graph import Graph, Node, Role
from aprtui.model.open import Model, open_model

Array = npt.NDArray[np.float64]

TOKENS = (476, 668, 997, 11, 295, 313, 258, 329, 266, 441, 295, 198)


@dataclass(frozen=True)
class Scene:
    """What a planting function sees: the right output, the inputs, every value made so far."""

    right: Array
    inputs: tuple[Array, ...]
    values: Mapping[StageKey, Array]
    node: Node
    replay: Replay

    @property
    def graph(self) -> Graph:
        return self.replay.model.graph

    def op(self, stage: str) -> Any:
        """The operation of another stage of the layer."""
        return self.graph[StageKey(self.node.key.layer, stage)].op

    @property
    def own(self) -> Any:
        """The operation of the stage itself."""
        return self.node.op

    @property
    def heads(self) -> tuple[int, int, int]:
        """(A, K, d) of the layer's attention."""
        scores, attend = self.op("attn_scores"), self.op("attention")
        return scores.heads, scores.kv_heads, attend.values.size

    def matrix(self, name: str) -> Array:
        """A whole weight matrix of the stage's layer, or of the whole model."""
        role = Role(name, self.node.key.layer)
        if not self.replay.has(role):
            role = Role(name)
        return self.replay.rows(role, range(self.replay.shape(role)[0]))

    def vector(self, name: str, layer: int | None = None) -> Array:
        return self.replay.vector(Role(name, self.node.key.layer if layer is None else layer))

    def value(self, stage: str) -> Array:
        return self.values[StageKey(self.node.key.layer, stage)]


Plant = Callable[[Scene], Array]


@lru_cache(maxsize=8)
def model_of(path: Path, overrides: tuple[tuple[str, str], ...] = ()) -> Model:
    return open_model(path, dict(overrides))


def compute(
    model: Model,
    plants: Mapping[str, Plant],
    how: Arithmetic = EXACT,
    tokens: tuple[int, ...] = TOKENS,
) -> dict[StageKey, Array]:
    """Every stage of one pass, rounded to float32; ``plants`` make stages of that name wrong."""
    replay = Replay(model, tokens)
    values: dict[StageKey, Array] = {}
    for node in model.graph:
        inputs = tuple(values[key] for key in node.inputs)
        made = replay.run(node, inputs, how)
        if str(node.key) in plants:
            scene = Scene(made, inputs, values, node, replay)
            made = np.array(plants[str(node.key)](scene))
        with np.errstate(over="ignore"):
            values[node.key] = made.astype(np.float32).astype(np.float64)
    return values


def write(
    root: Path, values: Mapping[StageKey, Array], without: frozenset[str] = frozenset()
) -> TraceDir:
    """The stages as files without a manifest, except those of the names in ``without``."""
    for key, value in values.items():
        if key.stage not in without:
            layer = 0 if key.stage == "embedding" else key.layer
            write_stage(root / relative_path(key), layer, value.astype(np.float32))
    return open_trace(root)


def previous_scale(x: Array) -> Array:
    """Blocks of 32 in Q8_0, each with the float16 scale of the block before."""
    blocks = x.reshape(-1, 32)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / 127
    codes = np.rint(blocks / scale)
    kept = scale.astype(np.float16).astype(np.float64)
    return np.asarray((codes * np.roll(kept, 1, axis=0)).reshape(x.shape))
