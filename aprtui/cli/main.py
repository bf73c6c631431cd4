"""The command line: finds the subcommand, runs it, and turns errors into one line and a code."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from aprtui import __version__
from aprtui.cli.streams import open_streams
from aprtui.crash import told_of
from aprtui.errors import UsageError
from aprtui.text import clean, nearest, quoted

__all__ = ["COMMANDS", "EXIT_CODES", "entry", "heed_signals", "main"]

# Name -> (module, one line of help). Modules are imported only when their command runs.
COMMANDS: dict[str, tuple[str, str]] = {
    "trace": ("aprtui.cli.trace", "run a traced forward pass and write every stage's tensor"),
    "inspect": ("aprtui.cli.inspect", "say what a model, trace or stage file is"),
    "import": ("aprtui.cli.import_model", "write a GGUF or safetensors model as .apr"),
    "import-trace": ("aprtui.cli.import_trace", "write another tool's dump as a trace folder"),
    "diff": ("aprtui.cli.diff", "compare two traces, two stage files or two models"),
    "bisect": ("aprtui.cli.bisect", "name the stages of a trace that compute wrongly, and how"),
    "report": ("aprtui.cli.report", "write a comparison as one file to attach to an issue"),
    "verify": ("aprtui.cli.verify", "run a model on several engines and say whether they agree"),
    "stats": ("aprtui.cli.stats", "statistics of a trace's stages or of one stage file"),
    "export": ("aprtui.cli.export", "write stage files as npy, npz, safetensors or csv"),
    "contract": ("aprtui.cli.contract", "validate the project's contracts and run their tests"),
    "demo": ("aprtui.cli.demo", "make a small model and two traces with a planted bug; open them"),
}

EXIT_CODES = """\
Exit codes: 0 fine, 1 a difference, a culprit or something unmeasured, 2 usage, 3 a bad file,
4 the engine failed or the output cannot be written, 130 stopped (143 by SIGTERM, 129 by SIGHUP)."""

_USAGE = """\
usage: aprtui [--version] [--help] COMMAND ...
       aprtui MODEL | TRACE_DIR | FILE.bin | DIR_A DIR_B | MODEL_A MODEL_B

A terminal inspector for the forward pass of language models.

Opens the terminal UI on:
  aprtui                      recent models and traces below this folder
  aprtui MODEL                a .apr, .gguf or .safetensors model: summary, plan, trace
  aprtui TRACE_DIR            a trace directory, also one that is still growing
  aprtui FILE.bin             one stage file
  aprtui DIR_A DIR_B          two traces side by side
  aprtui MODEL_A MODEL_B      two models side by side: their weights, the worst first

Commands that need no terminal UI:
{commands}

{exit_codes}
`aprtui COMMAND --help` tells each command's options."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(words)
    except KeyboardInterrupt as stop:
        print("aprtui: stopped", file=sys.stderr)
        return 128 + getattr(stop, "number", signal.SIGINT)
    except Exception as error:
        told = told_of(error, words[0] if words and words[0] in COMMANDS else "opening")
        print(f"aprtui: {clean(str(told), 2000)}", file=sys.stderr)
        return told.exit_code


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
        print(f"aprtui: stdout cannot be written: {outlet.error.strerror}", file=sys.stderr)
        code = 4
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
        print(f"aprtui {__version__}")
        return 0
    return _open(words)


def _run(name: str, words: list[str]) -> int:
    module = importlib.import_module(COMMANDS[name][0])
    parser = argparse.ArgumentParser(
        prog=f"aprtui {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.configure(parser)
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
    """Open the terminal UI on zero, one or two paths."""
    from aprtui.cli import open_ui

    parser = argparse.ArgumentParser(prog="aprtui", add_help=False)
    open_ui.configure(parser)
    if words and not words[0].startswith("-") and not os.path.exists(words[0]):  # noqa: PTH110
        near = nearest(words[0], COMMANDS)
        if near:
            parser.error(f"no command or file {clean(words[0])!r}; did you mean `aprtui {near}`?")
    args, left = parser.parse_known_args(words)
    if left:
        from aprtui.model.open import is_model_path

        a_model = len(args.paths) == 1 and is_model_path(args.paths[0])
        hint = f"aprtui trace {_words(words)}" if a_model else "aprtui --help"
        raise UsageError(f"opening takes no {_words(left)}", hint=hint)
    return open_ui.run(args)
