"""A command ends as it would have, whoever reads its output and wherever that goes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import SMALL

CAPTURE = SMALL / "captures" / "qwen2-q4_k_m" / "float64"
FULL = Path("/dev/full")

needs_full = pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full here")


def command(*words: object, **streams: Any) -> subprocess.CompletedProcess[bytes]:
    """`aprtui WORDS` with the given stdout and stderr, which are kept where none are given."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    line = [sys.executable, "-m", "aprtui", *map(str, words)]
    return subprocess.run(line, stdin=subprocess.DEVNULL, check=False, timeout=120, **streams)


@pytest.fixture
def unread() -> Iterator[int]:
    """The writing end of a pipe that nobody reads any more."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


def test_a_reader_that_went_away_changes_no_exit_code(tmp_path: Path, unread: int) -> None:
    other = tmp_path / "other.bin"
    other.write_bytes((CAPTURE / "final_norm.bin").read_bytes()[:-4] + bytes(4))
    pair = (CAPTURE / "final_norm.bin", other)
    ended = command("diff", *pair, "--bar", "max_abs=0", stdout=unread)
    assert (ended.returncode, ended.stderr) == (1, b"")
    assert command("--help", stdout=unread).returncode == 0


def test_a_reader_that_went_away_stops_no_work(qwen2: Path, tmp_path: Path, unread: int) -> None:
    ended = command(
        "export", CAPTURE, "--to", "npy", "-o", tmp_path / "e", stdout=unread, stderr=unread
    )
    assert ended.returncode == 0
    assert len([*(tmp_path / "e").iterdir()]) == 71
    ended = command("trace", qwen2, "-o", tmp_path / "t", "--events", stdout=unread)
    assert (ended.returncode, (tmp_path / "t" / "trace.json").exists()) == (0, True)


@needs_full
def test_messages_that_cannot_be_written_stop_no_work(qwen2: Path, tmp_path: Path) -> None:
    with FULL.open("w") as full:
        ended = command("trace", qwen2, "-o", tmp_path / "t", stderr=full)
        assert (ended.returncode, (tmp_path / "t" / "trace.json").exists()) == (0, True)
        assert b"look at it" in ended.stdout
        assert command("trace", tmp_path / "none", stderr=full).returncode == 3


@needs_full
def test_a_stdout_that_cannot_be_written_is_an_error(qwen2: Path, tmp_path: Path) -> None:
    for words in (
        ("trace", "--help"),
        ("inspect", qwen2),
        ("trace", qwen2, "-o", tmp_path / "t", "--events"),
    ):
        with FULL.open("w") as full:
            ended = command(*words, stdout=full)
        assert ended.returncode == 4, words
        assert ended.stderr.count(b"stdout cannot be written: No space left") == 1
    assert (tmp_path / "t" / "trace.json").exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_an_encoding_that_lacks_a_character_shows_a_question_mark(settings: dict[str, str]) -> None:
    ended = command("diff", CAPTURE, CAPTURE, env={**os.environ, **settings})
    assert ended.returncode == 0
    assert b" ? foreign ? 71 files" in ended.stdout


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_a_closed_stream_is_no_error(closed: str, qwen2: Path) -> None:
    line = f'exec "$0" -m aprtui inspect "$1" {closed}'
    words = ["/bin/sh", "-c", line, sys.executable, str(qwen2)]
    ended = subprocess.run(words, check=False, capture_output=True)
    assert ended.returncode == 0
