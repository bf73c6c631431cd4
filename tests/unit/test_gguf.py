"""GGUF files are read as gguf.GGUFReader reads them, and damaged ones are refused, never obeyed."""

from __future__ import annotations

import os
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aprtui.errors import BadFileError
from aprtui.formats.blocks import BY_GGML_CODE
from aprtui.formats.gguf import StringArray, read_gguf
from aprtui.formats.modelfile import ModelFile, tensor_bytes
from tests.support import FIXTURES, needs_fixtures
from tests.unit.gguf_writer import SCALARS, Tensor, array_of, gguf_bytes, key, string, text

MODELS = sorted((FIXTURES / "models").glob("*.gguf"))


def written(folder: Path, content: bytes, name: str = "model.gguf") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def small_file() -> bytes:
    """A file with a value of every type, an array of each, and tensors of three types."""
    numbers = [key(f"number.{code}", code, 1) for code in SCALARS]
    arrays = [key(f"array.{code}", 9, array_of(code, [0, 1, 1])) for code in SCALARS]
    keys = [
        text("general.architecture", "qwen2"),
        key("tokenizer.ggml.tokens", 9, array_of(8, [b"a", "Ġb".encode(), b"", b"\xff\xfe"])),
        *numbers,
        *arrays,
    ]
    tensors = [
        Tensor("token_embd.weight", (32, 2), 8, bytes(range(68))),
        Tensor("blk.0.ffn_gate_exps.weight", (4, 3, 2), 1, bytes(range(48))),
        Tensor("output_norm.weight", (4,), 0, bytes(range(16))),
    ]
    return gguf_bytes(keys, tensors)


def assert_as_the_oracle_reads(path: Path) -> None:
    ours, oracle = read_gguf(path), gguf.GGUFReader(path)
    assert list(ours.tensors) == [tensor.name for tensor in oracle.tensors]
    for tensor in oracle.tensors:
        entry = ours.tensors[tensor.name]
        assert entry.type == tensor.tensor_type.name
        assert entry.shape == tuple(int(extent) for extent in reversed(tensor.shape))
        assert (entry.offset, entry.size_bytes) == (tensor.data_offset, tensor.n_bytes)
        assert tensor_bytes(entry).tobytes() == tensor.data.tobytes()
    oracle_keys = {name for name in oracle.fields if not name.startswith("GGUF.")}
    assert set(ours.metadata) == oracle_keys
    for name in oracle_keys:
        value = ours.metadata[name]
        expected = oracle.fields[name].contents()
        assert (list(value) if isinstance(value, StringArray | np.ndarray) else value) == expected


@needs_fixtures
@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_a_model_reads_as_gguf_reader_reads_it(path: Path) -> None:
    assert_as_the_oracle_reads(path)


def test_a_file_by_the_gguf_library_reads_as_gguf_reader_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(64)
    writer.add_token_list(["<s>", "é", "日本", "\n"])
    writer.add_token_scores([0.0, -1.5, -2.25, 7.0])
    writer.add_float64("a.double", 0.1)
    writer.add_bool("a.truth", False)
    writer.add_int64("a.negative", -(1 << 60))
    writer.add_tensor("token_embd.weight", np.arange(12, dtype=np.float32).reshape(3, 4))
    writer.add_tensor("blk.0.cube", np.arange(24, dtype=np.float16).reshape(2, 3, 4))
    quantised = gguf.quants.quantize(np.ones((2, 64), np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("output.weight", quantised, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert_as_the_oracle_reads(path)
    assert {field.name: field.value for field in read_gguf(path).header}["alignment"] == "64"


def test_the_block_types_are_those_of_the_gguf_library() -> None:
    theirs = {int(kind): (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    theirs[9] = ("Q8_1", 32, 36)  # theirs is from before its two numbers became float16
    ours = {code: (kind.name, kind.values, kind.bytes) for code, kind in BY_GGML_CODE.items()}
    assert {code: ours[code] for code in theirs} == theirs


@pytest.mark.parametrize("version", [2, 3])
def test_versions_2_and_3_are_read(tmp_path: Path, version: int) -> None:
    model = read_gguf(written(tmp_path, gguf_bytes([text("a", "b")], version=version)))
    assert (model.version, model.format, dict(model.metadata)) == (
        str(version),
        "gguf",
        {"a": "b"},
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gguf_bytes(version=1), "version 1"),
        (gguf_bytes(version=4), "version 4"),
        (gguf_bytes(version=3 << 24), "big-endian"),
        (gguf_bytes(magic=b"GGML"), "not a GGUF file"),
        (b"", "not a GGUF file"),
    ],
)
def test_other_versions_byte_orders_and_files_are_refused_by_name(
    tmp_path: Path, content: bytes, said: str
) -> None:
    with pytest.raises(BadFileError, match=said):
        read_gguf(written(tmp_path, content))


def test_a_folder_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.gguf"):
        with pytest.raises(BadFileError):
            read_gguf(path)


def test_strings_are_decoded_when_looked_at_and_lose_no_byte(tmp_path: Path) -> None:
    tokens = read_gguf(written(tmp_path, small_file())).metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, StringArray)
    assert (len(tokens), tokens[1], tokens[-2], tokens[:3]) == (4, "Ġb", "", ["a", "Ġb", ""])
    assert tokens[3].encode("utf-8", "surrogateescape") == b"\xff\xfe"
    with pytest.raises(IndexError):
        tokens[4]


def test_string_arrays_are_compared_by_their_bytes(tmp_path: Path) -> None:
    """The same bytes cut into other strings are not the same strings."""

    def read(name: str, *values: bytes) -> StringArray:
        keys = [text("general.architecture", "qwen2"), key("a", 9, array_of(8, values))]
        found = read_gguf(written(tmp_path, gguf_bytes(keys), f"{name}.gguf")).metadata["a"]
        assert isinstance(found, StringArray)
        return found

    a = read("a", b"ab", b"c")
    assert a.same_bytes(read("b", b"ab", b"c"))
    for other in ((b"a", b"bc"), (b"ab",), (b"ab", b"d"), ()):
        assert not a.same_bytes(read("c", *other))


def test_the_digest_follows_the_header_and_not_the_weights(tmp_path: Path) -> None:
    content = bytearray(small_file())
    digest = read_gguf(written(tmp_path, bytes(content))).digest
    content[-1] ^= 1
    assert read_gguf(written(tmp_path, bytes(content))).digest == digest
    renamed = bytes(content).replace(b"qwen2", b"qwen3")
    assert read_gguf(written(tmp_path, renamed)).digest != digest


def test_a_type_that_is_not_known_is_listed_up_to_the_next_tensor(tmp_path: Path) -> None:
    content = gguf_bytes(
        tensors=[Tensor("x", (40,), 99, bytes(64)), Tensor("y", (1,), 0, bytes(4)),
                 Tensor("z", (8,), 4, bytes(20))]
    )  # fmt: skip
    listed = read_gguf(written(tmp_path, content)).tensors
    assert [(entry.type, entry.shape) for entry in listed.values()] == [
        ("GGML_99", (40,)), ("F32", (1,)), ("GGML_4", (8,)),
    ]  # fmt: skip
    assert listed["x"].size_bytes == 64
    assert listed["z"].size_bytes == 20


REFUSED: dict[str, bytes] = {
    "key a stands twice": gguf_bytes([text("a", "x"), text("a", "y")]),
    "two tensors are called x": gguf_bytes(
        tensors=[Tensor("x", (1,), 0, bytes(4)), Tensor("x", (1,), 0, bytes(4))]
    ),
    "unknown value type 13": gguf_bytes([key("a", 13, bytes(8))]),
    "elements of the unknown value type 99": gguf_bytes([key("a", 9, struct.pack("<IQ", 99, 0))]),
    "nests arrays": gguf_bytes([key("a", 9, struct.pack("<IQ", 9, 1) + array_of(4, [1]))]),
    "5 dimensions": gguf_bytes(tensors=[Tensor("x", (1, 1, 1, 1, 1), 0, bytes(4))]),
    "impossible shape": gguf_bytes(tensors=[Tensor("x", (1 << 32, 1 << 31), 0)]),
    "rows of 33 values": gguf_bytes(tensors=[Tensor("x", (33,), 8, bytes(68))]),
    "not aligned to 32: 4": gguf_bytes(tensors=[Tensor("x", (1,), 0, bytes(64), offset=4)]),
    "beyond the end of the file": gguf_bytes(tensors=[Tensor("x", (8,), 0, bytes(31))]),
    "beyond the end": gguf_bytes(tensors=[Tensor("x", (1,), 0, bytes(4), offset=2**64 - 32)]),
    "alignment is 24": gguf_bytes([key("general.alignment", 4, 24)]),
    "alignment is 0": gguf_bytes([key("general.alignment", 4, 0)]),
    "alignment is '32'": gguf_bytes([text("general.alignment", "32")]),
    "over the limit of 65,535": gguf_bytes([text("k" * 65536, "v")]),
    "tensors are promised": gguf_bytes(counts=(1 << 60, 0)),
    "metadata keys are promised": gguf_bytes(counts=(0, 1 << 60)),
    "elements of a are promised": gguf_bytes([key("a", 9, struct.pack("<IQ", 12, 1 << 61))]),
    "strings of a are promised": gguf_bytes([key("a", 9, struct.pack("<IQ", 8, 1 << 61))]),
    "string 0 of a reaches beyond": gguf_bytes(
        [key("a", 9, struct.pack("<IQQ", 8, 2, 1 << 63) + bytes(8))]
    ),
    "over the limit of 16,777,216": gguf_bytes([key("a", 8, struct.pack("<Q", 1 << 62))]),
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_cannot_be_is_refused_and_named(tmp_path: Path, said: str) -> None:
    with pytest.raises(BadFileError) as refused:
        read_gguf(written(tmp_path, REFUSED[said]))
    assert said in str(refused.value)
    assert "model.gguf" in str(refused.value)


def test_a_file_cut_at_any_byte_is_refused(tmp_path: Path) -> None:
    content = small_file()
    path = written(tmp_path, content)
    for size in reversed(range(len(content))):
        os.truncate(path, size)
        with pytest.raises(BadFileError):
            read_gguf(path)


def part(number: int, count: int, tensor: str, *, total: int = 2) -> bytes:
    keys = [
        text("general.architecture", "llama") if number == 1 else text("other", "key"),
        key("split.no", 2, number - 1),
        key("split.count", 2, count),
        key("split.tensors.count", 5, total),
    ]
    return gguf_bytes(keys, [Tensor(tensor, (4,), 0, bytes([number] * 16))])


@pytest.mark.parametrize("given_part", [1, 2])
def test_any_part_of_a_split_model_opens_all_of_it(tmp_path: Path, given_part: int) -> None:
    for number in (1, 2):
        written(tmp_path, part(number, 2, f"t{number}"), f"m-0000{number}-of-00002.gguf")
    model = read_gguf(tmp_path / f"m-0000{given_part}-of-00002.gguf")
    assert [path.name for path in model.files] == ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
    assert model.metadata["general.architecture"] == "llama"
    assert {name: set(tensor_bytes(entry)) for name, entry in model.tensors.items()} == {
        "t1": {1},
        "t2": {2},
    }
    assert model.size_bytes == sum(path.stat().st_size for path in model.files)


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (None, "m-00002-of-00002.gguf: part 2 of 2 is missing"),
        (part(1, 2, "t2"), "split.no and split.count (0, 2)"),
        (part(2, 3, "t2"), "split.no and split.count (1, 3)"),
        (part(2, 2, "t1"), "tensor t1 is also in m-00001-of-00002.gguf"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(
    tmp_path: Path, second: bytes | None, said: str
) -> None:
    first = written(tmp_path, part(1, 2, "t1"), "m-00001-of-00002.gguf")
    if second is not None:
        written(tmp_path, second, "m-00002-of-00002.gguf")
    with pytest.raises(BadFileError) as refused:
        read_gguf(first)
    assert said in str(refused.value)


def test_a_split_model_that_lacks_tensors_or_its_name_is_refused(tmp_path: Path) -> None:
    first = written(tmp_path, part(1, 2, "t1", total=3), "m-00001-of-00002.gguf")
    written(tmp_path, part(2, 2, "t2"), "m-00002-of-00002.gguf")
    with pytest.raises(BadFileError, match="should hold 3 tensors, they hold 2"):
        read_gguf(first)
    with pytest.raises(BadFileError, match="its name does not say which"):
        read_gguf(written(tmp_path, part(1, 2, "t1"), "renamed.gguf"))


names = st.text(st.characters(codec="utf-8"), max_size=12)


@st.composite
def headers(draw: st.DrawFn) -> tuple[dict[str, tuple[int, Any]], list[Tensor], int]:
    bounds = {0: (0, 8), 1: (1, 8), 2: (0, 16), 3: (1, 16), 4: (0, 32), 5: (1, 32)} | {
        10: (0, 64),
        11: (1, 64),
    }
    values = st.one_of(
        *(
            st.tuples(st.just(code), st.integers(-signed << bits - 1, (1 << bits - signed) - 1))
            for code, (signed, bits) in bounds.items()
        ),
        st.tuples(st.just(6), st.floats(width=32, allow_nan=False)),
        st.tuples(st.just(12), st.floats(allow_nan=False)),
        st.tuples(st.just(7), st.booleans()),
        st.tuples(st.just(8), names),
        st.tuples(st.just(-8), st.lists(names, max_size=4)),
        st.tuples(st.just(-5), st.lists(st.integers(-(1 << 31), (1 << 31) - 1), max_size=4)),
    )
    keys = names.filter(lambda name: name != "general.alignment" and "split." not in name)
    shapes = st.lists(st.integers(0, 3), max_size=4).map(tuple)
    tensors = [
        Tensor(name, ne, 0, bytes(4 * int(np.prod(ne, dtype=int))))
        for name, ne in draw(st.dictionaries(names, shapes, max_size=3)).items()
    ]
    return draw(st.dictionaries(keys, values, max_size=4)), tensors, draw(st.sampled_from([8, 64]))


def encoded(name: str, code: int, value: Any) -> bytes:
    if code == 8:
        return text(name, value)
    if code == -8:
        return key(name, 9, array_of(8, [item.encode() for item in value]))
    return key(name, 9, array_of(-code, value)) if code < 0 else key(name, code, value)


bounded = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@bounded
@given(headers())
def test_any_header_reads_back_as_it_was_written(
    tmp_path: Path, header: tuple[dict[str, tuple[int, Any]], list[Tensor], int]
) -> None:
    metadata, tensors, alignment = header
    keys = [encoded(name, code, value) for name, (code, value) in metadata.items()]
    keys.append(key("general.alignment", 4, alignment))
    model = read_gguf(written(tmp_path, gguf_bytes(keys, tensors, alignment=alignment)))
    read = {
        name: list(value) if isinstance(value, StringArray | np.ndarray) else value
        for name, value in model.metadata.items()
    }
    wanted = {name: value for name, (_, value) in metadata.items()}
    assert read == wanted | {"general.alignment": alignment}
    shapes = {name: entry.shape for name, entry in model.tensors.items()}
    assert shapes == {tensor.name: tensor.ne[::-1] for tensor in tensors}


def assert_within_bounds(model: ModelFile, size: int) -> None:
    for entry in model.tensors.values():
        assert 0 <= entry.offset <= entry.offset + entry.size_bytes <= size
        assert len(tensor_bytes(entry)) == entry.size_bytes


@bounded
@given(
    changes=st.lists(st.tuples(st.integers(0, 10_000), st.binary(min_size=1, max_size=8))),
    cut=st.integers(0, 10_000),
)
def test_a_damaged_file_is_refused_or_read_within_its_bounds(
    tmp_path: Path, changes: list[tuple[int, bytes]], cut: int
) -> None:
    content = bytearray(small_file())
    for place, replaced in changes:
        at = place % len(content)
        content[at : at + len(replaced)] = replaced[: len(content) - at]
    kept = bytes(content[: len(content) - cut] if 0 < cut < len(content) else content)
    path = written(tmp_path, kept)
    tracemalloc.start()
    try:
        assert_within_bounds(read_gguf(path), len(kept))
    except BadFileError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 4_000_000


def test_control_characters_in_a_name_do_not_reach_a_message(tmp_path: Path) -> None:
    path = written(tmp_path, gguf_bytes(tensors=[Tensor("\x1b[2J", (33,), 8, bytes(68))]))
    with pytest.raises(BadFileError) as refused:
        read_gguf(path)
    assert "\x1b" not in str(refused.value)
    assert "\\x1b[2J" in str(refused.value)


def test_a_key_may_have_the_longest_name_allowed(tmp_path: Path) -> None:
    path = written(tmp_path, gguf_bytes([key(b"k" * 65535, 8, string(b"v"))]))
    assert list(read_gguf(path).metadata) == ["k" * 65535]
