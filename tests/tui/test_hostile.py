"""No byte of a path, a name or a value reaches the terminal as it is, wherever it is shown."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len
from textual.pilot import Pilot
from textual.widgets import Input

from aprtui.text import MAX_MARKS
from aprtui.tui.app import AprtuiApp
from aprtui.tui.harmless import harmless
from aprtui.tui.source import kind_of
from tests.tui.support import frame, small_trace, until

# What each would do to a terminal that obeyed it.
NAMES = {
    "clipboard": b"a\x1b]52;c;aGVsbG8=\x07b",
    "c1": b"a\xc2\x9b31mb\xc2\x9d52;c;aGk=\xc2\x9cb",
    "device control": b"a\x1bP$qm\x1b\\b",
    "bidi": "a\u202etxt\u2066b".encode(),
    "query": b"a\x1b[6n\x1b[cb",
    "line feed": b"a\nb\rc",
    "not utf-8": b"a\xff\xfe\x9b5nb",
    "marks": ("a" + "\u0301" * 60 + "b").encode(),
}
_ACTS = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_PILE = re.compile("\u0301" * (MAX_MARKS + 1))


def assert_harmless(shown: str) -> None:
    found = _ACTS.findall(shown)
    assert not found, ascii(found)
    assert not _PILE.search(shown)


@pytest.mark.parametrize(
    "names",
    [("clipboard", "device control", "query", "line feed"), ("c1", "bidi", "not utf-8", "marks")],
)
async def test_a_hostile_folder_is_shown_and_not_obeyed(
    tmp_path: Path, qwen2: Path, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Home, in a question, in a trace's form, in the title of Browse, and as it is copied."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / os.fsdecode(b"".join(NAMES[name] for name in names))
    trace = small_trace(folder / "trace")
    shutil.copy(qwen2, folder / "model.gguf")
    seen: list[str] = []
    app = AprtuiApp(folder=folder)
    async with app.run_test(size=(120, 40)) as pilot:
        await until(pilot, "model.gguf")
        seen += [frame(pilot), await _after(pilot, "o")]
        assert str(folder) in app.screen.query_one("#prompt", Input).value  # what enter opens
    app = AprtuiApp((kind_of(folder / "model.gguf"),))
    async with app.run_test(size=(120, 40)) as pilot:
        await until(pilot, "Tensors")
        seen.append(frame(pilot))
        app.open_trace(folder / "model.gguf")
        await pilot.pause()
        seen.append(frame(pilot))
        assert app.screen.query_one("#field-into", Input).value == str(folder / "model-trace")
    app = AprtuiApp((kind_of(trace),))
    async with app.run_test(size=(120, 40)) as pilot:
        await until(pilot, "attn_norm")
        seen += [frame(pilot), await _after(pilot, "Y"), await _after(pilot, "d")]
    copied = (tmp_path / "cache" / "aprtui" / "clipboard").read_bytes()
    assert os.fsencode(trace) in copied
    for shown in seen:
        assert_harmless(shown)


async def _after(pilot: Pilot[int], key: str) -> str:
    """The frame after a key; what is measured meanwhile does not matter here."""
    await pilot.press(key)
    await pilot.pause()
    return frame(pilot)


def test_what_is_typed_is_drawn_cell_for_cell() -> None:
    assert harmless("a\x1b]52;c;\x07\u202eb") == "a]52;c;b"  # these take no cell
    for taken in ("\ue000", "\u3164", "\u115f", "\U000e0001"):
        assert cell_len(harmless(taken)) == cell_len(taken) and taken not in harmless(taken)
    assert harmless("e" + "\u0301" * 60) == "e" + "\u0301" * MAX_MARKS
    assert harmless("日本語 ✓ é e\u0301") == "日本語 ✓ é e\u0301"


# Every command on every name, in one process as the console script runs it.
_COMMANDS = """
import contextlib, os, sys
from aprtui.cli.main import main
from aprtui.cli.streams import open_streams
open_streams()
for word in map(os.fsdecode, os.listdir(b".")):
    for words in (["inspect", word], ["stats", word], ["diff", word, word], ["trace", word],
                  ["export", word, "--to", "npz"], ["import", word, "-o", word + ".apr"],
                  ["inspect", "--" + word], ["--" + word], ["--to=" + word], [word + "?"],
                  ["export", word, "--to", word], ["trace", word, "--set", word], ["help", word]):
        with contextlib.suppress(SystemExit):
            main(words)
    sys.stdout.flush()
"""


def test_a_hostile_name_is_printed_and_not_obeyed(tmp_path: Path) -> None:
    for name in NAMES.values():
        small_trace(tmp_path / os.fsdecode(name))
    line = [sys.executable, "-c", _COMMANDS]
    paths = {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    ended = subprocess.run(
        line, cwd=tmp_path, env=os.environ | paths, capture_output=True, check=True
    )
    for stream in (ended.stdout, ended.stderr):
        text = stream.decode("utf-8")  # raises where raw bytes came through
        assert len(text) > 1000
        assert_harmless(text.replace("\t", ""))
