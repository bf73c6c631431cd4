"""Runs the engine as a child process and tells what it says; torch never comes into this one."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aprtui.child import command_of
from aprtui.engine.events import Event, Failed, Planned, Started, parse_event
from aprtui.engine.job import TraceJob
from aprtui.text import clean
from aprtui.tui.logs import new_log

__all__ = ["COMMAND_LINE", "WORKER", "Child", "Ended", "TraceClient", "objects_in", "plan"]

WORKER = command_of("aprtui.engine.worker")
COMMAND_LINE = command_of("aprtui")
STOP_S = 1.0  # from asking the child to end to ending it
POLL_S = 0.02
BATCH_S = 0.1  # events are told on at most ten times a second
MAX_LINE = 1 << 27  # a comparison of tens of thousands of tensors is one line
LOG_TAIL = 4000


@dataclass(frozen=True)
class Ended:
    """How the child ended; ``exit_code`` is negative for a signal. ``log`` holds its stderr."""

    exit_code: int
    log: Path

    def log_tail(self) -> str:
        """The end of the log, each line cleaned."""
        try:
            text = self.log.read_bytes()[-LOG_TAIL:].decode("utf-8", "replace")
        except OSError:
            return ""
        return "\n".join(clean(line, 300) for line in text.splitlines())


def objects_in(lines: Iterable[bytes]) -> tuple[dict[str, Any], ...]:
    """The JSON objects among the lines that a child printed; others are passed over."""
    objects = []
    for line in lines:
        try:
            said = json.loads(line)
        except ValueError:
            continue
        if isinstance(said, dict):
            objects.append(said)
    return tuple(objects)


class Child:
    """A child process that prints JSON lines. ``run`` ends with it; ``stop`` ends it early.

    Not asyncio's own subprocess: that one kills its child when it is closed, and a trace may be
    left running (``let_go``).
    """

    def __init__(self, command: Sequence[str], *, own_session: bool = False) -> None:
        self.command = tuple(command)
        self.own_session = own_session
        self._process: subprocess.Popen[bytes] | None = None
        self._let_go = False

    async def run(
        self, arguments: Sequence[str], tell: Callable[[tuple[bytes, ...]], None]
    ) -> Ended:
        """Start the child, pass its lines on in batches, and wait until it is gone.

        However this coroutine ends (cancelled included), the child does not outlive it, unless it
        was let go.
        """
        fd, name = new_log()
        try:
            self._process = subprocess.Popen(
                [*self.command, *arguments],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=fd,
                start_new_session=self.own_session,
            )  # fmt: skip
        finally:
            os.close(fd)
        assert self._process.stdout is not None
        lines = asyncio.StreamReader(limit=MAX_LINE)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(lines), self._process.stdout
        )
        try:
            await self._pump(lines, tell)
            await self._gone()
            return Ended(self._process.returncode or 0, name)
        finally:
            await self.stop()
            transport.close()

    async def _pump(
        self, lines: asyncio.StreamReader, tell: Callable[[tuple[bytes, ...]], None]
    ) -> None:
        loop = asyncio.get_running_loop()
        batch: list[bytes] = []
        last = 0.0
        reading = asyncio.ensure_future(_line(lines))
        try:
            while True:
                wait = None if not batch else max(0.0, last + BATCH_S - loop.time())
                done, _ = await asyncio.wait({reading}, timeout=wait)
                if done:
                    line = reading.result()
                    if not line:
                        break
                    batch.append(line)
                    reading = asyncio.ensure_future(_line(lines))
                if batch and loop.time() - last >= BATCH_S:
                    tell(tuple(batch))
                    batch, last = [], loop.time()
        finally:
            reading.cancel()
            if batch:
                tell(tuple(batch))

    async def _gone(self) -> None:
        """Until the child has ended or was let go."""
        while self._process is not None and self._process.poll() is None and not self._let_go:
            await asyncio.sleep(POLL_S)

    async def stop(self) -> None:
        """Ask the child to end, and end it when it does not within STOP_S."""
        process = self._process
        if process is None or process.poll() is not None or self._let_go:
            return
        process.terminate()
        try:
            await asyncio.wait_for(self._gone(), STOP_S)
        except TimeoutError:
            process.kill()
            await self._gone()

    def let_go(self) -> None:
        """Tell the child to go on alone (SIGUSR1); from here on it is not ours to end."""
        process = self._process
        if process is not None and process.poll() is None:
            self._let_go = True
            process.send_signal(signal.SIGUSR1)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def returncode(self) -> int | None:
        return None if self._process is None else self._process.returncode


class TraceClient:
    """One traced pass in a child process."""

    def __init__(self, command: Sequence[str] = WORKER) -> None:
        self.command = tuple(command)
        self.child = Child(command, own_session=True)
        self._started = asyncio.Event()

    async def run(self, job: TraceJob, tell: Callable[[tuple[Event, ...]], None]) -> Ended:
        """Run the job to its end; what is not an event is passed over."""

        def parsed(lines: tuple[bytes, ...]) -> None:
            events = (parse_event(line) for line in lines)
            known = tuple(event for event in events if event is not None)
            if any(isinstance(event, Started) for event in known):
                self._started.set()
            tell(known)

        self._started.clear()
        return await self.child.run((job.to_json(), "--parent", str(os.getpid())), parsed)

    async def stop(self) -> None:
        """End it early: whole files stay."""
        await self.child.stop()

    async def leave(self) -> None:
        """Leave it running without us, once it has begun to compute; it may end before that."""
        while not self._started.is_set() and self.child.running:
            await asyncio.sleep(POLL_S)
        self.child.let_go()


async def _line(stream: asyncio.StreamReader) -> bytes:
    """The next line; one that is too long is passed over as an empty event."""
    try:
        return await stream.readline()
    except ValueError:
        return b"\n"


async def plan(job: TraceJob, command: Sequence[str] = WORKER) -> Planned | Failed:
    """What the trace would be: tokens, files, bytes; or why it cannot be."""
    process = await asyncio.create_subprocess_exec(
        *command, "--plan", job.to_json(),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE, limit=MAX_LINE,
    )  # fmt: skip
    try:
        out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    for line in out.splitlines():
        event = parse_event(line)
        if isinstance(event, Planned | Failed):
            return event
    last = clean((err.decode("utf-8", "replace").strip().splitlines() or [""])[-1], 300)
    return Failed(f"the engine did not answer: {last}", "", process.returncode or 4)
