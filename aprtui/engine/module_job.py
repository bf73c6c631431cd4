"""What a trace will do of a model that no family file describes: `--engine hf` shows its modules,
`--engine llamacpp` its nodes, under the engine's own names.

No torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aprtui.engine import adapters
from aprtui.engine.events import Planned
from aprtui.engine.job import TraceJob, default_directory
from aprtui.engine.plan import DEFAULT_PROMPT, free_bytes
from aprtui.errors import UnknownFamilyError, UsageError
from aprtui.families.registry import identify
from aprtui.formats.modelfile import ModelFile
from aprtui.graph.select import only_layers
from aprtui.model.open import Model, list_model_file, open_model, tokenizer_spec_of
from aprtui.model.tokenizer import build_tokenizer
from aprtui.text import clean

__all__ = ["ModulePlan", "module_plan"]

_ASKED = {"hf": "modules", "llamacpp": "nodes"}
_READS = {"hf": "safetensors", "llamacpp": "gguf"}


@dataclass(frozen=True)
class ModulePlan:
    """A trace of a model's modules or nodes. Which there are is known when they have run.
    ``opened``: the model, where nodes are asked for though a family file describes it."""

    job: TraceJob
    file: ModelFile
    directory: Path
    prompt: str | None
    tokens: tuple[int, ...]
    notes: tuple[str, ...]
    opened: Model | None = None

    @property
    def model(self) -> Path:
        return self.file.path

    @property
    def architecture(self) -> str:
        key = "general.architecture" if self.file.format == "gguf" else "model_type"
        return clean(str(self.file.metadata.get(key, "unknown")), 60)

    def chosen(self, layers: int) -> frozenset[int] | None:
        """The layers that are captured; None for all of them."""
        found = only_layers(self.job.layers, layers)
        return None if found is None else frozenset(found)

    def foreseen(self, described: Mapping[str, Any] | None = None) -> Planned:
        """The plan as an event. How many files there will be is not known before they are there."""
        layers = (described or {}).get("config", {}).get("num_layers", 0)
        alone = dataclasses.replace(self.job, directory="", overwrite=False, resume=False)
        model = str(self.model.absolute())
        return Planned(
            directory=str(self.directory),
            model=str(self.model),
            architecture=self.architecture,
            num_layers=layers,
            tokens=self.tokens,
            token_texts=(),
            stages=(),
            layers=tuple(range(layers)),
            files=0,
            write_bytes=0,
            free_bytes=free_bytes(self.directory),
            read_bytes=self.file.size_bytes,
            memory_bytes=self.file.size_bytes,
            device=self.job.device,
            device_name="",
            dtype=self.job.dtype,
            notes=self.notes,
            manifest={"model": dict(described or {}), "engine": {}, "prompt": self.prompt},
            job=dataclasses.asdict(dataclasses.replace(alone, model=model)),
        )

    def described(self, layers: int, hidden: int, vocabulary: int) -> dict[str, Any]:
        """The model as the manifest names it."""
        file, name = self.file, self.architecture
        sizes = {"num_layers": max(layers, 1), "hidden_size": hidden, "vocab_size": vocabulary}
        return {
            "path": str(file.path),
            "format": file.format,
            "format_version": file.version,
            "size_bytes": file.size_bytes,
            "digest": f"sha256:{file.digest}",
            "architecture": name,
            "config": {"architecture": name, **sizes},
            "types": {},
            "doubts": [],
        }


def module_plan(job: TraceJob) -> ModulePlan | None:
    """How the job's modules or nodes are traced; None where a family file names its stages.

    ``--engine-arg modules=on`` (of hf) and ``nodes=on`` (of llamacpp) ask for them all the same.
    Raises UsageError for what such a trace cannot do, BadFileError for a damaged model.
    """
    option = _ASKED.get(job.engine, "")
    asked = job.engine_args.get(option)
    if not option or asked not in (None, "on"):
        return None
    file = list_model_file(Path(job.model))
    if file.format != _READS[job.engine]:
        return None  # what the engine reads is said where it is prepared
    known = _known(file)
    if asked is None and known:
        return None
    _check(job, option)
    prompt = None if job.tokens is not None else (job.prompt or DEFAULT_PROMPT)
    why = "as was asked" if asked else "no family file describes this architecture"
    own = {"modules": "transformers' modules", "nodes": "llama.cpp's nodes under its own names"}
    stages = f"{'other ' * (known and option == 'nodes')}stages are {own[option]}"
    return ModulePlan(
        job,
        file,
        Path(job.directory) if job.directory else default_directory(file.path, job.engine),
        prompt,
        job.tokens or _encoded(file, prompt or ""),
        (f"{stages}: {why}",),
        open_model(file.path) if known and option == "nodes" else None,
    )


def _check(job: TraceJob, option: str) -> None:
    """Raises UsageError for what modules and nodes cannot be traced with."""
    engine = next(each for each in adapters.available() if each.name == job.engine)
    if not engine.installed:
        raise UsageError(f"{engine.title} is not installed", hint=engine.how_to_install)
    others = job.engine == "hf" and set(job.engine_args) - {option}
    if job.in_passes or job.overrides or job.adapter or others:
        raise UsageError(
            f"{option} are traced in one prefill, of the model as its file says it is",
            hint="without --steps, --chunk, --batch, --kv, --set and --adapter",
        )


def _known(file: ModelFile) -> bool:
    try:
        identify(file)
    except UnknownFamilyError:
        return False
    return True


def _encoded(file: ModelFile, prompt: str) -> tuple[int, ...]:
    tokens = build_tokenizer(tokenizer_spec_of(file, file.path, "")).encode(prompt)
    if not tokens:
        raise UsageError("the prompt is empty: it encodes to no tokens", hint="give some text")
    return tokens
