"""Every key of Model and Browse is pressed, and does what the table says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from aprtui.formats.aprt import write_stage
from aprtui.formats.tracedir import StageKey
from aprtui.tui.app import AprtuiApp
from aprtui.tui.carry import clipboard_file
from aprtui.tui.keys import KEYS, Key, keys_at
from aprtui.tui.panes import PANES, place_of
from aprtui.tui.screens.browse import BrowseScreen
from aprtui.tui.screens.diff import DiffScreen
from aprtui.tui.screens.model import ModelScreen
from aprtui.tui.screens.models import ModelsScreen
from aprtui.tui.screens.trace import TraceScreen
from aprtui.tui.weight_sample import look_at_all, look_at_weight
from aprtui.tui.widgets.model_facts_panes import MetadataPane
from aprtui.tui.widgets.values_pane import ValuesPane
from tests.support import FIXTURES, needs_fixtures
from tests.tui.support import (
    NARROW,
    WIDE,
    frame,
    opened,
    pane,
    press,
    screen,
    settle,
    small_trace,
    until,
)
from tests.tui.test_looking_frames import small_model, told_trace

_TEXTUAL = {"/": "slash", "?": "question_mark", "[": "left_square_bracket",
            "]": "right_square_bracket", ":": "colon", "$": "dollar_sign"}  # fmt: skip


@pytest.fixture(autouse=True)
def _own_clipboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _model(pilot: Pilot[int]) -> ModelScreen:
    found = screen(pilot)
    assert isinstance(found, ModelScreen)
    return found


def _browse(pilot: Pilot[int]) -> BrowseScreen:
    found = screen(pilot)
    assert isinstance(found, BrowseScreen)
    return found


async def _press_all(pilot: Pilot[int], keys: tuple[Key, ...]) -> None:
    """Each key once; what it opened is closed again, the screen is there as before."""
    before = pilot.app.screen
    for key in keys:
        await press(pilot, _TEXTUAL.get(key.keys[0], key.keys[0]))
        for _ in range(3):
            if pilot.app.screen is not before or screen(pilot)._prompt.display:
                await press(pilot, "escape")
        assert pilot.app.screen is before, key.id
        assert screen(pilot).state == "full", key.id


@pytest.mark.parametrize(  # in turn: what a key does is the same at both sizes
    ("size", "name"),
    [((WIDE, NARROW)[n % 2], row.name) for n, row in enumerate(PANES["browse"])],
    ids=[row.name for row in PANES["browse"]],
)
async def test_every_key_of_browse_can_be_pressed_in_every_pane(
    tmp_path: Path, size: tuple[int, int], name: str
) -> None:
    async with opened(told_trace(tmp_path / "t"), size=size) as pilot:
        number = next(key.keys[0] for key in KEYS if key.action == f"pane({name!r})")
        await press(pilot, number, "tab")
        await _press_all(pilot, (*keys_at(place_of("browse", name)), *keys_at("move")))
        await _press_all(pilot, keys_at("browse"))


@pytest.mark.parametrize("size", [WIDE, NARROW])
async def test_every_key_of_model_can_be_pressed(tmp_path: Path, size: tuple[int, int]) -> None:
    async with opened(small_model(tmp_path / "small.gguf"), size=size) as pilot:
        await _press_all(pilot, (*keys_at("move"), *keys_at("model")))


async def test_model_keys_copy_verify_zoom_and_change_the_pane(tmp_path: Path) -> None:
    path = small_model(tmp_path / "small.gguf")
    async with opened(path) as pilot:
        await press(pilot, "j", "j")
        assert "layer 0 · attn norm · every value" in frame(pilot)
        await press(pilot, "y")
        assert clipboard_file().read_text() == "blk.0.attn_norm.weight\n"
        await press(pilot, "Y")
        assert clipboard_file().read_text() == f"{path}\n"
        await press(pilot, "4", "tab", "j", "y")
        assert clipboard_file().read_text() == "[/x] small\n"
        assert "gguf files hold no checksum" in await press(pilot, "v")
        assert "Tensors 15" not in await press(pilot, "z")
        assert "Tensors 15 · by role" in await press(pilot, "q")


@needs_fixtures
async def test_the_checksums_of_an_apr_file_are_read_when_asked(tmp_path: Path) -> None:
    source = (FIXTURES / "apr" / "models" / "qwen2-import.apr").read_bytes()
    path = tmp_path / "m.apr"
    path.write_bytes(source)
    async with opened(path) as pilot:
        assert "the checksums of header and file are right" in await press(pilot, "v")
        path.write_bytes(source[:-40] + bytes([source[-40] ^ 1]) + source[-39:])
        assert "the checksum at its end is" in await press(pilot, "v")


async def test_tensors_of_a_layer_stand_in_the_order_of_computation(tmp_path: Path) -> None:
    async with opened(small_model(tmp_path / "small.gguf")) as pilot:
        lines = [line.split("│")[1].split("F32")[0].strip() for line in frame(pilot).splitlines()
                 if "F32    " in line and "│    " in line[:6]]  # fmt: skip
        assert lines == ["attn norm", "q", "k", "v", "q bias", "k bias", "v bias", "o", "ffn norm",
                         "gate", "up", "down"]  # fmt: skip


async def test_t_opens_the_form_and_d_asks_for_another_model(tmp_path: Path) -> None:
    path = small_model(tmp_path / "small.gguf")
    async with opened(path) as pilot:
        await pilot.press("t")
        await until(pilot, "Plan")
        assert isinstance(pilot.app.screen, TraceScreen)
        await pilot.press("q")
        await until(pilot, "Tensors 15")
        await press(pilot, "d")
        prompt = _model(pilot)._prompt
        assert prompt.display
        prompt.value = str(path)
        await pilot.press("enter")
        await pilot.pause()
        assert isinstance(pilot.app.screen, ModelsScreen)


async def test_browse_keys_copy_values_paths_and_statistics(tmp_path: Path) -> None:
    trace = small_trace(tmp_path / "t")
    async with opened(trace) as pilot:
        await press(pilot, "2", "tab", "l", "y")
        assert clipboard_file().read_text() == "1.0\n"
        assert frame(pilot).splitlines()[-1].startswith(" copied to ")
        await press(pilot, "Y")
        assert clipboard_file().read_text() == f"{trace / 'layer-0/attn_norm.bin'}\n"
        await press(pilot, "5", "y")
        assert clipboard_file().read_text().startswith("layer-0/attn_norm [3 token, 8 hidden] rms")


async def test_a_clipboard_file_that_cannot_be_written_is_not_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "no").write_text("a file, not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no"))
    async with opened(small_trace(tmp_path / "t")) as pilot:
        text = await press(pilot, "Y")
        assert "copied by OSC 52, if the terminal takes it" in text and "copied to" not in text


async def test_browse_keys_sort_follow_and_compare(tmp_path: Path) -> None:
    trace, other = small_trace(tmp_path / "t"), small_trace(tmp_path / "o")
    async with opened(trace) as pilot:
        assert "By stage · rms" in await press(pilot, "s")
        await press(pilot, "s", "n")
        assert _browse(pilot).stages.current == StageKey(1, "attn_norm")
        await press(pilot, "N")
        assert _browse(pilot).stages.current == StageKey(0, "attn_norm")
        assert "paused" in await press(pilot, "space")
        assert "paused" not in await press(pilot, "space")
        assert "no trace is running here" in await press(pilot, "x")
        await press(pilot, "e")
        prompt = _browse(pilot)._prompt
        prompt.value = str(tmp_path / "v.csv")
        await press(pilot, "enter")
        assert np.loadtxt(tmp_path / "v.csv", delimiter=",").shape == (3, 8)
        await press(pilot, "d")
        prompt.value = str(other)
        await press(pilot, "enter")
        assert isinstance(pilot.app.screen, DiffScreen)


async def test_a_copy_says_first_where_it_certainly_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    async with opened(small_trace(tmp_path / "t"), size=NARROW) as pilot:
        text = await press(pilot, "Y")
        assert "copied to ~/.cache/aprtui/clipboard, and by OSC 52 if" in text


async def test_a_narrow_tree_says_what_its_numbers_are_and_cuts_no_name_beside_a_blank(
    tmp_path: Path,
) -> None:
    trace = small_trace(tmp_path, manifest=False)
    write_stage(trace / "layer-0" / "attn_softmax.bin", 0, np.ones(4, dtype=np.float32))
    write_stage(trace / "layer-1" / "attn_out.bin", 1, np.full(4, np.nan, dtype=np.float32))
    async with opened(trace, size=NARROW) as pilot:
        text = frame(pilot)
        assert "Stages · rms" in text and "attn_softmax" in text
        assert "4 stages" in text and "1 NaN" in text


async def test_the_line_below_the_values_holds_whole_numbers(tmp_path: Path) -> None:
    path = tmp_path / "layer-0" / "attn_scores.bin"
    write_stage(path, 0, np.full(2_000_000, 1.2345678e-30, dtype=np.float32))
    async with opened(path, size=NARROW) as pilot:
        text = await press(pilot, "2")
        assert "(0, 0, 0)  1.2345678e-30  (head, query, key)" in text and "value 1" not in text


async def test_a_model_can_be_named_in_the_tokens_pane(tmp_path: Path) -> None:
    async with opened(told_trace(tmp_path / "t")) as pilot:
        await press(pilot, "G", "6", "o")
        prompt = _browse(pilot)._prompt
        prompt.value = str(small_model(tmp_path / "small.gguf"))
        text = await press(pilot, "enter")
        assert "'t8'" in text, "lm_head's likeliest token has the model's text now"


async def test_the_maximum_of_what_holds_no_number_is_told(tmp_path: Path) -> None:
    trace = small_trace(tmp_path)
    values = np.full((3, 8), np.nan, dtype=np.float32)
    write_stage(trace / "layer-0" / "attn_norm.bin", 0, values)
    async with opened(trace) as pilot:
        assert "no number here" in await press(pilot, "2", "tab", "m")


async def test_a_trace_that_is_there_is_replaced_only_after_a_yes(tmp_path: Path) -> None:
    path = small_model(tmp_path / "small.gguf")
    trace = small_trace(tmp_path / "small-trace")
    async with AprtuiApp(folder=tmp_path).run_test(size=WIDE) as pilot:
        app = pilot.app
        assert isinstance(app, AprtuiApp)
        app.go("trace", lambda: TraceScreen(path))
        form = app.screen
        assert isinstance(form, TraceScreen)
        await settle(pilot)
        form.query_one("#field-tokens", Input).value = "1,2"
        await until(pilot, "the folder holds a trace")
        await press(pilot, "r")
        assert frame(pilot).count("y replaces the trace in small-trace") == 1
        await press(pilot, "n")
        assert not form._prompt.display
        assert not form.running and (trace / "trace.json").exists()
        assert form.form.job(replace=True).overwrite and not form.form.job().overwrite


def test_every_value_of_a_weight_is_counted_between_the_samples_edges(tmp_path: Path) -> None:
    from aprtui.formats.modelfile import TensorEntry

    rng = np.random.default_rng(0)
    values = rng.standard_normal((3000, 1024)).astype(np.float32)
    values[1234, 5], values[7, 7] = 40.0, np.nan
    path = tmp_path / "weights"
    path.write_bytes(values.tobytes())
    sampled = look_at_weight(TensorEntry("w", "F32", values.shape, path, 0, values.nbytes), 20)
    assert sampled is not None and not sampled.exact
    told: list[int] = []
    found = look_at_all(sampled, lambda: False, told.append)
    finite = values[np.isfinite(values)].astype(np.float64)
    assert found.exact and told[-1] == values.size == found.statistics.count
    assert found.statistics.max == 40.0 and found.statistics.nan == 1
    assert found.statistics.rms == pytest.approx(np.sqrt(np.mean(finite**2)), rel=1e-9)
    assert found.statistics.std == pytest.approx(finite.std(), rel=1e-9)
    counts, _ = np.histogram(finite, np.array(sampled.histogram.edges))
    assert found.histogram.counts == tuple(counts)
    outside = finite.size - counts.sum()
    assert found.histogram.below + found.histogram.above == outside


async def test_a_question_stays_in_sight_while_it_is_answered(tmp_path: Path) -> None:
    async with opened(small_trace(tmp_path)) as pilot:
        text = await press(pilot, "e")
        assert "layer-0-attn_norm.npy" in text
        assert "write to (.npy or .csv)  ·  tab completes, enter answers, esc leaves" in text
        assert "enter answers" not in await press(pilot, "escape")


async def test_a_click_goes_to_the_row_that_was_clicked(tmp_path: Path) -> None:
    async with opened(small_trace(tmp_path)) as pilot:
        row = next(n for n, line in enumerate(frame(pilot).splitlines()) if "ffn_out" in line)
        await pilot.click(offset=(6, row))
        await settle(pilot)
        assert _browse(pilot).stages.current == StageKey(0, "ffn_out")


@pytest.mark.parametrize("key", ["enter", "tab"])
async def test_enter_and_tab_go_from_the_list_into_the_pane(tmp_path: Path, key: str) -> None:
    async with opened(small_trace(tmp_path / "t")) as pilot:
        text = await press(pilot, "2", key)
        assert pane(pilot, ValuesPane).grid.has_focus and "j k move" in text
    async with opened(small_model(tmp_path / "small.gguf")) as pilot:
        await press(pilot, "4", key)
        assert pane(pilot, MetadataPane).has_focus


async def test_on_a_layers_own_row_the_last_stage_stays_and_its_keys_work(tmp_path: Path) -> None:
    async with opened(small_trace(tmp_path)) as pilot:
        text = await press(pilot, "h")
        assert _browse(pilot).stages.current is None and "layer 0 · attn_norm" in text
        assert "token 0 of 3" in await press(pilot, "p")
        assert "each value" in await press(pilot, "4")
        await press(pilot, "n")
        assert _browse(pilot).stages.current == StageKey(1, "attn_norm")
