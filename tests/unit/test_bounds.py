"""What reading a file may take is bounded before anything is built, whoever wrote the file."""

from __future__ import annotations

import json
import os
import socket
import struct
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from aprtui.cli.main import main
from aprtui.compare.saved import load
from aprtui.contracts import document
from aprtui.contracts.document import NotReadable
from aprtui.contracts.parse import parse_contract
from aprtui.errors import BadFileError
from aprtui.formats import gguf, safetensors
from aprtui.formats.aprt import read_values
from aprtui.formats.blocks import value_count
from aprtui.formats.gguf import read_gguf
from aprtui.formats.safetensors import read_safetensors
from aprtui.formats.strict_json import MAX_MEMORY_BYTES, built_bytes, parse_object
from aprtui.formats.tracedir import open_trace
from aprtui.model.open import read_model_file
from aprtui.model.tokenizer import build_tokenizer, spec_from_folder
from aprtui.tui.running import running_pid
from aprtui.tui.source import kind_of
from tests.tui.support import small_trace
from tests.unit.gguf_writer import gguf_bytes, key

MANY = 5_000

# What a few bytes of text become: lists, objects, pairs, numbers, narrow and wide strings.
SWELLING = {
    "lists": b"[]", "objects": b"{}", "lists of one": b"[1]", "lists in lists": b"[[]]",
    "objects of one": b'{"a":1}', "objects in objects": b'{"a":{"b":1}}', "reals": b"1.5",
    "numbers": b"12345678", "text": b'"ab%d"', "accents": '"é%d"'.encode(),
    "wide text": '"\U0001f600%d"'.encode(), "keys": b'"k%d":1', "pairs": b'"k%d":"v%d"',
}  # fmt: skip


@pytest.mark.parametrize("name", SWELLING)
def test_a_document_takes_no_more_than_was_reckoned(name: str) -> None:
    one = SWELLING[name]
    many = (one.replace(b"%d", b"%d" % number) for number in range(MANY))
    inner = b",".join(many)
    raw = b"{" + inner + b"}" if name in ("keys", "pairs") else b'{"x":[' + inner + b"]}"
    tracemalloc.start()
    try:
        parse_object(Path("x"), raw, "it")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= built_bytes(raw) - len(raw)  # the text itself was there before


def test_a_document_that_would_take_too_much_is_refused_unread(tmp_path: Path) -> None:
    raw = b'{"schema":"aprtui-trace-v1","stages":[' + b"[]," * 3_000_000 + b"[]]}"
    assert built_bytes(raw) > MAX_MEMORY_BYTES
    small_trace(tmp_path / "t")
    folder = tmp_path / "m"
    folder.mkdir()
    for path in ("t/trace.json", "m/tokenizer.json", "m/config.json", "saved.json"):
        (tmp_path / path).write_bytes(raw)
    head = len(raw).to_bytes(8, "little") + raw
    (folder / "model.safetensors").write_bytes(head)
    for read in (
        lambda: open_trace(tmp_path / "t"),
        lambda: load(tmp_path / "saved.json"),
        lambda: read_safetensors(folder),
        lambda: build_tokenizer(spec_from_folder(folder)),
    ):
        with pytest.raises(BadFileError, match="is refused: to read"):
            read()


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1E+400", "1" * 400, "-" + "9" * 5000])
def test_a_number_that_no_double_holds_is_refused(number: str) -> None:
    for raw in (f'{{"a":{number}}}', f'{{"a":[{{"b":{number}}}]}}'):
        with pytest.raises(BadFileError, match="no double holds"):
            parse_object(Path("x"), raw.encode(), "it")
    near = {"a": 1e308, "b": 10**307, "c": -5e-324}
    assert parse_object(Path("x"), json.dumps(near).encode(), "it") == near


def test_levels_are_counted_however_brackets_are_hidden_in_text() -> None:
    def doc(levels: int, text: str) -> bytes:
        inner = "[" * (levels - 1) + f'"{text}"' + "]" * (levels - 1)
        return f'{{"a":{inner}}}'.encode()

    for text in ("", "x", "]", "[", "]]]]", r"\"]\"", r"\\", "}{", r"\"[\""):
        assert parse_object(Path("x"), doc(64, text), "it")
        with pytest.raises(BadFileError, match="deeper than 64"):
            parse_object(Path("x"), doc(65, text), "it")
    hidden = r'["\"]\"",' * 70 + "1" + r',"\"[\""]' * 70
    with pytest.raises(BadFileError, match="deeper than 64"):
        parse_object(Path("x"), f'{{"a":{hidden}}}'.encode(), "it")


def test_a_shape_of_huge_numbers_is_refused_before_it_is_multiplied(tmp_path: Path) -> None:
    for shape in ([1 << 62] * 8, [10**300] * 8, [2] * 20_000, [-1], [1 << 63]):
        with pytest.raises(ValueError):
            value_count(shape)
    assert value_count([]) == 1 and value_count([3, 0, 5]) == 0
    small_trace(tmp_path)
    manifest = json.loads((tmp_path / "trace.json").read_text())
    manifest["stages"][0] |= {"shape": [10**300] * 20_000, "axes": ["x"] * 20_000}
    (tmp_path / "trace.json").write_text(json.dumps(manifest))
    with pytest.raises(BadFileError, match="its shape is not 1 to 8 whole numbers"):
        open_trace(tmp_path)


def test_counts_of_a_gguf_have_limits_that_its_size_cannot_lift(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    with path.open("wb") as file:
        file.write(gguf_bytes(counts=(1_000_000, 0)))
        file.truncate(1 << 30)  # sparse: there is room for them all
    with pytest.raises(BadFileError, match="1,000,000 tensors are promised, over the limit"):
        read_gguf(path)
    with path.open("wb") as file:
        file.write(gguf_bytes([key("a", 9, struct.pack("<IQ", 10, 1 << 23))]))
        file.truncate(1 << 40)
    with pytest.raises(BadFileError, match="over the limit of 4,194,304"):
        read_gguf(path)


def test_a_header_beyond_all_models_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf, "MAX_HEADER_BYTES", 1000)
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes([key("a", 9, struct.pack("<IQ", 0, 2000) + bytes(2000))]))
    with pytest.raises(BadFileError, match="all before its tensors takes over 1,000 bytes"):
        read_gguf(path)


def test_more_tensors_than_any_model_has_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safetensors, "MAX_TENSORS", 100)
    entry = b':{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    header = b"{" + b",".join(b'"%d"' % n + entry for n in range(101)) + b"}"
    path = tmp_path / "m.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(BadFileError, match="101 tensors; 100 is the most"):
        read_model_file(path)


def test_a_contract_of_countless_values_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "MAX_NODES", 1000)
    for body in (b"a: [" + b"[]," * 4000 + b"]", b"- a\n" * 5000):
        with pytest.raises(NotReadable, match="more than 1,000 values"):
            parse_contract(body)
    with pytest.raises(NotReadable, match="larger than"):
        parse_contract(b"a: " + b"x" * 3_000_000)


@pytest.fixture
def specials(tmp_path: Path) -> Iterator[dict[str, Path]]:
    """What is no file and has a name all the same; opening some of it would never return."""
    fifo, plug = tmp_path / "fifo", tmp_path / "plug"
    os.mkfifo(fifo)
    with socket.socket(socket.AF_UNIX) as made:
        here = Path.cwd()
        os.chdir(tmp_path)  # a socket's name is short
        made.bind("plug")
        os.chdir(here)
        yield {"a fifo": fifo, "a socket": plug, "a device": Path("/dev/zero")}


@pytest.mark.parametrize("kind", ["a fifo", "a socket", "a device"])
@pytest.mark.parametrize("suffix", [".gguf", ".safetensors", ".apr", ".bin", ".json", ""])
def test_what_is_no_file_is_refused_at_once(
    specials: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str,
    suffix: str,
) -> None:  # fmt: skip
    path = tmp_path / f"name{suffix}"
    path.symlink_to(specials[kind])
    for read in (read_model_file, kind_of, read_values, load):
        with pytest.raises(BadFileError, match=kind):
            read(path)
    commands = (["inspect", path], ["stats", path], ["diff", path, path], ["trace", path],
                ["diff", "--judge", path], ["import", path, "-o", tmp_path / "o.apr"])  # fmt: skip
    for words in commands:
        code = main([str(word) for word in words])
        said = capsys.readouterr()
        assert code in (2, 3) and said.err.count("\n") == 1, (words, said.err)


def test_a_fifo_inside_a_folder_is_refused_or_passed_over(
    specials: dict[str, Path], tmp_path: Path
) -> None:
    trace = small_trace(tmp_path / "t")
    (trace / "events.jsonl").symlink_to(specials["a fifo"])
    assert running_pid(trace) is None and open_trace(trace).status == "complete"
    (trace / "trace.json").unlink()
    (trace / "trace.json").symlink_to(specials["a fifo"])
    with pytest.raises(BadFileError, match="a fifo"):
        open_trace(trace)
    folder = tmp_path / "m"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).symlink_to(specials["a fifo"])
    with pytest.raises(BadFileError, match=r"no \.safetensors file|a fifo"):
        read_safetensors(folder)
