"""What the Tokens pane shows: the likeliest tokens of each position, and where they come from."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aprtui.child import command_of
from aprtui.errors import UsageError
from aprtui.formats.maps import check_maps
from aprtui.formats.tracedir import StageRecord, TraceDir
from aprtui.text import clean
from aprtui.tui.client import Child, objects_in

__all__ = ["LENS", "Guess", "Lens", "ask_lens", "model_of", "of_logits", "read_lens"]

TOP = 8
MOST_POSITIONS = 64


@dataclass(frozen=True)
class Guess:
    """One token with its probability; ``text`` is clean."""

    id: int
    text: str
    probability: float


@dataclass(frozen=True)
class Lens:
    """The likeliest tokens of each position from ``first`` on; none where it was not finite.

    ``asked``: of the token that was asked about, its rank (from 1) and its probability at each.
    """

    first: int
    rows: tuple[tuple[Guess, ...], ...]
    asked: tuple[tuple[int, float] | None, ...] = ()


def model_of(trace: TraceDir, given: str) -> Path:
    """The model to read tokens with: ``given``, else the trace's, when it is still the same.

    Raises UsageError that says what to do, BadFileError for a file that is no model.
    """
    from aprtui.compare.reference import named_adapter, named_model
    from aprtui.model.open import read_model_file

    hint = "o names the model here; aprtui TRACE --model MODEL names it at the start"
    if given:
        return Path(given).expanduser()
    named = trace.stated.get("model", {})
    path = named.get("path")
    if not isinstance(path, str) or not path:
        raise UsageError("no manifest and no plan says which model this was", hint=hint)
    found = named_model(trace)
    if found is None:
        whose = "manifest" if trace.manifest is not None else "plan"
        raise UsageError(f"the {whose}'s model is not there: {clean(path, 200)}", hint=hint)
    file = read_model_file(found, adapter=named_adapter(trace, found))
    if named.get("digest") != f"sha256:{file.digest}":
        raise UsageError(f"{clean(path, 200)} has changed since the trace", hint=hint)
    return found


def of_logits(record: StageRecord, model: Path | None) -> Lens:
    """The lens of lm_head itself, [V] or [T, V]: a softmax; texts where there is a model.

    Raises BadFileError for a damaged file or model.
    """
    from aprtui.model.open import open_model

    values = record.values()
    shape = record.shape or (values.size,)
    table = values.reshape(-1, shape[-1])
    first = max(0, len(table) - MOST_POSITIONS)
    names = open_model(model).vocabulary if model is not None else None
    rows: list[tuple[Guess, ...]] = []
    for logits in table[first:]:
        wide = np.asarray(logits, dtype=np.float64)
        if not np.isfinite(wide).all():
            rows.append(())
            continue
        weights = np.exp(wide - wide.max())
        ids = np.argsort(-wide, kind="stable")[:TOP]
        rows.append(tuple(
            Guess(int(i), clean(names.text_of(int(i)), 40) if names else "",
                  float(weights[i] / weights.sum()))
            for i in ids
        ))  # fmt: skip
    check_maps(values)
    return Lens(first, tuple(rows))


LENS = command_of("aprtui.engine.lens")
Tell = Callable[[Path, "Lens | None", str, str], object]  # a file, its lens, or why and what to do


async def ask_lens(
    command: Sequence[str], model: Path, adapter: Path | None, files: Sequence[Path], tell: Tell,
    token: int | None = None,
) -> None:  # fmt: skip
    """Have the engine read these files, the first one soon; ``tell`` is told file by file.

    What is wrong with none of them alone is told of the first.
    """
    places = {str(path): path for path in files}
    said_why = False

    def hear(lines: tuple[bytes, ...]) -> None:
        nonlocal said_why
        for said in objects_in(lines):
            lens, place = read_lens(said), places.get(str(said.get("file")))
            if lens is not None and place is not None:
                tell(place, lens, "", "")
            elif said.get("event") == "error":
                said_why = True
                why, hint = clean(str(said.get("message"))), clean(str(said.get("hint")))
                tell(place or files[0], None, why, hint)

    laid = () if adapter is None else ("--adapter", str(adapter))
    about = () if token is None else ("--token", str(token))
    arguments = (
        "--parent", str(os.getpid()), "--model", str(model), *laid, *about, *map(str, files)
    )  # fmt: skip
    ended = await Child(command).run(arguments, hear)
    if ended.exit_code and not said_why:
        last = (ended.log_tail().splitlines() or [""])[-1]
        tell(files[0], None, f"the engine ended by itself ({ended.exit_code}) {last}".rstrip(), "")


def read_lens(said: Mapping[str, Any]) -> Lens | None:
    """A line of the engine's child; None when it is not one."""
    try:
        rows = tuple(
            tuple(Guess(int(i), clean(str(text), 40), float(p)) for i, text, p in row)
            for row in said["top"]
        )
        asked = tuple(None if each is None else (int(each[0]), float(each[1]))
                      for each in said.get("asked", ()))  # fmt: skip
        return Lens(int(said["first"]), rows, asked)
    except (KeyError, TypeError, ValueError):
        return None
