"""What the shells complete, asked of the shells themselves where they are installed."""

from __future__ import annotations

import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from aprtui.cli import shells
from aprtui.cli.commands import COMMANDS, every
from aprtui.cli.main import main
from aprtui.cli.man import page
from aprtui.graph.vocabulary import STAGES

_ASKED = r"""
source "$1"; shift
aprtui() { printf '%s\n' auto cpu cuda:0 cuda:1; }
COMP_WORDBREAKS=$' \t\n"\'><=;|&(:'
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
_aprtui
printf '%s\n' "${COMPREPLY[@]}"
"""
_FREE = {"--tokens", "--steps", "--chunk", "--prompt", "--set", "--bar", "--layers", "--sequence",
         "--engine-arg",
         "--top", "--only", "--timeout", "--rows", "--ray"}  # fmt: skip


@pytest.fixture
def script(tmp_path: Path) -> Path:
    file = tmp_path / "aprtui.bash"
    file.write_text(shells.bash())
    return file


def completed(script: Path, *words: str) -> list[str]:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    done = subprocess.run(
        [bash, "--norc", "-c", _ASKED, "bash", str(script), "aprtui", *words],
        cwd=script.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    "words, expected",
    [
        (["insp"], {"inspect"}),
        (["--v"], {"--version"}),
        (["contract", ""], {"validate", "run", "status"}),
        (["contract", "run", "--o"], {"--only"}),
        (["trace", "--dt"], {"--dtype"}),
        (["trace", "--dtype", "b"], {"bfloat16"}),
        (["trace", "--dtype", "=", "b"], {"bfloat16"}),
        (["trace", "m.gguf", "--logits", ""], {"last", "all"}),
        (["trace", "--device", ""], {"auto", "cpu", "cuda:0", "cuda:1"}),
        (["trace", "--device", "cuda", ":", ""], {"0", "1"}),
        (["verify", "--device", "cuda", ":", "1"], {"1"}),
        (["export", "--to", "np"], {"npy", "npz"}),
        (["completion", ""], {"bash", "zsh", "fish", "devices"}),
        (["trace", "--prompt", ""], set()),
        (["trace", "--engine", "l"], {"llamacpp"}),
        (["a-trace", "--m"], {"--model"}),
        (["diff", "--stages", "ffn_gate,ffn_u"], {"ffn_gate,ffn_up"}),
        (["help-no-such", ""], set()),
    ],
)
def test_bash_completes_words(script: Path, words: Sequence[str], expected: set[str]) -> None:
    assert set(completed(script, *words)) == expected


def test_bash_completes_every_command_and_stage(script: Path) -> None:
    assert set(completed(script, "")) == {*COMMANDS, script.name}
    assert set(completed(script, "diff", "--stages", "")) == {"all", *(s.name for s in STAGES)}


def test_every_option_that_takes_a_value_is_completed_or_free_text(script: Path) -> None:
    for command in every():
        for option in command.options:
            value = option.value
            if value and not (value.words or value.files or value.devices):
                assert _FREE & set(option.flags), (command.name, option.flags)


@pytest.mark.parametrize("words", ["inspect", "trace --adapter", "diff 'a b'", "--model", ""])
def test_bash_completes_paths_with_spaces(script: Path, words: str) -> None:
    """A tab pressed in a real terminal: readline quotes what is found."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    (script.parent / "my own.gguf").touch()
    pid, fd = pty.fork()
    if pid == 0:
        os.chdir(script.parent)
        os.execve(bash, ["bash", "--norc", "--noprofile", "-i"], {"TERM": "dumb", "PS1": "> "})
    lines = f"source aprtui.bash\naprtui() {{ printf '<%s>' \"$@\"; }}\naprtui {words} my\t\nexit\n"
    os.write(fd, lines.encode())
    said = b""
    try:
        while part := os.read(fd, 4096):
            said += part
    except OSError:  # Linux: the other end is closed
        pass
    os.close(fd)
    os.waitpid(pid, 0)
    assert b"<my own.gguf>" in said, said.decode()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_scripts_are_that_shells(
    shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    for command in every():
        for option in command.options:
            name = max(option.flags, key=len)
            assert name in text or name[2:] in text, (command.name, name)
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "script").write_text(text)
    subprocess.run([program, "-n", str(tmp_path / "script")], check=True)


def test_fish_completes_words(tmp_path: Path) -> None:
    fish = shutil.which("fish")
    if fish is None:
        pytest.skip("fish is not installed")
    (tmp_path / "script").write_text(shells.fish())
    for line, expected in (
        ("aprtui insp", {"inspect"}),
        ("aprtui trace --dtype b", {"bfloat16"}),
        ("aprtui contract run --o", {"--only"}),
        ("aprtui export --to np", {"npy", "npz"}),
        ("aprtui diff --stages ffn_gate,ffn_u", {"ffn_gate,ffn_up"}),
    ):
        asked = f"source {tmp_path}/script; complete -C {line!r}"
        done = subprocess.run(
            [fish, "--no-config", "-c", asked],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        found = {found.split("\t")[0] for found in done.stdout.splitlines()}
        assert found == expected, (line, done.stderr)


def test_the_manual_page_is_the_parsers() -> None:
    kept = Path(__file__).resolve().parents[2] / "docs" / "aprtui.1"
    assert kept.read_text() == page(), "run `aprtui man > docs/aprtui.1`"


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_the_manual_page_is_roff() -> None:
    """Every warning on; what is shown holds every command's own text."""
    asked = [*("groff", "-man", "-ww", "-Tascii"), "-P-c"]
    done = subprocess.run(asked, input=page(), capture_output=True, text=True, check=True)
    assert done.stderr == ""
    shown = " ".join(re.sub(r".\x08", "", done.stdout).split())
    for command in every():
        assert f"aprtui {command.name}".rstrip() in shown
    for word in ("--save-tensor-layers", "~/.config", "Exit codes: 0 fine", "`aprtui DIR`"):
        assert word in shown


def test_devices_are_told_without_torch() -> None:
    code = (
        "import sys; from aprtui.cli.main import main; main(['completion', 'devices']);"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == 0
