"""A model whose layers differ: one dense, then experts; sliding and full; one without positions.

Its graph alone, for what shows models: nothing is computed. And a trace of it, of random numbers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from aprtui import CaptureWriter
from aprtui.formats.tracedir import StageKey
from aprtui.graph import Graph
from aprtui.graph.blocks import Attention, Builder, Routing
from aprtui.graph.ops import Choose, Mask, Norm, Route
from aprtui.graph.rope import RopeTable

__all__ = ["FOREIGN", "NO_POSITIONS", "TOKENS", "differing", "write_differing", "write_foreign"]

TOKENS = (1, 2, 3)
NO_POSITIONS = 3  # the layer whose queries and keys are not turned
FOREIGN = ("ssm_scan_of_the_mixer", "ssm_store", "my_rope_of_both")


def differing(layers: int = 4) -> Graph:
    """H 8, 2 heads of 4, 1 key head, F 16 in layer 0, 4 experts of 6 in the others, V 12."""
    build = Builder(8)
    norm = Norm(None, 1e-6)
    hidden = build.embedding(12)
    for layer in range(layers):
        build.layer = layer
        x = build.norm("attn_norm", hidden, norm)
        table = None if layer == NO_POSITIONS else RopeTable(4, 1e4)
        mask = Mask(window=2 if layer % 2 else None)
        branch = build.attention(x, Attention(2, 1, 4, 0.5, mask, table))
        hidden = build.residual("post_attn_residual", hidden, branch)
        x = build.norm("ffn_norm", hidden, norm)
        if layer == 0:
            branch = build.gated_mlp(x, 16, "silu")
        else:
            branch = build.experts(x, Routing(Choose(2, 4), Route(), 6, "silu"))
        hidden = build.residual("post_ffn_residual", hidden, branch)
    build.head(hidden, norm, 12)
    return build.graph()


def write_differing(folder: Path, *, noise: float = 0.0, layers: int = 4) -> Path:
    """A whole trace; ``noise`` is added to every value."""
    random, other = np.random.default_rng(3), np.random.default_rng(4)
    graph = differing(layers)
    with CaptureWriter(folder, tokens=TOKENS, engine={"name": "mine"}, model=graph) as capture:
        for node in graph:
            shape = node.shape(len(TOKENS))
            values = random.standard_normal(shape) + noise * other.standard_normal(shape)
            capture.put(node.key.stage, values, layer=node.key.layer)
    return folder


def write_foreign(folder: Path, *, noise: float = 0.0) -> Path:
    """A trace of two known and of FOREIGN's stages, which only some of the layers have."""
    random, other = np.random.default_rng(3), np.random.default_rng(4)
    keys = [StageKey(n, stage) for n in range(3) for stage in ("attn_norm", "ffn_out")]
    keys += [StageKey(n, stage) for n in (0, 2) for stage in FOREIGN[: 3 - n // 2]]
    with CaptureWriter(folder, tokens=TOKENS, engine={"name": "mine"}) as capture:
        for key in keys:
            values = random.standard_normal((3, 8)) + noise * other.standard_normal((3, 8))
            capture.put(key.stage, values, layer=key.layer)
    return folder
