"""The foot offers the keys that do something here, in every state: no dead key, none left out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from aprtui.formats.aprt import write_stage
from aprtui.formats.tracedir import MANIFEST
from aprtui.tui.app import AprtuiApp
from aprtui.tui.screens.pair import PairScreen
from tests.tui.support import frame, opened, press, screen, settle, small_trace


def foot(text: str) -> str:
    return text.splitlines()[-1]


async def test_home_of_an_empty_folder_offers_what_it_tells_one_to_press(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "gone"):
        async with AprtuiApp(folder=folder).run_test(size=(120, 40)) as pilot:
            await settle(pilot)
            text = frame(pilot)
            assert "o opens another folder" in text
            assert "o open…" in foot(text) and "r look again" in foot(text)
            assert "/ filter" not in foot(text)
            assert "tab completes" in foot(await press(pilot, "o"))


async def test_tab_is_not_offered_where_the_pane_has_nothing(tmp_path: Path) -> None:
    trace = small_trace(tmp_path / "t")
    cut = trace / "layer-0/attn_norm.bin"
    cut.write_bytes(cut.read_bytes()[:20])
    async with opened(trace) as pilot:
        assert "tab pane" not in foot(frame(pilot)) and "range" not in foot(frame(pilot))
        assert "tab pane" in foot(await press(pilot, "1"))
        assert "tab pane" in foot(await press(pilot, "3", "j"))


async def test_a_stage_of_no_known_shape_has_no_axis_to_slice_by(tmp_path: Path) -> None:
    async with opened(small_trace(tmp_path / "t", manifest=False)) as pilot:
        assert "c range" in foot(frame(pilot)) and "axis" not in foot(frame(pilot))
    async with opened(small_trace(tmp_path / "u")) as pilot:
        assert "a axis" in foot(frame(pilot)) and "p slice" in foot(frame(pilot))


async def test_other_prompts_are_compared_by_a_key_that_is_offered_until_it_was_pressed(
    tmp_path: Path,
) -> None:
    traces = [small_trace(tmp_path / name) for name in "ab"]
    for number, trace in enumerate(traces):
        manifest = json.loads((trace / MANIFEST).read_text())
        manifest["tokens"] = {"ids": [1, 2, 3 + number]}
        (trace / MANIFEST).write_text(json.dumps(manifest))
    async with opened(*traces) as pilot:
        text = frame(pilot)
        assert "different prompts" in text
        assert "i all the same" in foot(text) and "d diff with…" in foot(text)
        text = await press(pilot, "i")
        assert "the prompts differ" in text and "i all the same" not in foot(text)


async def test_a_pair_that_cannot_be_read_offers_the_next(tmp_path: Path) -> None:
    a, b = small_trace(tmp_path / "a"), small_trace(tmp_path / "b")
    async with opened(a, b) as pilot:
        diff = screen(pilot)
        (b / "layer-0/attn_norm.bin").unlink()
        text = await press(pilot, "enter")
        assert isinstance(pilot.app.screen, PairScreen) and "n goes to the next pair" in text
        assert "n next" in foot(text) and "s worst by" not in foot(text)
        assert "attn_out" in await press(pilot, "n")
        assert diff is not screen(pilot) and screen(pilot).state == "full"


async def test_a_pair_without_another_offers_no_next(tmp_path: Path) -> None:
    for name in "ab":
        write_stage(tmp_path / name / "final_norm.bin", None, np.ones(8, dtype=np.float32))
    async with opened(tmp_path / "a", tmp_path / "b") as pilot:
        text = await press(pilot, "enter")
        assert isinstance(pilot.app.screen, PairScreen) and "n next" not in foot(text)


async def test_next_and_first_are_offered_where_they_lead_somewhere(tmp_path: Path) -> None:
    a, b = small_trace(tmp_path / "a"), small_trace(tmp_path / "b")
    write_stage(b / "layer-0/attn_out.bin", 0, -np.arange(24, dtype=np.float32))
    async with opened(a, b) as pilot:
        assert "n next" not in foot(frame(pilot))  # the cursor stands on the only one
        assert "f first" not in foot(frame(pilot))
        text = foot(await press(pilot, "j"))
        assert "n next" in text and "f first" in text
        assert "n next" not in foot(await press(pilot, "n"))
    write_stage(b / "layer-1/attn_out.bin", 1, -np.arange(24, dtype=np.float32))
    async with opened(a, b) as pilot:
        text = foot(frame(pilot))
        assert "n next" in text and "f first" not in text
