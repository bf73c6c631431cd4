"""Plans and small models for the tests of sweeps."""

from __future__ import annotations

import sys
from pathlib import Path

import aprtui
from tests.tiny import write_tiny

__all__ = ["SHORT", "command_engine", "write_plan"]

SHORT = '[[prompts]]\nname = "short"\ntokens = [3, 14, 5]\n'

_TOKENS = (3, 14, 5)
_COMMAND = """\
import array, pathlib, shutil, sys

model, tokens, output, fault = sys.argv[1:]
assert tokens == "3,14,5"
shutil.copytree(pathlib.Path("made") / pathlib.Path(model).stem, output, dirs_exist_ok=True)
if fault != "none":
    stage = pathlib.Path(output) / f"{fault}.bin"
    raw = stage.read_bytes()
    doubled = array.array("f", [2 * value for value in array.array("f", raw[12:])])
    stage.write_bytes(raw[:12] + doubled.tobytes())
"""


def write_plan(folder: Path, text: str, name: str = "plan.toml") -> Path:
    """A plan in a folder with two models, ``a.apr`` and ``b.apr``."""
    folder.mkdir(exist_ok=True)
    for model, theta in (("a", 10000.0), ("b", 500.0)):
        if not (folder / f"{model}.apr").exists():
            write_tiny(folder / f"{model}.apr", metadata={"rope_theta": theta})
        if "runtime.py" in text and not (made := folder / "made" / model).exists():
            aprtui.trace(folder / f"{model}.apr", tokens=_TOKENS, directory=made, device="cpu")
    (folder / name).write_text(text)
    return folder / name


def command_engine(folder: Path, fault: str = "none", name: str = "theirs") -> str:
    """An engine that is somebody's command: a capture in which ``fault``'s values are doubled."""
    folder.mkdir(exist_ok=True)
    (folder / "runtime.py").write_text(_COMMAND)
    words = [sys.executable, "runtime.py", "{model}", "{tokens}", "{output}", fault]
    said = ", ".join(f'"{word}"' for word in words)
    return f'[[engines]]\nname = "{name}"\ncommand = [{said}]\nversion = "1-{fault}"\n'
