"""Runs the engine as a child process and tells what it says; torch never comes into this one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from aprtui.engine.events import Event, Failed, Planned, parse_event
from aprtui.engine.job import TraceJob
from aprtui.text import clean

__all__ = ["COMMAND_LINE", "WORKER", "Child", "Ended", "TraceClient", "plan"]

WORKER: tuple[str, ...] = (sys.executable, "-m", "aprtui.engine.worker")
COMMAND_LINE = (sys.executable, "-c", "from aprtui.cli.main import entry; entry()")
STOP_S = 1.0  # from asking the child to end to ending it
BATCH_S = 0.1  # events are told on at most ten times a second
MAX_LINE = 1 << 24
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


class Child:
    """A child process that prints JSON lines. ``run`` ends with it; ``stop`` ends it early."""

    def __init__(self, command: Sequence[str]) -> None:
        self.command = tuple(command)
        self._process: asyncio.subprocess.Process | None = None

    async def run(
        self, arguments: Sequence[str], tell: Callable[[tuple[bytes, ...]], None]
    ) -> Ended:
        """Start the child, pass its lines on in batches, and wait until it is gone.

        However this coroutine ends (cancelled included), the child does not outlive it.
        """
        fd, name = tempfile.mkstemp(prefix="aprtui-", suffix=".log")
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self.command, *arguments,
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=fd,
                limit=MAX_LINE,
            )  # fmt: skip
        finally:
            os.close(fd)
        try:
            await self._pump(tell)
            return Ended(await self._process.wait(), Path(name))
        finally:
            await self.stop()

    async def _pump(self, tell: Callable[[tuple[bytes, ...]], None]) -> None:
        assert self._process is not None and self._process.stdout is not None
        loop = asyncio.get_running_loop()
        batch: list[bytes] = []
        last = 0.0
        reading = asyncio.ensure_future(_line(self._process.stdout))
        try:
            while True:
                wait = None if not batch else max(0.0, last + BATCH_S - loop.time())
                done, _ = await asyncio.wait({reading}, timeout=wait)
                if done:
                    line = reading.result()
                    if not line:
                        break
                    batch.append(line)
                    reading = asyncio.ensure_future(_line(self._process.stdout))
                if batch and loop.time() - last >= BATCH_S:
                    tell(tuple(batch))
                    batch, last = [], loop.time()
        finally:
            reading.cancel()
            if batch:
                tell(tuple(batch))

    async def stop(self) -> None:
        """Ask the child to end, and end it when it does not within STOP_S."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_S)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    @property
    def returncode(self) -> int | None:
        return None if self._process is None else self._process.returncode


class TraceClient:
    """One traced pass in a child process."""

    def __init__(self, command: Sequence[str] = WORKER) -> None:
        self.command = tuple(command)
        self.child = Child(command)

    async def run(self, job: TraceJob, tell: Callable[[tuple[Event, ...]], None]) -> Ended:
        """Run the job to its end; what is not an event is passed over."""

        def parsed(lines: tuple[bytes, ...]) -> None:
            events = (parse_event(line) for line in lines)
            tell(tuple(event for event in events if event is not None))

        return await self.child.run((job.to_json(), "--parent", str(os.getpid())), parsed)

    async def stop(self) -> None:
        """End it early: whole files stay."""
        await self.child.stop()


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
