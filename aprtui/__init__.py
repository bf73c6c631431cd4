"""aprtui: an inspector for the forward pass of language models, as a program and as a library.

    import aprtui

    model = aprtui.open_model("model.gguf")
    found = aprtui.trace(model, prompt="The capital of France is", directory="trace")
    gate = found["layer-3/ffn_gate"]  # float32 [token, ffn], read-only; gate.axes names them
    print(aprtui.bisect("suspect", a=found, model=model))  # which stage computes wrongly, and how

``open_trace`` reads what any program captured, ``import_trace`` other
tools' dumps; ``diff`` compares two traces, ``diff_models`` two
models' weights; ``CaptureWriter`` and ``hooks`` write a trace from a runtime of your own. What can
go wrong is an ``AprtuiError``. Nothing heavy is imported before it is used. Guide: docs/api.md.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aprtui.api import (
        bisect,
        diff,
        diff_many,
        diff_models,
        import_trace,
        open_trace,
        trace,
        trace_batch,
    )
    from aprtui.captures.imported import ImportedTrace
    from aprtui.compare.bisection import Bisection
    from aprtui.compare.diff import Comparison
    from aprtui.compare.matrix import Matrix
    from aprtui.compare.weight_results import ModelComparison
    from aprtui.engine.hooks import hooks
    from aprtui.errors import (
        AprtuiError,
        BadFileError,
        EngineError,
        MissingStageError,
        UsageError,
    )
    from aprtui.formats.stagearray import StageArray
    from aprtui.formats.tracedir import StageKey, TraceDir
    from aprtui.model.open import Model, open_model
    from aprtui.writer import CaptureWriter

__all__ = [
    "AprtuiError",
    "BadFileError",
    "Bisection",
    "CaptureWriter",
    "Comparison",
    "EngineError",
    "ImportedTrace",
    "Matrix",
    "MissingStageError",
    "Model",
    "ModelComparison",
    "StageArray",
    "StageKey",
    "TraceDir",
    "UsageError",
    "__version__",
    "bisect",
    "diff",
    "diff_many",
    "diff_models",
    "hooks",
    "import_trace",
    "open_model",
    "open_trace",
    "trace",
    "trace_batch",
]

__version__ = "0.1.0"

# Where the public names are; loaded when first used, so that `import aprtui` costs next to nothing.
_HOMES = {
    "aprtui.api": (
        "bisect", "diff", "diff_many", "diff_models", "import_trace", "open_trace", "trace",
        "trace_batch",
    ),
    "aprtui.captures.imported": ("ImportedTrace",),
    "aprtui.compare.bisection": ("Bisection",),
    "aprtui.compare.diff": ("Comparison",),
    "aprtui.compare.matrix": ("Matrix",),
    "aprtui.compare.weight_results": ("ModelComparison",),
    "aprtui.engine.hooks": ("hooks",),
    "aprtui.errors": (
        "AprtuiError", "BadFileError", "EngineError", "MissingStageError", "UsageError",
    ),
    "aprtui.formats.stagearray": ("StageArray",),
    "aprtui.formats.tracedir": ("StageKey", "TraceDir"),
    "aprtui.model.open": ("Model", "open_model"),
    "aprtui.writer": ("CaptureWriter",),
}  # fmt: skip
_LAZY = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(importlib.import_module(_LAZY[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
