"""A manifest says what is there, and a trace that was stopped says what it knows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from aprtui.cli.main import main
from aprtui.engine import folder as folders
from aprtui.engine.events import Event, Planned, StageWritten
from aprtui.engine.folder import trace_folder
from aprtui.engine.job import TraceJob
from aprtui.engine.plan import make_plan
from aprtui.engine.run import run_trace
from aprtui.engine.stopping import TraceStopped
from aprtui.errors import EngineError, UsageError
from aprtui.formats.tracedir import EVENTS, MANIFEST, open_trace
from tests.support import SMALL

MODEL = SMALL / "models" / "qwen2-q4_k_m.gguf"
FILES = 71


def run_with(out: Path, act: Callable[[], object], at: int = 30, **job: object) -> None:
    """A trace into ``out`` under which ``act`` is done when so many files are there."""

    def emit(event: Event) -> None:
        if isinstance(event, StageWritten) and event.done == at:
            act()

    fields = {"tokens": (1, 2, 3), "model": str(MODEL), "directory": str(out), **job}
    run_trace(make_plan(TraceJob(**fields)), emit)  # type: ignore[arg-type]


def stopped(out: Path, at: int = 40, **job: object) -> Path:
    """A trace that was stopped when so many files were there."""

    def stop() -> None:
        raise TraceStopped

    with pytest.raises(TraceStopped):
        run_with(out, stop, at, **job)
    return out


def stage_files(root: Path) -> dict[str, bytes]:
    return {str(f.relative_to(root)): f.read_bytes() for f in sorted(root.rglob("*.bin"))}


def moved(out: Path) -> None:
    out.rename(out.with_name("moved"))


def removed(out: Path) -> None:
    shutil.rmtree(out)


def replaced(out: Path) -> None:
    moved(out)
    shutil.copytree(out.with_name("moved"), out)


def a_link_instead(out: Path) -> None:
    moved(out)
    other = out.with_name("other")
    other.mkdir()
    out.symlink_to(other)


@pytest.mark.parametrize("act", [moved, removed, replaced, a_link_instead])
def test_a_folder_that_is_gone_from_under_a_trace_ends_it_without_a_manifest(
    tmp_path: Path, act: Callable[[Path], None]
) -> None:
    out = tmp_path / "t"
    with pytest.raises(EngineError, match="moved, removed or replaced") as ended:
        run_with(out, lambda: act(out))
    assert ended.value.exit_code == 4
    assert not [*tmp_path.rglob(MANIFEST)]
    assert not [*tmp_path.rglob("*.part")]


def test_what_is_written_goes_where_the_folder_went(tmp_path: Path) -> None:
    """Nothing is written under a name that leads elsewhere by now."""
    out = tmp_path / "t"
    with pytest.raises(EngineError):
        run_with(out, lambda: replaced(out))
    assert len(stage_files(out)) == 30 <= len(stage_files(tmp_path / "moved"))
    assert open_trace(tmp_path / "moved").status == "incomplete"


def another(file: Path) -> None:
    """A file of the same size, perhaps with the inode of the one that was there."""
    file.unlink()
    shutil.copyfile(file.with_name("embedding.bin"), file)


def test_another_current_folder_is_no_other_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_with(Path("t"), lambda: monkeypatch.chdir("/"))
    assert open_trace(tmp_path / "t").status == "complete"


@pytest.mark.parametrize(
    ("name", "act"),
    [
        ("layer-0/attn_norm.bin", lambda file: file.unlink()),
        ("layer-0/attn_norm.bin", lambda file: file.write_bytes(file.read_bytes()[:-4])),
        ("layer-0/attn_norm.bin", another),
        ("layer-0", lambda folder: folder.rename(folder.with_name("gone"))),
        (EVENTS, lambda file: file.unlink()),
    ],
)
def test_a_file_that_is_gone_from_under_a_trace_ends_it_without_a_manifest(
    tmp_path: Path, name: str, act: Callable[[Path], object]
) -> None:
    with pytest.raises(EngineError, match="was removed or replaced"):
        run_with(tmp_path / "t", lambda: act(tmp_path / "t" / name))
    assert not (tmp_path / "t" / MANIFEST).exists()


def test_two_traces_at_once_never_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have looked before either began, which is as close as two can come."""
    out = tmp_path / "t"
    run_with(out, lambda: None)
    monkeypatch.setattr(folders, "check_folder", lambda directory, *, overwrite: None)
    with trace_folder(out, overwrite=True):
        assert not stage_files(out)
        with (
            pytest.raises(UsageError, match="another process is writing"),
            trace_folder(out, overwrite=True),
        ):
            raise AssertionError("entered")
    with pytest.raises(UsageError, match="another process is writing"):
        run_with(tmp_path / "u", lambda: run_with(tmp_path / "u", lambda: None, overwrite=True))


def test_a_trace_that_ended_since_it_was_looked_for_is_not_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_with(tmp_path / "t", lambda: None)
    before = stage_files(tmp_path / "t")
    monkeypatch.setattr(folders, "check_folder", lambda directory, *, overwrite: None)
    with pytest.raises(UsageError, match="is there already"), trace_folder(tmp_path / "t"):
        raise AssertionError("entered")
    assert stage_files(tmp_path / "t") == before
    assert open_trace(tmp_path / "t").status == "complete"


def test_the_lock_is_not_removed_by_the_trace_that_replaces(tmp_path: Path) -> None:
    run_with(tmp_path / "t", lambda: None)
    before = (tmp_path / "t" / EVENTS).stat().st_ino
    run_with(tmp_path / "t", lambda: None, overwrite=True)
    assert (tmp_path / "t" / EVENTS).stat().st_ino == before
    lines = (tmp_path / "t" / EVENTS).read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines].count("plan") == 1


def test_an_events_file_that_leads_elsewhere_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "t" / EVENTS).symlink_to(tmp_path / "mine")
    with pytest.raises(EngineError, match="not a file"):
        run_with(tmp_path / "t", lambda: None, overwrite=True)
    assert (tmp_path / "mine").read_text() == "mine"


# -- what a stopped trace knows --------------------------------------------------------------------


def test_a_stopped_trace_says_its_model_tokens_and_shapes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = open_trace(stopped(tmp_path / "t"))
    assert trace.status == "incomplete" and trace.manifest is None
    assert trace.token_ids == (1, 2, 3) and trace.token_texts is not None
    assert trace.stated["model"]["architecture"] == "qwen2"
    assert {record.shape_source for record in trace.records.values()} == {"events"}
    run_with(tmp_path / "whole", lambda: None)
    whole = open_trace(tmp_path / "whole")
    for key, record in trace.records.items():
        same = whole.records[key]
        assert (record.shape, record.axes, record.positions) == (
            same.shape, same.axes, same.positions
        )  # fmt: skip
    assert main(["inspect", str(tmp_path / "t")]) == 0
    said = capsys.readouterr().out
    assert f"model   {MODEL} (qwen2)" in said
    assert "incomplete, 40 files of 71 expected" in said


def test_bisect_takes_the_model_from_a_stopped_traces_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bisect", str(stopped(tmp_path / "t"))]) == 1  # not all could be replayed
    said = capsys.readouterr().out
    assert "No culprit among" in said and "as B's plan says" in said


def test_two_stopped_traces_are_compared_by_the_bars_of_their_arithmetic(tmp_path: Path) -> None:
    from aprtui.compare.bars import choose_bars

    a, b = (open_trace(stopped(tmp_path / name)) for name in "ab")
    assert choose_bars(a, b).rel_l2 == 1e-5


@pytest.mark.parametrize(("at", "kept"), [(1, 0), (17, 0), (18, 18), (40, 35), (70, 69)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_stopped_trace_is_finished_to_the_same_bytes(
    tmp_path: Path, at: int, kept: int, dtype: str
) -> None:
    """What layers before the stop wrote is kept; the pass begins where the next one does."""
    run_with(tmp_path / "whole", lambda: None, dtype=dtype)
    out = stopped(tmp_path / "t", at, dtype=dtype)
    assert main(["trace", "--resume", str(out)]) == 0
    assert stage_files(out) == stage_files(tmp_path / "whole")
    told = [json.loads(line) for line in (out / EVENTS).read_text().splitlines()]
    second = max(place for place, event in enumerate(told) if event["event"] == "plan")
    again = [event for event in told[second:] if event["event"] == "stage"]
    assert len(again) == FILES - kept
    ours, whole = (json.loads((each / MANIFEST).read_text()) for each in (out, tmp_path / "whole"))
    for part in ("model", "tokens", "prompt", "selection", "engine", "stages", "absent"):
        assert ours[part] == whole[part]
    assert "are of the run before" in ours["notes"][-1]


def test_only_chosen_stages_are_gone_on_with_from_the_beginning(tmp_path: Path) -> None:
    """Without the residual stream no pass can begin in the middle."""
    run_with(tmp_path / "whole", lambda: None, stages="ffn_gate,lm_head")
    out = stopped(tmp_path / "t", 2, stages="ffn_gate,lm_head")
    assert main(["trace", "--resume", str(out)]) == 0
    assert stage_files(out) == stage_files(tmp_path / "whole")


def test_a_file_that_is_no_more_what_it_was_is_computed_again(tmp_path: Path) -> None:
    run_with(tmp_path / "whole", lambda: None)
    out = stopped(tmp_path / "t")
    other = out / "layer-0" / "ffn_norm.bin"
    other.write_bytes((out / "layer-0" / "attn_norm.bin").read_bytes())
    assert main(["trace", "--resume", str(out)]) == 0
    assert stage_files(out) == stage_files(tmp_path / "whole")


def test_what_cannot_be_gone_on_with_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "m.gguf"
    shutil.copy(MODEL, model)
    out = stopped(tmp_path / "t", model=str(model))
    run_with(tmp_path / "whole", lambda: None)

    def refused(*words: str) -> str:
        assert main(["trace", *words]) in (2, 3)
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        return said

    assert "whole" in refused("--resume", str(tmp_path / "whole"))
    assert "no trace to go on with" in refused("--resume", str(tmp_path / "nothing"))
    assert "takes no MODEL" in refused(str(model), "--resume", str(out))
    assert "takes no --layers" in refused("--resume", str(out), "--layers", "1")
    raw = model.read_bytes()
    model.write_bytes(raw.replace(b"qwen2.block_count", b"qwen2.block_counT", 1))
    refused("--resume", str(out))
    model.unlink()
    assert "m.gguf" in refused("--resume", str(out))
    assert "no model" in refused()


def test_another_machine_does_not_go_on_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = stopped(tmp_path / "t")
    said = (out / EVENTS).read_text()
    (out / EVENTS).write_text(said.replace('"torch":"', '"torch":"1.', 1))
    assert main(["trace", "--resume", str(out)]) == 2
    assert "was begun with torch" in capsys.readouterr().err


@pytest.mark.parametrize(
    "job", ["[]", '{"model": 3}', '{"model": "m", "tokens": [1.5]}', '{"run": "me"}',
            '{"model": "m", "overrides": {"a": []}}', '{"model": "\\u0000"}']
)  # fmt: skip
def test_a_job_out_of_a_file_is_checked(
    tmp_path: Path, job: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / EVENTS).write_text(f'{{"event": "plan", "files": 3, "job": {job}}}\n')
    assert main(["trace", "--resume", str(tmp_path)]) in (2, 3)
    assert capsys.readouterr().err.count("\n") == 1


def test_the_plan_event_tells_what_the_manifest_will(tmp_path: Path) -> None:
    told: list[Event] = []
    job = TraceJob(model=str(MODEL), directory=str(tmp_path / "t"), tokens=(1, 2))
    run_trace(make_plan(job), told.append)
    plan = next(event for event in told if isinstance(event, Planned))
    manifest = json.loads((tmp_path / "t" / MANIFEST).read_text())
    assert json.loads(plan.line())["manifest"].items() <= manifest.items()
