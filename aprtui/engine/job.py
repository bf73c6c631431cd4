"""What a trace is asked to do, as one value that the command line, the UI and the worker share."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aprtui.errors import UsageError
from aprtui.text import clean

__all__ = ["DTYPES", "TraceJob", "default_directory", "device_names"]

DTYPES = ("float32", "bfloat16", "float16")
_DEVICE = re.compile(r"(cpu|mps|cuda)(:\d*)?")


@dataclass(frozen=True)
class TraceJob:
    """One traced forward pass. Exactly one of ``prompt`` and ``tokens`` is given.

    ``stages`` and ``layers`` are the texts of the command line (``all``, ``ffn_gate,ffn_up``,
    ``0..4``); they are resolved against the model when the trace is planned. ``engine`` is one of
    ``engine.adapters.available()``, ``engine_args`` its ``--engine-arg`` settings.
    """

    model: str
    directory: str = ""  # empty: default_directory(model, engine)
    prompt: str | None = None
    tokens: tuple[int, ...] | None = None
    stages: str = "all"
    layers: str = "all"
    device: str = "auto"
    dtype: str = "float32"
    logits: str = "last"
    overwrite: bool = False
    overrides: Mapping[str, str] = field(default_factory=dict)
    engine: str = "aprtui"
    engine_args: Mapping[str, str] = field(default_factory=dict)
    resident: bool = False  # the stored weights stay on the device for the next prompt

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> TraceJob:
        try:
            fields: dict[str, Any] = json.loads(text)
            if fields.get("tokens") is not None:
                fields["tokens"] = tuple(int(token) for token in fields["tokens"])
            return cls(**fields)
        except (ValueError, TypeError) as error:
            raise UsageError(f"the job cannot be read: {error}") from error


def default_directory(model: Path, engine: str = "aprtui") -> Path:
    """``<model's folder>/<model stem>-trace``; another engine's name stands before ``-trace``."""
    resolved = model.absolute()
    stem = resolved.name if resolved.is_dir() else resolved.stem
    return resolved.parent / (f"{stem}-trace" if engine == "aprtui" else f"{stem}-{engine}-trace")


def device_names(text: str) -> tuple[str, ...]:
    """What ``--device`` names: ``("auto",)``, ``("cuda",)``, ``("cuda:0", "cuda:1")``.

    Only the spelling is checked, not what this machine has. Raises UsageError.
    """
    names = tuple(part.strip().lower() for part in text.split(","))
    if names == ("auto",):
        return names
    if not all(map(_DEVICE.fullmatch, names)):
        raise UsageError(
            f"unknown device {clean(text)!r}", hint="cpu, cuda, cuda:N, cuda:0,cuda:1, mps or auto"
        )
    numbers = {int(name.partition(":")[2] or 0) for name in names if name.startswith("cuda")}
    if len(names) > 1 and len(numbers) < len(names):
        raise UsageError(
            f"--device {clean(text)!r} cannot be used together",
            hint="several devices are CUDA devices, each once: cuda:0,cuda:1",
        )
    return names
