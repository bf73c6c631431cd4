"""The results of a sweep in the Matrix pane: live, by other axes, from a cell to its pair."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from textual.widgets import Input

from aprtui.formats.aprt import write_stage
from aprtui.formats.tracedir import MANIFEST, StageKey, write_manifest
from aprtui.sweep.matrix import Cell, Matrix
from aprtui.sweep.results import place_for
from aprtui.sweep.store import open_store
from aprtui.tui import following
from aprtui.tui.app import AprtuiApp
from aprtui.tui.paths import meant
from aprtui.tui.screens.browse import BrowseScreen
from aprtui.tui.screens.home import HomeScreen
from aprtui.tui.screens.pair import PairScreen
from aprtui.tui.screens.results import ResultsScreen
from aprtui.tui.source import name_of
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

KEYS = {name: f"{number:032x}" for number, name in enumerate(("ours", "hf", "llamacpp"))}
VERDICTS = {"ours": "reference", "hf": "same", "llamacpp": "culprits"}


def _cell(model: str, prompt: str, engine: str) -> Cell:
    key = KEYS[engine]
    found = Cell(model, prompt, engine, VERDICTS[engine], key=key, capture=f"captures/{key}",
                 reference=f"captures/{KEYS['ours']}")  # fmt: skip
    if (model, prompt, engine) == ("qwen", "sum", "hf"):
        return dataclasses.replace(found, verdict="pending", capture=None, reference=None)
    if (model, prompt, engine) == ("qwen", "code", "hf"):
        return dataclasses.replace(found, verdict="failed", capture=None, error="out of memory")
    if engine == "llamacpp":
        return dataclasses.replace(found, culprit="layer-1/attn_out", mistake="scaled",
                                   text="the output is 1.02 times what it should be")  # fmt: skip
    return found


def _put(root: Path, matrix: Matrix) -> None:
    whole = root / "matrix.json.new"
    whole.write_text(json.dumps(matrix.to_json()))
    whole.rename(root / "matrix.json")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    root = tmp_path / "nightly"
    for key in KEYS.values():
        small_trace(root / "captures" / key)
    values = np.arange(24, dtype=np.float32) * 1.02
    write_stage(root / "captures" / KEYS["llamacpp"] / "layer-1" / "attn_out.bin", 1, values)
    _put(root, _matrix())
    return root


def _matrix() -> Matrix:
    models, prompts, engines = ("qwen", "gemma"), ("sum", "code"), ("ours", "hf", "llamacpp")
    cells = tuple(_cell(m, p, e) for m in models for p in prompts for e in engines)
    earlier = Matrix("r0", models, prompts, engines, tuple(
        dataclasses.replace(c, verdict="same", culprit="", mistake="")
        if c.place == ("gemma", "code", "llamacpp") else c for c in cells))  # fmt: skip
    return Matrix("r1", models, prompts, engines, cells).against_earlier(earlier, "yesterday")


@pytest.mark.parametrize("size", [WIDE, NARROW])
async def test_what_changed_stands_first(results: Path, size: tuple[int, int]) -> None:
    async with opened(results, size=size) as pilot:
        assert isinstance(screen(pilot), ResultsScreen)
        text = frame(pilot)
        assert "12 cells: 1 failed, 4 culprits" in text and "1 changed" in text
        assert "held against yesterday" in text
        assert screen(pilot).grid.rows[0].label == "gemma / code"  # type: ignore[attr-defined]
        await press(pilot, "$")
        assert_frame(pilot, "results")


async def test_enter_opens_the_pair_at_its_culprit_and_comes_back(results: Path) -> None:
    async with opened(results) as pilot:
        matrix = screen(pilot)
        await press(pilot, "$", "enter")
        pair = pilot.app.screen
        assert isinstance(pair, PairScreen) and pair.key == StageKey(1, "attn_out")
        await press(pilot, "<", "0", "enter")
        assert isinstance(pilot.app.screen, BrowseScreen)  # what others are held against
        await press(pilot, "<")
        assert pilot.app.screen is matrix


async def test_a_cell_without_a_capture_says_so(results: Path) -> None:
    async with opened(results) as pilot:
        await press(pilot, "/", *"failed", "enter")
        text = await press(pilot, "l")
        assert "out of memory" in text and "not kept" in text
        assert "failed: no more" in await press(pilot, "enter")


async def test_axes_filter_and_order_are_by_choice(results: Path) -> None:
    async with opened(results) as pilot:
        matrix = screen(pilot)
        assert isinstance(matrix, ResultsScreen)
        await press(pilot, "a")
        assert [row.label for row in matrix.grid.rows] == ["gemma", "qwen"]
        assert matrix.grid.columns[0] == "sum / ours"
        await press(pilot, "a", "a")
        assert len(matrix.grid.rows) == 3
        text = await press(pilot, "/", *"changed", "enter")
        assert "showing 1 of 3" in text


async def test_a_sweep_that_runs_is_followed(results: Path) -> None:
    async with opened(results) as pilot:
        assert "running or stopped" in frame(pilot)
        found = _matrix()
        cells = tuple(
            dataclasses.replace(c, verdict="same") if c.verdict == "pending" else c
            for c in found.cells
        )
        _put(results, dataclasses.replace(found, cells=cells))
        screen(pilot).follower.forget()  # type: ignore[attr-defined]
        await until(pilot, "a sweep    ")
        assert "running or stopped" not in frame(pilot)


async def test_damaged_results_say_so(results: Path) -> None:
    (results / "matrix.json").write_text('{"schema": "aprtui-sweep-v1"}')
    async with opened(results) as pilot:
        assert screen(pilot).state == "error" and "KeyError" in frame(pilot)


async def test_results_behind_a_url_are_copied_as_they_are_opened(results: Path) -> None:
    url = "memory://sweep-in-the-app/nightly"
    store = open_store(url)
    for key in KEYS.values():
        store.put_folder(f"captures/{key}", results / "captures" / key)
    store.put_document("matrix.json", _matrix().to_json())
    async with opened(place_for(url)) as pilot:
        matrix = screen(pilot)
        assert f"{url} · a sweep · running or stopped" in frame(pilot)
        await press(pilot, "$", "enter")
        await until(pilot, "layer 1 · attn_out")
        pair = pilot.app.screen
        assert isinstance(pair, PairScreen) and pair.key == StageKey(1, "attn_out")
        await press(pilot, "<")
        assert pilot.app.screen is matrix
        store.write(f"captures/{KEYS['hf']}.json", b"{}")
        text = await press(pilot, "0", "l", "enter")
        assert "the results hold no such capture" in text and pilot.app.screen is matrix


async def test_a_url_is_opened_from_home_and_nothing_is_written_to_one(results: Path) -> None:
    url = "memory://sweep-by-name/nightly"
    open_store(url).put_document("matrix.json", _matrix().to_json())
    assert meant(f" {url}") == Path(url)  # what is asked for to write to, or to compare with
    async with AprtuiApp(folder=results.parent).run_test(size=WIDE) as pilot:
        await settle(pilot)
        await press(pilot, "o", "ctrl+u")
        prompt = pilot.app.screen.query_one("#prompt", Input)
        prompt.value = url
        await press(pilot, "enter")
        assert isinstance(screen(pilot), ResultsScreen) and url in frame(pilot)


async def test_a_url_where_nothing_is_says_so() -> None:
    async with opened(place_for("memory://sweep-nowhere")) as pilot:
        await settle(pilot)
        assert screen(pilot).state == "error" and "no sweep's results are here" in frame(pilot)


@pytest.mark.parametrize("size", [WIDE, NARROW])
async def test_home_lists_results_with_their_headline(
    results: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "FOLLOW_S", 1000.0)  # what is unfinished is looked at again
    (results / "runs").mkdir()
    small_trace(results.parent / "one")
    async with AprtuiApp(folder=results.parent).run_test(size=size) as pilot:
        await until(pilot, "unfinished")
        home = screen(pilot)
        assert isinstance(home, HomeScreen)
        rows = home.list
        assert {(row.name, row.place.kind) for row in rows.rows} == {
            ("nightly", "results"), ("one", "trace"),
        }  # fmt: skip
        rows.move_to([row.name for row in rows.rows].index("nightly"))
        text = await press(pilot, "space")
        assert "12 cells: 1 failed, 4 culprits" in text
        assert "aprtui sweep PLAN --against RESULTS" in await press(pilot, "up", "space", "d")
        rows.move_to([row.name for row in rows.rows].index("nightly"))
        await press(pilot, "enter")
        assert isinstance(screen(pilot), ResultsScreen)


def test_a_capture_that_lies_under_a_key_is_called_by_its_model_and_engine(results: Path) -> None:
    capture = results / "captures" / KEYS["hf"]
    assert name_of(capture) == KEYS["hf"]  # its manifest does not say
    said = {"model": {"path": "/models/qwen2"}, "engine": {"name": "hf"}}
    small_trace(results / "captures" / ("f" * 32))
    other = results / "captures" / ("f" * 32)
    write_manifest(other, json.loads((other / MANIFEST).read_text()) | said)
    assert name_of(other) == "qwen2 by hf" and name_of(results) == "nightly"
