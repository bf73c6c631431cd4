"""What a model is, on a node that holds it: its digest, and what each cell of it will take."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from aprtui.crash import told_of
from aprtui.engine.job import TraceJob
from aprtui.engine.module_job import module_plan
from aprtui.engine.plan import make_plan
from aprtui.errors import AprtuiError, EngineError, UnknownFamilyError
from aprtui.formats.files import open_file, read_whole
from aprtui.formats.modelfile import ModelFile
from aprtui.model.open import Model, list_model_file, open_model
from aprtui.sweep.plan import EngineSpec, ModelSpec, PromptSpec, SweepPlan
from aprtui.sweep.scratch import Scratch
from aprtui.sweep.store import fetch_url, is_url
from aprtui.sweep.versions import stamp_of

__all__ = ["Estimate", "Selection", "Surveyed", "digest_once", "job_of", "local_model", "survey"]

_CHUNK = 8 << 20
_MOST_MAP_BYTES = 1 << 20
_BESIDE = {".json", ".model", ".txt", ".py", ".jinja", ".tiktoken"}
"""Of a checkpoint's folder: what decides its numbers beside its weights."""

_FOREIGN_BYTES = 500_000_000  # that a command or transformers' modules take beside the weights


class Selection(NamedTuple):
    """What of a pass is captured, in the command line's words."""

    stages: str
    layers: str
    logits: str


@dataclass(frozen=True)
class Estimate:
    """What a cell will take; ``error`` is why it cannot be computed at all."""

    tokens: tuple[int, ...] = ()
    read_bytes: int = 0
    write_bytes: int = 0
    memory_bytes: int = 0
    map_digest: str = ""
    error: str = ""


@dataclass(frozen=True)
class Surveyed:
    """One model: the digest of all its bytes, versions by engine, estimates by prompt and engine.

    ``error`` is why it cannot be read at all.
    """

    digest: str = ""
    size_bytes: int = 0
    stamps: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    estimates: Mapping[tuple[str, str], Estimate] = field(default_factory=dict)
    error: str = ""

    def of(self, prompt: PromptSpec, engine: EngineSpec) -> Estimate:
        if self.error:
            return Estimate(error=self.error)
        return self.estimates[prompt.name, engine.name]


def survey(plan: SweepPlan, spec: ModelSpec, run: str) -> Surveyed:
    """Read one model where it lies; what is wrong with it is in the value, nothing is raised.

    ``run`` names the node's scratch.
    """
    scratch = Scratch(run)
    try:
        with scratch.held():
            path = local_model(spec, scratch)
            file = list_model_file(path)
            stamps: dict[str, Mapping[str, str]] = {}
            estimates: dict[tuple[str, str], Estimate] = {}
            opened = _Opened(path, spec, file)
            for engine in spec.run_by(plan.engines):
                stamps[engine.name], why = _stamp(engine)
                for prompt in plan.prompts:
                    found = _estimate(plan, opened, prompt, engine, why)
                    estimates[prompt.name, engine.name] = found
            return Surveyed(digest_once(path, scratch), file.size_bytes, stamps, estimates)
    except Exception as error:
        return Surveyed(error=str(told_of(error, "sweep")))


def local_model(spec: ModelSpec, scratch: Scratch) -> Path:
    """The model on this node; one that lies behind a URL is fetched, once."""
    if not is_url(spec.source):
        path = Path(spec.source)
        if not path.exists():
            raise EngineError(
                f"{spec.source}: no model is there on this machine",
                hint="on a cluster: resource names the nodes that hold it, or its path is a URL",
            )
        return path
    name = hashlib.sha256(spec.source.encode()).hexdigest()[:16]
    ending = Path(spec.source).suffix
    return scratch.made(f"model-{name}{ending}", lambda to: fetch_url(spec.source, to))


def _content_digest(path: Path, files: Iterable[Path]) -> str:
    """sha256 of all that a model's numbers come from: its files, and what lies beside them."""
    found = {file.absolute() for file in files}
    if path.is_dir():
        found |= {
            each.absolute() for each in path.iterdir()
            if each.suffix in _BESIDE and each.is_file()
        }  # fmt: skip
    total = hashlib.sha256()
    for file in sorted(found, key=lambda each: each.name):
        with open_file(file) as opened:
            if len(found) > 1:  # one by itself may have any name
                total.update(f"{file.name}\0{opened.size}\0".encode())
            offset = 0
            while part := opened.read(offset, _CHUNK):
                total.update(part)
                offset += len(part)
    return f"sha256:{total.hexdigest()}"


def digest_once(path: Path, scratch: Scratch) -> str:
    """The digest of a model's bytes, read once a node while its files stay as they are."""
    files = list_model_file(path).files
    seen = hashlib.sha256(str(path).encode())
    for file in files:
        found = file.stat()
        seen.update(f"\0{file}\0{found.st_size}\0{found.st_mtime_ns}\0{found.st_ino}".encode())

    def write(target: Path) -> None:
        target.write_text(_content_digest(path, files))

    return scratch.made(f"digest-{seen.hexdigest()[:32]}", write).read_text()


def job_of(
    path: Path, model: ModelSpec, prompt: PromptSpec, engine: EngineSpec, how: Selection,
    directory: str = "",
) -> TraceJob:  # fmt: skip
    """What an engine is asked for; of a command what ours would be, which knows the tokens."""
    ours = engine.kind == "command"
    settings = dict(engine.settings)
    if engine.kind == "llamacpp":
        settings.setdefault("threads", str(engine.cpus))
    return TraceJob(
        model=str(path),
        directory=directory,
        prompt=prompt.text,
        tokens=prompt.tokens,
        stages=how.stages,
        layers=how.layers,
        logits=how.logits,
        device="auto" if engine.kind == "llamacpp" else engine.device,
        dtype=engine.dtype,
        overrides=dict(model.overrides),
        engine="aprtui" if ours else engine.kind,
        engine_args=settings,
        steps=engine.steps,
        chunk=engine.chunk,
        kv=engine.kv,
    )


class _Opened:
    """A model that is opened once it is needed: transformers' modules need no family of ours."""

    def __init__(self, path: Path, spec: ModelSpec, file: ModelFile) -> None:
        self.path, self.spec, self.file = path, spec, file
        self._model: Model | None = None

    @property
    def model(self) -> Model:
        self._model = self._model or open_model(self.path, self.spec.overrides)
        return self._model


def _stamp(engine: EngineSpec) -> tuple[dict[str, str], str]:
    try:
        return stamp_of(engine), ""
    except AprtuiError as error:
        return {}, str(error)


def _estimate(
    plan: SweepPlan, opened: _Opened, prompt: PromptSpec, engine: EngineSpec, why: str
) -> Estimate:
    """One cell's, or why it cannot be computed."""
    if why:
        return Estimate(error=why)
    how = Selection(plan.stages, plan.layers, plan.logits)
    job = job_of(opened.path, opened.spec, prompt, engine, how)
    size = opened.file.size_bytes
    try:
        modules = module_plan(job)
        if modules is not None:
            return Estimate(modules.tokens, size, 0, size * 2 + _FOREIGN_BYTES)
        planned = make_plan(job, opened.model)
        memory = planned.memory_bytes + 2 * planned.activation_bytes  # replayed in float64
        if engine.kind == "command":
            memory += size + _FOREIGN_BYTES
        return Estimate(
            planned.tokens, planned.read_bytes, planned.write_bytes, memory, _map_digest(engine)
        )
    except UnknownFamilyError as error:
        return Estimate(error=f"{error.message} (engine hf captures its modules)")
    except AprtuiError as error:
        return Estimate(error=str(error))


def _map_digest(engine: EngineSpec) -> str:
    """Of a map of the user's own."""
    if not engine.map.endswith(".toml"):
        return ""
    return hashlib.sha256(read_whole(Path(engine.map), _MOST_MAP_BYTES, "a map")).hexdigest()
