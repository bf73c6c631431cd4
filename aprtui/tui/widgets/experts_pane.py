"""The Experts pane: to which experts each token is sent, how much, and how loaded each is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aprtui.errors import BadFileError
from aprtui.formats.tracedir import StageKey, StageRecord, TraceDir
from aprtui.graph.vocabulary import STAGES
from aprtui.text import clean, count
from aprtui.tui.measure import Hook, Measured, identity
from aprtui.tui.stage_table import StageTable
from aprtui.tui.widgets.bars import profile
from aprtui.tui.widgets.lines import Part, RowList, fit
from aprtui.tui.widgets.palette import LEVELS
from aprtui.tui.widgets.pane import Nothing
from aprtui.tui.widgets.stage_pane import StagePane, StageSeen, Work

__all__ = ["ExpertsPane", "Routed"]

_OF_RANKS = [stage for stage in STAGES if stage.experts and stage.axes == ("token", "rank")]
IDS = next(stage.name for stage in _OF_RANKS if stage.integers)
WEIGHTS = next(stage.name for stage in _OF_RANKS if not stage.integers)
LOGITS = next(stage.name for stage in STAGES if stage.axes == ("token", "expert"))
LABEL, CELL = 16, 12


@dataclass(frozen=True, eq=False)
class Routed:
    """Of each token the chosen experts [tokens, ranks], in their order, and their weights."""

    record: StageRecord
    ids: npt.NDArray[np.float32]
    weights: npt.NDArray[np.float32] | None
    experts: int

    @property
    def load(self) -> list[int]:
        """How many tokens each expert has."""
        whole = self.ids[np.isfinite(self.ids) & (self.ids >= 0) & (self.ids < self.experts)]
        return [int(n) for n in np.bincount(whole.astype(np.int64), minlength=self.experts)]


def _of_layer(trace: TraceDir, layer: int | None, stage: str) -> StageRecord | None:
    return trace.records.get(StageKey(layer, stage))


def routed(record: StageRecord, weights: StageRecord | None, logits: StageRecord | None) -> Routed:
    """Read a layer's routing. Raises BadFileError for what cannot be one."""
    if record.shape is None or len(record.shape) != 2:
        raise BadFileError(record.path, "its shape is not [token, rank]")
    ids = np.array(record.values()).reshape(record.shape)
    shared = weights is not None and weights.shape == record.shape
    found = np.array(weights.values()).reshape(record.shape) if weights and shared else None
    known = logits.shape[-1] if logits is not None and logits.shape else 0
    finite = ids[np.isfinite(ids)]
    largest = int(finite.max()) + 1 if finite.size else 0
    return Routed(record, ids, found, max(known, min(largest, 1 << 16)))


class ExpertsPane(RowList, StagePane):
    """A line a token; enter shows its row of the routing in Values."""

    blurred = ""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.routed: Routed | None = None

    def nothing(self, seen: StageSeen) -> Nothing | None:
        if _of_layer(seen.trace, seen.record.key.layer, IDS) is not None:
            return None
        return Nothing("No routing of this layer is in the trace.",
                       f"{IDS} shows it, of a layer that has experts")  # fmt: skip

    def work(self) -> Work | None:
        seen = self.seen
        layer = seen.record.key.layer if seen is not None else None
        record = _of_layer(seen.trace, layer, IDS) if seen is not None else None
        if seen is None or record is None:
            return None
        others = [_of_layer(seen.trace, layer, stage) for stage in (WEIGHTS, LOGITS)]

        def make(_: StageTable, hook: Hook) -> object:
            return routed(record, *others)

        return Work(("routed", identity(record.path)), make)

    def give(self, measured: Measured | None, made: object) -> None:
        if isinstance(made, Routed):
            self.routed, self.drawn = made, self.seen
            self.rows_changed()

    def forget(self) -> None:
        self.routed = None
        self.rows_changed()

    def action_open(self) -> None:
        if self.routed is not None:
            index = self.cursor * self.routed.ids.shape[1]
            self.post_message(self.ValueWanted(self.routed.record.key, index))

    def row_count(self) -> int:
        return len(self.routed.ids) if self.routed is not None else 0

    def head_parts(self, width: int) -> list[Part] | None:
        found = self.routed
        if found is None:
            return [("  reading …", "dim")]
        load = found.load
        used = sum(map(bool, load))
        most = max(range(len(load)), key=load.__getitem__, default=0)
        busiest = f"e{most} has {count(load[most], 'token')}  " if load and load[most] else ""
        room = max(width - 60, 8)
        return [
            (f" {count(used)} of {count(found.experts)} experts used  ", "head"), (busiest, ""),
            ("load ", "dim"), (profile(load, room), "a"),
        ]  # fmt: skip

    def row_parts(self, row: int, width: int) -> list[Part]:
        found = self.routed
        if found is None:
            return []
        parts: list[Part] = [(fit(f" {self._token(row)}", LABEL - 1) + " ", "dim")]
        weights = found.weights[row] if found.weights is not None else None
        for rank, raw in enumerate(found.ids[row].tolist()):
            if not math.isfinite(raw) or raw < 0 or raw != int(raw):
                parts.append((fit(f"{raw:g}", CELL), "bad"))
                continue
            if weights is None:
                parts.append((fit(f"e{int(raw)}", CELL), ""))
                continue
            weight = float(weights[rank])
            if not math.isfinite(weight):
                parts.append((fit(f"e{int(raw)} {weight:g}", CELL), "bad"))
                continue
            level = min(max(round(weight * (LEVELS - 1)), 3), LEVELS - 1)
            parts += [(fit(f"e{int(raw)}", 5) + " ", ""),
                      (fit(f"{weight:.3f}", CELL - 6), f"size {level}")]  # fmt: skip
        return parts

    def _token(self, row: int) -> str:
        assert self.routed is not None
        numbers = self.routed.record.row_numbers()
        at = numbers[row] if numbers is not None and row < len(numbers) else row
        rows = self.routed.record.rows
        place = rows.label(at) if rows is not None and at < len(rows) else str(at)
        texts = (self.drawn.trace.token_texts if self.drawn is not None else None) or ()
        return f"{place} {clean(texts[at], 20)}" if at < len(texts) else place
