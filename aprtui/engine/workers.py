"""Threads that compute side by side, each torch operation on one core.

The engine splits its work itself, into blocks of rows and of queries: results are the same bits
whatever the number of threads, and no thread waits for another at the end of each operation, which
costs most where the cores are shared.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import TypeVar

import torch

from aprtui.engine.processors import MOST_THREADS

__all__ = ["cores", "for_each", "one_core"]


_Item = TypeVar("_Item")


def for_each(
    function: Callable[[_Item], None], items: Iterable[_Item], device: torch.device
) -> None:
    """Call ``function`` with every item, in no order; return when all are done.

    On the CPU by all threads; another device is fed by the calling thread alone, in order. Raises
    what a call raised; calls that have not begun by then are dropped.
    """

    every = list(items)
    waiting = iter(every)

    def work() -> None:
        """Take one item after the other: handing each over by itself costs more than small ones."""
        with torch.inference_mode():
            try:
                for item in waiting:
                    function(item)
            except BaseException:
                deque(waiting, maxlen=0)
                raise

    if device.type == "cpu" and len(every) > 1:
        pool, count = _threads()
        for job in [pool.submit(work) for _ in range(min(count, len(every)))]:
            job.result()
        return
    with one_core():  # what is one piece is not handed to another thread
        work()


@contextmanager
def one_core() -> Iterator[None]:
    """Inside, the operations of the calling thread too run on one core.

    The threads that torch would start for them spin for a while after each operation, on the cores
    that ours compute on.
    """
    _threads()  # counts the cores
    with cores(1):
        yield


@contextmanager
def cores(count: int) -> Iterator[None]:
    """Inside, torch's operations of the calling thread run on so many cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@lru_cache(maxsize=1)
def _threads() -> tuple[ThreadPoolExecutor, int]:
    """As many threads as torch would use itself, and how many these are."""
    count = min(torch.get_num_threads(), MOST_THREADS)
    return ThreadPoolExecutor(count, "engine", initializer=_use_one_core), count


def _use_one_core() -> None:
    torch.set_num_threads(1)  # counts for the calling thread alone
