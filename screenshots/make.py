"""Make screenshots/*.png from the running app: `python screenshots/make.py [FIXTURES [NAME ...]]`.

Needs the development extra (resvg-py) and the fixtures folder: models and captures.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("TEXTUAL_ANIMATIONS", "none")
os.environ["COLORTERM"] = "truecolor"

import resvg_py
from textual.pilot import Pilot

from aprtui.engine.job import TraceJob
from aprtui.tui.app import AprtuiApp
from aprtui.tui.client import TraceClient
from aprtui.tui.source import kind_of

HERE = Path(__file__).resolve().parent
FONT = "DejaVu Sans Mono"
SIZES = ((120, 40), (80, 24))


@dataclass(frozen=True)
class Shot:
    """One picture: what is opened, which keys are pressed, and a text that must be there."""

    name: str
    paths: tuple[str, ...]
    keys: tuple[str, ...] = ()
    wait_for: str = ""
    model: str = ""


FLOAT64 = "captures/qwen2-q4_k_m/float64"
SHOTS = (
    Shot("browse-histogram", ("captures/pycode-5m-q4_k_m/float64",), ("n", "j", "j", "j")),
    Shot("browse-header", ("apr/traces/qwen2-import",), ("1", "j", "j")),
    Shot("browse-values", (FLOAT64,), ("2", "j", "tab", "m")),
    Shot("browse-heatmap", (FLOAT64,), ("4", "j", "j", "j")),
    Shot("browse-stats", (FLOAT64,), ("5", "j", "j", "j")),
    Shot("browse-attention", ("softmax-trace",), (*"jjjjjjjj7", "tab", *"jjjjjjjjjlllppp")),
    Shot("browse-lens", ("softmax-trace",), ("8", "tab", "G", "t"), "here rank"),
    Shot("browse-channel", ("softmax-trace",), (*"jjjjjjjjjj", "9", "tab", *"lllllljjj")),
    Shot("browse-overview", ("softmax-trace",), ("O", *"jjjjjjj")),
    Shot("browse-experts", ("moe-trace",), (*"jjjj", "E", "tab", "j", "j")),
    Shot(
        "browse-tokens",
        ("captures/pycode-5m-q4_k_m/float64",),
        ("G", "k", "k", "l", "G", "k", "k", "6"),
        "%",
        "models/pycode-5m-q4_k_m.gguf",
    ),
    Shot("diff", (FLOAT64, "faults/rope-theta-qwen2")),
    Shot("diff-honest", (FLOAT64, "captures/qwen2-q4_k_m/llamacpp"), ("j", "l", "l", "l")),
    Shot("diff-list", (FLOAT64, "faults/rope-theta-qwen2"), ("s", "slash", *"ffn", "enter")),
    Shot("pair", (FLOAT64, "faults/rope-theta-qwen2"), ("enter",)),
    Shot(
        "bisect",
        (FLOAT64, "faults/bad-block-gate-L3-ggml"),
        ("b",),
        "culprit",
        "models/qwen2-q4_k_m.gguf",
    ),
    Shot(
        "mistake",
        (FLOAT64, "faults/bad-block-gate-L3-ggml"),
        ("b", "enter"),
        "bad_block",
        "models/qwen2-q4_k_m.gguf",
    ),
    Shot("model", ("models/qwen2-q4_k_m.gguf",), ("j", "j", "j")),
    Shot("model-map", ("models/qwen2-q4_k_m.gguf",), (*"jjjjjjjjjjj", "6", "tab", *"jjll")),
    Shot(
        "models",
        ("models/pycode-5m-q4_k_m.gguf", "apr/models/pycode-int4.apr"),
        ("j",),
        "75 rounding",
    ),
    Shot("trace-plan", ("models/pycode-5m-q4_k_m.gguf",), ("t",), "files"),
    Shot("trace-done", ("models/pycode-5m-q4_k_m.gguf",), ("t", "r"), "peak"),
    Shot("help", (FLOAT64,), ("question_mark",)),
    Shot("home", ()),
)


# Traces of our own, for what captures of other programs do not say: the tokens' texts.
TRACED = {
    "softmax-trace": (
        "pycode-5m-q4_k_m",
        "def softmax(values, axis):\n    return values / sum(values, axis)",
    ),
    "moe-trace": ("qwen3moe-q4_k_m", "What is 2+2?"),
}


async def traced(folder: Path, model: str, prompt: str) -> None:
    """A trace of that prompt."""
    job = TraceJob(model=model, directory=str(folder), prompt=prompt)
    ended = await TraceClient().run(job, lambda events: None)
    if ended.exit_code:
        raise SystemExit(ended.log_tail())


async def at_rest(pilot: Pilot[int]) -> None:
    for _ in range(5):
        await pilot.pause()
        await pilot.app.workers.wait_for_complete()


async def until(pilot: Pilot[int], text: str) -> None:
    for _ in range(600):
        strips = pilot.app.screen._compositor.render_strips()
        if any(text in strip.text for strip in strips):
            return
        await pilot.pause(0.05)
    raise SystemExit(f"{text!r} never came")


async def take(shot: Shot, fixtures: Path, size: tuple[int, int]) -> bytes:
    """The picture as PNG bytes."""
    opened = tuple(kind_of(Path(path)) for path in shot.paths)
    os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(dir=fixtures)  # nobody was here before
    app = AprtuiApp(opened, folder=Path(), model=shot.model)
    async with app.run_test(size=size) as pilot:
        await at_rest(pilot)
        for key in shot.keys:
            await pilot.press(key)
            await at_rest(pilot)
        if shot.wait_for:
            await until(pilot, shot.wait_for)
        await at_rest(pilot)
        svg = app.export_screenshot(title="aprtui", simplify=True)
    picture = resvg_py.svg_to_bytes(svg_string=svg, font_family=FONT, monospace_family=FONT)
    return bytes(picture)


def main() -> None:
    source = (
        Path(sys.argv[1]).resolve()
        if len(sys.argv) > 1
        else HERE.parents[1] / "shared" / "fixtures"
    )
    with tempfile.TemporaryDirectory() as folder:
        fixtures = Path(folder) / "work"
        fixtures.mkdir()
        os.chdir(fixtures)  # paths are shown as a person has them: models/…, ~/models/…
        os.environ["HOME"] = str(fixtures)
        for name in ("captures", "faults", "apr"):
            (fixtures / name).symlink_to(source / name, target_is_directory=True)
        (fixtures / "models").mkdir()  # traces are written beside a model: work on copies
        for model in (source / "models").glob("*.gguf"):
            shutil.copy(model, fixtures / "models")
        for name, (model, prompt) in TRACED.items():
            asyncio.run(traced(Path(name), f"models/{model}.gguf", prompt))
        for shot in (shot for shot in SHOTS if not sys.argv[2:] or shot.name in sys.argv[2:]):
            for size in SIZES:
                shutil.rmtree(fixtures / "models" / "pycode-5m-q4_k_m-trace", ignore_errors=True)
                path = HERE / f"{shot.name}-{size[0]}x{size[1]}.png"
                path.write_bytes(asyncio.run(take(shot, fixtures, size)))
                print(path.name)


if __name__ == "__main__":
    main()
