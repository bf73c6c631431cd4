"""llama.cpp as an engine, through llama-cpp-python: its nodes captured as they run.

Nodes are read through ``cb_eval``, which the scheduler calls before a node (is it wanted?) and
after it (here it is): memory is that of the model, one layer's parts and one node.
"""

from __future__ import annotations

import ctypes
import dataclasses
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from aprtui.engine.adapters import LlamaSettings, Put, Ran
from aprtui.engine.adapters.collected import Collector, Span, fused
from aprtui.engine.adapters.ggml import Ggml, Node, Values
from aprtui.engine.adapters.nodes import NodeMap
from aprtui.engine.passes import Piece
from aprtui.engine.stretches import Stretch
from aprtui.errors import BadFileError, EngineError, UsageError
from aprtui.formats.tracedir import StageKey
from aprtui.graph import Graph
from aprtui.text import clean

if TYPE_CHECKING:
    from aprtui.engine.plan import Plan
    from aprtui.engine.stacking import Stack

__all__ = ["Llama", "Watches", "engine_of", "loaded", "passes", "run", "said"]

_KV_TYPES = {"f32": 0, "f16": 1, "bf16": 30, "q8_0": 8, "q4_0": 2}  # ggml_type
_LOG_ERROR, _LOG_CONTINUED = 4, 5  # ggml_log_level
_PADDING = 256  # llama.cpp rounds the context up to this


def run(plan: Plan, device: torch.device, put: Put) -> Ran:
    """One prefill of the plan's tokens with every planned stage given to ``put``.

    Raises BadFileError with llama.cpp's own words when it refuses the file, EngineError when a
    build's callback differs or the pass fails, UsageError for tokens outside its vocabulary.
    """
    with _opened([plan], [put]) as running:
        tokens = len(plan.tokens)
        running([Piece(0, Stretch("prefill", 0, tokens), plan.tokens)])
        logits = running.rows if plan.job.logits == "all" else running.rows[-1]
    put(plan.model.graph.nodes[-1].key, logits)
    return Ran(logits, running.engine, running.notes)


@contextmanager
def passes(plans: Sequence[Plan], device: torch.device, stacks: Sequence[Stack]) -> Iterator[_Run]:
    """The model loaded, to be called with the pieces of one pass after the other; raises as
    ``run`` does."""
    with _opened(plans, [stack.put for stack in stacks]) as running:
        yield running


@contextmanager
def _opened(plans: Sequence[Plan], puts: Sequence[Put]) -> Iterator[_Run]:
    settings = LlamaSettings.parse(plans[0].job.engine_args)
    prompts, rows = [plan.tokens for plan in plans], sum(plan.rows for plan in plans)
    with loaded(plans[0].model.path, prompts, rows, settings) as llama:
        yield _Run(llama, plans, puts)


class Watches(Protocol):
    """What the callback tells of the nodes of a pass."""

    def wants(self, node: Node) -> bool:
        """Whether the node's values are wanted."""

    def take(self, node: Node, values: Values) -> None:
        """Use the values of a wanted node."""


@dataclass(frozen=True)
class Llama:
    """A model that llama.cpp has loaded, and the context that its passes run in."""

    settings: LlamaSettings
    version: str
    vocabulary: int
    _lib: Any
    _context: Any
    _watch: _Watch
    _errors: list[str]

    @property
    def engine(self) -> Mapping[str, Any]:
        """The manifest's."""
        return engine_of(self.settings, self.version)

    def decode(self, fed: Sequence[tuple[int, int, int]], watch: Watches) -> torch.Tensor:
        """One pass over rows, each (sequence, position, token): their logits [T,V].

        Raises EngineError, and what ``watch`` raises.
        """
        lib = self._lib
        self._watch.collector = watch
        batch = lib.llama_batch_init(len(fed), 0, 1)
        try:
            batch.n_tokens = len(fed)
            for place, (sequence, position, token) in enumerate(fed):
                batch.token[place] = token
                batch.pos[place] = position
                batch.n_seq_id[place] = 1
                batch.seq_id[place][0] = sequence
                batch.logits[place] = True  # else the last layer is cut to these rows
            status = lib.llama_decode(self._context, batch)
        finally:
            lib.llama_batch_free(batch)
        if self._watch.failure is not None:
            raise self._watch.failure
        if status:
            raise EngineError(f"llama.cpp's pass failed with {status}: {_first(self._errors)}")
        shape = (self.vocabulary,)
        rows = [
            np.ctypeslib.as_array(lib.llama_get_logits_ith(self._context, place), shape).copy()
            for place in range(len(fed))
        ]
        return torch.from_numpy(np.stack(rows))


def engine_of(settings: LlamaSettings, version: str) -> dict[str, Any]:
    """llama.cpp as the manifest names it."""
    on_gpu = settings.gpu_layers > 0
    return {
        "name": "llama.cpp",
        "version": f"llama-cpp-python {version}",
        **({"device": "gpu", "device_name": "llama.cpp's GPU"} if on_gpu else {}),
        "dtype": "float32",
        "threads": settings.threads,
        "settings": {**dataclasses.asdict(settings), "repack": False},
    }


@contextmanager
def loaded(
    path: Path, prompts: Sequence[Sequence[int]], rows: int, settings: LlamaSettings
) -> Iterator[Llama]:
    """A GGUF ready for passes over sequences that begin with ``prompts`` and have ``rows`` in all.

    Raises as ``run`` does.
    """
    import llama_cpp
    from llama_cpp import llama_cpp as lib

    if settings.gpu_layers > 0 and not lib.llama_supports_gpu_offload():
        raise UsageError(
            "this build of llama-cpp-python cannot use a GPU",
            hint="reinstall it with CMAKE_ARGS=-DGGML_CUDA=on, or leave gpu_layers out",
        )
    version = str(llama_cpp.__version__)
    watch = _Watch(Ggml(lib._lib, version))
    with said(lib) as errors, _model(lib, path, settings, errors) as model:
        count = _check_vocabulary(lib, model, prompts)
        with _context(lib, model, prompts, rows, settings, watch, errors) as context:
            yield Llama(settings, version, count, lib, context, watch, errors)


class _Run:
    """Passes over sequences that share one cache, whose cells are filled in order of coming."""

    def __init__(self, llama: Llama, plans: Sequence[Plan], puts: Sequence[Put]) -> None:
        self._llama, self._puts = llama, puts
        self._plan = plans[0]
        self._wanted = [file.key for file in self._plan.files]
        self._nodes = NodeMap(self._plan.model.graph, self._plan.model.weights)
        self._cells: list[list[int]] = [[] for _ in plans]
        self._head = self._plan.model.graph.nodes[-1]
        self.rows = torch.empty(0)  # the logits [T,V] of the last pass

    @property
    def engine(self) -> Mapping[str, Any]:
        return self._llama.engine

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(_derived_notes(self._plan.model.graph))

    def __call__(self, pieces: Sequence[Piece]) -> list[torch.Tensor]:
        spans, start = [], 0
        taken = sum(map(len, self._cells))
        for piece in pieces:
            stretch, cells = piece.stretch, self._cells[piece.sequence]
            cells += range(taken + start, taken + start + stretch.rows)
            rows = slice(start, start + stretch.rows)
            spans.append(Span(self._puts[piece.sequence], rows, stretch.first, tuple(cells)))
            start = rows.stop
        fed = [
            (piece.sequence, piece.stretch.first + at, token)
            for piece in pieces
            for at, token in enumerate(piece.tokens)
        ]
        watch = Collector(self._nodes, start, self._wanted, _nowhere, spans)
        width = self._plan.model.graph.vocab_size
        self.rows = self._llama.decode(fed, watch)[:, :width]
        every = self._plan.job.logits == "all"
        if self._plan.stretches and self._head.key in self._wanted:
            for span in spans:
                first = span.rows.start if every else span.rows.stop - 1
                span.put(self._head.key, self.rows[first : span.rows.stop])
        return [self.rows[span.rows.stop - 1] for span in spans]


def _nowhere(key: StageKey, value: torch.Tensor) -> None:
    """Every row is of some span."""


def _derived_notes(graph: Graph) -> Iterator[str]:
    """Which stages follow from others, and why."""
    acts = {node.key.stage for node in fused(graph)}
    if acts:
        yield f"{' and '.join(sorted(acts))} is derived: llama.cpp fuses it with the product"
    for stage in sorted({node.key.stage for node in graph.parallel_sums}):
        yield f"{stage} is derived: llama.cpp adds the layer's other branch first"


class _Watch:
    """The callback. What it raises is kept: nothing can pass through C."""

    def __init__(self, ggml: Ggml) -> None:
        self._ggml = ggml
        self.collector: Watches | None = None
        self.failure: BaseException | None = None

    def __call__(self, address: int, ask: bool, user: object) -> bool:
        if self.failure is not None or self.collector is None:
            return ask  # look at the very next node, then refuse it: that ends the pass
        try:
            node = self._ggml.node(address)
            if ask:
                return self.collector.wants(node)
            self.collector.take(node, self._ggml.values(address))
        except BaseException as error:  # raised again when llama_decode has returned
            self.failure = error
            return ask
        return True


@contextmanager
def said(lib: Any) -> Iterator[list[str]]:
    """The error lines that llama.cpp logs while inside; everything else it says is dropped."""
    errors: list[str] = []

    @lib.llama_log_callback  # type: ignore[untyped-decorator]
    def log(level: int, text: bytes, user: object) -> None:
        if level == _LOG_ERROR and text.strip():
            errors.append(text.decode("utf-8", "replace").strip())

    before, user = lib.llama_log_callback(), ctypes.c_void_p()
    lib.llama_log_get(ctypes.byref(before), ctypes.byref(user))
    lib.llama_log_set(log, ctypes.c_void_p())
    try:
        yield errors
    finally:
        lib.llama_log_set(before, user)


def _first(errors: list[str]) -> str:
    return clean(errors[0].split("\n", 1)[0], 300) if errors else "it says nothing"


@contextmanager
def _model(lib: Any, path: Path, settings: LlamaSettings, errors: list[str]) -> Iterator[Any]:
    lib.llama_backend_init()
    params = lib.llama_model_default_params()
    params.n_gpu_layers = settings.gpu_layers
    params.use_extra_bufts = False  # repacked weights have kernels of their own
    model = lib.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        raise BadFileError(path, f"llama.cpp refuses it: {_first(errors)}", hint="--engine aprtui")
    try:
        yield model
    finally:
        lib.llama_model_free(model)


def _check_vocabulary(lib: Any, model: Any, prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens it has."""
    count = int(lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model)))
    fed = (token for prompt in prompts for token in prompt)
    outside = next((token for token in fed if token >= count), None)
    if outside is not None:
        raise UsageError(
            f"token {outside:,} lies outside llama.cpp's vocabulary of {count:,} tokens",
            hint=f"ids go from 0 to {count - 1:,}",
        )
    return count


@contextmanager
def _context(
    lib: Any,
    model: Any,
    prompts: Sequence[Sequence[int]],
    rows: int,
    settings: LlamaSettings,
    watch: _Watch,
    errors: list[str],
) -> Iterator[Any]:
    callback = lib.ggml_backend_sched_eval_callback(watch)  # kept alive until the context is freed
    params = lib.llama_context_default_params()
    params.n_ctx = math.ceil(rows / _PADDING) * _PADDING
    params.n_batch = params.n_ubatch = sum(map(len, prompts))
    if len(prompts) > 1:
        if not hasattr(params, "kv_unified"):
            raise EngineError(
                "this llama-cpp-python has no cache that sequences share",
                hint="0.3.36 is known to work; --batch runs on aprtui's own engine, too",
            )
        params.n_seq_max, params.kv_unified = len(prompts), True
    params.n_threads = params.n_threads_batch = settings.threads
    params.type_k = params.type_v = _KV_TYPES[settings.kv]
    params.flash_attn_type = 1 if settings.flash else 0
    params.swa_full = True  # keys stay where their positions are, in sliding layers too
    params.cb_eval = callback
    context = lib.llama_init_from_model(model, params)
    if not context:
        raise EngineError(f"llama.cpp cannot set up the pass: {_first(errors)}")
    try:
        yield context
    finally:
        lib.llama_free(context)
        del callback
