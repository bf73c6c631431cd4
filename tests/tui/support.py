"""What the UI's tests share: running the app, waiting for its workers, reading its frame."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

os.environ["TEXTUAL_ANIMATIONS"] = "none"

import numpy as np
import numpy.typing as npt
from textual.pilot import Pilot
from textual.worker import WorkerCancelled

from aprtui.compare.bisection import Bisection, Culprit, Explained, Unmeasured
from aprtui.compare.causes import causes_of
from aprtui.formats.aprt import write_stage
from aprtui.formats.tracedir import EVENTS, SCHEMA, write_manifest
from aprtui.tui.app import AprtuiApp
from aprtui.tui.screens.base import BaseScreen
from aprtui.tui.screens.paned import PanedScreen
from aprtui.tui.source import kind_of
from aprtui.tui.widgets.pane import Pane

__all__ = [
    "assert_frame", "bisection", "fake_engine", "frame", "growing_trace", "opened", "pane", "press",
    "screen", "settle", "small_trace", "until",
]  # fmt: skip

WIDE, NARROW = (120, 40), (80, 24)
P = TypeVar("P", bound=Pane[Any])
_FRAMES = Path(__file__).parent / "frames"


def frame(pilot: Pilot[int]) -> str:
    """The frame as plain text, one line a row."""
    strips = pilot.app.screen._compositor.render_strips()
    return "\n".join(strip.text.rstrip() for strip in strips)


def part(pilot: Pilot[int], selector: str) -> str:
    """Of the frame what a widget draws, its border left out; above it the title, below the foot."""
    lines, box = frame(pilot).split("\n"), pilot.app.screen.query_one(selector).content_region
    drawn = [line[box.x : box.right].rstrip() for line in lines[box.y : box.bottom]]
    return "\n".join([lines[0], *"\n".join(drawn).rstrip().split("\n"), lines[-1]])


def assert_frame(
    pilot: Pilot[int], name: str, *, of: str = "", hide: Mapping[str, str] | None = None
) -> None:
    """The frame is the one that a person looked at and kept, frames/<name>-<W>x<H>.txt.

    ``of``: only that widget's part of it, where a test is about one pane. ``hide`` maps patterns of
    what differs from run to run (a folder, a time) to what stands for it. APRTUI_UPDATE_FRAMES=1
    writes the file instead: look at it before it is committed.
    """
    found = (part(pilot, of) if of else frame(pilot)) + "\n"
    for pattern, stand_in in (hide or {}).items():
        found = re.sub(pattern, stand_in, found)
    kept = _FRAMES / f"{name}-{pilot.app.size.width}x{pilot.app.size.height}.txt"
    if os.environ.get("APRTUI_UPDATE_FRAMES"):
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(found, encoding="utf-8")
    assert kept.exists(), f"{kept} is not there: APRTUI_UPDATE_FRAMES=1 writes it"
    assert found == kept.read_text(encoding="utf-8"), f"not as in {kept.name}:\n{found}"


def screen(pilot: Pilot[int]) -> BaseScreen:
    found = pilot.app.screen
    assert isinstance(found, BaseScreen)
    return found


def pane(pilot: Pilot[int], kind: type[P]) -> P:
    """The pane of that class on the screen that is seen."""
    found = screen(pilot)
    assert isinstance(found, PanedScreen)
    return next(each for each in found.panes.values() if isinstance(each, kind))


async def settle(pilot: Pilot[int]) -> None:
    """Until no worker runs and what they said was handled."""
    for _ in range(50):
        await pilot.pause()
        if not any(not worker.is_finished for worker in pilot.app.workers):
            await pilot.pause()
            if not any(not worker.is_finished for worker in pilot.app.workers):
                return
        with suppress(WorkerCancelled):  # a newer one of its group took its place
            await pilot.app.workers.wait_for_complete()
    raise AssertionError("the workers never came to rest")


async def until(pilot: Pilot[int], text: str) -> None:
    """Until ``text`` is on the screen; workers may go on."""
    for _ in range(600):
        if text in frame(pilot):
            return
        await pilot.pause(0.02)
    raise AssertionError(f"{text!r} never came:\n{frame(pilot)}")


async def press(pilot: Pilot[int], *keys: str) -> str:
    """Press keys, as a person does who sees what the one before led to, and let the workers finish;
    the frame after that."""
    for key in keys:
        await pilot.press(key)
        for _ in range(40):  # a worker that goes on until a key ends it is waited for no longer
            await pilot.pause()
            if all(worker.is_finished for worker in pilot.app.workers):
                break
            await pilot.pause(0.005)
        await pilot.pause()
    await settle(pilot)
    return frame(pilot)


@asynccontextmanager
async def opened(
    *paths: Path, size: tuple[int, int] = WIDE, model: str = ""
) -> AsyncIterator[Pilot[int]]:
    """The app, opened on these paths, at rest."""
    app = AprtuiApp(tuple(kind_of(path) for path in paths), model=model)
    async with app.run_test(size=size) as pilot:
        await settle(pilot)
        yield pilot
        assert [str(fault) for fault in app.unforeseen] == []


def small_trace(root: Path, *, layers: int = 2, manifest: bool = True) -> Path:
    """A trace of some stages [3 token, 8 hidden] of known values: 0, 1, 2 ... plus the layer."""
    entries: list[tuple[str, int | None, npt.NDArray[np.float32]]] = []
    for layer in range(layers):
        for stage in ("attn_norm", "attn_out", "ffn_out"):
            values = np.arange(24, dtype=np.float32) + layer
            entries.append((f"layer-{layer}/{stage}.bin", layer, values))
    entries.append(("final_norm.bin", None, np.ones(24, dtype=np.float32)))
    for path, layer_of, values in entries:
        write_stage(root / path, layer_of, values)
    if manifest:
        stages = [
            {"path": path, "shape": [3, 8], "axes": ["token", "hidden"], "positions": "all",
             "bytes": 108}
            for path, _, _ in entries
        ]  # fmt: skip
        write_manifest(root, {"schema": SCHEMA, "stages": stages})
    return root


def growing_trace(root: Path, *, layers: int = 2, files: int = 75) -> Path:
    """``small_trace`` as it lies there while it is written, with a plan of so many files."""
    plan = {"event": "plan", "files": files}
    small_trace(root, layers=layers, manifest=False)
    (root / EVENTS).write_text(json.dumps(plan) + "\n", encoding="utf-8")
    return root


def bisection(
    culprits: tuple[Culprit, ...],
    explained: tuple[Explained, ...],
    unmeasured: tuple[Unmeasured, ...],
    *notes: str,
) -> Bisection:
    """What a replay of three tokens found."""
    causes = causes_of(culprits, ())
    return Bisection(
        culprits, explained, unmeasured, None, (1e-5, 1e-4), 3, "given", notes, causes=causes
    )


def fake_engine(folder: Path, body: str) -> tuple[str, ...]:
    """A command that speaks the worker's lines: PLAN is its plan, ``body`` what a run does."""
    script = folder / "engine.py"
    script.write_text(_ENGINE.replace("BODY", body), encoding="utf-8")
    return (sys.executable, str(script))


_ENGINE = """
import json, os, signal, sys, time
def say(**event):
    print(json.dumps(event), flush=True)
plan = dict(event="plan", directory="/nowhere/t-trace", model="m", architecture="qwen2",
            num_layers=2, tokens=[5, 6], token_texts=["Hi", " [/x]\\x1b[31m"],
            stages=["embedding", "attn_norm", "post_ffn_residual", "lm_head"], layers=[0, 1],
            files=6, write_bytes=1000, free_bytes=10**9, read_bytes=5000, memory_bytes=7000,
            device="cpu", device_name="", dtype="float32", notes=[], only_in={"embedding": [0]})
def stage(layer, name, done, nan=0):
    say(event="stage", layer=layer, stage=name, path="p", bytes=100, done=done, files=6,
        written_bytes=100 * done, elapsed_s=0.1 * done, rms="NaN" if nan else 1.5, nan=nan, inf=0)
if "--plan" in sys.argv:
    job = json.loads(sys.argv[2])
    if job["stages"] == "nonsense":
        say(event="error", message="unknown stage 'nonsense'", hint="valid: all", exit_code=2)
        sys.exit(2)
    say(**plan)
    sys.exit(0)
say(**plan)
say(event="started", pid=os.getpid())
BODY
"""
