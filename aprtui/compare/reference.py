"""Which of two traces names the model that says what is right."""

from __future__ import annotations

import os
from pathlib import Path

from aprtui.errors import UsageError
from aprtui.formats.tracedir import TraceDir
from aprtui.text import clean

__all__ = ["find_model", "model_trace", "named_adapter", "named_model"]


def named_model(trace: TraceDir) -> Path | None:
    """The model file that the trace names, by manifest or plan, where it is still there.

    A path that does not begin at the root is one from where the trace was made: from here, or from
    a folder above the trace.
    """
    path = trace.stated.get("model", {}).get("path")
    if not isinstance(path, str) or not path:
        return None
    above = (folder / path for folder in trace.root.absolute().parents)
    # Not Path.exists, which raises for a name that no file can have: manifests are untrusted.
    return next((p for p in (Path(path), *above) if os.path.exists(p)), None)  # noqa: PTH110


def named_adapter(trace: TraceDir, model: Path) -> Path | None:
    """The adapter that was laid on the weights of the model that the trace names, where ``model``
    is that one. Raises UsageError where the adapter is gone."""
    said = trace.stated.get("model", {}).get("adapter")
    path = said.get("path") if isinstance(said, dict) else None
    named = named_model(trace)
    if not isinstance(path, str) or named is None or not os.path.exists(model):  # noqa: PTH110
        return None
    if not os.path.samefile(named, model):  # noqa: PTH121
        return None
    if not os.path.exists(path):  # noqa: PTH110
        raise UsageError(
            f"the adapter {clean(path, 300)} that the trace was made with is gone",
            hint="--adapter PATH says where it is",
        )
    return Path(path)


def model_trace(a: TraceDir | None, b: TraceDir) -> TraceDir:
    """The trace whose model B's stages are to be replayed with, where none is named.

    B's own: it says what B was asked to compute. But when both models have the same header and
    index, their files can differ in the weights alone, and A, the reference, has the right ones:
    damaged weights would otherwise be found to be computed as they are.
    """
    if a is None or named_model(a) is None:
        return b
    digests = [trace.stated.get("model", {}).get("digest") for trace in (a, b)]
    return a if digests[0] is not None and digests[0] == digests[1] else b


def find_model(a: TraceDir | None, b: TraceDir) -> tuple[Path, str]:
    """The model to replay B with where none is named, and what names it: "B's manifest", or the
    plan of a trace that has none. Raises UsageError where nothing names one that is there.
    """
    trace = model_trace(a, b)
    path = named_model(trace)
    if path is None:
        raise UsageError("the model is needed to replay a stage", hint="--model MODEL")
    says = "plan" if trace.manifest is None else "manifest"
    return path, f"{'A' if trace is a else 'B'}'s {says}"
