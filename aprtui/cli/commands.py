"""The commands, and each one's parser: read by the command line, its completions and its manual."""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from aprtui.errors import UsageError
from aprtui.text import clean

__all__ = ["COMMANDS", "EXIT_CODES", "Command", "Option", "Parser", "Value", "every", "parser_of"]

# Name -> (module, one line of help). Modules are imported only when their command runs.
COMMANDS: dict[str, tuple[str, str]] = {
    "trace": ("aprtui.cli.trace", "run a traced forward pass and write every stage's tensor"),
    "inspect": ("aprtui.cli.inspect", "say what a model, trace or stage file is"),
    "import": ("aprtui.cli.import_model", "write a GGUF or safetensors model as .apr"),
    "import-trace": ("aprtui.cli.import_trace", "write another tool's dump as a trace folder"),
    "diff": ("aprtui.cli.diff", "compare two traces, two stage files or two models"),
    "bisect": ("aprtui.cli.bisect", "name the stages of a trace that compute wrongly, and how"),
    "mistakes": ("aprtui.cli.mistakes", "say what a mistake is that bisect names"),
    "report": ("aprtui.cli.report", "write a comparison as one file to attach to an issue"),
    "verify": ("aprtui.cli.verify", "run a model on several engines and say whether they agree"),
    "sweep": ("aprtui.cli.sweep", "run models x prompts x engines, and say all verdicts at once"),
    "stats": ("aprtui.cli.stats", "statistics of a trace's stages or of one stage file"),
    "export": ("aprtui.cli.export", "write stage files as npy, npz, safetensors or csv"),
    "contract": ("aprtui.cli.contract", "validate the project's contracts and run their tests"),
    "demo": ("aprtui.cli.demo", "make a small model and two traces with a planted bug; open them"),
    "completion": ("aprtui.cli.completion", "print the completions for bash, zsh or fish"),
    "man": ("aprtui.cli.man", "print the manual page"),
    "config": ("aprtui.cli.config", "show and check the settings' file"),
}

EXIT_CODES = """\
Exit codes: 0 fine, 1 a difference, a culprit or something unmeasured, 2 usage, 3 a bad file,
4 the engine failed or the output cannot be written, 130 stopped (143 by SIGTERM, 129 by SIGHUP)."""

_FILES = re.compile(r"\b(A|B|DIR|FILE|MODEL|OUTPUT|PATHS?|PLAN|SOURCE)\b")


class Parser(argparse.ArgumentParser):
    """argparse's, which answers a wrong option with an error of ours: one line, or JSON."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(clean(message), hint=f"{self.prog} --help")


class _Help(argparse.RawDescriptionHelpFormatter):
    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        """An operand that says itself what may be left out (``[A] B``) is written once, so."""
        form = str(action.metavar or "")
        return form if "[" in form else super()._format_args(action, default_metavar)


@dataclass(frozen=True)
class Value:
    """What stands for an operand or after an option, and what a shell may complete it to."""

    name: str
    words: tuple[str, ...] = ()
    files: bool = False
    devices: bool = False  # the words are asked for when they are wanted
    several: bool = False  # of the words, with commas between
    form: str = ""  # of an operand: as a synopsis writes it


@dataclass(frozen=True)
class Option:
    flags: tuple[str, ...]
    help: str
    value: Value | None  # None: it takes none
    repeated: bool


@dataclass(frozen=True)
class Command:
    """``words`` are those that choose it: ``("contract", "run")``; none where a path is opened."""

    words: tuple[str, ...]
    line: str
    text: str
    epilog: str
    options: tuple[Option, ...]
    operands: tuple[tuple[Value, str], ...]  # with their help

    @property
    def name(self) -> str:
        return " ".join(self.words)

    @property
    def choices(self) -> tuple[str, ...]:
        return tuple(word for value, _ in self.operands for word in value.words)

    @property
    def files(self) -> bool:
        return any(value.files for value, _ in self.operands)


def parser_of(name: str) -> tuple[Parser, Any]:
    """The parser of a command and its module; ``""`` is opening paths."""
    module = importlib.import_module(COMMANDS[name][0] if name else "aprtui.cli.open_ui")
    parser = Parser(
        prog=f"aprtui {name}".rstrip(),
        description=module.__doc__,
        formatter_class=_Help,
        add_help=bool(name),
    )
    module.configure(parser)
    return parser, module


def every() -> tuple[Command, ...]:
    """Opening paths, then all commands, each before the commands below it."""
    found: list[Command] = []
    for name in ("", *COMMANDS):
        line = COMMANDS[name][1] if name else "open the terminal UI on it"
        found += _with_those_below((name,) if name else (), line, parser_of(name)[0])
    return tuple(found)


def _with_those_below(
    words: tuple[str, ...], line: str, parser: argparse.ArgumentParser
) -> Iterator[Command]:
    options: list[Option] = []
    operands: list[tuple[Value, str]] = []
    below: list[Command] = []
    for action in parser._actions:  # argparse has no other way to read a parser
        help_text = " ".join(((action.help or "") % vars(action)).split())
        if isinstance(action, argparse._SubParsersAction):
            lines = {choice.dest: choice.help or "" for choice in action._choices_actions}
            operands.append((Value("COMMAND", tuple(action.choices)), help_text))
            for name, one in action.choices.items():
                below += _with_those_below((*words, name), lines.get(name, ""), one)
        elif action.option_strings:
            value = None if action.nargs == 0 else _value(action)
            repeated = isinstance(action, argparse._AppendAction)
            options.append(Option(tuple(action.option_strings), help_text, value, repeated))
        else:
            operands.append((replace(_value(action), form=_form(action)), help_text))
    text, epilog = parser.description or line, parser.epilog or ""
    yield Command(words, line, text, epilog, tuple(options), tuple(operands))
    yield from below


def _form(action: argparse.Action) -> str:
    """How a synopsis writes an operand: ``[OTHER]``, ``FILE ...``."""
    name = str(action.metavar or action.dest.upper())
    if "[" in name:
        return name
    several = f"{name} ..." if action.nargs in ("*", "+") else name
    return f"[{several}]" if action.nargs in ("*", "?") else several


def _value(action: argparse.Action) -> Value:
    from aprtui.graph.vocabulary import STAGES

    name = str(action.metavar or action.dest.upper())
    if action.choices is not None:
        return Value(name, tuple(map(str, action.choices)))
    if action.dest == "device":
        return Value(name, devices=True)
    if action.dest in ("engine", "engines"):
        from aprtui.engine.adapters import available

        return Value(name, tuple(engine.name for engine in available()))
    if action.dest == "mistake":
        from aprtui.compare.mistakes.pages import pages

        return Value(name, tuple(pages()))
    if name.startswith("STAGES"):
        return Value(name, ("all", *(stage.name for stage in STAGES)), several=True)
    return Value(name, files=_FILES.search(name) is not None)
