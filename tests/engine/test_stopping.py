"""A stop that comes at the worst moment: while the pass hands a stage to the writer."""

from __future__ import annotations

import queue
import signal
import threading

import pytest

from aprtui.engine.stopping import (
    TraceStopped,
    raise_if_stopped,
    stopping_on_signals,
    uninterrupted,
)


def test_a_signal_raises_at_once_and_only_the_first_one_does() -> None:
    with stopping_on_signals():
        with pytest.raises(TraceStopped):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(TraceStopped):
            raise_if_stopped()
    raise_if_stopped()


def test_a_signal_while_a_lock_is_taken_leaves_it_free() -> None:
    room, items = threading.Condition(), queue.Queue[int]()

    class Interrupting(threading.Condition):
        """A signal comes just as the lock has been taken, before the block around it is left."""

        def __enter__(self) -> bool:
            taken = super().__enter__()
            signal.raise_signal(signal.SIGTERM)
            return taken

    items.not_full = Interrupting(items.mutex)
    with stopping_on_signals(), pytest.raises(TraceStopped):
        with uninterrupted():
            with room:
                room.wait_for(lambda: True)
            items.put(1)
        raise_if_stopped()
    assert not items.mutex.locked() and items.qsize() == 1


def test_another_thread_inside_does_not_hold_back_the_main_one() -> None:
    inside, go_on = threading.Event(), threading.Event()

    def stay() -> None:
        with uninterrupted():
            inside.set()
            go_on.wait(60)

    other = threading.Thread(target=stay)
    other.start()
    inside.wait(60)
    with stopping_on_signals(), pytest.raises(TraceStopped):
        signal.raise_signal(signal.SIGINT)
    go_on.set()
    other.join(60)
