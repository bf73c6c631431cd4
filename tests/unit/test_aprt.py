"""Stage files: every bit kept, every damage told, never half a file."""

from __future__ import annotations

import os
import resource
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aprtui.errors import AprtuiError, BadFileError, UsageError
from aprtui.formats import atomic, summary
from aprtui.formats.aprt import (
    StageHeader,
    create_stage,
    read_header,
    read_values,
    write_stage,
)
from aprtui.formats.atomic import OpenFolder
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


@pytest.fixture(params=["C", "Python"])
def writing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Files written by C, and by Python as where no compiler was."""
    if request.param == "Python":
        monkeypatch.setattr(atomic, "_HAS_C", False)
    elif not atomic._HAS_C:
        pytest.skip("installed without a C compiler")
    return str(request.param)


@contextmanager
def full_disk() -> Iterator[None]:
    """No file may grow beyond 64 bytes: pytest's own output neither, so be brief."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_failed_write_leaves_the_old_file(writing: str, tmp_path: Path) -> None:
    path = tmp_path / "s.bin"
    write_stage(path, 1, np.ones(3, dtype=np.float32))
    with (
        pytest.raises(AprtuiError, match=r"s\.bin: cannot be written: File too large"),
        full_disk(),
    ):
        write_stage(path, 1, np.zeros(900, dtype=np.float32))
    assert read_values(path).tolist() == [1, 1, 1]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_link_is_followed_and_a_folder_refused(writing: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "there.bin")
    write_stage(tmp_path / "there.bin", 1, np.zeros(2, dtype=np.float32))
    write_stage(tmp_path / "link", 1, np.ones(3, dtype=np.float32))
    assert (tmp_path / "link").is_symlink()
    assert read_values(tmp_path / "there.bin").tolist() == [1, 1, 1]
    (tmp_path / "folder").mkdir()
    with pytest.raises(AprtuiError, match="a folder or a device stands there"):
        write_stage(tmp_path / "folder", 1, np.ones(3, dtype=np.float32))
    assert {path.name for path in tmp_path.iterdir()} == {"link", "there.bin", "folder"}


def test_both_ways_of_writing_make_the_same_files(writing: str, tmp_path: Path) -> None:
    values = np.array([1.5, np.nan, -0.0, np.inf], dtype=np.float32)
    write_stage(tmp_path / "a" / "b" / "s.bin", 7, values)
    assert (tmp_path / "a" / "b" / "s.bin").read_bytes() == (
        b"APRT\x07\x00\x00\x00\x04\x00\x00\x00" + values.tobytes()
    )
    write_stage(tmp_path / "empty.bin", None, np.empty((0, 3), dtype=np.float32))
    assert (tmp_path / "empty.bin").read_bytes() == b"APRT" + b"\xff" * 4 + b"\x00" * 4


def test_a_held_folder_is_written_wherever_it_is_by_now(writing: str, tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "elsewhere.bin").write_bytes(b"mine")
    fd = os.open(tmp_path / "t", os.O_RDONLY)
    held = OpenFolder(tmp_path / "t", fd)
    (tmp_path / "t").rename(tmp_path / "moved")
    (tmp_path / "moved" / "link.bin").symlink_to(tmp_path / "elsewhere.bin")
    for name in ("layer-0/s.bin", "link.bin"):
        write_stage(Path(name), 1, np.ones(3, dtype=np.float32), within=held)
        assert read_values(tmp_path / "moved" / name).tolist() == [1, 1, 1]
    assert (tmp_path / "elsewhere.bin").read_bytes() == b"mine"
    (tmp_path / "moved" / "folder.bin").mkdir()
    with pytest.raises(AprtuiError, match=r"t/folder\.bin: cannot be written"):
        write_stage(Path("folder.bin"), 1, np.ones(3, dtype=np.float32), within=held)
    os.close(fd)
    assert not [*tmp_path.rglob("*.part")] and not (tmp_path / "t").exists()


@pytest.mark.parametrize("count", [0, 1, 15, 16, 4097, 70_000])
@pytest.mark.parametrize("bad", [(), (np.nan,), (np.inf, -np.inf, np.nan)])
def test_a_stages_numbers_are_the_same_by_c(
    count: int, bad: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not summary._HAS_C:
        pytest.skip("installed without a C compiler")
    random = np.random.default_rng(count)
    values = random.standard_normal(count, dtype=np.float32)
    values[::7] = 0.0
    places = random.integers(0, max(count, 1), len(bad))
    values = np.insert(values, np.sort(places), np.array(bad, dtype=np.float32))
    in_c = summary.summarise(values)
    monkeypatch.setattr(summary, "_HAS_C", False)
    in_numpy = summary.summarise(values)
    counts = ("zeros", "nan", "inf", "min", "max")
    assert [in_c[name] for name in counts] == [in_numpy[name] for name in counts]
    for name in ("mean", "std", "rms"):
        if isinstance(in_numpy[name], str):
            assert in_c[name] == in_numpy[name]
        else:
            assert in_c[name] == pytest.approx(in_numpy[name], rel=1e-12, abs=1e-15)


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
