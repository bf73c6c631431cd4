"""The tree of layers and stages as a flat virtual list, aligned and quick at any size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from aprtui.formats.tracedir import StageKey, StageRecord
from aprtui.graph.vocabulary import facts_of, order_of, stage_of
from aprtui.text import count, number
from aprtui.tui.stage_filter import matcher
from aprtui.tui.widgets.lines import Part, RowList, fit

__all__ = ["StageList"]


_BESIDE = 13  # cells of a row beside the name: its frame, its mark, its rms


@dataclass(frozen=True)
class _Row:
    """A group's head (``key`` None) or a stage; ``label`` is what the row is called."""

    group: str
    label: str
    key: StageKey | None
    nested: bool


class StageList(RowList):
    """Layers with their stages below them, or stages with their layers; folded and unfolded."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.records: Mapping[StageKey, StageRecord] = {}
        self.rms: dict[StageKey, float] = {}
        self.damage: dict[StageKey, str] = {}
        self.filter = ""
        self.by_stage = False
        self._unfolded: set[str] = set()
        self._last: StageKey | None = None  # that the cursor stood on when a filter was typed
        self._rows: list[_Row] = []
        self._grouped: tuple[tuple[object, ...], dict[str, list[StageKey]]] | None = None

    # State.

    def set_records(self, records: Mapping[StageKey, StageRecord]) -> None:
        """Show these; the cursor stays on its stage, and layer 0 is open at first."""
        here, fresh = self.current, not self.records
        self.records, self._grouped = records, None
        if fresh:
            first = next(iter(self._groups()), None)
            if first:
                self._unfolded.add(first)
        self._rebuild(here)
        if fresh:
            row = next((n for n, row in enumerate(self._rows) if row.key), 0)
            self.cursor = -1
            self.move_to(row)

    def set_filter(self, text: str) -> None:
        """Only stages that ``text`` means; groups unfold while a filter is set. The cursor stays on
        its stage, or goes to the next one that is left."""
        here = self._last = self.current or self._last
        self.filter = text.strip()
        if here is not None:
            self._unfolded.add(_group(here, self.by_stage))
        self._rebuild(here)

    def sort_by_stage(self, by_stage: bool) -> None:
        here = self.current
        self.by_stage = by_stage
        self._unfolded = {_group(here, by_stage)} if here else set()
        self._rebuild(here)

    def survey(self, rms: Mapping[StageKey, float], damage: Mapping[StageKey, str]) -> None:
        told = all(
            key in self.rms and number(self.rms[key], 3) == number(rms[key], 3) for key in rms
        )
        self.rms.update(rms)
        self.damage.update(damage)
        if damage or not told:
            self.refresh()

    @property
    def current(self) -> StageKey | None:
        return self._rows[self.cursor].key if self._rows else None

    @property
    def wanted_width(self) -> int:
        """Cells that show the whole name of every stage that the vocabulary does not know."""
        unknown = (key.stage for key in self.records if stage_of(key.stage) is None)
        return max((len(name) + _BESIDE for name in unknown), default=0)

    @property
    def matching(self) -> list[StageKey]:
        """The stages that the filter lets through, in the order shown."""
        keys: Iterable[StageKey] = self.records
        if self.filter:
            matches = matcher(self.filter)
            keys = (key for key in keys if matches(key, self._words_of(key)))
        return sorted(keys, key=self._sort_key)

    def _words_of(self, key: StageKey) -> str:
        """What a filter finds besides the name."""
        broken = "nan" if math.isnan(self.rms.get(key, 0.0)) else ""
        return f"{'damaged' if key in self.damage else ''} {broken}"

    def select(self, key: StageKey) -> None:
        """Put the cursor on ``key``, unfolding its group."""
        group = _group(key, self.by_stage)
        if group not in self._unfolded:
            self._unfolded.add(group)
            self._rebuild(None)
        for number_, row in enumerate(self._rows):
            if row.key == key:
                self.move_to(number_)
                return

    def _sort_key(self, key: StageKey) -> tuple[int, int, str, int]:
        layer, rank, name = order_of(key)
        return (rank, 0, name, layer) if self.by_stage else (layer, rank, name, 0)

    def _groups(self) -> dict[str, list[StageKey]]:
        """The stages shown by their groups, made again only where something else is shown."""
        found = (len(self.rms), len(self.damage)) if self.filter else ()
        mark = (self.filter, self.by_stage, *found)
        if self._grouped is None or self._grouped[0] != mark:
            groups: dict[str, list[StageKey]] = {}
            for key in self.matching:
                groups.setdefault(_group(key, self.by_stage), []).append(key)
            self._grouped = (mark, groups)
        return self._grouped[1]

    def _rebuild(self, here: StageKey | None) -> None:
        rows: list[_Row] = []
        for group, keys in self._groups().items():
            if len(keys) == 1 and keys[0].layer is None:
                rows.append(_Row(group, keys[0].stage, keys[0], False))
                continue
            rows.append(_Row(group, group, None, False))
            if self.filter or group in self._unfolded:
                rows += [
                    _Row(group, f"layer {key.layer}" if self.by_stage else key.stage, key, True)
                    for key in keys
                ]
        self._rows = rows
        if here is not None:
            self.cursor = self._nearest(here)
        self.rows_changed()

    def _nearest(self, here: StageKey) -> int:
        """The row of ``here``; where it is not shown, of the next stage that is, or the last."""
        shown = {row.key: n for n, row in enumerate(self._rows) if row.key is not None}
        if here in shown:
            return shown[here]
        wanted = self._sort_key(here)
        after = (n for key, n in shown.items() if self._sort_key(key) > wanted)
        return next(after, max(shown.values(), default=0))

    # What RowList asks.

    def row_count(self) -> int:
        return len(self._rows)

    def row_parts(self, row: int, width: int) -> list[Part]:
        entry = self._rows[row]
        if entry.key is None:
            return self._head_parts(entry, width)
        mark: Part = ("! ", "bad") if entry.key in self.damage else ("  ", "")
        indent = " " if entry.nested and width >= 24 else ""
        value = self.rms.get(entry.key)
        wrong = value is not None and value != value
        shown = "" if value is None else _short(value, 3 if width >= 24 else 2)
        room = width - len(indent) - 3
        return [
            (indent, ""), mark,
            (fit(entry.label, max(room - len(shown) - 1, 4)),
             "bad" if entry.key in self.damage else ""),
            (f" {shown}", "bad" if wrong else "dim"),
        ]  # fmt: skip

    def _head_parts(self, entry: _Row, width: int) -> list[Part]:
        keys = self._groups().get(entry.group, [])
        open_ = bool(self.filter) or entry.group in self._unfolded
        damaged = sum(key in self.damage for key in keys)
        broken = sum(math.isnan(self.rms.get(key, 0.0)) for key in keys)
        members = count(len(keys), "layer" if self.by_stage else "stage")
        if len(entry.label) + len(members) > width - 4:
            members = str(len(keys))
        wrong = f"{damaged} damaged" if damaged else f"{broken} NaN" if broken else ""
        tail = wrong or self._residual(keys, width) or members
        text = fit(entry.label, max(width - 4 - len(tail), 4)) + " "
        return [
            ("▾ " if open_ else "▸ ", "accent"), (text, "head"),
            (tail, "bad" if wrong else "dim"),
        ]  # fmt: skip

    def _residual(self, keys: list[StageKey], width: int) -> str:
        """The rms of the layer's output, which a folded layer is judged by."""
        if self.by_stage or not facts_of(keys[-1].stage).residual:
            return ""
        value = self.rms.get(keys[-1])
        word = "rms " if width >= 24 else ""
        return "" if value is None else word + _short(value, 3 if width >= 24 else 2)

    # Folding.

    def action_open(self) -> None:
        if self._rows and self._rows[self.cursor].key is None:
            self._fold(self._rows[self.cursor].group not in self._unfolded)
        else:
            super().action_open()

    def action_right(self) -> None:
        if self._rows:
            self._fold(True)

    def action_left(self) -> None:
        if not self._rows:
            return
        entry = self._rows[self.cursor]
        if entry.key is not None and entry.nested:
            heads = (n for n, row in enumerate(self._rows) if row.group == entry.group)
            self.move_to(next(heads))
        else:
            self._fold(False)

    def _fold(self, open_: bool) -> None:
        group = self._rows[self.cursor].group
        (self._unfolded.add if open_ else self._unfolded.discard)(group)
        self._rebuild(self.current)


def _short(value: float, digits: int) -> str:
    """The value in at most six characters."""
    texts = [number(value, fewer) for fewer in range(digits, 0, -1)]
    return next((text for text in texts if len(text) <= 6), texts[-1])


def _group(key: StageKey, by_stage: bool) -> str:
    if key.layer is None:
        return key.stage
    return key.stage if by_stage else f"layer {key.layer}"
