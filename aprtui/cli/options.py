"""Options that several commands share, and their values read."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from aprtui.errors import UsageError
from aprtui.text import clean

__all__ = [
    "add_adapter",
    "add_choice",
    "add_overrides",
    "add_replay_prompt",
    "parse_overrides",
    "parse_tokens",
    "whole",
]

_MOST = 1 << 20  # of tokens and of steps


def add_choice(parser: argparse.ArgumentParser) -> None:
    """``--stages`` and ``--layers`` of captures that are looked at."""
    parser.add_argument(
        "--stages", "--stage", default="all", metavar="STAGES|all",
        help="stages, with commas between; 'ffn_*' is all that begin so",
    )  # fmt: skip
    parser.add_argument(
        "--layers", "--layer", default="all", metavar="START..END|N|all",
        help="layers: 3, 0,3,7 or 3..6; END is not included",
    )  # fmt: skip


def add_adapter(parser: argparse._ActionsContainer) -> None:
    """``--adapter PATH``."""
    parser.add_argument(
        "--adapter", metavar="PATH",
        help="a LoRA adapter to lay on the model's weights: a peft folder, or a GGUF file",
    )  # fmt: skip


def add_overrides(parser: argparse._ActionsContainer) -> None:
    """``--set KEY=VALUE``, as ``args.overrides``."""
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE",
        help="say what the model's file does not say, or says wrongly; may be repeated",
    )  # fmt: skip


def add_replay_prompt(parser: argparse.ArgumentParser) -> None:
    """``--tokens`` or ``--prompt`` of a capture that does not say what it was of."""
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--tokens", metavar="1,2,3", help="the token ids, where B does not say")
    prompt.add_argument(
        "-p", "--prompt", metavar="TEXT", help="the prompt that the tokens came from"
    )


def parse_overrides(texts: Sequence[str], option: str = "--set") -> dict[str, str]:
    """The ``KEY=VALUE`` texts of an option. Raises UsageError for one without a key or =."""
    overrides: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"{option} {clean(text)}: no = in it", hint=f"{option} KEY=VALUE")
        overrides[key.strip()] = value.strip()
    return overrides


def parse_tokens(text: str | None) -> tuple[int, ...] | None:
    """The token ids that ``--tokens`` gives, None when it is not given. Raises UsageError."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.replace(",", " ").split())
    except ValueError:
        raise UsageError(f"--tokens {clean(text, 60)} cannot be read", hint="1,2,3") from None


def whole(text: str) -> int:
    """A number of tokens or steps, from 1 on; for argparse, which says what cannot be read."""
    if not text.isdecimal() or not 0 < int(text) <= _MOST:
        raise argparse.ArgumentTypeError(f"{clean(text, 20)!r} is no number from 1 to {_MOST:,}")
    return int(text)
