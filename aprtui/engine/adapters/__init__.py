"""The engines that a trace may run on: ours, llama.cpp, Hugging Face transformers. No torch here.

A foreign engine is planned, captured, written and described by the same code as ours; an adapter
only runs its pass and hands over the stages.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from aprtui.engine.job import TraceJob
from aprtui.engine.processors import processors
from aprtui.errors import EngineError, UsageError
from aprtui.formats.tracedir import StageKey
from aprtui.graph import Absent
from aprtui.graph.ops import Add, Op, Product, Rope, Scores, SharedRope, Softmax
from aprtui.graph.recurrent import CausalConv, Columns, GatedNorm, Scan, Steps
from aprtui.model.open import Model
from aprtui.text import clean

if TYPE_CHECKING:
    import torch

    from aprtui.engine.plan import Plan

__all__ = ["EngineChoice", "LlamaSettings", "Put", "Ran", "available", "prepare", "run", "suits"]


@dataclass(frozen=True)
class EngineChoice:
    """One engine as it can be offered: ``name`` is what ``--engine`` takes."""

    name: str
    installed: bool
    how_to_install: str
    title: str = ""
    version: str = ""


@dataclass(frozen=True)
class _Foreign:
    module: str  # what runs it
    package: str  # what must be importable
    distribution: str
    title: str
    formats: tuple[str, ...]  # of model files
    how_to_install: str


_FOREIGN = {
    "llamacpp": _Foreign(
        "aprtui.engine.adapters.llamacpp", "llama_cpp", "llama-cpp-python", "llama.cpp",
        ("gguf",), "pip install 'aprtui[llamacpp]'",
    ),
    "hf": _Foreign(
        "aprtui.engine.adapters.huggingface", "transformers", "transformers",
        "Hugging Face transformers", ("safetensors",), "pip install 'aprtui[hf]'",
    ),
}  # fmt: skip


def available() -> tuple[EngineChoice, ...]:
    """Every engine, ours first; nothing is imported to find out."""
    from aprtui import __version__

    found = [EngineChoice("aprtui", True, "", "aprtui's own", __version__)]
    for name, engine in _FOREIGN.items():
        version = _version(engine)
        found.append(
            EngineChoice(name, bool(version), engine.how_to_install, engine.title, version)
        )
    return tuple(found)


def _version(engine: _Foreign) -> str:
    """The installed version; empty when it is not there."""
    if importlib.util.find_spec(engine.package) is None:
        return ""
    try:
        return importlib.metadata.version(engine.distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown version"


def suits(name: str, model: Model) -> str:
    """Why the engine cannot read this model; empty when it can."""
    engine = _FOREIGN.get(name)
    if engine is None or model.file.format in engine.formats:
        return ""
    kinds = {"gguf": "GGUF files", "safetensors": "Hugging Face folders"}
    reads = " and ".join(kinds[kind] for kind in engine.formats)
    return f"{engine.title} reads {reads}, and this model is {clean(model.file.format)}"


# -- planning --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LlamaSettings:
    """How llama.cpp computes. The defaults are those that can be compared (docs/numerics.md 1)."""

    kv: str = "f32"
    flash: bool = False
    threads: int = 0  # 0: as many as this process may use
    gpu_layers: int = 0

    @classmethod
    def parse(cls, arguments: Mapping[str, str]) -> LlamaSettings:
        """From ``--engine-arg`` texts. Raises UsageError."""
        values: dict[str, Any] = {}
        choices: dict[str, dict[str, Any]] = {
            "kv": {"f32": "f32", "f16": "f16"},
            "flash": {"on": True, "off": False},
        }
        for key, text in arguments.items():
            if key in choices:
                values[key] = _choice(key, text, choices[key])
            elif key in ("threads", "gpu_layers"):
                values[key] = _number(key, text)
            else:
                raise UsageError(
                    f"llamacpp knows no --engine-arg {clean(key)}",
                    hint="kv=f32|f16, flash=on|off, threads=N, gpu_layers=N",
                )
        return cls(**{**values, "threads": values.get("threads") or processors()})


def _choice(key: str, text: str, valid: Mapping[str, Any]) -> Any:
    if text.lower() not in valid:
        raise UsageError(f"--engine-arg {key}={clean(text)}", hint=f"one of {', '.join(valid)}")
    return valid[text.lower()]


def _number(key: str, text: str) -> int:
    if not text.isdecimal() or int(text) > 4096:
        raise UsageError(f"--engine-arg {key}={clean(text)}", hint="a number from 0 to 4096")
    return int(text)


def prepare(job: TraceJob, model: Model) -> tuple[TraceJob, tuple[Absent, ...]]:
    """The job as its engine will run it, and the stages that this engine does not compute.

    Raises UsageError for an unknown or missing engine, a model it cannot read, and settings that
    it does not have.
    """
    if job.engine not in _FOREIGN:
        if job.engine != "aprtui":
            names = ", ".join(choice.name for choice in available())
            raise UsageError(f"unknown engine {clean(job.engine)!r}", hint=f"one of {names}")
        return _without_arguments(job), ()
    engine = _FOREIGN[job.engine]
    if not _version(engine):
        raise UsageError(f"{engine.title} is not installed", hint=engine.how_to_install)
    if why := suits(job.engine, model):
        raise UsageError(why, hint="--engine aprtui reads it")
    if job.engine == "llamacpp":
        return _llamacpp(job, model)
    return _without_arguments(job), _added_at_once(model)


def _added_at_once(model: Model) -> tuple[Absent, ...]:
    """Sums between two branches of one hidden, which transformers adds together."""
    readers: dict[StageKey, list[Op]] = {}
    for node in model.graph:
        for key in node.inputs:
            readers.setdefault(key, []).append(node.op)
    sums = (
        node.key
        for node in model.graph
        if isinstance(node.op, Add) and all(isinstance(op, Add) for op in readers.get(node.key, ()))
    )
    together = dict.fromkeys(key.stage for key in sums if key in readers)
    why = "transformers adds both branches at once"
    return tuple(Absent(stage, why) for stage in together)


def _without_arguments(job: TraceJob) -> TraceJob:
    if job.engine_args:
        raise UsageError(
            f"the engine {job.engine} takes no --engine-arg", hint="--dtype and --device set it up"
        )
    return job


def _llamacpp(job: TraceJob, model: Model) -> tuple[TraceJob, tuple[Absent, ...]]:
    settings = LlamaSettings.parse(job.engine_args)
    if job.dtype != "float32":
        raise UsageError(
            f"llama.cpp computes as it does: --dtype {clean(job.dtype)} cannot be asked of it",
            hint="--engine-arg kv=f16 chooses its KV cache",
        )
    if job.device not in ("auto", "cpu"):
        raise UsageError(
            f"--device {clean(job.device)} cannot be asked of llama.cpp",
            hint="--engine-arg gpu_layers=N puts N layers on the GPU",
        )
    if job.overrides:
        raise UsageError("llama.cpp reads the file as it is: --set does not reach it")
    fused = "flash attention computes it fused, without keeping it"
    inside = (node.key.stage for node in model.graph if isinstance(node.op, Scores | Softmax))
    absent = (
        tuple(Absent(stage, fused) for stage in dict.fromkeys(inside)) if settings.flash else ()
    )
    return dataclasses.replace(job, device="cpu"), (*absent, *_not_made(model))


def _not_made(model: Model) -> tuple[Absent, ...]:
    """Stages that llama.cpp has no node for, or one without a name: gated norms, steps, states; and
    queries are multiplied by the weights that would make keys of a latent."""
    scans = {node.key.layer for node in model.graph if isinstance(node.op, Scan)}
    unnamed = (
        node.key.stage
        for node in model.graph
        if (isinstance(node.op, GatedNorm) and not node.op.before)
        or isinstance(node.op, Steps | Columns)
        or (isinstance(node.op, Scan) and node.op.last)
        or (isinstance(node.op, CausalConv) and node.key.layer in scans)
    )
    expanded = any(isinstance(node.op, SharedRope) for node in model.graph) and any(
        role.expert is not None and isinstance(node.op, Product)
        for node in model.graph
        for role in node.op.weights
    )
    absorbed = (
        node.key.stage
        for node in model.graph
        if expanded
        and (
            isinstance(node.op, Rope | SharedRope)
            or (isinstance(node.op, Product) and len(node.op.parts) > 1)
        )
    )
    return (
        *(Absent(stage, "llama.cpp gives it no name") for stage in dict.fromkeys(unnamed)),
        *(
            Absent(stage, "llama.cpp multiplies queries by the weights that make keys of a latent")
            for stage in dict.fromkeys(absorbed)
        ),
    )


# -- running ---------------------------------------------------------------------------------------


class Put(Protocol):
    """Takes one stage; ``engine.capture.Capture.put`` is one."""

    def __call__(self, key: StageKey, value: torch.Tensor, /) -> None: ...


@dataclass(frozen=True)
class Ran:
    """What a pass leaves behind beside its stages: logits [V] or [T,V], the manifest's engine."""

    logits: torch.Tensor
    engine: Mapping[str, Any]
    notes: tuple[str, ...] = field(default=())


def run(plan: Plan, device: torch.device, put: Put) -> Ran:
    """Run a planned trace on its foreign engine. Raises EngineError with the engine's own words."""
    engine = _FOREIGN[plan.job.engine]
    module = importlib.import_module(engine.module)
    try:
        ran: Ran = module.run(plan, device, put)
    except ImportError as error:
        raise EngineError(
            f"{engine.title} is installed and does not load: {clean(str(error), 300)}",
            hint=engine.how_to_install,
        ) from error
    return ran
