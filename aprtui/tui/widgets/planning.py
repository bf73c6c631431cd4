"""The form of a trace and its plan, which is made anew when typing rests."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from pathlib import Path

from textual import on, work
from textual.containers import Horizontal
from textual.content import Content
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Input, Static

from aprtui.engine.events import Failed, Planned
from aprtui.errors import UsageError
from aprtui.formats.tracedir import holds_trace
from aprtui.text import clean
from aprtui.tui.client import plan
from aprtui.tui.screens.trace_text import hint_here, plan_content
from aprtui.tui.widgets.trace_form import TraceForm

__all__ = ["Planning"]

SETTLE_S = 0.3  # a plan is made when typing rests this long


class Planning(Horizontal):
    """``planned`` is the last plan; None while there is none, or where it cannot be made."""

    class Made(Message):
        """There is a plan, or it was said why there is none."""

        def __init__(self, planned: Planned | None) -> None:
            super().__init__()
            self.planned = planned

    def __init__(self, model: Path, command: Sequence[str]) -> None:
        super().__init__(id="form")
        self.form = TraceForm(model)
        self.planned: Planned | None = None
        self.busy = False  # a plan is being made
        self.wanted = False  # the trace starts as soon as it is there
        self._command = command
        self._said = Static("planning …", id="plan", markup=False, classes="frame")

    def compose(self) -> Iterable[Widget]:
        yield self.form
        yield self._said

    @on(Input.Changed)
    def begin(self) -> None:
        """Plan what the form says now."""
        self.busy, self.wanted = True, False
        self._plan()

    @on(Input.Submitted)
    def _submitted(self) -> None:
        self.form.focus()

    @work(exclusive=True, group="plan")
    async def _plan(self) -> None:
        self._said.border_title = "Plan …"
        await asyncio.sleep(SETTLE_S)
        try:
            job = self.form.job()
        except UsageError as error:
            answer: Planned | Failed = Failed(error.message, error.hint, error.exit_code)
        else:
            answer = await plan(job, self._command)
        self.busy = False
        if isinstance(answer, Planned):
            self.show(answer, taken=holds_trace(Path(answer.directory)))
        else:
            self.refuse(answer)
        self.post_message(self.Made(self.planned))

    def show(self, planned: Planned, *, taken: bool = False) -> None:
        """This plan; ``taken``: its folder holds a trace."""
        self.planned = planned
        self._said.border_title = "Plan"
        width = max(self._said.content_size.width, 20)
        self._said.update(plan_content(planned, width, taken))

    def refuse(self, failed: Failed) -> None:
        """Why there is no plan."""
        self.planned = None
        self._said.border_title = "Plan"
        self._said.update(
            Content.assemble(
                (f"! {clean(failed.message, 500)}", "bold $text-error"),
                "\n\n",
                (hint_here(failed.hint), "dim"),
            )
        )
