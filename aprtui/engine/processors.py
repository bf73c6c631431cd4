"""How many processors this process may use."""

from __future__ import annotations

import os

__all__ = ["MOST_THREADS", "processors"]

MOST_THREADS = 16  # beyond it they wait for the interpreter's lock and for memory


def processors() -> int:
    """Those it is confined to, by taskset or a container's CPU set; elsewhere all there are."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # outside Linux
        return os.cpu_count() or 1
