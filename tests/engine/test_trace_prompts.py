"""`aprtui trace --prompts`: each of several prompts is traced as one alone is, promises and all."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from aprtui.formats.tracedir import open_trace
from tests.engine.test_trace_cli import files, schema, trace

PROMPTS = ("What is 2+2?", "The capital of France is", "def f(x):")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Three prompts, among them a blank line and the line ends of another system."""
    path = tmp_path / "prompts.txt"
    path.write_bytes("\r\n".join([PROMPTS[0], "  ", *PROMPTS[1:], ""]).encode())
    return path


def test_each_trace_holds_the_bytes_of_a_trace_alone(
    qwen2: Path, tmp_path: Path, prompts: Path
) -> None:
    assert trace(qwen2, tmp_path / "all", "--prompts", str(prompts)) == 0
    assert sorted(f.name for f in (tmp_path / "all").iterdir()) == [
        "prompt-1",
        "prompt-2",
        "prompt-3",
    ]
    for number, prompt in enumerate(PROMPTS, 1):
        trace(qwen2, tmp_path / str(number), "--prompt", prompt)
        folder = tmp_path / "all" / f"prompt-{number}"
        assert files(folder) == files(tmp_path / str(number))
        together = open_trace(folder)
        assert together.status == "complete"
        assert together.manifest is not None
        assert together.manifest["prompt"] == prompt
        jsonschema.validate(together.manifest, schema("manifest.schema.json"))


def test_prompts_come_from_stdin_too(
    qwen2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = io.TextIOWrapper(io.BytesIO(b"one\ntwo"))
    monkeypatch.setattr(sys, "stdin", text)
    assert trace(qwen2, tmp_path / "t", "--prompts", "-", "--stages", "lm_head") == 0
    assert len(files(tmp_path / "t")) == 2


def test_one_trace_that_is_there_refuses_all(
    qwen2: Path, tmp_path: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "t"
    trace(qwen2, out / "prompt-3", "--stages", "lm_head")
    before = files(out)
    assert trace(qwen2, out, "--prompts", str(prompts)) == 2
    error = capsys.readouterr().err
    assert "prompt-3: a trace is there already" in error
    assert files(out) == before
    assert trace(qwen2, out, "--prompts", str(prompts), "--overwrite") == 0
    assert len(files(out)) == 3 * 71


def test_a_folder_that_is_a_trace_is_refused(
    qwen2: Path, tmp_path: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace(qwen2, tmp_path / "t", "--stages", "lm_head")
    assert trace(qwen2, tmp_path / "t", "--prompts", str(prompts), "--overwrite") == 2
    assert "a trace is there itself" in capsys.readouterr().err
    assert list(files(tmp_path / "t")) == ["lm_head.bin"]


def test_a_trace_of_an_earlier_longer_run_is_told_of(
    qwen2: Path, tmp_path: Path, prompts: Path
) -> None:
    out = tmp_path / "t"
    trace(qwen2, out, "--prompts", str(prompts), "--stages", "lm_head")
    prompts.write_text("one\n")
    assert trace(qwen2, out, "--prompts", str(prompts), "--stages", "lm_head", "--overwrite") == 0
    notes = json.loads((out / "prompt-1" / "trace.json").read_text())["notes"]
    assert any("prompt-2 holds a trace of an earlier run" in note for note in notes)


def test_the_disk_must_have_room_for_all_of_them(
    qwen2: Path, tmp_path: Path, prompts: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Each alone would fit."""
    monkeypatch.setattr("aprtui.engine.plan.free_bytes", lambda directory: 1_000_000)
    assert trace(qwen2, tmp_path / "alone", "--prompt", PROMPTS[0]) == 0
    capsys.readouterr()
    assert trace(qwen2, tmp_path / "t", "--prompts", str(prompts)) == 4
    assert "3 traces need" in capsys.readouterr().err
    assert not (tmp_path / "t").exists()


def test_the_summary_and_the_plan_list_every_trace(
    qwen2: Path, tmp_path: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "t"
    options = ["--prompts", str(prompts), "--json"]
    assert trace(qwen2, out, *options, "--dry-run") == 0
    planned = json.loads(capsys.readouterr().out)["traces"]
    assert not out.exists()
    assert trace(qwen2, out, *options) == 0
    done = json.loads(capsys.readouterr().out)["traces"]
    assert [each["directory"] for each in done] == [str(out / f"prompt-{n}") for n in (1, 2, 3)]
    assert [each["write_bytes"] for each in planned] == [each["written_bytes"] for each in done]
    assert all(Path(each["manifest"]).is_file() for each in done)
    assert trace(qwen2, out, "--prompts", str(prompts), "--dry-run") == 0
    assert "prompt 2 of 3" in capsys.readouterr().out


def test_events_tell_one_trace_after_the_other(
    qwen2: Path, tmp_path: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "t"
    assert trace(qwen2, out, "--prompts", str(prompts), "--events", "--stages", "lm_head") == 0
    lines = capsys.readouterr().out.splitlines()
    for line in lines:
        jsonschema.validate(json.loads(line), schema("events.schema.json"))
    kinds = [json.loads(line)["event"] for line in lines]
    assert kinds == ["plan", "started", "stage", "done"] * 3
    kept = [(out / f"prompt-{n}" / "events.jsonl").read_text() for n in (1, 2, 3)]
    assert "".join(kept).splitlines() == lines


def test_a_person_sees_each_plan_and_each_summary(
    qwen2: Path, tmp_path: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert trace(qwen2, tmp_path / "t", "--prompts", str(prompts)) == 0
    told = capsys.readouterr()
    assert [line for line in told.err.splitlines() if line.startswith("prompt ")] == [
        f"prompt {n} of 3" for n in (1, 2, 3)
    ]
    assert told.out.count("look at it: ") == 3


def test_a_trace_that_fails_leaves_those_before_it_whole(
    qwen2: Path, tmp_path: Path, prompts: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from aprtui.engine import session
    from aprtui.errors import EngineError

    compute = session.Session.compute

    def failing(self: session.Session, plan: Any, capture: Any, given: Any) -> Any:
        if plan.prompt == PROMPTS[1]:
            raise EngineError("the device is out of memory")
        return compute(self, plan, capture, given)

    monkeypatch.setattr(session.Session, "compute", failing)
    out = tmp_path / "t"
    assert trace(qwen2, out, "--prompts", str(prompts)) == 4
    assert "out of memory" in capsys.readouterr().err
    assert open_trace(out / "prompt-1").status == "complete"
    assert open_trace(out / "prompt-2").status == "incomplete"
    assert not (out / "prompt-3").exists()


def test_a_stop_ends_them_all_and_keeps_what_is_whole(qwen2: Path, tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.txt", tmp_path / "t"
    prompts.write_text("\n".join(["short", "x " * 1000, "never"]))
    entry = "import sys; from aprtui.cli.main import entry; sys.argv[0] = 'aprtui'; entry()"
    command = [sys.executable, "-c", entry, "trace", str(qwen2), "--events"]
    with subprocess.Popen(
        [*command, "-o", str(out), "--prompts", str(prompts)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        done = False
        for line in process.stdout:
            kind = json.loads(line)["event"]
            done = done or kind == "done"
            if done and kind == "stage":
                process.send_signal(signal.SIGTERM)
                break
        last = json.loads([*process.stdout][-1])
        said = process.stderr.read()
    assert process.returncode == 128 + signal.SIGTERM
    assert (last["event"], last["directory"]) == ("stopped", str(out / "prompt-2"))
    assert "prompt-2, without a manifest; 1 of 3 traces are whole" in said
    assert open_trace(out / "prompt-1").status == "complete"
    assert open_trace(out / "prompt-2").status == "incomplete"
    assert not (out / "prompt-3").exists()


@pytest.mark.parametrize(
    ("text", "options", "code", "says"),
    [
        (b" \n\n", [], 2, "holds no prompt"),
        (b"a\n\xff\n", [], 3, "not UTF-8"),
        (b"a\n", ["--resident", "--device", "cpu"], 2, "file cache"),
        (b"a\n", ["--resident", "--device", "CPU", "--dry-run"], 2, "file cache"),
        (b"a\n", ["--resident", "--engine", "llamacpp"], 2, "aprtui's own engine"),
        (b"a\n", ["--device", "cuda:0,cpu"], 2, "CUDA"),
    ],
)
def test_bad_requests_are_one_clear_line(
    text: bytes, options: list[str], code: int, says: str,
    qwen2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    prompts = tmp_path / "prompts.txt"
    prompts.write_bytes(text)
    assert trace(qwen2, tmp_path / "t", "--prompts", str(prompts), *options) == code
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not (tmp_path / "t").exists()


def test_resident_wants_several_prompts(
    qwen2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert trace(qwen2, tmp_path / "t", "--resident") == 2
    assert "--prompts FILE" in capsys.readouterr().err
