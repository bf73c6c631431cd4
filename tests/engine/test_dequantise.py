"""Decoded weights equal llama.cpp's C code bit for bit, whole or by rows, and stay in the file."""

from __future__ import annotations

import os
import shutil
import struct
import sysconfig
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from aprtui.engine import native
from aprtui.engine.block_decoders import BLOCK_DECODERS
from aprtui.engine.dequantise import (
    Workspace,
    decode_rows,
    decode_tensor,
    dequantise,
    dequantise_apr_q8,
)
from aprtui.engine.grid_decoders import GRID_DECODERS
from aprtui.errors import BadFileError, EngineError
from aprtui.formats.blocks import BLOCK_TYPES, stored_bytes
from aprtui.formats.modelfile import TensorEntry
from tests.support import FIXTURES, SMALL

# A small part of shared/fixtures/dequantise.npz, which is used whole where it is there.
RECORDED = np.load(next(p / "dequantise.npz" for p in (FIXTURES, SMALL) if p.is_dir()))
TYPES = sorted({key.split("/")[0] for key in RECORDED.files})
CPU = torch.device("cpu")

Float32 = npt.NDArray[np.float32]


@pytest.fixture(autouse=True, params=["C", "torch"])
def decoders(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every promise here holds for the decoders in C, where they were built, and for torch's."""
    if request.param == "torch":
        monkeypatch.setattr(native, "NATIVE_TYPES", frozenset())
    elif not native.NATIVE_TYPES:
        pytest.skip("installed without a C compiler, or APRTUI_NATIVE=off")
    return str(request.param)


def recorded(type_name: str, source: str) -> tuple[torch.Tensor, Float32]:
    """Blocks [n, block_bytes] uint8, and llama.cpp's values [n, block_values] of them."""
    kind = BLOCK_TYPES[type_name]
    stored = RECORDED[f"{type_name}/{source}_bytes"].reshape(-1, kind.bytes)
    return torch.from_numpy(stored), RECORDED[f"{type_name}/{source}_values"].reshape(
        -1, kind.values
    )


def assert_same_bits(ours: torch.Tensor, expected: Float32) -> None:
    values = ours.numpy()
    finite = np.isfinite(expected)
    assert values.shape == expected.shape
    assert np.array_equal(values.view(np.uint32)[finite], expected.view(np.uint32)[finite])
    assert np.array_equal(values[~finite], expected[~finite], equal_nan=True)


def stored_tensor(
    folder: Path, stored: bytes, type_name: str, shape: tuple[int, ...], *, flat: bool = False
) -> TensorEntry:
    """A tensor in a file, at an odd place between other bytes."""
    path = folder / "model.bin"
    path.write_bytes(b"\xee" * 7 + stored + b"\xee" * 5)
    return TensorEntry("w", type_name, shape, path, 7, len(stored), flat)


@pytest.mark.parametrize("source", ["quantised", "random"])
@pytest.mark.parametrize("type_name", TYPES)
def test_blocks_decode_to_the_bits_of_llama_cpp(type_name: str, source: str) -> None:
    blocks, expected = recorded(type_name, source)
    assert_same_bits(dequantise(type_name, blocks), expected)


def test_a_workspace_serves_any_type_after_any_other() -> None:
    workspace = Workspace()
    for type_name in [*TYPES, *reversed(TYPES)]:
        blocks, expected = recorded(type_name, "random")
        out = torch.full(expected.shape, 7.0)
        assert dequantise(type_name, blocks, out, workspace) is out
        assert_same_bits(out, expected)


@pytest.mark.parametrize("blocks_count", [1, 3, 500])
@pytest.mark.parametrize("type_name", sorted(BLOCK_DECODERS))
def test_c_and_torch_decode_any_bytes_at_any_address_alike(
    type_name: str, blocks_count: int, monkeypatch: pytest.MonkeyPatch, decoders: str
) -> None:
    if decoders == "C":
        assert type_name in native.NATIVE_TYPES
    kind = BLOCK_TYPES[type_name]
    stored = np.random.default_rng(blocks_count).integers(0, 256, blocks_count * kind.bytes + 1)
    blocks = torch.from_numpy(stored.astype(np.uint8))[1:].view(-1, kind.bytes)
    found = dequantise(type_name, blocks)
    monkeypatch.setattr(native, "NATIVE_TYPES", frozenset())
    assert_same_bits(found, dequantise(type_name, blocks).numpy())


def test_memory_with_gaps_is_decoded_as_well() -> None:
    blocks, expected = recorded("Q4_K", "quantised")
    assert_same_bits(dequantise("Q4_K", blocks[::2]), expected[::2])


@pytest.mark.parametrize(
    ("type_name", "numpy_type"),
    [
        ("F32", "<f4"),
        ("F16", "<f2"),
        ("F64", "<f8"),
        ("I8", "i1"),
        ("U8", "u1"),
        ("I16", "<i2"),
        ("I32", "<i4"),
        ("I64", "<i8"),
    ],
)
def test_plain_numbers_convert_as_numpy_converts_them(type_name: str, numpy_type: str) -> None:
    stored = np.random.default_rng(7).integers(0, 256, 8 * 60, dtype=np.uint8)
    with np.errstate(all="ignore"):
        expected = stored.view(numpy_type).astype(np.float32).reshape(-1, 1)
    size = np.dtype(numpy_type).itemsize
    assert_same_bits(dequantise(type_name, torch.from_numpy(stored.reshape(-1, size))), expected)
    shifted = torch.from_numpy(np.concatenate([stored[:1], stored]))[1:].view(-1, size)
    assert_same_bits(dequantise(type_name, shifted), expected)


def test_bfloat16_is_the_upper_half_of_a_float32() -> None:
    upper = np.random.default_rng(7).integers(0, 1 << 16, 500, dtype=np.uint16)
    expected = (upper.astype(np.uint32) << 16).view(np.float32).reshape(-1, 1)
    blocks = torch.from_numpy(upper.view(np.uint8).reshape(-1, 2))
    assert_same_bits(dequantise("BF16", blocks), expected)


def apr_q4_block(scale: float, nibbles: list[int]) -> bytes:
    """f16 scale; value 2i is byte i's low nibble, 2i + 1 its high (docs/apr-format.md 1.8)."""
    pairs = zip(nibbles[::2], nibbles[1::2], strict=True)
    return struct.pack("<e", scale) + bytes(low | high << 4 for low, high in pairs)


@pytest.mark.parametrize("scale", [0.5, -3.0, 2.0**-24, 0.0, float("inf"), float("nan")])
def test_apr_q4_takes_nibbles_in_order_and_its_scale_as_ieee_says(scale: float) -> None:
    nibbles = [*range(16), *range(15, -1, -1)]
    stored = torch.tensor([list(apr_q4_block(scale, nibbles))], dtype=torch.uint8)
    with np.errstate(invalid="ignore"):
        expected = (np.array([nibbles], np.float32) - 8) * np.float32(scale)
    assert_same_bits(dequantise("APR_Q4", stored), expected)


def test_apr_q8_is_one_scale_times_signed_bytes() -> None:
    stored = torch.tensor([[-128, -1, 0], [1, 64, 127]], dtype=torch.int8)
    expected = np.array([[-32.0, -0.25, 0.0], [0.25, 16.0, 31.75]], np.float32)
    assert_same_bits(dequantise_apr_q8(0.25, stored), expected)


@pytest.mark.parametrize("type_name", sorted(GRID_DECODERS))
def test_blocks_of_any_bytes_have_the_values_that_gguf_gives_them(type_name: str) -> None:
    import gguf.quants

    size = BLOCK_TYPES[type_name].bytes
    stored = np.random.default_rng(1).integers(0, 256, (500, size), dtype=np.uint8)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(
            stored.reshape(1, -1), gguf.GGMLQuantizationType[type_name]
        ).reshape(500, -1)
    assert_same_bits(dequantise(type_name, torch.from_numpy(stored)), expected.astype(np.float32))


@pytest.mark.parametrize("type_name", ["Q4_K", "Q8_0", "IQ2_XS"])
def test_rows_are_the_same_as_the_whole_tensor(tmp_path: Path, type_name: str) -> None:
    blocks, values = recorded(type_name, "quantised")
    shape = (2, values.size // 512, 256)
    entry = stored_tensor(tmp_path, blocks.numpy().tobytes(), type_name, shape)
    rows = values.reshape(-1, 256)
    assert_same_bits(decode_rows(entry, 0, len(rows), CPU), rows)
    out = torch.empty(3, 256)
    assert decode_rows(entry, 2, 3, CPU, out, Workspace()) is out
    assert_same_bits(out, rows[2:5])
    assert_same_bits(decode_tensor(entry, CPU), values.reshape(shape))
    assert decode_rows(entry, 4, 0, CPU).shape == (0, 256)


def test_a_row_padded_to_whole_blocks_loses_its_padding(tmp_path: Path) -> None:
    blocks, values = recorded("Q6_K", "quantised")
    rows = len(blocks) // 2
    entry = stored_tensor(tmp_path, blocks.numpy().tobytes(), "Q6_K", (rows, 300))
    expected = np.ascontiguousarray(values.reshape(rows, 512)[:, :300])
    assert_same_bits(decode_rows(entry, 1, rows - 1, CPU, workspace=Workspace()), expected[1:])


@pytest.mark.parametrize(("type_name", "columns"), [("Q4_K", 300), ("Q8_0", 40), ("Q8_0", 64)])
def test_flat_blocks_run_across_rows(tmp_path: Path, type_name: str, columns: int) -> None:
    blocks, values = recorded(type_name, "quantised")
    rows = values.size // columns
    shape = (rows, columns)
    kept = blocks.numpy().tobytes()[: stored_bytes(type_name, shape, flat=True)]
    entry = stored_tensor(tmp_path, kept, type_name, shape, flat=True)
    expected = values.reshape(-1)[: rows * columns].reshape(shape)
    for first in range(rows - 1):
        assert_same_bits(decode_rows(entry, first, 2, CPU), expected[first : first + 2])


def test_apr_q4_and_apr_q8_rows_come_from_the_flat_tensor(tmp_path: Path) -> None:
    nibbles = list(np.random.default_rng(7).integers(0, 16, 96))
    blocks = [apr_q4_block(2.0**i, nibbles[32 * i : 32 * i + 32]) for i in range(3)]
    scales = np.repeat(np.array([1, 2, 4], np.float32), 32)
    expected = ((np.array(nibbles, np.float32) - 8) * scales)[:90].reshape(9, 10)
    entry = stored_tensor(tmp_path, b"".join(blocks), "APR_Q4", (9, 10), flat=True)
    assert_same_bits(decode_rows(entry, 2, 5, CPU), expected[2:7])

    stored = struct.pack("<f", 0.5) + bytes(range(12))
    entry = stored_tensor(tmp_path, stored, "APR_Q8", (4, 3), flat=True)
    halves = (np.arange(12, dtype=np.float32) / np.float32(2)).reshape(4, 3)
    assert_same_bits(decode_rows(entry, 1, 2, CPU), halves[1:3])


def test_vectors_and_single_numbers_are_one_row(tmp_path: Path) -> None:
    stored = np.arange(5, dtype="<f4")
    entry = stored_tensor(tmp_path, stored.tobytes(), "F32", (5,))
    assert_same_bits(decode_rows(entry, 0, 1, CPU), stored[None])
    assert decode_tensor(entry, CPU).shape == (5,)
    entry = stored_tensor(tmp_path, stored[3:4].tobytes(), "F32", ())
    assert decode_tensor(entry, CPU).item() == 3.0


def test_decoding_leaves_the_file_alone_and_warns_of_nothing(tmp_path: Path) -> None:
    blocks, _ = recorded("Q4_0", "random")
    entry = stored_tensor(tmp_path, blocks.numpy().tobytes(), "Q4_0", (len(blocks), 32))
    before = entry.path.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode_tensor(entry, CPU).zero_()
    plain = replace(entry, type="F32", shape=(1, entry.size_bytes // 4))
    decode_tensor(plain, CPU).zero_()
    assert entry.path.read_bytes() == before


@pytest.mark.parametrize(("first", "rows"), [(-1, 1), (0, 5), (4, 1), (0, -1)])
def test_rows_outside_the_tensor_are_refused(tmp_path: Path, first: int, rows: int) -> None:
    entry = stored_tensor(tmp_path, bytes(32), "F32", (4, 2))
    with pytest.raises(EngineError, match="which has 4"):
        decode_rows(entry, first, rows, CPU)


def test_a_tensor_with_too_few_bytes_is_refused(tmp_path: Path) -> None:
    entry = stored_tensor(tmp_path, bytes(144), "Q4_K", (4, 256))
    with pytest.raises(BadFileError, match="holds 144 bytes where 4x256 of Q4_K takes 576"):
        decode_rows(entry, 0, 1, CPU)
    placeholder = replace(entry, type="F32", size_bytes=0)
    with pytest.raises(BadFileError, match="holds 0 bytes"):
        decode_rows(placeholder, 0, 1, CPU)


def test_a_file_that_became_shorter_is_refused(tmp_path: Path) -> None:
    entry = stored_tensor(tmp_path, bytes(144), "Q4_K", (1, 256))
    os.truncate(entry.path, 100)
    with pytest.raises(BadFileError, match="beyond the end of the file"):
        decode_rows(entry, 0, 1, CPU)


@pytest.mark.parametrize("type_name", ["Q8_K", "Q8_1", "APR_Q8", "Q9_\x1b"])
def test_a_type_without_a_decoder_is_named(type_name: str) -> None:
    block_bytes = BLOCK_TYPES[type_name].bytes if type_name in BLOCK_TYPES else 1
    with pytest.raises(EngineError, match="no decoder for blocks of type") as refused:
        dequantise(type_name, torch.zeros(2, block_bytes, dtype=torch.uint8))
    assert "\x1b" not in str(refused.value)


def test_where_a_compiler_is_at_hand_the_decoders_in_c_were_built() -> None:
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    if shutil.which("cc") is None or not headers.exists():
        pytest.skip("there is no C compiler here")
    from aprtui.engine import _native

    assert set(_native.TYPES) == set(BLOCK_DECODERS)


def test_c_refuses_sizes_that_do_not_belong_together(decoders: str) -> None:
    if decoders != "C":
        pytest.skip("about the decoders in C")
    blocks = torch.zeros(2, 144, dtype=torch.uint8)
    with pytest.raises(ValueError, match="288 bytes of Q4_K are not 511 values"):
        native.decode_blocks("Q4_K", blocks, torch.empty(511))
