"""What is compared with what, in order of computation, and the class that each pair gets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from aprtui.compare.align import Aligned, align, only_rows
from aprtui.compare.bars import Bars, Exceeded, describe, judge
from aprtui.compare.logits import logits_metrics
from aprtui.compare.metrics import Metrics, compare_values
from aprtui.errors import BadFileError, UsageError
from aprtui.formats.maps import check_maps
from aprtui.formats.modulecalls import order_of_calls
from aprtui.formats.rows import Rows
from aprtui.formats.tracedir import StageKey, StageRecord, TraceDir, key_of
from aprtui.graph.vocabulary import STAGES, facts_of, order_of
from aprtui.text import clean, count

__all__ = [
    "CLASSES",
    "FAILED",
    "PASSED",
    "UNMEASURED",
    "DiffOptions",
    "Pair",
    "PairResult",
    "Reorder",
    "check_tokens",
    "compare_pair",
    "compare_traces",
    "pair_up",
    "reclassify",
    "rope_note",
    "rows_in_passes",
]

PASSED = ("equal", "within")
FAILED = ("differs", "nonfinite", "shape", "unreadable")
UNMEASURED = ("missing-a", "missing-b")
CLASSES = (*PASSED, *FAILED, *UNMEASURED)

Float32 = npt.NDArray[np.float32]
Reorder = Callable[[Float32], Float32]

_MAX_LOGITS = 1 << 24
_BY_HEADS = tuple(stage for stage in STAGES if stage.rotated and len(stage.axes) == 3)


@dataclass(frozen=True)
class DiffOptions:
    """What of two captures is compared and how; None means all.

    ``of_pass``: only the rows that this pass made, of B's passes, or of A's where B has one.
    """

    stages: tuple[str, ...] | None = None
    layers: tuple[int, ...] | None = None
    last_position: bool = False
    top: int = 10
    of_pass: int | None = None


@dataclass(frozen=True)
class Pair:
    """One stage of both captures; a side is None where it is not captured, ``why`` says more."""

    key: StageKey
    a: StageRecord | None
    b: StageRecord | None
    why: str = ""
    reorder: Reorder | None = None


@dataclass(frozen=True)
class PairResult:
    """One pair's class, and its metrics where it was measured.

    ``rows``: where the compared rows stand, where that is not one pass from position 0 on.
    """

    key: StageKey
    kind: str  # one of CLASSES
    path_a: str
    path_b: str
    message: str = ""
    shape: tuple[int, ...] | None = None
    axes: tuple[str, ...] | None = None
    metrics: Metrics | None = None
    exceeded: tuple[Exceeded, ...] = ()
    rows: Rows | None = None

    @property
    def worst_place(self) -> str:
        """The worst row: its position, and its pass where there are several; empty without one."""
        worst = None if self.metrics is None else self.metrics.worst_row
        if worst is None:
            return ""
        return str(worst) if self.rows is None else self.rows.label(worst)

    def standing(self, at: tuple[int, ...]) -> tuple[int, ...]:
        """The place of an element, its row by where it stands."""
        axis = next((n for n, name in enumerate(self.axes or ()) if name in ("token", "query")), -1)
        if self.rows is None or not 0 <= axis < len(at):
            return at
        return (*at[:axis], self.rows.positions[at[axis]], *at[axis + 1 :])


def check_tokens(a: TraceDir, b: TraceDir, hint: str = "trace both with the same --tokens") -> None:
    """Raise UsageError when both captures state their tokens and these differ.

    Of one that does not begin with the prompt's first token only the positions of both count.
    """
    left, right = a.token_ids, b.token_ids
    if left is None or right is None or left == right or _alike_where_both_are(a, b):
        return
    first = next(
        (i for i, (id_a, id_b) in enumerate(zip(left, right, strict=False)) if id_a != id_b),
        min(len(left), len(right)),
    )
    raise UsageError(
        f"the captures are of different prompts: {len(left)} and {len(right)} tokens, "
        f"different from token {first} on",
        hint=hint,
    )


def _alike_where_both_are(a: TraceDir, b: TraceDir) -> bool:
    """Whether one begins late, and the tokens at the positions that both hold are the same."""
    ids = [
        dict(zip(each.rows.positions, each.token_ids or (), strict=True))
        for each in (a, b) if each.rows is not None
    ]  # fmt: skip
    if len(ids) < 2 or not any(0 not in each for each in ids):
        return False
    both = ids[0].keys() & ids[1].keys()
    return bool(both) and all(ids[0][position] == ids[1][position] for position in both)


def pair_up(a: TraceDir, b: TraceDir, options: DiffOptions | None = None) -> tuple[Pair, ...]:
    """Every pair that ``options`` choose, in order of computation.

    A stage that a manifest names and whose file is gone is a pair too: nothing that should be
    there is passed over. Raises UsageError when nothing is chosen.
    """
    options = options or DiffOptions()
    keys = {*a.records, *b.records, *_named(a), *_named(b)}
    if options.stages is not None:
        keys = {key for key in keys if key.stage in options.stages}
    if options.layers is not None:
        keys = {key for key in keys if key.layer in options.layers}
    if not keys:
        raise UsageError(
            "no stage of either capture is left to compare",
            hint="widen --stages and --layers; the whole model's stages belong to no layer",
        )
    reorderings = _reorderings(a, b)
    pairs = []
    for key in _in_order(keys, a, b):
        left, right = a.records.get(key), b.records.get(key)
        why = ""
        if left is None or right is None:
            silent = [side for side in (a, b) if key not in side.records]
            why = "; ".join(dict.fromkeys(_why_missing(side, key) for side in silent))
            why += " (on both sides)" if len(silent) == 2 else ""
        reorder = reorderings(key, right) if right is not None else None
        pairs.append(Pair(key, left, right, why, reorder))
    return tuple(pairs)


def _in_order(keys: set[StageKey], a: TraceDir, b: TraceDir) -> list[StageKey]:
    """In order of computation: of captured modules as they were called, else the vocabulary's."""
    called = order_of_calls(b) or order_of_calls(a)
    last = len(called)
    return sorted(keys, key=lambda key: (called.get(key, last), order_of(key)))


def _named(trace: TraceDir) -> Iterator[StageKey]:
    for entry in (trace.manifest or {}).get("stages", ()):
        key = key_of(entry["path"])
        if key is not None:
            yield key


def _why_missing(trace: TraceDir, key: StageKey) -> str:
    if trace.manifest is None:
        return "not captured (yet)" if trace.status == "incomplete" else "not captured"
    for absent in trace.manifest.get("absent", ()):
        if absent.get("stage") == key.stage:
            return clean(f"not in this model: {absent.get('reason')}")
    if key in set(_named(trace)):
        return "the manifest names it and its file is gone"
    return "not among the stages that were asked for"


# -- row order of q and k --------------------------------------------------------------------------


def rope_note(a: TraceDir, b: TraceDir) -> str:
    """What is reordered because the captures order q and k rows differently; empty if nothing."""
    left, right = _rope_layout(a), _rope_layout(b)
    if left is None or right is None or left == right:
        return ""
    return (
        f"q and k of B were reordered inside each head before comparing: "
        f"A rotates {left} pairs, B {right}"
    )


def _rope_layout(trace: TraceDir) -> str | None:
    layout = trace.stated.get("rope_layout")
    return layout if layout in ("halves", "adjacent") else None


def _reorderings(a: TraceDir, b: TraceDir) -> Callable[[StageKey, StageRecord], Reorder | None]:
    """How each stage of B is put into A's row order.

    Rows of the q and k weights are permuted inside each head, so every tensor made of them is,
    before RoPE and after; their products with one another are not.
    """
    if not rope_note(a, b):
        return lambda key, record: None
    to_adjacent = _rope_layout(a) == "adjacent"

    def choose(key: StageKey, record: StageRecord) -> Reorder | None:
        if record.shape is None or not facts_of(key.stage).rotated:
            return None
        if len(record.shape) == 3:
            channel = record.shape[-1]
            return None if channel % 2 else lambda rows: _permute(rows, channel, to_adjacent)
        heads, kv_heads, size = _heads(a, b, key.layer)
        turned = (heads + kv_heads) * size
        if not turned or size % 2 or record.shape[-1] != turned + kv_heads * size:
            return None
        return lambda rows: np.concatenate(
            [_permute(rows[:, :turned], size, to_adjacent), rows[:, turned:]], axis=1
        )

    return choose


def _heads(a: TraceDir, b: TraceDir, layer: int | None) -> tuple[int, int, int]:
    """Query heads, key heads and the size of one in a layer: from its own stages, of either side,
    that are split into heads, else as B's manifest says of the whole model; 0 where not known."""
    extents: dict[str, int] = {}
    for trace in (b, a):
        for stage in _BY_HEADS:
            record = trace.records.get(StageKey(layer, stage.name))
            if record is not None and record.shape is not None and len(record.shape) == 3:
                extents |= {stage.axes[1]: record.shape[1], "channel": record.shape[2]}
    if len(extents) == 3:
        return extents["head"], extents["kv_head"], extents["channel"]
    config: Any = (b.stated.get("model") or {}).get("config")
    heads, kv_heads, size = (
        value if isinstance(config, dict) and isinstance(value := config.get(name), int) else 0
        for name in ("num_heads", "num_kv_heads", "head_dim")
    )
    return heads, kv_heads, size


def _permute(rows: Float32, channel: int, to_adjacent: bool) -> Float32:
    """Channels of each head from halves (i, i + d/2) to adjacent (2i, 2i + 1), or back."""
    pair = (2, channel // 2) if to_adjacent else (channel // 2, 2)
    split = rows.reshape(rows.shape[0], -1, *pair)
    return split.swapaxes(2, 3).reshape(rows.shape)


# -- one pair --------------------------------------------------------------------------------------


def compare_pair(
    pair: Pair,
    bars: Bars,
    options: DiffOptions | None = None,
    *,
    left: Float32 | None = None,
    cancelled: Callable[[], bool] | None = None,
    progress: Callable[[int], None] | None = None,
) -> PairResult:
    """Measure and classify one pair; ``left``: A's values, where they were read already.

    Raises metrics.Cancelled; a damaged file is a class.
    """
    options = options or DiffOptions()
    base = PairResult(
        pair.key,
        "missing-a" if pair.a is None else "missing-b",
        "" if pair.a is None else str(pair.a.path),
        "" if pair.b is None else str(pair.b.path),
        pair.why,
    )
    if pair.a is None or pair.b is None:
        return base
    try:
        sides = (pair.a.values() if left is None else left), pair.b.values()
        measured = _measured(pair, pair.a, pair.b, sides, base, options, cancelled, progress)
    except BadFileError as error:
        return dataclasses.replace(base, kind="unreadable", message=clean(str(error), 500))
    return measured if measured.metrics is None else reclassify(measured, bars)


def _measured(
    pair: Pair,
    a: StageRecord,
    b: StageRecord,
    sides: tuple[Float32, Float32],
    base: PairResult,
    options: DiffOptions,
    cancelled: Callable[[], bool] | None,
    progress: Callable[[int], None] | None,
) -> PairResult:
    """``base`` with the metrics of both sides; without, where they cannot be held together. Raises
    BadFileError for a file that became shorter meanwhile."""
    aligned = align(a, b, *sides, last=options.last_position)
    if isinstance(aligned, str):
        return dataclasses.replace(base, kind="shape", message=aligned)
    rows = _rows_of(pair, aligned)
    if options.of_pass is not None:
        found = _of_pass(aligned, rows, options.of_pass)
        if found is None:
            message = f"has no row of pass {options.of_pass}"
            return dataclasses.replace(base, kind="missing-b", message=message)
        aligned, rows = found
    metrics = compare_values(
        aligned.x,
        aligned.y,
        shape=aligned.shape,
        axes=aligned.axes,
        top=options.top,
        integers=facts_of(pair.key.stage).integers,
        reorder=pair.reorder,
        cancelled=cancelled,
        progress=progress,
    )
    check_maps(*sides)
    return dataclasses.replace(
        base,
        kind="within",
        message=_misfiled(pair),
        shape=aligned.shape,
        axes=aligned.axes,
        metrics=_with_logits(pair.key, aligned, metrics),
        rows=rows,
    )


def _with_logits(key: StageKey, aligned: Aligned, metrics: Metrics) -> Metrics:
    """What the last position's logits choose on each side, beside the other metrics."""
    row = aligned.shape[-1] if aligned.shape else aligned.x.size
    if not facts_of(key.stage).logits or not 0 < row <= _MAX_LOGITS:
        return metrics
    logits = logits_metrics(aligned.x[-row:], aligned.y[-row:])
    return dataclasses.replace(metrics, logits=logits)


def _of_pass(aligned: Aligned, rows: Rows | None, number: int) -> tuple[Aligned, Rows] | None:
    """The rows that one pass made; None where there are none."""
    numbers = [n for n, made in enumerate(rows.passes) if made == number] if rows else []
    if rows is None or not numbers:
        return None
    if len(numbers) == len(rows):
        return aligned, rows
    some = rows.only(numbers)
    return only_rows(aligned, numbers, some.positions), some


def rows_in_passes(*records: StageRecord | None) -> Rows | None:
    """The rows of the first that came in several passes, or that stand elsewhere than from position
    0 on; None where none of them did."""
    found = (each.rows for each in records if each is not None and each.rows is not None)
    return next((rows for rows in found if not rows.is_plain), None)


def _rows_of(pair: Pair, aligned: Aligned) -> Rows | None:
    """Where the compared rows stand, and which pass of B made them, or of A; None where that is not
    known, one pass from position 0 on, or where there are no rows: of a state."""
    rows = rows_in_passes(pair.b, pair.a)
    held = aligned.positions or (None if pair.b is None else pair.b.held())
    if rows is None or held is None or not aligned.shape:
        return None
    axes = aligned.axes or ("token",)
    if len(held) > 1 and not {"token", "query"} & {*axes}:
        return None
    extent = aligned.shape[axes.index("query") if "query" in axes else 0]
    if not set(held[-extent:]) <= set(rows.positions):
        return None
    return rows.only(rows.at(held[-extent:]))


def compare_traces(
    a: TraceDir,
    b: TraceDir,
    bars: Bars,
    options: DiffOptions | None = None,
    *,
    cancelled: Callable[[], bool] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Iterator[PairResult]:
    """Every pair's result, in order of computation, as each is measured."""
    for pair in pair_up(a, b, options):
        yield compare_pair(pair, bars, options, cancelled=cancelled, progress=progress)


def reclassify(result: PairResult, bars: Bars) -> PairResult:
    """The result judged by ``bars`` from its metrics alone; what was not measured stays."""
    metrics = result.metrics
    if metrics is None:
        return result
    note = result.message.partition(" | ")[2]
    exceeded: tuple[Exceeded, ...] = ()
    if metrics.nonfinite_mismatches:
        kind, message = "nonfinite", _nonfinite(result, metrics)
    elif metrics.identical:
        kind, message = "equal", ""
    else:
        exceeded = judge(metrics, bars, result.key)
        kind, message = ("differs" if exceeded else "within"), describe(exceeded)
    if kind != "nonfinite" and (metrics.nan_a or metrics.inf_a):
        message += "; " * bool(message)
        message += f"{metrics.nan_a} NaN and {metrics.inf_a} Inf at the same places on both sides"
    message = f"{message} | {note}" if note else message
    return dataclasses.replace(result, kind=kind, message=message, exceeded=exceeded)


def _nonfinite(result: PairResult, metrics: Metrics) -> str:
    first = metrics.first_nonfinite
    where = ""
    if first is not None:
        named = zip(result.axes or (), first.at, strict=False)
        place = ", ".join(f"{axis} {i}" for axis, i in named) or f"index {first.index}"
        where = f": first at {place}, A {first.a:g}, B {first.b:g}"
    return f"{count(metrics.nonfinite_mismatches)} NaN or Inf on one side only{where}"


def _misfiled(pair: Pair) -> str:
    """A note where a file's header names another layer than its folder does."""
    for name, record in (("A", pair.a), ("B", pair.b)):
        if record is None or record.parts:
            continue
        layer = record.header().layer
        if layer != pair.key.layer:
            return f" | {name}'s header says {'whole model' if layer is None else f'layer {layer}'}"
    return ""
