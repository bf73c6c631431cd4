"""Streaming, blocks and threads change no bit: compared with a pass that knows none of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from aprtui.engine import native, ops, weights, workers
from aprtui.engine.block_decoders import BLOCK_DECODERS
from aprtui.engine.dequantise import Workspace, decode_tensor, dequantise
from aprtui.engine.forward import forward
from aprtui.engine.ops import Pass
from aprtui.engine.weights import WeightStream
from aprtui.engine.workers import for_each, one_core
from aprtui.formats.blocks import BLOCK_TYPES
from aprtui.formats.tracedir import StageKey
from aprtui.graph import Role
from aprtui.model.open import Model, open_model
from tests.support import FIXTURES, needs_fixtures

CPU = torch.device("cpu")
MODELS = ("qwen2-q4_k_m", "llama-q4_k_m", "qwen3-q6_k", "qwen3moe-q4_k_m", "gemma3-q4_0")

Stages = dict[StageKey, torch.Tensor]


class PlainWeights(WeightStream):
    """Each matrix dequantised whole, then multiplied in one go by the calling thread."""

    def linear(self, x: torch.Tensor, role: Role) -> torch.Tensor:
        matrix = self.model.weights[role]
        whole = decode_tensor(matrix.entry, self.device).reshape(-1, matrix.columns)
        return x @ whole[matrix.first_row : matrix.first_row + matrix.rows].T


class Keeping:
    """A tap that copies the stages whose names it is given."""

    def __init__(self, wanted: Callable[[str], bool] = lambda stage: True) -> None:
        self.stages: Stages = {}
        self._wanted = wanted

    def put(self, key: StageKey, value: torch.Tensor) -> None:
        if self._wanted(key.stage):
            self.stages[key] = value.clone()

    def open_blocks(self, key: StageKey) -> Pieces | None:
        if not self._wanted(key.stage):
            return None
        self.stages[key] = torch.empty(0)
        return Pieces(self.stages, key)


class Pieces:
    """Puts the pieces of an [A,T,T] stage together."""

    def __init__(self, stages: Stages, key: StageKey) -> None:
        self._stages = stages
        self._key = key
        self._pieces: list[tuple[int, int, torch.Tensor]] = []

    def put(self, first_head: int, first_query: int, block: torch.Tensor) -> None:
        self._pieces.append((first_head, first_query, block.clone()))

    def close(self) -> None:
        heads = max(first + block.shape[0] for first, _, block in self._pieces)
        tokens = max(first + block.shape[1] for _, first, block in self._pieces)
        whole = self._pieces[0][2].new_zeros(heads, tokens, tokens)
        for head, query, block in self._pieces:
            a, t, s = block.shape
            whole[head : head + a, query : query + t, :s] = block
        self._stages[self._key] = whole


def plain_pass(model: Model, tokens: tuple[int, ...]) -> Stages:
    """Every stage by its whole operation, one after the other, on one core."""
    ar = Pass(PlainWeights(model, CPU, torch.float32), tokens)
    values: Stages = {}
    with torch.inference_mode(), one_core():
        for node in model.graph:
            values[node.key] = ops.compute(ar, node, [values[key] for key in node.inputs])
    return values


def streamed_pass(model: Model, tokens: tuple[int, ...], tap: Keeping | None = None) -> Stages:
    tap = tap or Keeping()
    stream = WeightStream(model, CPU, torch.float32)
    with torch.inference_mode():
        forward(model.graph, Pass(stream, tokens), tap)
    return tap.stages


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (
        a.shape == b.shape and a.contiguous().numpy().tobytes() == b.contiguous().numpy().tobytes()
    )


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets how many threads the engine computes with."""
    before = torch.get_num_threads()

    def use(count: int) -> None:
        workers._threads.cache_clear()
        torch.set_num_threads(count)

    yield use
    use(before)


@needs_fixtures
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("length", [1, 7, 40])
def test_a_streamed_pass_gives_the_bits_of_a_plain_one(name: str, length: int) -> None:
    model = open_model(FIXTURES / "models" / f"{name}.gguf")
    tokens = tuple((i * 37 + 5) % 500 for i in range(length))
    plain, streamed = plain_pass(model, tokens), streamed_pass(model, tokens)
    assert set(streamed) == set(plain)
    assert [str(key) for key in plain if not same_bits(plain[key], streamed[key])] == []


@needs_fixtures
def test_the_number_of_threads_changes_no_bit(threads: Callable[[int], None]) -> None:
    model = open_model(FIXTURES / "models" / "qwen2-q4_k_m.gguf")
    passes = []
    for count in (1, 2, 5):
        threads(count)
        passes.append(streamed_pass(model, tuple(range(100, 120))))
    for other in passes[1:]:
        assert [str(key) for key in other if not same_bits(other[key], passes[0][key])] == []


@needs_fixtures
@pytest.mark.parametrize("watched", ["embedding", "attn_scores", "ffn_up", "lm_head"])
def test_watching_one_stage_gives_the_bits_of_watching_all(watched: str) -> None:
    model = open_model(FIXTURES / "models" / "qwen2-q4_k_m.gguf")
    tokens = tuple(range(100, 130))
    everything = streamed_pass(model, tokens)
    one = streamed_pass(model, tokens, Keeping(lambda stage: stage == watched))
    assert one
    assert all(same_bits(value, everything[key]) for key, value in one.items())


@needs_fixtures
@pytest.mark.parametrize("values", [1, 1 << 14, 1 << 22])
def test_blocks_of_any_size_hold_the_same_weights(
    values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "BLOCK_VALUES", values)
    model = open_model(FIXTURES / "models" / "qwen2-q4_k_m.gguf")
    stream = WeightStream(model, CPU, torch.float32)
    for role in (Role("q", 1), Role("down", 2), Role("head")):
        blocks = torch.cat([block.clone() for _, block in stream.blocks(role)])
        assert same_bits(blocks, decode_tensor(model.weights[role].entry, CPU))


@needs_fixtures
@pytest.mark.skipif(not native.NATIVE_TYPES, reason="installed without a C compiler")
@pytest.mark.parametrize("name", MODELS)
def test_the_decoders_in_c_change_no_bit_of_a_pass(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(FIXTURES / "models" / f"{name}.gguf")
    in_c = streamed_pass(model, tuple(range(100, 107)))
    monkeypatch.setattr(native, "NATIVE_TYPES", frozenset())
    in_torch = streamed_pass(model, tuple(range(100, 107)))
    assert [str(key) for key in in_c if not same_bits(in_c[key], in_torch[key])] == []


@pytest.mark.parametrize("name", sorted(BLOCK_DECODERS))
def test_scratch_memory_leaves_nothing_of_the_last_block_behind(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "NATIVE_TYPES", frozenset())  # C needs none
    kind = BLOCK_TYPES[name]
    used = Workspace()
    generator = torch.Generator().manual_seed(1)
    for n in (3, 200, 3, 7, 200):  # the scratch grows, then is larger than needed
        blocks = torch.randint(0, 60, (n, kind.bytes), dtype=torch.uint8, generator=generator)
        assert same_bits(dequantise(name, blocks, workspace=used), dequantise(name, blocks))


def test_every_item_is_computed_and_an_error_comes_out() -> None:
    seen: list[int] = []
    for_each(seen.append, range(50), CPU)
    assert sorted(seen) == list(range(50))

    def fail(item: int) -> None:
        raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item"):
        for_each(fail, range(50), CPU)


def test_the_callers_own_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    with pytest.raises(KeyError), one_core():
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == before


@needs_fixtures
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_weights_reach_a_cuda_device_unchanged(tmp_path: Path) -> None:
    model = open_model(FIXTURES / "models" / "qwen2-q4_k_m.gguf")
    here = WeightStream(model, CPU, torch.float32)
    there = WeightStream(model, torch.device("cuda"), torch.float32)
    for role in model.weights:
        ours = torch.cat([block.cpu() for _, block in there.blocks(role)])
        assert same_bits(ours, torch.cat([block.clone() for _, block in here.blocks(role)])), role
