"""What callers of the public functions give: models and captures as paths or open already, tokens
as text or ids, choices in words or as lists."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from aprtui.compare.opening import both_captures, read_capture, unshaped
from aprtui.errors import UsageError
from aprtui.formats.perop import is_per_op_side
from aprtui.formats.tracedir import TraceDir

if TYPE_CHECKING:
    from aprtui.graph import Graph
    from aprtui.model.open import Model

__all__ = [
    "AnyPath",
    "Layers",
    "Stages",
    "both_of",
    "given_ids",
    "graph_of",
    "ids_of",
    "open_given",
    "read_side",
    "refuse_both",
    "suspect_of",
    "words",
]

AnyPath = str | os.PathLike[str]
Stages = str | Iterable[str]
Layers = str | int | Iterable[int]


def open_given(
    model: AnyPath | Model,
    overrides: Mapping[str, str] | None = None,
    adapter: AnyPath | None = None,
) -> Model:
    from aprtui.model.open import Model, open_model

    if not isinstance(model, Model):
        return open_model(
            Path(model), overrides, adapter=None if adapter is None else Path(adapter)
        )
    if overrides or adapter is not None:
        said = "overrides are" if overrides else "an adapter is"
        raise UsageError(f"{said} said when a model is opened: this one is open already")
    return model


def graph_of(model: AnyPath | Model | None) -> Graph | None:
    return None if model is None else open_given(model).graph


def both_of(a: AnyPath | TraceDir, b: AnyPath | TraceDir | None) -> tuple[TraceDir, TraceDir]:
    """Both captures as they lie."""
    if not isinstance(a, TraceDir) and not isinstance(b, TraceDir):
        return both_captures(Path(a), None if b is None else Path(b))
    if b is None:
        raise UsageError("two traces are needed", hint="aprtui.diff(a, b)")
    return read_side(a), read_side(b)


def suspect_of(
    b: AnyPath | TraceDir, a: AnyPath | TraceDir | None
) -> tuple[TraceDir, TraceDir | None]:
    """B, and A where there is one; without the shapes that were inferred: a model says them."""
    if a is None and not isinstance(b, TraceDir) and is_per_op_side(Path(b) / "cpu"):
        cpu, gpu = both_captures(Path(b))
        return gpu, cpu
    return unshaped(read_side(b)), None if a is None else unshaped(read_side(a))


def read_side(side: AnyPath | TraceDir) -> TraceDir:
    return side if isinstance(side, TraceDir) else read_capture(Path(side))


def refuse_both(prompt: str | None, tokens: Iterable[int] | None) -> None:
    """Raises UsageError before anything is opened."""
    if prompt is not None and tokens is not None:
        raise UsageError("a prompt and tokens were both given", hint="give one of them")


def given_ids(
    model: Model, prompt: str | None, tokens: Iterable[int] | None
) -> tuple[int, ...] | None:
    """The token ids that the caller says, as they are or as text; None where neither is said."""
    return ids_of(tokens) if prompt is None else tuple(model.tokenizer.encode(prompt))


def ids_of(tokens: Iterable[int] | None) -> tuple[int, ...] | None:
    try:
        return None if tokens is None else tuple(map(operator.index, tokens))
    except TypeError:
        raise UsageError("tokens are whole numbers", hint="tokens=[1, 2, 3]") from None


def words(chosen: str | int | Iterable[str | int]) -> str:
    """Stages or layers as the command line writes them."""
    return str(chosen) if isinstance(chosen, str | int) else ",".join(map(str, chosen))
