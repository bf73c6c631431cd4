"""What Browse measures in its thread: what is wanted, doing it, and the message that tells."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from textual.message import Message
from textual.worker import get_current_worker

from aprtui.compare.metrics import Cancelled
from aprtui.errors import BadFileError
from aprtui.formats.maps import check_maps
from aprtui.formats.summary import summarise
from aprtui.formats.tracedir import StageKey, StageRecord
from aprtui.text import clean, number
from aprtui.tui.measure import Measured, Store, first_look, measure
from aprtui.tui.messages import Surveyed
from aprtui.tui.stage_table import StageTable
from aprtui.tui.trace_cells import holdings_of
from aprtui.tui.widgets.lines import Part
from aprtui.tui.widgets.stage_pane import Work

__all__ = ["PaneReady", "Wish", "fulfil", "look_at", "stated", "survey"]

SURVEY_SLICE, SURVEY_REST_S = 25, 0.002  # files looked at without a rest: keys come first

SMALL = 1 << 18  # tensors up to so many values are measured for the tree as well


@dataclass(frozen=True, eq=False)
class Wish:
    """One stage as it is shown: which file, in which pane, and what is made for its picture."""

    key: StageKey
    identity: tuple[str, int, int]
    table: StageTable
    pane: str
    work: Work | None


@dataclass
class PaneReady(Message):
    """Something of a wish was measured; ``made`` is what its work makes."""

    wish: Wish
    measured: Measured | None = None
    made: object = None


def fulfil(wish: Wish, store: Store, post: Callable[[Message], bool]) -> None:
    """Measure what the shown pane needs; stops when cancelled, or the file is cut short meanwhile.

    A small tensor is told of once, so that it is drawn once; of a large one a sample first, then
    the picture, then the exact numbers.
    """
    worker = get_current_worker()

    def cancelled() -> bool:
        check_maps(wish.table.values)
        return bool(worker.is_cancelled)

    try:
        measured = store.get(wish.identity)
        rough = None if isinstance(measured, Measured) else first_look(wish.table)
        if rough is not None:
            post(PaneReady(wish, rough))
        made = _made(wish, store, cancelled)
        if made is not None and rough is not None and not cancelled():
            post(PaneReady(wish, rough, made))
        if not isinstance(measured, Measured):
            measured = measure(wish.table, cancelled)
            check_maps(wish.table.values)
            store.put(wish.identity, measured)
        if not cancelled():
            post(PaneReady(wish, measured, made))
    except Cancelled:
        return
    except BadFileError as error:
        post(Surveyed(damage={wish.key: error.message}))


def _made(wish: Wish, store: Store, cancelled: Callable[[], bool]) -> object:
    if wish.work is None:
        return None
    key = (wish.identity, wish.pane, wish.work.key)
    made = store.get(key)
    if made is None:
        made = wish.work.make(wish.table, cancelled)
        check_maps(wish.table.values)
        store.put(key, made)
    return made


def stated(record: StageRecord) -> list[Part]:
    """What the manifest says of the values, before they are read."""
    parts: list[Part] = [(" ", "")]
    for name in ("min", "max", "mean", "std", "rms", "nan", "inf"):
        value = record.stats.get(name)
        if isinstance(value, int | float):
            parts += [(f"{name} ", "head"), (f"{number(float(value))}  ", "")]
        elif isinstance(value, str):
            parts += [(f"{name} ", "head"), (f"{clean(value, 12)}  ", "bad")]
    return [*parts, ("by the manifest", "dim")] if len(parts) > 1 else []


def survey(records: Iterable[StageRecord], post: Callable[[Message], bool]) -> None:
    """Check every header once and measure the files that are small enough to do at once."""
    worker = get_current_worker()
    found = Surveyed()
    for number_, record in enumerate(sorted(records, key=lambda record: str(record.key))):
        if worker.is_cancelled:
            return
        if number_ % SURVEY_SLICE == 0:
            time.sleep(SURVEY_REST_S)
        look_at(record, found)
        if len(found.held) + len(found.damage) >= 200:
            post(found)
            found = Surveyed()
    if found.held or found.damage:
        post(found)


def look_at(record: StageRecord, found: Surveyed) -> None:
    """Put into ``found`` what the record's file holds, or its damage; the manifest's numbers where
    it has some, and those of a small file that has none."""
    key, stats = record.key, record.stats
    try:
        record.header()
        if _number_of(stats.get("rms")) is None:
            small = record.count <= SMALL
            stats = summarise(record.values()) if small and record.count else {}
    except BadFileError as error:
        found.damage[key] = error.message
        return
    held = found.held[key] = holdings_of(stats, record.size_bytes, record.shape or ())
    if stats:
        found.rms[key] = math.nan if held.nan or held.inf else held.rms
    elif not record.count:
        found.rms[key] = 0.0


def _number_of(stat: object) -> float | None:
    """A manifest's number: JSON has no NaN and no Inf, so those are written as strings."""
    if not isinstance(stat, int | float | str):
        return None
    try:
        return float(stat)
    except (ValueError, OverflowError):
        return None
