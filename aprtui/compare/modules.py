"""Which modules compute wrongly: a capture of transformers' modules, each replayed by its own code.

What lies between modules (residual sums, views) is no module's and is not replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from aprtui.compare.bars import BAR, Override, choose_bars, local_bars, parse_bar
from aprtui.compare.bisection import Bisection, Culprit, Divergence, Explained, Unmeasured
from aprtui.compare.causes import causes_of
from aprtui.compare.localerror import LocalError, local_error
from aprtui.compare.pairs import FAILED, compare_traces
from aprtui.engine.module_replay import Float64, LostArgument, ModuleReplay
from aprtui.errors import BadFileError, UsageError
from aprtui.formats.modulecalls import calls_of
from aprtui.formats.tracedir import StageKey, TraceDir
from aprtui.graph.select import only_layers
from aprtui.text import clean, count

__all__ = ["bisect_modules"]

_OWN = {"bfloat16": "bfloat16", "float16": "float16"}


def bisect_modules(
    model: Path,
    b: TraceDir,
    a: TraceDir | None = None,
    *,
    stages: str = "all",
    layers: str = "all",
    bars: Iterable[str] = (),
    progress: Callable[[int, int, StageKey], None] | None = None,
) -> Bisection:
    """Every captured call of ``b`` made again in float64 from what it was given. ``stages`` are
    names, or patterns of such; ``layers`` and ``bars`` are as the command line writes them.

    Raises UsageError for a capture that holds no calls, BadFileError for a model that transformers
    refuses.
    """
    calls = calls_of(b)
    if not calls:
        raise UsageError(f"{clean(str(b.root))}: holds no calls of modules")
    worker = _Worker(model, b, tuple(map(parse_bar, bars)))
    chosen = _chosen(b, stages, layers)
    for done, call in enumerate(calls):
        keys = [_key(each) for each in call["out"]]
        if any(map(chosen, keys)):
            if progress is not None:
                progress(done, len(calls), keys[0])
            worker.measure(call, keys)
    found = worker.result(str(model), None if a is None else str(a.root))
    if a is None:
        return found
    pairs = compare_traces(a, b, choose_bars(a, b))
    first = next((pair for pair in pairs if pair.kind in FAILED), None)
    if first is None:
        return found
    return replace(found, first_divergence=Divergence(first.key, first.kind, first.message))


def _chosen(b: TraceDir, stages: str, layers: str) -> Callable[[StageKey], bool]:
    """Whether a stage is one of those that were asked for."""
    wanted = only_layers(layers, 1 + max((key.layer or 0 for key in b), default=0))
    patterns = [part.strip() for part in stages.split(",")]

    def chosen(key: StageKey) -> bool:
        named = patterns == ["all"] or any(fnmatchcase(key.stage, each) for each in patterns)
        return named and (wanted is None or key.layer is None or key.layer in wanted)

    return chosen


def _key(said: Mapping[str, Any]) -> StageKey:
    return StageKey(said["layer"], said["stage"])


class _Worker:
    def __init__(self, model: Path, trace: TraceDir, overrides: tuple[Override, ...]) -> None:
        self._trace = trace
        self._tokens = len(trace.token_ids or ())
        self._bars = local_bars(self._tokens, overrides)
        engine = trace.stated.get("engine", {})
        self._dtype = str(engine.get("dtype", "float32")) if isinstance(engine, dict) else "float32"
        self._replay = ModuleReplay(model, self._values)
        self._culprits: list[Culprit] = []
        self._explained: list[Explained] = []
        self._unmeasured: list[Unmeasured] = []
        self._replayed: set[str] = set()

    def _values(self, said: Mapping[str, Any]) -> Any:
        key = _key(said)
        if key not in self._trace.records:
            raise LostArgument(f"{key}, which it was given, was not captured")
        return self._trace.records[key].values()

    def measure(self, call: Mapping[str, Any], keys: list[StageKey]) -> None:
        """Each output of one call."""
        try:
            made = self._replay.run(call)
        except LostArgument as lost:
            self._unmeasured += [Unmeasured(key, str(lost)) for key in keys]
            return
        self._replayed.add(str(call["name"]))
        for place, (said, key) in enumerate(zip(call["out"], keys, strict=True)):
            try:
                y = np.asarray(self._values(said), dtype=np.float64)
            except (LostArgument, BadFileError) as error:
                damaged = isinstance(error, BadFileError)
                self._unmeasured.append(Unmeasured(key, clean(str(error), 300), damaged))
                continue
            self._judge(call, key, place, y, made[place])

    def _judge(
        self, call: Mapping[str, Any], key: StageKey, place: int, y: Float64, right: Float64
    ) -> None:
        if y.size != right.size:
            why = f"{count(y.size, 'value')} where its code makes {right.size:,}"
            self._culprits.append(Culprit(key, "shape", (), None, None, {}, (), why, None))
            return
        shown = self._shape(key, right)
        limits = self._bars.limits(key)
        bars = (limits.get("rel_l2", BAR), limits.get("worst_row_rel_l2", 10 * BAR))
        error = _error(y.reshape(shown), right.reshape(shown))
        if error.within(bars):
            self._innocent(key, "float32", error, error)
            return
        if self._dtype in _OWN:
            own = self._replay.run(call, self._dtype)[place]
            rounded = _error(y.reshape(shown), own.reshape(shown))
            if rounded.within(bars):
                self._innocent(key, f"{self._dtype}, by the module's own code", rounded, error)
                return
        kind = "nonfinite" if error.born else "differs"
        names = ("position", *(f"dim {n}" for n in range(1, len(shown) - 1)), "channel")
        worst = dict(zip(names[-len(shown) :], error.worst, strict=False))
        looks = f"{call['class']}: its own code makes something else of what it was given"
        self._culprits.append(
            Culprit(
                key, kind, (), error.rel_l2, error.worst_row_rel_l2, worst, (), looks, None
            )
        )  # fmt: skip

    def _innocent(self, key: StageKey, by: str, left: LocalError, plain: LocalError) -> None:
        self._explained.append(Explained(key, by, {}, left.rel_l2, plain.rel_l2))

    def _shape(self, key: StageKey, right: Float64) -> tuple[int, ...]:
        """The shape of the file, else of the replay without its batch."""
        shape = self._trace.records[key].shape
        if shape is not None and int(np.prod(shape)) == right.size:
            return shape
        return right.shape[1:] if right.ndim > 1 and right.shape[0] == 1 else right.shape

    def result(self, model: str, a: str | None) -> Bisection:
        held, total = self._replay.parameters(
            {name.removesuffix(".attention") if name.endswith(".attention") else name
             for name in self._replayed if not name.endswith(".attention")}
        )  # fmt: skip
        share = held / total if total else 0.0
        note = (
            f"{len(self._replayed)} modules were replayed by transformers' own code; they hold "
            f"{share:.1%} of the parameters. What lies between modules was not replayed"
        )
        return Bisection(
            tuple(self._culprits),
            tuple(self._explained),
            tuple(self._unmeasured),
            None,
            (self._bars.rel_l2, self._bars.worst_row_rel_l2),
            self._tokens,
            "given" if self._tokens else "unknown",
            (note,),
            model=model,
            a=a,
            b=str(self._trace.root),
            causes=causes_of(self._culprits, ()),
        )


def _error(y: Float64, right: Float64) -> LocalError:
    with np.errstate(all="ignore"):
        return local_error(y, right, 0)
