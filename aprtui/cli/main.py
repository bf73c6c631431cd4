"""The command line: finds the subcommand, runs it, and turns errors into one line and a code."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from aprtui.cli.commands import COMMANDS, EXIT_CODES, parser_of
from aprtui.cli.streams import open_streams
from aprtui.cli.version import lines
from aprtui.crash import told_of
from aprtui.errors import AprtuiError, UsageError
from aprtui.text import clean, nearest, quoted

__all__ = ["COMMANDS", "EXIT_CODES", "entry", "heed_signals", "main"]

_USAGE = """\
usage: aprtui [--version [-v]] [--help] COMMAND ...
       aprtui MODEL | TRACE_DIR | FILE.bin | DIR_A DIR_B ... | MODEL_A MODEL_B | RESULTS

A terminal inspector for the forward pass of language models.

Opens the terminal UI on:
  aprtui                      recent models and traces below this folder
  aprtui MODEL                a .apr, .gguf or .safetensors model: summary, plan, trace
  aprtui TRACE_DIR            a trace directory, also one that is still growing
  aprtui FILE.bin             one stage file
  aprtui DIR_A DIR_B          two traces side by side
  aprtui DIR_A DIR_B DIR_C    many traces, each against the first: a matrix
  aprtui MODEL_A MODEL_B      two models side by side: their weights, the worst first
  aprtui RESULTS              the matrix of a sweep, a folder or a URL

Commands that need no terminal UI:
{commands}

{exit_codes}
With --json an error is one line of JSON on stderr: {{"error": {{message, hint, exit_code}}}}.
`aprtui COMMAND --help` tells each command's options."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(words)
    except KeyboardInterrupt as stop:
        told: AprtuiError = _Stopped(getattr(stop, "number", signal.SIGINT))
    except Exception as error:
        told = told_of(error, words[0] if words and words[0] in COMMANDS else "opening")
    _tell(told, as_json=_asks_for_json(words))
    return told.exit_code


def _asks_for_json(words: Sequence[str]) -> bool:
    """As argparse would have found it, which takes an option's beginning for it."""
    options = words[: words.index("--")] if "--" in words else words
    return any(len(word) > 2 and "--json".startswith(word) for word in options)


def _tell(error: AprtuiError, *, as_json: bool) -> None:
    """One line on stderr: stdout holds results alone, whole or not at all."""
    if as_json:
        said = {"message": error.message, "hint": error.hint, "exit_code": error.exit_code}
        print(json.dumps({"error": said}, ensure_ascii=True), file=sys.stderr)
    else:
        print(f"aprtui: {clean(str(error), 2000)}", file=sys.stderr)


class _Stopped(AprtuiError):
    """Not a fault: a signal asked for it."""

    def __init__(self, number: int) -> None:
        super().__init__("stopped")
        self.exit_code = 128 + number


class _Ended(KeyboardInterrupt):
    """A signal that asks the command to end, as SIGINT does."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def _end_by(number: int, frame: FrameType | None) -> None:
    raise _Ended(number)


def heed_signals() -> None:
    """Have SIGTERM and SIGHUP end what runs as SIGINT does, unless they are ignored (nohup)."""
    for each in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(each) == signal.SIG_DFL:
            signal.signal(each, _end_by)


def entry() -> None:
    """The console script."""
    outlet = open_streams()
    heed_signals()
    try:
        code = main()
    except SystemExit as ended:  # argparse: --help, or a wrong option
        code = ended.code if isinstance(ended.code, int) else 0
    sys.stdout.flush()
    if outlet.error is not None:
        lost = AprtuiError(f"stdout cannot be written: {outlet.error.strerror}")
        _tell(lost, as_json=_asks_for_json(sys.argv[1:]))
        code = lost.exit_code
    sys.stderr.flush()
    if "torch" in sys.modules:  # everything is written, and torch takes 0.6 s to take itself down
        os._exit(code)
    sys.exit(code)


def _dispatch(words: list[str]) -> int:
    if words and words[0] in COMMANDS:
        return _run(words[0], words[1:])
    if words and words[0] in ("-h", "--help", "help"):
        return _help(words[1:])
    if words and words[0] in ("-V", "--version"):
        if wrong := [word for word in words[1:] if word not in ("-v", "--verbose")]:
            raise UsageError(f"--version takes no {_words(wrong)}", hint="aprtui --version -v")
        print("\n".join(lines(verbose=len(words) > 1)))
        return 0
    return _open(words)


def _run(name: str, words: list[str]) -> int:
    parser, module = parser_of(name)
    args, left = parser.parse_known_args(words)
    if left:
        hint = f"aprtui {name} --help"
        takes = hasattr(args, "prompt") or hasattr(args, "texts")
        if takes and not any(word.startswith("-") for word in left):
            hint = f"did you mean --prompt {quoted(' '.join(left))}?"
        raise UsageError(f"{name} does not take {_words(left)}", hint=hint)
    code: int = module.run(args)
    if maps := sys.modules.get("aprtui.formats.maps"):  # imported where something was read
        maps.check_maps()  # what was printed may be of a file that was cut short meanwhile
    return code


def _words(words: list[str]) -> str:
    return " ".join(map(quoted, words))


def _help(words: list[str]) -> int:
    if words and words[0] in COMMANDS:
        return _run(words[0], ["--help"])
    width = max(map(len, COMMANDS))
    lines = (f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items())
    print(_USAGE.format(commands="\n".join(lines), exit_codes=EXIT_CODES))
    return 0


def _open(words: list[str]) -> int:
    """Open the terminal UI on paths, or on none."""
    parser, module = parser_of("")
    if words and not words[0].startswith("-") and not os.path.exists(words[0]):  # noqa: PTH110
        near = nearest(words[0], COMMANDS)
        if near:
            raise UsageError(
                f"no command or file {clean(words[0])!r}", hint=f"did you mean `aprtui {near}`?"
            )
    args, left = parser.parse_known_args(words)
    if left:
        from aprtui.model.open import is_model_path

        a_model = len(args.paths) == 1 and is_model_path(args.paths[0])
        hint = f"aprtui trace {_words(words)}" if a_model else "aprtui --help"
        raise UsageError(f"opening takes no {_words(left)}", hint=hint)
    code: int = module.run(args)
    return code
