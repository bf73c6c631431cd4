"""Which stages compute wrongly: every stage of a capture replayed from the capture's own inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from aprtui.compare.bars import check_overrides, choose_bars
from aprtui.compare.bisection import Bisection, Divergence
from aprtui.compare.captured import open_captured
from aprtui.compare.infer import with_shapes
from aprtui.compare.metrics import Cancelled
from aprtui.compare.pairs import FAILED, check_tokens, compare_traces
from aprtui.compare.suited import check_ids, check_positions
from aprtui.compare.worker import Options, Worker
from aprtui.engine.replay import one_core
from aprtui.errors import BadFileError, UsageError
from aprtui.formats.tracedir import StageKey, TraceDir
from aprtui.model.open import Model

__all__ = ["Progress", "Replayer", "bisect", "in_turn"]

Progress = Callable[[int, int, StageKey], None]
Replayer = Callable[["Worker", Progress | None, Callable[[], bool] | None], Bisection]


def bisect(
    model: Model,
    b: TraceDir,
    a: TraceDir | None = None,
    *,
    tokens: tuple[int, ...] | None = None,
    options: Options | None = None,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
    replayer: Replayer | None = None,
) -> Bisection:
    """Replay every stage of ``b`` in float64 and name the culprits (docs/compare.md 4 and 5).

    ``tokens`` replace those of b's manifest. With ``a`` also the first divergence and what each
    stage inherits; where b has no culprit and they diverge all the same, a is replayed as well.
    ``replayer`` has the stages measured: ``in_turn`` unless it is given (``compare.spread``).
    Raises UsageError when model, tokens or captures do not belong together, EngineError for weights
    that have no decoder, metrics.Cancelled.
    """
    options, replayed = options or Options(), replayer or in_turn
    if a is not None:
        check_tokens(a, b)
    ids = tokens if tokens is not None else b.token_ids
    check_ids(ids, model)
    captured = open_captured(b, model.graph, ids, whole_heads=options.whole_heads)
    check_positions(captured)
    check_overrides(options.overrides, (*captured.graph.by_key, *b.records))
    found = replayed(Worker(model, captured, ids, a, options), progress, cancelled)
    reference = None if a is None else str(a.root)
    found = replace(found, model=str(model.path), a=reference, b=str(b.root))
    if a is None:
        return found
    divergence = _first_divergence(a, captured.trace, model, cancelled)
    found = replace(found, first_divergence=divergence)
    if divergence is None or found.culprits or not options.reference:
        return found
    try:
        other = Worker(model, open_captured(a, model.graph, ids), ids, None, options, name="A")
        return replace(found, reference=replayed(other, progress, cancelled))
    except (UsageError, BadFileError) as error:
        return replace(found, notes=(*found.notes, f"A could not be replayed: {error.message}"))


def in_turn(
    worker: Worker, progress: Progress | None, cancelled: Callable[[], bool] | None
) -> Bisection:
    """Every stage in order of computation, in this process."""
    chosen = worker.nodes
    with one_core():  # thousands of small operations, and products by threads of the engine's own
        for done, node in enumerate(chosen):
            if cancelled is not None and cancelled():
                raise Cancelled
            if progress is not None:
                progress(done, len(chosen), node.key)
            worker.measure(node)
        worker.settle()
    if progress is not None and chosen:
        progress(len(chosen), len(chosen), chosen[-1].key)
    return worker.result()


def _first_divergence(
    a: TraceDir, b: TraceDir, model: Model, cancelled: Callable[[], bool] | None
) -> Divergence | None:
    a = with_shapes(a, model.graph)
    results = compare_traces(a, b, choose_bars(a, b), cancelled=cancelled)
    first = next((result for result in results if result.kind in FAILED), None)
    return None if first is None else Divergence(first.key, first.kind, first.message)
