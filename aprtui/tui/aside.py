"""What may never answer, read where nobody has to wait for it: a drive that went away."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

__all__ = ["aside"]

Found = TypeVar("Found")


def aside(work: Callable[[], Found]) -> asyncio.Future[Found]:
    """What ``work`` returns or raises, from a thread of its own.

    Unlike a thread worker's it takes no place of another's, and neither quitting nor a key ever
    waits for it; who lets go of the answer leaves the thread to itself.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Found] = loop.create_future()

    def tell(found: Found | None, error: Exception | None) -> None:
        if answer.done():  # nobody asks any more
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(found)  # type: ignore[arg-type]

    def run() -> None:
        found, error = None, None
        try:
            found = work()
        except Exception as wrong:
            error = wrong
        with suppress(RuntimeError):  # the app has ended
            loop.call_soon_threadsafe(tell, found, error)

    threading.Thread(target=run, name="aside", daemon=True).start()
    return answer
