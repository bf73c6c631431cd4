"""The comparing screens in their four states, frame by frame, at 80x24 and at 120x40."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from textual.command import CommandPalette
from textual.pilot import Pilot

from aprtui.compare.bars import Bars
from aprtui.compare.bisection import Culprit, Explained, Mistake, Unmeasured
from aprtui.compare.model_settings import Setting
from aprtui.compare.pairs import compare_pair, pair_up
from aprtui.compare.weight_results import (
    Look,
    ModelComparison,
    ModelSide,
    TensorResult,
    TensorSide,
    WeightMetrics,
)
from aprtui.formats.aprt import write_stage
from aprtui.formats.tracedir import SCHEMA, StageKey, open_trace, write_manifest
from aprtui.graph import Role
from aprtui.tui import comparing
from aprtui.tui.app import AprtuiApp
from aprtui.tui.bisected import seen
from aprtui.tui.client import Child, Ended
from aprtui.tui.screens import home, pair
from aprtui.tui.screens.bisect import BisectScreen
from aprtui.tui.screens.diff import DiffScreen
from aprtui.tui.screens.home import HomeScreen
from aprtui.tui.screens.models import ModelsScreen
from aprtui.tui.screens.pair import PairScreen
from tests.support import SMALL
from tests.tui.support import (
    NARROW,
    WIDE,
    assert_frame,
    frame,
    opened,
    press,
    screen,
    settle,
    small_trace,
    until,
)
from tests.tui.support import bisection as made_bisection

SIZES = pytest.mark.parametrize("size", [NARROW, WIDE], ids=["80x24", "120x40"])
FLOAT64 = SMALL / "captures" / "qwen2-q4_k_m" / "float64"
HONEST = SMALL / "faults" / "honest-ggml-qwen2"
BAD_BLOCK = SMALL / "faults" / "bad-block-gate-L3-ggml"
Size = tuple[int, int]


class Held(Child):
    """A child that says these lines and then waits, or ends when ``code`` is given."""

    def __init__(self, *lines: object, code: int | None = None, log: Path | None = None) -> None:
        super().__init__(("no such program",))
        self.lines = tuple(json.dumps(line).encode() for line in lines)
        self.code, self.log = code, log or Path(os.devnull)

    async def run(
        self, arguments: Sequence[str], tell: Callable[[tuple[bytes, ...]], None]
    ) -> Ended:
        tell(self.lines)
        if self.code is None:
            await asyncio.Event().wait()
        return Ended(self.code or 0, self.log)


@contextmanager
def held(
    monkeypatch: pytest.MonkeyPatch, module: object, name: str, after: int = 0
) -> Iterator[threading.Event]:
    """From its call number ``after`` on, a function of a module waits until the block ends.

    The event says that it waits.
    """
    real, calls = getattr(module, name), iter(range(10_000))
    gate, reached = threading.Event(), threading.Event()

    def waiting(*arguments: Any, **named: Any) -> Any:
        if next(calls) >= after:
            reached.set()
            gate.wait()
        return real(*arguments, **named)

    monkeypatch.setattr(module, name, waiting)
    try:
        yield reached
    finally:
        gate.set()


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames name files relative to it, so that they are the same wherever it lies."""
    monkeypatch.chdir(tmp_path)


async def quiet(pilot: Pilot[int]) -> None:
    """Until every message that was sent is handled; workers may go on."""
    for _ in range(5):
        await pilot.pause()


def two() -> tuple[Path, Path]:
    """A and B: B has a NaN, a wrong value, another shape, a damaged and a missing file."""
    a, b = small_trace(Path("a"), layers=4), small_trace(Path("b"), layers=4)
    values = np.arange(24, dtype=np.float32)
    values[19] = 21.0
    write_stage(b / "layer-1" / "attn_out.bin", 1, values + 1)
    write_stage(b / "layer-2" / "attn_norm.bin", 2, np.where(values == 5, np.nan, values + 2))
    write_stage(b / "layer-2" / "ffn_out.bin", 2, values[:16])
    (b / "layer-3" / "ffn_out.bin").write_bytes((b / "layer-3" / "ffn_out.bin").read_bytes()[:40])
    (b / "layer-0" / "ffn_out.bin").unlink()
    return a, b


def without_stages(folder: Path) -> Path:
    """A trace that was begun and holds nothing."""
    folder.mkdir()
    write_manifest(folder, {"schema": SCHEMA, "stages": []})
    return folder


# -- Diff ------------------------------------------------------------------------------------------


@SIZES
async def test_diff_while_it_reads(
    tmp_path: Path, size: Size, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = two()
    app = AprtuiApp()
    async with app.run_test(size=size) as pilot:
        with held(monkeypatch, comparing, "_read"):
            app.go("diff", lambda: DiffScreen(a, b))
            await quiet(pilot)
            assert_frame(pilot, "diff-loading")
        await settle(pilot)


@SIZES
async def test_diff_while_it_compares(
    tmp_path: Path, size: Size, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = two()
    monkeypatch.setattr(comparing, "EVERY_S", 0.0)
    app = AprtuiApp()
    async with app.run_test(size=size) as pilot:
        with held(monkeypatch, comparing, "compare_pair", after=6) as reached:
            app.go("diff", lambda: DiffScreen(a, b))
            await asyncio.to_thread(reached.wait)
            await quiet(pilot)
            assert_frame(pilot, "diff-comparing")
        await settle(pilot)


@SIZES
async def test_diff_without_a_stage_says_which_keys_go_on(tmp_path: Path, size: Size) -> None:
    a, b = without_stages(Path("a")), without_stages(Path("b"))
    async with opened(a, b, size=size) as pilot:
        assert screen(pilot).state == "empty"
        assert_frame(pilot, "diff-empty")


@SIZES
async def test_diff_of_different_prompts(tmp_path: Path, size: Size) -> None:
    a, b = two()
    for folder, ids in ((a, [1, 2, 3]), (b, [1, 2, 4])):
        manifest = json.loads((folder / "trace.json").read_text())
        (folder / "trace.json").unlink()
        write_manifest(folder, manifest | {"tokens": {"ids": ids}})
    async with opened(a, b, size=size) as pilot:
        assert_frame(pilot, "diff-error")
        await press(pilot, "i")
        assert_frame(pilot, "diff-other-prompts")


@SIZES
async def test_diff_in_full_as_grid_and_as_list(tmp_path: Path, size: Size) -> None:
    async with opened(*two(), size=size) as pilot:
        assert_frame(pilot, "diff-grid")
        await press(pilot, "s")
        assert_frame(pilot, "diff-list")
        await press(pilot, "slash", *"attn", "enter")
        assert_frame(pilot, "diff-list-filtered", of="#compared")
        await press(pilot, "s")
        assert_frame(pilot, "diff-grid-filtered", of="#compared")
        await press(pilot, "slash", *"xyz", "enter")
        assert_frame(pilot, "diff-nothing-matches", of="#compared")


@SIZES
async def test_diff_of_an_honest_engine(size: Size) -> None:
    async with opened(FLOAT64, HONEST, size=size) as pilot:
        assert_frame(pilot, "diff-honest")
        await press(pilot, "G")
        assert_frame(pilot, "diff-honest-logits", of="#pairdetail")


# -- one pair --------------------------------------------------------------------------------------


@SIZES
async def test_pair_in_full(size: Size) -> None:
    async with opened(FLOAT64, BAD_BLOCK, size=size) as pilot:
        diff = screen(pilot)
        assert isinstance(diff, DiffScreen)
        diff.select(StageKey(3, "ffn_gate"))
        await press(pilot, "enter")
        assert_frame(pilot, "pair")
        await press(pilot, "s", "s", "z")
        assert_frame(pilot, "pair-channels", of="#above")


@SIZES
async def test_pair_where_a_nan_is_born(tmp_path: Path, size: Size) -> None:
    async with opened(*two(), size=size) as pilot:
        diff = screen(pilot)
        assert isinstance(diff, DiffScreen)
        diff.select(StageKey(2, "attn_norm"))
        await press(pilot, "enter")
        assert_frame(pilot, "pair-nan", of="#above")


@SIZES
async def test_pair_while_it_counts(
    tmp_path: Path, size: Size, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(*two(), size=size) as pilot:
        with held(monkeypatch, pair, "view_of"):
            await pilot.press("enter")
            await quiet(pilot)
            assert_frame(pilot, "pair-loading")
        await settle(pilot)


@SIZES
async def test_pair_whose_file_went_away(tmp_path: Path, size: Size) -> None:
    a, b = two()
    async with opened(a, b, size=size) as pilot:
        (b / "layer-2" / "attn_norm.bin").unlink()
        await press(pilot, "enter")
        assert isinstance(screen(pilot), PairScreen) and screen(pilot).state == "error"
        assert_frame(pilot, "pair-error")


@SIZES
async def test_pair_of_no_values(tmp_path: Path, size: Size) -> None:
    a, b = small_trace(Path("a"), manifest=False), small_trace(Path("b"), manifest=False)
    for side in (a, b):
        write_stage(side / "layer-0" / "attn_out.bin", 0, np.empty(0, dtype=np.float32))
    async with opened(a, b, size=size) as pilot:
        diff = screen(pilot)
        assert isinstance(diff, DiffScreen)
        diff.select(StageKey(0, "attn_out"))
        await press(pilot, "enter")
        assert_frame(pilot, "pair-empty")


# -- local error -----------------------------------------------------------------------------------


BLOCK = "row 7, block 3 of 32 weights (columns 96 to 127) is doubled"
FOUND = made_bisection(
    (Culprit(StageKey(1, "ffn_out"), "differs", ("ffn_up",), 0.014, 0.03,
             {"position": 2, "channel": 7}, (), "only channel 7",
             Mistake("bad_block", BLOCK, {}, 5e-8), 0.002),),
    (Explained(StageKey(0, "attn_norm"), "float32", {}, 1e-8, 1e-8),
     Explained(StageKey(1, "attn_norm"), "float32", {}, 0.0, 0.0),
     Explained(StageKey(0, "attn_out"), "activations rounded to Q8_K", {}, 5e-8, 0.01),
     Explained(StageKey(1, "attn_out"), "activations rounded to Q8_K", {}, 6e-8, 0.012)),
    (Unmeasured(StageKey(None, "final_norm"), "its input is missing"),
     Unmeasured(StageKey(0, "ffn_out"), "its file is missing")),
    "no trace.json: written by another program; shapes are not stated",
)  # fmt: skip
RESULT = {"event": "result", **FOUND.to_json()}
PROGRESS = {"event": "progress", "done": 3, "total": 7, "layer": 0, "stage": "ffn_out"}
ERROR = {"event": "error", "message": "model.gguf: the file is cut short",
         "hint": "aprtui inspect model.gguf says where"}  # fmt: skip


def bisection(*, pairs: bool = True) -> BisectScreen:
    trace = open_trace(small_trace(Path("t")))
    found = {each.key: each for each in pair_up(trace, trace)} if pairs else {}
    bars = Bars(0.1, 0.4, "a test")
    results = {key: compare_pair(each, bars) for key, each in found.items()}
    return BisectScreen(Path("t"), Path("t"), Path("model.gguf"), found, results)


@SIZES
@pytest.mark.parametrize(
    ("name", "lines", "code"),
    [("loading", (PROGRESS,), None), ("error", (ERROR,), 2), ("full", (PROGRESS, RESULT), 0)],
)
async def test_local_error(
    tmp_path: Path, name: str, lines: tuple[object, ...], code: int | None, size: Size
) -> None:
    async with AprtuiApp().run_test(size=size) as pilot:
        await settle(pilot)
        bisect = bisection()
        bisect.child = Held(*lines, code=code)
        pilot.app.push_screen(bisect)
        await quiet(pilot)
        if size == WIDE and name != "error":  # a pair beside it, which a thread counts
            await until(pilot, "no finite element differs")
        if code is not None:
            await settle(pilot)
        assert_frame(pilot, f"bisect-{name}")
        if name == "full":
            await press(pilot, "s")
            assert_frame(pilot, "bisect-list", of="#compared")
            await press(pilot, "slash", *"q8_k", "enter")
            assert_frame(pilot, "bisect-filtered", of="#compared")


@SIZES
async def test_local_error_of_nothing(tmp_path: Path, size: Size) -> None:
    async with AprtuiApp().run_test(size=size) as pilot:
        await settle(pilot)
        pilot.app.push_screen(bisection(pairs=False))
        await settle(pilot)
        assert_frame(pilot, "bisect-empty")


@SIZES
async def test_diff_with_the_result_of_a_bisection(tmp_path: Path, size: Size) -> None:
    async with opened(*two(), size=size) as pilot:
        diff = screen(pilot)
        assert isinstance(diff, DiffScreen)
        diff._keep(seen(FOUND))
        assert diff.grid.cells[StageKey(1, "ffn_out")] == ("*=", "bad")
        diff.select(StageKey(1, "ffn_out"))
        await settle(pilot)
        assert_frame(pilot, "diff-bisected")


# -- two models ------------------------------------------------------------------------------------


def _weight(role: str, layer: int | None, kind: str, rel_l2: float | None, message: str = "",
            look: str = "") -> TensorResult:  # fmt: skip
    name = f"blk.{layer}.{role}.weight" if layer is not None else f"{role}.weight"
    a, b = (TensorSide(name, type_, (256, 256)) for type_ in ("Q4_K", "APR_Q4"))
    metrics = rel_l2 and WeightMetrics(
        rel_l2, 0.9925, 0.9974, 0.03298, (17, 3), 2 * rel_l2, 17, rel_l2, 0, 0
    )
    looks = Look("other_tensor", look, None) if look else None
    return TensorResult(Role(role, layer), kind, a, None if kind == "missing-b" else b, 0.12,
                        metrics or None, looks, message)  # fmt: skip


COMPARED = ModelComparison(
    ModelSide("a.gguf", "gguf", "qwen2", 3_200_000, "d1", ("F32", "Q4_K"), False),
    ModelSide("b.apr", "apr", "qwen2", 3_100_000, "d2", ("F32", "APR_Q4"), False),
    (
        _weight("k_bias", 1, "missing-b", None, "B has no such tensor"),
        _weight("v", 1, "differs", 0.61, "rel_l2 0.61 > 0.12", "rows 0 to 63 are those of k"),
        _weight("v", 0, "rounding", 0.118),
        _weight("embedding", None, "rounding", 0.07),
    ),
    (),
    (Setting("rope_theta", "differs", "10000", "1000000"),),
    (),
    (),
    (),
)
NO_TENSORS = replace(COMPARED, tensors=())


def as_told(found: ModelComparison) -> dict[str, object]:
    """The last line of ``aprtui diff --events``."""
    return {"event": "result", **found.to_json()}


@SIZES
@pytest.mark.parametrize(
    ("name", "lines", "code", "log"),
    [
        ("loading", (), None, ""),
        ("empty", (as_told(NO_TENSORS),), 0, ""),
        ("error", (), 3, "aprtui: b.apr: the file is cut short\n"),
        ("full", (as_told(COMPARED),), 1, ""),
    ],
)
async def test_two_models(
    tmp_path: Path, name: str, lines: tuple[object, ...], code: int | None, log: str, size: Size
) -> None:
    (tmp_path / "log").write_text(log, encoding="utf-8")
    app = AprtuiApp()
    async with app.run_test(size=size) as pilot:
        await settle(pilot)
        models = ModelsScreen(Path("a.gguf"), Path("b.apr"))
        models.child = Held(*lines, code=code, log=tmp_path / "log")
        app.go("model", lambda: models)
        await quiet(pilot)
        assert_frame(pilot, f"models-{name}")
        if name == "full":
            await press(pilot, "slash", *"rounding", "enter")
            assert_frame(pilot, "models-filtered", of="#tensors")


# -- home, help, palette ---------------------------------------------------------------------------


NOW = 1_800_000_000.0


def some_places(folder: Path) -> Path:
    """Two models, three traces, one unfinished; of known ages."""
    for number, name in enumerate(("good", "bad", "deep/unfinished")):
        trace = small_trace(folder / name, manifest=number < 2)
        os.utime(trace, (NOW - 3600 * (number + 1), NOW - 3600 * (number + 1)))
    for number, name in enumerate(("small.gguf", "other-model.apr")):
        (folder / name).write_bytes(b"G" * 1000 * (number + 1))
        os.utime(folder / name, (NOW - 90 * (number + 1), NOW - 90 * (number + 1)))
    return folder


@SIZES
async def test_home(tmp_path: Path, size: Size, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aprtui.tui.screens.home.time.time", lambda: NOW)
    some_places(Path())
    async with AprtuiApp(folder=Path()).run_test(size=size) as pilot:
        await settle(pilot)
        assert_frame(pilot, "home-full")
        await press(pilot, "s", "slash", *"trace", "enter")
        assert_frame(pilot, "home-filtered", of="#places")


@SIZES
async def test_home_while_it_looks(
    tmp_path: Path, size: Size, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with AprtuiApp(folder=Path()).run_test(size=size) as pilot:
        await settle(pilot)
        assert_frame(pilot, "home-empty")
        with held(monkeypatch, home, "left_places"):
            await pilot.press("r")
            await quiet(pilot)
            assert_frame(pilot, "home-loading")
        await settle(pilot)


@SIZES
async def test_home_of_a_folder_that_is_not_there(size: Size) -> None:
    async with AprtuiApp(folder=Path("nowhere")).run_test(size=size) as pilot:
        await settle(pilot)
        assert isinstance(screen(pilot), HomeScreen) and screen(pilot).state == "error"
        assert_frame(pilot, "home-error")


@SIZES
async def test_help_and_palette(size: Size, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CommandPalette, "_NO_MATCHES_COUNTDOWN", 0.001)
    monkeypatch.setattr(CommandPalette, "_BUSY_COUNTDOWN", 1e9)  # a slow machine draws no other
    async with opened(*two(), size=size) as pilot:
        await press(pilot, "question_mark")
        assert_frame(pilot, "help-full")
        await press(pilot, *"divergence")
        assert_frame(pilot, "help-searched", of="#help")
        await press(pilot, *"xyz")
        assert_frame(pilot, "help-empty", of="#help")
        await press(pilot, "escape", "colon")
        assert_frame(pilot, "palette-full")
        await press(pilot, *"worst")
        assert_frame(pilot, "palette-searched")
        await press(pilot, *"xyz")
        for _ in range(1000):
            await pilot.pause()
            if "No matches" in frame(pilot):
                break
        assert_frame(pilot, "palette-empty")
