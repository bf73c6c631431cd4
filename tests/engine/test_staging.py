"""Staging never overwrites what is still to be copied or read, however the streams are served.

torch.cuda's streams and events are played by queues that a seeded scheduler works off in any order
that CUDA's rules allow: in order within a stream, a wait holding its stream until the event that
was recorded last has come. The copies themselves run when their turn comes, so a buffer that is
used again too early shows as wrong bytes.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from aprtui.engine import weights
from aprtui.engine.placement import Placement
from aprtui.engine.staging import SLOTS, Staging
from aprtui.engine.weights import WeightStream, largest_block_bytes
from aprtui.model.open import open_model
from tests.engine.test_sessions import assert_same, stages
from tests.support import FIXTURES, needs_fixtures

CPU = torch.device("cpu")
BLOCK = 64


class Event:
    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self.recorded = 0  # how often a record was queued
        self.come = 0  # and how many of them were reached

    def record(self, stream: Stream) -> None:
        self.recorded += 1
        number = self.recorded

        def reached() -> None:
            self.come = number

        stream.queue.append(reached)
        self._gpu.go_on()

    def synchronize(self) -> None:
        while self.come < self.recorded:
            self._gpu.step()


class Stream:
    def __init__(self) -> None:
        self.queue: deque[Callable[[], None]] = deque()
        self.held: Callable[[], bool] = lambda: False

    def wait_event(self, event: Event) -> None:
        number = event.recorded

        def wait() -> None:
            self.held = lambda: event.come < number

        self.queue.append(wait)


class Gpu(TorchFunctionMode):
    """Streams, the one that is current, and copies that are queued on it."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._random = random.Random(seed)
        self._eager = self._random.random()
        self.computing = Stream()
        self.streams = [self.computing]
        self.current = self.computing

    def new_stream(self, device: torch.device) -> Stream:
        self.streams.append(Stream())
        return self.streams[-1]

    @contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    def step(self) -> None:
        """One operation of one stream that may go on; an error where none may: a deadlock."""
        ready = [stream for stream in self.streams if stream.queue and not stream.held()]
        self._random.choice(ready).queue.popleft()()

    def go_on(self) -> None:
        """The device works for a while, or not."""
        while self._random.random() < self._eager and any(
            stream.queue and not stream.held() for stream in self.streams
        ):
            self.step()

    def finish(self) -> None:
        while any(stream.queue for stream in self.streams):
            self.step()

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is torch.Tensor.copy_ and kwargs.pop("non_blocking", False):

            def copy() -> None:
                function(*args)

            self.current.queue.append(copy)
            return args[0]
        if kwargs.pop("pin_memory", False):  # unspecified values: some that no block holds
            return function(*args, **kwargs).fill_(255)
        return function(*args, **kwargs)


@pytest.fixture
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Gpu:
    played = Gpu(request.param)
    monkeypatch.setattr(torch.cuda, "Stream", played.new_stream)
    monkeypatch.setattr(torch.cuda, "Event", lambda: Event(played))
    monkeypatch.setattr(torch.cuda, "stream", played.on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: played.current)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    return played


def blocks(count: int) -> list[torch.Tensor]:
    """Blocks of the file, each of other bytes and another length."""
    return [torch.full((BLOCK - 7 * (n % 4),), n, dtype=torch.uint8) for n in range(count)]


@pytest.mark.parametrize("gpu", range(40), indirect=True)
def test_every_block_is_read_as_it_is_stored(gpu: Gpu) -> None:
    seen: dict[int, torch.Tensor] = {}
    stored = blocks(5 * SLOTS + 1)
    with gpu:
        staging = Staging(CPU, BLOCK)
        for n, block in enumerate(stored):
            with staging.on_device(block) as there:

                def read(n: int = n, there: torch.Tensor = there) -> None:
                    seen[n] = there.clone()

                gpu.computing.queue.append(read)
                gpu.go_on()
        gpu.finish()
    assert len(seen) == len(stored)
    assert all(torch.equal(seen[n], block) for n, block in enumerate(stored))


@pytest.mark.parametrize("gpu", range(20), indirect=True)
def test_what_is_kept_is_whole_when_it_is_read(gpu: Gpu) -> None:
    """Larger than all slots together, with streamed blocks before, between and after."""
    generator = torch.Generator().manual_seed(5)
    large = torch.randint(
        0, 200, (BLOCK * (SLOTS + 2) + 9,), dtype=torch.uint8, generator=generator
    )
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    with gpu:
        staging = Staging(CPU, BLOCK)
        for block in blocks(8):
            with staging.on_device(block) as there:
                gpu.computing.queue.append(
                    lambda there=there, block=block: seen.append((there.clone(), block))  # type: ignore[misc]
                )
            kept = staging.kept(large)
            gpu.computing.queue.append(
                lambda kept=kept: seen.append((kept.clone(), large))  # type: ignore[misc]
            )
        gpu.finish()
    assert len(seen) == 16
    assert all(torch.equal(ours, expected) for ours, expected in seen)


@needs_fixtures
@pytest.mark.parametrize("gpu", [1], indirect=True)
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize(
    "path",
    [
        "models/qwen2-q4_k_m.gguf",
        "models/qwen3moe-q4_k_m.gguf",
        "apr/models/llama-import.apr",
        "apr/models/pycode-int4.apr",
        "apr/models/pycode-int8.apr",
    ],
)
def test_a_pass_through_staging_gives_the_bits_of_one_without(
    path: str, kept: bool, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every block fits its slot, also where blocks run across rows, and is decoded as it is."""
    monkeypatch.setattr(weights, "BLOCK_VALUES", 1 << 13)  # several blocks a matrix
    model = open_model(FIXTURES / path)
    expected = stages(WeightStream(model, CPU, torch.float32))
    monkeypatch.setattr(weights, "for_each", one_after_the_other)
    monkeypatch.setattr(gpu.computing, "wait_event", lambda event: gpu.finish())
    count = model.config.num_layers
    keep = frozenset({None, *range(0, count, 2)}) if kept else frozenset()
    stream = WeightStream(model, Placement((CPU,) * count, CPU, keep), torch.float32)
    with gpu:
        stream._staging = {CPU: Staging(CPU, largest_block_bytes(model, CPU))}
        assert_same(stages(stream), expected)
        assert_same(stages(stream), expected)


def one_after_the_other(
    function: Callable[[Any], None], items: Iterable[Any], device: torch.device
) -> None:
    """As a device is fed: by one thread."""
    for item in items:
        function(item)
