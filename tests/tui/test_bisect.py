"""Diff's other view: the child that replays stages, its progress, and the culprits it names."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

from aprtui.compare.bars import Bars
from aprtui.compare.bisection import Culprit, Explained, Mistake, Unmeasured
from aprtui.compare.mistakes.pages import pages
from aprtui.compare.pairs import compare_pair, pair_up
from aprtui.formats.tracedir import StageKey, open_trace
from aprtui.tui.app import AprtuiApp
from aprtui.tui.screens.bisect import BisectScreen
from aprtui.tui.screens.browse import BrowseScreen
from aprtui.tui.screens.mistake import MistakeScreen
from aprtui.tui.screens.pair import PairScreen
from tests.support import FIXTURES, needs_fixtures
from tests.tui.support import (
    NARROW,
    WIDE,
    bisection,
    frame,
    opened,
    press,
    screen,
    settle,
    small_trace,
    until,
)

FOUND = bisection(
    (Culprit(StageKey(1, "ffn_out"), "differs", (), 0.014, 0.03, {"position": 2, "channel": 7}, (),
             "only channel 7", Mistake("bad_block", "row 17 \x1b[2J", {}, 5e-8), math.nan),),
    (Explained(StageKey(0, "attn_norm"), "float32", {}, 1e-8, 1e-8),
     Explained(StageKey(0, "ffn_out"), "activations rounded to Q8_K", {}, 5e-8, 0.01)),
    (Unmeasured(StageKey(None, "final_norm"), "its input is missing"),),
    "a note with [/x] and \x1b[31m",
)  # fmt: skip
RESULT = {"event": "result", **FOUND.to_json()}


def _command(folder: Path, *lines: object, code: int = 0) -> tuple[str, ...]:
    script = folder / "bisect.py"
    said = "\n".join(json.dumps(line) for line in lines)
    script.write_text(f"import sys\nprint({said!r})\nsys.exit({code})\n", encoding="utf-8")
    return (sys.executable, str(script))


def _screen(tmp_path: Path, command: tuple[str, ...]) -> BisectScreen:
    trace = small_trace(tmp_path / "t")
    opened_ = open_trace(trace)
    pairs = {pair.key: pair for pair in pair_up(opened_, opened_)}
    bars = Bars(0.1, 0.4, "a test")
    results = {key: compare_pair(pair, bars) for key, pair in pairs.items()}
    model = Path("model.gguf")
    return BisectScreen(trace, trace, model, pairs, results, command=command)


async def test_culprits_are_marked_by_sign_and_named(tmp_path: Path) -> None:
    command = _command(tmp_path, {"event": "progress", "done": 1, "total": 7, "layer": 0,
                                  "stage": "attn_norm"}, RESULT)  # fmt: skip
    async with AprtuiApp(folder=tmp_path).run_test(size=WIDE) as pilot:
        bisect = _screen(tmp_path, command)
        pilot.app.push_screen(bisect)
        await settle(pilot)
        text = frame(pilot)
        assert "1 culprit · 1 stage explained (activations rounded to Q8_K) · 1 exact" in text
        assert "· 1 unmeasured" in text
        assert bisect.grid.current == StageKey(1, "ffn_out")
        assert bisect.grid.cells[StageKey(1, "ffn_out")] == ("!", "bad")
        assert bisect.grid.cells[StageKey(0, "ffn_out")] == ("~", "good")
        assert bisect.grid.cells[StageKey(0, "attn_norm")] == ("=", "dim")
        assert bisect.grid.cells[StageKey(None, "final_norm")] == ("?", "dim")
        assert "bad_block" in text and "only channel 7" in text and "\x1b" not in text


SECOND = Culprit(StageKey(0, "ffn_out"), "differs", (), 0.1, 0.3, {}, (), "",
                 Mistake("bias_missing", "the bias was not added", {}, 1e-9))  # fmt: skip
NAMELESS = Culprit(
    StageKey(0, "attn_norm"), "differs", (), 0.2, 0.3, {}, (), "only channel 3", None
)


@pytest.mark.parametrize("size", [WIDE, NARROW])
async def test_enter_on_a_culprit_says_what_its_mistake_is_and_leads_on_to_its_values(
    tmp_path: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page of `aprtui mistakes`, beside what was found; from there the pair, A, B and back."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    app = AprtuiApp(folder=tmp_path)
    async with app.run_test(size=size) as pilot:
        bisect = _screen(tmp_path, _command(tmp_path, RESULT))
        app.go("diff", lambda: bisect)
        text = await press(pilot, "enter")
        assert isinstance(pilot.app.screen, MistakeScreen)
        page = pages()["bad_block"]
        assert "layer 1 · ffn_out · bad_block · 1 of 1" in text and page.title in text
        assert all(heading in text for heading in ("How it looks", "Where it comes from"))
        assert "local error 0.014" in " ".join(text.split()) and "only channel 7" in text
        foot = text.splitlines()[-1]
        assert "enter pair" in foot and "in Browse" in foot and "n next" not in foot
        bottom = await press(pilot, "G")
        said = " ".join((text + bottom).split())
        assert "What to check" in said and page.check.split()[-1] in said
        await press(pilot, "y")
        assert page.check in (tmp_path / "aprtui/clipboard").read_text()
        await press(pilot, "enter")
        assert isinstance(pilot.app.screen, PairScreen)
        await press(pilot, "n", "q")
        assert isinstance(pilot.app.screen, MistakeScreen)
        await press(pilot, "A")
        browse = screen(pilot)
        assert isinstance(browse, BrowseScreen) and browse.stage_here == StageKey(1, "ffn_out")
        await press(pilot, "less_than_sign")
        assert isinstance(screen(pilot), MistakeScreen)
        await press(pilot, "q")
        assert screen(pilot) is bisect and bisect.current == StageKey(1, "ffn_out")


async def test_n_goes_from_one_page_to_the_next_and_a_culprit_without_a_name_to_its_pair(
    tmp_path: Path,
) -> None:
    found = bisection((NAMELESS, SECOND, *FOUND.culprits), (), ())
    said = {"event": "result", **found.to_json()}
    app = AprtuiApp(folder=tmp_path)
    async with app.run_test(size=WIDE) as pilot:
        bisect = _screen(tmp_path, _command(tmp_path, said))
        app.go("diff", lambda: bisect)
        await settle(pilot)
        assert bisect.current == NAMELESS.key
        await press(pilot, "enter")
        assert isinstance(pilot.app.screen, PairScreen)
        await press(pilot, "q", "n", "enter")
        mistake = screen(pilot)
        assert isinstance(mistake, MistakeScreen) and mistake.key == SECOND.key
        assert pages()["bad_block"].title in await press(pilot, "n")
        assert "bias_missing · 1 of 2" in await press(pilot, "n")
        await press(pilot, "N", "q")
        assert screen(pilot) is bisect and bisect.current == StageKey(1, "ffn_out")


async def test_an_engine_error_is_shown_with_what_to_do(tmp_path: Path) -> None:
    said = {"event": "error", "message": "no token ids", "hint": "--tokens", "exit_code": 2}
    async with AprtuiApp(folder=tmp_path).run_test(size=NARROW) as pilot:
        pilot.app.push_screen(_screen(tmp_path, _command(tmp_path, said, code=2)))
        await settle(pilot)
        assert "no token ids" in frame(pilot) and "--tokens" in frame(pilot)


async def test_a_child_that_dies_without_a_word_is_an_error(tmp_path: Path) -> None:
    async with AprtuiApp(folder=tmp_path).run_test(size=NARROW) as pilot:
        pilot.app.push_screen(_screen(tmp_path, _command(tmp_path, "nonsense", code=7)))
        await settle(pilot)
        assert "the replay ended (7)" in frame(pilot)


async def test_a_replay_that_was_stopped_did_not_fail(tmp_path: Path) -> None:
    script = tmp_path / "bisect.py"
    script.write_text("import time\nprint('{}', flush=True)\ntime.sleep(60)\n")
    async with AprtuiApp(folder=tmp_path).run_test(size=NARROW) as pilot:
        bisect = _screen(tmp_path, (sys.executable, str(script)))
        pilot.app.push_screen(bisect)
        await until(pilot, "starting the engine")
        await pilot.press("o")
        await until(pilot, "x stops this replay first")
        text = await press(pilot, "x")
        assert "The replay was stopped." in text and "(-15)" not in text


async def test_another_model_is_a_key_away_where_one_was_wrong(tmp_path: Path) -> None:
    script = tmp_path / "bisect.py"
    script.write_text(f"""import json, sys
wrong = "good.gguf" not in sys.argv[-2]
print({json.dumps({"event": "error", "message": "cannot be read"})!r} if wrong
      else {json.dumps(RESULT)!r})
""")
    async with AprtuiApp(folder=tmp_path).run_test(size=NARROW) as pilot:
        bisect = _screen(tmp_path, (sys.executable, str(script)))
        pilot.app.push_screen(bisect)
        await settle(pilot)
        assert "cannot be read" in frame(pilot) and "o another model" in frame(pilot)
        text = await press(pilot, "o", "ctrl+u", *"good.gguf", "enter")
        assert "1 culprit" in text and "model good.gguf" in text and bisect.grid.has_focus


async def test_b_asks_again_after_a_model_that_could_not_be_read(tmp_path: Path) -> None:
    a, b = small_trace(tmp_path / "a"), small_trace(tmp_path / "b")
    async with opened(a, b, size=NARROW) as pilot:
        diff = screen(pilot)
        assert "b bisect" in frame(pilot)
        await press(pilot, "b")
        assert "cannot be read" in await press(pilot, *"nosuch.gguf", "enter")
        await press(pilot, "q", "b")
        assert pilot.app.screen is diff and diff._prompt.display
        assert diff._prompt.value == "nosuch.gguf", "what was typed is there to be mended"


async def test_a_result_that_is_none_is_an_error_that_says_so(tmp_path: Path) -> None:
    lines = {"event": "result", **FOUND.to_json(), "culprits": [3]}
    async with AprtuiApp().run_test(size=NARROW) as pilot:
        await settle(pilot)
        pilot.app.push_screen(_screen(tmp_path, _command(tmp_path, lines)))
        await settle(pilot)
        assert "! what the replay found cannot be read: damaged" in frame(pilot)


@needs_fixtures
async def test_b_names_the_planted_block_through_the_real_engine() -> None:
    a = FIXTURES / "captures" / "qwen2-q4_k_m" / "float64"
    b = FIXTURES / "faults" / "bad-block-gate-L3-ggml"
    model = FIXTURES / "models" / "qwen2-q4_k_m.gguf"
    async with opened(a, b, model=str(model)) as pilot:
        text = await press(pilot, "b")
        assert "1 culprit" in text and "layer-3/ffn_gate" in text
        assert "row 17, block 3 of 32 weights" in " ".join(text.split())
        await press(pilot, "v")
        assert "rel_l2" in await press(pilot, "v", "v")
