"""A thread that compares a trace while it is written, says what it finds, and may have it stop."""

from __future__ import annotations

import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from aprtui.child import command_of
from aprtui.compare.live import Live, Replayed
from aprtui.compare.metrics import Cancelled
from aprtui.compare.pairs import PairResult
from aprtui.errors import AprtuiError
from aprtui.formats.tracedir import StageKey

__all__ = ["Beside", "Hears", "Runs"]

EVERY_S, REST = 0.1, 4.0  # between two looks, and in times of one: a fifth of a processor at most


@dataclass(frozen=True)
class Hears:
    """Who is told, from that thread. ``compared``: new pairs, and the first of all that fails.
    ``stop``: the trace is to end. ``ended``: nothing more will be told."""

    compared: Callable[[tuple[PairResult, ...], PairResult | None], None]
    replayed: Callable[[Replayed], None]
    stop: Callable[[], None]
    ended: Callable[[], None] = field(default=lambda: None)


@dataclass(frozen=True)
class Runs:
    """What the trace computes, for a replay of it."""

    model: str
    overrides: Mapping[str, str] = field(default_factory=dict)


class Beside:
    """Compares from ``start`` to ``finish``.

    ``stop_at``: "first" has the trace stop at the first divergence, "culprit" where a replay of
    what has landed finds a stage that computes wrongly; each once, and not where it is whole.
    """

    def __init__(self, live: Live, stop_at: str, runs: Runs, hears: Hears) -> None:
        self.live, self.stop_at = live, stop_at
        self.stopped = False  # the trace was asked to end
        self.culprit: StageKey | None = None
        self.failure: AprtuiError | None = None  # why not all was compared
        self._runs, self._hears = runs, hears
        self._replay: subprocess.Popen[bytes] | None = None
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - what a replay prints, for as long
        self._ending = threading.Event()
        self._giving_up = False
        self._thread = threading.Thread(target=self._run, name="compare", daemon=True)

    def start(self) -> None:
        """The folder is the new trace's now."""
        self._thread.start()

    def finish(self, *, last_look: bool, wait: bool = True) -> None:
        """Compare the rest, and hear a replay out; or, without a ``last_look``, leave at once."""
        self._giving_up = not last_look
        self._ending.set()
        if self._giving_up and (replay := self._replay) is not None:
            replay.kill()
        if wait and self._thread.ident is not None:
            self._thread.join()

    def was_whole(self) -> None:
        """The trace came to its end before it could be stopped."""
        self._ending.set()
        self.stopped = False

    def _run(self) -> None:
        try:
            self._look_on()
            self._hear_out()
        except Cancelled:
            pass
        except AprtuiError as error:  # the trace goes on by itself
            self.failure = error
        finally:
            if self._replay is not None:
                self._replay.kill()
                self._replay.wait()
            self._hears.ended()

    def _look_on(self) -> None:
        took, last = 0.0, False
        while not last:
            last = self._ending.wait(max(EVERY_S, REST * took))
            begin = time.monotonic()
            if not self._giving_up:
                self._look()
            took = time.monotonic() - begin

    def _look(self) -> None:
        found, first = self.live.look(cancelled=lambda: self._giving_up), self.live.first
        if found:
            self._hears.compared(found, first)
        if self.stop_at == "first" and first is not None:
            self._stop()
        elif self.stop_at == "culprit":
            self._ask()

    def _stop(self) -> None:
        """End the trace, unless there is nothing left of it."""
        if not self.stopped and not self.live.whole and not self._ending.is_set():
            self.stopped = True
            self._hears.stop()

    # A replay of what has landed, in a child.

    def _hear_out(self) -> None:
        """What the replay says in the end, where the trace ended first."""
        while self.stop_at == "culprit" and not self._giving_up:
            self._ask()
            if self._replay is None:
                return
            self._replay.wait()

    def _ask(self) -> None:
        if self._replay is not None and self._replay.poll() is not None:
            self._answered()
            self._replay = None
        if self._replay is None and not self.stopped and self.culprit is None:
            layers = self.live.to_replay()
            if layers is not None:
                words = self.live.replay_words(layers, self._runs.model, self._runs.overrides)
                self._said.seek(0)
                self._said.truncate()
                self._replay = subprocess.Popen(
                    [*command_of("aprtui"), *words],
                    stdin=subprocess.DEVNULL, stdout=self._said, stderr=subprocess.DEVNULL,
                )  # fmt: skip

    def _answered(self) -> None:
        self._said.seek(0)
        found = Replayed.read(self._said.read())
        self.culprit = found.culprit
        self._hears.replayed(found)
        if self.culprit is not None:
            self._stop()
