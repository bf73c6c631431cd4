"""A model's tensors as a virtual list, grouped by layer, with type, shape, size and share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from aprtui.formats.tracedir import StageKey
from aprtui.text import clean
from aprtui.tui.model_facts import TensorRow
from aprtui.tui.stage_filter import matcher
from aprtui.tui.widgets.frame import Named
from aprtui.tui.widgets.lines import Part, RowList, fit, right

__all__ = ["SORTS", "TensorList"]

SORTS = ("role", "size", "type")


@dataclass(frozen=True)
class _Row:
    layer: int | None
    tensor: TensorRow | None
    size_bytes: int


class TensorList(RowList, Named):
    """By role: layers fold, tensors in the order of computation. By size or type: a flat list."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._tensors: tuple[TensorRow, ...] = ()
        self._rows: list[_Row] = []
        self._unfolded: set[int] = {0}
        self._total = 1
        self._type_width = 6
        self.filter = ""
        self.sort = "role"

    def set_tensors(self, tensors: Iterable[TensorRow]) -> None:
        self._tensors = tuple(sorted(tensors, key=lambda row: (row.place, row.expert or 0)))
        self._total = max(sum(row.entry.size_bytes for row in self._tensors), 1)
        longest = max((len(row.entry.type) for row in self._tensors), default=0)
        self._type_width = min(max(longest, 6), 9)
        self.rebuild()

    @property
    def current(self) -> TensorRow | None:
        return self._rows[self.cursor].tensor if self._rows else None

    def select(self, tensor: TensorRow) -> None:
        """Put the cursor on ``tensor``, unfolding its layer."""
        if tensor.layer is not None:
            self._unfolded.add(tensor.layer)
        if tensor not in self.matching:
            self.filter = ""
        self.rebuild()
        self.move_to(next(n for n, row in enumerate(self._rows) if row.tensor is tensor))

    @property
    def tensors(self) -> tuple[TensorRow, ...]:
        """All of them, in the order of the pass."""
        return self._tensors

    @property
    def current_layer(self) -> int | None:
        return self._rows[self.cursor].layer if self._rows else None

    @property
    def total_bytes(self) -> int:
        return self._total

    @property
    def matching(self) -> list[TensorRow]:
        matches = matcher(self.filter)
        return [
            row
            for row in self._tensors
            if matches(StageKey(row.layer, row.label), f"{row.entry.name} {row.entry.type}")
        ]

    def rebuild(self) -> None:
        """The rows anew; the cursor stays on its tensor, where that is shown."""
        here = self.current
        if here is not None and here.layer is not None:
            self._unfolded.add(here.layer)
        self._list()
        places = [n for n, row in enumerate(self._rows) if row.tensor is here and here is not None]
        self.cursor = places[0] if places else self.cursor
        self.rows_changed()

    def _list(self) -> None:
        found = self.matching
        if self.sort == "size":
            found.sort(key=lambda row: -row.entry.size_bytes)
        elif self.sort == "type":
            found.sort(key=lambda row: (row.entry.type, -row.entry.size_bytes))
        if self.sort != "role" or self.filter:
            self._rows = [_Row(row.layer, row, row.entry.size_bytes) for row in found]
        else:
            self._rows = self._folded(found)

    def _folded(self, found: list[TensorRow]) -> list[_Row]:
        layers: dict[int, list[TensorRow]] = {}
        rows, after = [], []
        for row in found:
            if row.layer is not None:
                layers.setdefault(row.layer, []).append(row)
            elif not layers:
                rows.append(_Row(None, row, row.entry.size_bytes))
            else:
                after.append(_Row(None, row, row.entry.size_bytes))
        for layer, tensors in sorted(layers.items()):
            rows.append(_Row(layer, None, sum(row.entry.size_bytes for row in tensors)))
            if layer in self._unfolded:
                rows += [_Row(layer, row, row.entry.size_bytes) for row in tensors]
        return rows + after

    def row_count(self) -> int:
        return len(self._rows)

    def row_parts(self, row: int, width: int) -> list[Part]:
        entry = self._rows[row]
        share = f"{100 * entry.size_bytes / self._total:.1f} %"
        tail = right(f"{entry.size_bytes:,} B", 15) + right(share, 8) + " "
        if width < 56:
            tail = right(share, 7) + " "
        if entry.tensor is None:
            glyph = "▾ " if entry.layer in self._unfolded else "▸ "
            text = fit(f"layer {entry.layer}", max(width - 2 - len(tail), 4))
            return [(glyph, "accent"), (text, "head"), (tail, "dim")]
        tensor = entry.tensor
        flat = self.sort != "role" or bool(self.filter)
        name = tensor.label or clean(tensor.entry.name, 60)
        if not tensor.label and tensor.layer is not None and not flat:
            name = name.partition(f".{tensor.layer}.")[2] or name
        if flat and tensor.layer is not None:
            name = f"{tensor.layer} {name}"
        indent = "    " if tensor.layer is not None and not flat else "  "
        shape = " x ".join(str(extent) for extent in tensor.entry.shape)
        room = max(width - len(indent) - len(tail) - self._type_width - 14, 6)
        return [
            (indent, ""), (fit(name, room), ""),
            (fit(clean(tensor.entry.type, 9), self._type_width), "accent"),
            (fit(" " + shape, 14), ""), (tail, "dim"),
        ]  # fmt: skip

    def _fold(self, open_: bool) -> None:
        layer = self._rows[self.cursor].layer
        if layer is None or self.sort != "role" or self.filter:
            return
        (self._unfolded.add if open_ else self._unfolded.discard)(layer)
        self._list()
        self.rows_changed()
        heads = (n for n, row in enumerate(self._rows) if row.layer == layer)
        if not open_:
            self.move_to(next(heads))

    def action_right(self) -> None:
        if self._rows:
            self._fold(True)

    def action_left(self) -> None:
        if self._rows:
            self._fold(False)

    def action_open(self) -> None:
        if self._rows and self._rows[self.cursor].tensor is None:
            self._fold(self._rows[self.cursor].layer not in self._unfolded)
        else:
            super().action_open()
