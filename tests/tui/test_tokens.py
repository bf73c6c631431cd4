"""The Tokens pane: the logit lens by the engine's child, logits at once, and why there is none."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from aprtui.formats.aprt import read_values, write_stage
from aprtui.formats.tracedir import SCHEMA, StageKey, write_manifest
from aprtui.tui.client import COMMAND_LINE
from aprtui.tui.screens.browse import BrowseScreen
from aprtui.tui.widgets.tokens_pane import TokensPane
from tests.support import FIXTURES, SMALL, needs_fixtures
from tests.tui.support import NARROW, WIDE, frame, opened, pane, press, screen, small_trace, until

NAME = "pycode-5m-q4_k_m"


def _model() -> str:
    return str(FIXTURES / "models" / f"{NAME}.gguf")


@needs_fixtures
@pytest.mark.parametrize("size", [WIDE, NARROW])
async def test_a_residual_stage_shows_what_each_position_would_say(size: tuple[int, int]) -> None:
    capture = FIXTURES / "captures" / NAME / "float64"
    async with opened(capture, size=size, model=_model()) as pilot:
        browse = screen(pilot)
        assert isinstance(browse, BrowseScreen)
        browse.stages.select(StageKey(5, "post_ffn_residual"))
        text = await press(pilot, "6")
        lens = pane(pilot, TokensPane).lens
        assert lens is not None
        logits = read_values(capture / "lm_head.bin")
        assert [guess.id for guess in lens.rows[-1]] == np.argsort(-logits)[:8].tolist()
        assert "likeliest next tokens" in text and f"'{lens.rows[0][0].text}'" in text
        # The others came on the way: no second engine is needed.
        browse.stages.select(StageKey(2, "post_attn_residual"))
        await press(pilot)
        assert pane(pilot, TokensPane).lens is not None and pane(pilot, TokensPane).lens != lens


@needs_fixtures
async def test_the_logits_need_no_engine_and_agree_with_it() -> None:
    capture = FIXTURES / "captures" / NAME / "float64"
    async with opened(capture, model=_model()) as pilot:
        browse = screen(pilot)
        assert isinstance(browse, BrowseScreen)
        pane(pilot, TokensPane).command = ("/nowhere",)
        browse.stages.select(StageKey(None, "lm_head"))
        await press(pilot, "6")
        lens = pane(pilot, TokensPane).lens
        logits = read_values(capture / "lm_head.bin").astype(np.float64)
        p = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        assert lens is not None
        guess = lens.rows[0][0]
        assert guess.id == p.argmax()
        assert guess.probability == pytest.approx(float(p.max()), rel=1e-6)


def _with_model(root: Path, entry: dict[str, str]) -> Path:
    write_stage(root / "layer-0/post_ffn_residual.bin", 0, np.ones(24, dtype=np.float32))
    stages = [{"path": "layer-0/post_ffn_residual.bin", "shape": [3, 8],
               "axes": ["token", "hidden"], "positions": "all", "bytes": 108}]  # fmt: skip
    write_manifest(root, {"schema": SCHEMA, "stages": stages, "model": entry})
    return root


@pytest.mark.parametrize("size", [WIDE, NARROW])
async def test_without_the_model_the_pane_says_what_to_do(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    trace = _with_model(tmp_path, {"path": "/nowhere/m.gguf", "digest": "sha256:0"})
    async with opened(trace, size=size) as pilot:
        text = await press(pilot, "6")
        assert "the manifest's model is not there: /nowhere/m.gguf"[:50] in text
        assert "--model" in text


@needs_fixtures
async def test_a_model_that_changed_since_the_trace_is_not_used(tmp_path: Path) -> None:
    trace = _with_model(tmp_path, {"path": _model(), "digest": "sha256:0"})
    async with opened(trace) as pilot:
        await press(pilot, "6")
        await until(pilot, "has changed since the trace")


@needs_fixtures
async def test_a_stage_that_does_not_fit_the_model_is_an_error_that_says_so(tmp_path: Path) -> None:
    trace = _with_model(tmp_path, {})
    async with opened(trace, model=_model()) as pilot:
        text = " ".join((await press(pilot, "6")).replace("│", " ").split())
        assert "values are not rows of 256" in text


async def test_a_stage_that_is_no_residual_says_which_are(tmp_path: Path) -> None:
    async with opened(small_trace(tmp_path)) as pilot:
        await press(pilot, "6")
        assert "is no residual stream" in frame(pilot)


async def test_a_trace_that_was_stopped_knows_its_model_by_its_plan(tmp_path: Path) -> None:
    out, model = tmp_path / "t", SMALL / "models" / "qwen2-q4_k_m.gguf"
    words = ["trace", model, "--tokens", "1,2,3", "-o", out]
    subprocess.run([*COMMAND_LINE, *map(str, words)], check=True, capture_output=True)
    (out / "trace.json").unlink()
    (out / "final_norm.bin").unlink()
    async with opened(out) as pilot:
        browse = screen(pilot)
        assert isinstance(browse, BrowseScreen)
        browse.stages.select(StageKey(1, "post_ffn_residual"))
        text = await press(pilot, "6")
        assert "likeliest next tokens" in text and "%" in text
        assert "the trace's events say so" in await press(pilot, "1")
        assert model.name in frame(pilot)
