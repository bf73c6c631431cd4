"""A weight is the same rows wherever they lie: windows, rows in turn, columns, parts of vectors."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from aprtui.engine.block_decoders import Workspace
from aprtui.engine.codecs import Codec, codec_of
from aprtui.engine.weight_blocks import WeightReader
from aprtui.errors import EngineError
from aprtui.formats.blocks import stored_bytes
from aprtui.formats.modelfile import TensorEntry
from aprtui.model.open import Matrix
from aprtui.model.operand import Operand

Float32 = npt.NDArray[np.float32]
ROWS, COLUMNS = 24, 64


@pytest.fixture
def stored(tmp_path: Path) -> Callable[..., TensorEntry]:
    """Writes a tensor's bytes to a file and says where they lie."""

    def write(raw: bytes, kind: str, *shape: int) -> TensorEntry:
        path = tmp_path / "weights"
        path.write_bytes(raw)
        return TensorEntry("w", kind, shape, path, 0, len(raw), flat=kind == "APR_Q4")

    return write


def values(*shape: int) -> Float32:
    return np.random.default_rng(5).standard_normal(shape).astype(np.float32)


def decoded(codec: Codec, step: int) -> Float32:
    """All rows, ``step`` at a time."""
    blocks = []
    for first in range(0, codec.rows, step):
        rows = min(step, codec.rows - first)
        out = torch.full((rows, codec.columns), math.nan)
        codec.decode(codec.bytes_of(first, rows), first, out, Workspace())
        blocks.append(out.numpy())
    return np.concatenate(blocks)


WINDOWS = {
    "whole": ({}, slice(None)),
    "a part of a fused one": ({"first": 8, "rows": 10}, slice(8, 18)),
    "gate of gate and up in turn": ({"rows": 12, "group": 1, "period": 2}, slice(0, None, 2)),
    "up of them": ({"first": 1, "rows": 12, "group": 1, "period": 2}, slice(1, None, 2)),
}


def window(entry: TensorEntry, *, first: int = 0, rows: int = ROWS, **places: Any) -> Matrix:
    return Matrix(entry, first, rows, COLUMNS, **places)


@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize("step", [1, 5, ROWS])
@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_rows_are_those_of_the_tensor(
    name: str, step: int, kind: str, stored: Callable[..., TensorEntry]
) -> None:
    table = values(ROWS, COLUMNS)
    if kind == "Q8_0":  # whole numbers in blocks of scale one are stored as they are
        table = np.round(table * 40).clip(-127, 127)
        block = np.full((ROWS, 2), 1, "<f2").view(np.uint8).reshape(ROWS, 2, 2)
        quants = table.astype(np.int8).view(np.uint8).reshape(ROWS, 2, 32)
        entry = stored(np.concatenate((block, quants), axis=2).tobytes(), kind, ROWS, COLUMNS)
    else:
        entry = stored(table.tobytes(), kind, ROWS, COLUMNS)
    places, chosen = WINDOWS[name]
    matrix = window(entry, **places)
    codec = codec_of(matrix)
    np.testing.assert_array_equal(decoded(codec, step), table[chosen])
    np.testing.assert_array_equal(decoded(codec.moved(torch.clone), step), table[chosen])
    np.testing.assert_array_equal(
        WeightReader().block(Operand(matrix), 0, matrix.rows), table[chosen]
    )
    np.testing.assert_array_equal(
        WeightReader().rows_at(Operand(matrix), [3, 1]), table[chosen][[3, 1]]
    )


def test_heads_of_q_k_and_v_in_turn_are_taken_apart(stored: Callable[..., TensorEntry]) -> None:
    table = values(ROWS, COLUMNS)
    heads = table.reshape(2, 3, 4, COLUMNS)  # two heads, each q, k and v of four rows
    entry = stored(table.tobytes(), "F32", ROWS, COLUMNS)
    for place in range(3):
        codec = codec_of(Matrix(entry, 4 * place, 8, COLUMNS, group=4, period=12))
        for step in (1, 3, 8):
            np.testing.assert_array_equal(decoded(codec, step), heads[:, place].reshape(8, COLUMNS))


@pytest.mark.parametrize("kind", ["<f4", "<f2"])
@pytest.mark.parametrize("step", [1, 7, ROWS])
def test_columns_of_a_transposed_weight_are_its_rows(
    kind: str, step: int, stored: Callable[..., TensorEntry]
) -> None:
    table = values(ROWS, COLUMNS).astype(kind).astype(np.float32)
    across = np.ascontiguousarray(np.concatenate((values(3, COLUMNS), table)).T).astype(kind)
    entry = stored(across.tobytes(), {"<f4": "F32", "<f2": "F16"}[kind], COLUMNS, ROWS + 3)
    matrix = Matrix(entry, 3, ROWS, COLUMNS, transposed=True)
    codec = codec_of(matrix)
    np.testing.assert_array_equal(decoded(codec, step), table)
    np.testing.assert_array_equal(decoded(codec.moved(torch.clone), step), table)
    np.testing.assert_array_equal(WeightReader().block(Operand(matrix), 0, ROWS), table)


def test_packed_experts_may_lie_transposed_with_gate_and_up_in_turn(
    stored: Callable[..., TensorEntry],
) -> None:
    across = values(3 * COLUMNS, 10).reshape(3, COLUMNS, 10)  # [experts, in, out]
    entry = stored(across.tobytes(), "F32", 3, COLUMNS, 10)
    matrix = Matrix(entry, 1, 5, COLUMNS, group=1, period=2, transposed=True, stack=2)
    for codec in (codec_of(matrix), codec_of(matrix).moved(torch.clone)):
        np.testing.assert_array_equal(decoded(codec, 2), across[2, :, 1::2].T)


def test_biases_of_packed_experts_are_theirs_alone(stored: Callable[..., TensorEntry]) -> None:
    biases = values(3, 10)
    entry = stored(biases.tobytes(), "F32", 3, 10)
    up = Matrix(entry, 11, 1, 5, group=1, period=2)
    for matrix, expected in ((Matrix(entry, 20, 1, 10), biases[2]), (up, biases[1, 1::2])):
        codec = codec_of(matrix)
        assert codec.bytes_of(0, 1).numel() == 40, "one row of three is read"
        np.testing.assert_array_equal(decoded(codec, 1)[0], expected)
        np.testing.assert_array_equal(decoded(codec.moved(torch.clone), 1)[0], expected)


def test_a_vector_may_be_a_part_of_one_or_every_other_value(
    stored: Callable[..., TensorEntry],
) -> None:
    vector = values(30)
    entry = stored(vector.tobytes(), "F32", 30)
    for matrix, expected in (
        (Matrix(entry, 0, 1, 30), vector),
        (Matrix(entry, 10, 1, 20), vector[10:]),
        (Matrix(entry, 1, 1, 15, group=1, period=2), vector[1::2]),
    ):
        np.testing.assert_array_equal(decoded(codec_of(matrix), 1)[0], expected)
        np.testing.assert_array_equal(WeightReader().block(Operand(matrix), 0, 1)[0], expected)


@pytest.mark.parametrize(
    ("kind", "places"),
    [("Q8_0", {"transposed": True}), ("APR_Q4", {"group": 1, "period": 2, "rows": 12})],
)
def test_what_a_type_cannot_be_stored_as_is_said(
    kind: str, places: dict[str, Any], stored: Callable[..., TensorEntry]
) -> None:
    raw = bytes(stored_bytes(kind, (ROWS, COLUMNS)))
    entry = stored(raw, kind, ROWS, COLUMNS)
    with pytest.raises(EngineError, match=r"w \("):
        codec_of(window(entry, **places))
