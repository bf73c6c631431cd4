"""A capture's layers replayed in several processes, to the result of one, bit for bit.

What one stage taught is tried first at the next, so stages cannot simply be replayed apart. Each
process is told what the first layer taught and goes on from there, saying of each stage what it
tried first. Here the stages are then walked in order of computation: where that is what one process
would have tried the finding is taken, else the stage is measured again. Culprits are named last, by
what is known of all the stages before them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from aprtui.compare.bisect import Progress
from aprtui.compare.bisection import Bisection, Culprit, Explained, Unmeasured, Within
from aprtui.compare.captured import open_captured
from aprtui.compare.causes import Read
from aprtui.compare.metrics import Cancelled
from aprtui.compare.numerics import Numerics
from aprtui.compare.spans import ExactTypes
from aprtui.compare.worker import Options, Worker
from aprtui.engine.replay import one_core
from aprtui.formats.tracedir import StageKey, TraceDir
from aprtui.graph import Node
from aprtui.graph.ops import Embed, Op
from aprtui.model.open import Model, open_model

__all__ = ["Found", "Known", "Piece", "Run", "replay_piece", "spread_over"]

_LISTS = ("culprits", "explained", "within", "unmeasured", "missing", "innocent", "notes")


@dataclass(frozen=True)
class Known:
    """What the stages measured so far have taught."""

    learnt: tuple[tuple[str, Numerics], ...] = ()
    numerics: tuple[tuple[type[Op], Numerics], ...] = ()
    honest: float | None = None


@dataclass(frozen=True)
class Piece:
    """What one process replays: some stages of a capture, in order of computation.

    ``naming``: culprits are named, which is right where ``known`` is what one process would know.
    """

    model: Path
    overrides: Mapping[str, str]
    adapter: Path | None
    b: TraceDir
    a: TraceDir | None
    tokens: tuple[int, ...] | None
    options: Options
    keys: tuple[StageKey, ...]
    known: Known
    naming: bool = False


@dataclass(frozen=True)
class Found:
    """What measuring one stage added to the findings.

    ``likely`` is what was tried first (None: nothing depends on it), ``learnt`` what it taught,
    ``pending`` the doubt that only the whole capture settles. ``unnamed``: it is a culprit to name.
    """

    key: StageKey
    likely: tuple[Numerics, ...] | None
    learnt: Numerics | None
    exact: ExactTypes
    covered: frozenset[StageKey]
    pending: Unmeasured | None
    unnamed: bool
    culprits: tuple[Culprit, ...] = ()
    explained: tuple[Explained, ...] = ()
    within: tuple[Within, ...] = ()
    unmeasured: tuple[Unmeasured, ...] = ()
    missing: tuple[StageKey, ...] = ()
    innocent: tuple[Read, ...] = ()
    notes: tuple[str, ...] = field(default=())


Run = Callable[[Sequence[Piece]], Iterable[tuple[Found, ...]]]
"""Replays pieces wherever it likes; results as they come, in any order."""


def replay_piece(piece: Piece) -> tuple[Found, ...]:
    """The stages of a piece, in this process. Raises BadFileError, UsageError, EngineError."""
    model = _opened(piece.model, tuple(sorted(piece.overrides.items())), piece.adapter)
    whole_heads = piece.options.whole_heads
    captured = open_captured(piece.b, model.graph, piece.tokens, whole_heads=whole_heads)
    worker = Worker(model, captured, piece.tokens, piece.a, piece.options)
    worker.learnt, worker.numerics = dict(piece.known.learnt), dict(piece.known.numerics)
    worker.honest, worker.naming = piece.known.honest, piece.naming
    nodes = {node.key: node for node in captured.graph}
    with one_core():
        return tuple(_measured(worker, nodes[key]) for key in piece.keys)


@lru_cache(maxsize=2)
def _opened(path: Path, overrides: tuple[tuple[str, str], ...], adapter: Path | None) -> Model:
    return open_model(path, dict(overrides), adapter=adapter)


def spread_over(run: Run, processes: int) -> Callable[..., Bisection]:
    """A ``Replayer`` that has layers replayed by ``run``, in so many pieces at least as there are
    processes."""

    def replayed(
        worker: Worker, progress: Progress | None, cancelled: Callable[[], bool] | None
    ) -> Bisection:
        return _Spread(worker, run, processes, progress, cancelled).result()

    return replayed


def _measured(worker: Worker, node: Node) -> Found:
    """Measure one stage and take out of the worker what that added; what it taught stays."""
    marks = {name: len(getattr(worker, name)) for name in _LISTS}
    exact, covered = worker.exact, worker.covered
    worker.exact, worker.covered = ExactTypes(worker.bars.rel_l2), set()
    worker.likely, worker.unnamed = None, False
    waiting = len(worker.pending)
    worker.measure(node)
    added: dict[str, Any] = {name: tuple(getattr(worker, name)[at:]) for name, at in marks.items()}
    for name, at in marks.items():
        del getattr(worker, name)[at:]
    pending = worker.pending.pop()[2] if len(worker.pending) > waiting else None
    learnt = worker.learnt[node.key.stage] if added["explained"] else None
    found = Found(
        node.key, worker.likely, learnt, worker.exact, frozenset(worker.covered), pending,
        worker.unnamed, **added,
    )  # fmt: skip
    worker.exact, worker.covered = exact, covered
    return found


class _Spread:
    """One bisection, spread over processes."""

    def __init__(
        self,
        worker: Worker,
        run: Run,
        processes: int,
        progress: Progress | None,
        cancelled: Callable[[], bool] | None,
    ) -> None:
        self._worker, self._run, self._processes = worker, run, processes
        self._progress, self._cancelled = progress, cancelled
        self._nodes = worker.nodes
        self._done = 0

    def result(self) -> Bisection:
        first, rest = self._first_layer()
        found = {node.key: self._here(node) for node in first}
        pieces = [self._piece(keys, self._known(), naming=False) for keys in self._shares(rest)]
        there = self._there(pieces)
        unnamed: list[Piece] = []
        self._worker.naming = False
        for node in rest:
            each = there[node.key]
            if each.likely is None or each.likely == self._worker.likely_of(node):
                self._learn(node, each)
            else:
                each = self._here(node, counted=False)
            found[node.key] = each
            if each.unnamed:
                unnamed.append(self._piece((node.key,), self._known(), naming=True))
        self._worker.naming = True
        found |= self._there(unnamed)
        for node in self._nodes:
            self._add(node, found[node.key])
        with one_core():
            self._worker.settle()
        self._tell(self._nodes[-1].key if self._nodes else None)
        return self._worker.result()

    def _first_layer(self) -> tuple[list[Node], list[Node]]:
        """What is measured here, for what it teaches: up to the first layer's end, and whatever
        tells the token ids."""
        layers = [node.key.layer for node in self._nodes if node.key.layer is not None]
        lowest = min(layers, default=None)
        ends = [
            place for place, node in enumerate(self._nodes, 1)
            if node.key.layer == lowest or isinstance(node.op, Embed)
        ]  # fmt: skip
        end = max(ends, default=0)
        return self._nodes[:end], self._nodes[end:]

    def _shares(self, nodes: Sequence[Node]) -> Iterator[tuple[StageKey, ...]]:
        """Whole layers, as evenly as they come; what is of no layer goes with the one before."""
        layers: list[list[StageKey]] = []
        for layer, group in itertools.groupby(nodes, lambda node: node.key.layer):
            keys = [node.key for node in group]
            if layer is None and layers:
                layers[-1] += keys
            else:
                layers.append(keys)
        count = max(1, min(len(layers), 2 * self._processes))
        for number in range(count):
            start, stop = (len(layers) * each // count for each in (number, number + 1))
            if share := tuple(key for layer in layers[start:stop] for key in layer):
                yield share

    def _piece(self, keys: tuple[StageKey, ...], known: Known, *, naming: bool) -> Piece:
        worker = self._worker
        model, adapter = worker.replay.model, worker.replay.model.file.adapter
        reference = None if worker.reference is None else worker.reference.trace
        return Piece(
            model.path,
            model.overrides,
            None if adapter is None else adapter.path,
            worker.captured.trace,
            reference,
            worker.replay.tokens or None,
            worker.options,
            keys,
            known,
            naming,
        )

    def _known(self) -> Known:
        worker = self._worker
        return Known(tuple(worker.learnt.items()), tuple(worker.numerics.items()), worker.honest)

    def _here(self, node: Node, *, counted: bool = True) -> Found:
        self._tell(node.key)
        with one_core():
            found = _measured(self._worker, node)
        self._worker.exact.join(found.exact)
        self._done += counted
        return found

    def _there(self, pieces: Sequence[Piece]) -> dict[StageKey, Found]:
        found: dict[StageKey, Found] = {}
        for share in self._run(pieces) if pieces else ():
            found |= {each.key: each for each in share}
            self._done += len(share) * (not pieces[0].naming)
            self._tell(share[-1].key)
        return found

    def _learn(self, node: Node, found: Found) -> None:
        """Know what a stage taught that was measured elsewhere."""
        worker = self._worker
        worker.exact.join(found.exact)
        if found.learnt is not None:
            worker.numerics[type(node.op)] = found.learnt
            worker.learnt.pop(node.key.stage, None)
            worker.learnt[node.key.stage] = found.learnt
            most = max(each.residual_rel_l2 for each in found.explained)
            worker.honest = max(worker.honest or 0.0, most)

    def _add(self, node: Node, found: Found) -> None:
        """The findings of a stage, in their place."""
        worker = self._worker
        for name in _LISTS:
            getattr(worker, name).extend(getattr(found, name))
        worker.covered |= found.covered
        if found.pending is not None:
            worker.pending.append((node, worker.sources[node.key], found.pending))

    def _tell(self, key: StageKey | None) -> None:
        if self._cancelled is not None and self._cancelled():
            raise Cancelled
        if self._progress is not None and key is not None:
            self._progress(min(self._done, len(self._nodes)), len(self._nodes), key)
