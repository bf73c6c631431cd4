"""What a trace of modules will do: for `--engine hf` on a model that no family file describes.

No torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aprtui.engine import adapters
from aprtui.engine.job import TraceJob, default_directory
from aprtui.engine.plan import DEFAULT_PROMPT
from aprtui.errors import UnknownFamilyError, UsageError
from aprtui.families.registry import identify
from aprtui.formats.modelfile import ModelFile
from aprtui.graph.select import only_layers
from aprtui.model.jsontokenizer import spec_from_folder
from aprtui.model.open import list_model_file
from aprtui.model.tokenizer import build_tokenizer
from aprtui.text import clean

__all__ = ["ModulePlan", "module_plan"]

_MODULES = "modules"


@dataclass(frozen=True)
class ModulePlan:
    """A trace of a model's modules. Which there are is known when the model is loaded."""

    job: TraceJob
    file: ModelFile
    directory: Path
    prompt: str | None
    tokens: tuple[int, ...]
    notes: tuple[str, ...]

    @property
    def model(self) -> Path:
        return self.file.path

    @property
    def architecture(self) -> str:
        return clean(str(self.file.metadata.get("model_type", "unknown")), 60)

    def chosen(self, layers: int) -> frozenset[int] | None:
        """The layers that are captured; None for all of them."""
        found = only_layers(self.job.layers, layers)
        return None if found is None else frozenset(found)

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
    """How the job's modules are traced; None where a family file names its stages.

    ``--engine-arg modules=on`` asks for them all the same. Raises UsageError for what such a trace
    cannot do, BadFileError for a damaged model.
    """
    asked = job.engine_args.get(_MODULES)
    if job.engine != "hf" or asked not in (None, "on"):
        return None
    file = list_model_file(Path(job.model))
    if asked is None and _known(file):
        return None
    if not next(each.installed for each in adapters.available() if each.name == "hf"):
        raise UsageError("transformers is not installed", hint="pip install 'aprtui[hf]'")
    if file.format != "safetensors":
        raise UsageError("transformers reads Hugging Face folders")
    if job.in_passes or job.overrides or job.adapter or set(job.engine_args) - {_MODULES}:
        raise UsageError(
            "modules are traced in one prefill, of the model as its folder says it is",
            hint="without --steps, --chunk, --batch, --kv, --set and --adapter",
        )
    prompt = None if job.tokens is not None else (job.prompt or DEFAULT_PROMPT)
    why = "as was asked" if asked else "no family file describes this architecture"
    return ModulePlan(
        job,
        file,
        Path(job.directory) if job.directory else default_directory(file.path, job.engine),
        prompt,
        job.tokens or _encoded(file.path, prompt or ""),
        (f"stages are transformers' modules: {why}",),
    )


def _known(file: ModelFile) -> bool:
    try:
        identify(file)
    except UnknownFamilyError:
        return False
    return True


def _encoded(path: Path, prompt: str) -> tuple[int, ...]:
    folder = path if path.is_dir() else path.parent
    tokens = build_tokenizer(spec_from_folder(folder)).encode(prompt)
    if not tokens:
        raise UsageError("the prompt is empty: it encodes to no tokens", hint="give some text")
    return tokens
