"""Local error: each stage of B replayed from its own inputs by a child process; the culprits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from textual import on, work
from textual.binding import BindingType
from textual.content import Content

from aprtui.compare.pairs import Pair, PairResult
from aprtui.compare.wire import from_json
from aprtui.formats.tracedir import StageKey
from aprtui.text import clean, count, number
from aprtui.tui.bisected import KINDS, Bisected, seen
from aprtui.tui.client import COMMAND_LINE, Child, objects_in
from aprtui.tui.jumps import Jump
from aprtui.tui.keys import bindings
from aprtui.tui.messages import RunnerEnded, Told
from aprtui.tui.paths import meant
from aprtui.tui.screens.grid import GridScreen
from aprtui.tui.screens.mistake import MistakeScreen, has_page
from aprtui.tui.screens.pair_facts import finding_block, layers_block
from aprtui.tui.screens.sides import Sides
from aprtui.tui.session import remember_verdict
from aprtui.tui.source import name_of
from aprtui.tui.widgets.bars import bar
from aprtui.tui.widgets.blocks import Block, wrapped
from aprtui.tui.widgets.drift_chart import Drift
from aprtui.tui.widgets.lines import Part, fit, right

__all__ = ["BisectScreen"]

SIGNS: dict[str, Part] = {
    "exact": ("=", "dim"),
    "within": ("≈", "good"),
    "explained": ("~", "good"),
    "culprit": ("!", "bad"),
    "unmeasured": ("?", "dim"),
}
LEGEND: tuple[Part, ...] = (
    (" ", ""), ("!", "bad"), (" computes wrongly   ", "dim"), ("~", "good"),
    (" explained by honest rounding   ", "dim"), ("=", ""), (" exact   ", "dim"), ("?", ""),
    (" unmeasured   ", "dim"), ("·", ""), (" not replayed yet  ", "dim"),
)  # fmt: skip
WITHIN: tuple[Part, ...] = (("≈", "good"), (" within rounding  ", "dim"))  # where there are some


class BisectScreen(GridScreen):
    """Pushed over Diff: ``!`` computes wrongly, ``~`` is honest rounding, ``=`` is exact."""

    mode = "diff"
    places = ("bisect", "sides")
    BINDINGS: ClassVar[list[BindingType]] = bindings("bisect", "sides")  # type: ignore[assignment]

    def __init__(
        self,
        a: Path,
        b: Path,
        model: Path,
        pairs: Mapping[StageKey, Pair],
        results: Mapping[StageKey, PairResult],
        found: Bisected | None = None,
        *,
        at: StageKey | None = None,
        command: Sequence[str] = COMMAND_LINE,
    ) -> None:
        super().__init__()
        self.a, self.b, self.model = a, b, model
        self.pairs, self.results = pairs, results
        self.ways_out = ("bisect-model", "drift") if pairs else ("drift",)
        self.found = found
        self.running = self.stopped = False
        self.child = Child(command)
        self._at = at

    def started(self) -> None:
        self.legend.show([*LEGEND])
        self.retitle()
        if not self.pairs:
            self.set_state("empty", "There is no stage to replay.", "v goes back to drift")
            return
        self.set_state("full")
        self.set_stages(self.pairs)
        if self._at is not None:
            self.select(self._at)
        self.grid.focus()
        if self.found is None:
            self._begin()

    def _begin(self) -> None:
        self.running, self.stopped, self.found = True, False, None
        self.show_keys()
        self._say_head("starting the engine …")
        self._replay()

    # The child.

    @work(exclusive=True, group="bisect")
    async def _replay(self) -> None:
        arguments = ("bisect", str(self.a), str(self.b), "--model", str(self.model), "--events")
        ended = await self.child.run(arguments, self._tell)
        self.post_message(RunnerEnded(ended.exit_code, ended.log_tail()))

    def fail(self, what: str, hint: str) -> None:
        """A replay that could not be started, or told what cannot be shown, is over."""
        if self.running and not self.child.running:
            self.running = False
            self.set_state("error", what, hint)
        else:
            super().fail(what, hint)

    def _tell(self, lines: tuple[bytes, ...]) -> None:
        self.post_message(Told(objects_in(lines)))

    @on(Told)
    def _told(self, event: Told) -> None:
        event.hand_out(progress=self._progress, error=self._refused, result=self._take)

    def _refused(self, message: str, hint: str) -> None:
        self.set_state("error", clean(message), clean(hint))

    def _take(self, said: Mapping[str, Any]) -> None:
        try:
            self.found = seen(from_json(said))
        except ValueError as error:
            self.set_state("error", f"what the replay found cannot be read: {error}",
                           "q goes back; aprtui bisect says it without the UI")  # fmt: skip
            return
        value = self.found.value
        text = f"{clean(value.headline, 120)} · against {name_of(self.a)}"
        whole = bool(value.replayed) and not value.unmeasured
        remember_verdict(self.b, self.a, text, telling=bool(value.culprits) or whole)
        self.sift()
        if self.found.culprits:
            self.select(self.found.culprits[0])

    def _progress(self, said: Mapping[str, Any]) -> None:
        done, total = int(said.get("done") or 0), int(said.get("total") or 1)
        layer = said.get("layer")
        key = StageKey(layer if isinstance(layer, int) else None, clean(str(said.get("stage")), 40))
        width = max(self.size.width - 64, 10)
        self._say_head(
            f"replaying {count(done)} of {count(total)}  ",
            (bar(done / max(total, 1), width), "$text-primary"), f"  {key}",
        )  # fmt: skip

    def _say_head(self, *parts: str | tuple[str, str]) -> None:
        """Two lines, so that the grid stays where it is when the verdict comes."""
        each = "each stage of B once more in float64, from the inputs that B itself captured"
        self.head.update(Content.assemble(*parts, "\n", (each, "dim")))

    @on(RunnerEnded)
    def _ended(self, event: RunnerEnded) -> None:
        self.running = False
        self.show_keys()
        if self.found is not None or self.state == "error":
            return
        if self.stopped:
            self.set_state("empty", "The replay was stopped.", "q goes back, b starts it anew")
        else:
            last = event.log_tail.splitlines()[-1] if event.log_tail else ""
            self.set_state("error", f"the replay ended ({event.exit_code}) {last}".rstrip(),
                           "q goes back")  # fmt: skip

    # What is shown.

    def _show_head(self, found: Bisected) -> None:
        lines = [found.verdict_line()]
        shared = [cause for cause in found.causes if cause[1] > 2]
        for text, stages in shared[:2]:
            what = (f"{count(stages, 'stage')} compute wrongly", "bold")
            lines.append(Content.assemble(what, f" · {text}"))
        for key in [] if shared else found.culprits[:2]:
            finding = found.findings[key]
            error = f": local error {number(finding.local_error, 3)}" if finding.local_error else ""
            said = f" · {finding.text}" if finding.text else ""
            lines.append(Content.assemble((f"{clean(str(key))} computes wrongly{error}", "bold"),
                                          said))  # fmt: skip
        if len(found.culprits) > 2 and not shared:
            more = f" · and {len(found.culprits) - 2} more: n goes from one to the next"
            lines[-1] += Content(more)
        if not found.culprits:
            lines += [Content.styled(note, "dim") for note in found.notes[:2]]
        self.show_head(lines)
        self.legend.show([*LEGEND, *(WITHIN if found.count("within") else ())])

    @property
    def measure(self) -> str:
        return "local error"

    @property
    def limit(self) -> float | None:
        return self.found.value.bar[0] if self.found is not None else None

    def _kind(self, key: StageKey) -> str:
        finding = self.found.findings.get(key) if self.found else None
        return finding.kind if finding is not None else ""

    def cell_of(self, key: StageKey) -> Part:
        return SIGNS.get(self._kind(key), ("·", "dim"))

    def words_of(self, key: StageKey) -> str:
        finding = self.found.findings.get(key) if self.found else None
        return f"{finding.kind} {finding.by} {finding.text}" if finding else "waiting"

    def _error(self, key: StageKey) -> float | None:
        finding = self.found.findings.get(key) if self.found else None
        return finding.local_error if finding is not None else None

    def ordered(self, keys: Sequence[StageKey]) -> list[StageKey | str]:
        kinds = [kind for kind in KINDS if kind != "unmeasured"]
        known = [key for key in keys if self._kind(key) in kinds]
        known.sort(key=lambda key: (kinds.index(self._kind(key)), -(self._error(key) or 0.0)))
        apart = [key for key in keys if self._kind(key) == "unmeasured"]
        waiting = [key for key in keys if not self._kind(key)]
        rows: list[StageKey | str] = [*known]
        if apart:
            rows += [f"unmeasured {len(apart)}: nothing is known of these", *apart]
        if waiting:
            rows += [f"not replayed {len(waiting)}", *waiting]
        return rows

    def row_head(self, width: int) -> list[Part]:
        return [(fit("    layer  stage", 32) + fit("", 11) + right("local error", 11) + "  by",
                 "head")]  # fmt: skip

    def row_parts(self, key: StageKey, width: int) -> list[Part]:
        sign, tone = self.cell_of(key)
        finding = self.found.findings.get(key) if self.found else None
        layer = "end" if key.layer is None else str(key.layer)
        parts: list[Part] = [(f" {sign:>2} ", tone), (right(layer, 5) + "  ", "head"),
                             (fit(clean(key.stage, 60), 21), "")]  # fmt: skip
        if finding is None:
            return parts
        error = "" if finding.local_error is None else number(finding.local_error, 3)
        why = finding.text or finding.by
        if finding.kind == "unmeasured":
            why = "; ".join(text for _, text in finding.lines)
        return [*parts, (fit(finding.kind, 11), tone), (right(error, 11), ""), (f"  {why}", "dim")]

    def table(self) -> Iterable[Sequence[str]]:
        yield "layer", "stage", "finding", "local_rel_l2", "by"
        for key in self.order:
            finding = self.found.findings.get(key) if self.found else None
            error = "" if self._error(key) is None else repr(self._error(key))
            why = (finding.text or finding.by) if finding else ""
            layer = "" if key.layer is None else str(key.layer)
            yield layer, clean(key.stage), self._kind(key), error, why

    def in_short(self, key: StageKey) -> str:
        finding = self.found.findings.get(key) if self.found else None
        return finding.in_short(key) if finding is not None else ""

    def drifts(self) -> list[Drift]:
        return [self._drift(key) for key in self.shown]

    def _drift(self, key: StageKey) -> Drift:
        sign, style = self.cell_of(key)
        return Drift(key, self._error(key), style, sign)

    def stands_out(self, key: StageKey) -> bool:
        return self._kind(key) == "culprit"

    def facts_of(self, key: StageKey) -> list[Block]:
        found, width = self.found, self.detail.column
        finding = found.findings.get(key) if found else None
        if found is None or finding is None:
            return [[[("not replayed yet" if self.running else "not replayed", "dim")]]]
        blocks = [finding_block(finding, self.cell_of(key)[1], width), self._others(found, width)]
        drifts = [self._drift(each) for each in self.pairs if each.stage == key.stage]
        notes: Block = []
        for note in found.notes:
            notes += wrapped(note, "dim", width)
        room = self.detail.size.height - sum(len(b) + 1 for b in (*blocks, notes))
        return [*blocks, layers_block(key, drifts, width, room, "local error"), notes]

    def _others(self, found: Bisected, width: int) -> Block:
        """Every culprit, and what explains the others."""
        block: Block = [[(fit(f"{key}", width), "bad")] for key in found.culprits[:6]]
        if len(found.culprits) > 6:
            block.append([(f"and {len(found.culprits) - 6} more", "dim")])
        if block:
            block.insert(0, [("culprits", "head")])
        for by, times in found.explanations.items():
            block += wrapped(by, "", width, f"~ {times:>4}  ")
        return block

    def retitle(self) -> None:
        b, model = name_of(self.b), clean(self.model.name, 50)
        self.set_title(f"{self.narrowed}local error of {b} · model {model}")
        if self.found is not None:
            self._show_head(self.found)

    # Keys.

    def idle_keys(self) -> frozenset[str]:
        idle = {"bisect-model" if self.running else "bisect-stop"}
        return super().idle_keys() | idle

    @property
    def sides(self) -> Sides:
        return Sides(self.a, self.b, self.find_model)

    def find_model(self) -> Path:
        return self.model

    def action_stop(self) -> None:
        if self.running:
            self.stopped = True
            self._stop()

    @work(group="stop")
    async def _stop(self) -> None:
        await self.child.stop()

    def action_ask_model(self) -> None:
        """The same replay with another model."""
        if self.running:
            self.say("x stops this replay first")
        elif self.pairs:
            self.ask_path("the model that computed B (.gguf, .apr, .safetensors)", "model",
                     str(self.model))  # fmt: skip

    def answered(self, purpose: str, text: str) -> None:
        super().answered(purpose, text)
        if purpose == "model" and text:
            self.model = meant(text)
            self.set_state("full")
            self._begin()
            self.paint()
            (self.rows if self.listed else self.grid).focus()

    def open_key(self, key: StageKey) -> None:
        """What a culprit with a name is; of every other stage its values, which it leads on to."""
        if self.found is not None and has_page(self.found, key):
            self.lay_over(MistakeScreen(self.found, key, self.sides, self.pairs, self.results,
                                        self.open_values))  # fmt: skip
        else:
            super().open_key(key)

    def open_values(self, key: StageKey) -> None:
        result = self.results.get(key)
        if result is None:  # B is what is replayed
            self.app.jump(Jump("browse", (self.b,), key))
        elif result.metrics is None:
            self.open_side(result)
        else:
            self.open_pair(self.pairs, self.results, key)

    def action_drift(self) -> None:
        self.dismiss(self.found)

    def step_back(self) -> bool:
        if not super().step_back():
            self.dismiss(self.found)
        return True
