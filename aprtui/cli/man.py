"""Print aprtui's manual page, written from the parsers.

  aprtui man | man -l -             reads it
  aprtui man > docs/aprtui.1        writes the copy anew that is installed

Pip puts the page into the environment's share/man, where `man aprtui` finds it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from aprtui import __version__
from aprtui.cli.commands import EXIT_CODES, Command, Option, every

__all__ = ["configure", "page", "run"]

_FILES = (
    ("$XDG_CONFIG_HOME/aprtui/config.toml", "theme and keys (~/.config); see aprtui config"),
    ("$XDG_STATE_HOME/aprtui", "sessions, logs, crash files (~/.local/state)"),
    ("$XDG_CACHE_HOME/aprtui", "what was copied, dumps that --import read (~/.cache)"),
)


def configure(parser: argparse.ArgumentParser) -> None:
    """It takes nothing."""


def run(args: argparse.Namespace) -> int:
    print(page(), end="")
    return 0


def page() -> str:
    """The page as roff, the same on every machine."""
    opening, *commands = every()
    lines = [
        f'.TH APRTUI 1 "" "aprtui {_roff(__version__)}" "User Commands"',
        *(".nh", ".ad l"),  # options are not to be broken
        *(".SH NAME", r"aprtui \- a terminal inspector for the forward pass of language models"),
        *(".SH SYNOPSIS", *_synopsis(opening)),
        *(line for command in commands for line in (".br", *_synopsis(command))),
        ".SH DESCRIPTION",
        "Without a command it opens the terminal UI on a model, a trace folder or a stage file,",
        "on two of them side by side, or on what is below this folder.",
        *_options(opening),
        *(".TP", r"\fB\-\-version\fR [\fB\-v\fR]"),
        r"the version; with \-v also which parts in C there are",
        ".SH COMMANDS",
        *(line for command in commands for line in _section(command)),
        *(".SH EXIT STATUS", *map(_roff, EXIT_CODES.splitlines())),
        ".SH FILES",
        *(line for name, text in _FILES for line in (".TP", rf"\fI{_roff(name)}\fR", _roff(text))),
    ]
    return "\n".join(lines) + "\n"


def _synopsis(command: Command) -> Iterator[str]:
    operands = " ".join(value.form or value.name for value, _ in command.operands)
    name = _roff(f"aprtui {command.name}".rstrip())
    yield rf"\fB{name}\fR [OPTION ...] {_roff(operands)}".rstrip()


def _section(command: Command) -> Iterator[str]:
    yield f".SS {_roff(command.name)}"
    yield from _paragraphs(command.text)
    for value, text in command.operands:
        words = f": {', '.join(value.words)}" if value.words else ""
        yield from (".TP", rf"\fI{_roff(value.name)}\fR", _roff(f"{text}{words}".lstrip(": ")))
    yield from _options(command)
    yield from _paragraphs(command.epilog)


def _options(command: Command) -> Iterator[str]:
    for option in command.options:
        yield from (".TP", _heading(option), _roff(option.help))


def _heading(option: Option) -> str:
    flags = ", ".join(rf"\fB{_roff(flag)}\fR" for flag in option.flags)
    if option.value is None:
        return flags
    value = option.value
    few = value.words and len(value.words) < 9
    return rf"{flags} \fI{_roff('|'.join(value.words) if few else value.name)}\fR"


def _paragraphs(text: str) -> Iterator[str]:
    """Text filled, and what is indented kept as it stands."""
    kept = False
    yield ".PP"
    for line in text.strip("\n").splitlines():
        if line.startswith("  ") != kept and line.strip():
            kept = not kept
            yield ".nf" if kept else ".fi"
        yield _roff(line) if line.strip() else ".PP"
    if kept:
        yield ".fi"


def _roff(text: str) -> str:
    text = text.replace("\\", r"\e").replace("-", r"\-").replace("~", r"\(ti").replace("^", r"\(ha")
    text = text.replace("`", r"\(ga")
    return rf"\&{text}" if text.startswith((".", "'")) else text
