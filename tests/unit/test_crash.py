"""What nobody foresaw is one sentence and exit code 4; its file holds nothing of anybody's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from aprtui.cli.main import main
from aprtui.crash import KEPT, crash_folder, told_of
from aprtui.engine import lens, worker
from aprtui.errors import BadFileError
from tests.support import SMALL

MODEL = SMALL / "models" / "qwen2-q4_k_m.gguf"
SECRET = "s3cr3t-\x1b]52;c;aGk=\x07"


def deep(depth: int = 10**6) -> int:
    return 1 + deep(depth - 1)


def wrong() -> None:
    raise ValueError(SECRET)


def no_memory() -> None:
    raise MemoryError


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def crash_files() -> list[Path]:
    return sorted(crash_folder().glob("*"))


@pytest.mark.parametrize("fault", [wrong, deep, no_memory])
def test_a_command_says_one_sentence_and_names_the_file(
    fault: Callable[[], object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("aprtui.cli.inspect.run", lambda args: fault())
    assert main(["inspect", str(MODEL)]) == 4
    captured = capsys.readouterr()
    (file,) = crash_files()
    assert captured.out == ""
    assert captured.err.count("\n") == 1 and str(file) in captured.err
    assert "Traceback" not in captured.err and SECRET not in captured.err
    text = file.read_text()
    assert "cli/main.py" in text and fault.__name__ in text
    assert len(text.splitlines()) < 100  # of a recursion the ends


def test_the_file_holds_no_path_no_name_and_no_word_of_the_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("aprtui.cli.inspect.run", lambda args: wrong())
    assert main(["inspect", str(tmp_path / "my-secret-model.gguf")]) == 4
    (file,) = crash_files()
    text = file.read_text()
    assert file.stat().st_mode & 0o077 == 0
    for kept_back in ("s3cr3t", "my-secret-model", str(tmp_path), str(Path.home())):
        assert kept_back not in text


def test_what_is_foreseen_makes_no_file() -> None:
    error = BadFileError("m.gguf", "is cut short")
    assert told_of(error, "inspect") is error
    gone = told_of(FileNotFoundError(2, "No such file", "m\x1b.gguf"), "inspect")
    assert str(gone) == "m\\x1b.gguf cannot be read or written: No such file"
    assert not crash_folder().exists()


def test_old_files_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aprtui.cli.inspect.run", lambda args: wrong())
    for _ in range(KEPT + 5):
        main(["inspect", str(MODEL)])
    assert len(crash_files()) == KEPT


def test_without_a_place_for_the_file_the_sentence_is_said_all_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "file"))
    monkeypatch.setattr("aprtui.cli.inspect.run", lambda args: wrong())
    assert main(["inspect", str(MODEL)]) == 4
    assert "a fault of aprtui's own: ValueError at cli/main.py" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["trace", "bisect"])
def test_events_end_with_an_error(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("aprtui.cli.trace._plans", lambda args: wrong())
    monkeypatch.setattr("aprtui.cli.bisect._captures", lambda names: wrong())
    assert main([command, str(MODEL), "--events"]) == 4
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["event"], told["exit_code"]) == ("error", 4)
    assert SECRET not in told["message"] and str(crash_files()[0]) in told["hint"]


def test_the_engine_and_the_lens_tell_it_as_an_event(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(worker, "make_plan", lambda job: deep())
    monkeypatch.setattr(lens, "open_model", lambda path, **more: deep())
    assert worker.main([json.dumps({"model": str(MODEL)})]) == 4
    assert lens.main(["--model", str(MODEL), "a.bin"]) == 4
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in told] == ["error", "error"]
    assert all("RecursionError" in event["message"] for event in told)


def test_a_trace_that_fails_unforeseen_says_so_in_its_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("aprtui.engine.session.forward", lambda *arguments: deep())
    assert main(["trace", str(MODEL), "-o", str(tmp_path / "t")]) == 4
    assert capsys.readouterr().err.splitlines()[-1].startswith("aprtui: a fault of aprtui's own")
    last = json.loads((tmp_path / "t" / "events.jsonl").read_text().splitlines()[-1])
    assert last["event"] == "error" and "RecursionError" in last["message"]
    assert len(crash_files()) == 1
