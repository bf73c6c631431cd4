"""`aprtui trace --watch`: trace again whenever the model or a named file is written anew.

Each run is a process of its own: what was rebuilt (a library of a runtime) is loaded anew. Files
are looked at by time and size; the folders that they lie in may come and go meanwhile.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from aprtui.child import command_of
from aprtui.errors import UsageError
from aprtui.text import clean, size

__all__ = ["changes", "configure", "run", "stamps", "words_of"]

EVERY_S = 0.5
Stamp = tuple[int, int]  # mtime in ns, size


def configure(parser: argparse.ArgumentParser) -> None:
    """``--watch``."""
    parser.add_argument(
        "--watch", nargs="*", type=Path, metavar="FILE",
        help="trace again, over the last one, whenever the model, its adapter or one of these "
        "files is written anew; ^C ends it. Stands behind MODEL",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Trace, wait for a change, trace again, until ^C; the last run's exit code, 130 where it was
    broken off."""
    watched = [Path(name) for name in (args.model, args.adapter) if name] + args.watch
    if args.model is None or args.dry_run or args.prompt_file == "-":
        raise UsageError("--watch traces a MODEL again and again", hint="aprtui trace M --watch")
    missing = next((path for path in args.watch if not path.exists()), None)
    if missing is not None:
        raise UsageError(f"{clean(str(missing))}: not there: nothing to watch")
    code, once = 0, argparse.Namespace(**vars(args) | {"watch": None})
    try:
        while True:
            before, code = stamps(watched), 128 + signal.SIGINT
            code = subprocess.run([*command_of("aprtui"), *words_of(once)], check=False).returncode
            once.overwrite = True
            _say(f"watching {_named(watched)}; ^C ends it")
            _say(f"changed: {'; '.join(_wait(watched, before))}")
    except KeyboardInterrupt:
        _say("no longer watching")
        return code


def _wait(watched: Sequence[Path], before: Mapping[Path, Stamp]) -> list[str]:
    """What changed, once it has, is there, and stays as it is for a look."""
    last = before
    while True:
        time.sleep(EVERY_S)
        now = stamps(watched)
        if now == last and now != before and all(path.exists() for path in watched):
            return changes(before, now)
        last = now


def stamps(watched: Iterable[Path]) -> dict[Path, Stamp]:
    """When each file was written and how large it is; of a folder, of every file in it."""
    found: dict[Path, Stamp] = {}
    for path in watched:
        try:
            files = sorted(path.iterdir()) if path.is_dir() else [path]
            for file in files:
                stat = file.stat()
                found[file] = stat.st_mtime_ns, stat.st_size
        except OSError:  # it is being replaced
            continue
    return found


def changes(before: Mapping[Path, Stamp], now: Mapping[Path, Stamp]) -> list[str]:
    """What is not as it was, in words."""
    said = []
    for path in sorted({*before, *now}):
        name, old, new = clean(path.name, 80), before.get(path), now.get(path)
        if old == new:
            continue
        if old is None or new is None:
            said.append(f"{name} {'is new' if old is None else 'is gone'}")
        elif old[1] != new[1]:
            said.append(f"{name} has {size(new[1])}, had {size(old[1])}")
        else:
            said.append(f"{name} was written again")
    return said


def words_of(args: argparse.Namespace) -> list[str]:
    """The command line that says what ``args`` holds."""
    from aprtui.cli.commands import parser_of

    options, operands = list[str](), list[str]()
    for action in parser_of("trace")[0]._actions:  # argparse has no other way to read a parser
        value = getattr(args, action.dest, None)
        if value is None or value == action.default:
            continue
        flag = max(action.option_strings, key=len, default="")
        if not flag:
            operands.append(str(value))
        elif action.nargs == 0:
            options.append(flag)
        else:
            values = value if isinstance(value, list) else [value]
            options += [f"{flag}={each}" for each in values]
    return ["trace", *options, "--", *operands]


def _named(watched: Sequence[Path]) -> str:
    return ", ".join(clean(path.name or str(path), 60) for path in watched)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
