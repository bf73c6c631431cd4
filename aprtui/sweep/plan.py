"""PLAN.toml: which models, prompts and engines, what is held against what, and what is kept.

Its keys stand in contracts/sweep-plan.schema.json and docs/sweeps.md. Anything that is not in them
is an error that names the key; so is a plan that contradicts itself.
"""

from __future__ import annotations

import hashlib
import re
import string
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

from aprtui.captures.maps import CONVENTIONS
from aprtui.compare.bars import parse_bar
from aprtui.engine.job import DTYPES, device_names
from aprtui.engine.stretches import KV_TYPES
from aprtui.errors import AprtuiError, BadFileError
from aprtui.formats.files import read_whole
from aprtui.graph.select import parse_stages
from aprtui.sweep.store import is_url
from aprtui.sweep.toml_table import Table
from aprtui.text import clean

__all__ = [
    "BISECT", "KEEP", "KINDS", "EngineSpec", "ModelSpec", "PromptSpec", "Reference", "SweepPlan",
    "read_plan",
]  # fmt: skip

KEEP = ("differing", "everything", "statistics")
BISECT = ("differing", "always", "never")
KINDS = ("aprtui", "hf", "llamacpp", "command")
PLACES = ("model", "tokens", "output", "threads")
"""What a command's words may hold between braces; ``{output}`` is the folder that it fills."""

_MOST_BYTES = 16 << 20
_NAME = re.compile(r"[^\s/\\]([^/\\]{0,78}[^\s/\\])?")
_RESOURCE = re.compile(r"[A-Za-z0-9_.:-]{1,80}")


class Reference(NamedTuple):
    """What a capture is held against: ``kind`` "engine", "model" or "results", and which."""

    kind: str
    name: str


@dataclass(frozen=True)
class ModelSpec:
    """A model: an absolute path or a URL. ``resource`` names the nodes of a cluster that hold it,
    ``engines`` those that run it (none: all), ``overrides`` are its ``--set`` values."""

    name: str
    source: str
    resource: str = ""
    engines: tuple[str, ...] = ()
    overrides: Mapping[str, str] = field(default_factory=dict)

    def run_by(self, engines: Iterable[EngineSpec]) -> tuple[EngineSpec, ...]:
        return tuple(each for each in engines if not self.engines or each.name in self.engines)


@dataclass(frozen=True)
class PromptSpec:
    """Exactly one of ``text`` and ``tokens``."""

    name: str
    text: str | None = None
    tokens: tuple[int, ...] | None = None


@dataclass(frozen=True)
class EngineSpec:
    """A way to compute: an engine of ``kind`` with its settings, or somebody's ``command``.

    ``cpus`` are its threads too: some engines' bits depend on how many there are. ``version`` is
    the one that must be there; of a command the one that it is taken to be, which
    ``version_command`` prints where it is given.
    """

    name: str
    kind: str
    device: str = "cpu"
    dtype: str = "float32"
    settings: Mapping[str, str] = field(default_factory=dict)
    steps: int = 0
    chunk: int = 0
    kv: str = ""
    cpus: int = 1
    gpus: int = 0
    version: str = ""
    command: tuple[str, ...] = ()
    version_command: tuple[str, ...] = ()
    map: str = ""
    timeout_s: int = 3600
    reference: Reference | None = None


@dataclass(frozen=True)
class SweepPlan:
    """A plan without contradictions; names are unique, files of prompts are read.

    ``digest`` tells its text from another's.
    """

    path: Path
    digest: str
    models: tuple[ModelSpec, ...]
    prompts: tuple[PromptSpec, ...]
    engines: tuple[EngineSpec, ...]
    reference: Reference | None = None
    keep: str = "differing"
    bisect: str = "differing"
    stages: str = "all"
    layers: str = "all"
    logits: str = "last"
    bars: tuple[str, ...] = ()
    results: str = ""

    def reference_of(self, engine: EngineSpec) -> Reference | None:
        return engine.reference or self.reference


def read_plan(path: Path) -> SweepPlan:
    """The plan in a file. Raises BadFileError, which names the key that is wrong."""
    raw = read_whole(path, _MOST_BYTES, "a plan")
    try:
        found = tomllib.loads(raw.decode())
    except UnicodeDecodeError as error:
        raise BadFileError(path, f"is not UTF-8 text (byte {error.start:,})") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise BadFileError(path, f"is no TOML: {clean(str(error))}") from error
    table = Table(path, found)
    plan = SweepPlan(
        path,
        hashlib.sha256(raw).hexdigest(),
        tuple(_model(each) for each in table.each("models")),
        tuple(prompt for each in table.each("prompts") for prompt in _prompts(each)),
        tuple(_engine(each) for each in table.each("engines")),
        _reference(table),
        table.choice("keep", KEEP, "differing"),
        table.choice("bisect", BISECT, "differing"),
        _parsed(table, "stages", table.text("stages", "all"), parse_stages),
        table.text("layers", "all"),
        table.choice("logits", ("last", "all"), "last"),
        tuple(_parsed(table, "bars", bar, parse_bar) for bar in table.texts("bars")),
        _place(table, "results"),
    )
    table.end()
    _check(plan, table)
    return plan


_T = TypeVar("_T")


def _parsed(table: Table, key: str, text: str, parse: Callable[[str], object]) -> str:
    """``text``, which ``parse`` takes."""
    try:
        parse(text)
    except AprtuiError as error:
        table.refuse(key, error.message, error.hint)
    return text


def _place(table: Table, key: str) -> str:
    """A path, which counts from the plan's folder, or a URL; empty where it is not given."""
    text = table.text(key)
    if not text or is_url(text):
        return text
    return str((table.path.absolute().parent / Path(text).expanduser()).absolute())


def _name(table: Table, default: str) -> str:
    name = table.text("name", default)
    if not _NAME.fullmatch(name) or not name.isprintable():
        table.refuse("name", f"{clean(name, 60)!r} is no name", "up to 80 characters without /")
    return name


def _model(table: Table) -> ModelSpec:
    source = _place(table, "path")
    if not source:
        table.refuse("path", "is missing", "the model's file, folder or URL")
    resource = table.text("resource")
    if resource and not _RESOURCE.fullmatch(resource):
        table.refuse("resource", f"{clean(resource, 60)!r} is no name of a resource")
    stem = source.rstrip("/").rpartition("/")[2]
    default = re.sub(r"\.(gguf|apr|safetensors)$", "", stem)[:80]
    model = ModelSpec(
        _name(table, default), source, resource, table.texts("engines"), table.words("set")
    )
    table.end()
    return model


def _prompts(table: Table) -> tuple[PromptSpec, ...]:
    ways = [key for key in ("text", "file", "lines", "tokens") if table.holds(key)]
    if len(ways) != 1:
        said = f"{' and '.join(ways)} are both given" if ways else "nothing says what it is"
        table.refuse(ways[-1] if ways else "text", said, "one of text, file, lines, tokens")
    text, file, lines = table.text("text"), _place(table, "file"), _place(table, "lines")
    if ways == ["tokens"]:
        tokens = table.numbers("tokens")
        made: tuple[PromptSpec, ...] = (
            PromptSpec(_name(table, f"{len(tokens)} tokens"), None, tokens),
        )
    elif ways == ["text"]:
        made = (PromptSpec(_name(table, _shown(text)), text),)
    elif ways == ["file"]:
        made = (PromptSpec(_name(table, Path(file).stem[:80]), _text_of(table, "file", file)),)
    else:
        each = [line for line in _text_of(table, "lines", lines).splitlines() if line.strip()]
        name = _name(table, Path(lines).stem[:70])
        made = tuple(PromptSpec(f"{name}-{n}", line) for n, line in enumerate(each, 1))
    table.end("tokens")
    if not made or made[0].text == "":
        table.refuse(ways[0], "there is no prompt in it")
    return made


def _shown(text: str) -> str:
    """A prompt's text as a name."""
    shown = clean(" ".join(text.split()), 40).replace("/", "|").replace("\\", "|")
    return shown or "prompt"


def _text_of(table: Table, key: str, file: str) -> str:
    """A file's text, of which one newline at the end is no part."""
    if is_url(file):
        table.refuse(key, "a file of this machine is due here, not a URL")
    try:
        return re.sub(r"\r?\n\Z", "", read_whole(Path(file), _MOST_BYTES, "a prompt").decode())
    except UnicodeDecodeError as error:
        table.refuse(key, f"{clean(file)} is not UTF-8 text (byte {error.start:,})")
    except BadFileError as error:
        table.refuse(key, error.message)


def _reference(table: Table) -> Reference | None:
    below = table.below("reference")
    if below is None:
        return None
    found = [
        Reference(kind, text)
        for kind, text in (
            ("engine", below.text("engine")), ("model", below.text("model")),
            ("results", _place(below, "results")),
        )
        if text
    ]  # fmt: skip
    below.end()
    if len(found) != 1:
        table.refuse("reference", "one thing is held against: engine, model or results")
    return found[0]


_COMMAND_ALONE = ("command", "version_command", "map", "timeout_s", "gpus")
_ENGINE_ALONE = ("device", "dtype", "settings", "steps", "chunk", "kv")


def _engine(table: Table) -> EngineSpec:
    command = table.texts("command")
    name = _name(table, table.text("engine") or ("command" if command else "aprtui"))
    kind = "command" if command else table.choice("engine", KINDS[:-1], name)
    others = _ENGINE_ALONE if command else _COMMAND_ALONE
    for key in others:
        if table.holds(key):
            whose = "an engine of aprtui's" if command else "a command"
            table.refuse(key, f"is of {whose}, and this is none")
    if command and table.holds("engine"):
        table.refuse("engine", "a command is an engine of its own", "name names it")
    device = table.text("device", "cpu")
    spec = EngineSpec(
        name,
        kind,
        device,
        table.choice("dtype", DTYPES, "float32"),
        table.words("settings"),
        table.whole("steps", least=1),
        table.whole("chunk", least=1),
        table.choice("kv", ("", *KV_TYPES), ""),
        table.whole("cpus", 1, 1),
        table.whole("gpus") if command else _gpus(table, device),
        table.text("version"),
        command,
        table.texts("version_command"),
        _map(table),
        table.whole("timeout_s", 3600, 1),
        _reference(table),
    )
    table.end("engine", *_COMMAND_ALONE)
    if command:
        _check_command(spec, table)
    return spec


def _map(table: Table) -> str:
    """A convention of dumps, or the path of a map."""
    text = table.text("map")
    if text.endswith(".toml"):
        return _place(table, "map")
    if text and text not in ("auto", *CONVENTIONS):
        table.refuse("map", f"no convention {clean(text, 60)!r}",
                     f"auto, one of {', '.join(CONVENTIONS)}, or a map's *.toml")  # fmt: skip
    return text


def _gpus(table: Table, device: str) -> int:
    """How many a device is of. What a cell computes must not depend on the node, as auto does."""
    try:
        names = device_names(device)
    except AprtuiError as error:
        table.refuse("device", error.message, error.hint)
    if names == ("auto",):
        table.refuse("device", "a sweep's cells say where they compute", "cpu or cuda")
    return len(names) if names[0].startswith("cuda") else 0


def _check_command(spec: EngineSpec, table: Table) -> None:
    if not spec.version:
        table.refuse("version", "a command's results are kept by its version", "as a commit's id")
    held: set[str | None] = set()
    for word in spec.command:
        try:
            held |= {name for _, name, _, _ in string.Formatter().parse(word) if name is not None}
        except ValueError as error:
            table.refuse("command", f"{clean(word, 60)!r}: {error}", "{{ and }} are braces")
    if strange := held - set(PLACES):
        table.refuse("command", f"{{{clean(str(min(map(str, strange))), 40)}}} is no place",
                     f"places: {', '.join(f'{{{each}}}' for each in PLACES)}")  # fmt: skip
    if "output" not in held:
        table.refuse("command", "nothing tells it where to write", "{output} is that folder")


# -- contradictions --------------------------------------------------------------------------------


def _check(plan: SweepPlan, table: Table) -> None:
    for key, named in (("models", plan.models), ("prompts", plan.prompts),
                       ("engines", plan.engines)):  # fmt: skip
        names: Sequence[str] = [each.name for each in named]
        if doubled := next((name for name in names if names.count(name) > 1), None):
            table.refuse(
                key, f"two have the name {clean(doubled, 80)!r}", "name = tells them apart"
            )
    engines = {each.name: each for each in plan.engines}
    for number, model in enumerate(plan.models):
        _check_known(table, f"models[{number}].engines", model.engines, engines)
    for number, engine in enumerate(plan.engines):
        where = f"engines[{number}].reference" if engine.reference else "reference"
        reference = plan.reference_of(engine)
        if reference is not None and reference.kind != "results":
            known: Iterable[str] = engines
            if reference.kind == "model":
                known = [each.name for each in plan.models]
            _check_known(table, f"{where}.{reference.kind}", (reference.name,), known)
    for engine in plan.engines:
        _check_circle(plan, engine, engines, table)
    if plan.reference is None and plan.bisect == "never":
        for number, engine in enumerate(plan.engines):
            if engine.reference is None:
                key = f"engines[{number}].reference"
                table.refuse(key, "nothing is compared, nothing replayed", "bisect or a reference")


def _check_known(table: Table, key: str, names: Iterable[str], known: Iterable[str]) -> None:
    for name in names:
        if name not in known:
            table.refuse(key, f"the plan has no {clean(name, 80)!r}",
                         f"it has {', '.join(clean(each, 80) for each in known)}")  # fmt: skip


def _check_circle(
    plan: SweepPlan, engine: EngineSpec, engines: Mapping[str, EngineSpec], table: Table
) -> None:
    """Raises BadFileError where engines are one another's references."""
    seen = [engine.name]
    reference = plan.reference_of(engine)
    while reference is not None and reference.kind == "engine" and reference.name != seen[-1]:
        if reference.name in seen:
            table.refuse("reference", f"{' -> '.join((*seen, reference.name))} goes in a circle")
        seen.append(reference.name)
        reference = plan.reference_of(engines[reference.name])
