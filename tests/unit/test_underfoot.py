"""A file that is cut short while it is read ends nothing, and nothing is made of what was gone."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from aprtui.compare.bars import choose_bars
from aprtui.compare.infer import record_in_trace
from aprtui.compare.pairs import Pair, compare_pair
from aprtui.engine.dequantise import StoredRows
from aprtui.engine.job import TraceJob
from aprtui.engine.plan import make_plan
from aprtui.engine.run import run_trace
from aprtui.errors import BadFileError
from aprtui.formats import aprt
from aprtui.formats.aprt import HEADER_BYTES, create_stage, read_values, write_stage
from aprtui.formats.atomic import whole_file
from aprtui.formats.maps import GUARDED, check_maps, is_whole
from aprtui.formats.modelfile import tensor_bytes
from aprtui.formats.tracedir import TraceDir
from aprtui.model.open import read_model_file

LARGE = 2_000_000  # values of a file that is mapped

guarded = pytest.mark.skipif(not GUARDED, reason="the guard was not built: there was no C compiler")


def large_stage(path: Path) -> Path:
    write_stage(path, 0, np.arange(LARGE, dtype=np.float32))
    return path


@guarded
def test_a_stage_that_is_cut_short_is_an_error_after_reading_and_no_signal(tmp_path: Path) -> None:
    path = large_stage(tmp_path / "layer-0" / "attn_norm.bin")
    values = read_values(path)
    other = read_values(large_stage(tmp_path / "other.bin"))
    os.truncate(path, 4096)
    assert float(values[-1]) == 0.0 and float(values[0]) == 0.0
    assert not is_whole(values) and is_whole(other) and is_whole(np.zeros(3))
    check_maps(other)
    with pytest.raises(BadFileError, match=r"attn_norm\.bin: became shorter"):
        check_maps(values)
    check_maps()  # it has been told


@guarded
def test_a_signal_that_a_library_took_is_ours_again(tmp_path: Path) -> None:
    """As Ray takes it when it starts: the next file that is mapped is guarded all the same."""
    script = """if True:
        import faulthandler, os, pathlib, sys
        from aprtui.formats.aprt import read_values
        from aprtui.formats.maps import is_whole
        first = read_values(pathlib.Path(sys.argv[1]))
        faulthandler.enable()  # in place of ours
        second = read_values(pathlib.Path(sys.argv[2]))
        os.truncate(sys.argv[2], 4096)
        assert float(second[-1]) == 0.0 and not is_whole(second) and is_whole(first)
    """
    paths = [large_stage(tmp_path / f"{name}.bin") for name in "ab"]
    done = subprocess.run([sys.executable, "-c", script, *map(str, paths)], capture_output=True)
    assert done.returncode == 0 and done.stderr == b"", done.stderr.decode()


@guarded
def test_a_loss_is_told_of_a_map_that_is_gone_too(tmp_path: Path) -> None:
    path = large_stage(tmp_path / "s.bin")
    values = read_values(path)
    os.truncate(path, 4096)
    assert float(values.sum()) > 0
    del values
    with pytest.raises(BadFileError, match=r"s\.bin: became shorter"):
        check_maps()
    check_maps()


def test_without_the_guard_a_stage_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aprt, "GUARDED", False)
    path = large_stage(tmp_path / "attn_norm.bin")
    values = read_values(path)
    os.truncate(path, 4096)
    assert float(values[-1]) == LARGE - 1 and not values.flags.writeable


@guarded
def test_nothing_is_written_of_what_was_gone(tmp_path: Path) -> None:
    path = large_stage(tmp_path / "in.bin")
    values = read_values(path)
    with pytest.raises(BadFileError, match="became shorter"), whole_file(tmp_path / "out") as file:
        os.truncate(path, 4096)
        file.write(bytes(values.view(np.uint8)[-8:]))
    del values
    assert [one.name for one in tmp_path.iterdir()] == ["in.bin"]


@guarded
def test_a_stage_that_is_cut_short_while_it_is_written_is_no_stage(tmp_path: Path) -> None:
    out = tmp_path / "out.bin"
    short = pytest.raises(BadFileError, match="became shorter")
    with short, create_stage(out, 0, (2, LARGE)) as values:
        (partial,) = tmp_path.iterdir()
        os.truncate(partial, 4096)
        values[:] = 1
        del values
    check_maps()
    assert not list(tmp_path.iterdir())


@guarded
def test_a_pair_that_is_cut_short_while_it_is_compared_is_unreadable(tmp_path: Path) -> None:
    a, b = (large_stage(tmp_path / side / "layer-0" / "attn_norm.bin") for side in "ab")
    left, right = record_in_trace(a)[0], record_in_trace(b)[0]
    empty = TraceDir(tmp_path, "file", {}, None, None)

    def cut() -> bool:
        os.truncate(b, HEADER_BYTES)
        return False

    result = compare_pair(Pair(left.key, left, right), choose_bars(empty, empty), cancelled=cut)
    assert result.kind == "unreadable" and "became shorter" in result.message


@guarded
def test_a_model_that_is_cut_short_under_a_trace_ends_it_without_a_manifest(
    qwen2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a block of a weight is decoded: its size was checked, its bytes are not read yet."""
    model = Path(shutil.copy(qwen2, tmp_path / "m.gguf"))
    job = TraceJob(str(model), str(tmp_path / "t"), tokens=(1, 2, 3), device="cpu")
    bytes_of, seen = StoredRows.bytes_of, itertools.count()

    def cut(stored: StoredRows, first: int, rows: int) -> Tensor:
        raw = bytes_of(stored, first, rows)
        if next(seen) == 20:
            os.truncate(model, 4096)
        return raw

    monkeypatch.setattr(StoredRows, "bytes_of", cut)
    with pytest.raises(BadFileError, match=r"m\.gguf: (became shorter|.* beyond the end)"):
        run_trace(make_plan(job), lambda event: None)
    assert not (tmp_path / "t" / "trace.json").exists()
    written = [*(tmp_path / "t").rglob("*.bin")]
    assert all(path.stat().st_size > HEADER_BYTES for path in written)
    with suppress(BadFileError):  # which of the two it was that ended the trace
        check_maps()


_DIFF = """
import os, sys
from aprtui.cli.main import main
from aprtui.engine import weight_blocks
decode = weight_blocks.decode_array
def cut(*words):
    os.truncate(sys.argv[2], 4096)
    return decode(*words)
weight_blocks.decode_array = cut
sys.exit(main(["diff", *sys.argv[1:]]))
"""


@guarded
def test_a_model_that_is_cut_short_under_a_diff_is_a_bad_file(qwen2: Path, tmp_path: Path) -> None:
    paths = [Path(shutil.copy(qwen2, tmp_path / f"{side}.gguf")) for side in "ab"]
    with paths[1].open("r+b") as file:  # another byte of the last tensor: there is something to do
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    line = [sys.executable, "-c", _DIFF, *map(str, paths)]
    ended = subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 3, (ended.returncode, ended.stderr)
    assert re.search(r"b\.gguf: (became shorter|.* beyond the end)", ended.stderr)


def test_a_header_that_shrinks_while_it_is_read_is_an_error(
    qwen2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the file systems of networks do it: the size of before, and no bytes."""
    path = Path(shutil.copy(qwen2, tmp_path / "m.gguf"))
    pread: Callable[[int, int, int], bytes] = os.pread

    def shrunk(fd: int, size: int, offset: int) -> bytes:
        return pread(fd, min(size, max(0, 1000 - offset)), offset)

    monkeypatch.setattr(os, "pread", shrunk)
    with pytest.raises(BadFileError, match="became shorter"):
        read_model_file(path)


@guarded
def test_a_model_is_mapped_anew_once_it_was_found_short(qwen2: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(qwen2, tmp_path / "m.gguf"))
    entry = max(read_model_file(path).tensors.values(), key=lambda one: one.offset)
    stored = tensor_bytes(entry)
    os.truncate(path, 4096)
    stored.sum()
    with pytest.raises(BadFileError):
        check_maps(stored)
    shutil.copy(qwen2, path)
    assert tensor_bytes(entry).any()
