"""A trace compared as it lands: cells coloured by what differs, stopped there, opened in Diff."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from aprtui.compare import beside
from aprtui.formats.aprt import write_stage
from aprtui.formats.tracedir import StageKey
from aprtui.tui.app import AprtuiApp
from aprtui.tui.client import TraceClient
from aprtui.tui.screens.diff import DiffScreen
from aprtui.tui.screens.trace import TraceScreen
from tests.tui.support import (
    NARROW,
    WIDE,
    assert_frame,
    fake_engine,
    frame,
    press,
    small_trace,
    until,
)

# An engine that writes real files, the first value of layer 1's attn_norm another one where OTHER.
WRITES = """
import pathlib, struct
root = pathlib.Path(plan["directory"])
root.mkdir(exist_ok=True)
journal = (root / "events.jsonl").open("w")
def tell(**event):
    journal.write(json.dumps(event) + "\\n"); journal.flush(); say(**event)
tell(**plan)
def stop(*_):
    tell(event="stopped", files=1, directory=str(root)); sys.exit(0)
signal.signal(signal.SIGTERM, stop)
done = 0
for layer in (0, 1):
    for name in ("attn_norm", "post_ffn_residual"):
        values = [float(n + layer) for n in range(24)]
        if OTHER and (layer, name) == (1, "attn_norm"):
            values[5] += 100.0
        (root / f"layer-{layer}").mkdir(exist_ok=True)
        path = root / f"layer-{layer}" / f"{name}.bin"
        path.write_bytes(struct.pack("<4sII", b"APRT", layer, 24) + struct.pack("<24f", *values))
        done += 1
        tell(event="stage", layer=layer, stage=name, path=f"layer-{layer}/{name}.bin", bytes=108,
             done=done, files=6, written_bytes=108 * done, elapsed_s=0.1 * done, rms=1.5, nan=0,
             inf=0, shape=[3, 8], axes=["token", "hidden"], positions="all")
while WAITS:
    time.sleep(0.05)
tell(event="done", directory=str(root), files=4, written_bytes=432, elapsed_s=0.6,
     peak_memory_bytes=10**6, peak_device_bytes=0,
     top_tokens=[dict(id=4, text=" 4", logit=1.0, probability=0.5)])
"""
PARTS = StageKey(1, "attn_norm")


def _good(folder: Path) -> Path:
    """The trace that others are held against."""
    for layer in (0, 1):
        for name in ("attn_norm", "post_ffn_residual"):
            values = np.arange(24, dtype=np.float32) + layer
            write_stage(folder / f"layer-{layer}/{name}.bin", layer, values)
    (folder / "trace.json").write_text(json.dumps({
        "schema": "aprtui-trace-v1", "tokens": {"ids": [5, 6]},
        "stages": [{"path": f"layer-{layer}/{name}.bin", "shape": [3, 8],
                    "axes": ["token", "hidden"], "positions": "all", "bytes": 108}
                   for layer in (0, 1) for name in ("attn_norm", "post_ffn_residual")],
    }))  # fmt: skip
    return folder


async def _form(
    pilot: Pilot[int], folder: Path, *, other: bool = True, waits: bool = False, stop: str = ""
) -> TraceScreen:
    command = fake_engine(folder, f"OTHER, WAITS = {other}, {waits}\n{WRITES}")
    script = folder / "engine.py"
    script.write_text(script.read_text().replace("/nowhere/t-trace", str(folder / "t-trace")))
    app = pilot.app
    assert isinstance(app, AprtuiApp)
    app.go("trace", lambda: TraceScreen(folder / "m.gguf", client=TraceClient(command)))
    await until(pilot, "writes 1.0 kB")
    found = pilot.app.screen
    assert isinstance(found, TraceScreen)
    found.query_one("#field-against", Input).value = str(folder / "good")
    found.query_one("#field-until", Input).value = stop
    await _planned(pilot)
    return found


async def _planned(pilot: Pilot[int]) -> None:
    """Until the plan of what the form says is made."""
    await pilot.pause()
    await until(pilot, "─ Plan ─")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "EVERY_S", 0.01)


@pytest.mark.parametrize("size", [WIDE, NARROW])
async def test_what_differs_is_marked_while_the_engine_works(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    _good(tmp_path / "good")
    async with AprtuiApp(folder=tmp_path).run_test(size=size) as pilot:
        trace = await _form(pilot, tmp_path, waits=True)
        await pilot.press("r")
        await until(pilot, "4 compared · 1 beyond bar · first layer-1/attn_norm")
        await until(pilot, "4 of 6 files")
        assert trace.running
        assert trace.view.grid.cells[PARTS] == ("▶█", "bad")
        assert trace.view.grid.cells[StageKey(0, "attn_norm")] == ("=", "dim")
        await pilot.press("c")
        await pilot.pause()
        assert trace.view.grid.cells[PARTS] == ("▶█", "bad")  # other colours hide no difference
        assert_frame(pilot, "trace-against", hide={r"· [0-9.]+ s ·": "· T ·"})
        await press(pilot, "x")


async def test_it_stops_at_the_first_divergence_and_d_shows_both(tmp_path: Path) -> None:
    _good(tmp_path / "good")
    async with AprtuiApp(folder=tmp_path).run_test(size=WIDE) as pilot:
        trace = await _form(pilot, tmp_path, waits=True, stop="first")
        await pilot.press("r")
        await until(pilot, "─ Stopped ─")
        assert not trace.running and "first layer-1/attn_norm" in frame(pilot)
        await press(pilot, "d")
        diff = pilot.app.screen
        assert isinstance(diff, DiffScreen)
        assert (diff.job.a.name, diff.job.b.name) == ("good", "t-trace")
        await press(pilot, "q")
        await pilot.resize_terminal(*NARROW)  # all is painted anew
        assert trace.view.grid.cells[PARTS] == ("▶█", "bad")


async def test_one_that_is_the_same_says_so(tmp_path: Path) -> None:
    _good(tmp_path / "good")
    async with AprtuiApp(folder=tmp_path).run_test(size=WIDE) as pilot:
        await _form(pilot, tmp_path, other=False, stop="first")
        await pilot.press("r")
        await until(pilot, "4 compared · nothing beyond the bar")
        assert "complete" in frame(pilot)


@pytest.mark.parametrize(
    "value, says", [("nowhere", "nowhere"), ("t-trace", "lies where this one goes")]
)
async def test_what_cannot_be_compared_is_not_started(
    tmp_path: Path, value: str, says: str
) -> None:
    _good(tmp_path / "good")
    async with AprtuiApp(folder=tmp_path).run_test(size=WIDE) as pilot:
        trace = await _form(pilot, tmp_path)
        if value == "t-trace":
            small_trace(tmp_path / value)
        trace.query_one("#field-against", Input).value = str(tmp_path / value)
        await _planned(pilot)
        text = await press(pilot, "r", *(["y"] if value == "t-trace" else []))
        assert "! not started" in text and says in text and not trace.running


async def test_other_prompts_are_refused(tmp_path: Path) -> None:
    good = _good(tmp_path / "good")
    manifest = json.loads((good / "trace.json").read_text())
    (good / "trace.json").write_text(json.dumps(manifest | {"tokens": {"ids": [5, 7]}}))
    async with AprtuiApp(folder=tmp_path).run_test(size=WIDE) as pilot:
        trace = await _form(pilot, tmp_path)
        assert "different prompts" in await press(pilot, "r") and not trace.running
