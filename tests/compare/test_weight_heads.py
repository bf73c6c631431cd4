"""A pass whose value heads go round the key heads, read as a model has them where they do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from aprtui.compare.weight_heads import in_order_of
from aprtui.graph import Graph
from aprtui.graph.blocks import Builder
from aprtui.graph.delta import Delta, place_delta
from aprtui.graph.recurrent import DeltaRule
from tests.compare.planting import write

TOKENS, KEY_HEADS, EACH = 5, 2, 3  # three value heads share a key head: no turn is its own inverse
KEY, VALUE, HEADS = 4, 6, KEY_HEADS * EACH
MOVED = ("qkv", "conv", "gate", "beta", "decay", "out", "state", "norm")


def delta_layer(*, dealt: bool) -> Graph:
    b = Builder(16)
    rule = DeltaRule(KEY_HEADS, HEADS, KEY, VALUE, 1e-6, dealt=dealt)
    place_delta(b, b.embedding(9), Delta(rule, 4, 1e-6, "silu", logged=True))
    return b.graph()


def columns(stage: str, order: list[int]) -> npt.NDArray[Any]:
    """Row by row, one number a value: of value head h h and its place, of all others their place;
    with the heads in ``order``."""
    if stage == "delta_state":
        return np.stack([np.arange(KEY * VALUE).reshape(KEY, VALUE) + 1000 * h for h in order])
    size = 1 if stage in ("delta_beta", "delta_decay") else VALUE
    heads = np.stack([np.arange(size) + 1000 * head for head in order]).reshape(-1)
    before = 2 * KEY_HEADS * KEY if stage in ("delta_qkv", "delta_conv") else 0
    row = np.concatenate([np.arange(before) - 500, heads])
    return row + 100_000 * np.arange(TOKENS)[:, None]


@pytest.mark.parametrize("dealt", [True, False])
def test_each_value_head_comes_to_stand_where_the_other_model_has_it(
    dealt: bool, tmp_path: Path
) -> None:
    grouped = list(range(HEADS))  # value head h reads key head h div EACH
    round_about = [k * EACH + r for r in range(EACH) for k in range(KEY_HEADS)]  # h mod KEY_HEADS
    theirs, ours = (round_about, grouped) if dealt else (grouped, round_about)
    own = delta_layer(dealt=dealt)
    values = {node.key: columns(node.key.stage, theirs) for node in own
              if node.key.stage.startswith("delta")}  # fmt: skip
    values[own.nodes[-1].key] = np.arange(TOKENS * 16).reshape(TOKENS, 16)
    trace = write(tmp_path, values)
    read = in_order_of(delta_layer(dealt=not dealt), trace, own)
    assert {key.stage for key in values} == {*(f"delta_{name}" for name in MOVED), "attn_out"}
    for key, record in read.records.items():
        right = values[key] if key.stage == "attn_out" else columns(key.stage, ours)
        assert np.array_equal(record.values(), right.astype(np.float32).reshape(-1)), key
    assert "value heads of 8 stages" in read.notes[-1]


def test_a_pass_whose_heads_stand_alike_is_left_as_it_is(tmp_path: Path) -> None:
    own = delta_layer(dealt=True)
    key = own.nodes[-1].key
    trace = write(tmp_path, {key: np.zeros((TOKENS, 16))})
    assert in_order_of(own, trace, own) is trace
