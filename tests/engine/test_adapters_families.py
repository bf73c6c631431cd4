"""llama.cpp's nodes of every family with a GGUF fixture, and which stage each of them is.

tests/fixtures/llamacpp/families.json.gz lists the nodes of each fixture's pass (name, operation,
sources, shape, first parameter; views left out) as llama.cpp b11739 computes them (lfm2,
lfm2_moe, minicpm3, mpt, olmo, the recurrent ones, and those of ``written``: libllama v0.5.0); the
values of four, by the fixtures' own llama.cpp, are in shared/fixtures/families (nodes.npz).
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from aprtui.compare.bisect import bisect
from aprtui.engine.adapters import _not_made
from aprtui.engine.adapters.collected import Collector
from aprtui.engine.adapters.ggml import Node
from aprtui.engine.adapters.nodes import NodeMap
from aprtui.formats.tracedir import StageKey
from aprtui.model.open import Model, open_model
from tests.compare.planting import write
from tests.engine.mutations import TOKENS
from tests.engine.test_adapters_hf import trace, worst_error
from tests.engine.test_adapters_llamacpp import needs_llamacpp
from tests.engine.written import WRITTEN
from tests.support import FIXTURES, SMALL, needs_fixtures

Array = npt.NDArray[Any]

RECORDED = json.loads(gzip.decompress((SMALL / "llamacpp" / "families.json.gz").read_bytes()))
WITH_VALUES = [
    case for case in RECORDED if case in ("gpt_oss", "lfm2", "llama4_text", "minimax_m2")
]
WITH_STATES = ("falcon_h1", "jamba", "nemotron_h")
FUSED = ("ssm_dt",)  # softplus is part of ggml's scan
GELU_TABLE = (
    "gemma2",
    "gemma2_q20",
    "gemma3n_text",
    "gemma4_text",
    "mpt",
)  # of ggml's CPU: another number than the GELU's
BAR = 1e-5  # docs/numerics.md 1
GROWN = {"qwen3_5_text": 3e-5}  # what each stage's rounding comes to: by itself none is 1e-6 off


def gguf(case: str) -> Path:
    return FIXTURES / "families" / case / "model.gguf"


def model_of(case: str, folder: Path) -> Path:
    """The GGUF of a case, made in ``folder`` where the fixtures have none."""
    return WRITTEN[case](folder) if case in WRITTEN else gguf(case)


def tokens_of(case: str) -> tuple[int, ...]:
    if case in WRITTEN:
        return TOKENS
    with np.load(gguf(case).with_name("expected.npz")) as expected:
        return tuple(int(token) for token in expected["tokens"])


def nodes_of(case: str) -> list[Node]:
    return [
        Node(name, op, tuple(sources), tuple(shape), scale)
        for name, op, sources, shape, scale in RECORDED[case]
    ]


def collect(model: Model, tokens: int, given: Iterator[tuple[Node, Array]]) -> dict[StageKey, Any]:
    """The stages that come of these nodes; none comes twice."""
    absent = {each.stage for each in _not_made(model)}
    wanted = [node.key for node in model.graph if not (node.last or node.key.stage in absent)]
    shown: dict[StageKey, torch.Tensor] = {}

    def put(key: StageKey, value: torch.Tensor) -> None:
        assert key not in shown, f"{key} twice"
        shown[key] = value.clone()

    collector = Collector(NodeMap(model.graph, model.weights), tokens, wanted, put)
    for node, values in given:
        if collector.wants(node):
            collector.take(node, values)
    assert sorted(map(str, shown)) == sorted(map(str, wanted))
    return shown


@needs_fixtures
@pytest.mark.parametrize("case", sorted(RECORDED))
def test_every_stage_of_a_family_is_made_of_its_nodes(case: str, tmp_path: Path) -> None:
    model, nodes = open_model(model_of(case, tmp_path)), nodes_of(case)
    kinds = {"ARGSORT": np.int32}
    given = ((node, np.zeros(node.shape, kinds.get(node.op, np.float32))) for node in nodes)
    shown = collect(model, nodes[0].shape[0], given)
    for key, value in shown.items():
        assert tuple(value.shape) == model.graph[key].shape(nodes[0].shape[0])


@needs_fixtures
def test_a_state_is_whole_where_a_pass_has_fewer_rows_than_heads() -> None:
    model = open_model(gguf("qwen3_next"))
    key = StageKey(0, "delta_state")
    shown: list[torch.Tensor] = []
    nodes = NodeMap(model.graph, model.weights)
    collector = Collector(nodes, 1, [key], lambda _, value: shown.append(value))
    given = np.arange(4 * 16 * 16, dtype=np.float32).reshape(4, 16, 16)
    collector.take(Node("new_state-0", "VIEW", (), given.shape), given)
    assert np.array_equal(shown[0].numpy(), given.swapaxes(1, 2))


def recorded_values(case: str) -> Iterator[tuple[Node, Array]]:
    """The nodes with the values of nodes.npz, whose unnamed nodes have other numbers. A node that
    only gives its source another shape has its source's values."""
    values: dict[tuple[str, str], list[Array]] = {}
    with np.load(gguf(case).with_name("nodes.npz")) as stored:
        for key in stored.files:
            _, name, op = key.split("|")
            values.setdefault(_kind(name, op.replace("_OAI", "")), []).append(stored[key])
    by_name: dict[str, Array] = {}
    for node in nodes_of(case):
        if node.op == "RESHAPE":
            found = by_name.get(node.sources[0])
        else:
            there = values.get(_kind(node.name, node.op))
            found = there.pop(0) if there else None
        if found is not None:
            by_name[node.name] = found
            yield node, found.reshape(node.shape)


def _kind(name: str, op: str) -> tuple[str, str]:
    named = {"SWIGLU": "GLU", "SIGMOID": "UNARY", "SILU": "UNARY"}.get(op, op)
    return re.sub(r"node_\d+", "node", name), named


@needs_fixtures
def test_what_llama_cpp_computes_otherwise_than_the_folder_says_is_its_culprit(
    tmp_path: Path,
) -> None:
    """gpt_oss says truncate false, which no GGUF can: ggml rounds YaRN's correction range."""
    with np.load(gguf("gpt_oss").with_name("expected.npz")) as expected:
        tokens = tuple(int(token) for token in expected["tokens"])
        logits = np.asarray(expected["llamacpp_logits"][-1], dtype=np.float64)
    shown = collect(open_model(gguf("gpt_oss")), len(tokens), recorded_values("gpt_oss"))
    values = {key: value.double().numpy() for key, value in shown.items()}
    folder = open_model(gguf("gpt_oss").parent)
    values[folder.graph.nodes[-1].key] = logits
    found = bisect(folder, write(tmp_path / "theirs", values), tokens=tokens)
    assert not found.unmeasured
    mistakes = {each.key: each.mistake for each in found.culprits}
    turned = {node.key for node in folder.graph if node.key.stage.endswith("_post_rope")}
    assert mistakes.keys() == turned
    for each in mistakes.values():
        assert each is not None and each.id == "rope_table" and "(truncate)" in each.text


@needs_fixtures
@pytest.mark.parametrize("case", WITH_VALUES)
def test_the_stages_of_recorded_nodes_are_those_of_our_pass(case: str, tmp_path: Path) -> None:
    tokens = tokens_of(case)
    model = open_model(gguf(case))
    shown = collect(model, len(tokens), recorded_values(case))
    ours = trace(gguf(case), tmp_path / "ours", "aprtui", tokens=tokens)
    for key, value in shown.items():
        mine = np.asarray(ours.records[key].values(), dtype=np.float64).reshape(value.shape)
        apart = np.linalg.norm(value.double().numpy() - mine) / np.linalg.norm(mine)
        assert apart <= BAR, f"{key}: {apart:.1e}"
    values = {key: value.double().numpy() for key, value in shown.items()}
    head = ours.records[model.graph.nodes[-1].key]  # logits come out of the library as they are
    values[head.key] = np.asarray(head.values(), dtype=np.float64)
    found = bisect(model, write(tmp_path / "theirs", values), tokens=tokens)
    assert not (found.culprits or found.unmeasured)


@needs_fixtures
@pytest.mark.parametrize("case", WITH_STATES)
def test_every_stage_of_a_layer_with_a_state_is_a_node_that_llama_cpp_computed(
    case: str, tmp_path: Path
) -> None:
    """Of these the recorded nodes have no sources: a stage is told by its values."""
    tokens = tokens_of(case)
    ours = trace(gguf(case), tmp_path / "ours", "aprtui", tokens=tokens)
    with np.load(gguf(case).with_name("nodes.npz")) as stored:
        nodes = {key: stored[key].astype(np.float64) for key in stored.files}
    graph = open_model(gguf(case)).graph
    inside = [key for key in ours.records if key.stage.startswith("ssm_")]
    assert len(inside) > 4
    for key in inside:
        if key.stage in FUSED:
            continue
        shape = graph[key].shape(len(tokens))
        values = np.asarray(ours.records[key].values(), dtype=np.float64).reshape(shape)
        near = min(apart(values, node, scan=key.endswith("SCAN")) for key, node in nodes.items())
        assert near <= BAR, f"{key}: {near:.1e}"


@needs_fixtures
@pytest.mark.parametrize("case", WITH_STATES)
def test_what_a_node_of_a_layer_with_a_state_is_taken_for_by_its_name_is_that(
    case: str, tmp_path: Path
) -> None:
    tokens = tokens_of(case)
    ours = trace(gguf(case), tmp_path / "ours", "aprtui", tokens=tokens)
    model = open_model(gguf(case))
    taken, told = NodeMap(model.graph, model.weights), set()
    with np.load(gguf(case).with_name("nodes.npz")) as stored:
        for key in stored.files:
            _, name, op = key.split("|")
            values = stored[key].astype(np.float64)
            kind = "GLU" if op == "SWIGLU" else op
            for slot in taken.slots(Node(name, kind, (), values.shape, 1.0)):
                mine = np.asarray(ours.records[slot.key].values(), dtype=np.float64)
                if mine.size == values.size:  # not of the last rows, nor padded
                    assert apart(mine, values, scan=False) <= BAR, (key, slot)
                    told.add(slot.key.stage)
    assert {"post_ffn_residual", "attention"} <= told


def apart(values: Array, node: Array, *, scan: bool) -> float:
    """Relative L2 of a node, as it lies or with its state's rows and channels in turn; a ``scan``
    ends in its state."""
    if node.size != values.size and not (scan and values.size < node.size):
        return np.inf
    node = node.reshape(-1)[-values.size :]
    shapes = [values]
    if values.ndim == 3:
        shapes.append(values.swapaxes(1, 2))
    away = min(float(np.linalg.norm(each.reshape(-1) - node.reshape(-1))) for each in shapes)
    return away / float(np.linalg.norm(values))


@needs_llamacpp
@needs_fixtures
@pytest.mark.parametrize("case", sorted(set(RECORDED) - set(GELU_TABLE)))
def test_llama_cpps_stages_of_a_family_are_those_of_our_pass(case: str, tmp_path: Path) -> None:
    path, tokens = model_of(case, tmp_path), tokens_of(case)
    ours = trace(path, tmp_path / "ours", "aprtui", tokens=tokens)
    theirs = trace(path, tmp_path / "theirs", "llamacpp", tokens=tokens)
    assert worst_error(ours, theirs) <= GROWN.get(case, BAR)
    assert not bisect(open_model(path), theirs, tokens=tokens).culprits


@needs_llamacpp
@needs_fixtures
@pytest.mark.parametrize("case", GELU_TABLE)
def test_llama_cpps_gelu_table_is_no_culprit(case: str, tmp_path: Path) -> None:
    tokens = tokens_of(case)
    theirs = trace(gguf(case), tmp_path / "theirs", "llamacpp", tokens=tokens)
    assert not bisect(open_model(gguf(case)), theirs, tokens=tokens).culprits
