"""Foreign folders get shapes only where one reading fits, or a model tells them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from aprtui.compare.infer import open_any, open_pair, record_in_trace, with_shapes
from aprtui.errors import BadFileError, UsageError
from aprtui.formats.aprt import read_values, write_stage
from aprtui.formats.perop import PerOpDir
from aprtui.formats.tracedir import StageKey, TraceDir
from aprtui.graph import Graph
from tests.compare.captures import split_by_position
from tests.graphs import graph_of
from tests.support import FIXTURES, needs_fixtures

CAPTURES = FIXTURES / "captures"
TRACES = FIXTURES / "apr/traces"
SIZES = {
    "num_hidden_layers": 4, "hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 2,
    "intermediate_size": 512, "vocab_size": 2048, "tie_word_embeddings": True,
}  # fmt: skip
QWEN2 = graph_of("qwen2", SIZES)


def _open(path: Path, graph: Graph | None = None) -> TraceDir:
    found = open_any(path)
    assert isinstance(found, TraceDir)
    return with_shapes(found, graph)


@needs_fixtures
@pytest.mark.parametrize("capture", sorted(CAPTURES.glob("*/*/layer-0")), ids=lambda p: p.parts[-3])
def test_inferred_shapes_are_those_that_the_fixtures_state(capture: Path) -> None:
    told = json.loads((capture.parent.parent / "capture.json").read_text())
    shapes = told["engines"][capture.parent.name]["shapes"]
    trace = _open(capture.parent)
    found = {f"{key}.bin": list(record.shape or ()) for key, record in trace.records.items()}
    assert found == shapes
    assert {record.shape_source for record in trace.records.values()} == {"inferred"}
    assert any(f"shapes inferred: {len(told['token_ids'])} tokens" in note for note in trace.notes)


@needs_fixtures
@pytest.mark.parametrize(
    ("name", "why"),
    [("pycode-int8", "no attention scores"), ("qwen3-import", "no set of dimensions fits")],
)
def test_what_has_no_single_reading_stays_flat_and_says_why(name: str, why: str) -> None:
    trace = _open(TRACES / name)
    assert {record.shape for record in trace.records.values()} == {None}
    assert why in trace.notes[-1]


@needs_fixtures
def test_a_folder_of_experts_only_holds_the_last_position() -> None:
    trace = _open(TRACES / "qwen3moe-gguf")
    assert trace.records[StageKey(0, "moe_ffn_out")].shape == (1, 256)
    assert trace.records[StageKey(3, "moe_router")].shape == (1, 3)
    assert {record.positions for record in trace.records.values()} == {"last"}
    assert "last position" in trace.notes[-1]


@needs_fixtures
def test_a_model_tells_shapes_and_what_contradicts_it_stays_flat() -> None:
    trace = _open(TRACES / "pycode-int8", QWEN2)
    assert trace.records[StageKey(0, "embedding")].shape == (9, 256)
    assert trace.records[StageKey(0, "embedding")].shape_source == "model"
    assert trace.records[StageKey(0, "qkv_matmul")].shape is None
    assert any("864 values where 9 x 384 = 3,456 were expected" in note for note in trace.notes)


@needs_fixtures
def test_a_model_tells_heads_that_the_files_contradict() -> None:
    qwen3 = graph_of("qwen3", {**SIZES, "head_dim": 64})
    trace = _open(TRACES / "qwen3-import", qwen3)
    assert trace.records[StageKey(0, "q_post_rope")].shape is None
    assert trace.records[StageKey(0, "qkv_matmul")].shape == (9, 768)
    assert any("q_post_rope (layers 0-3) contradicts" in note for note in trace.notes)


@needs_fixtures
def test_a_damaged_file_does_not_cost_the_others_their_shapes(tmp_path: Path) -> None:
    shutil.copytree(CAPTURES / "qwen2-q4_k_m/float64", tmp_path / "t")
    damaged = tmp_path / "t/layer-1/ffn_up.bin"
    damaged.chmod(0o644)
    damaged.write_bytes(damaged.read_bytes()[:-40])
    trace = _open(tmp_path / "t")
    assert trace.records[StageKey(1, "ffn_up")].shape is None
    assert trace.records[StageKey(1, "ffn_gate")].shape == (12, 512)


@needs_fixtures
def test_per_op_folders_are_stacked_and_unpadded(tmp_path: Path) -> None:
    source = CAPTURES / "qwen2-q4_k_m/float64"
    gpu_lacks = frozenset({"qkv_matmul", "qkv_bias", "ffn_gate", "ffn_up", "ffn_silu",
                           "attn_scores"})  # fmt: skip
    split_by_position(source, tmp_path / "cpu", 12, drop=frozenset())
    split_by_position(source, tmp_path / "gpu", 12, drop=gpu_lacks)
    for path in (tmp_path / "gpu").glob("pos-*/layer-*/k_post_rope.bin"):
        padded = np.concatenate([read_values(path), np.zeros(256 - 64, dtype=np.float32)])
        write_stage(path, int(path.parent.name.removeprefix("layer-")), padded)
    both = open_any(tmp_path)
    assert isinstance(both, PerOpDir)
    cpu, gpu = (with_shapes(side) for side in open_pair(tmp_path))
    for side in (cpu, gpu):
        for key, record in side.records.items():
            whole = read_values(source / f"{key}.bin")
            if key.stage == "lm_head":
                assert record.shape == (12, 2048)
                assert np.array_equal(record.values()[-2048:], whole)
            else:
                assert np.array_equal(record.values(), whole), key
    assert gpu.records[StageKey(2, "k_post_rope")].count == 12 * 64
    assert any("padded to 256 values a position: cut to 64" in note for note in gpu.notes)
    assert cpu.records[StageKey(0, "q_post_rope")].shape == (12, 8, 32)
    with_model = with_shapes(gpu, QWEN2)
    assert with_model.records[StageKey(2, "k_post_rope")].shape == (12, 2, 32)


@needs_fixtures
def test_a_stage_file_finds_its_shape_in_the_folder_around_it(tmp_path: Path) -> None:
    path = TRACES / "qwen2-import/layer-2/attn_scores.bin"
    record, trace = record_in_trace(path)
    assert (record.key, record.shape) == (StageKey(2, "attn_scores"), (8, 9, 9))
    assert trace is not None
    shutil.copy(path, tmp_path / "elsewhere.bin")
    alone, nowhere = record_in_trace(tmp_path / "elsewhere.bin")
    assert (alone.key.layer, alone.shape, nowhere) == (2, None, None)


def test_what_is_not_a_per_op_folder_or_a_trace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a per-op folder"):
        open_pair(tmp_path)
    with pytest.raises(BadFileError, match="holds no trace"):
        open_any(tmp_path)
