"""aprtui: a terminal inspector for the forward pass of language models.

    from aprtui import CaptureWriter, hooks

write a trace from any program (``aprtui.writer``) and from any PyTorch model (``engine.hooks``).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aprtui.engine.hooks import hooks
    from aprtui.writer import CaptureWriter

__all__ = ["CaptureWriter", "__version__", "hooks"]

__version__ = "0.1.0"

# Public name -> where it is; loaded when first used, so that `import aprtui` stays cheap.
_LAZY = {"CaptureWriter": "aprtui.writer", "hooks": "aprtui.engine.hooks"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
