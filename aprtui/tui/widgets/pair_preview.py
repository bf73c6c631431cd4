"""The pair under a grid's cursor, in the room that a small model leaves."""

from __future__ import annotations

from dataclasses import dataclass

from textual import on, work
from textual.message import Message
from textual.worker import get_current_worker

from aprtui.compare.metrics import Cancelled
from aprtui.compare.pairs import Pair, PairResult
from aprtui.errors import AprtuiError
from aprtui.tui.pair_view import SPANS, PairView, view_of
from aprtui.tui.widgets.lines import Part
from aprtui.tui.widgets.pair_pane import PairPicture

__all__ = ["LEAST_LINES", "PairPreview"]

LEAST_LINES = 12  # with less room there is none
MOST_VALUES = 1 << 24  # a larger pair is not read unasked


@dataclass
class Counted(Message):
    """A pair was counted for the picture; None: it cannot be read, which the pair itself says."""

    result: PairResult
    view: PairView | None


class PairPreview(PairPicture, can_focus=False):
    """``look_at`` says of which pair; it is drawn once it was counted."""

    class Wanted(Message):
        """Its size is another one now."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id, classes="frame")
        self.border_title = "A and B over one axis, and |d|"
        self._of: tuple[PairResult, int] | None = None  # what is drawn, or being counted

    def on_resize(self) -> None:
        self.post_message(self.Wanted())

    def look_at(self, pair: Pair | None, result: PairResult | None) -> None:
        if pair is None or result is None or not self._can_be_drawn(result):
            self.workers.cancel_group(self, "pair-preview")
            self._of = None
            self._put(None)
        elif self._of is None or self._of[0] is not result or self._of[1] != self.bins:
            self._of = result, self.bins
            self._count(pair, result, self.bins)

    def _can_be_drawn(self, result: PairResult) -> bool:
        return result.metrics is not None and 0 < result.metrics.count <= MOST_VALUES

    @work(thread=True, exclusive=True, group="pair-preview")
    def _count(self, pair: Pair, result: PairResult, bins: int) -> None:
        worker = get_current_worker()
        view: PairView | None = None
        try:
            view = view_of(pair, result, bins, SPANS[0], lambda: worker.is_cancelled)
        except Cancelled:
            return
        except AprtuiError:
            pass
        if not worker.is_cancelled:
            self.post_message(Counted(result, view))

    @on(Counted)
    def _counted(self, event: Counted) -> None:
        event.stop()
        if self._of is not None and self._of[0] is event.result:
            self._put(event.view)

    def _put(self, view: PairView | None) -> None:
        if view is not self.view:
            self.show(view)
            self.border_subtitle = self.beside

    def picture(self) -> list[list[Part]]:
        if self.view is None and self._of is None:
            return [[("  nothing to compare here", "dim")]]
        return super().picture()
