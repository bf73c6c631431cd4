"""Pictures in a real pseudo-terminal: what a page and a cursor move cost over SSH; colours."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from aprtui.writer import CaptureWriter
from tests.pty.terminal import Terminal, in_terminal

PAGE_BYTES, MOVE_BYTES = 15_000, 1024
FAR = "10.0.0.1 5022 10.0.0.2 22"  # what ssh tells of both ends
HEADS, TOKENS = 4, 48
STAGES_OF_A_LAYER = ("attn_norm", "attn_out", "attn_residual", "ffn_norm", "ffn_gate", "ffn_out")
# A machine that is busy shows that a picture takes its time, which costs some bytes more.
PATIENT = "import aprtui.tui.widgets.stage_pane as panes; panes.PATIENCE_S = 60"


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers of noise, which is the dearest there is to draw, and of attention."""
    root = tmp_path_factory.mktemp("noisy") / "t"
    rng = np.random.default_rng(4)
    with CaptureWriter(root, tokens=[*range(TOKENS)], engine={"name": "mine"}) as out:
        for layer in range(2):
            scores = np.exp(2 * rng.standard_normal((HEADS, TOKENS, TOKENS)))
            scores *= np.tril(np.ones((TOKENS, TOKENS)))
            weights = (scores / scores.sum(axis=2, keepdims=True)).astype(np.float32)
            out.put("attn_softmax", weights, layer=layer)
            gate = rng.standard_normal((TOKENS, 900)).astype(np.float32)
            out.put("ffn_gate", gate, layer=layer)
    return root


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two traces of many layers, no two neighbours of which look the same: the dearest."""
    root = tmp_path_factory.mktemp("deep")
    for number in range(2):
        rng = np.random.default_rng(number)
        with CaptureWriter(root / f"t{number}", tokens=[1, 2], engine={"name": "mine"}) as out:
            for layer, stage in itertools.product(range(40), STAGES_OF_A_LAYER):
                size = np.exp(3 * rng.standard_normal())
                out.put(stage, np.full((2, 8), size, np.float32), layer=layer)
    return root


@pytest.mark.parametrize("size", [(120, 40), (80, 24)])
def test_over_ssh_a_move_on_home_draws_one_page_after_a_rest_and_none_before(
    deep: Path, size: tuple[int, int]
) -> None:
    here = {"COLORTERM": "truecolor", "SSH_CONNECTION": FAR, "PYTHONPATH": str(Path.cwd())}
    with in_terminal(cwd=deep, size=size, **here) as terminal:
        terminal.until_text("240 stages")
        terminal.until_quiet()
        before, at_rest = len(terminal.raw), terminal.text
        terminal.press("jk")  # a cursor that does not rest
        terminal.until_quiet()
        assert len(terminal.raw) - before <= 2 * MOVE_BYTES
        assert terminal.text.splitlines()[-14:] == at_rest.splitlines()[-14:]
        before = len(terminal.raw)
        name = "t1" if "─ t0 ─" in terminal.text else "t0"
        terminal.press("j")
        terminal.until_text(f"─ {name} ─")
        terminal.until_quiet()
        assert MOVE_BYTES < len(terminal.raw) - before <= PAGE_BYTES
        assert not terminal.read(1.5)  # idle
        terminal.press("\x11")
        assert terminal.wait() == 0


def test_over_ssh_the_overview_sends_what_changed(deep: Path) -> None:
    with in_terminal(str(deep / "t0"), COLORTERM="truecolor", SSH_CONNECTION=FAR) as terminal:
        terminal.until_text("complete")
        terminal.press("O")
        terminal.until_text("layer 0 · attn_norm · [2")
        terminal.until_quiet()
        assert _sent(terminal, "\t") <= PAGE_BYTES  # the frames and the foot, not the whole screen
        assert 0 < _sent(terminal, "l") <= PAGE_BYTES // 2
        assert "layer 0 · attn_out · [2" in terminal.text
        assert 0 < _sent(terminal, "j") <= PAGE_BYTES // 2  # the tree unfolds another layer
        assert "layer 1 · attn_out · [2" in terminal.text and "▾ layer 1" in terminal.text
        terminal.press("\x11")
        assert terminal.wait() == 0


def _sent(terminal: Terminal, keys: str) -> int:
    before = len(terminal.raw)
    terminal.press(keys)
    terminal.until_quiet()
    return len(terminal.raw) - before


@pytest.mark.parametrize("colours", ["truecolor", ""])
@pytest.mark.parametrize("size", [(120, 40), (80, 24)])
def test_over_ssh_a_picture_is_a_page_and_a_cursor_move_a_kilobyte(
    noisy: Path, size: tuple[int, int], colours: str
) -> None:
    with in_terminal(
        str(noisy), size=size, first=PATIENT, COLORTERM=colours, SSH_CONNECTION=FAR
    ) as terminal:
        terminal.until_text("attn_softmax")
        terminal.press("4")
        terminal.until_text("largest of")
        terminal.until_quiet()
        before = len(terminal.raw)
        terminal.press("j")  # another stage
        terminal.until_text("ffn_gate · [48")
        terminal.until_quiet()
        assert 2_000 < len(terminal.raw) - before <= PAGE_BYTES
        terminal.press("\t")
        terminal.until_text("j k move")
        terminal.press("jlkh")  # Textual draws a pane once more after it got the focus
        terminal.until_quiet()
        assert all(_sent(terminal, key) <= MOVE_BYTES for key in "jlkh")
        assert not terminal.read(1.5)  # idle
        terminal.press("7")
        terminal.until_text("head 0 of 4")
        terminal.until_quiet()
        assert _sent(terminal, "p") <= PAGE_BYTES  # another head
        assert all(_sent(terminal, key) <= MOVE_BYTES for key in "jlkh")
        terminal.press("\x11")
        assert terminal.wait() == 0


def test_f_draws_every_cell_in_its_colour_and_back(noisy: Path) -> None:
    with in_terminal(
        str(noisy), first=PATIENT, COLORTERM="truecolor", SSH_CONNECTION=FAR
    ) as terminal:
        terminal.until_text("attn_softmax")
        terminal.press("j4\t")
        terminal.until_text("f finer,")
        terminal.until_quiet()
        assert "▀" not in terminal.text and "▄" not in terminal.text
        before = len(terminal.raw)
        terminal.press("f")
        terminal.until(lambda: "▀" in terminal.text or "▄" in terminal.text)
        terminal.until_quiet()
        assert len(terminal.raw) - before > PAGE_BYTES
        terminal.press("f")
        terminal.until_text("f finer,")
        terminal.press("\x11")
        assert terminal.wait() == 0


def test_without_colour_a_picture_is_drawn_with_signs_alone(noisy: Path) -> None:
    with in_terminal(str(noisy), NO_COLOR="1", COLORTERM="truecolor") as terminal:
        terminal.until_text("attn_softmax")
        terminal.press("j4")
        terminal.until(lambda: "≡" in terminal.text and "█" in terminal.text)
        colours = (b"[38;2;", b"[38;5;", b"[48;2;", b"[48;5;", b";38;5;", b";48;5;")
        assert not any(colour in terminal.raw for colour in colours)
        terminal.press("\x11")
        assert terminal.wait() == 0
