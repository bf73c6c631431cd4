"""From a stage on any screen to A and to B in Browse, to the pair, and to the weight behind it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from textual import on
from textual.message import Message
from textual.worker import get_current_worker

from aprtui.errors import AprtuiError
from aprtui.text import clean
from aprtui.tui.jumps import Jump
from aprtui.tui.paths import meant
from aprtui.tui.reporting import Reporting, Written, report_to
from aprtui.tui.screens.base import BaseScreen

if TYPE_CHECKING:
    from aprtui.compare.bisection import Bisection
    from aprtui.formats.tracedir import StageKey

__all__ = ["OneStageScreen", "Sides", "SidesScreen"]


@dataclass(frozen=True)
class Sides:
    """What is compared; ``model`` finds, in a thread, the one whose weights the stages read.

    ``model`` raises AprtuiError where nothing names one.
    """

    a: Path
    b: Path
    model: Callable[[], Path]

    @property
    def both(self) -> tuple[Path, Path]:
        return self.a, self.b


@dataclass
class WeightModel(Message):
    """The model whose weight a stage reads; None when a person must say which, and ``why``."""

    key: StageKey
    model: Path | None
    why: str = ""


class SidesScreen(BaseScreen):
    """A screen with a stage under the cursor, which captures hold and a model computes."""

    @property
    def sides(self) -> Sides | None:
        """The captures that are compared; None where nothing is."""
        raise NotImplementedError

    @property
    def stage_here(self) -> StageKey | None:
        """The stage under the cursor."""
        raise NotImplementedError

    def find_model(self) -> Path:
        """The model behind the stages. Raises AprtuiError where nothing names one."""
        raise NotImplementedError

    @property
    def reporting(self) -> Reporting | None:
        """What a report is made of, where this screen compares two traces and is done."""
        return None

    @property
    def replayed(self) -> Bisection | None:
        """What a replay found, where one was run from here."""
        return None

    def _reporting(self) -> Reporting | None:
        """What is compared here, or in the Diff that shows this trace, with the replay of it."""
        sides = self.sides
        screens = [s for s in self.app.open_screens() if isinstance(s, SidesScreen)]
        same = [s for s in screens if sides is not None and s.sides and s.sides.both == sides.both]
        job = next((s.reporting for s in same if s.reporting is not None), None)
        found = next((s.replayed for s in same if s.replayed is not None), None)
        return None if job is None else replace(job, found=found)

    def action_report(self) -> None:
        """Ask where a report of the comparison goes."""
        job = self._reporting()
        if job is None:
            self.say("a report is of two traces that are compared, once all of both was measured")
            return
        named = f"{clean(job.b.root.name, 60) or 'comparison'}-report.html"
        self.ask_path("write the report to (.html, .md, .json)", "report",
                      str(Path.cwd() / named), again=False)  # fmt: skip

    @on(Written)
    def _written(self, event: Written) -> None:
        event.stop()
        self.say(event.said)

    def idle_keys(self) -> frozenset[str]:
        nobody = {"side-a", "side-b", "report"} if self.sides is None else set[str]()
        return super().idle_keys() | nobody | ({"weight"} if self.stage_here is None else set())

    def action_side(self, number: int) -> None:
        """This stage of A, or of B, in Browse."""
        if self.sides is not None and self.stage_here is not None:
            self.app.jump(Jump("browse", (self.sides.both[number],), self.stage_here))

    def action_weight(self) -> None:
        """The weight that this stage reads, in Model; a person is asked where no trace names it."""
        key = self.stage_here
        if key is None:
            return

        def look() -> None:
            try:
                found = WeightModel(key, self.find_model())
            except AprtuiError as error:  # none named, another one since, or no model at all
                found = WeightModel(key, None, clean(error.message, 120))
            if not get_current_worker().is_cancelled:
                self.post_message(found)

        self.run_worker(look, thread=True, exclusive=True, group="weight-model")

    @on(WeightModel)
    def _weight_model(self, event: WeightModel) -> None:
        event.stop()
        if not self.is_current:
            return
        if event.model is not None:
            self.app.jump(Jump("model", (event.model,), event.key))
        else:
            self.ask_path(f"{event.why}: the weight is in the model…", "weight")

    def answered(self, purpose: str, text: str) -> None:
        job = self._reporting() if purpose == "report" and text else None
        if job is not None:
            self.say("writing the report …")
            self.run_worker(lambda: self.post_message(Written(report_to(job, meant(text)))),
                            thread=True, group="report")  # fmt: skip
        if purpose == "weight" and text and self.stage_here is not None:
            self.app.jump(Jump("model", (meant(text),), self.stage_here))


class OneStageScreen(SidesScreen):
    """One over a comparison that was begun elsewhere, of the stage ``key``."""

    def __init__(self, sides: Sides, key: StageKey) -> None:
        super().__init__()
        self._sides, self.key = sides, key

    @property
    def sides(self) -> Sides:
        return self._sides

    @property
    def stage_here(self) -> StageKey:
        return self.key

    def find_model(self) -> Path:
        return self._sides.model()
