"""What a person types by guess, and what answers: one line that names what was meant."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from aprtui.cli.main import main
from tests.support import SMALL

CAPTURE = SMALL / "captures" / "qwen2-q4_k_m" / "float64"

Said = tuple[int, str, str]
Type = Callable[..., Said]


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str]) -> Type:
    """Run a command line in this process: its exit code, stdout and stderr."""

    def run(*words: object) -> Said:
        try:
            code = main([str(word) for word in words])
        except SystemExit as ended:
            code = int(ended.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_a_prompt_without_its_option_is_answered_with_it(typed: Type, qwen2: Path) -> None:
    for words in (("a prompt",), ("a", "prompt")):
        code, _, error = typed("trace", qwen2, *words)
        assert (code, error.count("\n")) == (2, 1)
        assert "did you mean --prompt 'a prompt'?" in error
    code, _, error = typed("inspect", qwen2, "--nosuch")
    assert (code, error.count("\n")) == (2, 1)
    assert "aprtui inspect --help" in error


def test_options_of_trace_on_a_bare_model_are_answered_with_trace(typed: Type, qwen2: Path) -> None:
    code, _, error = typed(qwen2, "--prompt", "a b")
    assert code == 2
    assert shlex.join(["aprtui", "trace", str(qwen2), "--prompt", "a b"]) in error
    assert "aprtui --help" in typed(CAPTURE, "--json")[2]


def planned_tokens(typed: Type, *words: object) -> list[int]:
    """Of a plan, which also tells the disk's free space."""
    code, out, _ = typed("trace", *words, "--dry-run", "--json")
    assert code == 0
    found: list[int] = json.loads(out)["tokens"]
    return found


def test_p_is_prompt(typed: Type, qwen2: Path) -> None:
    short = planned_tokens(typed, qwen2, "-p", "def f(x):")
    assert short == planned_tokens(typed, qwen2, "--prompt", "def f(x):")
    assert short != planned_tokens(typed, qwen2)


def test_help_of_a_command_is_that_commands(typed: Type) -> None:
    assert typed("help", "trace") == typed("trace", "--help")
    assert typed("help") == typed("--help")


@pytest.mark.parametrize(
    ("end", "kept"), [("", "hi"), ("\n", "hi"), ("\r\n", "hi"), ("\n\n", "hi\n"), ("\r", "hi\r")]
)
def test_one_newline_at_the_end_of_a_prompt_file_is_no_part_of_it(
    end: str, kept: str, typed: Type, qwen2: Path, tmp_path: Path
) -> None:
    file = tmp_path / "prompt.txt"
    file.write_bytes(f"hi{end}".encode())
    found = planned_tokens(typed, qwen2, "--prompt-file", file)
    assert found == planned_tokens(typed, qwen2, "--prompt", kept)


def test_a_misspelt_device_is_refused_before_torch_is_asked(typed: Type, qwen2: Path) -> None:
    code, _, error = typed("trace", qwen2, "--device", "autoG", "--dry-run")
    assert code == 2
    assert "unknown device 'autoG'" in error
    code, out, _ = typed("trace", qwen2, "--device", "cuda", "--dry-run")
    assert code == 0
    assert "device  cuda (not checked), float32" in out


def test_planning_imports_no_torch(qwen2: Path) -> None:
    words = ["trace", str(qwen2), "--device", "cuda", "--dry-run"]
    asks = f"import sys, aprtui.cli.main as m; m.main({words!r}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", asks], capture_output=True).returncode == 0


def test_stages_are_named_by_patterns_too(typed: Type) -> None:
    code, out, _ = typed("stats", CAPTURE, "--stages", "FFN_*,lm_head", "--layers", "1")
    assert code == 0
    names = {line.split()[0] for line in out.splitlines()[1:] if line[0] != "*"}
    assert names == {
        f"layer-1/ffn_{name}" for name in ("norm", "gate", "up", "silu", "swigl", "out")
    }
    code, _, error = typed("diff", CAPTURE, CAPTURE, "--stages", "ffn")
    assert code == 2
    assert "did you mean 'ffn_*'?" in error
    assert "lm_head" not in error
    assert typed("stats", CAPTURE, "--stages", "ffm_*")[0] == 2


def test_a_range_says_that_its_end_is_excluded(typed: Type) -> None:
    code, _, error = typed("diff", CAPTURE, CAPTURE, "--layers", "1-3")
    assert code == 2
    assert "the end of a range is not included" in error
    for command in ("diff", "stats", "trace"):
        assert "END is not included" in " ".join(typed(command, "--help")[1].split())


def test_printed_commands_can_be_pasted(typed: Type, qwen2: Path, tmp_path: Path) -> None:
    out = tmp_path / "with space é"
    code, said, _ = typed("trace", qwen2, "-o", out, "--stages", "lm_head")
    assert code == 0
    assert shlex.split(said.splitlines()[-1].removeprefix("look at it: ")) == ["aprtui", str(out)]
    code, _, error = typed("trace", out)
    assert code == 3
    assert f"a trace, not a model ({shlex.join(['aprtui', str(out)])} opens it)" in error


def test_without_a_terminal_a_bad_file_is_told_first(typed: Type, tmp_path: Path) -> None:
    for name in ("empty.gguf", "empty.apr", "empty.safetensors", "empty.bin"):
        (tmp_path / name).touch()
        code, _, error = typed(tmp_path / name)
        assert (code, "it is empty" in error) == (3, True), error
    code, _, error = typed(CAPTURE)
    assert code == 2
    commands = (shlex.join(["aprtui", command, str(CAPTURE)]) for command in ("inspect", "stats"))
    assert f"no terminal to draw on ({', '.join(commands)})" in error


def test_a_table_fits_the_terminal(
    typed: Type, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def widest(lines: Sequence[str]) -> int:
        return max(len(line) for line in lines if line.startswith(("stage ", "layer-", "final")))

    whole = typed("stats", CAPTURE)[1].splitlines()
    assert widest(whole) > 120
    assert "outlier channels" in whole[0]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for columns in (80, 60):
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = typed("stats", CAPTURE)[1].splitlines()
        assert widest(lines) <= columns
        assert lines[0].split()[0] == "stage" and "rms" in lines[0]
        assert [line.split()[0] for line in lines[:72]] == [line.split()[0] for line in whole[:72]]
        assert "no room for" in lines[72] and "outlier channels" in lines[72]


def test_an_export_notes_what_is_inferred_once(typed: Type, tmp_path: Path) -> None:
    code, out, error = typed("export", CAPTURE, "--to", "npz", "-o", tmp_path / "all.npz")
    assert (code, out.count("\n")) == (0, 1)
    assert "note: 71 shapes inferred, not stated: layer-0.embedding 12 x 256, ..." in error
    assert error.count("\n") == 3
    code, _, error = typed("export", CAPTURE, "--to", "npz", "-o", "-")
    assert code == 2
    assert "not to stdout" in error


def test_bisect_says_once_that_a_may_be_left_out(typed: Type) -> None:
    usage = " ".join(typed("bisect", "--help")[1].split("\n\n")[0].split())
    assert usage.endswith("[--events] [A] B")
