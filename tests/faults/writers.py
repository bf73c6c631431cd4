"""Everything that writes files, run in a child that can be ended, and what must hold after it."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import aprtui.cli.demo
import aprtui.cli.import_model
import aprtui.cli.report
import aprtui.compare.bisect
import aprtui.engine.run  # noqa: F401 - here once, not in every child
from aprtui.cli import main as command_line
from aprtui.contracts.evidence import Evidence, save_evidence
from aprtui.formats.tracedir import EVENTS, MANIFEST, open_trace
from aprtui.tui.carry import copy, export
from aprtui.tui.session import Spot, remember
from aprtui.tui.stage_table import table_of
from aprtui.writer import CaptureWriter
from tests.support import SMALL

__all__ = ["WRITERS", "Ended", "Inputs", "Writer", "make_inputs", "run", "tree", "wrong"]

MODEL = SMALL / "models" / "qwen2-q4_k_m.gguf"
TOKENS = "1,2,3,4,5,6,7,8"
PART = re.compile(r"\.aprtui-[0-9a-f]{16}\.part")
_TIMES = ("created", "elapsed_s", "peak_memory_bytes", "peak_device_bytes", "notes")

Tree = Mapping[str, bytes]


@dataclass(frozen=True)
class Inputs:
    """What the commands read: a trace, another one of the same prompt, one that was stopped, one
    of another, shorter prompt."""

    trace: Path
    other: Path
    stopped: Path
    older: Path


@dataclass(frozen=True)
class Writer:
    """``begin`` is run in an empty folder (or over what ``before`` put there); ``again`` after it
    was broken off, and has to leave what ``begin`` leaves when nothing disturbs it."""

    name: str
    begin: Callable[[Path, Inputs], object]
    again: Callable[[Path, Inputs], object]
    before: Callable[[Path, Inputs], object] | None = None
    keeps: bool = True  # what was there stays until the new one is whole
    a_command: bool = True  # and not a library in somebody else's process, whose signals are theirs


@dataclass(frozen=True)
class Ended:
    """``code`` is negative for a signal that the child did not handle."""

    code: int
    said: str


# -- what writes -----------------------------------------------------------------------------------


def _command(*words: object) -> Callable[[Path, Inputs], object]:
    """A command line; of its words {} is the folder, and a name of Inputs' that path."""

    def call(place: Path, inputs: Inputs) -> None:
        known = {field.name: getattr(inputs, field.name) for field in dataclasses.fields(inputs)}
        sys.argv = ["aprtui", *(str(word).format(place, model=MODEL, **known) for word in words)]
        command_line.entry()

    return call


def _library(place: Path, inputs: Inputs) -> None:
    rows = np.arange(1 << 14, dtype=np.float32).reshape(8, -1)
    with CaptureWriter(
        place / "t", tokens=range(8), engine={"name": "mine"}, overwrite=True
    ) as capture:
        for layer in range(40):
            capture.put("ffn_gate", rows, layer=layer)


class _NoTerminal:
    """Stands for the app, which sends to a terminal's clipboard."""

    def copy_to_clipboard(self, text: str) -> None:
        pass


def _screens(place: Path, inputs: Inputs) -> None:
    """What the UI writes: exports, the clipboard's file, the session."""
    command_line.heed_signals()
    os.environ["XDG_STATE_HOME"] = os.environ["XDG_CACHE_HOME"] = str(place)
    record = next(iter(open_trace(inputs.trace).records.values()))
    for suffix in (".csv", ".npy"):
        (place / f"values{suffix}").unlink(missing_ok=True)
        said = export(table_of(record), place / f"values{suffix}")
        if not said.startswith("wrote"):
            raise SystemExit(f"aprtui: {said}")
    copy(_NoTerminal(), "text" * 4096)  # type: ignore[arg-type]
    for number in range(20):
        remember(Spot(pane="stats" * 100), Path(f"/t/{number}"))


def _evidence(place: Path, inputs: Inputs) -> None:
    command_line.heed_signals()
    for number in range(40):
        save_evidence(
            place / "c.yaml",
            Evidence(
                f"T-{number}", "c.yaml", "", "true", ("unit",), 0, "", 1.0, None, {}, None, None,
                {}, {}, "", "output\n" * 500,
            ),
        )  # fmt: skip


def _copied(which: str) -> Callable[[Path, Inputs], object]:
    return lambda place, inputs: shutil.copytree(getattr(inputs, which), place / "t")


def _filled(name: str) -> Callable[[Path, Inputs], object]:
    """An older file with that name."""
    return lambda place, inputs: (place / name).write_bytes(b"older" * 1000)


_TRACE = ("trace", "{model}", "--device", "cpu", "-o", "{}/t")
_PROMPT = ("--tokens", TOKENS)
_EXPORT = ("export", "{trace}", "--to")
_REPORT = ("report", "{trace}", "{other}", "--model", "{model}", "-o", "{}/r.html")
_SAVE = ("diff", "{trace}", "{other}", "--save", "{}/d.json")
_NEW = "--overwrite"

WRITERS = (
    Writer("trace", _command(*_TRACE, *_PROMPT), _command(*_TRACE, *_PROMPT, _NEW)),
    Writer("trace --overwrite", _command(*_TRACE, *_PROMPT, _NEW),
           _command(*_TRACE, *_PROMPT, _NEW),
           _copied("older"), keeps=False),
    Writer("trace, then --resume", _command("trace", "--resume", "{}/t"),
           _command("trace", "--resume", "{}/t"), _copied("stopped"), keeps=False),
    Writer("import", _command("import", "{model}", "-o", "{}/m.apr", _NEW),
           _command("import", "{model}", "-o", "{}/m.apr", _NEW), _filled("m.apr")),
    Writer("export npz", _command(*_EXPORT, "npz", "-o", "{}/e.npz", _NEW),
           _command(*_EXPORT, "npz", "-o", "{}/e.npz", _NEW), _filled("e.npz")),
    Writer("export npy", _command(*_EXPORT, "npy", "-o", "{}/e"),
           _command(*_EXPORT, "npy", "-o", "{}/e", _NEW)),
    Writer("export csv", _command(*_EXPORT, "csv", "-o", "{}/e"),
           _command(*_EXPORT, "csv", "-o", "{}/e", _NEW)),
    Writer("export safetensors", _command(*_EXPORT, "safetensors", "-o", "{}/e.safetensors"),
           _command(*_EXPORT, "safetensors", "-o", "{}/e.safetensors", _NEW)),
    Writer("diff --save", _command(*_SAVE), _command(*_SAVE, _NEW)),
    Writer("report", _command(*_REPORT), _command(*_REPORT, _NEW)),
    Writer("demo", _command("demo", "-o", "{}/d", "--no-open"),
           _command("demo", "-o", "{}/d", "--no-open"), keeps=False),
    Writer("CaptureWriter", _library, _library, keeps=False, a_command=False),
    Writer("the UI's files", _screens, _screens, keeps=False),
    Writer("contract evidence", _evidence, _evidence),
)  # fmt: skip


# -- running it ------------------------------------------------------------------------------------


def run(
    action: Callable[[Path, Inputs], object],
    place: Path,
    inputs: Inputs,
    disturb: Callable[[int], object] = lambda pid: None,
    first: Callable[[], object] = lambda: None,
) -> Ended:
    """Do it in a child; ``first`` there before it, ``disturb`` here with the child's number."""
    log = inputs.trace.parent / "said"
    pid = os.fork()
    if pid == 0:
        _child(action, place, inputs, log, first)
    disturb(pid)
    _, status = os.waitpid(pid, 0)
    return Ended(os.waitstatus_to_exitcode(status), log.read_text(errors="replace"))


def _child(
    action: Callable[[Path, Inputs], object],
    place: Path,
    inputs: Inputs,
    log: Path,
    first: Callable[[], object],
) -> None:
    code = 1
    try:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDWR)
        said = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        for fd, source in ((0, nothing), (1, nothing), (2, said)):
            os.dup2(source, fd)
        first()
        action(place, inputs)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 4
        if isinstance(ended.code, str):
            os.write(2, ended.code.encode())
    except KeyboardInterrupt:  # of what is no command, as its caller sees it
        code = 128 + signal.SIGINT
    except Exception as error:
        os.write(2, f"aprtui: {error}\n".encode())
        code = getattr(error, "exit_code", 1)
    finally:
        os._exit(code)


def make_inputs(scratch: Path) -> Inputs:
    """The traces that the commands read and replace."""
    os.environ["XDG_STATE_HOME"] = str(scratch / "state")
    names = [field.name for field in dataclasses.fields(Inputs)]
    inputs = Inputs(*(scratch / name / "t" for name in names))
    for name in names:
        place = scratch / name
        place.mkdir()
        tokens = "9,10,11" if name == "older" else TOKENS
        ended = run(_command(*_TRACE, "--tokens", tokens), place, inputs)
        assert ended.code == 0, ended.said
    (inputs.stopped / MANIFEST).unlink()
    for late in ("layer-3", "final_norm.bin", "lm_head.bin"):
        path = inputs.stopped / late
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return inputs


# -- what must hold --------------------------------------------------------------------------------


def tree(place: Path) -> dict[str, bytes]:
    """Every file below ``place`` by its path."""
    return {
        str(path.relative_to(place)): path.read_bytes()
        for path in sorted(place.rglob("*"))
        if path.is_file()
    }


def wrong(
    writer: Writer, place: Path, before: Tree, after: Tree, ended: Ended, *, swept: bool
) -> Iterator[str]:
    """What does not hold: a file that is neither as it was nor as it should become, a manifest over
    files that are not there, something left behind (unless not ``swept``), a traceback."""
    found = tree(place)
    if "Traceback" in ended.said:
        yield "a traceback"
    for name, raw in found.items():
        if PART.fullmatch(Path(name).name):
            if swept:
                yield f"left behind: {name}"
        elif not any(_same(name, raw, each.get(name)) for each in (before, after)):
            yield f"neither old nor new: {name}"
    if writer.keeps:
        yield from (f"gone: {name}" for name in before if name not in found)
    for name in found:
        if Path(name).name == MANIFEST:
            yield from _untrue(name, found, before, after)


def _untrue(name: str, found: Tree, before: Tree, after: Tree) -> Iterator[str]:
    """Where a manifest is, all files of its trace are, and are of one trace."""
    folder = name.removesuffix(MANIFEST)
    for each in (after, before):
        if _same(name, found[name], each.get(name)):
            files = [file for file in each if file.startswith(folder) and file.endswith(".bin")]
            lacking = [file for file in files if not _same(file, each[file], found.get(file))]
            if not lacking:
                return
    yield f"untrue: {name}"


def _same(name: str, raw: bytes, other: bytes | None) -> bool:
    """Whether two files are alike but for times: whole JSON, of events every line but the last."""
    if other is None:
        return False
    if name.endswith(EVENTS):
        lines = raw.split(b"\n")[:-1]
        return all(_is_json(line) for line in lines)
    if name.endswith("session.json"):  # one of several, each whole
        return _is_json(raw)
    if name.endswith(MANIFEST):
        return _is_json(raw) and _timeless(raw) == _timeless(other)
    return raw == other


def _is_json(raw: bytes) -> bool:
    try:
        json.loads(raw)
    except ValueError:
        return False
    return True


def _timeless(raw: bytes) -> dict[str, Any]:
    return {name: value for name, value in json.loads(raw).items() if name not in _TIMES}
