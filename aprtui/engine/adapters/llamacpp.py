"""llama.cpp as an engine: one prefill through llama-cpp-python, its nodes captured as they run.

Nodes are read through ``cb_eval``, which the scheduler calls before a node (is it wanted?) and
after it (here it is): memory is that of the model, one layer's parts and one node.
"""

from __future__ import annotations

import ctypes
import dataclasses
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from aprtui.engine.adapters import LlamaSettings, Put, Ran
from aprtui.engine.adapters.ggml import Ggml
from aprtui.engine.adapters.nodes import Collector, NodeMap, parallel_sums
from aprtui.errors import BadFileError, EngineError, UsageError
from aprtui.graph import Graph
from aprtui.graph.ops import Activate
from aprtui.text import clean

if TYPE_CHECKING:
    from aprtui.engine.plan import Plan

__all__ = ["run"]

_KV_TYPES = {"f32": 0, "f16": 1}  # ggml_type
_LOG_ERROR, _LOG_CONTINUED = 4, 5  # ggml_log_level
_PADDING = 256  # llama.cpp rounds the context up to this


def run(plan: Plan, device: torch.device, put: Put) -> Ran:
    """One prefill of the plan's tokens with every planned stage given to ``put``.

    Raises BadFileError with llama.cpp's own words when it refuses the file, EngineError when a
    build's callback differs or the pass fails, UsageError for tokens outside its vocabulary.
    """
    import llama_cpp
    from llama_cpp import llama_cpp as lib

    settings = LlamaSettings.parse(plan.job.engine_args)
    on_gpu = settings.gpu_layers > 0
    if on_gpu and not lib.llama_supports_gpu_offload():
        raise UsageError(
            "this build of llama-cpp-python cannot use a GPU",
            hint="reinstall it with CMAKE_ARGS=-DGGML_CUDA=on, or leave gpu_layers out",
        )
    version = str(llama_cpp.__version__)
    graph, planned = plan.model.graph, [file.key for file in plan.files]
    nodes = NodeMap(graph, plan.model.weights)
    collector = Collector(nodes, len(plan.tokens), planned, put)
    watch = _Watch(Ggml(lib._lib, version), collector)
    with _said(lib) as errors, _model(lib, plan, settings, errors) as model:
        _check_vocabulary(lib, model, plan)
        with _context(lib, model, plan, settings, watch, errors) as context:
            logits = _prefill(lib, context, plan, watch, errors)
    put(graph.nodes[-1].key, logits)
    engine = {
        "name": "llama.cpp",
        "version": f"llama-cpp-python {version}",
        **({"device": "gpu", "device_name": "llama.cpp's GPU"} if on_gpu else {}),
        "dtype": "float32",
        "threads": settings.threads,
        "settings": {**dataclasses.asdict(settings), "repack": False},
    }
    return Ran(logits, engine, tuple(_derived_notes(graph)))


def _derived_notes(graph: Graph) -> Iterator[str]:
    """Which stages follow from others, and why."""
    fused = {node.key.stage for node in graph if isinstance(node.op, Activate)}
    if fused:
        yield f"{' and '.join(sorted(fused))} is derived: llama.cpp fuses it with the product"
    for stage in sorted({node.key.stage for node in parallel_sums(graph)}):
        yield f"{stage} is derived: llama.cpp adds the layer's other branch first"


class _Watch:
    """The callback. What it raises is kept: nothing can pass through C."""

    def __init__(self, ggml: Ggml, collector: Collector) -> None:
        self._ggml = ggml
        self._collector = collector
        self.failure: BaseException | None = None

    def __call__(self, address: int, ask: bool, user: object) -> bool:
        if self.failure is not None:
            return ask  # look at the very next node, then refuse it: that ends the pass
        try:
            node = self._ggml.node(address)
            if ask:
                return self._collector.wants(node)
            self._collector.take(node, self._ggml.values(address))
        except BaseException as error:  # raised again when llama_decode has returned
            self.failure = error
            return ask
        return True


@contextmanager
def _said(lib: Any) -> Iterator[list[str]]:
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
def _model(lib: Any, plan: Plan, settings: LlamaSettings, errors: list[str]) -> Iterator[Any]:
    lib.llama_backend_init()
    params = lib.llama_model_default_params()
    params.n_gpu_layers = settings.gpu_layers
    params.use_extra_bufts = False  # repacked weights have kernels of their own
    model = lib.llama_model_load_from_file(os.fsencode(plan.model.path), params)
    if not model:
        raise BadFileError(
            plan.model.path, f"llama.cpp refuses it: {_first(errors)}", hint="--engine aprtui"
        )
    try:
        yield model
    finally:
        lib.llama_model_free(model)


def _check_vocabulary(lib: Any, model: Any, plan: Plan) -> None:
    count = int(lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model)))
    outside = next((token for token in plan.tokens if token >= count), None)
    if outside is not None:
        raise UsageError(
            f"token {outside:,} lies outside llama.cpp's vocabulary of {count:,} tokens",
            hint=f"ids go from 0 to {count - 1:,}",
        )


@contextmanager
def _context(
    lib: Any, model: Any, plan: Plan, settings: LlamaSettings, watch: _Watch, errors: list[str]
) -> Iterator[Any]:
    tokens = len(plan.tokens)
    callback = lib.ggml_backend_sched_eval_callback(watch)  # kept alive until the context is freed
    params = lib.llama_context_default_params()
    params.n_ctx = math.ceil(tokens / _PADDING) * _PADDING
    params.n_batch = params.n_ubatch = tokens
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


def _prefill(lib: Any, context: Any, plan: Plan, watch: _Watch, errors: list[str]) -> torch.Tensor:
    """The logits [V] of the last position, or [T,V]."""
    tokens = len(plan.tokens)
    batch = lib.llama_batch_init(tokens, 0, 1)
    try:
        batch.n_tokens = tokens
        for place, token in enumerate(plan.tokens):
            batch.token[place] = token
            batch.pos[place] = place
            batch.n_seq_id[place] = 1
            batch.seq_id[place][0] = 0
            batch.logits[place] = True  # else the last layer is cut to one position
        status = lib.llama_decode(context, batch)
    finally:
        lib.llama_batch_free(batch)
    if watch.failure is not None:
        raise watch.failure
    if status:
        raise EngineError(f"llama.cpp's pass failed with {status}: {_first(errors)}")
    width = plan.model.graph.vocab_size
    first = 0 if plan.job.logits == "all" else tokens - 1
    rows = [
        np.ctypeslib.as_array(lib.llama_get_logits_ith(context, place), (width,)).copy()
        for place in range(first, tokens)
    ]
    return torch.from_numpy(np.stack(rows) if plan.job.logits == "all" else rows[0])
