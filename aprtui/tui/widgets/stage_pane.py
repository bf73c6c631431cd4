"""What Browse's panes share: the stage that is seen, and the work that is done for its picture."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field

from textual.message import Message

from aprtui.formats.tracedir import StageKey, StageRecord, TraceDir
from aprtui.tui.measure import Hook, Measured
from aprtui.tui.stage_table import StageTable
from aprtui.tui.trace_cells import Held
from aprtui.tui.widgets.pane import Nothing, Pane

__all__ = ["StagePane", "StageSeen", "Work"]

PATIENCE_S = 0.25  # the old picture stands so long: redrawing twice costs bytes over SSH


@dataclass(frozen=True, eq=False)
class StageSeen:
    """The stage under the cursor. ``table`` is None where ``wrong`` says why it cannot be read;
    ``model`` is the one that a person named, empty: the manifest's. ``held``: what is known by now
    of the trace's files, more with every file that is looked at."""

    record: StageRecord
    trace: TraceDir
    table: StageTable | None
    wrong: str = ""
    model: str = ""
    held: Mapping[StageKey, Held] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """What is made of a table in a thread, for one pane, and kept: ``key`` is all that it depends
    on besides the file. ``make`` asks the hook between blocks, and raises metrics.Cancelled."""

    key: Hashable
    make: Callable[[StageTable, Hook], object]


class StagePane(Pane[StageSeen]):
    """A pane of Browse. One that only draws ``work`` says what is to be made; ``give`` gets it."""

    class ValueWanted(Message):
        """Show value ``index`` of a stage in Values; enter leads back to this pane from there."""

        def __init__(self, key: StageKey, index: int) -> None:
            super().__init__()
            self.key, self.index = key, index

    class StageWanted(Message):
        """Put the tree's cursor on a stage: the pane's own cursor went there."""

        def __init__(self, key: StageKey) -> None:
            super().__init__()
            self.key = key

    seen: StageSeen | None = None
    drawn: StageSeen | None = None  # the one that the picture is of

    def nothing(self, seen: StageSeen) -> Nothing | None:
        if seen.table is None:
            hint = "1 shows its bytes · n goes to the next damaged file"
            return Nothing(seen.wrong, hint, bad=True)
        if not seen.table.values.size:
            return Nothing("This stage holds no values.", "1 shows its header")
        return None

    def show(self, seen: StageSeen) -> None:
        """The picture of the stage before stands until the new one is there, but not for long."""
        self.seen = seen
        if self.display:
            self.set_timer(PATIENCE_S, self._late)
        else:
            self.forget()

    def _late(self) -> None:
        if self.drawn is not self.seen:
            self.forget()

    @property
    def table(self) -> StageTable | None:
        return self.seen.table if self.seen is not None else None

    def work(self) -> Work | None:
        """What is to be made besides the numbers of Stats; None: nothing."""
        return None

    def give(self, measured: Measured | None, made: object) -> None:
        """What is known of the stage: its numbers, None or those of a sample at first, and what
        ``work`` makes, None until it is there."""

    def learn(self, keys: Iterable[StageKey]) -> None:
        """More is known of what these files of the trace hold; called on every pane."""

    @property
    def place(self) -> int | None:
        """The value of the stage that is seen on which the pane's cursor stands."""
        return None

    def go(self, index: int) -> None:
        """Put the cursor on a value of the stage that is seen, where the pane has one."""

    def forget(self) -> None:
        """The picture is not of the stage that is seen."""
