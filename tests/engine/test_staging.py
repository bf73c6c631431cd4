"""Staging never overwrites what is still to be copied or read, however the streams are served.

torch.cuda's streams and events are played by queues that a seeded scheduler works off in any order
that CUDA's rules allow: in order within a stream, a wait holding its stream until the event that
was recorded last has come. The copies themselves run when their turn comes, so a buffer that is
used again too early shows as wrong bytes.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from aprtui.engine import leaving as leaving_module
from aprtui.engine import staging as staging_module
from aprtui.engine import weights
from aprtui.engine.ahead import Ahead, Expected
from aprtui.engine.behind import Behind
from aprtui.engine.leaving import Leaving
from aprtui.engine.placement import Placement
from aprtui.engine.staging import SLOTS, Staging
from aprtui.engine.weights import WeightStream, largest_block_bytes
from aprtui.errors import BadFileError
from aprtui.graph import Role
from aprtui.model.open import open_model
from tests.engine.test_sessions import TOKENS, assert_same, stages
from tests.support import FIXTURES, SMALL, needs_fixtures

CPU = torch.device("cpu")
BLOCK = 64
PIECE = 24  # a block goes through pinned memory in several


class Event:
    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self.device = CPU
        self.recorded = 0  # how often a record was queued
        self.come = 0  # and how many of them were reached

    def record(self, stream: Stream) -> None:
        with self._gpu.lock:
            self.recorded += 1
            number = self.recorded

            def reached() -> None:
                self.come = number

            stream.queue.append(reached)
            self._gpu.go_on()

    def synchronize(self) -> None:
        with self._gpu.lock:
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
        self.lock = threading.RLock()
        self._chosen = threading.local()

    @property
    def current(self) -> Stream:
        """The calling thread's stream."""
        return getattr(self._chosen, "stream", self.computing)

    def new_stream(self, device: torch.device) -> Stream:
        self.streams.append(Stream())
        return self.streams[-1]

    @contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        before, self._chosen.stream = self.current, stream
        yield
        self._chosen.stream = before

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
        with self.lock:
            while any(stream.queue for stream in self.streams):
                self.step()

    def read(self, tensor: torch.Tensor, seen: list[torch.Tensor]) -> None:
        """A kernel that reads a tensor when its turn comes."""

        def read() -> None:
            seen.append(tensor.clone())

        with self.lock:
            self.computing.queue.append(read)
            self.go_on()

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
    monkeypatch.setattr(torch.cuda, "Event", lambda **_: Event(played))
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "stream", played.on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: played.current)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    monkeypatch.setattr(staging_module, "_PIECE_BYTES", PIECE)
    return played


def cloned(block: torch.Tensor) -> list[torch.Tensor]:
    return [block.clone()]


def blocks(count: int) -> list[torch.Tensor]:
    """Blocks of the file, each of other bytes and another length."""
    return [torch.full((BLOCK - 7 * (n % 4),), n, dtype=torch.uint8) for n in range(count)]


@pytest.mark.parametrize("gpu", range(40), indirect=True)
def test_every_block_is_read_as_it_is_stored(gpu: Gpu) -> None:
    seen: list[torch.Tensor] = []
    stored = blocks(5 * SLOTS + 1)
    with gpu:
        staging = Staging(CPU, BLOCK)
        for block in stored:
            with staging.on_device([block]) as there:
                gpu.read(there, seen)
        gpu.finish()
    assert all(torch.equal(*pair) for pair in zip(seen, stored, strict=True))


@pytest.mark.parametrize("gpu", range(20), indirect=True)
def test_pieces_that_lie_apart_come_to_lie_one_after_the_other(gpu: Gpu) -> None:
    """A scale a row beside codes that are columns of a wider table, as GPTQ's lie."""
    table = torch.arange(200, dtype=torch.uint8).view(10, 20)
    seen: list[torch.Tensor] = []
    expected: list[torch.Tensor] = []
    with gpu:
        staging = Staging(CPU, BLOCK)
        for n in range(3 * SLOTS):
            columns = table[:3, n : n + 5 + n % 4]
            with staging.on_device([columns, table[3, :n]]) as there:
                gpu.read(there, seen)
            gap = torch.zeros(-columns.numel() % 16, dtype=torch.uint8)
            expected.append(torch.cat([columns.reshape(-1), gap, table[3, :n]]))
        gpu.finish()
    for n, (found, right) in enumerate(zip(seen, expected, strict=True)):
        count = 3 * (5 + n % 4)
        assert torch.equal(found[:count], right[:count])
        assert torch.equal(found[len(right) - n :], right[len(right) - n :])


@pytest.mark.parametrize("gpu", range(20), indirect=True)
def test_what_is_kept_is_whole_when_it_is_read(gpu: Gpu) -> None:
    """Larger than all slots together, with streamed blocks before, between and after."""
    generator = torch.Generator().manual_seed(5)
    large = torch.randint(
        0, 200, (BLOCK * (SLOTS + 2) + 9,), dtype=torch.uint8, generator=generator
    )
    seen: list[torch.Tensor] = []
    expected: list[torch.Tensor] = []
    with gpu:
        staging = Staging(CPU, BLOCK)
        for block in blocks(8):
            with staging.on_device([block]) as there:
                gpu.read(there, seen)
            gpu.read(staging.kept(large), seen)
            expected += [block, large]
        gpu.finish()
    assert all(torch.equal(*pair) for pair in zip(seen, expected, strict=True))


@pytest.fixture
def leaving(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Leaving, Behind]]:
    """Values of the device that is played, landing on a thread of their own."""
    monkeypatch.setattr(leaving_module, "_on_cuda", lambda value: True)
    monkeypatch.setattr(leaving_module, "_GATHERED_VALUES", 64)
    monkeypatch.setattr(leaving_module, "_LARGE_VALUES", 24)
    behind = Behind("leaving")
    yield Leaving(behind), behind


@pytest.mark.parametrize("gpu", range(20), indirect=True)
def test_values_land_as_they_were_when_they_were_given(
    gpu: Gpu, leaving: tuple[Leaving, Behind]
) -> None:
    """Small ones together, a large one alone, each before what is behind it; all in order."""
    leave, behind = leaving
    seen: list[object] = []
    given: list[object] = []
    with gpu:
        for n, size in enumerate([3, 20, 1, 24, 23, 25, 40, 2, 9, 23, 22, 5]):
            value = torch.full((size, 1), n, dtype=torch.float64)
            leave.take(value, lambda values: seen.append(values.clone()))
            given.append(value.to(torch.float32))
            if n % 3 == 1:
                leave.then(7, partial(seen.append, n))
                given.append(n)
            value.fill_(-1)  # what is queued later may overwrite it
        leave.leave()
        behind.end()
    assert behind.failure is None
    assert len(seen) == len(given)
    for found, expected in zip(seen, given, strict=True):
        if isinstance(expected, torch.Tensor):
            assert torch.equal(found, expected)  # type: ignore[arg-type]
        else:
            assert found == expected


@pytest.mark.parametrize("gpu", [3], indirect=True)
def test_what_is_abandoned_never_lands_and_what_waits_for_it_is_done(
    gpu: Gpu, leaving: tuple[Leaving, Behind]
) -> None:
    leave, behind = leaving
    seen: list[object] = []
    with gpu:
        leave.take(torch.ones(5), seen.append)
        leave.then(5, lambda: seen.append("closed"))
        leave.abandon()
        leave.leave()
        behind.end()
    assert seen == ["closed"]


@pytest.fixture
def filling(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """Threads that are begun play along."""

    class Playing(threading.Thread):
        def run(self) -> None:
            with gpu:
                super().run()

    monkeypatch.setattr(threading, "Thread", Playing)
    return gpu


@pytest.mark.parametrize("gpu", range(40), indirect=True)
def test_blocks_that_come_ahead_are_read_as_they_are_stored(filling: Gpu) -> None:
    """With others between them that nobody expected, and a second pass behind the first."""
    stored, others = blocks(4 * SLOTS + 1), blocks(60)[40:]
    expected = [Expected(n, partial(cloned, block)) for n, block in enumerate(stored)]
    seen: list[torch.Tensor] = []
    read: list[torch.Tensor] = []
    with filling:
        staging, ahead = Staging(CPU, BLOCK), Ahead(Staging(CPU, BLOCK))
        for _ in range(2):
            ahead.begin(expected)
            for n, block in enumerate(stored):
                if n % 3 == 1:
                    assert not ahead.expects("another")
                    with staging.on_device([others[n]]) as there:
                        filling.read(there, seen)
                    read.append(others[n])
                assert ahead.expects(n)
                with ahead.on_device() as there:
                    filling.read(there, seen)
                read.append(block)
            assert not ahead.expects(len(stored))
        ahead.end()
        filling.finish()
    assert all(torch.equal(*pair) for pair in zip(seen, read, strict=True))


@pytest.mark.parametrize("gpu", [3], indirect=True)
def test_a_pass_that_ends_early_leaves_no_thread_and_no_block(filling: Gpu) -> None:
    stored = blocks(4 * SLOTS)
    expected = [Expected(n, partial(cloned, block)) for n, block in enumerate(stored)]
    seen: list[torch.Tensor] = []
    with filling:
        ahead = Ahead(Staging(CPU, BLOCK))
        for last in (0, 1, SLOTS, len(stored) - 1):
            ahead.begin(expected)
            for n in range(last + 1):
                with ahead.on_device() as there:
                    filling.read(there, seen)
                assert not ahead.expects(n)
            ahead.end()
            assert not ahead.expects(last + 1)
            filling.finish()
            assert all(torch.equal(*pair) for pair in zip(seen, stored, strict=False))
            seen.clear()
    assert not [each for each in threading.enumerate() if each.name == "weights-ahead"]


@pytest.mark.parametrize("gpu", [3], indirect=True)
def test_a_file_that_cannot_be_read_fails_where_the_block_is_asked_for(filling: Gpu) -> None:
    def unreadable() -> list[torch.Tensor]:
        raise BadFileError("model.gguf", "is cut short")

    good = Expected("good", partial(cloned, torch.zeros(4, dtype=torch.uint8)))
    with filling:
        ahead = Ahead(Staging(CPU, BLOCK))
        ahead.begin([good, Expected("bad", unreadable), good])
        with ahead.on_device():
            pass
        with pytest.raises(BadFileError, match="cut short"), ahead.on_device():
            pass
        ahead.end()


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
        "quantised/fp8-block",
        "quantised/gptq-4",
        "quantised/awq-4",
    ],
)
def test_a_pass_through_staging_gives_the_bits_of_one_without(
    path: str, kept: bool, gpu: Gpu, filling: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every block fits its slot, also where blocks run across rows, and those that are expected
    come ahead in the very order in which they are asked for."""
    unexpected: list[Role] = []
    decode = WeightStream._on_device

    def counted(stream: WeightStream, *which: Any) -> Any:
        role = which[-1]
        streams = role and role.layer not in stream.placement.kept and CPU in stream._ahead
        if streams and not stream._ahead[CPU].expects((role, *which[1:3])):
            unexpected.append(role)
        return decode(stream, *which)

    monkeypatch.setattr(WeightStream, "_on_device", counted)
    monkeypatch.setattr(weights, "BLOCK_VALUES", 1 << 13)  # several blocks a matrix
    monkeypatch.setattr(staging_module, "_PIECE_BYTES", 1000)  # and several pieces a block
    small = SMALL / path
    model = open_model(small if small.exists() else FIXTURES / path)
    tokens = tuple(token % model.graph.vocab_size for token in TOKENS)
    expected = stages(WeightStream(model, CPU, torch.float32), tokens)
    monkeypatch.setattr(weights, "for_each", one_after_the_other)
    monkeypatch.setattr(gpu.computing, "wait_event", lambda event: gpu.finish())
    count = model.graph.num_layers
    keep = frozenset({None, *range(0, count, 2)}) if kept else frozenset()
    stream = WeightStream(model, Placement((CPU,) * count, CPU, keep), torch.float32)
    with gpu:
        stream._staging = {CPU: Staging(CPU, largest_block_bytes(model, CPU))}
        stream._ahead = {CPU: Ahead(Staging(CPU, largest_block_bytes(model, CPU)))}
        assert_same(stages(stream, tokens), expected)
        assert_same(stages(stream, tokens), expected)
    assert {role.name for role in unexpected} <= {"expert_gate", "expert_up", "expert_down"}


def one_after_the_other(
    function: Callable[[Any], None], items: Iterable[Any], device: torch.device
) -> None:
    """As a device is fed: by one thread."""
    for item in items:
        function(item)
