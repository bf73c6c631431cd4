"""Nodes of llama.cpp under its own names, from the nodes that it recorded of models that no family
file describes; a stand-in plays them in the order in which they came."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aprtui import api
from aprtui.cli.main import main
from aprtui.engine import adapters, node_trace
from aprtui.engine.adapters.ggml import Node
from aprtui.engine.job import TraceJob
from aprtui.engine.module_job import module_plan
from aprtui.engine.node_trace import NodeWatch
from aprtui.errors import UsageError
from aprtui.formats.modulecalls import nodes_of, order_of_calls
from aprtui.formats.tracedir import StageKey, TraceDir, open_trace
from aprtui.model.open import open_model
from tests.engine.test_adapters_llamacpp import RECORDED, model_path
from tests.engine.test_adapters_llamacpp import nodes_of as recorded_of
from tests.support import FIXTURES, needs_fixtures

CASE = FIXTURES / "families" / "falcon_h1"


def recorded(case: Path) -> list[tuple[Node, Any]]:
    """(node, values) in the order in which llama.cpp computed them."""
    found = []
    with np.load(case / "nodes.npz") as stored:
        for name in sorted(stored.files):
            _, called, op = name.split("|")
            values = stored[name]
            while values.ndim > 1 and values.shape[0] == 1:
                values = values[0]
            readable = values.dtype in (np.float32, np.int32)
            found.append((Node(called, op, (), values.shape, readable=readable), values))
    return found


class Played:
    """Stands for llama.cpp with a model loaded: ``change`` is done to the values of one node."""

    change: tuple[str, float] = ("", 1.0)

    def decode(self, fed: Any, watch: Any) -> torch.Tensor:
        for node, values in recorded(CASE):
            if watch.wants(node):
                by = self.change[1] if node.name == self.change[0] else 1.0
                watch.take(node, np.ascontiguousarray(values * by, dtype=np.float32))
        with np.load(CASE / "expected.npz") as expected:
            return torch.from_numpy(expected["llamacpp_logits"].astype(np.float32))


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Played:
    llama = Played()

    @contextmanager
    def loaded(*given: Any) -> Iterator[Played]:
        yield llama

    stand_in = types.ModuleType("llama_cpp")
    stand_in.__version__ = "0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "llama_cpp", stand_in)
    monkeypatch.setattr(node_trace, "loaded", loaded)
    monkeypatch.setattr(adapters, "_version", lambda engine: "0")
    return llama


@pytest.fixture
def nameless(tmp_path: Path) -> Path:
    """The model under the name of an architecture that nobody described."""
    path = tmp_path / "nameless.gguf"
    path.write_bytes((CASE / "model.gguf").read_bytes().replace(b"falcon-h1", b"unheardof"))
    return path


def traced(model: Path, out: Path, **job: Any) -> TraceDir:
    with np.load(CASE / "expected.npz") as expected:
        tokens = tuple(map(int, expected["tokens"]))
    return api.trace(model, engine="llamacpp", tokens=tokens, directory=out, **job)


@needs_fixtures
def test_a_model_without_a_family_is_captured_node_by_node(
    played: Played, nameless: Path, tmp_path: Path
) -> None:
    found = traced(nameless, tmp_path / "t")
    assert found.manifest is not None
    told = " ".join(found.manifest["notes"])
    assert "stages are llama.cpp's nodes under its own names" in told
    held = {(node.name, node.op): values for node, values in recorded(CASE)}
    norm = found["layer-1/attn_norm.node"]
    np.testing.assert_array_equal(np.asarray(norm), held["attn_norm-1", "MUL"])
    assert norm.axes is not None and norm.axes[0] == "token"
    assert StageKey(None, "lm_head") in found.records
    order = nodes_of(found)
    assert len(order) == len(set(order)) and set(order) <= found.records.keys()
    assert not any("node_" in key.stage or "view" in key.stage for key in found.records)
    assert list(order_of_calls(found)) == list(order)


@needs_fixtures
def test_such_captures_are_compared_and_bisect_says_that_nothing_is_replayed(
    played: Played, nameless: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    traced(nameless, tmp_path / "a")
    played.change = ("ffn_norm-1", 1.5)
    traced(nameless, tmp_path / "b")
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    assert main(["diff", a, b]) == 1
    assert "First divergence: layer-1/ffn_norm.node (differs)" in capsys.readouterr().out
    assert main(["bisect", a, b]) == 1
    told = capsys.readouterr().out
    assert "Nothing could be replayed" in told and "no family file says how" in told
    assert "A and B first differ at layer-1/ffn_norm.node" in told
    assert main(["bisect", a]) == 1
    assert main(["stats", a]) == 0


@needs_fixtures
def test_stages_and_layers_choose_nodes(played: Played, nameless: Path, tmp_path: Path) -> None:
    few = traced(nameless, tmp_path / "t", stages="ffn_*", layers="1")
    assert few.records and all(key.layer == 1 for key in few.records)
    assert all(key.stage.startswith("ffn_") for key in few.records)
    with pytest.raises(UsageError, match="no node has a name like that"):
        traced(nameless, tmp_path / "none", stages="nothing")
    known = str(CASE / "model.gguf")
    job = TraceJob(known, engine="llamacpp", engine_args={"nodes": "on"}, tokens=(1,), steps=2)
    with pytest.raises(UsageError, match="nodes are traced in one prefill"):
        module_plan(job)


class Put:
    def __init__(self) -> None:
        self.values: dict[StageKey, torch.Tensor] = {}

    def put(
        self, stage: str, value: torch.Tensor, *, layer: int | None = None, axes: Any = None
    ) -> None:
        self.values[StageKey(layer, stage)] = value

    def note(self, text: str) -> None: ...


def test_names_are_llama_cpps_own_and_none_is_taken_twice() -> None:
    target = Put()
    watch = NodeWatch(target, 2)
    nodes = [
        Node("Qcur-0", "MUL_MAT", ("blk.0.attn_q.weight", "x"), (2, 4)),
        Node("Qcur-0", "ADD", ("Qcur-0", "blk.0.attn_q.bias"), (2, 4)),
        Node("Qcur-0", "ADD", ("Qcur-0", "b"), (2, 4)),
        Node("Qcur-0 (reshaped)", "RESHAPE", ("Qcur-0",), (2, 2, 2)),
        Node("node_7", "MUL_MAT", ("blk.0.attn_output.weight", "kqv_out-0"), (2, 4)),
        Node("node_8", "ADD", ("node_7", "x"), (2, 4)),
        Node("attn_norm-0", "MUL", ("norm-0", "blk.0.attn_norm.weight"), (2, 4)),
        Node("a b/../c-3", "MUL", (), (2, 4)),
        Node("half-0", "MUL", (), (2, 4), readable=False),
        Node("cache_k_l0", "SET_ROWS", (), (2, 4)),
        Node("result_norm", "MUL", (), (4,)),
    ]  # fmt: skip
    for node in nodes:
        if watch.wants(node):
            watch.take(node, np.zeros(node.shape, np.float32))
    assert [str(key) for key in target.values] == [
        "layer-0/Qcur", "layer-0/Qcur.add", "layer-0/Qcur.add-2", "layer-0/attn_output",
        "layer-0/attn_norm.node", "layer-3/a_b_.._c", "result_norm",
    ]  # fmt: skip
    assert watch.unread == 1 and len(watch.nodes) == len(target.values)


@needs_fixtures
def test_a_known_family_has_its_stages_and_the_other_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, played: Played
) -> None:
    path = model_path("qwen2-q4_k_m")
    if not path.is_file():
        pytest.skip(f"the large fixtures are not at {FIXTURES}")
    model = open_model(path)

    def decode(self: Played, fed: Any, watch: Any) -> torch.Tensor:
        for node in recorded_of("qwen2-q4_k_m"):
            if watch.wants(node):
                watch.take(node, np.ones(node.shape, np.float32))
        return torch.zeros(12, model.graph.vocab_size)

    assert "qwen2-q4_k_m" in RECORDED
    monkeypatch.setattr(Played, "decode", decode)
    found = api.trace(
        path, engine="llamacpp", engine_args={"nodes": "on"}, tokens=range(1, 13),
        directory=tmp_path / "t",
    )  # fmt: skip
    assert {StageKey(0, "qkv_bias"), StageKey(0, "ffn_gate")} <= found.records.keys()
    own = [key for key in found.records if key not in model.graph]
    assert own and set(own) < set(nodes_of(found))
    assert open_trace(tmp_path / "t").manifest is not None
