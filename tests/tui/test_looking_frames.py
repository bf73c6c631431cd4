"""Model, Trace and Browse in each of their states, held against frames that a person looked at."""

from __future__ import annotations

import asyncio
import importlib
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from textual.pilot import Pilot

from aprtui.formats.aprt import write_stage
from aprtui.formats.tracedir import SCHEMA, write_manifest
from aprtui.tui.app import AprtuiApp
from aprtui.tui.client import TraceClient
from aprtui.tui.opened import Opened
from aprtui.tui.panes import PANES, keys_of
from aprtui.tui.screens.trace import TraceScreen
from tests.tui.support import (
    NARROW,
    WIDE,
    assert_frame,
    fake_engine,
    opened,
    press,
    settle,
    small_trace,
    until,
)
from tests.tui.test_trace import CRASH, RUN, WAIT
from tests.unit.gguf_writer import Tensor, array_of, gguf_bytes, key, text

sizes = pytest.mark.parametrize("size", [WIDE, NARROW])
Size = tuple[int, int]
BROWSE = [row.name for row in PANES["browse"]]


class Held:
    """Makes a function wait, in the worker that calls it, until the test lets it go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *places: str) -> None:
        self._may_go = threading.Event()
        for place in places:
            module, _, name = place.rpartition(".")
            function = getattr(importlib.import_module(module), name)
            monkeypatch.setattr(place, self._waiting(function))

    def _waiting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wait(*arguments: Any, **named: Any) -> Any:
            self._may_go.wait(60)
            return function(*arguments, **named)

        return wait

    def let_go(self) -> None:
        self._may_go.set()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: paths in frames are relative, the same on every machine."""
    monkeypatch.chdir(tmp_path)
    return Path()


@asynccontextmanager
async def _started(opened_: Opened, size: Size) -> AsyncIterator[Pilot[int]]:
    """The app, not waited for: its workers may be held."""
    async with AprtuiApp((opened_,)).run_test(size=size) as pilot:
        yield pilot


# -- Model -----------------------------------------------------------------------------------------


def small_model(path: Path, tensors: bool = True) -> Path:
    """A qwen2 of one layer, hidden 32, whose weights are 0, 1/n, 2/n ...; or one without any."""
    keys = [
        text("general.architecture", "qwen2"), text("general.name", "[/x] small"),
        key("qwen2.block_count", 4, 1), key("qwen2.context_length", 4, 64),
        key("qwen2.embedding_length", 4, 32), key("qwen2.feed_forward_length", 4, 64),
        key("qwen2.attention.head_count", 4, 4), key("qwen2.attention.head_count_kv", 4, 2),
        key("qwen2.attention.layer_norm_rms_epsilon", 6, 1e-6),
        key("qwen2.rope.freq_base", 6, 1e6),
        text("tokenizer.ggml.model", "gpt2"), text("tokenizer.ggml.pre", "qwen2"),
        key("tokenizer.ggml.merges", 9, array_of(8, [b"t 0"])),
        key("tokenizer.ggml.tokens", 9, array_of(8, [f"t{n}".encode() for n in range(48)])),
    ]  # fmt: skip
    shapes = {
        "token_embd.weight": (32, 48), "blk.0.attn_norm.weight": (32,),
        "blk.0.attn_q.weight": (32, 32), "blk.0.attn_k.weight": (32, 16),
        "blk.0.attn_v.weight": (32, 16), "blk.0.attn_q.bias": (32,), "blk.0.attn_k.bias": (16,),
        "blk.0.attn_v.bias": (16,), "blk.0.attn_output.weight": (32, 32),
        "blk.0.ffn_norm.weight": (32,), "blk.0.ffn_gate.weight": (32, 64),
        "blk.0.ffn_up.weight": (32, 64), "blk.0.ffn_down.weight": (64, 32),
        "output_norm.weight": (32,), "output.weight": (32, 48),
    }  # fmt: skip
    rows = [
        Tensor(name, ne, 0, np.linspace(-1, 1, int(np.prod(ne)), dtype="<f4").tobytes())
        for name, ne in shapes.items()
    ]
    path.write_bytes(gguf_bytes(keys, rows if tensors else []))
    return path


@sizes
async def test_a_model_that_is_being_read(
    here: Path, size: Size, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch, "aprtui.tui.screens.model.read_model_file")
    async with _started(Opened("model", small_model(here / "small.gguf")), size) as pilot:
        await until(pilot, "Reading")
        assert_frame(pilot, "model-loading")
        held.let_go()


@sizes
async def test_a_model_without_tensors(here: Path, size: Size) -> None:
    async with opened(small_model(here / "none.gguf", tensors=False), size=size) as pilot:
        assert_frame(pilot, "model-empty")


@sizes
async def test_a_model_that_cannot_be_read(here: Path, size: Size) -> None:
    path = here / "broken.gguf"
    path.write_bytes(b"GGUF\x03\0\0\0")
    async with opened(path, size=size) as pilot:
        assert_frame(pilot, "model-error")


@sizes
@pytest.mark.parametrize("pane", ["tensor", "header", "config", "metadata", "values"])
async def test_a_model_and_its_panes(here: Path, size: Size, pane: str) -> None:
    async with opened(small_model(here / "small.gguf"), size=size) as pilot:
        keys = str(1 + ("tensor", "header", "config", "metadata", "values").index(pane))
        await press(pilot, "j", "j", "j", keys)
        assert_frame(pilot, f"model-{pane}", of="" if pane == "tensor" else "#panes")


@sizes
async def test_a_layer_of_a_model(here: Path, size: Size) -> None:
    async with opened(small_model(here / "small.gguf"), size=size) as pilot:
        await press(pilot, "j")
        assert_frame(pilot, "model-layer", of="#panes")


@sizes
async def test_a_weight_whose_values_are_being_read(
    here: Path, size: Size, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch, "aprtui.tui.widgets.tensor_pane.look_at_weight")
    async with _started(Opened("model", small_model(here / "small.gguf")), size) as pilot:
        await until(pilot, "reading values")
        assert_frame(pilot, "model-tensor-loading", of="#panes")
        held.let_go()


@sizes
async def test_a_weight_that_was_cut_off_meanwhile(here: Path, size: Size) -> None:
    path = small_model(here / "small.gguf")
    async with opened(path, size=size) as pilot:
        path.write_bytes(path.read_bytes()[:2000])
        await press(pilot, "j", "j")
        assert_frame(pilot, "model-tensor-error", of="#panes")


# -- Trace -----------------------------------------------------------------------------------------


@asynccontextmanager
async def _trace(folder: Path, body: str, size: Size) -> AsyncIterator[Pilot[int]]:
    client = TraceClient(fake_engine(folder, body))
    app = AprtuiApp(folder=folder)
    async with app.run_test(size=size) as pilot:
        app.go("trace", lambda: TraceScreen(Path("/nowhere/small.gguf"), client=client))
        yield pilot


@sizes
async def test_a_trace_that_is_being_planned(
    here: Path, size: Size, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr("aprtui.tui.widgets.planning.plan", never)
    async with _trace(here, RUN, size) as pilot:
        await until(pilot, "planning")
        assert_frame(pilot, "trace-loading")


@sizes
async def test_a_trace_that_cannot_be_planned(here: Path, size: Size) -> None:
    async with _trace(here, RUN, size) as pilot:
        await settle(pilot)
        await press(pilot, "enter", "tab", "tab", *"?")
        stages = pilot.app.screen.query_one("#field-stages")
        stages.value = "nonsense"  # type: ignore[attr-defined]
        await settle(pilot)
        assert_frame(pilot, "trace-error")


@sizes
async def test_a_plan(here: Path, size: Size) -> None:
    async with _trace(here, RUN, size) as pilot:
        await settle(pilot)
        assert_frame(pilot, "trace-plan")


@sizes
async def test_a_trace_that_runs_and_the_question_before_it_is_left(here: Path, size: Size) -> None:
    async with _trace(here, WAIT, size) as pilot:
        await settle(pilot)
        await pilot.press("r")
        await until(pilot, "1 of 6 files")
        assert_frame(pilot, "trace-running")
        await pilot.press("q")
        await until(pilot, "A trace is running")
        assert_frame(pilot, "trace-leave", of="#leave")
        await pilot.press("q")
        await press(pilot, "x")
        assert_frame(pilot, "trace-stopped")


@sizes
async def test_a_trace_that_is_complete(here: Path, size: Size) -> None:
    async with _trace(here, RUN, size) as pilot:
        await settle(pilot)
        await press(pilot, "r")
        assert_frame(pilot, "trace-done")


@sizes
async def test_a_trace_whose_engine_died(here: Path, size: Size) -> None:
    async with _trace(here, CRASH, size) as pilot:
        await settle(pilot)
        await press(pilot, "r", "o")
        assert_frame(pilot, "trace-failed", hide={r"process \d+ +": "process N "})


# -- Browse ----------------------------------------------------------------------------------------


@sizes
async def test_a_folder_that_is_being_read(
    here: Path, size: Size, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch, "aprtui.tui.screens.browse.load_trace")
    async with _started(Opened("trace", small_trace(here / "t")), size) as pilot:
        await until(pilot, "Reading")
        assert_frame(pilot, "browse-loading")
        held.let_go()


@sizes
async def test_a_trace_that_has_written_nothing(here: Path, size: Size) -> None:
    (here / "t").mkdir()
    (here / "t" / "events.jsonl").write_text("")
    async with opened(here / "t", size=size) as pilot:
        assert_frame(pilot, "browse-empty")


@sizes
async def test_a_folder_that_holds_no_trace(here: Path, size: Size) -> None:
    (here / "t").mkdir()
    async with opened(here / "t", size=size) as pilot:
        assert_frame(pilot, "browse-error")


def numbered(pane: str) -> str:
    return keys_of("browse")[pane]


def told_trace(root: Path) -> Path:
    """A trace whose manifest tells everything: a prompt, tokens, shapes, statistics."""
    rng = np.random.default_rng(0)
    stages = []
    for path, layer, shape, axes in (
        ("layer-0/attn_norm.bin", 0, [4, 48], ["token", "hidden"]),
        ("layer-0/attn_scores.bin", 0, [2, 4, 4], ["head", "query", "key"]),
        ("layer-0/post_ffn_residual.bin", 0, [4, 48], ["token", "hidden"]),
        ("lm_head.bin", None, [16], ["vocab"]),
    ):
        values = rng.standard_normal(shape).astype(np.float32) * (layer is None or 3)
        write_stage(root / path, layer, values)
        stages.append({
            "path": path, "shape": shape, "axes": axes, "bytes": 12 + 4 * values.size,
            "positions": "last" if layer is None else "all",
            "stats": {"min": float(values.min()), "max": float(values.max()), "nan": 0},
        })  # fmt: skip
    write_manifest(root, {
        "schema": SCHEMA, "stages": stages, "prompt": "2+[/x]", "tokens": {
            "ids": [17, 10, 17, 3], "text": ["2", "+", " [/x]", "\x1b[31m"]},
        "model": {"path": "small.gguf", "architecture": "qwen2", "size": 51_700},
        "engine": {"name": "other", "version": "1.0", "device": "cpu", "dtype": "float32"},
    })  # fmt: skip
    return root


@sizes
@pytest.mark.parametrize("pane", BROWSE)
async def test_a_pane(here: Path, size: Size, pane: str) -> None:
    async with opened(told_trace(here / "t"), size=size) as pilot:
        await press(pilot, *("G" if pane == "tokens" else ""), numbered(pane))
        whole = pane == "values"
        assert_frame(pilot, f"browse-{pane}", of="" if whole else "#panes")


@sizes
@pytest.mark.parametrize("pane", BROWSE)
async def test_a_pane_of_a_damaged_file(here: Path, size: Size, pane: str) -> None:
    trace = small_trace(here / "t")
    path = trace / "layer-0" / "attn_norm.bin"
    path.write_bytes(path.read_bytes()[:50])
    async with opened(trace, size=size) as pilot:
        await press(pilot, numbered(pane))
        assert_frame(pilot, f"browse-{pane}-error", of="#panes")


@sizes
@pytest.mark.parametrize("pane", BROWSE)
async def test_a_pane_of_a_stage_without_values(here: Path, size: Size, pane: str) -> None:
    trace = small_trace(here / "t", manifest=False)
    write_stage(trace / "layer-0" / "attn_norm.bin", 0, np.zeros(0, dtype=np.float32))
    async with opened(trace, size=size) as pilot:
        await press(pilot, numbered(pane))
        assert_frame(pilot, f"browse-{pane}-empty", of="#panes")


@sizes
@pytest.mark.parametrize(
    ("pane", "said"),
    [("histogram", "counting"), ("heatmap", "shading"), ("stats", "counting"),
     ("tokens", "reading tokens")],
)  # fmt: skip
async def test_a_pane_that_is_being_measured(
    here: Path, size: Size, pane: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = ("aprtui.tui.screens.browse.fulfil", "aprtui.tui.widgets.tokens_pane.model_of")
    held = Held(monkeypatch, *places)
    async with _started(Opened("trace", small_trace(here / "t")), size) as pilot:
        await until(pilot, "attn_norm")
        await pilot.press(*("G" if pane == "tokens" else ""), numbered(pane))
        await until(pilot, said)
        await until(pilot, "─ final_norm ·" if pane == "tokens" else "─ layer 0 · attn_norm ·")
        assert_frame(pilot, f"browse-{pane}-loading", of="#panes")
        held.let_go()
