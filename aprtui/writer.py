"""Write a trace from any program: the other side of a comparison in five lines.

    from aprtui import CaptureWriter

    with CaptureWriter("trace", tokens=ids, model="model.gguf", engine={"name": "mine"}) as capture:
        for layer in range(layers):
            ...
            capture.put("ffn_gate", gate, layer=layer)

A runtime that runs several passes (chunks of the prompt, decode steps) says where the rows of each
stand, and what it was fed meanwhile:

        capture.put("ffn_gate", gate, layer=layer, positions=[12])
        capture.feed([token])

Importing it needs neither torch nor textual. Stage names and shapes: ``aprtui.graph.vocabulary``.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from aprtui.engine.arrays import Float32, as_float32
from aprtui.engine.behind import Behind
from aprtui.engine.events import (
    Emit,
    Event,
    Failed,
    Finished,
    Planned,
    StageWritten,
    Started,
    Stopped,
)
from aprtui.engine.folder import TraceFolder, trace_folder
from aprtui.engine.manifest import Written, build_manifest, model_entry
from aprtui.engine.spool import Spool
from aprtui.engine.stopping import TraceStopped, raise_if_stopped
from aprtui.errors import AprtuiError, UsageError
from aprtui.formats.rows import Rows
from aprtui.formats.summary import summarise
from aprtui.formats.tracedir import StageKey, key_of, relative_path
from aprtui.graph import Absent, Graph
from aprtui.graph.vocabulary import ALIASES, STAGES, axes_of, facts_of, order_of
from aprtui.model.open import Model, open_model
from aprtui.text import clean, nearest, ranges

__all__ = ["CaptureWriter"]

_NAMES = tuple(kind.name for kind in STAGES)
# What the manifest knows of an engine; whatever else is given stands under its settings.
_ENGINE_FIELDS = frozenset(
    {"name", "version", "device", "device_name", "dtype", "threads", "activations", "settings"}
)


class CaptureWriter:
    """A trace being written: every ``put`` becomes a whole file, the manifest comes at the end.

    A CUDA tensor leaves its device through pinned memory, in order with what is queued there and
    together with others, and is written by a thread: ``put`` waits for neither. What is queued
    later may overwrite it.

    ``tokens`` are the ids that the pass was run on. ``model`` (a model file or folder, an opened
    ``Model`` or a ``Graph``) lets stages and shapes be checked and the trace be replayed;
    without it nothing is checked but the names. ``engine`` says who computed: ``name``, and what
    else is known (``version``, ``device``, ``dtype``, ``threads``; other keys are its settings).
    ``activations="float32"`` says that it does not round activations before products.

    ``rows`` says where the rows of every stage stand and which pass made each, where that is not
    one pass from position 0 on; without it the ``positions`` of ``put`` tell. Of a batch of several
    sequences each is a capture of its own, put row by row: ``sequence`` is its number.

    ``described`` is what the manifest says of a model that no family here knows, or whose engine
    has names of its own. ``planned`` is the first event, where the trace was planned before;
    ``on_event`` is told each as it happens.

    When the body raises, the files stay, ``events.jsonl`` says why, and there is no manifest: the
    trace counts as incomplete. Raises UsageError for what cannot be asked, EngineError for a disk.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        tokens: Sequence[int],
        engine: Mapping[str, Any],
        model: str | Path | Model | Graph | None = None,
        prompt: str | None = None,
        rows: Rows | None = None,
        sequence: int | None = None,
        overwrite: bool = False,
        described: Mapping[str, Any] | None = None,
        planned: Planned | None = None,
        on_event: Emit | None = None,
    ) -> None:
        self.directory = Path(directory)
        self._planned, self._on_event = planned, on_event
        self._described = dict(described or {})
        self._engine = _engine_entry(engine)
        opened = open_model(Path(model)) if isinstance(model, (str, Path)) else model
        self._model = opened if isinstance(opened, Model) else None
        self._graph = opened.graph if isinstance(opened, Model) else opened
        self._tokens = _checked_tokens(tokens, self._graph)
        self._prompt = prompt
        self._rows, self._sequence = rows, sequence
        self._spool: Spool | None = None  # made when the first pass of several is put
        self._overwrite = overwrite
        self._put: set[StageKey] = set()
        self._written: dict[StageKey, Written] = {}
        self._written_bytes = 0
        self._behind: Behind | None = None  # made when the first tensor leaves a device
        self._leaving: Any = None  # and this
        self._landing = threading.Lock()
        self._absent: dict[str, str] = {}
        self._notes: list[str] = []
        self._open = ExitStack()
        self._folder: TraceFolder | None = None
        self._start = 0.0

    # -- what a runtime calls ------------------------------------------------------------------

    def put(
        self,
        stage: str,
        value: Any,
        *,
        layer: int | None = None,
        axes: Sequence[str] | None = None,
        positions: Sequence[int] | None = None,
    ) -> None:
        """Write one stage of one layer (``layer=None``: of the whole model).

        ``positions``: where the rows of ``value`` stand, when one pass of several made them; they
        are put together when the capture ends. Of logits any of a pass's rows may be put.

        ``value``: a numpy array, a torch tensor of any device, or anything with ``__array__`` or
        DLPack, of any real type; it is widened or rounded to float32. With a model its shape must
        be the stage's; a leading batch of one and heads not yet split are fine. A name that is no
        stage of ours is kept; ``axes`` name its dimensions. Raises UsageError.
        """
        if self._folder is None:
            raise UsageError("the capture is not open", hint="with CaptureWriter(...) as capture:")
        self._raise_failure()
        raise_if_stopped()
        key = self._key(stage, layer, again=positions is not None)
        on_device = getattr(value, "is_cuda", False) and not value.is_complex()
        values = None if on_device else as_float32(value, str(key))
        if positions is not None:
            land = partial(self._keep, key, tuple(positions))
        else:
            given = tuple(value.shape) if values is None else values.shape
            land = partial(self._land, key, *self._shape(key, given, axes))
        if values is None:
            self._leave(value, land)
        else:
            land(values)
        self._put.add(key)

    def feed(self, tokens: Sequence[int]) -> None:
        """Add the token ids that later passes were run on."""
        self._tokens += _checked_tokens(tokens, self._graph)

    def _keep(self, key: StageKey, positions: tuple[int, ...], values: Float32) -> None:
        """Keep the rows of one pass until the stage is whole."""
        if "key" in (axes_of(key.stage) or ()):
            raise UsageError(f"{key} of one pass of several cannot be stacked: it has no rows")
        some = facts_of(key.stage).logits
        if some and values.ndim == 1:
            values = values[None]
        if values.ndim > 1 and len(values) == 1 and len(positions) > 1:
            values = values[0]
        node = self._graph[key] if self._graph is not None and key in self._graph else None
        if node is not None and values.size != len(positions) * math.prod(node.shape(1)):
            expected = list(node.shape(len(positions), "all"))
            raise UsageError(f"{key} is {list(values.shape)} where {expected} was expected")
        with self._landing:
            self._spool = self._spool or Spool(self.directory)
            self._spool.put(key, positions, values, some=some)

    def _leave(self, value: Any, land: Callable[[Float32], None]) -> None:
        """Queue a CUDA tensor's way off its device, and what is done with it then."""
        from aprtui.engine.leaving import Leaving  # torch is there: it made the tensor

        behind = self._behind = self._behind or Behind("capture-writer")
        self._leaving = self._leaving or Leaving(behind)

        def arrived(values: Any) -> None:
            if behind.failure is None:
                land(values.numpy())

        self._leaving.take(value.detach(), arrived)

    def _land(
        self,
        key: StageKey,
        shape: tuple[int, ...],
        names: tuple[str, ...],
        values: Float32,
        positions: str | tuple[int, ...] = "all",
    ) -> None:
        """Write one stage and say so."""
        assert self._folder is not None
        size = self._folder.write_stage(key, values)
        if facts_of(key.stage).logits and len(shape) == 1:
            positions = "last"
        stats = summarise(values)
        with self._landing:
            self._written[key] = Written(key, shape, names, positions, size, stats)
            self._written_bytes += size
            self._announce(self._written[key])

    def _let_leave(self) -> None:
        """Wait until what left a device is written."""
        if self._behind is not None:
            try:
                self._leaving.leave()
            finally:
                self._behind.end()

    def _raise_failure(self) -> None:
        """Raises what a file met that was written behind the caller's back."""
        if self._behind is not None and self._behind.failure is not None:
            raise self._behind.failure

    def absent(self, stage: str, reason: str) -> None:
        """Say why this runtime does not show a stage; otherwise it is listed as not captured."""
        self._absent[_stage_name(stage)] = clean(reason, 500)

    def note(self, text: str) -> None:
        """A line for people in the manifest."""
        self._note_once(clean(text, 500))

    # -- opening and closing -------------------------------------------------------------------

    def __enter__(self) -> CaptureWriter:
        folder = trace_folder(self.directory, overwrite=self._overwrite)
        self._folder = self._open.enter_context(folder)
        self._start = time.monotonic()
        if self._planned is not None:
            self._tell(self._planned)
        elif self._graph is not None:
            self._tell(self._plan(self._graph))
        self._tell(Started(pid=os.getpid()))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._open:
            try:
                self._let_leave()
                if error is None:
                    self._raise_failure()
                    self._finish()
            except Exception as failure:  # of a device that was lost too
                error = failure
                raise
            finally:
                if self._spool is not None:
                    self._spool.close()
                if error is not None:
                    self._tell(self._end(error))
                self._folder = None

    def _stack(self, spool: Spool) -> None:
        """Write what came pass by pass, each stage whole."""
        came = spool.rows()
        rows = self._rows = self._rows or replace(came, sequence=self._sequence)
        if len(rows) != len(self._tokens):
            raise UsageError(
                f"{len(rows)} positions were put, of {len(self._tokens)} tokens",
                hint="tokens=... are those of the prompt; capture.feed([...]) adds what came later",
            )
        for key in spool:
            positions, values = spool.whole(key)
            logits = facts_of(key.stage).logits
            apart = set(rows.positions).symmetric_difference(positions)
            if not (apart.isdisjoint(positions) if logits else not apart):
                raise UsageError(
                    f"{key} and other stages are not of the same positions: {ranges(apart)}",
                    hint="put each stage in every pass, or in none",
                )
            if logits and positions == rows.positions[-1:]:
                values = values[0]
            shape, names = self._shape(key, values.shape, None, rows=len(positions))
            said = "all" if positions == rows.positions else positions
            self._land(key, shape, names, values, said)

    def _finish(self) -> None:
        if self._spool is not None:
            self._stack(self._spool)
        if not self._written:
            raise UsageError("nothing was captured: no stage was put")
        files = [self._written[key] for key in sorted(self._written, key=order_of)]
        done = Finished(
            directory=str(self.directory),
            files=len(files),
            written_bytes=self._written_bytes,
            elapsed_s=round(time.monotonic() - self._start, 4),
            peak_memory_bytes=0,
            peak_device_bytes=0,
            nonfinite=tuple(str(f.key) for f in files if f.stats["nan"] or f.stats["inf"]),
        )
        assert self._folder is not None
        self._folder.finish(self._manifest(files, done))
        self._tell(done)

    def _manifest(self, files: list[Written], done: Finished) -> dict[str, Any]:
        model, graph = self._model, self._graph
        vocabulary = model.vocabulary if model is not None else None
        logits = [file.positions for file in files if facts_of(file.key.stage).logits]
        return build_manifest(
            model=self._model_entry(),
            tokens=self._tokens,
            token_texts=[vocabulary.text_of(token) for token in self._tokens] if vocabulary else [],
            prompt=self._prompt,
            logits="all" if "all" in logits else "last",
            engine=self._engine,
            rope_layout=(graph.rope_layout or None) if graph is not None else None,
            written=files,
            layers=sorted({file.key.layer for file in files if file.key.layer is not None}),
            absent=self._absent_stages(),
            notes=self._notes,
            elapsed_s=done.elapsed_s,
            peak_memory_bytes=None,
            peak_device_bytes=None,
            rows=self._stated_rows(),
        )

    def _stated_rows(self) -> Rows | None:
        """What the manifest says of the rows: nothing of one pass from position 0 on."""
        tokens = len(self._tokens)
        rows = self._rows or replace(Rows.plain(tokens), sequence=self._sequence)
        if len(rows) != tokens:
            raise UsageError(f"rows names {len(rows)} rows of {tokens} tokens")
        return None if rows.is_plain else rows

    def _model_entry(self) -> dict[str, Any]:
        """The model as the manifest names it, as far as it is known."""
        return self._described if self._model is None else model_entry(self._model)

    def _absent_stages(self) -> list[Absent]:
        """What the model does not have, and what this runtime did not show in any layer."""
        there = {key.stage for key in self._written}
        lacking = list(self._graph.absent) if self._graph is not None else []
        known = {item.stage for item in lacking}
        expected = {*(self._graph.stages if self._graph is not None else ()), *self._absent}
        for name in sorted(expected - there - known, key=lambda name: order_of(StageKey(0, name))):
            lacking.append(Absent(name, self._absent.get(name, "not captured by this engine")))
        return lacking

    def _end(self, error: BaseException) -> Event:
        if isinstance(error, KeyboardInterrupt):
            if isinstance(error, TraceStopped):
                error.told = True
            return Stopped(files=len(self._written), directory=str(self.directory))
        if isinstance(error, AprtuiError) and self._on_event is not None:
            error.told = True
        message = clean(str(error).split("\n", 1)[0], 500)
        hint = clean(error.hint, 500) if isinstance(error, AprtuiError) else ""
        code = error.exit_code if isinstance(error, AprtuiError) else 4
        return Failed(f"{type(error).__name__}: {message}", hint, code)

    # -- names and shapes ----------------------------------------------------------------------

    def _key(self, stage: str, layer: int | None, *, again: bool) -> StageKey:
        """The stage's place; ``again``: it may have come in another pass.

        Raises UsageError for one that the model cannot have.
        """
        name = _stage_name(stage)
        scope, known = facts_of(name).scope, name in _NAMES
        layer = 0 if scope == "first" and layer is None else layer
        if scope == "model" and layer is not None:
            raise UsageError(f"{name} belongs to the whole model, not to layer {layer}")
        if known and scope != "model" and layer is None:
            raise UsageError(f"{name} needs its layer", hint=f"capture.put({name!r}, x, layer=0)")
        if layer is not None and not 0 <= int(layer) < 1 << 24:
            raise UsageError(f"layer {layer} is no layer's number")
        key = StageKey(None if layer is None else int(layer), name)
        if key in self._put and not (again and self._spool is not None and key in self._spool):
            raise UsageError(
                f"{key} was put already", hint="positions=[...] says which rows a later pass made"
            )
        if self._graph is not None and known and key not in self._graph:
            raise UsageError(f"{key}: {_why_not(key, self._graph)}")
        if not known and not self._described and (near := nearest(name, _NAMES)):
            self._note_once(f"{name} is no stage of ours and was kept; {near} is one")
        return key

    def _note_once(self, text: str) -> None:
        if text not in self._notes:
            self._notes.append(text)

    def _shape(
        self,
        key: StageKey,
        given: tuple[int, ...],
        axes: Sequence[str] | None,
        rows: int | None = None,
    ) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """The shape and axes as the manifest states them; ``rows``: of so many of the positions.

        Raises UsageError.
        """
        if self._graph is None or key not in self._graph:
            return given, self._axes(key, len(given), axes)
        node, tokens = self._graph[key], len(self._tokens) if rows is None else rows
        for logits in ("last", "all"):
            shape = node.shape(tokens, logits)
            if _fits(given, shape):
                return shape, node.axis_names(logits)
        expected, names = node.shape(tokens), node.axis_names()
        raise UsageError(
            f"{key} is {list(given)} where {list(expected)} ({', '.join(names)}) was expected",
            hint=f"{tokens} tokens, row-major, the first dimension slowest",
        )

    def _axes(self, key: StageKey, count: int, axes: Sequence[str] | None) -> tuple[str, ...]:
        if axes is not None:
            if len(axes) != count:
                raise UsageError(f"{key} has {count} dimensions and {len(axes)} axes")
            return tuple(clean(str(axis), 40) for axis in axes)
        names = axes_of(key.stage) or ()
        for found in (names, ("token", *names)):
            if len(found) == count and (found == names or facts_of(key.stage).logits):
                return found
        return tuple(f"dim{place}" for place in range(count))

    # -- events --------------------------------------------------------------------------------

    def _tell(self, event: Event) -> None:
        assert self._folder is not None
        self._folder.tell(event)
        if self._on_event is not None:
            self._on_event(event)

    def _announce(self, file: Written) -> None:
        self._tell(
            StageWritten(
                layer=file.key.layer,
                stage=file.key.stage,
                path=relative_path(file.key),
                bytes=file.bytes,
                done=len(self._written),
                files=max(len(self._graph or ()), len(self._written)),
                written_bytes=self._written_bytes,
                elapsed_s=round(time.monotonic() - self._start, 4),
                rms=file.stats["rms"],
                nan=file.stats["nan"],
                inf=file.stats["inf"],
                shape=file.shape,
                axes=file.axes,
                positions=file.positions,
            )
        )

    def _plan(self, graph: Graph) -> Planned:
        """The first event: tokens and model, so that a capture that breaks off can be read."""
        model = self._model
        return Planned(
            directory=str(self.directory),
            model=str(model.path) if model is not None else "",
            architecture=model.architecture if model is not None else "",
            num_layers=graph.num_layers,
            tokens=self._tokens,
            token_texts=(),
            stages=graph.stages,
            layers=tuple(range(graph.num_layers)),
            files=len(graph),
            write_bytes=0,
            free_bytes=0,
            read_bytes=0,
            memory_bytes=0,
            device=str(self._engine.get("device", "")),
            device_name=str(self._engine.get("device_name", "")),
            dtype=str(self._engine.get("dtype", "")),
            only_in=graph.only_in(graph.stages, range(graph.num_layers)),
            manifest={
                "model": self._model_entry(),
                "engine": self._engine,
                "prompt": self._prompt,
                "rope_layout": graph.rope_layout,
            },
        )


def _engine_entry(engine: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest's engine: what it has fields for, the rest under ``settings``."""
    name = engine.get("name")
    if not isinstance(name, str) or not name.strip():
        raise UsageError("the engine has no name", hint='engine={"name": "mine"}')
    known = {key: value for key, value in engine.items() if key in _ENGINE_FIELDS}
    rest = {str(key): value for key, value in engine.items() if key not in _ENGINE_FIELDS}
    entry = {**known, **({"settings": {**known.get("settings", {}), **rest}} if rest else {})}
    try:
        json.dumps(entry, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UsageError(f"the engine's settings cannot be written as JSON: {error}") from error
    return entry


def _checked_tokens(tokens: Sequence[int], graph: Graph | None) -> tuple[int, ...]:
    ids = tuple(int(token) for token in tokens)
    if ids and min(ids) < 0:
        raise UsageError(f"{min(ids)} is no token id: they count from 0")
    if not ids:
        raise UsageError("a capture needs the token ids of its prompt", hint="tokens=[1, 2, 3]")
    if graph is not None and max(ids) >= graph.vocab_size:
        raise UsageError(
            f"token {max(ids):,} lies outside the vocabulary of {graph.vocab_size:,} tokens"
        )
    return ids


def _stage_name(stage: str) -> str:
    """The stage's own name: an alias resolved, ours in lower case, an unknown one as it is."""
    lower = ALIASES.get(stage.lower(), stage.lower())
    if lower in _NAMES:
        return lower
    if key_of(relative_path(StageKey(None, stage))) != StageKey(None, stage):
        raise UsageError(
            f"{clean(stage)!r} cannot be a stage's name", hint="letters, digits, _ - and ."
        )
    return stage


def _why_not(key: StageKey, graph: Graph) -> str:
    """Why the model has no such stage there."""
    for item in graph.absent:
        if item.stage == key.stage:
            return f"it does not exist in this model: {item.reason}"
    if facts_of(key.stage).scope == "first":
        return f"the {key.stage} belongs to layer 0"
    if key.layer is None or key.layer >= graph.num_layers:
        return f"the model has layers 0..{graph.num_layers - 1}"
    return f"that layer has no such stage; layers {ranges(graph.layers_of[key.stage])} have it"


def _fits(given: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether values of a shape are the stage's, but for a batch of one or heads not yet split."""
    if given == shape or (len(shape) == 3 and given == (shape[0], shape[1] * shape[2])):
        return True
    return len(given) > 1 and given[0] == 1 and _fits(given[1:], shape)
