"""Model and Trace: the form, the plan, the grid that fills, stop, and an engine that fails."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from aprtui.engine.adapters import EngineChoice
from aprtui.engine.events import Failed, Stopped
from aprtui.errors import UsageError
from aprtui.formats.tracedir import StageKey
from aprtui.graph.vocabulary import STAGES, WHOLE_MODEL_STAGES
from aprtui.tui.app import AprtuiApp
from aprtui.tui.client import TraceClient
from aprtui.tui.screens.model import ModelScreen
from aprtui.tui.screens.trace import TraceScreen
from tests.engine.nvml import GB, play_nvml
from tests.support import FIXTURES, needs_fixtures
from tests.tui.support import NARROW, WIDE, fake_engine, frame, opened, press, screen, settle, until

RUN = """
stage(0, "embedding", 1); stage(0, "attn_norm", 2); stage(0, "post_ffn_residual", 3)
stage(1, "attn_norm", 4, nan=3); stage(1, "post_ffn_residual", 5); stage(None, "lm_head", 6)
say(event="done", directory="/nowhere/t-trace", files=6, written_bytes=600, elapsed_s=0.6,
    peak_memory_bytes=10**6, peak_device_bytes=0, nonfinite=["layer-1/attn_norm"],
    top_tokens=[dict(id=4, text=" 4", logit=1.0, probability=0.5)])
"""
WAIT = """
def stop(*_):
    say(event="stopped", files=1, directory="/nowhere/t-trace")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
stage(0, "embedding", 1)
time.sleep(60)
"""
GOES_ON = """
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
stage(0, "embedding", 1)
signal.sigwait([signal.SIGUSR1])
while not os.path.exists("MARK"):
    time.sleep(0.01)
"""
CARD = """
say(event="card", device="cuda:0", used_bytes=5_800_000_000, total_bytes=85_500_000_000,
    busy_percent=37, watts=310.4, most_watts=700.0)
stage(0, "embedding", 1)
while not os.path.exists("MARK"):
    time.sleep(0.01)
say(event="card", device="cuda:0", used_bytes=6_000_000_000, total_bytes=85_500_000_000,
    busy_percent=None, watts=None, most_watts=None)
say(event="log", level="note", message="what the card does is not shown: nvidia-ml-py is missing")
time.sleep(60)
"""
CRASH = 'stage(0, "embedding", 1); sys.stderr.write("no memory left\\n"); sys.exit(9)'


async def _form(pilot: Pilot[int], folder: Path, body: str) -> TraceScreen:
    client = TraceClient(fake_engine(folder, body))
    app = pilot.app
    assert isinstance(app, AprtuiApp)
    app.go("trace", lambda: TraceScreen(folder / "m.gguf", client=client))
    await settle(pilot)
    found = pilot.app.screen
    assert isinstance(found, TraceScreen)
    return found


@pytest.mark.parametrize("size", [WIDE, NARROW])
async def test_the_plan_stands_there_before_the_start(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    async with AprtuiApp(folder=tmp_path).run_test(size=size) as pilot:
        trace = await _form(pilot, tmp_path, RUN)
        text = frame(pilot)
        assert "2 tokens · 6 files: 2 in each of 2 layers and 2 more" in text
        assert "writes 1.0 kB · 1.0 GB free" in text
        assert len(trace.view.grid.cells) == 6


@pytest.mark.parametrize(
    ("layers", "size", "said"),
    [
        (2, WIDE, "nrm attn_norm             normalised layer input"),
        (14, WIDE, "alm altup_modes           nrm attn_norm"),  # in columns
        (14, NARROW, ""),
    ],
)
async def test_letters_are_explained_named_or_left_alone_as_there_is_room(
    tmp_path: Path, layers: int, size: tuple[int, int], said: str
) -> None:
    async with AprtuiApp(folder=tmp_path).run_test(size=size) as pilot:
        trace = await _form(pilot, tmp_path, RUN)
        names = [kind.name for kind in STAGES if kind.name not in WHOLE_MODEL_STAGES][:17]
        trace.view.filling.plan(StageKey(n, name) for n in range(layers) for name in names)
        await settle(pilot)
        text = frame(pilot)
        assert ("nrm attn_norm" in text) == bool(said) and said in text, text


@pytest.mark.parametrize("size", [WIDE, NARROW])
async def test_letters_are_commands_until_a_field_is_entered_and_the_foot_says_which(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    async with AprtuiApp(folder=tmp_path).run_test(size=size) as pilot:
        trace = await _form(pilot, tmp_path, RUN)
        prompt = trace.query_one("#field-prompt", Input)
        before = prompt.value
        assert trace.form.has_focus and "r run" in frame(pilot)
        for key in ("enter", "tab"):
            foot = (await press(pilot, key)).splitlines()[-1]
            assert prompt.has_focus
            assert "enter done · ^r run · esc leave" in foot
            assert "r run" in (await press(pilot, "escape")).splitlines()[-1]
            assert trace.form.has_focus
        await press(pilot, "enter", "r", "escape")
        assert sorted(prompt.value) == sorted(before + "r") and not trace.running
        await press(pilot, "enter", "ctrl+r")
        assert "complete" in frame(pilot)


async def test_j_and_k_go_over_the_fields_and_enter_edits_the_one_under_the_cursor(
    tmp_path: Path,
) -> None:
    async with AprtuiApp(folder=tmp_path).run_test(size=NARROW) as pilot:
        trace = await _form(pilot, tmp_path, RUN)
        prompt = trace.query_one("#field-prompt", Input).value
        assert "a folder of its own" in await press(pilot, "G")
        assert "ids with commas" in await press(pilot, "g", "j", "k", "k", "j")
        await press(pilot, *"jjjjjjjjjjjjj", "enter", "end", *"2")
        into = trace.query_one("#field-into", Input)
        assert into.has_focus and into.value.endswith("-trace2")
        assert trace.query_one("#field-prompt", Input).value == prompt
        await press(pilot, "up")
        assert trace.query_one("#field-until", Input).has_focus
        await press(pilot, "escape", "j", "enter")
        assert into.has_focus


async def test_the_folder_stands_there_as_a_person_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    async with AprtuiApp(folder=tmp_path).run_test(size=NARROW) as pilot:
        form = (await _form(pilot, tmp_path, RUN)).form
        into = form.query_one("#field-into", Input)
        assert into.value.startswith("~/") and form.job().directory == ""
        into.value += "2"
        assert form.job().directory == str(tmp_path / into.value.removeprefix("~/"))


async def test_a_token_that_holds_markup_and_escapes_is_only_shown(tmp_path: Path) -> None:
    async with AprtuiApp(folder=tmp_path).run_test(size=WIDE) as pilot:
        await _form(pilot, tmp_path, RUN)
        assert r"Hi│ [/x]\x1b[31m│" in frame(pilot)
        assert "\x1b" not in frame(pilot)


async def test_a_field_that_cannot_be_is_told_in_place_of_the_plan(tmp_path: Path) -> None:
    async with AprtuiApp(folder=tmp_path).run_test(size=WIDE) as pilot:
        trace = await _form(pilot, tmp_path, RUN)
        trace.query_one("#field-stages", Input).value = "nonsense"
        await settle(pilot)
        assert "unknown stage 'nonsense'" in frame(pilot)
        await press(pilot, "r")
        assert not trace.running


async def test_the_grid_fills_and_a_stage_with_nan_is_told_apart(tmp_path: Path) -> None:
    async with AprtuiApp(folder=tmp_path).run_test(size=WIDE) as pilot:
        trace = await _form(pilot, tmp_path, RUN)
        await press(pilot, "r")
        text = frame(pilot)
        assert trace.view.grid.cells[StageKey(0, "embedding")] == ("░", "")
        assert trace.view.grid.cells[StageKey(1, "attn_norm")] == ("N", "bad")
        assert "complete" in text and "6 files · 600 B" in text
        assert "NaN or Inf in 1 stage, first layer-1/attn_norm" in text
        assert "rms of the residual" in text


async def test_x_stops_the_child_and_what_is_written_stays(tmp_path: Path) -> None:
    async with AprtuiApp(folder=tmp_path).run_test(size=WIDE) as pilot:
        trace = await _form(pilot, tmp_path, WAIT)
        await pilot.press("r")
        await until(pilot, "1 of 6 files")
        await pilot.press("q")
        await until(pilot, "A trace is running")
        await pilot.press("q")  # not yet
        await until(pilot, "1 of 6 files")
        await press(pilot, "x")
        assert isinstance(trace.ended, Stopped) and not trace.running
        assert "stopped after 1 file;" in frame(pilot)
        assert trace.client.child.returncode == 0


async def test_a_stop_before_the_engine_can_say_so_is_no_failure(tmp_path: Path) -> None:
    async with AprtuiApp(folder=tmp_path).run_test(size=WIDE) as pilot:
        await _form(pilot, tmp_path, 'stage(0, "embedding", 1); time.sleep(60)')
        await pilot.press("r")
        await until(pilot, "1 of 6 files")
        text = await press(pilot, "x")
        assert "stopped after 1 file;" in text and "Stopped" in text
        assert "ended by itself" not in text and "failed" not in text


async def test_quitting_leaves_no_engine_behind(tmp_path: Path) -> None:
    app = AprtuiApp(folder=tmp_path)
    async with app.run_test(size=WIDE) as pilot:
        trace = await _form(pilot, tmp_path, WAIT)
        await pilot.press("r")
        await until(pilot, "1 of 6 files")
        await pilot.press("ctrl+q")
        await until(pilot, "A trace is running")
        await pilot.press("ctrl+q")
        await settle(pilot)
    assert trace.client.child.returncode is not None
    assert not app.is_running


@pytest.mark.parametrize("key", ["q", "ctrl+q"])
async def test_a_trace_can_be_left_running_when_the_screen_closes(tmp_path: Path, key: str) -> None:
    mark = tmp_path / "may-end"
    app = AprtuiApp(folder=tmp_path)
    async with app.run_test(size=WIDE) as pilot:
        trace = await _form(pilot, tmp_path, GOES_ON.replace("MARK", str(mark)))
        await pilot.press("r")
        await until(pilot, "1 of 6 files")
        await pilot.press(key)
        await until(pilot, "A trace is running")
        await pilot.press("l")
        await settle(pilot)
        assert app.is_running == (key == "q")
        process = trace.client.child._process
        assert process is not None and process.poll() is None
    assert process.poll() is None
    mark.touch()
    assert process.wait(timeout=30) == 0


async def test_an_engine_that_dies_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    async with AprtuiApp(folder=tmp_path).run_test(size=WIDE) as pilot:
        await _form(pilot, tmp_path, CRASH)
        await press(pilot, "r")
        assert "the engine ended by itself (9) no memory left" in frame(pilot)
        assert "no memory left" in await press(pilot, "o")


@pytest.mark.parametrize("first", [(), ("x",)], ids=["it goes on", "it is being stopped"])
async def test_r_while_a_trace_runs_runs_it_again_when_it_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: tuple[str, ...]
) -> None:
    """Asked for while a run goes on, or is being stopped, it is neither lost nor refused."""
    monkeypatch.setattr(
        "aprtui.tui.client.STOP_S", 600.0
    )  # a busy machine does not kill it before "r"
    body = f"""
import pathlib
runs = pathlib.Path({str(tmp_path / "runs")!r})
runs.mkdir(exist_ok=True)
number = len(list(runs.iterdir()))
(runs / f"{{number}} {{json.loads(sys.argv[1])['overwrite']}}").touch()
signal.signal(signal.SIGTERM, lambda *_: None)
stage(0, "embedding", 1)
while number == 0 and not os.path.exists({str(tmp_path / "mark")!r}):
    time.sleep(0.01)
say(event="done", directory="/nowhere/t-trace", files=1, written_bytes=100, elapsed_s=0.6,
    peak_memory_bytes=10**6, peak_device_bytes=0, nonfinite=[], top_tokens=[])
"""
    async with AprtuiApp(folder=tmp_path).run_test(size=WIDE) as pilot:
        trace = await _form(pilot, tmp_path, body)
        await pilot.press("r")
        await until(pilot, "1 of 6 files")
        assert "r again" in frame(pilot).splitlines()[-1]
        await pilot.press(*first, "r", "y")
        await until(pilot, "it runs again when this run is over")
        await pilot.press("c")
        assert "r not again" in frame(pilot).splitlines()[-1]
        (tmp_path / "mark").touch()
        await settle(pilot)
        assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["0 False", "1 True"]
        assert "complete" in frame(pilot) and not trace.running
        assert "r again ·" in frame(pilot).splitlines()[-1]


async def test_a_second_run_can_be_taken_back_and_does_not_follow_a_failure(tmp_path: Path) -> None:
    body = f"""
stage(0, "embedding", 1)
while not os.path.exists({str(tmp_path / "mark")!r}):
    time.sleep(0.01)
sys.exit(9)
"""
    async with AprtuiApp(folder=tmp_path).run_test(size=WIDE) as pilot:
        trace = await _form(pilot, tmp_path, body)
        await pilot.press("r")
        await until(pilot, "1 of 6 files")
        await pilot.press("r", "n")
        assert not trace._again
        await pilot.press("r", "y", "r")
        await until(pilot, "it does not run again")
        await pilot.press("r", "y")
        (tmp_path / "mark").touch()
        await settle(pilot)
        assert "it failed, and does not run again: r does" in frame(pilot)
        assert not trace.running and isinstance(trace.ended, Failed)


async def test_a_paused_display_catches_up(tmp_path: Path) -> None:
    async with AprtuiApp(folder=tmp_path).run_test(size=WIDE) as pilot:
        trace = await _form(pilot, tmp_path, WAIT)
        await pilot.press("space", "r")
        for _ in range(400):
            if trace._held:
                break
            await pilot.pause(0.02)
        assert trace.view.grid.cells[StageKey(0, "embedding")][0] == "·"
        await pilot.press("space")
        await until(pilot, "1 of 6 files")
        await press(pilot, "x")


@needs_fixtures
@pytest.mark.parametrize("size", [WIDE, NARROW])
async def test_a_model_shows_its_dimensions_and_its_tensors(size: tuple[int, int]) -> None:
    async with opened(FIXTURES / "models" / "qwen2-q4_k_m.gguf", size=size) as pilot:
        text = frame(pilot)
        assert "qwen2 · 4 layers · hidden 256 · heads 8/2 x 32 · ffn 512" in text
        assert "Tensors 51 · by role" in text
        assert "token_embd.weight" in text
        assert "Tensors 51 · by size" in await press(pilot, "s")
        assert "Tensors 4 of 51" in await press(pilot, "slash", *"ffn_gate", "enter")


@needs_fixtures
@pytest.mark.parametrize(
    "name", ["qwen2-import.apr", "gemma3-preserve.apr", "pycode-int8.apr", "llama-convert.apr"]
)
async def test_every_kind_of_apr_file_opens_and_says_what_is_odd(name: str) -> None:
    path = FIXTURES / "apr" / "models" / name
    if not path.exists():
        pytest.skip(f"{name} is not among the fixtures")
    async with opened(path) as pilot:
        model = screen(pilot)
        assert isinstance(model, ModelScreen)
        assert model.state == "full" and model.file is not None


async def test_a_file_that_is_no_model_is_an_error_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF\x03\0\0\0")
    async with opened(path) as pilot:
        assert screen(pilot).state == "error"
        assert "broken.gguf" in frame(pilot)


async def test_the_form_offers_other_engines_and_says_how_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choices = (
        EngineChoice("aprtui", True, ""),
        EngineChoice("llamacpp", True, ""),
        EngineChoice("hf", False, "pip install 'aprtui[hf]'"),
    )
    monkeypatch.setattr("aprtui.engine.adapters.available", lambda: choices)
    async with AprtuiApp(folder=tmp_path).run_test(size=WIDE) as pilot:
        trace = await _form(pilot, tmp_path, RUN)
        trace.query_one("#field-engine", Input).focus()
        await settle(pilot)
        assert "or llamacpp · hf: pip install 'aprtui[hf]'" in frame(pilot)
        assert trace.form.job().engine == "aprtui"
        trace.query_one("#field-engine", Input).value = "llamacpp"
        assert trace.form.job().engine == "llamacpp"
        assert trace.form.job().directory == "", "each engine has a folder of its own"
        assert trace.form.job().adapter == ""
        trace.query_one("#field-adapter", Input).value = "~/lora "
        assert trace.form.job().adapter == str(Path("~/lora").expanduser())


@pytest.mark.parametrize("size", [WIDE, NARROW])
async def test_what_the_card_does_stands_beside_the_progress(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    mark = tmp_path / "mark"
    async with AprtuiApp(folder=tmp_path).run_test(size=size) as pilot:
        trace = await _form(pilot, tmp_path, CARD.replace("MARK", str(mark)))
        await pilot.press("r")
        await until(pilot, "1 of 6 files")
        assert "cuda:0 5.8 GB of 85.5 GB · 37 % busy · 310 of 700 W" in frame(pilot)
        mark.touch()
        await until(pilot, "cuda:0 6.0 GB of 85.5 GB")
        assert "busy" not in frame(pilot)
        await pilot.press("o")
        await until(pilot, "nvidia-ml-py is missing")
        await pilot.press("x")
        await settle(pilot)
        assert not trace.running
        assert "cuda:0 6.0 GB" not in frame(pilot)


async def test_the_device_field_lists_and_completes_the_cards_that_are_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    play_nvml(monkeypatch, ("NVIDIA H100", GB, 85 * GB), ("NVIDIA H100", GB, 85 * GB))
    async with AprtuiApp(folder=tmp_path).run_test(size=WIDE) as pilot:
        trace = await _form(pilot, tmp_path, RUN)
        device = trace.query_one("#field-device", Input)
        device.focus()
        await until(pilot, "cuda:0 to cuda:1: NVIDIA H100 (85.0 GB)")
        assert device.suggester is not None
        assert await device.suggester.get_suggestion("cu") == "cuda"
        assert await device.suggester.get_suggestion("cuda:") == "cuda:0"


async def test_steps_chunk_and_cache_of_the_form_are_the_jobs(tmp_path: Path) -> None:
    async with AprtuiApp(folder=tmp_path).run_test(size=WIDE) as pilot:
        trace = await _form(pilot, tmp_path, RUN)
        for name, value in (("steps", "4"), ("chunk", " 3 "), ("cache", "Q8_0")):
            trace.query_one(f"#field-{name}", Input).value = value
        job = trace.form.job()
        assert (job.steps, job.chunk, job.kv) == (4, 3, "q8_0")
        for name, value, says in (
            ("steps", "many", "steps: 'many' is no whole number from 0 on"),
            ("steps", "-1", "steps: '-1' is no whole number"),
            ("tokens", "1,,3", "tokens: '' is no whole number"),
            ("until", "soon", "until 'soon' is no place to stop"),
            ("until", "first", "name a trace in Against"),
        ):
            trace.query_one(f"#field-{name}", Input).value = value
            with pytest.raises(UsageError, match=says) as raised:
                trace.form.job()
            await until(pilot, raised.value.message[:24])
            trace.query_one(f"#field-{name}", Input).value = ""
