"""From a stage on any screen to A and to B in Browse, to the pair, and to the weight behind it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from textual import on
from textual.message import Message
from textual.worker import get_current_worker

from aprtui.errors import AprtuiError
from aprtui.formats.tracedir import StageKey
from aprtui.tui.jumps import Jump
from aprtui.tui.screens.base import BaseScreen

if TYPE_CHECKING:
    from aprtui.tui.app import AprtuiApp

__all__ = ["Sides", "SidesScreen"]


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
    """The model whose weight a stage reads; None when a person must say which."""

    key: StageKey
    model: Path | None


class SidesScreen(BaseScreen):
    """A screen with a stage under the cursor, which captures hold and a model computes."""

    app: AprtuiApp

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

    def idle_keys(self) -> frozenset[str]:
        nobody = {"side-a", "side-b"} if self.sides is None else set[str]()
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
                found: Path | None = self.find_model()
            except AprtuiError:  # none named, another one since, or no model at all
                found = None
            if not get_current_worker().is_cancelled:
                self.post_message(WeightModel(key, found))

        self.run_worker(look, thread=True, exclusive=True, group="weight-model")

    @on(WeightModel)
    def _weight_model(self, event: WeightModel) -> None:
        event.stop()
        if not self.is_current:
            return
        if event.model is not None:
            self.app.jump(Jump("model", (event.model,), event.key))
        else:
            self.ask("the weight is in the model (.gguf, .apr, .safetensors)…", "weight")

    def answered(self, purpose: str, text: str) -> None:
        if purpose == "weight" and text and self.stage_here is not None:
            self.app.jump(Jump("model", (Path(text).expanduser(),), self.stage_here))
