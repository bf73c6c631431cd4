"""What a trace will do, settled before a weight is touched: tokens, files, bytes. No torch."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from aprtui.engine import adapters, native
from aprtui.engine.cards import planned_on
from aprtui.engine.events import Planned
from aprtui.engine.job import DTYPES, TraceJob, default_directory, device_names
from aprtui.engine.manifest import model_entry
from aprtui.engine.stretches import KV_TYPES, Stretch, stretches, words
from aprtui.errors import EngineError, UsageError
from aprtui.formats.aprt import StageHeader
from aprtui.formats.blocks import BLOCK_TYPES
from aprtui.formats.tracedir import StageKey, holds_trace
from aprtui.graph import Absent, Graph
from aprtui.graph.ops import Attend, Choose, Experts, Rope, Scores, SharedRope, Softmax
from aprtui.graph.select import parse_layers, parse_stages
from aprtui.model.health import empty_note
from aprtui.model.open import Model, open_model
from aprtui.text import clean, count, size

__all__ = [
    "DEFAULT_PROMPT",
    "Plan",
    "PlannedFile",
    "check_resident",
    "check_space",
    "free_bytes",
    "make_batch",
    "make_plan",
    "make_plans",
]

DEFAULT_PROMPT = "What is 2+2?"
"""The prompt that the public `apr trace` always uses."""

_RUNTIME_BYTES = 250_000_000  # Python, torch and its threads, measured on Linux x86-64


@dataclass(frozen=True)
class PlannedFile:
    """One stage file that the trace will write."""

    key: StageKey
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    positions: str | tuple[int, ...]  # "all", "last", or those that it holds
    bytes: int


@dataclass(frozen=True)
class Plan:
    """A trace, resolved against its model."""

    job: TraceJob
    model: Model
    directory: Path
    prompt: str | None
    tokens: tuple[int, ...]
    token_texts: tuple[str, ...]
    stages: tuple[str, ...]
    layers: tuple[int, ...]
    files: tuple[PlannedFile, ...]
    absent: tuple[Absent, ...]
    notes: tuple[str, ...]
    free_bytes: int
    stretches: tuple[Stretch, ...] = ()  # empty: one prefill without a cache
    sequence: int | None = None  # which of those that run together

    @property
    def rows(self) -> int:
        """Of each stage: the prompt's, and one a decode step."""
        return len(self.tokens) + self.job.steps

    @property
    def write_bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    @property
    def disk_bytes(self) -> int:
        """What the disk must have room for: rows of several passes lie there until all are."""
        return (2 if self.stretches else 1) * self.write_bytes

    @property
    def read_bytes(self) -> int:
        """The weights that the pass reads at most: each tensor once, of the token table only rows,
        of experts those that so many tokens may choose."""
        graph, entries = self.model.graph, dict[str, Fraction]()
        chosen = _chosen_experts(graph, len(self.tokens))
        for role, matrix in self.model.weights.items():
            if role not in graph.tables:
                reader = graph.reader(role)  # heads are numbered as experts are
                of_some = reader is not None and isinstance(reader.op, Experts)
                some = of_some and self.job.engine == "aprtui"
                share = Fraction(*chosen[role.layer]) if some else Fraction(1)
                entries[matrix.entry.name] = share * matrix.entry.size_bytes
        return math.ceil(sum(entries.values()))

    @property
    def memory_bytes(self) -> int:
        """An estimate of what the pass needs beside the mapped file."""
        cache = self._cache_bytes if self.stretches else 0
        return _RUNTIME_BYTES + self.activation_bytes + self._loaded_bytes + cache

    @property
    def activation_bytes(self) -> int:
        """An estimate of one layer's activations, and the logits."""
        graph, tokens = self.model.graph, len(self.tokens)
        values: Counter[int | None] = Counter()
        for node in graph:
            if not node.last and not isinstance(node.op, Scores | Softmax):
                values[node.key.layer] += math.prod(node.shape(tokens))
        rows = tokens if self.job.logits == "all" or self.job.engine == "llamacpp" else 1
        return 4 * max(values.values()) + 4 * graph.vocab_size * rows

    @property
    def _cache_bytes(self) -> int:
        """Keys and values of every row."""
        graph = self.model.graph
        keys = (graph[node.inputs[1]] for node in graph if isinstance(node.op, Scores))
        width = sum(math.prod(node.shape(1)) for node in keys)
        width += sum(node.op.values.width for node in graph if isinstance(node.op, Attend))
        return 4 * self.rows * width

    @property
    def _loaded_bytes(self) -> int:
        """The weights that lie in memory as a whole: Hugging Face's, in its dtype."""
        if self.job.engine != "hf":
            return 0
        shapes = {m.entry.name: m.entry.shape for m in self.model.weights.values()}
        each = 4 if self.job.dtype == "float32" else 2
        return each * sum(math.prod(shape) for shape in shapes.values())

    def foreseen(self) -> Planned:
        """The event of a plan that is not run: of its device what can be known without torch."""
        job = self.job
        return self.event(
            job.device, planned_on(job.device, self.read_bytes, resident=job.resident)
        )

    def event(
        self, device: str, device_name: str, engine: Mapping[str, Any] | None = None
    ) -> Planned:
        """What is told of it before a weight is touched; ``engine`` is the manifest's."""
        return Planned(
            directory=str(self.directory),
            model=str(self.model.path),
            architecture=self.model.architecture,
            num_layers=self.model.graph.num_layers,
            tokens=self.tokens,
            token_texts=self.token_texts,
            stages=self.stages,
            layers=self.layers,
            files=len(self.files),
            write_bytes=self.write_bytes,
            free_bytes=self.free_bytes,
            read_bytes=self.read_bytes,
            memory_bytes=self.memory_bytes,
            device=device,
            device_name=device_name,
            dtype=self.job.dtype,
            notes=self.notes,
            only_in=self.model.graph.only_in(self.stages, self.layers),
            manifest={
                "model": model_entry(self.model),
                "engine": engine or {},
                "prompt": self.prompt,
                "rope_layout": self.model.graph.rope_layout,
            },
            job=dataclasses.asdict(self._repeatable(device)),
            rows=self.rows,
            passes=words(self.stretches),
        )

    def _repeatable(self, device: str) -> TraceJob:
        """The job as it can be done again from anywhere, on the same device."""
        return dataclasses.replace(
            self.job,
            model=str(self.model.path.absolute()),
            adapter=self.job.adapter and str(Path(self.job.adapter).absolute()),
            directory="",
            device=device,
            overwrite=False,
            resident=False,
            resume=False,
        )


def check_space(plans: Sequence[Plan]) -> None:
    """Raises EngineError when the files of all these traces do not fit on the disk."""
    needed, free = sum(plan.disk_bytes for plan in plans), plans[0].free_bytes
    if needed > free:
        where = plans[0].directory if len(plans) == 1 else plans[0].directory.parent
        traces = "the trace needs" if len(plans) == 1 else f"{len(plans)} traces need"
        raise EngineError(
            f"{clean(str(where))}: {traces} {size(needed)} and {size(free)} are free",
            hint="fewer --stages or --layers, or another folder with -o DIR",
        )


def _chosen_experts(graph: Graph, tokens: int) -> dict[int | None, tuple[int, int]]:
    """Of each layer with experts, how many so many tokens may choose at most, and of how many."""
    return {
        node.key.layer: (min(node.op.experts, tokens * node.op.top), node.op.experts)
        for node in graph
        if isinstance(node.op, Choose)
    }


def _experts_notes(graph: Graph, tokens: int) -> list[str]:
    """That experts are read only where chosen, where not all can be."""
    parts = {each for each in _chosen_experts(graph, tokens).values() if each[0] < each[1]}
    return [
        f"of {of} experts a layer those that the tokens choose are read, at most {most}"
        for most, of in sorted(parts)
    ]


def _decoding_notes(job: TraceJob, model: Model) -> list[str]:
    """That blocks are decoded slowly, where no decoders were built in C and it matters."""
    blocks = {name for name, known in BLOCK_TYPES.items() if known.values > 1}
    stored = {entry.type for entry in model.file.tensors.values()}
    here = job.engine == "aprtui" and job.device in ("auto", "cpu")
    if native.BUILT or not here or not blocks & stored:
        return []
    return [
        "on the CPU blocks are decoded by torch, half as fast and to the same bits: no C compiler "
        "was there when aprtui was installed"
    ]


def make_plan(job: TraceJob, model: Model | None = None) -> Plan:
    """Resolve a job: opens the model, encodes the prompt, checks stages, layers and options.

    ``model``: the job's model, where it is open already. Raises UsageError for a request that makes
    no sense, BadFileError for a damaged model.
    """
    _check_choices(job)
    return _plan(job, model or _opened(job))


def make_plans(job: TraceJob, prompts: Sequence[str]) -> tuple[Plan, ...]:
    """A plan for each prompt, of a model that is opened once; ``job`` says all but the prompt.

    The n-th is traced into ``prompt-n`` in the job's directory. Raises as ``make_plan`` does, and
    UsageError where that directory is a trace itself.
    """
    _check_choices(job)
    return _plans(job, prompts, _opened(job))


def make_batch(
    job: TraceJob, prompts: Sequence[str | tuple[int, ...]], model: Model | None = None
) -> tuple[Plan, ...]:
    """As ``make_plans``, of prompts or token ids that run together, a sequence each."""
    job = dataclasses.replace(job, batch=tuple(map(str, prompts)))
    _check_choices(job)
    plans = _plans(job, prompts, model or _opened(job))
    return tuple(dataclasses.replace(plan, sequence=at) for at, plan in enumerate(plans))


def _plans(
    job: TraceJob, prompts: Sequence[str | tuple[int, ...]], model: Model
) -> tuple[Plan, ...]:
    root = _directory(job)
    if holds_trace(root):
        raise UsageError(
            f"{clean(str(root))}: a trace is there itself, where a folder a prompt shall be made",
            hint="choose another folder with -o DIR",
        )
    plans = [
        _plan(
            dataclasses.replace(
                job,
                prompt=prompt if isinstance(prompt, str) else None,
                tokens=None if isinstance(prompt, str) else prompt,
                directory=str(root / f"prompt-{n}"),
            ),
            model,
        )
        for n, prompt in enumerate(prompts, 1)
    ]
    further = root / f"prompt-{len(plans) + 1}"
    if holds_trace(further):
        note = f"{clean(str(further))} holds a trace of an earlier run, which stays"
        plans[-1] = dataclasses.replace(plans[-1], notes=(*plans[-1].notes, note))
    return tuple(plans)


def _opened(job: TraceJob) -> Model:
    return open_model(Path(job.model), job.overrides, adapter=job.adapter or None)


def _plan(job: TraceJob, model: Model) -> Plan:
    chosen = parse_stages(job.stages)
    job, not_computed = adapters.prepare(job, model)
    graph = model.graph
    layers = parse_layers(job.layers, graph.num_layers)
    tokens = _tokens(job, model)
    rows = len(tokens) + job.steps
    notes = _notes(job, model, len(tokens))
    absent = (*graph.absent, *not_computed)
    computed = set(graph.stages) - {item.stage for item in not_computed}
    chosen_here = computed if chosen is None else computed & set(chosen)
    files = _files(graph, chosen_here, layers, rows, job.logits)
    if job.steps and job.logits == "last":
        files = tuple(_of_steps(file, rows, job.steps) for file in files)
    passes = stretches(len(tokens), job.chunk, job.steps) if job.in_passes else ()
    if passes:
        notes += _of_passes(job, graph, passes)
    if chosen is not None:
        for missing in absent:
            if missing.stage in chosen:
                notes.append(f"{missing.stage} does not exist here: {missing.reason}")
    if not files:
        raise UsageError(
            "nothing to write: none of the stages asked for exists in this model and these layers",
            hint="; ".join(notes[-3:]) or f"{graph.nodes[0].key.stage} exists in layer 0 only",
        )
    directory = _directory(job)
    vocabulary = model.vocabulary
    return Plan(
        job=job,
        model=model,
        directory=directory,
        prompt=None if job.tokens is not None else _prompt(job),
        tokens=tokens,
        token_texts=tuple(vocabulary.text_of(token) for token in tokens) if vocabulary else (),
        stages=tuple(dict.fromkeys(file.key.stage for file in files)),
        layers=layers,
        files=files,
        absent=absent,
        notes=tuple(notes),
        free_bytes=free_bytes(directory),
        stretches=passes,
    )


def _notes(job: TraceJob, model: Model, tokens: int) -> list[str]:
    """What is to be said of a model and of so many tokens of it, whatever is captured."""
    notes, rows = list(model.notes), tokens + job.steps
    if empty := empty_note(model):
        notes.append(empty)
    if job.tokens is None:
        notes += model.tokenizer.notes
    if model.max_positions and rows > model.max_positions:
        notes.append(
            f"{rows:,} tokens exceed the {model.max_positions:,} positions the model "
            "was trained for"
        )
    if job.engine == "aprtui":
        notes += _experts_notes(model.graph, tokens)
    return [*notes, *_decoding_notes(job, model)]


def _directory(job: TraceJob) -> Path:
    return Path(job.directory) if job.directory else default_directory(Path(job.model), job.engine)


def _check_choices(job: TraceJob) -> None:
    if job.dtype not in DTYPES:
        raise UsageError(f"unknown dtype {clean(job.dtype)!r}", hint=f"one of {', '.join(DTYPES)}")
    if job.logits not in ("last", "all"):
        raise UsageError(f"--logits {clean(job.logits)!r}", hint="last or all")
    if job.kv and job.kv not in KV_TYPES:
        raise UsageError(
            f"unknown type of keys and values {clean(job.kv)!r}",
            hint=f"one of {', '.join(KV_TYPES)}",
        )
    devices = device_names(job.device)
    if job.resident and devices != ("auto",):
        check_resident(devices[0])
    if job.resident and job.engine != "aprtui":
        raise UsageError(
            f"--resident is of aprtui's own engine, not of {clean(job.engine)}",
            hint="--engine-arg gpu_layers=N puts llama.cpp's layers on the GPU",
        )


def _of_passes(job: TraceJob, graph: Graph, passes: tuple[Stretch, ...]) -> list[str]:
    """What is to be said of rows that come pass by pass. Raises UsageError for a model whose rows
    cannot, and for a cache that does not fit its heads."""
    if any(isinstance(node.op, Scores) and not node.op.mask.causal for node in graph):
        raise UsageError(
            "this model's tokens see those behind them: they cannot come one after the other",
            hint="leave --steps, --chunk, --batch and --kv out",
        )
    alibis = (node.op.alibi for node in graph if isinstance(node.op, Scores))
    if len(passes) > 1 and any(alibi is not None and alibi.from_last for alibi in alibis):
        raise UsageError(
            "this model's scores count keys from the last one of a pass: rows of several passes "
            "are not those of one",
            hint="leave --steps and --chunk out",
        )
    sizes = {node.axes[-1].extent or 0 for node in graph if isinstance(node.op, Rope)}
    sizes |= {node.op.values.size for node in graph if isinstance(node.op, Attend)}
    if job.kv in ("q8_0", "q4_0") and (odd := sorted(size for size in sizes if size % 32)):
        raise UsageError(
            f"--kv {job.kv} takes blocks of 32 channels, and heads here have {odd[0]}",
            hint="--kv f16 or bf16",
        )
    tables = {node.op.table for node in graph if isinstance(node.op, Rope | SharedRope)}
    ends = [each.first + each.rows for each in passes]
    changing = [table for table in tables if table.at(ends[0]) != table.at(ends[-1])]
    if changing:
        limit = max(table.trained for table in changing)
        return [
            f"this RoPE turns by other angles once a pass goes beyond {limit:,} positions: rows "
            "before that differ from those of one prefill"
        ]
    return []


def check_resident(device: str) -> None:
    """Raises UsageError for a device that ``resident`` weights cannot be kept on."""
    if not device.startswith("cuda"):
        raise UsageError(
            "--resident keeps weights in the memory of a CUDA device, and this trace runs on "
            f"{clean(device)}",
            hint="leave it out: the system's file cache keeps the file in memory already",
        )


def _prompt(job: TraceJob) -> str:
    return DEFAULT_PROMPT if job.prompt is None else job.prompt


def _tokens(job: TraceJob, model: Model) -> tuple[int, ...]:
    vocab_size = model.graph.vocab_size
    if job.tokens is not None:
        if job.prompt is not None:
            raise UsageError("a prompt and tokens were both given", hint="give one of them")
        tokens = job.tokens
    else:
        tokens = model.tokenizer.encode(_prompt(job))
    if not tokens:
        raise UsageError("the prompt is empty: it encodes to no tokens", hint="give some text")
    outside = next((token for token in tokens if not 0 <= token < vocab_size), None)
    if outside is not None:
        raise UsageError(
            f"token {outside:,} lies outside the vocabulary of {vocab_size:,} tokens",
            hint=f"ids go from 0 to {vocab_size - 1:,}",
        )
    longest = model.graph.longest
    if longest is not None and len(tokens) + job.steps > longest:
        raise UsageError(
            f"the prompt is {_with_steps(len(tokens), job.steps)} and the model has learned "
            f"{longest:,} positions",
            hint="give a shorter one" + (", or fewer --steps" if job.steps else ""),
        )
    return tokens


def _with_steps(tokens: int, steps: int) -> str:
    more = f", {count(steps, 'step')} behind it," if steps else ""
    return f"{tokens:,} tokens{more}"


def _files(
    graph: Graph,
    chosen: Collection[str],
    layers: tuple[int, ...],
    tokens: int,
    logits: str,
) -> tuple[PlannedFile, ...]:
    """The files to write, in order of computation; whole-model stages whenever asked for."""
    files = tuple(
        PlannedFile(
            node.key,
            node.shape(tokens, logits),
            node.axis_names(logits),
            "last" if node.last and logits == "last" else "all",
            node.file_bytes(tokens, logits),
        )
        for node in graph
        if node.key.stage in chosen and (node.key.layer is None or node.key.layer in layers)
    )
    for file in files:
        StageHeader(file.key.layer, math.prod(file.shape))  # refuses what no stage file can hold
    return files


def _of_steps(file: PlannedFile, rows: int, steps: int) -> PlannedFile:
    """Logits as the decode steps need them: of the prompt's last position and every one behind."""
    if file.positions != "last":
        return file
    shape, positions = (steps + 1, *file.shape), tuple(range(rows - steps - 1, rows))
    bytes_ = StageHeader(file.key.layer, math.prod(shape)).file_bytes
    return PlannedFile(file.key, shape, ("token", *file.axes), positions, bytes_)


def free_bytes(directory: Path) -> int:
    """Free bytes on the disk that ``directory`` is or would be on."""
    for folder in (directory.absolute(), *directory.absolute().parents):
        if folder.is_dir():
            return shutil.disk_usage(folder).free
    return 0
