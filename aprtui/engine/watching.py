"""A thread that tells, while a trace runs, what the cards are doing: memory, use, power."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from aprtui.engine.cards import look_at
from aprtui.engine.events import CardSeen, Emit, Log

__all__ = ["watching"]

EVERY_S = 0.5


@contextmanager
def watching(uuids: Mapping[str, str], tell: Emit) -> Iterator[None]:
    """In the body ``tell`` is given a CardSeen of each device (its name to its card's UUID) every
    half second; where none can be had one note says why, and nothing more is asked.

    ``tell`` is called from another thread.
    """
    if not uuids:
        yield
        return
    done = threading.Event()
    thread = threading.Thread(target=_watch, args=(uuids, tell, done), name="cards", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _watch(uuids: Mapping[str, str], tell: Emit, done: threading.Event) -> None:
    while True:
        for device, uuid in uuids.items():
            seen = look_at(uuid)
            if not seen.cards:
                tell(Log("note", f"what the card does is not shown: {seen.why_not}"))
                return
            card = seen.cards[0]
            tell(
                CardSeen(
                    device=device,
                    used_bytes=card.used_bytes,
                    total_bytes=card.total_bytes,
                    busy_percent=card.busy_percent,
                    watts=card.watts,
                    most_watts=card.most_watts,
                )
            )
        if done.wait(EVERY_S):
            return
