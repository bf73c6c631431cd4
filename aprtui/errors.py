"""The errors a user can meet, each with what to do about it and an exit code.

    AprtuiError                  exit code 4
    +-- UsageError               2   asked for something that cannot be asked for
    |   +-- MissingStageError    2   a trace does not hold this stage; a KeyError, too
    +-- BadFileError             3   a file is damaged, missing or not what it claims to be
    |   +-- UnknownFamilyError   3   a model of an architecture that no family here computes
    +-- EngineError              4   the pass itself failed: memory, disk, device

A caller writes::

    try:
        found = aprtui.bisect("suspect", model="model.gguf")
    except aprtui.BadFileError as error:
        print(f"{error.path} cannot be used: {error}")
    except aprtui.AprtuiError as error:  # whatever else can go wrong
        sys.exit(f"aprtui: {error}")

``error.message`` says what and where, ``error.hint`` what to do; ``str(error)`` is both. Anything
else that comes out of this package is a bug of ours.
"""

from __future__ import annotations

from pathlib import Path

from aprtui.text import clean

__all__ = [
    "AprtuiError",
    "BadFileError",
    "EngineError",
    "MissingStageError",
    "UnknownFamilyError",
    "UsageError",
]


class AprtuiError(Exception):
    """What went wrong, where, and (``hint``) what to do about it; one line, already clean text."""

    exit_code = 4
    told = False  # whether an event has said it already

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(AprtuiError):
    """The request itself is wrong: an unknown stage, a layer outside the model, no such device."""

    exit_code = 2


class MissingStageError(UsageError, KeyError):
    """A trace does not hold the stage; the message says why, or what is there instead."""


class BadFileError(AprtuiError):
    """A file is damaged, missing, or not what it claims to be."""

    exit_code = 3

    def __init__(self, path: Path | str, message: str, *, hint: str = "") -> None:
        super().__init__(f"{clean(str(path))}: {message}", hint=hint)
        self.path = Path(path)


class UnknownFamilyError(BadFileError):
    """A model of an architecture that no family here computes."""


class EngineError(AprtuiError):
    """The pass failed: out of memory, disk full, the device gave up."""

    exit_code = 4
