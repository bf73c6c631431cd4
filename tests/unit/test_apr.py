"""Reading .apr: every file that apr wrote, every way a file can be wrong."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aprtui.errors import BadFileError
from aprtui.formats.apr import fits, read_apr, reversed_entry
from aprtui.formats.modelfile import ModelFile, tensor_bytes
from tests.support import FIXTURES, needs_fixtures
from tests.unit.apr_files import AprFile, Tensor, with_header

MODELS = FIXTURES / "apr" / "models"
LISTINGS = FIXTURES / "apr" / "listings"
# What apr's listing calls each type.
LISTED = {
    "F32": "f32",
    "F16": "f16",
    "BF16": "bf16",
    "Q4_K": "q4_k",
    "Q6_K": "q6_k",
    "APR_Q4": "q4",
    "APR_Q8": "q8",
}


def f32(*values: float) -> bytes:
    return np.array(values, dtype="<f4").tobytes()


GOOD = AprFile([Tensor(b"a", 0, (2, 2), f32(1, 2, 3, 4)), Tensor(b"b", 0, (3,), f32(5, 6, 7))])


@pytest.fixture
def opened(tmp_path: Path) -> Any:
    """A function from the bytes of a file to what the reader makes of them."""

    def open_bytes(whole: bytes | AprFile, **options: bool) -> ModelFile:
        path = tmp_path / "m.apr"
        path.write_bytes(whole.build() if isinstance(whole, AprFile) else whole)
        return read_apr(path, **options)

    return open_bytes


def refusal(opened: Any, whole: bytes | AprFile, **options: bool) -> str:
    with pytest.raises(BadFileError) as caught:
        opened(whole, **options)
    return str(caught.value)


# What apr itself wrote


@needs_fixtures
@pytest.mark.parametrize(
    ("name", "tensors"),
    [
        ("gemma3-preserve", 93),
        ("llama-convert", 39),
        ("llama-import", 39),
        ("llamaspm-preserve", 39),
        ("pycode-f16", 75),
        ("pycode-int4", 75),
        ("pycode-int8", 75),
        ("qwen2-import", 51),
        ("qwen3-import", 47),
        ("qwen3moe-preserve", 51),
    ],
)
def test_every_file_of_apr_opens_as_apr_inspects_it(name: str, tensors: int) -> None:
    model = read_apr(MODELS / f"{name}.apr", verify=True)
    said = json.loads((LISTINGS / f"{name}.inspect.json").read_text())
    assert len(model.tensors) == said["tensor_count"] == tensors
    assert model.version == said["version"]
    assert model.size_bytes == said["size_bytes"]
    assert all(fits(entry) for entry in model.tensors.values())
    for key in ("architecture", "num_layers", "num_heads", "hidden_size", "vocab_size"):
        if key in said:
            assert model.metadata[key] == said[key]
    flags = next(field.value for field in model.header if field.name == "flags")
    assert ("quantized" in flags) == said["flags"]["quantized"]


@needs_fixtures
@pytest.mark.parametrize(
    "name",
    [
        *("llama-convert", "llama-import", "qwen2-import", "qwen3-import"),
        *("pycode-f16", "pycode-int4", "pycode-int8"),
    ],
)
def test_tensor_tables_are_those_that_apr_lists(name: str) -> None:
    model = read_apr(MODELS / f"{name}.apr")
    said = json.loads((LISTINGS / f"{name}.tensors.json").read_text())["tensors"]
    assert [
        (entry.name, list(entry.shape), LISTED[entry.type], entry.size_bytes)
        for entry in model.tensors.values()
    ] == [(row["name"], row["shape"], row["dtype"], row["size_bytes"]) for row in said]


@needs_fixtures
def test_ggml_codes_of_the_preserving_converter_are_told_by_size() -> None:
    model = read_apr(MODELS / "qwen3moe-preserve.apr")
    assert model.tensors["blk.0.attn_k.weight"].type == "Q8_0"  # code 8
    assert model.tensors["blk.0.attn_output.weight"].type == "Q5_K"  # code 13
    assert model.tensors["blk.0.ffn_gate_exps.weight"].shape == (8, 256, 256)
    gemma = read_apr(MODELS / "gemma3-preserve.apr")
    assert gemma.tensors["blk.0.attn_k.weight"].type == "Q4_0"  # code 2
    assert (gemma.metadata["num_layers"], gemma.metadata["num_kv_heads"]) == (7, 1)
    assert "num_hidden_layers" not in gemma.metadata
    assert any("2 for Q4_0" in note for note in gemma.notes)
    assert any("no checksum" in note for note in gemma.notes)


@needs_fixtures
def test_the_dims_of_a_converted_file_stay_as_listed_and_reverse_on_demand() -> None:
    entry = read_apr(MODELS / "llama-convert.apr").tensors["model.layers.0.mlp.down_proj.weight"]
    assert entry.shape == (768, 256)
    assert reversed_entry(entry).shape == (256, 768)
    assert not reversed_entry(entry).flat


@needs_fixtures
def test_a_float16_files_tied_head_is_a_placeholder() -> None:
    model = read_apr(MODELS / "pycode-f16.apr")
    head = model.tensors["lm_head.weight"]
    assert (head.shape, head.size_bytes) == ((2048, 256), 0)
    assert tensor_bytes(head).size == 0
    assert any("lm_head.weight" in note and "placeholder" in note for note in model.notes)


# The header


@pytest.mark.parametrize(
    ("start", "says"),
    [
        (b"APR1" + bytes(60), "version 1"),
        (b"APRN" + bytes(60), "classical machine learning"),
        (b"APR\x02" + bytes(60), "APR\\x02"),
        (b"APR\0\1\0\0\0" + bytes(56), "MmapAprTransformer"),
        (b"APRT" + bytes(8), "stage file"),
        (b"GGUF" + bytes(60), "GGUF"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs"),
        (b"PK\3\4" + bytes(60), "not an .apr file"),
        (b"", "not an .apr file: it is empty"),
        (b"APR\0\2", "64 bytes of header, this one has 5"),
    ],
)
def test_other_files_are_refused_by_what_they_are(opened: Any, start: bytes, says: str) -> None:
    assert says in refusal(opened, start)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match="No such file"):
        read_apr(tmp_path / "absent.apr")
    with pytest.raises(BadFileError, match="folder"):
        read_apr(tmp_path)


@pytest.mark.parametrize("byte", [4, 5, 6, 8, 12, 20, 24, 32, 40, 44, 63])
def test_one_flipped_byte_of_the_header_is_found_by_its_checksum(opened: Any, byte: int) -> None:
    whole = bytearray(GOOD.build())
    whole[byte] ^= 0x04
    assert "checksum" in refusal(opened, bytes(whole))


def test_lenient_reads_a_header_without_a_checksum_and_says_so(opened: Any) -> None:
    whole = GOOD.build()
    blank = whole[:40] + bytes(4) + whole[44:]
    assert "checksum" in refusal(opened, blank)
    model = opened(blank, lenient=True)
    assert set(model.tensors) == {"a", "b"}
    assert any("checksum is 00000000" in note for note in model.notes)


def test_the_header_is_shown_field_by_field(opened: Any) -> None:
    fields = {field.name: field for field in opened(GOOD).header}
    assert fields["flags"].value == "0x0400 row-major"
    assert fields["tensor_count"].raw == b"\2\0\0\0"
    assert sum(len(field.raw) for field in fields.values()) == 64
    assert "matches" in fields["checksum"].value


def test_forbidden_and_unreadable_flags_are_refused(opened: Any) -> None:
    plain = GOOD.build()
    assert "LAYOUT-002" in refusal(opened, with_header(plain, flags=0x0800))
    assert "encrypted" in refusal(opened, with_header(plain, flags=0x0404))
    assert "version 3.0" in refusal(opened, with_header(plain, major=3))


def test_a_compression_flag_on_plain_bytes_is_noted_and_on_others_refused(opened: Any) -> None:
    for flag in (0x0001, 0x0002):
        plain = opened(with_header(GOOD.build(), flags=0x0400 | flag))
        assert any("plain" in note for note in plain.notes)
        packed = with_header(GOOD.build()[:64] + b"\x28\xb5\x2f\xfd" + bytes(900), flags=flag)
        assert "compressed" in refusal(opened, packed)
        broken = with_header(GOOD.build()[:64] + b"{" + bytes(900), flags=flag)
        assert "compressed" in refusal(opened, broken)


def test_an_early_apr2_file_reads_with_a_note(opened: Any) -> None:
    tensor = Tensor(b"w", 2, (4,), bytes(8))
    model = opened(AprFile([tensor], magic=b"APR2"))
    assert model.tensors["w"].type == "BF16"
    assert any("APR2" in note for note in model.notes)


# Sections


@pytest.mark.parametrize(
    "changes",
    [
        {"metadata_offset": 63},
        {"metadata_offset": 2**64 - 1},
        {"metadata_size": 2**32 - 1},
        {"index_offset": 2**64 - 1},
        {"index_offset": 64},
        {"data_offset": 2**64 - 1},
        {"data_offset": 65},
        {"data_offset": 10**6},
    ],
)
def test_sections_out_of_order_or_beyond_the_end_are_refused(
    opened: Any, changes: dict[str, int]
) -> None:
    assert "lies beyond" in refusal(opened, with_header(GOOD.build(), **changes))


def test_an_index_at_the_end_of_the_file_holds_no_tensors(opened: Any) -> None:
    whole = GOOD.build()
    at_end = with_header(whole, index_offset=len(whole), data_offset=len(whole))
    assert "0 bytes holds at most 0" in refusal(opened, at_end)


@pytest.mark.parametrize("count", [3, 200_001, 2**32 - 1])
def test_more_tensors_than_the_index_holds_are_refused(opened: Any, count: int) -> None:
    assert "tensor" in refusal(opened, with_header(GOOD.build(), tensor_count=count))


def test_fewer_tensors_than_the_index_holds_are_refused(opened: Any) -> None:
    assert "goes on after" in refusal(opened, with_header(GOOD.build(), tensor_count=1))


def test_a_file_cut_at_any_byte_is_refused_unless_only_its_ending_is_gone(opened: Any) -> None:
    whole = GOOD.build()
    last_byte = len(whole) - 4 - 64 + 12  # the end of tensor b, then padding, then the checksum
    for length in range(len(whole)):
        if length in (last_byte, len(whole) - 4):
            assert any("no checksum" in note for note in opened(whole[:length]).notes)
        else:
            assert refusal(opened, whole[:length])


def test_alignment_is_not_required(opened: Any) -> None:
    model = opened(AprFile(GOOD.tensors, alignment=1, footer=False))
    assert tensor_bytes(model.tensors["b"]).tobytes() == f32(5, 6, 7)


def test_the_footer_is_compared_when_asked(opened: Any) -> None:
    whole = bytearray(GOOD.build())
    assert opened(bytes(whole), verify=True).notes == ()
    whole[-70] ^= 1
    opened(bytes(whole))
    assert "checksum at its end" in refusal(opened, bytes(whole), verify=True)


def test_trailing_bytes_are_noted(opened: Any) -> None:
    assert any("follow its last tensor" in note for note in opened(GOOD.build() + bytes(9)).notes)


# The index


def test_an_unsorted_index_reads_with_a_note_and_a_name_twice_does_not(opened: Any) -> None:
    a, b = GOOD.tensors
    assert any("not sorted" in note for note in opened(AprFile([b, a])).notes)
    assert "a twice" in refusal(opened, AprFile([a, a]))


def test_a_json_index_is_recognised(opened: Any) -> None:
    text = b'[{"name":"weights","dtype":"json"}]'
    assert "index is JSON" in refusal(opened, AprFile([], index=text, count=1))


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (Tensor(b"w", 0, (4,), bytes(15)), "needs 16 as F32"),
        (Tensor(b"w", 99, (4,), bytes(16)), "unknown type code 99"),
        (Tensor(b"w", 0, (2**30, 2**30), bytes(16)), "2^48"),
        (Tensor(b"w", 0, (1,) * 9, bytes(4)), "9 dimensions"),
        (Tensor(b"w", 0, (4,), bytes(16), offset=2**64 - 16), "the file ends"),
        (Tensor(b"w", 0, (4,), bytes(16), offset=68), "the file ends"),
        (Tensor(b"w", 0, (4,), b""), "needs 16"),
        (Tensor(b"w", 0, (0, 4), bytes(16)), "empty by its shape"),
        (Tensor(b"", 0, (4,), bytes(16)), "name of 0 bytes"),
        (Tensor(b"n" * 257, 0, (4,), bytes(16)), "name of 257 bytes"),
        (Tensor(b"\xff", 0, (4,), bytes(16)), "not UTF-8"),
        (Tensor(b"w\0x", 0, (4,), bytes(16)), "NUL"),
    ],
)
def test_an_entry_that_cannot_be_true_is_refused(opened: Any, tensor: Tensor, says: str) -> None:
    assert says in refusal(opened, AprFile([tensor]))


def test_names_reach_messages_without_terminal_escapes(opened: Any) -> None:
    message = refusal(opened, AprFile([Tensor(b"\x1b]0;x\x07", 99, (4,), bytes(16))]))
    assert "\x1b" not in message and "\\x1b" in message


def test_overlapping_tensors_are_refused_unless_they_are_the_same_bytes(opened: Any) -> None:
    first = Tensor(b"a", 0, (4,), f32(1, 2, 3, 4))
    same = Tensor(b"b", 0, (4,), b"", offset=0, size=16)
    assert any("share the same bytes" in note for note in opened(AprFile([first, same])).notes)
    inside = Tensor(b"b", 0, (2,), b"", offset=8, size=8)
    assert "overlap" in refusal(opened, AprFile([first, inside]))


@pytest.mark.parametrize(
    ("code", "shape", "size", "type_name"),
    [
        (0, (3, 5), 60, "F32"),
        (1, (3, 5), 30, "F16"),
        (2, (64,), 128, "BF16"),
        (2, (64,), 36, "Q4_0"),
        (2, (9,), 18, "BF16"),
        (3, (64,), 512, "F64"),
        (3, (64,), 40, "Q4_1"),
        (4, (5,), 20, "I32"),
        (5, (5,), 40, "I64"),
        (6, (64,), 64, "I8"),
        (6, (64,), 44, "Q5_0"),
        (6, (22,), 22, "I8"),
        (7, (64,), 64, "U8"),
        (7, (64,), 48, "Q5_1"),
        (7, (24,), 24, "U8"),
        (8, (64,), 36, "APR_Q4"),
        (8, (64,), 68, "Q8_0"),
        (9, (32,), 36, "APR_Q8"),
        (10, (256,), 84, "Q2_K"),
        (11, (256,), 110, "Q3_K"),
        (12, (2, 256), 288, "Q4_K"),
        (13, (256,), 176, "Q5_K"),
        (14, (256,), 210, "Q6_K"),
        (30, (7,), 14, "BF16"),
        (128, (20,), 18, "APR_Q4"),
        (128, (33,), 36, "APR_Q4"),
        (129, (33,), 37, "APR_Q8"),
        (129, (0,), 0, "APR_Q8"),
        (0, (), 4, "F32"),
    ],
)
def test_the_size_tells_what_a_type_code_means(
    opened: Any, code: int, shape: tuple[int, ...], size: int, type_name: str
) -> None:
    entry = opened(AprFile([Tensor(b"w", code, shape, bytes(size))])).tensors["w"]
    assert (entry.type, entry.shape, entry.size_bytes) == (type_name, shape, size)


@pytest.mark.parametrize(
    ("code", "shape", "size"), [(2, (9,), 5), (2, (33,), 36), (6, (33,), 44), (12, (2, 256), 144)]
)
def test_a_size_that_no_meaning_of_the_code_takes_is_refused(
    opened: Any, code: int, shape: tuple[int, ...], size: int
) -> None:
    assert "it needs" in refusal(opened, AprFile([Tensor(b"w", code, shape, bytes(size))]))


@pytest.mark.parametrize(
    ("shape", "blocks", "flat", "fitting"),
    [
        ((4, 300), 8, False, True),  # rows of two blocks each
        ((4, 300), 5, True, True),  # 1,200 values run flat
        ((2, 500), 4, False, True),  # both fit: rows, as the format says
        ((300, 4), 8, False, False),  # fits only the other way round
        ((2, 3, 100), 3, True, True),  # not a matrix: flat
        ((256, 10, 2), 20, True, True),  # fastest dimension first: coincides with flat
    ],
)
def test_padded_rows_of_k_quants(
    opened: Any, shape: tuple[int, ...], blocks: int, flat: bool, fitting: bool
) -> None:
    entry = opened(AprFile([Tensor(b"w", 12, shape, bytes(144 * blocks))])).tensors["w"]
    assert (entry.flat, fits(entry)) == (flat, fitting)


def test_reversing_an_entry_settles_its_padding_anew(opened: Any) -> None:
    tensors = [
        Tensor(b"w", 12, (300, 4), bytes(144 * 8)),
        Tensor(b"x", 12, (256, 10, 2), bytes(2880)),
    ]
    entries = opened(AprFile(tensors)).tensors
    for entry in map(reversed_entry, entries.values()):
        assert fits(entry) and not entry.flat
    flat = opened(AprFile([Tensor(b"w", 12, (4, 300), bytes(144 * 5))])).tensors["w"]
    assert reversed_entry(flat).flat
    padded = opened(AprFile([Tensor(b"w", 12, (4, 300), bytes(144 * 8))])).tensors["w"]
    with pytest.raises(BadFileError, match="reversed shape"):
        reversed_entry(padded)


def test_only_a_head_may_be_a_placeholder(opened: Any) -> None:
    head = Tensor(b"lm_head.weight", 12, (4, 256), b"")
    assert opened(AprFile([head])).tensors["lm_head.weight"].size_bytes == 0
    norm = Tensor(b"model.norm.weight", 0, (4,), b"")
    assert "needs 16" in refusal(opened, AprFile([norm]))


# The metadata


def test_aliases_become_canonical_keys_and_the_rest_is_kept(opened: Any) -> None:
    model = opened(
        AprFile(metadata={"n_embd": 64, "n_layer": 2, "license": None, "mine": {"deep": None}})
    )
    assert model.metadata == {"hidden_size": 64, "num_layers": 2, "mine": {"deep": None}}


def test_a_key_and_its_alias_must_agree(opened: Any) -> None:
    same = opened(AprFile(metadata={"num_heads": 8, "n_heads": 8}))
    assert same.metadata == {"num_heads": 8}
    assert any("num_heads and n_heads say the same" in note for note in same.notes)
    message = refusal(opened, AprFile(metadata={"n_heads": 8, "num_attention_heads": 4}))
    assert "n_heads is 8, num_attention_heads is 4" in message
    null = opened(AprFile(metadata={"num_heads": None, "n_heads": 8}))
    assert (null.metadata, null.notes[:1]) == ({"num_heads": 8}, ())


def test_dotted_keys_fill_gaps_only(opened: Any) -> None:
    model = opened(
        AprFile(metadata={"hidden_size": 8, "model.hidden_size": 9, "model.num_layers": 3})
    )
    assert (model.metadata["hidden_size"], model.metadata["num_layers"]) == (8, 3)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b'{"a":1,"a":1}', "twice"),
        (b'{"a":{"b":1,"b":2}}', "twice"),
        (b"[1]", "not an object"),
        (b'{"a":', "not JSON"),
        (b'{"a":"\xff"}', "not UTF-8"),
        (b'{"a":NaN}', "NaN"),
        (b'{"a":' + b"[" * 70 + b"]" * 70 + b"}", "64 levels"),
        (b'{"a":' + b"[" * 99_999 + b"]" * 99_999 + b"}", "64 levels"),
        (b'{"a":' + b"9" * 9_999 + b"}", "refused"),
        (b'{"hidden_size":4096.0}', "hidden_size = 4096.0"),
        (b'{"hidden_size":"64"}', "whole number"),
        (b'{"num_layers":true}', "whole number"),
        (b'{"num_layers":257}', "1 to 256"),
        (b'{"num_heads":-1}', "1 to 256"),
        (b'{"rope_theta":0.5}', "rope_theta"),
        (b'{"rms_norm_eps":1}', "rms_norm_eps"),
        (b'{"architecture":7}', "architecture"),
        (b'{"tied_embeddings":1}', "true or false"),
        (b'{"format":"entrenar-checkpoint"}', "entrenar"),
        (b'{"tokenizer.vocabulary":["a",null]}', "entry 1 of its tokenizer.vocabulary is None"),
        (b'{"tokenizer.vocabulary":["a"],"tokenizer.scores":[1,2]}', "2 entries"),
        (b'{"tokenizer.vocabulary":["a"],"tokenizer.token_type":[1,1]}', "2 entries"),
        (b'{"tokenizer.vocabulary":["a"],"tokenizer.eos_token_id":1}', "eos_token_id"),
        (b'{"tokenizer.merges":"a b"}', "not a list"),
        (b'{"tokenizer.vocabulary":["' + b"x" * 65_537 + b'"]}', "64 KiB"),
    ],
)
def test_metadata_that_cannot_be_trusted_is_refused(opened: Any, text: bytes, says: str) -> None:
    assert says in refusal(opened, AprFile(metadata=text))


def test_the_embedding_must_have_the_declared_vocabulary_and_width(opened: Any) -> None:
    tensors = [Tensor(b"token_embd.weight", 0, (6, 2), bytes(48))]
    assert opened(AprFile(tensors, {"vocab_size": 6, "hidden_size": 2}))
    assert opened(AprFile(tensors, {"vocab_size": 2, "hidden_size": 6}))
    message = refusal(opened, AprFile(tensors, {"vocab_size": 7, "hidden_size": 2}))
    assert "6 x 2" in message and "vocab_size 7" in message


def test_verifying_finds_what_is_not_finite(opened: Any) -> None:
    norm = Tensor(b"output_norm.weight", 0, (2,), f32(1, float("nan")))
    assert "output_norm.weight" in refusal(opened, AprFile([norm]), verify=True)
    assert opened(AprFile([norm]))
    block = bytearray(210)
    block[208:] = np.array([np.inf], dtype="<f2").tobytes()
    scale = Tensor(b"w", 14, (2, 256), bytes(210) + bytes(block))
    assert "finite scale" in refusal(opened, AprFile([scale]), verify=True)
    q8 = Tensor(b"w", 129, (2,), f32(float("inf")) + b"\1\2")
    assert "finite scale" in refusal(opened, AprFile([q8]), verify=True)


# Any damage


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(st.tuples(st.integers(0, 10_000), st.integers(1, 255)), min_size=1, max_size=4),
    cut=st.integers(0, 400),
)
def test_any_mutation_is_refused_or_read_within_bounds(
    opened: Any, edits: list[tuple[int, int]], cut: int
) -> None:
    metadata = {"hidden_size": 4, "n_layers": 2, "tokenizer.vocabulary": ["a", "b"]}
    whole = bytearray(AprFile(GOOD.tensors, metadata).build())
    for at, flip in edits:
        whole[at % len(whole)] ^= flip
    del whole[len(whole) - cut % 7 * (cut > 200) :]
    head = bytes(whole[:40] + whole[44:64])
    whole[40:44] = struct.pack("<I", zlib.crc32(head))  # past the checksum, into the parser
    try:
        model = opened(bytes(whole))
    except BadFileError as error:
        assert error.message
        return
    for entry in model.tensors.values():
        assert len(tensor_bytes(entry)) == entry.size_bytes
        assert 64 <= entry.offset <= entry.offset + entry.size_bytes <= len(whole)
