"""The engines that a trace may run on: ours, llama.cpp, Hugging Face transformers. No torch here.

A foreign engine is planned, captured, written and described by the same code as ours; an adapter
only runs its pass and hands over the stages.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from aprtui.engine.job import TraceJob
from aprtui.engine.processors import processors
from aprtui.engine.stretches import KV_TYPES
from aprtui.errors import EngineError, UsageError
from aprtui.formats.tracedir import StageKey
from aprtui.graph import Absent, Graph
from aprtui.graph.altup import Modes, Outliers, StreamProduct, Streams
from aprtui.graph.indexer import ChooseKeys, IndexScores
from aprtui.graph.ops import (
    Activate,
    Norm,
    Product,
    Rope,
    Scores,
    SharedKeys,
    SharedRope,
    Softmax,
    Softplus,
)
from aprtui.graph.recurrent import (
    ChannelScan,
    GatedNorm,
    Scan,
    Steps,
)
from aprtui.model.open import Model
from aprtui.text import clean

if TYPE_CHECKING:
    import torch

    from aprtui.engine.passes import Piece
    from aprtui.engine.plan import Plan
    from aprtui.engine.stacking import Stack

__all__ = [
    "EngineChoice",
    "LlamaSettings",
    "Put",
    "Ran",
    "Running",
    "available",
    "passes",
    "prepare",
    "run",
    "suits",
]


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
            "kv": {kind: kind for kind in KV_TYPES},
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
                    hint=f"kv={'|'.join(KV_TYPES)}, flash=on, threads=N, gpu_layers=N, nodes=on",
                )
        if values.get("kv") in ("q8_0", "q4_0") and not values.get("flash"):
            raise UsageError(
                f"llama.cpp keeps values in {values['kv']} only where its attention is fused",
                hint="--engine-arg flash=on",
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
    _check_adapter(job)
    if job.engine == "llamacpp":
        return _llamacpp(job, model)
    _check_hf_passes(job)
    return _without_arguments(job), ()


def _check_hf_passes(job: TraceJob) -> None:
    """Raises UsageError for passes that transformers does not make by itself."""
    kept = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}[job.dtype]
    if job.kv not in ("", kept):
        raise UsageError(
            f"transformers' cache holds what it computes in: {kept}, not {clean(job.kv)}",
            hint="--dtype bfloat16 or float16 says both",
        )
    if job.batch and job.chunk:
        raise UsageError(
            "transformers runs a batch of prompts in one prefill", hint="--batch without --chunk"
        )


def _check_adapter(job: TraceJob) -> None:
    """Raises UsageError where an adapter cannot be laid on this engine's weights."""
    if job.adapter and job.engine == "llamacpp":
        raise UsageError(
            "--adapter does not reach llama.cpp: with one its pass has other nodes",
            hint="llama-export-lora makes one GGUF of the model and the adapter",
        )
    if job.adapter and importlib.util.find_spec("peft") is None:
        raise UsageError(
            "transformers needs peft to lay an adapter on a model", hint="pip install peft"
        )


def _without_arguments(job: TraceJob) -> TraceJob:
    if job.engine_args:
        raise UsageError(
            f"the engine {job.engine} takes no --engine-arg", hint="--dtype and --device set it up"
        )
    return job


def _llamacpp(job: TraceJob, model: Model) -> tuple[TraceJob, tuple[Absent, ...]]:
    if job.kv and job.engine_args.get("kv", job.kv) != job.kv:
        raise UsageError(f"--kv {job.kv} and another --engine-arg kv", hint="give one of them")
    if job.kv:
        job = dataclasses.replace(job, engine_args={**job.engine_args, "kv": job.kv})
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
    if job.batch and any(node.timeless for node in model.graph):
        raise UsageError(
            "llama.cpp computes sequences of several lengths in several passes where layers have a "
            "state: their rows are not told apart here",
            hint="leave --batch out, or --engine aprtui",
        )
    fused = "flash attention computes it fused, without keeping it"
    inside = (node.key.stage for node in model.graph if isinstance(node.op, Scores | Softmax))
    absent = (
        tuple(Absent(stage, fused) for stage in dict.fromkeys(inside)) if settings.flash else ()
    )
    return dataclasses.replace(job, device="cpu"), (*absent, *_not_made(model))


def _not_made(model: Model) -> tuple[Absent, ...]:
    """Stages that llama.cpp has no node for, or one that is not told apart here: the steps of a
    scan, indexers; and queries are multiplied by the weights that would make keys of a latent."""
    scans = {node.key.layer for node in model.graph if isinstance(node.op, Scan | ChannelScan)}
    beside = {*_beside_streams(model.graph), *_beside_indexers(model.graph)}
    unnamed = (
        node.key.stage
        for node in model.graph
        if (isinstance(node.op, GatedNorm) and not node.op.before and node.key.layer in scans)
        or isinstance(node.op, Steps)
        or (isinstance(node.op, Softplus) and node.op.part.bias is not None)
        or (isinstance(node.op, Norm) and not node.op.weights and node.key.layer in scans)
        or node.key in beside
    )
    latents = {
        node.key.layer for node in model.graph if isinstance(node.op, SharedRope | SharedKeys)
    }
    expanded = any(
        role.expert is not None and isinstance(node.op, Product)
        for node in model.graph
        for role in node.op.weights
    )
    absorbed = (
        node.key.stage
        for node in model.graph
        if expanded
        and node.key.layer in latents
        and (
            isinstance(node.op, Rope | SharedRope | SharedKeys)
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


def _beside_streams(graph: Graph) -> Iterator[StageKey]:
    """What stands around the streams of Gemma 3n without a name: modes, the products that make
    streams and join them, the gates that are kept, and their activation."""
    for node in graph:
        if isinstance(node.op, Modes | Outliers | StreamProduct):
            yield node.key
        if isinstance(node.op, Streams):
            yield node.inputs[1]
        if isinstance(node.op, Activate) and isinstance(graph[node.inputs[0]].op, Outliers):
            yield node.key


def _beside_indexers(graph: Graph) -> Iterator[StageKey]:
    """What an indexer makes behind its products and norms (llama.cpp turns its queries and keys
    once more, by a Hadamard matrix), and scores of which the chosen ones alone are looked at."""
    for node in graph:
        if isinstance(node.op, IndexScores):
            yield from (key for key in node.inputs if isinstance(graph[key].op, Rope))
        if isinstance(node.op, IndexScores | ChooseKeys):
            yield node.key
        if isinstance(node.op, Scores) and len(node.inputs) > 2:
            yield node.key


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
    tokens: tuple[int, ...] = ()  # all that were fed, where some were decoded


def run(plan: Plan, device: torch.device, put: Put) -> Ran:
    """Run a planned trace on its foreign engine. Raises EngineError with the engine's own words."""
    with _loading(plan.job.engine) as module:
        ran: Ran = module.run(plan, device, put)
    return ran


class Running(Protocol):
    """A foreign engine between passes: called with the pieces of the next, as ``Compute`` is."""

    @property
    def engine(self) -> Mapping[str, Any]: ...

    @property
    def notes(self) -> tuple[str, ...]: ...

    def __call__(self, pieces: Sequence[Piece], /) -> Sequence[torch.Tensor]: ...


@contextmanager
def passes(
    plans: Sequence[Plan], device: torch.device, stacks: Sequence[Stack]
) -> Iterator[Running]:
    """Planned traces that run together, on their foreign engine, ready for their first pass."""
    with _loading(plans[0].job.engine) as module, module.passes(plans, device, stacks) as running:
        yield running


@contextmanager
def _loading(name: str) -> Iterator[Any]:
    """The adapter's module; an engine that cannot be imported is told in its own words."""
    engine = _FOREIGN[name]
    try:
        yield importlib.import_module(engine.module)
    except ImportError as error:
        raise EngineError(
            f"{engine.title} is installed and does not load: {clean(str(error), 300)}",
            hint=engine.how_to_install,
        ) from error
