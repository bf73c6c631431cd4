"""Writing .apr: the published test vector, round trips, whole files or none; the encoders."""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aprtui.errors import AprtuiError, BadFileError, EngineError, UsageError
from aprtui.formats.apr import read_apr
from aprtui.formats.apr_write import TYPE_CODES, OutgoingTensor, write_apr
from aprtui.formats.modelfile import tensor_bytes
from aprtui.formats.quantise import encode
from aprtui.formats.safetensors import read_safetensors
from tests.support import FIXTURES, needs_fixtures

VECTOR_METADATA = {
    "model_type": "linear_regression",
    "name": "golden-v2",
    "license": None,
    "data_source": None,
    "data_license": None,
    "version": "0.0.0-golden",
    "created_at": "1700000000",
    "total_size": 0,
    "param_count": 8,
}
VECTOR_HEADER = bytes.fromhex(
    "41505200 02 00 0004 02000000 4000000000000000 bd000000 0001000000000000 8001000000000000"
    " 028cc03b" + "00" * 20
)


def tensor(name: str, values: Any, kind: str = "F32") -> OutgoingTensor:
    array = np.asarray(values, dtype=np.float32)
    return OutgoingTensor(name, kind, array.shape, lambda: [encode(kind, array)])


def test_the_published_vector_comes_out_byte_for_byte(tmp_path: Path) -> None:
    path = tmp_path / "golden.apr"
    weights = tensor("weights", [1, 2, 0.5, -0.5, 4, -2, 0.25, 8])
    assert write_apr(path, VECTOR_METADATA, [weights, tensor("bias", [0.125])]) == 516
    whole = path.read_bytes()
    assert len(whole) == 516
    assert whole[:64] == VECTOR_HEADER
    assert int.from_bytes(whole[-4:], "little") == 1427062581
    model = read_apr(path, verify=True)
    assert (list(model.tensors), model.notes) == (["bias", "weights"], ())


@needs_fixtures
@pytest.mark.parametrize("name", ["qwen2-import", "pycode-int4", "pycode-int8", "pycode-f16"])
def test_a_file_of_apr_survives_with_its_layout(name: str, tmp_path: Path) -> None:
    """The same tensors written by us stand in the same table at the same offsets."""
    original = read_apr(FIXTURES / "apr" / "models" / f"{name}.apr")
    kept = {key: entry for key, entry in original.tensors.items() if entry.size_bytes}
    path = tmp_path / "again.apr"
    write_apr(
        path,
        original.metadata,
        [
            OutgoingTensor(e.name, e.type, e.shape, lambda e=e: [tensor_bytes(e)])  # type: ignore[misc]
            for e in kept.values()
        ],
    )
    again = read_apr(path, verify=True)
    assert again.metadata == original.metadata
    shift = min(e.offset for e in again.tensors.values()) - min(e.offset for e in kept.values())
    assert [
        (e.name, e.type, e.shape, e.offset - shift, e.size_bytes, e.flat)
        for e in again.tensors.values()
    ] == [(e.name, e.type, e.shape, e.offset, e.size_bytes, e.flat) for e in kept.values()]
    for entry in kept.values():
        assert np.array_equal(tensor_bytes(again.tensors[entry.name]), tensor_bytes(entry))


def test_flags_say_what_is_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m.apr"
    vocabulary = {"model_type": "x", "tokenizer.vocabulary": ["a"]}
    for metadata, kind, flags in (
        ({"model_type": "x"}, "F16", 0x0400),
        (vocabulary, "BF16", 0x0600),
        ({"model_type": "x"}, "APR_Q8", 0x0420),
        (vocabulary, "Q6_K", 0x0620),
    ):
        write_apr(path, metadata, [tensor("w", np.ones(4), kind)])
        assert int.from_bytes(path.read_bytes()[6:8], "little") == flags


def test_the_checksum_at_the_end_covers_every_byte_before_it(tmp_path: Path) -> None:
    path = tmp_path / "m.apr"
    write_apr(path, {"model_type": "é"}, [tensor("w", np.arange(1000), "F16")])
    whole = path.read_bytes()
    assert zlib.crc32(whole[:-4]) == int.from_bytes(whole[-4:], "little")
    assert b'{"model_type":"\xc3\xa9"}' in whole


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ([OutgoingTensor("w", "Q8_0", (32,), list)], "Q8_0"),
        ([OutgoingTensor("w", "F64", (1,), list)], "F64"),
        ([OutgoingTensor("é" * 129, "F32", (1,), list)], "256"),
        ([OutgoingTensor("", "F32", (1,), list)], "1 to 256"),
        ([OutgoingTensor("a\0b", "F32", (1,), list)], "NUL"),
        ([OutgoingTensor("\ud800", "F32", (1,), list)], "UTF-8"),
        ([OutgoingTensor("w", "F32", (1,) * 9, list)], "shape"),
        ([tensor("w", [1]), tensor("w", [2])], "twice"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(
    tmp_path: Path, tensors: list[OutgoingTensor], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        write_apr(tmp_path / "m.apr", {"model_type": "x"}, tensors)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ({"n_embd": 4}, "written as hidden_size"),
        ({"name": None}, "null"),
        ({"special_tokens": {"bos_token": None}}, "null"),
        ({"tokenizer.scores": [float("nan")]}, "JSON"),
        ({"hidden_size": 4.0}, "whole number"),
        ({"name": b"bytes"}, "JSON"),
        ({"name": "\ud800"}, "JSON"),
    ],
)
def test_metadata_that_a_reader_would_drop_is_refused(
    tmp_path: Path, metadata: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        write_apr(tmp_path / "m.apr", metadata, [])


@pytest.mark.parametrize("came", [[], [bytes(15)], [bytes(8), bytes(9)]])
def test_a_tensor_of_another_size_than_declared_leaves_the_old_file(
    tmp_path: Path, came: list[bytes]
) -> None:
    path = tmp_path / "m.apr"
    path.write_bytes(b"precious")
    with pytest.raises(EngineError, match="16 bytes"):
        write_apr(path, {}, [OutgoingTensor("w", "F32", (4,), lambda: came)])
    assert path.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_fills_up_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EngineError, match="No space left on device"):
        write_apr(tmp_path / "m.apr", {}, [tensor("w", [1, 2])])
    assert list(tmp_path.iterdir()) == []


def test_a_file_larger_than_the_disk_is_refused_before_a_tensor_is_made(tmp_path: Path) -> None:
    def never() -> Iterator[bytes]:
        raise AssertionError("the tensor was made")

    huge = OutgoingTensor("w", "F32", (1 << 46,), never)
    with pytest.raises(EngineError, match="are free"):
        write_apr(tmp_path / "m.apr", {}, [huge])
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_folder_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cannot be written"):
        write_apr(tmp_path / "absent" / "m.apr", {}, [])


def test_a_source_that_fails_midway_leaves_no_half_file(tmp_path: Path) -> None:
    def breaks() -> Iterator[bytes]:
        yield bytes(8)
        raise BadFileError("source.gguf", "was cut short")

    with pytest.raises(BadFileError):
        write_apr(tmp_path / "m.apr", {}, [OutgoingTensor("w", "F32", (4,), breaks)])
    assert list(tmp_path.iterdir()) == []


NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)
JSON = st.recursive(
    st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    metadata=st.dictionaries(NAMES.map("x.".__add__), JSON, max_size=4),
    tensors=st.dictionaries(
        NAMES.filter(lambda name: len(name.encode()) <= 256),
        st.tuples(st.sampled_from(sorted(TYPE_CODES)), SHAPES, st.randoms(use_true_random=False)),
        max_size=5,
    ),
)
def test_any_metadata_and_tensors_survive_a_round_trip(
    tmp_path: Path, metadata: dict[str, Any], tensors: dict[str, tuple[str, Any, Any]]
) -> None:
    path = tmp_path / "m.apr"
    outgoing, payloads = [], {}
    for name, (kind, shape, random) in tensors.items():
        size = OutgoingTensor(name, kind, shape, list).size_bytes
        payloads[name] = payload = random.randbytes(size)
        cut = size // 3
        outgoing.append(
            OutgoingTensor(
                name,
                kind,
                shape,
                lambda p=payload, c=cut: [p[:c], memoryview(p)[c:]],  # type: ignore[misc]
            )
        )
    assert write_apr(path, metadata, outgoing) == path.stat().st_size
    model = read_apr(path)
    assert (model.metadata, model.notes) == (metadata, ())
    assert list(model.tensors) == sorted(tensors, key=str.encode)
    for name, entry in model.tensors.items():
        assert (entry.type, entry.shape) == tensors[name][:2]
        assert entry.offset % 64 == 0
        assert tensor_bytes(entry).tobytes() == payloads[name]


# The encoders


@needs_fixtures
@pytest.mark.parametrize("kind", ["int4", "int8"])
def test_apr_quantises_the_same_weights_to_the_same_bytes(kind: str) -> None:
    source = read_safetensors(FIXTURES / "models" / "pycode-5m" / "model.safetensors")
    quantised = read_apr(FIXTURES / "apr" / "models" / f"pycode-{kind}.apr")
    for name, entry in quantised.tensors.items():
        half = source.tensors.get(name, source.tensors["model.embed_tokens.weight"])
        values = tensor_bytes(half).view("<f2").astype(np.float32).reshape(half.shape)
        assert np.array_equal(encode(entry.type, values), tensor_bytes(entry)), name


def test_apr_q4_by_hand() -> None:
    values = np.zeros(33, dtype=np.float32)
    values[:4] = (7, -3.5, 0.5, 0.49999997)  # scale 1: halves go away from zero
    values[32] = -14
    coded = encode("APR_Q4", values)
    assert len(coded) == 36
    assert coded[:2].view("<f2")[0] == 1
    assert coded[2:5].tolist() == [15 | 4 << 4, 9 | 8 << 4, 8 | 8 << 4]
    assert coded[18:20].view("<f2")[0] == 2
    assert coded[20:].tolist() == [1] + [0] * 15  # the short block ends in zero bytes
    assert encode("APR_Q4", np.zeros(20, dtype=np.float32))[:2].view("<f2")[0] == 1


def test_apr_q8_by_hand() -> None:
    coded = encode("APR_Q8", np.array([127, -126.5, 0.5, 0], dtype=np.float32))
    assert coded[:4].view("<f4")[0] == 1
    assert coded[4:].view(np.int8).tolist() == [127, -127, 1, 0]
    assert encode("APR_Q8", np.zeros((0, 3), dtype=np.float32)).size == 0
    assert encode("APR_Q8", np.zeros(2, dtype=np.float32))[:4].view("<f4")[0] == 1


def test_bfloat16_rounds_to_even_and_keeps_nan() -> None:
    values = np.array([1, -2.5, 3.141592653, np.inf, 1 + 2**-8, 1 + 3 * 2**-8, 3e38], np.float32)
    assert np.array_equal(
        gguf.quants.dequantize(encode("BF16", values), gguf.GGMLQuantizationType.BF16),
        gguf.quants.dequantize(
            gguf.quants.quantize(values, gguf.GGMLQuantizationType.BF16),
            gguf.GGMLQuantizationType.BF16,
        ),
    )
    nan = np.array([0x7F800001, 0xFFFFFFFF], dtype="<u4").view("<f4")
    assert np.isnan(
        gguf.quants.dequantize(encode("BF16", nan), gguf.GGMLQuantizationType.BF16)
    ).all()


def relative_rms(values: npt.NDArray[np.float32], rows: int) -> float:
    coded = encode("Q6_K", values).reshape(rows, -1)
    back = gguf.quants.dequantize(coded, gguf.GGMLQuantizationType.Q6_K)
    error = back[:, : values.shape[-1]] - values
    return float(np.sqrt((error**2).sum() / (values.astype(np.float64) ** 2).sum()))


@pytest.mark.parametrize(("rows", "columns"), [(64, 512), (8, 300)])
def test_q6_k_of_normal_values_is_within_two_percent(rows: int, columns: int) -> None:
    values = np.random.default_rng(7).standard_normal((rows, columns)).astype(np.float32)
    assert relative_rms(values, rows) <= 0.019
    assert relative_rms(values * np.float32(1e-3), rows) <= 0.019


def test_q6_k_of_awkward_values() -> None:
    one = np.zeros((1, 256), dtype=np.float32)
    assert not gguf.quants.dequantize(
        encode("Q6_K", one).reshape(1, -1), gguf.GGMLQuantizationType.Q6_K
    ).any()
    one[0, 17] = -3
    assert relative_rms(one, 1) < 0.01
    steep = np.outer([1.0], np.repeat(np.logspace(-3, 0, 16), 16)).astype(np.float32)
    assert relative_rms(steep, 1) < 0.02


@pytest.mark.parametrize("kind", ["APR_Q4", "APR_Q8", "Q6_K"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_not_smeared_over_a_block(kind: str, bad: float) -> None:
    with pytest.raises(AprtuiError, match="NaN or infinite"):
        encode(kind, np.array([1, bad], dtype=np.float32))


@pytest.mark.parametrize("kind", ["APR_Q4", "Q6_K"])
def test_values_beyond_the_reach_of_a_float16_scale_are_refused(kind: str) -> None:
    with pytest.raises(EngineError, match="float16"):
        encode(kind, np.full(256, 1e38, dtype=np.float32))
