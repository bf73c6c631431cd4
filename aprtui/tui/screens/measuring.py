"""What Browse measures in its thread: what is wanted, doing it, and the message that tells."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from textual.message import Message
from textual.worker import get_current_worker

from aprtui.compare.metrics import Cancelled
from aprtui.errors import BadFileError
from aprtui.formats.maps import check_maps
from aprtui.formats.tracedir import StageKey, StageRecord
from aprtui.text import clean, number
from aprtui.tui.measure import Measured, Store, first_look, measure
from aprtui.tui.messages import Surveyed
from aprtui.tui.stage_table import StageTable
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
        if len(found.rms) + len(found.damage) >= 200:
            post(found)
            found = Surveyed()
    if found.rms or found.damage:
        post(found)


def look_at(record: StageRecord, found: Surveyed) -> None:
    """Put the record's rms or its damage into ``found``; the manifest's rms where it has one."""
    try:
        record.header()
        rms = _number_of(record.stats.get("rms"))
        if rms is None and record.count <= SMALL:
            values = record.values().astype(np.float64)
            rms = float(np.sqrt(np.mean(values * values))) if values.size else 0.0
    except BadFileError as error:
        found.damage[record.key] = error.message
        return
    if rms is not None:
        found.rms[record.key] = rms


def _number_of(stat: object) -> float | None:
    """A manifest's number: JSON has no NaN and no Inf, so those are written as strings."""
    if not isinstance(stat, int | float | str):
        return None
    try:
        return float(stat)
    except (ValueError, OverflowError):
        return None
