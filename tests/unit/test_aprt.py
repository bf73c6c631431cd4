"""Stage files: every bit kept, every damage told, never half a file."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aprtui.errors import AprtuiError, BadFileError, UsageError
from aprtui.formats.aprt import (
    StageHeader,
    create_stage,
    read_header,
    read_values,
    write_stage,
)
from tests.support import FIXTURES, needs_fixtures

LAYERS = st.one_of(st.none(), st.integers(0, 2**32 - 2))
KEEP_DIR = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)


@KEEP_DIR
@given(layer=LAYERS, bits=st.lists(st.integers(0, 2**32 - 1), max_size=64))
def test_any_bits_survive_a_round_trip(tmp_path: Path, layer: int | None, bits: list[int]) -> None:
    path = tmp_path / "s.bin"
    values = np.array(bits, dtype="<u4").view("<f4")
    assert write_stage(path, layer, values) == 12 + 4 * len(bits) == path.stat().st_size
    assert read_header(path) == StageHeader(layer, len(bits))
    assert read_values(path).view("<u4").tolist() == bits
    number = 0xFFFFFFFF if layer is None else layer
    assert path.read_bytes()[:12] == struct.pack("<4sII", b"APRT", number, len(bits))


@KEEP_DIR
@given(raw=st.binary(max_size=64))
def test_any_bytes_are_read_whole_or_refused(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "s.bin"
    path.write_bytes(raw)
    try:
        values = read_values(path)
    except BadFileError:
        return
    assert len(raw) == 12 + 4 * values.size


def test_truncation_at_any_byte_is_told(tmp_path: Path) -> None:
    path = tmp_path / "s.bin"
    write_stage(path, 3, np.arange(5, dtype=np.float32))
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(
            BadFileError, match=r"empty|12 bytes of header|cut short: 32 bytes promised"
        ):
            read_header(path)


def test_each_damage_has_its_own_words(tmp_path: Path) -> None:
    path = tmp_path / "s.bin"
    write_stage(path, 3, np.arange(5, dtype=np.float32))
    whole = path.read_bytes()
    for raw, words in (
        (whole + b"x", "trailing bytes: 32 bytes promised by its header, 33 there"),
        (b"APRX" + whole[4:], "not a stage file"),
        (b"", "it is empty"),
        (whole[:4], "this one has 4"),
    ):
        path.write_bytes(raw)
        with pytest.raises(BadFileError, match=words):
            read_header(path)
    with pytest.raises(BadFileError, match="No such file"):
        read_header(tmp_path / "nowhere.bin")


def test_a_lie_about_the_count_allocates_nothing(tmp_path: Path) -> None:
    path = tmp_path / "s.bin"
    path.write_bytes(struct.pack("<4sII", b"APRT", 0, 0xFFFFFFFF))
    with pytest.raises(BadFileError, match="17,179,869,192 bytes promised"):
        read_values(path)


def test_more_values_than_a_header_can_say() -> None:
    with pytest.raises(UsageError, match="at most"):
        StageHeader(0, 2**32)


def test_blocks_become_a_whole_file_or_none(tmp_path: Path) -> None:
    path = tmp_path / "layer-0" / "attn_scores.bin"
    with create_stage(path, 0, (2, 3, 3)) as values:
        values[:, 1:, :2] = 7
        assert not path.exists(), "nobody sees half a file"
    assert read_values(path).reshape(2, 3, 3)[1].tolist() == [[0, 0, 0], [7, 7, 0], [7, 7, 0]]
    with pytest.raises(ZeroDivisionError), create_stage(tmp_path / "x.bin", 0, (4,)):
        raise ZeroDivisionError
    assert [p.name for p in tmp_path.iterdir()] == ["layer-0"]


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.bin"
    write_stage(path, 1, np.ones(3, dtype=np.float32))

    def full(unfinished: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("aprtui.formats.atomic.Path.replace", full)
    with pytest.raises(AprtuiError, match="No space left on device"):
        write_stage(path, 1, np.zeros(9, dtype=np.float32))
    assert read_values(path).tolist() == [1, 1, 1]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_has_the_permissions_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_stage(tmp_path / "layer-0" / "s.bin", 0, np.ones(3, dtype=np.float32))
    finally:
        os.umask(before)
    assert (tmp_path / "layer-0" / "s.bin").stat().st_mode & 0o777 == 0o640


@needs_fixtures
def test_every_file_of_the_public_apr_opens() -> None:
    files = [*(FIXTURES / "apr" / "traces").rglob("*.bin")]
    assert len(files) > 300
    for file in files:
        header = read_header(file)
        folder = file.parent.name
        assert header.layer == (int(folder[6:]) if folder.startswith("layer-") else None), file


def test_a_link_stays_and_a_device_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "real.bin").write_bytes(b"old")
    (tmp_path / "link.bin").symlink_to("real.bin")
    (tmp_path / "loop.bin").symlink_to("loop.bin")
    os.mkfifo(tmp_path / "pipe.bin")
    values = np.ones(2, dtype=np.float32)
    write_stage(tmp_path / "link.bin", 0, values)
    assert (tmp_path / "link.bin").is_symlink()
    assert read_values(tmp_path / "real.bin").tolist() == [1, 1]
    for name in ("pipe.bin", "loop.bin"):
        with pytest.raises(AprtuiError, match="not a file"):
            write_stage(tmp_path / name, 0, values)
    assert len(list(tmp_path.iterdir())) == 4
