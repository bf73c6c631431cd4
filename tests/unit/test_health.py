"""What no sound file holds is found in every format's blocks, and sound files are left alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from aprtui.cli.main import main
from aprtui.formats.blocks import BLOCK_TYPES
from aprtui.formats.health import all_zero, scan_file, scan_tensor
from aprtui.formats.modelfile import ModelFile, TensorEntry
from aprtui.model.open import list_model_file

Bytes = npt.NDArray[np.uint8]
ROWS, COLUMNS = 64, 512
HALVES = {  # where ggml-common.h puts a block's float16 scale, and its minimum
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82),
    "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,), "IQ4_XS": (0,),
}  # fmt: skip
NAN = {"F32": b"\x00\x00\xc0\x7f", "F16": b"\x00\x7e", "BF16": b"\xc0\x7f", "F8_E4M3": b"\x7f"}


def stored(kind: str) -> Bytes:
    """A matrix of a type, its scales 1.0 and its codes or mantissas random."""
    rng = np.random.default_rng(len(kind))
    block = BLOCK_TYPES[kind]
    raw = rng.integers(1, 256, ROWS * COLUMNS // block.values * block.bytes, dtype=np.uint8)
    table = raw.reshape(-1, block.bytes)
    if kind in HALVES:
        for place in HALVES[kind]:
            table[:, place : place + 2] = (0x00, 0x3C)
    elif kind == "F8_E4M3":
        raw &= 0x3F
    else:
        table[:, -1] = 0x3C
    return raw


def entry_of(path: Path, kind: str, raw: Bytes, offset: int = 0) -> TensorEntry:
    path.write_bytes(bytes(offset) + raw.tobytes())
    return TensorEntry("blk.0.w", kind, (ROWS, COLUMNS), path, offset, raw.size)


@pytest.mark.parametrize("kind", [*HALVES, *NAN])
def test_a_sound_matrix_has_no_finding(kind: str, tmp_path: Path) -> None:
    assert scan_tensor(entry_of(tmp_path / "m", kind, stored(kind))) == ()


@pytest.mark.parametrize(
    ("kind", "place"), [(kind, place) for kind, places in HALVES.items() for place in places]
)
def test_a_nan_scale_is_told_by_row_and_block(kind: str, place: int, tmp_path: Path) -> None:
    raw, size = stored(kind), BLOCK_TYPES[kind].bytes
    per_row = COLUMNS // BLOCK_TYPES[kind].values
    at = (37 * per_row + 1) * size + place
    raw[at : at + 2] = (0x00, 0x7E)
    (finding,) = scan_tensor(entry_of(tmp_path / "m", kind, raw))
    assert (finding.kind, finding.wrong, finding.row, finding.block) == ("nonfinite", True, 37, 1)
    assert ("minimum" if place != HALVES[kind][0] else "scale") in finding.text


@pytest.mark.parametrize("kind", NAN)
def test_a_nan_value_is_told_by_its_row(kind: str, tmp_path: Path) -> None:
    raw, size = stored(kind), BLOCK_TYPES[kind].bytes
    at = (63 * COLUMNS + 5) * size
    raw[at : at + size] = np.frombuffer(NAN[kind], dtype=np.uint8)
    (finding,) = scan_tensor(entry_of(tmp_path / "m", kind, raw))
    assert (finding.kind, finding.row) == ("nonfinite", 63)
    assert "row 63, column 5" in finding.text


@pytest.mark.parametrize("kind", ["Q4_K", "F16", "Q8_0"])
def test_zeros_and_one_value_throughout(kind: str, tmp_path: Path) -> None:
    empty = entry_of(tmp_path / "zero", kind, np.zeros_like(stored(kind)))
    assert [each.kind for each in scan_tensor(empty)] == ["zeros"]
    assert all_zero(empty)
    block = BLOCK_TYPES[kind].bytes
    same = np.tile(stored(kind)[:block], ROWS * COLUMNS // BLOCK_TYPES[kind].values)
    alike = entry_of(tmp_path / "same", kind, same)
    assert [each.kind for each in scan_tensor(alike)] == ["constant"]
    assert not all_zero(alike)


def file_of(path: Path, entries: list[TensorEntry]) -> ModelFile:
    tensors = {entry.name: entry for entry in entries}
    size = path.stat().st_size
    return ModelFile(path, "gguf", "3", {}, tensors, (path,), size, "")


def test_a_hole_over_the_border_of_two_tensors_is_one(tmp_path: Path) -> None:
    path, one = tmp_path / "m", stored("F16")
    whole = np.concatenate([one, one, one])
    hole = slice(one.size - 20_000, 2 * one.size + 9_000)
    whole[hole] = 0
    path.write_bytes(whole.tobytes())
    entries = [
        TensorEntry(f"t{n}", "F16", (ROWS, COLUMNS), path, n * one.size, one.size) for n in range(3)
    ]
    found = [each for each in scan_file(file_of(path, entries)).findings if each.wrong]
    assert [each.kind for each in found] == ["hole"]
    assert found[0].tensors == ("t0", "t1", "t2")
    assert f"bytes {hole.start:,} to {hole.stop - 1:,}" in found[0].text


def test_whole_rows_of_zeros_are_unused_tokens(tmp_path: Path) -> None:
    raw = stored("F32")
    row = COLUMNS * 4
    raw[10 * row : 40 * row] = 0
    entry = entry_of(tmp_path / "m", "F32", raw)
    assert scan_file(file_of(tmp_path / "m", [entry])).sound
    raw[40 * row : 40 * row + 900] = 0
    entry = entry_of(tmp_path / "n", "F32", raw)
    assert not scan_file(file_of(tmp_path / "n", [entry])).sound


def test_progress_ends_at_all_bytes(tmp_path: Path) -> None:
    entry = entry_of(tmp_path / "m", "Q4_K", stored("Q4_K"))
    told: list[tuple[int, int, str]] = []
    health = scan_file(file_of(tmp_path / "m", [entry]), lambda *each: told.append(each))
    assert told[-1] == (health.bytes, health.bytes, "blk.0.w")


def test_inspect_says_it_in_text_json_and_exit_code(
    qwen2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = qwen2
    assert main(["inspect", str(path), "--verify", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["health"]["sound"] is True
    whole = bytearray(path.read_bytes())
    entry = next(e for e in list_model_file(path).tensors.values() if e.type == "Q4_K")
    whole[entry.offset : entry.offset + 2] = b"\x00\x7e"
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(whole)
    assert main(["inspect", str(broken), "--verify"]) == 1
    assert f"{entry.name}: 1 block whose scale is NaN" in capsys.readouterr().out


def test_a_missing_pre_tokenizer_is_told(
    qwen2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = qwen2.read_bytes()
    assert whole.count(b"tokenizer.ggml.pre") == 1
    other = tmp_path / "m.gguf"
    other.write_bytes(whole.replace(b"tokenizer.ggml.pre", b"tokenizer.ggml.prx"))
    assert main(["inspect", str(other), "--verify"]) == 1
    assert "tokenizer.ggml.pre is missing" in capsys.readouterr().out
