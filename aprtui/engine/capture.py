"""Capturing: the pass's values cloned, handed to a writer thread, written as stage files."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from aprtui.engine.behind import Behind
from aprtui.engine.device import own_memory_bytes
from aprtui.engine.events import Emit, StageWritten
from aprtui.engine.folder import TraceFolder
from aprtui.engine.leaving import Leaving
from aprtui.engine.plan import PlannedFile
from aprtui.engine.stopping import raise_if_stopped, uninterrupted
from aprtui.formats.summary import summarise
from aprtui.formats.tracedir import StageKey, relative_path

__all__ = ["Capture"]

Float32 = npt.NDArray[np.float32]
_MEMORY_EVERY_S = 0.02  # asking the kernel costs as much as writing a small file
_MAPPED_VALUES = 4 << 20  # a larger tensor [A,T,T] never is in memory as a whole


class _BlockSink:
    """Takes a tensor [A,T,T] as blocks of queries come: a large one in the map of its file."""

    def __init__(self, capture: Capture, file: PlannedFile) -> None:
        self._capture = capture
        self._file = file
        self._open_file = ExitStack()
        self._mapped = math.prod(file.shape) > _MAPPED_VALUES
        if self._mapped:
            stage = capture.folder.create_stage(file.key, file.shape)
            self._values = self._open_file.enter_context(stage)
        else:
            self._values = np.zeros(file.shape, dtype=np.float32)

    def put(self, first_head: int, first_query: int, block: torch.Tensor) -> None:
        heads, queries, keys = block.shape
        place = self._values[first_head:, first_query:][:heads, :queries, :keys]
        if block.is_cuda:
            self._capture.fill(place, block)
        else:
            place[:] = block.to("cpu", torch.float32).numpy()

    def close(self) -> None:
        self._capture.close_blocks(
            self._file, self._values, self._open_file if self._mapped else None
        )

    def abort(self) -> None:
        try:
            with self._open_file:
                raise _Aborted
        except _Aborted:
            pass


class _Aborted(Exception):
    """Unwinds an open stage file so that nothing of it remains."""


class Capture:
    """A tap (``forward.Tap``) that writes the planned stages through a writer thread.

    A failure of the writer (a full disk) is raised in the pass at the next stage.
    """

    def __init__(
        self,
        folder: TraceFolder,
        files: tuple[PlannedFile, ...],
        emit: Emit,
        device_bytes: Callable[[], int],
    ) -> None:
        self.folder = folder
        self._files = {file.key: file for file in files}
        self._emit = emit
        self._device_bytes = device_bytes
        self._start = time.monotonic()
        self._abandoned = False
        self._open_sinks: dict[StageKey, _BlockSink] = {}
        self._written_bytes = 0
        self.stats: dict[StageKey, Mapping[str, Any]] = {}
        self._memory = 0
        self._memory_due_s = 0.0
        self.peak_memory_bytes = 0
        self.peak_device_bytes = 0
        self._writer = Behind("capture-writer")
        self._leaving = Leaving(self._writer)

    def put(self, key: StageKey, value: torch.Tensor) -> None:
        """Clone a watched stage off the device and queue it."""
        self._raise_failure()
        file = self._files.get(key)
        if file is not None:
            with uninterrupted():
                self._leaving.take(value.detach(), partial(self._write_tensor, file))
            raise_if_stopped()

    def put_whole(self, file: PlannedFile, values: Float32) -> None:
        """Queue a stage that was put together elsewhere; the values stay as they are until then."""
        self._raise_failure()
        self.close_blocks(file, values, None)

    def keep(self, key: StageKey, stats: Mapping[str, Any]) -> None:
        """Count a file of an earlier run among the trace's own; its statistics are known."""
        self.folder.keep(key)
        self.stats[key] = stats
        self._written_bytes += self._files[key].bytes

    def open_blocks(self, key: StageKey) -> _BlockSink | None:
        self._raise_failure()
        file = self._files.get(key)
        if file is None:
            return None
        sink = _BlockSink(self, file)
        self._open_sinks[key] = sink
        return sink

    def fill(self, place: Float32, block: torch.Tensor) -> None:
        """Queue a piece of a tensor [A,T,T] for its place in the file's map or in memory."""
        with uninterrupted():
            self._leaving.take(block, partial(self._fill, place))
        raise_if_stopped()

    def close_blocks(self, file: PlannedFile, values: Float32, mapped: ExitStack | None) -> None:
        """Queue the end of a stage of blocks: its open map is closed, or its values are written."""
        work = partial(self._write, file, values)
        if mapped is not None:
            work = partial(self._close_map, file, values, mapped)
        with uninterrupted():
            self._open_sinks.pop(file.key, None)
            self._leaving.then(values.size, work)
        raise_if_stopped()

    def close(self) -> None:
        """Wait until every file is written. Raises what the writer met."""
        with uninterrupted():
            self._leaving.leave()
            self._writer.end()
        self._raise_failure(whole=True)

    def abort(self) -> None:
        """Stop now: files already whole stay, nothing half written remains."""
        self._abandoned = True
        self._leaving.abandon()
        for sink in self._open_sinks.values():
            sink.abort()
        self._writer.end()

    @property
    def written(self) -> int:
        return len(self.stats)

    @property
    def written_bytes(self) -> int:
        return self._written_bytes

    def _raise_failure(self, *, whole: bool = False) -> None:
        raise_if_stopped(whole=whole)
        if self._writer.failure is not None:
            raise self._writer.failure

    @property
    def _discarding(self) -> bool:
        return self._abandoned or self._writer.failure is not None

    def _write_tensor(self, file: PlannedFile, values: torch.Tensor) -> None:
        self._write(file, values.numpy())

    def _write(self, file: PlannedFile, values: Float32) -> None:
        if not self._discarding:
            stats = summarise(values)
            self.folder.write_stage(file.key, values)
            self._announce(file, stats)

    def _fill(self, place: Float32, values: torch.Tensor) -> None:
        if not self._discarding:
            place[:] = values.numpy()

    def _close_map(self, file: PlannedFile, values: Float32, mapped: ExitStack) -> None:
        try:
            with mapped:
                if self._discarding:
                    raise _Aborted
                stats = summarise(values)
        except _Aborted:
            return
        self._announce(file, stats)

    def _announce(self, file: PlannedFile, stats: Mapping[str, Any]) -> None:
        self.stats[file.key] = stats
        self._written_bytes += file.bytes
        elapsed = time.monotonic() - self._start
        if elapsed >= self._memory_due_s:
            self._memory_due_s = elapsed + _MEMORY_EVERY_S
            self._memory = own_memory_bytes()
            # The most that was in use since the trace began: it never falls.
            self.peak_device_bytes = self._device_bytes()
        self.peak_memory_bytes = max(self.peak_memory_bytes, self._memory)
        self._emit(
            StageWritten(
                layer=file.key.layer,
                stage=file.key.stage,
                path=relative_path(file.key),
                bytes=file.bytes,
                done=len(self.stats),
                files=len(self._files),
                written_bytes=self._written_bytes,
                elapsed_s=round(elapsed, 4),
                rms=stats["rms"],
                nan=stats["nan"],
                inf=stats["inf"],
                device_bytes=self.peak_device_bytes,
                memory_bytes=self._memory,
                shape=file.shape,
                axes=file.axes,
                positions=file.positions,
            )
        )
