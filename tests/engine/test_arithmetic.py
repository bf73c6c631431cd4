"""Each rounding of each runtime is what numpy makes of its published definition."""

from __future__ import annotations

from collections.abc import Callable

import gguf
import gguf.quants
import numpy as np
import numpy.typing as npt
import pytest
import torch

from aprtui.engine.rounding import (
    ROUNDINGS,
    SCALED,
    round_e4m3,
    round_e5m2,
    round_q4_0,
    round_tf32,
)

Float64 = npt.NDArray[np.float64]
# Bits with the leading one, the exponent of the smallest normal number, the largest.
BITS = {"float32": (24, -126, 3.4e38), "float16": (11, -14, 65504.0),
        "bfloat16": (8, -126, 3.39e38), "float8 e4m3": (4, -6, 448.0),
        "float8 e5m2": (3, -14, 57344.0), "int8": (0, 0, 127.0)}  # fmt: skip


def held(x: npt.NDArray[np.float32], kind: str) -> Float64:
    """x as a type holds it: to nearest even, beyond the largest the largest."""
    bits, lowest, largest = BITS[kind]
    exponent = np.maximum(np.frexp(x.astype(np.float64))[1], lowest + 1)
    unit = np.ldexp(1.0, exponent - bits)
    rounded: Float64 = np.rint(x.astype(np.float64) / unit) * unit
    return np.clip(rounded, -largest, largest)


def rows(seed: int = 1, columns: int = 256) -> npt.NDArray[np.float32]:
    made = np.random.default_rng(seed).standard_normal((5, columns)).astype(np.float32)
    made[1] *= 1e-3
    made[2, 7] = 100.0  # an outlier
    made[3] = 0.0
    return made


def by_hand(x: npt.NDArray[np.float32], name: str) -> Float64:
    name, _, inverse = name.partition(" by its ")
    kind, rest = name.split(" per ", 1) if " per " in name else name.split(" in blocks of ", 1)
    together, scale_type = rest.removesuffix(" scale").split(", ")
    size = {"tensor": x.size, "token": x.shape[1]}.get(together) or int(together)
    blocks = x.reshape(-1, size)
    largest = BITS[kind][2]
    scale = (np.abs(blocks).max(1, keepdims=True) / np.float32(largest)).astype(np.float32)
    scale = held(scale, scale_type).astype(np.float32)
    safe = np.where(scale > 0, scale, np.float32(1)).astype(np.float32)
    scaled = (blocks * (np.float32(1) / safe) if inverse else blocks / safe).astype(np.float32)
    codes = np.clip(np.rint(scaled), -127, 127) if kind == "int8" else held(scaled, kind)
    made: Float64 = codes.astype(np.float64) * scale.astype(np.float64)
    return made.reshape(x.shape)


@pytest.mark.parametrize("name", SCALED)
def test_activations_of_eight_bits_with_a_scale(name: str) -> None:
    x = rows()
    made = ROUNDINGS[name][0](torch.from_numpy(x.copy())).numpy()
    np.testing.assert_array_equal(made, by_hand(x, name))
    assert 0 < np.linalg.norm(made - x) < 0.1 * np.linalg.norm(x)


def test_columns_that_are_no_multiple_of_a_block_are_refused() -> None:
    with pytest.raises(RuntimeError):
        ROUNDINGS["int8 in blocks of 64, float32 scale"][0](torch.zeros(2, 96))


def test_tensor_float_32_keeps_ten_bits_and_ties_to_even() -> None:
    x = np.array(
        [1 + 2**-11, 1 + 3 * 2**-11, -(1 + 2**-11 + 2**-20), 3e38, np.inf, 0.0], np.float32
    )
    expected = [1.0, 1 + 2**-9, -(1 + 2**-10), None, np.inf, 0.0]
    made = round_tf32(torch.from_numpy(x)).numpy()
    for value, right in zip(made, expected, strict=True):
        assert right is None or value == right
    assert abs(made[3] / 3e38 - 1) <= 2**-11


@pytest.mark.parametrize(
    ("rounding", "kind"), [(round_e4m3, "float8 e4m3"), (round_e5m2, "float8 e5m2")]
)
def test_float8_without_a_scale(
    rounding: Callable[[torch.Tensor], torch.Tensor], kind: str
) -> None:
    x = rows()
    made = rounding(torch.from_numpy(x.copy())).numpy()
    np.testing.assert_array_equal(made, held(x, kind))
    largest = BITS[kind][2]
    assert rounding(torch.tensor([1e9, -1e9])).tolist() == [largest, -largest]


def test_q4_0_is_what_the_gguf_package_makes_of_it() -> None:
    x, kind = rows(columns=64), gguf.GGMLQuantizationType.Q4_0
    coded = gguf.quants.quantize(x, kind)
    expected = gguf.quants.dequantize(coded, kind).astype(np.float64)
    np.testing.assert_array_equal(round_q4_0(torch.from_numpy(x)).numpy(), expected)
