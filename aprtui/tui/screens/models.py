"""Two models side by side: their tensors by class, the worst first, by `aprtui diff` in a child."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from textual import on, work
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Static

from aprtui.compare.weight_results import ModelComparison, ModelSide, TensorResult
from aprtui.compare.weight_wire import from_json
from aprtui.formats.tracedir import StageKey
from aprtui.text import clean, count, number, size
from aprtui.tui.carry import copy, export_rows
from aprtui.tui.client import COMMAND_LINE, Child, objects_in
from aprtui.tui.jumps import Goal, Jump
from aprtui.tui.keys import bindings
from aprtui.tui.messages import RunnerEnded, Told
from aprtui.tui.paths import meant
from aprtui.tui.screens.base import BaseScreen
from aprtui.tui.screens.pair_facts import layers_block
from aprtui.tui.source import names_of
from aprtui.tui.stage_filter import matcher
from aprtui.tui.widgets.bars import bar
from aprtui.tui.widgets.blocks import BlockPane, wrapped
from aprtui.tui.widgets.drift_chart import Drift
from aprtui.tui.widgets.lines import Part, RowList, fit, right

__all__ = ["ModelsScreen"]

TONES = {"missing-a": "warn", "missing-b": "warn", "shape": "bad", "differs": "bad",
         "rounding": "good", "equal": "dim", "same-bytes": "dim"}  # fmt: skip
SORTS = ("class", "layer")
METRICS = ("rel_l2", "cosine", "scale", "max_abs", "worst_row_rel_l2", "median_row_rel_l2")
COMPARING = "Comparing every weight of both models …"
SETTINGS = 4  # of those that differ, shown in the head


@dataclass(frozen=True)
class Compared:
    """One tensor of both models as the list draws it; all text is clean."""

    role: str
    key: StageKey  # its layer, and the role alone
    kind: str
    rel_l2: float | None
    types: str
    message: str
    facts: tuple[tuple[tuple[str, str], ...], ...]  # in groups
    names: tuple[str, str]  # in A and in B, empty where it has none


class ComparedList(RowList):
    """Role, class, distance and types of each tensor."""

    def __init__(self) -> None:
        super().__init__(id="tensors", classes="frame")
        self.tensors: tuple[Compared, ...] = ()
        self.rows: list[Compared] = []
        self.filter, self.sort = "", SORTS[0]

    def rebuild(self) -> None:
        """The rows anew; the cursor stays on its tensor, where that is shown."""
        here, matches = self.current, matcher(self.filter)
        self.rows = [row for row in self.tensors if matches(row.key, f"{row.role} {row.kind}")]
        if self.sort == "layer":
            self.rows.sort(key=lambda row: (row.key.layer is not None, row.key.layer or 0))
        if here in self.rows:
            self.cursor = self.rows.index(here)
        self.rows_changed()

    @property
    def current(self) -> Compared | None:
        return self.rows[self.cursor] if self.rows else None

    def row_count(self) -> int:
        return len(self.rows)

    def head_parts(self, width: int) -> list[Part]:
        return [(fit(" tensor", max(width - 43, 8)) + fit("class", 12) + right("rel_l2", 9)
                 + "  types", "head")]  # fmt: skip

    def row_parts(self, row: int, width: int) -> list[Part]:
        entry = self.rows[row]
        apart = "" if entry.rel_l2 is None else number(entry.rel_l2, 3)
        return [
            (" " + fit(entry.role, max(width - 44, 7)), ""),
            (fit(entry.kind, 12), TONES.get(entry.kind, "")),
            (right(apart, 9), ""), ("  " + fit(entry.types, 20), "dim"),
        ]  # fmt: skip


class ModelsScreen(BaseScreen):
    """What both files are above, their tensors at the left, one of them at the right."""

    mode = "model"
    places = ("models",)
    BINDINGS: ClassVar[list[BindingType]] = bindings("models")  # type: ignore[assignment]

    def __init__(
        self, a: Path, b: Path, command: Sequence[str] = COMMAND_LINE, at: Jump | None = None
    ) -> None:
        super().__init__()
        self.a, self.b = a, b
        self._at = at  # the place that a jump asks for
        self.child = Child(command)
        self.head = Static("", id="modelshead", markup=False)
        self.list = ComparedList()
        self.detail = BlockPane(id="weightfacts")

    def body(self) -> Iterable[Widget]:
        with Vertical():
            yield self.head
            with Horizontal(id="lists"):
                yield self.list
                yield self.detail

    def started(self) -> None:
        self._retitle()
        self.set_state("loading", COMPARING, "q goes back")
        self._compare()

    @work(exclusive=True, group="models")
    async def _compare(self) -> None:
        arguments = ("diff", str(self.a), str(self.b), "--events")
        ended = await self.child.run(arguments, self._tell)
        self.post_message(RunnerEnded(ended.exit_code, ended.log_tail()))

    def _tell(self, lines: tuple[bytes, ...]) -> None:
        self.post_message(Told(objects_in(lines)))

    @on(Told)
    def _told(self, event: Told) -> None:
        event.hand_out(progress=self._progress, error=self._refused, result=self._take)

    def _progress(self, said: Mapping[str, Any]) -> None:
        if self.state != "loading":
            return
        done, total = int(said.get("done") or 0), max(int(said.get("total") or 0), 1)
        share = bar(done / total, min(max(self.size.width - 40, 10), 60))
        at = f"{count(done)} of {count(total)} weights · {clean(str(said.get('tensor')), 60)}"
        self.set_state("loading", f"{COMPARING}\n{share}\n{at}", "q goes back")

    def _refused(self, message: str, hint: str) -> None:
        self._fail(clean(message), clean(hint))

    def _fail(self, why: str, hint: str = "") -> None:
        self.set_state("error", why, hint or "q goes back")

    @on(RunnerEnded)
    def _ended(self, event: RunnerEnded) -> None:
        if self.state == "loading":  # it never said what it found
            last = (event.log_tail.strip().splitlines() or [""])[-1]
            why = f"the comparison ended ({event.exit_code})"
            self._fail(last.removeprefix("aprtui: ") or why)

    def _take(self, said: Mapping[str, Any]) -> None:
        try:
            found = from_json(said)
        except ValueError as error:
            self._fail(f"what the comparison found cannot be read: {error}")
            return
        self.list.tensors = tuple(map(_tensor, found.tensors))
        if not self.list.tensors:
            self.set_state("empty", "Neither model has a tensor that plays a part in the pass.",
                           "q goes back")  # fmt: skip
            return
        self.head.update(_head(found))
        self.list.rebuild()
        self.set_state("full")
        self.list.focus()
        self._retitle()
        if self._at is not None:
            self.turn_to(self._at)
        self._show_tensor()

    # Places.

    @property
    def both(self) -> tuple[Path, Path]:
        return self.a, self.b

    def here(self) -> Jump:
        row = self.list.current
        return Jump("models", self.both, tensor=row.role if row is not None else "")

    def goals(self) -> Iterable[Goal]:
        """Every tensor, by its role or by its names."""
        for row in self.list.tensors:
            to = Jump("models", self.both, tensor=row.role)
            yield Goal(row.role, row.role, partial(self.app.jump, to), row.key,
                       " ".join(row.names))  # fmt: skip

    def turn_to(self, to: Jump) -> None:
        if all(row.role != to.tensor for row in self.list.rows):
            self.answering("filter", "")
        found = (n for n, row in enumerate(self.list.rows) if row.role == to.tensor)
        self.list.move_to(next(found, self.list.cursor))

    def idle_keys(self) -> frozenset[str]:
        """No way to a side that has no such tensor, nor to the next one where none is another."""
        row = self.list.current
        names = row.names if row is not None else ("", "")
        idle = {f"models-{side}" for side, name in zip("ab", names, strict=True) if not name}
        if not any(map(_is_other, self.list.rows)):
            idle |= {"models-next", "models-previous"}
        return super().idle_keys() | idle

    def action_side(self, number: int) -> None:
        """The tensor under the cursor, of A or of B, in Model."""
        row = self.list.current
        if row is not None and row.names[number]:
            self.app.jump(Jump("model", (self.both[number],), tensor=row.names[number]))

    @on(RowList.Opened, "#tensors")
    def _open(self, event: RowList.Opened) -> None:
        event.stop()
        row = self.list.current
        if row is not None:
            self.action_side(0 if row.names[0] else 1)

    def _retitle(self) -> None:
        listed, total = len(self.list.rows), len(self.list.tensors)
        text = clean(self.list.filter, 30)
        remark = f"showing {listed} of {total} - filter {text} · " if text else ""
        a, b = names_of(*self.both)
        self.set_title(f"{remark}A {a}   B {b}")
        order = {"class": "the worst first", "layer": "by layer"}[self.list.sort]
        self.list.border_title = f"Tensors {count(total)} · {order}"

    @on(RowList.Moved, "#tensors")
    @on(BlockPane.Changed)
    def _show_tensor(self) -> None:
        row, width = self.list.current, self.detail.column
        self.show_keys()
        self.detail.name_it(row.role if row else "")
        if row is None:
            none = f"No tensor matches {clean(self.list.filter, 30)}: q shows all."
            self.detail.show([[[(none, "warn")]]])
            return
        tone = TONES.get(row.kind, "")
        blocks = [[line for name, text in group for line in wrapped(text, "", width, fit(name, 11))]
                  for group in row.facts]  # fmt: skip
        why = wrapped(row.message, "", width, f"{row.kind}  ")
        why[0][0] = (f"{row.kind}  ", tone)
        blocks[0] = why + blocks[0]
        room = self.detail.size.height - sum(len(block) + 1 for block in blocks)
        drifts = [
            Drift(each.key, _apart(each), TONES.get(each.kind, ""))
            for each in sorted(self.list.tensors, key=lambda tensor: tensor.key.layer or 0)
        ]
        self.detail.show([*blocks, layers_block(row.key, drifts, width, room, "rel_l2")])

    # Keys.

    def action_sort(self) -> None:
        self.list.sort = SORTS[(SORTS.index(self.list.sort) + 1) % len(SORTS)]
        self.list.rebuild()
        self._retitle()
        self._show_tensor()

    def action_filter(self) -> None:
        self.ask("show tensors whose name or class has…", "filter", self.list.filter)

    def answering(self, purpose: str, text: str) -> None:
        if purpose != "filter":
            return
        self.list.filter = text.strip()
        self.list.rebuild()
        self._retitle()
        self._show_tensor()

    def action_next(self, step: int) -> None:
        """The next tensor that is not what it was, after the cursor or before it."""
        rows, here = self.list.rows, self.list.cursor
        for offset in range(1, len(rows) + 1):
            row = (here + step * offset) % len(rows)
            if _is_other(rows[row]):
                self.list.move_to(row)
                return

    def action_copy_value(self) -> None:
        row = self.list.current
        if row is not None:
            facts = (f"{name} {text}".strip() for group in row.facts for name, text in group)
            self.say(copy(self.app, " · ".join((row.role, row.kind, row.message, *facts))))

    def action_export(self) -> None:
        self.ask_path(
            "write the tensors shown to (.csv)",
            "export",
            str(Path.cwd() / "tensors.csv"),
            again=False,
        )

    def answered(self, purpose: str, text: str) -> None:
        if purpose == "export" and text:
            rows = [(each.role, each.kind, "" if each.rel_l2 is None else repr(each.rel_l2),
                     each.types) for each in self.list.rows]  # fmt: skip
            table = [("tensor", "class", "rel_l2", "types"), *rows]
            self.say(export_rows(table, meant(text)))

    def step_back(self) -> bool:
        if not self.list.filter:
            return False
        self.answering("filter", "")
        return True


def _apart(row: Compared) -> float | None:
    """How far both sides are from each other; the same bytes are not measured, and the same."""
    return 0.0 if row.kind == "same-bytes" else row.rel_l2


def _is_other(row: Compared) -> bool:
    """Whether it is not the same tensor on both sides."""
    return TONES.get(row.kind) in ("warn", "bad")


def _head(found: ModelComparison) -> Content:
    """Both files, the verdict, how many tensors of each class, and the settings that differ."""
    lines = [
        Content.assemble((f"{name}  ", "bold"), _side(side))
        for name, side in (("A", found.a), ("B", found.b))
    ]
    tone = "bold $text-success" if found.verdict == "pass" else "bold $text-error"
    kinds = " · ".join(f"{count(number_of)} {kind}" for kind, number_of in found.counts.items())
    lines.append(Content.assemble((found.verdict, tone), f" · {kinds}"))
    apart = [setting for setting in found.settings if setting.kind != "unstated"]
    lines += [
        Content.styled(f"! {each.key}: {clean(each.a, 60)} in A, {clean(each.b, 60)} in B",
                       "$text-warning")
        for each in apart[:SETTINGS]
    ]  # fmt: skip
    if len(apart) > SETTINGS:
        lines.append(Content.styled(f"  and {len(apart) - SETTINGS} more settings", "dim"))
    return Content("\n").join(lines)


def _side(side: ModelSide) -> str:
    words = (side.format, side.architecture, size(side.size_bytes), " ".join(side.types), side.path)
    return " · ".join(words)


def _tensor(result: TensorResult) -> Compared:
    part = result.role.name.replace("_", " ")
    if result.role.expert is not None:
        part += f" of expert {result.role.expert}"
    layer, metrics = result.role.layer, result.metrics
    sides = (result.a, result.b)
    types = [side.type if side is not None else "none" for side in sides]
    shapes = {" x ".join(map(str, side.shape)) for side in sides if side is not None}
    names = [(f"in {name}", side.name) for name, side in zip("AB", sides, strict=True) if side]
    numbers = [
        (name.replace("_row_rel_l2", " row"), number(getattr(metrics, name), 4))
        for name in METRICS
        if metrics is not None
    ]
    limit = f"explains up to {number(result.limit, 4)}" if result.limit and metrics else ""
    groups = (
        [("looks like", result.looks_like.text if result.looks_like else ""), *numbers,
         ("rounding", limit)],
        [("types", " / ".join(types)), ("shape", " / ".join(sorted(shapes))), *names],
    )  # fmt: skip
    return Compared(
        part if layer is None else f"layer {layer} {part}", StageKey(layer, part), result.kind,
        metrics.rel_l2 if metrics is not None else None,
        types[0] if types[0] == types[1] else " / ".join(types), result.message,
        tuple(tuple((name, text) for name, text in group if text) for group in groups),
        (result.a.name if result.a else "", result.b.name if result.b else ""),
    )  # fmt: skip
