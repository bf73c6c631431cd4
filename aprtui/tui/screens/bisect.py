"""Local error: each stage of B replayed from its own inputs by a child process; the culprits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from textual import on, work
from textual.binding import BindingType
from textual.content import Content
from textual.message import Message

from aprtui.compare.pairs import Pair, PairResult
from aprtui.formats.tracedir import StageKey
from aprtui.text import clean, count, number
from aprtui.tui.client import COMMAND_LINE, Child
from aprtui.tui.keys import bindings
from aprtui.tui.messages import RunnerEnded
from aprtui.tui.screens.grid import GridScreen
from aprtui.tui.screens.pair import PairScreen
from aprtui.tui.widgets.bars import bar
from aprtui.tui.widgets.lines import Part
from aprtui.tui.widgets.stage_grid import StageGrid

__all__ = ["BisectScreen", "Bisected", "Finding", "read_result"]

SIGNS: dict[str, Part] = {
    "exact": ("=", "dim"),
    "explained": ("~", "good"),
    "culprit": ("!", "bad"),
    "unmeasured": ("?", "dim"),
}


@dataclass(frozen=True)
class Finding:
    """What the replay says of one stage; all text is clean."""

    kind: str  # one of SIGNS
    local_error: float | None
    lines: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Bisected:
    """A finished bisection as the screen draws it."""

    verdict: str
    findings: Mapping[StageKey, Finding]
    notes: tuple[str, ...]

    @property
    def culprits(self) -> list[StageKey]:
        return [key for key, finding in self.findings.items() if finding.kind == "culprit"]

    def count(self, kind: str) -> int:
        return sum(finding.kind == kind for finding in self.findings.values())


@dataclass
class Told(Message):
    """Lines that the child printed, as JSON objects."""

    objects: tuple[Mapping[str, Any], ...]


class BisectScreen(GridScreen):
    """Pushed over Diff: ``!`` computes wrongly, ``~`` is honest rounding, ``=`` is exact."""

    mode = "diff"
    places = ("bisect",)
    BINDINGS: ClassVar[list[BindingType]] = bindings("bisect")  # type: ignore[assignment]

    def __init__(
        self,
        a: Path,
        b: Path,
        model: Path,
        pairs: Mapping[StageKey, Pair],
        results: Mapping[StageKey, PairResult],
        found: Bisected | None = None,
        command: Sequence[str] = COMMAND_LINE,
    ) -> None:
        super().__init__()
        self.a, self.b, self.model = a, b, model
        self.pairs, self.results = pairs, results
        self.found = found
        self.running = False
        self.child = Child(command)

    def started(self) -> None:
        self.set_title(f"local error of {clean(self.b.name, 50)} · model {clean(self.model.name)}")
        self.legend.update(_legend())
        self.grid.set_stages(self.pairs)
        self.set_state("full")
        self.grid.focus()
        if self.found is not None:
            self._show(self.found)
        else:
            self.running = True
            self.head.update(Content("starting the engine …"))
            self._replay()

    # The child.

    @work(exclusive=True, group="bisect", exit_on_error=False)
    async def _replay(self) -> None:
        arguments = ("bisect", str(self.a), str(self.b), "--model", str(self.model), "--events")
        ended = await self.child.run(arguments, self._tell)
        self.post_message(RunnerEnded(ended.exit_code, ended.log_tail()))

    def _tell(self, lines: tuple[bytes, ...]) -> None:
        objects = []
        for line in lines:
            try:
                said = json.loads(line)
            except ValueError:
                continue
            if isinstance(said, dict):
                objects.append(said)
        self.post_message(Told(tuple(objects)))

    @on(Told)
    def _told(self, event: Told) -> None:
        for said in event.objects:
            if said.get("event") == "result":
                self.found = read_result(said)
                self._show(self.found)
            elif said.get("event") == "error":
                self.running = False
                self.set_state(
                    "error", clean(str(said.get("message"))), clean(str(said.get("hint")))
                )
            elif said.get("event") == "progress":
                self._progress(said)

    def _progress(self, said: Mapping[str, Any]) -> None:
        done, total = int(said.get("done") or 0), int(said.get("total") or 1)
        layer = said.get("layer")
        key = StageKey(layer if isinstance(layer, int) else None, clean(str(said.get("stage")), 40))
        width = max(self.size.width - 50, 10)
        self.head.update(
            Content.assemble(
                f"replaying {count(done)} of {count(total)}  ",
                (bar(done / max(total, 1), width), "$text-primary"), f"  {key}",
            )
        )  # fmt: skip

    @on(RunnerEnded)
    def _ended(self, event: RunnerEnded) -> None:
        self.running = False
        if self.found is None and self.state != "error":
            last = event.log_tail.splitlines()[-1] if event.log_tail else ""
            self.set_state("error", f"the replay ended ({event.exit_code}) {last}".rstrip(),
                           "q goes back")  # fmt: skip

    # What is shown.

    def _show(self, found: Bisected) -> None:
        self.grid.put(
            {
                key: SIGNS[finding.kind]
                for key, finding in found.findings.items()
                if key in self.grid.cells
            }
        )
        culprits = found.culprits
        parts: list[tuple[str, str] | str] = [
            (f"{len(culprits)} culprit{'s' * (len(culprits) != 1)}",
             "bold $text-error" if culprits else "bold $text-success"),
            f" · {found.count('explained')} stages explained by honest rounding"
            f" · {found.count('exact')} exact",
        ]  # fmt: skip
        if found.count("unmeasured"):
            parts.append((f" · {found.count('unmeasured')} unmeasured", "$text-warning"))
        lines = [Content.assemble(*parts)]
        lines += [Content.styled(note, "dim") for note in found.notes[-2:]]
        width = max(self.size.width - 2, 20)
        self.head.update(Content("\n").join(line.truncate(width, ellipsis=True) for line in lines))
        if culprits:
            self.grid.select(culprits[0])
        self._show_stage()

    @on(StageGrid.Moved)
    def _show_stage(self) -> None:
        key = self.grid.current
        finding = self.found.findings.get(key) if self.found and key else None
        self.detail.border_title = str(key) if key else ""
        if finding is None:
            self.detail.update(Content.styled("not replayed", "dim") if key else "")
            return
        tone = {"culprit": "bold $text-error", "explained": "bold $text-success"}.get(
            finding.kind, "dim"
        )
        lines = [Content.styled(finding.kind, tone)]
        lines += [
            Content.assemble((f"{name:<12}" if name else "", "$text-primary"), text)
            for name, text in finding.lines
        ]
        self.detail.update(Content("\n").join(lines))

    # Keys.

    def action_stop(self) -> None:
        if self.running:
            self._stop()

    @work(group="stop")
    async def _stop(self) -> None:
        await self.child.stop()

    def action_next(self, step: int) -> None:
        culprits = self.found.culprits if self.found else []
        if culprits:
            here = self.grid.current
            at = culprits.index(here) if here in culprits else -step
            self.grid.select(culprits[(at + step) % len(culprits)])

    @on(StageGrid.Opened)
    def _open(self, event: StageGrid.Opened) -> None:
        result = self.results.get(event.key)
        if result is None or result.metrics is None:
            self.say("A and B were not compared here")
            return
        self.app.push_screen(PairScreen(self.pairs, self.results, event.key))

    def action_drift(self) -> None:
        self.dismiss(self.found)

    def step_back(self) -> bool:
        self.dismiss(self.found)
        return True


def read_result(said: Mapping[str, Any]) -> Bisected:
    """The ``result`` line of ``aprtui bisect --events``; what is not as expected is left out."""
    findings: dict[StageKey, Finding] = {}
    for entry in _dicts(said.get("explained")):
        exact = entry.get("by") == "float32"
        findings[_key(entry)] = Finding("exact" if exact else "explained", _float(entry), (
            ("local error", _number(entry.get("local_rel_l2"))),
            ("explained by", clean(str(entry.get("by")))),
            ("leaves", _number(entry.get("residual_rel_l2"))),
            ("inherited", _number(entry.get("inherited_rel_l2"))),
        ))  # fmt: skip
    for entry in _dicts(said.get("unmeasured")):
        findings[_key(entry)] = Finding(
            "unmeasured", None, (("why", clean(str(entry.get("reason") or entry.get("why")))),)
        )
    for entry in _dicts(said.get("culprits")):
        findings[_key(entry)] = Finding("culprit", _float(entry), _culprit_lines(entry))
    notes = said.get("notes")
    shown = tuple(clean(str(note)) for note in notes) if isinstance(notes, list) else ()
    return Bisected(clean(str(said.get("verdict"))), findings, shown)


def _culprit_lines(entry: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    mistake = entry.get("mistake")
    worst = entry.get("worst")
    place = ""
    if isinstance(worst, dict):
        place = ", ".join(f"{clean(str(axis))} {at}" for axis, at in worst.items())
    lines = [
        ("local error", _number(entry.get("local_rel_l2"))),
        ("worst row", _number(entry.get("worst_row_rel_l2"))),
        ("inherited", _number(entry.get("inherited_rel_l2"))),
        ("worst at", place),
        ("looks like", clean(str(entry.get("looks_like") or ""))),
    ]
    if isinstance(mistake, dict):
        lines += [
            ("mistake", clean(str(mistake.get("id")))),
            ("", clean(str(mistake.get("text")))),
            ("leaves", _number(mistake.get("residual_rel_l2"))),
        ]
    return tuple((name, text) for name, text in lines if text)


def _dicts(value: object) -> list[Mapping[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _key(entry: Mapping[str, Any]) -> StageKey:
    layer = entry.get("layer")
    return StageKey(layer if isinstance(layer, int) else None, clean(str(entry.get("stage")), 60))


def _float(entry: Mapping[str, Any]) -> float | None:
    value = entry.get("local_rel_l2")
    return float(value) if isinstance(value, int | float) else None


def _number(value: object) -> str:
    if isinstance(value, int | float):
        return number(float(value), 3)
    return clean(value, 20) if isinstance(value, str) else ""


def _legend() -> Content:
    words = (("=", "exact", "dim"), ("~", "honest rounding", "$text-success"),
             ("!", "computes wrongly", "bold $text-error"), ("?", "unmeasured", "dim"))  # fmt: skip
    parts = [Content(" ")]
    for sign, text, style in words:
        parts += [Content.styled(sign, style), Content.styled(f" {text}   ", "dim")]
    return Content.assemble(*parts)
