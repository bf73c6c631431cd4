"""Rows in the form compared: chosen ones are those of the blocks, and pages are given back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aprtui.engine.weight_blocks import WeightReader, block_rows
from aprtui.formats.maps import forget_pages
from aprtui.formats.modelfile import TensorEntry, tensor_bytes
from aprtui.formats.quantise import encode
from aprtui.model.open import Matrix
from aprtui.model.operand import Operand, same_bytes


def operand(path: Path, kind: str, shape: tuple[int, int], **how: float) -> Operand:
    """Random values stored as ``kind`` below a header of 100 bytes."""
    values = np.random.default_rng(shape[1]).standard_normal(shape).astype(np.float32)
    stored = encode(kind, values)
    path.write_bytes(bytes(100) + stored.tobytes())
    flat = kind.startswith("APR")
    entry = TensorEntry("w", kind, shape, path, 100, stored.size, flat)
    return Operand(Matrix(entry, 0, *shape), **how)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "columns"),
    [("F32", 30), ("F16", 7), ("BF16", 33), ("Q6_K", 256), ("Q6_K", 300), ("APR_Q4", 64),
     ("APR_Q4", 50), ("APR_Q8", 50)],
)  # fmt: skip
@pytest.mark.parametrize("how", [{}, {"head_rows": 8}, {"offset": 1.0}])
def test_chosen_rows_are_those_of_the_blocks(
    tmp_path: Path, kind: str, columns: int, how: dict[str, float]
) -> None:
    found = operand(tmp_path / "w", kind, (32, columns), **how)
    whole = np.concatenate([block.copy() for _, block in WeightReader().blocks(found)])
    chosen = [0, 31, 5, 5, 8, 17]
    assert (WeightReader().rows_at(found, chosen) == whole[chosen]).all()


def test_adjacent_pairs_are_read_as_halves(tmp_path: Path) -> None:
    """Row 2i of a head is row i of its first half, row 2i + 1 of its second (docs/stages.md 3)."""
    as_stored = WeightReader().rows_at(operand(tmp_path / "w", "F32", (16, 4)), range(16))
    halves = WeightReader().rows_at(operand(tmp_path / "w", "F32", (16, 4), head_rows=8), range(16))
    assert (halves[:8] == as_stored[[0, 2, 4, 6, 1, 3, 5, 7]]).all()
    assert (halves[8:] == as_stored[[8, 10, 12, 14, 9, 11, 13, 15]]).all()


def test_a_block_is_whole_heads(tmp_path: Path) -> None:
    assert block_rows(1 << 30) == 1
    assert block_rows(3584, 128) % 128 == 0
    assert block_rows(1 << 20, 128) == 128


def test_pages_given_back_hold_the_same_bytes_afterwards(tmp_path: Path) -> None:
    entry = operand(tmp_path / "w", "F32", (3000, 7)).matrix.entry
    stored = tensor_bytes(entry)
    before = stored.copy()
    for part in (stored, stored[5000:9000], stored[-1:], stored[:0], before):
        forget_pages(part)
    assert (stored == before).all()


@pytest.mark.parametrize("place", [0, 7, 4096, -1])
def test_one_bit_is_a_difference_of_the_bytes(tmp_path: Path, place: int) -> None:
    """An odd number of bytes: the last ones are compared as well."""
    a = operand(tmp_path / "a", "APR_Q8", (101, 55))
    b = operand(tmp_path / "b", "APR_Q8", (101, 55))
    assert same_bytes(a, b)
    changed = bytearray(b.matrix.entry.path.read_bytes())
    changed[100 + place if place >= 0 else -1] ^= 1
    b.matrix.entry.path.write_bytes(changed)
    assert not same_bytes(a, b)
    assert not same_bytes(a, Operand(a.matrix, offset=1.0))
