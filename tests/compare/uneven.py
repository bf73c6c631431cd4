"""A small random model whose two layers differ in every way that a node can carry."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from aprtui.formats.modelfile import TensorEntry
from aprtui.graph import Graph, Role
from aprtui.graph.blocks import Attention, Builder, Routing
from aprtui.graph.ops import Choose, Mask, Norm, Route, Temperature
from aprtui.graph.rope import RopeTable
from aprtui.model.open import Matrix, Model

__all__ = ["TABLE", "uneven_model"]

HIDDEN, VOCAB = 32, 64
TABLE = RopeTable(dims=8, theta=1e4, magnitude=1.25)
WARM = Temperature(0.5, 4, 1)
_FIRST = Attention(4, 2, 16, 0.25, Mask(window=4), TABLE, qkv_bias=True, sinks=True)
_SECOND = Attention(2, 1, 32, 0.2, Mask(chunk=5), None, cap=2.0, temperature=WARM)
_ROUTING = Routing(
    Choose(2, 8, "sigmoid", groups=4, kept=1), Route("sigmoid", scale=2.5), 24, "silu",
    shared_size=16, corrected=True,
)  # fmt: skip


@dataclass(frozen=True)
class _Opened:
    """What replay and bisection ask of a model."""

    path: Path
    graph: Graph
    weights: dict[Role, Matrix]
    file: Any
    doubts: tuple[()] = ()


def uneven_model(path: Path) -> Model:
    """Layer 0: 4 heads of 16, half of each turned, a window, sinks, a dense FFN. Layer 1: 2 heads
    of 32, nothing turned, q at a temperature, chunks, a soft-cap, experts in groups, chosen with a
    bias, with a shared one, a scaled branch."""
    graph = _graph()
    random, weights, first = np.random.default_rng(11), {}, 0
    with path.open("wb") as file:
        for role, shape in graph.weights.items():
            rows, columns = shape if len(shape) == 2 else (1, shape[0])
            values = random.standard_normal((rows, columns)) / np.sqrt(columns if rows > 1 else 4)
            raw = values.astype("<f4").tobytes()
            entry = TensorEntry(str(role), "F32", shape, path, first, len(raw))
            weights[role] = Matrix(entry, 0, rows, columns)
            first += file.write(raw)
    return cast(
        Model, _Opened(path, graph, weights, SimpleNamespace(digest="1", quantisation=None))
    )


def _graph() -> Graph:
    build, norm = Builder(HIDDEN), Norm(None, 1e-5, 1.0)
    hidden = build.embedding(VOCAB)
    hidden = build.branch(hidden, "attn", norm, lambda x: build.attention(x, _FIRST))
    hidden = build.branch(hidden, "ffn", norm, lambda x: build.gated_mlp(x, 48, "silu"))
    build.layer = 1
    x = build.norm("attn_norm", hidden, replace(norm, centred=True))
    hidden = build.residual("post_attn_residual", hidden, build.attention(x, _SECOND), 0.5)
    hidden = build.branch(hidden, "ffn", norm, lambda x: build.experts(x, _ROUTING))
    build.head(hidden, norm, VOCAB, cap=3.0)
    return build.graph()
