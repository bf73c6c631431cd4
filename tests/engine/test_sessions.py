"""Several prompts, several devices, kept weights: the bits of one prompt streamed on one device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from aprtui.engine import weights
from aprtui.engine.block_decoders import BLOCK_DECODERS, Workspace
from aprtui.engine.codecs import Codec, codec_of
from aprtui.engine.dequantise import dequantise
from aprtui.engine.device import Devices, resolve_devices
from aprtui.engine.forward import _bring, forward
from aprtui.engine.grid_decoders import GRID_DECODERS
from aprtui.engine.job import TraceJob
from aprtui.engine.ops import Pass
from aprtui.engine.placement import Placement, layer_bytes
from aprtui.engine.plan import make_plans
from aprtui.engine.session import Session
from aprtui.engine.weights import WeightStream
from aprtui.errors import UsageError
from aprtui.formats.blocks import BLOCK_TYPES
from aprtui.formats.tracedir import StageKey
from aprtui.graph import Role
from aprtui.model.open import Matrix, Model, open_model
from tests.engine.test_unchanged import Keeping, Stages, same_bits
from tests.support import FIXTURES, SMALL, needs_fixtures

# torch tells them apart, and both are the CPU: what crosses between them is moved as between GPUs.
HERE, THERE = torch.device("cpu"), torch.device("cpu", 0)
TOKENS = tuple((i * 37 + 5) % 500 for i in range(9))


def stages(stream: WeightStream, tokens: tuple[int, ...] = TOKENS) -> Stages:
    tap = Keeping()
    with torch.inference_mode():
        forward(stream.model.graph, Pass(stream, tokens), tap)
    return tap.stages


def assert_same(a: Stages, b: Stages) -> None:
    assert set(a) == set(b)
    assert [str(key) for key in a if not same_bits(a[key], b[key])] == []


@needs_fixtures
@pytest.mark.parametrize(
    "name", ["qwen2-q4_k_m", "llama-q4_k_m", "qwen3-q6_k", "qwen3moe-q4_k_m", "gemma3-q4_0"]
)
@pytest.mark.parametrize("kept", [False, True])
def test_layers_on_two_devices_give_the_bits_of_one(name: str, kept: bool) -> None:
    model = open_model(FIXTURES / "models" / f"{name}.gguf")
    layers = model.graph.num_layers
    split = (HERE,) * (layers // 2) + (THERE,) * (layers - layers // 2)
    keep = frozenset({0, layers - 1, None}) if kept else frozenset()
    stream = WeightStream(model, Placement(split, THERE, keep), torch.float32)
    expected = stages(WeightStream(model, HERE, torch.float32))
    assert_same(stages(stream), expected)
    assert_same(stages(stream), expected)


@needs_fixtures
@pytest.mark.parametrize("name", ["qwen2-q4_k_m", "llama-q4_k_m", "qwen3-q6_k", "gemma3-q4_0"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_operation_takes_its_operands_from_its_layers_device(
    name: str, dtype: torch.dtype
) -> None:
    """Meta tensors have no values, and like a GPU's cannot be computed with the host's."""
    model = open_model(FIXTURES / "models" / f"{name}.gguf")
    found = stages(WeightStream(model, torch.device("meta"), dtype))
    assert {value.device.type for value in found.values()} == {"meta"}
    assert set(found) == set(stages(WeightStream(model, HERE, dtype)))


@pytest.mark.parametrize("case", sorted(path.name for path in (SMALL / "quantised").iterdir()))
def test_codes_are_decoded_where_their_bytes_are(case: str) -> None:
    """No operation of a coding mixes the host's tensors with a device's, or waits for one."""
    model = open_model(SMALL / "quantised" / case)
    meta = torch.device("meta")
    for matrix in model.weights.values():
        codec = codec_of(matrix)
        rows = min(codec.rows, 9)
        first = min(5, codec.rows - rows)
        for there in (codec, codec.moved(lambda raw: raw.to(meta))):
            raw = there.bytes_of(first, rows).to(meta)
            out = torch.empty((rows, codec.columns), device=meta)
            assert there.decode(raw, first, out, Workspace()).device == meta
    found = stages(WeightStream(model, meta, torch.float32), tokens=(3, 5, 17))
    assert {value.device.type for value in found.values()} == {"meta"}


@pytest.mark.parametrize("kind", sorted(set(BLOCK_DECODERS) | set(GRID_DECODERS)))
def test_blocks_of_every_type_are_decoded_where_they_are(kind: str) -> None:
    blocks = torch.empty((6, BLOCK_TYPES[kind].bytes), dtype=torch.uint8, device="meta")
    assert dequantise(kind, blocks).device.type == "meta"


@pytest.mark.parametrize("case", ["plain", "dora"])
def test_adapters_are_added_where_their_bases_bytes_are(case: str) -> None:
    model = open_model(SMALL / "adapters" / "base", adapter=SMALL / "adapters" / case)
    found = stages(WeightStream(model, torch.device("meta"), torch.float32), tokens=(3, 5))
    assert {value.device.type for value in found.values()} == {"meta"}


class _Crossing:
    """A value that knows where it is, and who moved it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def to(self, device: torch.device) -> _Crossing:
        return _Crossing(device)


def test_a_value_crosses_once_and_stays() -> None:
    graph = open_model(SMALL / "models" / "qwen2-q4_k_m.gguf").graph
    node = next(node for node in graph if node.key == StageKey(1, "attn_norm"))
    values: dict[Any, Any] = {key: _Crossing(HERE) for key in node.inputs}
    before = dict(values)
    _bring(node.inputs, values, HERE)
    assert values == before
    _bring(node.inputs, values, THERE)
    moved = dict(values)
    assert all(value.device == THERE for value in moved.values())
    _bring(node.inputs, values, THERE)
    assert values == moved


@pytest.fixture
def model() -> Model:
    return open_model(SMALL / "models" / "qwen2-q4_k_m.gguf")


def test_kept_weights_are_read_from_the_file_once(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = model.graph.num_layers
    placed = Placement((HERE,) * count, HERE, frozenset({*range(count), None}))
    stream = WeightStream(model, placed, torch.float32)
    first = stages(stream)
    read: list[str] = []

    def counted(matrix: Matrix) -> Codec:
        read.append(matrix.entry.name)
        return codec_of(matrix)

    monkeypatch.setattr(weights, "codec_of", counted)
    assert_same(stages(stream), first)
    vectors = {m.entry.name for m in model.weights.values() if len(m.entry.shape) == 1}
    assert set(read) <= vectors | {model.weights[Role("embedding")].entry.name}
    read.clear()
    assert_same(stages(WeightStream(model, HERE, torch.float32)), first)
    assert model.weights[Role("up", 1)].entry.name in read


def test_kept_weights_serve_prompts_of_any_length(model: Model) -> None:
    count = model.graph.num_layers
    placed = Placement((HERE,) * count, HERE, frozenset({*range(count), None}))
    stream = WeightStream(model, placed, torch.float32)
    for length in (3, 90, 9):
        tokens = tuple(range(length))
        streamed = stages(WeightStream(model, HERE, torch.float32), tokens)
        assert_same(stages(stream, tokens), streamed)


# -- how a session chooses; no device is touched ---------------------------------------------------

GPUS = {torch.device("cuda", index): f"GPU {index % 2}" for index in range(3)}


JOB = TraceJob(str(SMALL / "models" / "qwen2-q4_k_m.gguf"))


def session(
    monkeypatch: pytest.MonkeyPatch,
    free: Mapping[int, int],
    asked: list[int] | None = None,
    *,
    named: bool = False,
    resident: bool = False,
) -> Session:
    def memory(device: torch.device) -> tuple[int, int]:
        if asked is not None:
            asked.append(device.index)
        if free[device.index] < 0:
            raise RuntimeError("CUDA error: out of memory")  # torch.AcceleratorError
        return free[device.index], 80_000_000_000

    monkeypatch.setattr(torch.cuda, "mem_get_info", memory)
    plans = make_plans(replace(JOB, resident=resident), ["one", "two and more"])
    found = {device: title for device, title in GPUS.items() if device.index in free}
    return Session(plans, Devices(found, named=named))


def test_one_gpu_streams_without_asking_for_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = session(monkeypatch, {0: 0})
    assert (chosen.device, chosen.device_name, chosen.notes) == ("cuda:0", "GPU 0", ())


def test_a_gpu_too_full_to_be_asked_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    assert session(monkeypatch, {0: -1, 1: 3_000_000_000}).device == "cuda:1"


def test_of_several_gpus_the_first_with_room_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """The third is not asked, which would take some of its memory."""
    asked: list[int] = []
    chosen = session(monkeypatch, {0: 10_000_000, 1: 3_000_000_000, 2: 9_000_000_000}, asked)
    assert (chosen.device, chosen.device_name) == ("cuda:1", "GPU 1")
    assert asked == [0, 1]


def test_resident_takes_all_gpus_where_none_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = session(monkeypatch, {0: 8_000_000_000})
    working = alone._working_bytes(make_plans(JOB, ["one", "two and more"]), torch.device("cuda"))
    most = sum(layer_bytes(alone._model).values()) * 3 // 5
    chosen = session(monkeypatch, {0: working + most, 1: working + most}, resident=True)
    assert chosen.device == "cuda:0,cuda:1"
    assert chosen.placement.kept == {0, 1, 2, 3, None}


def test_named_gpus_are_all_used(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = session(monkeypatch, {0: 8_000_000_000, 2: 8_000_000_000}, named=True)
    assert (chosen.device, chosen.device_name) == ("cuda:0,cuda:2", "GPU 0")


def test_resident_says_what_stays_and_what_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    roomy = session(monkeypatch, {0: 8_000_000_000}, resident=True)
    assert roomy.placement.kept == {0, 1, 2, 3, None}
    assert "stay on the device" in roomy.notes[0]
    full = session(monkeypatch, {0: 100_000_000}, resident=True)
    assert full.placement.kept == frozenset()
    assert "0 of 4 layers fit into free memory, the rest streams" in full.notes[0]


def test_resident_is_refused_where_there_is_no_gpu() -> None:
    with pytest.raises(UsageError, match="this trace runs on cpu") as refused:
        Session(make_plans(replace(JOB, resident=True), ["one"]), resolve_devices("cpu"))
    assert "file cache" in refused.value.hint


def test_another_engine_is_refused_several_named_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Devices({device: "GPU" for device in GPUS}, named=True)
    plans = make_plans(JOB, ["one"])
    foreign = replace(plans[0], job=replace(plans[0].job, engine="hf"))
    with pytest.raises(UsageError, match="hf computes on one device, and 3 are named"):
        Session([foreign], found)


def test_devices_are_named_one_by_one_or_all_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    cuda = [torch.device("cuda", index) for index in range(3)]
    assert list(resolve_devices("cuda").titles) == list(resolve_devices("auto").titles) == cuda
    assert not resolve_devices("cuda").named
    assert list(resolve_devices("cuda:1").titles) == [cuda[1]]
    both = resolve_devices("cuda:2, CUDA:0")
    assert (list(both.titles), both.named) == ([cuda[2], cuda[0]], True)
    for wrong in ("cuda:0,cuda:0", "cuda:0,cpu", "cuda,cuda:0", "cpu,cpu"):
        with pytest.raises(UsageError, match="cannot be used together"):
            resolve_devices(wrong)
    for unknown in ("cuda:x", "gpu", "cuda:0,", "", "cuda:²"):
        with pytest.raises(UsageError, match="unknown device"):
            resolve_devices(unknown)
    with pytest.raises(UsageError, match=r"3 CUDA devices are here: cuda:0 \(GPU 0\), cuda:1"):
        resolve_devices("cuda:3")


def test_a_folder_of_traces_is_planned_from_one_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def opening(path: Path, overrides: Mapping[str, str], **more: Any) -> Model:
        opened.append(path)
        return open_model(path, overrides, **more)

    monkeypatch.setattr("aprtui.engine.plan.open_model", opening)
    plans = make_plans(replace(JOB, directory=str(tmp_path)), ["one", "two"])
    assert [plan.directory.name for plan in plans] == ["prompt-1", "prompt-2"]
    assert [plan.prompt for plan in plans] == ["one", "two"]
    assert len(opened) == 1
