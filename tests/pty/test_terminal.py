"""In a real pseudo-terminal: quitting, colours, sizes, bytes sent, and no terminal at all."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from aprtui import CaptureWriter
from aprtui.formats.aprt import read_header, write_stage
from aprtui.formats.tracedir import SCHEMA, write_manifest
from aprtui.tui.running import running_pid
from tests.pty.terminal import APRTUI, DEADLINE_S, Terminal, in_terminal
from tests.support import FIXTURES, SMALL, needs_fixtures
from tests.tui.support import small_trace
from tests.unit.gguf_writer import Tensor, gguf_bytes, text

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")

FAR = "10.0.0.1 5022 10.0.0.2 22"  # what ssh tells of both ends
TRUECOLOUR = re.compile(rb"\x1b\[[0-9;]*[34]8;2;")
INDEXED = re.compile(rb"\x1b\[[0-9;]*[34]8;5;")
COLOURED = re.compile(
    rb"\x1b\[(?:[0-9;]*;)?(?:3[0-7]|4[0-7]|9[0-7]|10[0-7]|[34]8;[25])(?:;[0-9;]*)?m"
)


def test_q_quits_and_the_terminal_is_left_as_it_was(tmp_path: Path) -> None:
    with in_terminal(str(small_trace(tmp_path)), size=(80, 24)) as terminal:
        terminal.until_text("attn_norm")
        terminal.press("q")
        assert terminal.wait() == 0
        assert b"\x1b[?1049l" in terminal.raw  # back from the alternate screen
        assert b"\x1b[?25h" in terminal.raw  # the cursor is shown again


def test_control_q_quits_from_inside_help(tmp_path: Path) -> None:
    with in_terminal(str(small_trace(tmp_path))) as terminal:
        terminal.until_text("attn_norm")
        terminal.press("?")
        terminal.until_text("type to search")
        terminal.press("\x11")
        assert terminal.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_the_terminal_as_it_was(tmp_path: Path, number: signal.Signals) -> None:
    with in_terminal(str(small_trace(tmp_path))) as terminal:
        terminal.until_text("attn_norm")
        terminal.process.send_signal(number)
        assert terminal.wait() == 128 + number
        terminal.until_quiet()
        assert b"\x1b[?1049l" in terminal.raw and b"\x1b[?25h" in terminal.raw


def test_what_kills_the_app_leaves_the_terminal_as_it_was(tmp_path: Path) -> None:
    with in_terminal(str(small_trace(tmp_path))) as terminal:
        before = terminal.modes()
        terminal.until_text("attn_norm")
        assert terminal.modes() != before
        os.killpg(terminal.process.pid, signal.SIGKILL)
        assert terminal.wait() == -signal.SIGKILL
        terminal.until(lambda: terminal.modes() == before)
        terminal.until(lambda: b"\x1b[?1049l" in terminal.raw and b"\x1b[?25h" in terminal.raw)


def test_a_terminal_that_is_gone_ends_the_app(tmp_path: Path) -> None:
    with in_terminal(str(small_trace(tmp_path))) as terminal:
        terminal.until_text("attn_norm")
        os.killpg(terminal.process.pid, signal.SIGHUP)
        terminal.hang_up()
        assert terminal.process.wait(timeout=DEADLINE_S) != 0


def _without_terminal(*arguments: str, term: str = "xterm") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*APRTUI, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=os.environ | {"TERM": term},
        check=False,
    )


def test_without_a_terminal_one_line_names_the_other_command(tmp_path: Path) -> None:
    trace = small_trace(tmp_path / "t")
    done = _without_terminal(str(trace))
    assert done.returncode == 2
    assert done.stdout == b"" and done.stderr.count(b"\n") == 1
    assert b"aprtui inspect" in done.stderr and b"\x1b" not in done.stderr
    assert b"aprtui diff" in _without_terminal(str(trace), str(trace)).stderr


def test_a_dumb_terminal_gets_the_same_line_and_no_escape_code(tmp_path: Path) -> None:
    with in_terminal(str(small_trace(tmp_path)), TERM="dumb") as terminal:
        assert terminal.wait() == 2
        while terminal.read():
            pass
        assert b"aprtui inspect" in terminal.raw and b"\x1b" not in terminal.raw


def test_a_path_that_is_not_there_is_an_error_before_any_escape_code(tmp_path: Path) -> None:
    with in_terminal(str(tmp_path / "nothing.bin")) as terminal:
        assert terminal.wait() == 3
        while terminal.read():
            pass
        assert b"nothing.bin" in terminal.raw and b"\x1b" not in terminal.raw


def _colours(terminal: Terminal) -> bytes:
    terminal.until_text("attn_norm")
    terminal.until_quiet()
    terminal.press("4")
    terminal.until_quiet()
    terminal.press("q")
    terminal.wait()
    return terminal.raw


def test_sixteen_colours_are_the_terminals_own(tmp_path: Path) -> None:
    with in_terminal(str(small_trace(tmp_path)), TERM="xterm") as terminal:
        raw = _colours(terminal)
    assert not TRUECOLOUR.search(raw) and not INDEXED.search(raw)
    assert COLOURED.search(raw)


def test_two_hundred_and_fifty_six_colours_are_not_exceeded(tmp_path: Path) -> None:
    with in_terminal(str(small_trace(tmp_path)), TERM="xterm-256color") as terminal:
        raw = _colours(terminal)
    assert INDEXED.search(raw) and not TRUECOLOUR.search(raw)


def test_no_color_is_heeded(tmp_path: Path) -> None:
    with in_terminal(str(small_trace(tmp_path)), TERM="xterm", NO_COLOR="1") as terminal:
        raw = _colours(terminal)
    assert not COLOURED.search(raw)


def test_a_hostile_name_cannot_reach_the_terminal(tmp_path: Path) -> None:
    name = "a[b]\x1b]52;c;aGVsbG8=\x07\u202etxt" + "x" * 150
    folder = small_trace(tmp_path / name)
    with in_terminal(str(folder)) as terminal:
        terminal.until_text("attn_norm")
        terminal.press("1")
        terminal.until_text("APRT")
        terminal.press("q")
        assert terminal.wait() == 0
        assert b"\x1b]52" not in terminal.raw and "\u202e".encode() not in terminal.raw
        assert rb"\x1b]52" in terminal.raw


HOSTILE = "[/x]\x1b[31m\x1b]52;c;aGVsbG8=\x07\u202etxt\x9b5n" + "x" * 10_000


def _harmless(terminal: Terminal) -> None:
    """Nothing of HOSTILE reached the terminal as it is: no clipboard write, no bidi, no query."""
    for raw in (b"\x1b]52", "\u202e".encode(), "\x9b".encode(), b"\x1b[31mm"):
        assert raw not in terminal.raw
    assert terminal.process.poll() is None


def test_a_hostile_manifest_is_shown_and_not_obeyed(tmp_path: Path) -> None:
    trace = small_trace(tmp_path / "t")
    manifest = json.loads((trace / "trace.json").read_text())
    manifest |= {
        "prompt": HOSTILE, "tokens": {"ids": [1, 2, 3], "text": [HOSTILE] * 3},
        "model": {"path": HOSTILE, "architecture": HOSTILE}, "engine": {"name": HOSTILE},
        "notes": [HOSTILE],
    }  # fmt: skip
    (trace / "trace.json").write_text(json.dumps(manifest))
    with in_terminal(str(trace)) as terminal:
        terminal.until_text("attn_norm")
        for key in "123456G":
            terminal.press(key)
            terminal.until_quiet()
        _harmless(terminal)
        terminal.press("q")
        assert terminal.wait() == 0


def test_a_hostile_model_is_shown_and_not_obeyed(tmp_path: Path) -> None:
    keys = [text("general.architecture", "qwen2"), text("general.name", HOSTILE),
            text(HOSTILE[:60], HOSTILE)]  # fmt: skip
    tensors = [Tensor(HOSTILE[:60], (4,), 0, bytes(16)), Tensor("[/x]", (4,), 0, bytes(16))]
    path = tmp_path / "hostile.gguf"
    path.write_bytes(gguf_bytes(keys, tensors))
    with in_terminal(str(path)) as terminal:
        terminal.until_text("Tensors 2")
        for key in "j1234\tjjz":
            terminal.press(key)
            terminal.until_quiet()
        _harmless(terminal)
        terminal.press("\x11")
        assert terminal.wait() == 0


@pytest.mark.parametrize("pane", "1345")
def test_going_to_another_stage_sends_at_most_fifteen_kilobytes(tmp_path: Path, pane: str) -> None:
    root = tmp_path / "t"
    rng = np.random.default_rng(0)
    for layer in (0, 1):
        for stage in ("attn_norm", "attn_out"):
            values = rng.standard_normal(64 * 512).astype(np.float32)
            write_stage(root / f"layer-{layer}" / f"{stage}.bin", layer, values)
    known = {"shape": [64, 512], "axes": ["token", "hidden"], "positions": "all",
             "bytes": 12 + 4 * 64 * 512}  # fmt: skip
    stages = [{"path": str(path.relative_to(root))} | known for path in root.rglob("*.bin")]
    write_manifest(root, {"schema": SCHEMA, "stages": stages})
    with in_terminal(str(root), SSH_CONNECTION=FAR) as terminal:  # near, a heatmap may be finer
        terminal.until_text("attn_out")
        terminal.press(pane)
        terminal.until_quiet()
        for key in "jk":
            before = len(terminal.raw)
            terminal.press(key)
            terminal.until_quiet()
            assert 0 < len(terminal.raw) - before <= 15_000


def test_resizing_to_almost_nothing_and_back_keeps_the_app_alive(tmp_path: Path) -> None:
    with in_terminal(str(small_trace(tmp_path))) as terminal:
        terminal.until_text("attn_norm")
        terminal.resize(20, 5)
        terminal.until_text("aprtui")
        terminal.resize(80, 24)
        terminal.until_text("Stages")
        terminal.press("q")
        assert terminal.wait() == 0


def test_a_cursor_move_in_values_sends_at_most_a_kilobyte_and_idle_nothing(
    tmp_path: Path,
) -> None:
    with in_terminal(str(small_trace(tmp_path))) as terminal:
        terminal.until_text("attn_norm")
        terminal.press("2\t")
        terminal.until_text("(0, 0)")
        terminal.until_quiet()
        before = len(terminal.raw)
        assert not terminal.read(1.5)  # idle
        terminal.press("j")
        terminal.until_text("(1, 0)")
        terminal.until_quiet()
        assert len(terminal.raw) - before <= 1024


def test_a_diff_follows_a_trace_that_is_written_and_sends_nothing_while_it_rests(
    tmp_path: Path,
) -> None:
    mine, values = {"name": "mine"}, np.ones((2, 8), dtype=np.float32)
    with CaptureWriter(tmp_path / "a", tokens=[1, 2], engine=mine) as whole:
        for layer in range(3):
            whole.put("ffn_out", values, layer=layer)
    (tmp_path / "b").mkdir()
    with in_terminal(str(tmp_path / "a"), str(tmp_path / "b")) as terminal:
        terminal.until_text("aprtui trace MODEL makes one")
        with CaptureWriter(tmp_path / "b", tokens=[1, 2], engine=mine) as grows:
            grows.put("ffn_out", values, layer=0)
            terminal.until_text("1 of 3 pairs · 2 unmeasured")
            terminal.until_quiet()
            assert not terminal.read(2.5)  # it looks twice
            before = len(terminal.raw)
            grows.put("ffn_out", values, layer=1)
            terminal.until_text("2 of 3 pairs · 1 unmeasured")
            terminal.until_quiet()
            assert len(terminal.raw) - before <= 25_000
            grows.put("ffn_out", 2 * values, layer=2)
        terminal.until_text("first layer-2/ffn_out")
        terminal.until(lambda: "incomplete" not in terminal.text)
        terminal.until_text("same 2 tokens")
        terminal.press("q")
        assert terminal.wait() == 0


@needs_fixtures
def test_x_stops_a_trace_keeps_whole_files_and_leaves_no_process(tmp_path: Path) -> None:
    model = FIXTURES / "models" / "pycode-5m-q4_k_m.gguf"
    mine = tmp_path / "m.gguf"
    mine.write_bytes(model.read_bytes())
    with in_terminal(str(mine)) as terminal:
        terminal.until_text("Tensors")
        terminal.press("t")
        terminal.until_text("· 105 files")
        terminal.press("\r")
        terminal.until_text("esc leave")
        terminal.press("\x1b[200~" + "def f(x): return x + 1 " * 60 + "\x1b[201~\r")
        terminal.until(lambda: "· 105 files" in terminal.text and "│ 9 tokens" not in terminal.text)
        terminal.press("r")
        terminal.until_text("files/s")
        terminal.press("x")
        terminal.until(lambda: "stopped after" in terminal.text or "complete" in terminal.text)
        folder = tmp_path / "m-trace"
        assert running_pid(folder) is None
        for file in folder.rglob("*.bin"):
            read_header(file)  # raises for a file that is not whole
        assert not list(folder.rglob("*.part"))
        terminal.press("\x11")
        assert terminal.wait() == 0


@needs_fixtures
@pytest.mark.parametrize("how", ["key", "signal"])
def test_quitting_while_a_trace_runs_leaves_no_process(tmp_path: Path, how: str) -> None:
    model = FIXTURES / "models" / "qwen2-q4_k_m.gguf"
    mine = tmp_path / model.name
    mine.write_bytes(model.read_bytes())
    with in_terminal(str(mine)) as terminal:
        terminal.until_text("Tensors")
        terminal.press("t")
        terminal.until_text("files")
        terminal.until_text("writes")
        terminal.press("r")
        terminal.until_text("running on")
        if how == "key":
            terminal.press("\x11")
            terminal.until_text("A trace is running")
            terminal.press("s")
        else:
            terminal.process.terminate()
        assert terminal.wait() == (0 if how == "key" else 128 + signal.SIGTERM)
        with pytest.raises(ProcessLookupError):
            os.killpg(terminal.process.pid, 0)
        assert running_pid(tmp_path / f"{mine.stem}-trace") is None


def test_a_fault_in_a_key_is_said_and_the_app_goes_on(tmp_path: Path) -> None:
    fault = "from aprtui.tui.screens.browse import BrowseScreen as B; B.action_sort = lambda s: 1/0"
    with in_terminal(str(small_trace(tmp_path / "t")), first=fault) as terminal:
        terminal.until_text("attn_norm")
        terminal.press("s")
        terminal.until_text("a fault of aprtui's own: ZeroDivisionError")
        terminal.press("2")
        terminal.until_text("(token, hidden)")
        terminal.press("q")
        assert terminal.wait() == 0
        assert b"Traceback" not in terminal.raw


def test_a_fault_in_drawing_leaves_the_terminal_as_it_was(tmp_path: Path) -> None:
    fault = "from aprtui.tui.widgets.frame import TitleLine as T; T.render_line = lambda s, y: 1/0"
    with in_terminal(str(small_trace(tmp_path / "t")), first=fault) as terminal:
        assert terminal.wait() == 4
        assert b"\x1b[?1049l" in terminal.raw  # the screen of before is back
        said = terminal.raw.rpartition(b"\x1b[?1049l")[2]
        assert b"aprtui: a fault of aprtui's own: ZeroDivisionError" in said
        assert b"Traceback" not in terminal.raw


def test_a_trace_draws_its_bar_and_shows_no_escape_code(tmp_path: Path) -> None:
    model = SMALL / "models" / "qwen2-q4_k_m.gguf"
    with in_terminal("trace", str(model), "-o", str(tmp_path / "t"), size=(100, 30)) as terminal:
        assert terminal.wait() == 0
        terminal.until_quiet()
        assert "wrote 71 files" in terminal.text and "\\x1b" not in terminal.text
        assert b"\x1b[?25l" in terminal.raw and b"\x1b[?25h" in terminal.raw  # the cursor
