"""Prompts that a file holds, or stdin: one text, or one a line."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

from aprtui.errors import BadFileError, UsageError
from aprtui.text import clean

__all__ = ["prompt_lines", "text_of"]

_MOST_BYTES = 16 << 20


def prompt_lines(name: str) -> list[str]:
    """The prompts of a file, one a line. Raises UsageError where there is none."""
    lines = text_of(name).replace("\r\n", "\n").split("\n")
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise UsageError(f"{clean(name)}: holds no prompt", hint="one prompt on each line")
    return prompts


def text_of(name: str) -> str:
    """What a file of UTF-8 text holds; ``-`` is stdin."""
    try:
        with nullcontext(sys.stdin.buffer) if name == "-" else Path(name).open("rb") as file:
            raw = file.read(_MOST_BYTES + 1)
        if len(raw) > _MOST_BYTES:
            raise BadFileError(name, f"a prompt of over {_MOST_BYTES:,} bytes is refused")
        return raw.decode("utf-8")
    except OSError as error:
        raise BadFileError(name, f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadFileError(name, f"is not UTF-8 text (byte {error.start:,})") from error
