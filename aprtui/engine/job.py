"""What a trace is asked to do, as one value that the command line, the UI and the worker share."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aprtui.errors import UsageError
from aprtui.text import clean

__all__ = ["DTYPES", "MAX_NAME_BYTES", "TraceJob", "default_directory", "device_names"]

MAX_NAME_BYTES = 255  # of one part of a path, nearly everywhere
DTYPES = ("float32", "bfloat16", "float16")
_DEVICE = re.compile(r"(cpu|mps|cuda)(:\d*)?")
_KINDS: Mapping[str, Callable[[Any], bool]] = {  # what a field of each declared type may hold
    "str": lambda value: isinstance(value, str) and "\0" not in value,  # paths among them
    "bool": lambda value: isinstance(value, bool),
    "int": lambda value: type(value) is int and value >= 0,
    "tuple[str, ...]": lambda value: _all(value, tuple, str),
    "str | None": lambda value: value is None or isinstance(value, str),
    "tuple[int, ...] | None": lambda value: value is None or _all(value, tuple, int),
    "Mapping[str, str]": lambda value: _all(value, dict, str) and _all(value.values(), None, str),
}


@dataclass(frozen=True)
class TraceJob:
    """One traced forward pass. Exactly one of ``prompt`` and ``tokens`` is given.

    ``stages`` and ``layers`` are the texts of the command line (``all``, ``ffn_gate,ffn_up``,
    ``0..4``); they are resolved against the model when the trace is planned. ``engine`` is one of
    ``engine.adapters.available()``, ``engine_args`` its ``--engine-arg`` settings.

    ``chunk``: the prompt goes through the model in pieces of so many tokens; ``steps``: so many
    greedy tokens are decoded behind it; ``kv``: what the cache of keys and values holds; ``batch``:
    the prompts that run together with this one, itself among them.
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
    adapter: str = ""  # a LoRA that is laid on the model's weights
    resident: bool = False  # the stored weights stay on the device for the next prompt
    resume: bool = False  # goes on with the trace that lies in the directory
    steps: int = 0
    chunk: int = 0
    kv: str = ""
    batch: tuple[str, ...] = ()

    @property
    def in_passes(self) -> bool:
        """Whether rows come pass by pass, with a cache, and not in one prefill without."""
        return bool(self.steps or self.chunk or self.kv or self.batch)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> TraceJob:
        try:
            return cls.from_fields(json.loads(text))
        except ValueError as error:
            raise UsageError(f"the job cannot be read: {clean(str(error))}") from error

    @classmethod
    def from_fields(cls, fields: Any) -> TraceJob:
        """The job of ``dataclasses.asdict``. Raises UsageError for what is none: it may come from
        a file."""
        kinds = {f.name: _KINDS[str(f.type)] for f in dataclasses.fields(cls)}
        if not isinstance(fields, dict) or not fields.keys() <= kinds.keys():
            raise UsageError("the job cannot be read: it has other fields than a job has")
        for name in ("tokens", "batch"):
            if isinstance(fields.get(name), list):
                fields = {**fields, name: tuple(fields[name])}
        try:
            job = cls(**fields)
        except TypeError as error:
            raise UsageError(f"the job cannot be read: {clean(str(error))}") from error
        wrong = [name for name, fits in kinds.items() if not fits(getattr(job, name))]
        if wrong:
            raise UsageError(f"the job cannot be read: its {wrong[0]} is of another kind")
        return job


def _all(items: Any, kind: type | None, each: type) -> bool:
    """Whether a collection (of ``kind``) holds nothing but ``each``."""
    return (kind is None or isinstance(items, kind)) and all(type(item) is each for item in items)


def default_directory(model: Path, engine: str = "aprtui") -> Path:
    """``<model's folder>/<model stem>-trace``; another engine's name stands before ``-trace``.

    Of a name that is too long for the addition the end is left out.
    """
    resolved = model.absolute()
    stem = resolved.name if resolved.is_dir() else resolved.stem
    end = "-trace" if engine == "aprtui" else f"-{engine}-trace"
    kept = os.fsencode(stem)[: MAX_NAME_BYTES - len(os.fsencode(end))]
    return resolved.parent / (kept.decode(errors="ignore") + end)


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
