"""llama.cpp as an engine: its nodes told apart, and where it is installed its recorded numbers.

tests/fixtures/llamacpp/nodes.json lists the nodes of layer 0 as llama-cpp-python 0.3.36 shows them.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from aprtui import api
from aprtui.cli.main import main
from aprtui.engine import adapters
from aprtui.engine.adapters import LlamaSettings
from aprtui.engine.adapters.collected import Collector, Span
from aprtui.engine.adapters.ggml import Ggml, Node
from aprtui.engine.adapters.nodes import NodeMap
from aprtui.engine.job import TraceJob
from aprtui.engine.plan import make_plan
from aprtui.engine.run import run_trace
from aprtui.errors import BadFileError, EngineError, UsageError
from aprtui.formats.tracedir import StageKey, TraceDir, open_trace
from aprtui.graph import Role
from aprtui.model.open import open_model
from tests.support import FIXTURES, SMALL, needs_fixtures

MODELS = ("gemma3-q4_0", "llama-q4_k_m", "llamaspm-q4_0", "pycode-5m-q4_k_m", "qwen2-q4_k_m",
          "qwen3-q6_k", "qwen3moe-q4_k_m")  # fmt: skip
RECORDED = json.loads((SMALL / "llamacpp" / "nodes.json").read_text())

needs_llamacpp = pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None,
    reason="llama-cpp-python is not installed: pip install 'aprtui[llamacpp]'",
)


def nodes_of(name: str) -> list[Node]:
    return [
        Node(name, op, tuple(sources), tuple(shape), scale)
        for name, op, sources, shape, scale in RECORDED[name]
    ]


def model_path(name: str) -> Path:
    small = SMALL / "models" / f"{name}.gguf"
    return small if small.is_file() else FIXTURES / "models" / f"{name}.gguf"


def trace(model: Path, directory: Path, **job: Any) -> TraceDir:
    wanted = TraceJob(model=str(model), directory=str(directory), engine="llamacpp", **job)
    run_trace(make_plan(wanted), lambda event: None)
    return open_trace(directory)


def recorded_tokens(name: str) -> tuple[int, ...]:
    found = json.loads((FIXTURES / "captures" / name / "capture.json").read_text())
    return tuple(found["token_ids"])


# -- what needs no llama.cpp -----------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in RECORDED if "q4" in name])
def test_every_stage_of_a_layer_has_one_node_and_no_node_two_stages(name: str) -> None:
    if not model_path(name).is_file():
        pytest.skip(f"the large fixtures are not at {FIXTURES}")
    model = open_model(model_path(name))
    wanted = [node.key for node in model.graph if node.key.layer in (0, None) and not node.last]
    shown: list[StageKey] = []
    nodes = NodeMap(model.graph, model.weights)
    collector = Collector(nodes, 12, wanted, lambda key, value: shown.append(key))
    slots = [slot for node in nodes_of(name) for slot in nodes.slots(node)]
    assert len(set(slots)) == len(slots)
    for node in nodes_of(name):
        if collector.wants(node):
            values: npt.NDArray[Any] = np.zeros(node.shape, np.float32)
            collector.take(node, values.astype(np.int32) if node.op == "ARGSORT" else values)
    assert sorted(map(str, shown)) == sorted(map(str, wanted))


def layer_of(*nodes: str) -> list[Node]:
    """Nodes of layer 0 written as ``name op sources``; a weight's name is without ``blk.0.``."""
    found = []
    for text in nodes:
        name, op, *sources = text.split()
        named = (s if "." not in s or "embd" in s else f"blk.0.{s}" for s in sources)
        found.append(Node(f"{name}-0" if name != "embd" else name, op, tuple(named), (2, 1)))
    return found


ATTENTION = (
    "kq MUL_MAT k q", "kq_soft_max SOFT_MAX kq mask", "kqv_out CONT kqv",
    "node_1 MUL_MAT attn_output.weight kqv_out",
)  # fmt: skip
OLMO2 = (
    "embd GET_ROWS token_embd.weight inp_tokens", "Qcur MUL_MAT attn_q.weight embd",
    "norm RMS_NORM Qcur", "Qcur_normed MUL norm attn_q_norm.weight",
    "Kcur MUL_MAT attn_k.weight embd", "Kcur_normed MUL norm attn_k_norm.weight",
    "Vcur MUL_MAT attn_v.weight embd", "Qcur ROPE Qcur inp_pos", "Kcur ROPE Kcur inp_pos",
    *ATTENTION, "norm RMS_NORM node_1", "attn_post_norm MUL norm post_attention_norm.weight",
    "ffn_inp ADD attn_post_norm embd", "ffn_gate MUL_MAT ffn_gate.weight ffn_inp",
    "ffn_up MUL_MAT ffn_up.weight ffn_inp", "ffn_swiglu GLU ffn_gate ffn_up",
    "ffn_out MUL_MAT ffn_down.weight ffn_swiglu", "ffn_post_norm MUL norm post_ffw_norm.weight",
    "l_out ADD ffn_post_norm ffn_inp",
)  # fmt: skip
QWEN2_MOE = (
    "embd GET_ROWS token_embd.weight inp_tokens", "attn_norm MUL norm attn_norm.weight",
    *(f"{x.upper()}cur MUL_MAT attn_{x}.weight attn_norm" for x in "qkv"),
    *(f"{x.upper()}cur ADD {x.upper()}cur attn_{x}.bias" for x in "qkv"),
    "Qcur ROPE Qcur inp_pos", "Kcur ROPE Kcur inp_pos", *ATTENTION, "ffn_inp ADD node_1 embd",
    "ffn_norm MUL norm ffn_norm.weight", "ffn_moe_logits MUL_MAT ffn_gate_inp.weight ffn_norm",
    "ffn_moe_argsort ARGSORT ffn_moe_probs", "ffn_moe_weights GET_ROWS ffn_moe_probs topk",
    "ffn_moe_gate MUL_MAT_ID ffn_gate_exps.weight ffn_norm", "ffn_moe_out ADD a b",
    "ffn_shexp_gate_inp MUL_MAT ffn_gate_inp_shexp.weight ffn_norm",
    "ffn_shexp_gate DIV silu ffn_shexp_gate_inp", "ffn_gate MUL_MAT ffn_gate_shexp.weight ffn_norm",
    "ffn_up MUL_MAT ffn_up_shexp.weight ffn_norm", "ffn_swiglu GLU ffn_gate ffn_up",
    "ffn_shexp MUL_MAT ffn_down_shexp.weight ffn_swiglu", "ffn_shexp_out MUL ffn_shexp gate",
    "ffn_out ADD ffn_moe_out ffn_shexp_out", "l_out ADD ffn_out ffn_inp",
)  # fmt: skip


@needs_fixtures
@pytest.mark.parametrize(("case", "nodes"), [("olmo2", OLMO2), ("qwen2_moe", QWEN2_MOE)])
def test_what_a_layer_has_follows_from_its_graph(case: str, nodes: tuple[str, ...]) -> None:
    """Norms behind branches alone; experts that all tokens share, under a dense FFN's names.

    The nodes are as llama.cpp's source of these models makes and names them.
    """
    model = open_model(FIXTURES / "families" / case / "model.gguf")
    names = NodeMap(model.graph, model.weights)
    slots = [slot for node in layer_of(*nodes) for slot in names.slots(node)]
    assert len(set(slots)) == len(slots)
    wanted = {node.key for node in model.graph if node.key.layer == 0}
    shown = {slot.key for slot in slots}
    collector = Collector(names, 2, wanted - shown, lambda key, value: None)
    assert all(key.stage.endswith("silu") for key in wanted - shown)
    assert any(collector.wants(node) for node in layer_of(*nodes))  # the activation is derived


def test_a_fused_tensor_gives_each_stage_its_columns(qwen2: Path) -> None:
    """As Phi-3 has them: gate and up in one tensor, and q, k and v in another."""
    model = open_model(qwen2)
    weights = dict(model.weights)
    fused = {"ffn_up.weight": ("gate", "up"), "attn_qkv.weight": ("q", "k", "v")}
    for name, roles in fused.items():
        parts = [weights[Role(role, 0)] for role in roles]
        shape = (sum(part.rows for part in parts), 256)
        entry = replace(parts[0].entry, name=f"blk.0.{name}", shape=shape)
        for number, role in enumerate(roles):
            first = sum(part.rows for part in parts[:number])
            weights[Role(role, 0)] = replace(parts[number], entry=entry, first_row=first)
    keys = [StageKey(0, stage) for stage in ("ffn_gate", "ffn_up", "qkv_matmul")]
    shown: dict[StageKey, torch.Tensor] = {}
    names = NodeMap(model.graph, weights)
    collector = Collector(names, 2, keys, lambda key, value: shown.update({key: value}))
    for name, width in (("ffn_up.weight", 1024), ("attn_qkv.weight", 384)):
        node = Node("node_7", "MUL_MAT", (f"blk.0.{name}", "x"), (2, width))
        assert collector.wants(node)
        collector.take(node, np.arange(2 * width, dtype=np.float32).reshape(2, width))
        with pytest.raises(EngineError, match="was expected"):
            collector.take(node, np.zeros((2, width + 32), dtype=np.float32))
    assert shown[keys[0]][1].tolist() == list(range(1024, 1536))
    assert shown[keys[1]][1].tolist() == list(range(1536, 2048))
    assert shown[keys[2]].tolist() == np.arange(768).reshape(2, 384).tolist()


def test_stages_are_made_of_nodes_as_the_recorded_capture_holds_them(qwen2: Path) -> None:
    """Parts joined, padded keys cut, scores scaled and masked, the activation derived."""
    model = open_model(qwen2)
    recorded = open_trace(SMALL / "captures" / "qwen2-q4_k_m" / "float64")
    nodes = NodeMap(model.graph, model.weights)
    expected = {
        key: np.array(record.values())
        for key, record in recorded.records.items()
        if key.layer == 0 or key.stage == "final_norm"
    }
    given: dict[tuple[str, int], npt.NDArray[Any]] = {
        (key.stage, 0): values for key, values in expected.items() if key.stage != "ffn_silu"
    }
    for stage in ("qkv_matmul", "qkv_bias"):
        joined = given.pop((stage, 0)).reshape(12, -1)
        for part, values in enumerate(np.split(joined, (256, 320), axis=1)):
            given[stage, part] = values
    unscaled = given["attn_scores", 0] / np.float32(32**-0.5)
    given["attn_scores", 0] = padded(unscaled, 7.0)
    given["attn_softmax", 0] = padded(given["attn_softmax", 0], 0.0)
    shown: dict[StageKey, torch.Tensor] = {}
    collector = Collector(nodes, 12, expected, lambda key, value: shown.update({key: value}))
    for node in nodes_of("qwen2-q4_k_m"):
        if collector.wants(node):
            (slot,) = nodes.slots(node)
            collector.take(node, given[slot.key.stage, slot.part].reshape(node.shape))
    assert shown.keys() == expected.keys()
    for key, values in expected.items():
        assert np.allclose(shown[key].numpy().ravel(), values, rtol=1e-6, atol=1e-7), key


def padded(values: npt.NDArray[Any], hidden: float) -> npt.NDArray[Any]:
    """[A,T,T] with its masked entries and 244 more keys set to something that must not be seen."""
    out = np.full((8, 12, 256), hidden, dtype=np.float32)
    seen = np.tri(12, dtype=bool)
    out[:, :, :12][:, seen] = values.reshape(8, 12, 12)[:, seen]
    return out


def test_a_node_of_another_size_is_an_error_that_names_it(qwen2: Path) -> None:
    model = open_model(qwen2)
    nodes = NodeMap(model.graph, model.weights)
    collector = Collector(nodes, 12, [StageKey(0, "ffn_up")], lambda key, value: None)
    node = Node("ffn_up-0", "MUL_MAT", ("blk.0.ffn_up.weight", "x"), (12, 100))
    with pytest.raises(EngineError, match=r"ffn_up-0 is \[12, 100\] where \[12, 512\]"):
        collector.take(node, np.zeros((12, 100), dtype=np.float32))


def test_a_build_whose_tensors_lie_otherwise_is_refused_by_version() -> None:
    memory = ctypes.create_string_buffer(512)
    address = ctypes.addressof(memory)
    names = ("ggml_is_contiguous", "ggml_op_name", "ggml_backend_tensor_get", "ggml_nelements")
    kind = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
    library: Any = types.SimpleNamespace(**{name: kind(lambda at: 0) for name in names})
    library.ggml_get_name = kind(lambda at: at + 264)  # eight bytes further than is known
    with pytest.raises(EngineError, match=r"llama-cpp-python 9\.9 differs"):
        Ggml(library, "9.9").node(address)
    with pytest.raises(EngineError, match=r"llama-cpp-python 9\.9 differs"):
        Ggml(types.SimpleNamespace(), "9.9")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [({"kv": "q8"}, "f32, f16"), ({"flash": "yes"}, "on, off"), ({"threads": "-1"}, "a number"),
     ({"gpu_layers": "x"}, "a number"), ({"colour": "red"}, "gpu_layers=N")],
)  # fmt: skip
def test_settings_that_make_no_sense_name_those_that_do(
    arguments: dict[str, str], says: str
) -> None:
    with pytest.raises(UsageError) as raised:
        LlamaSettings.parse(arguments)
    assert says in raised.value.hint


def test_an_engine_that_is_not_installed_tells_how_to_install_it(
    qwen2: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["trace", str(qwen2), "--engine", "llamacpp", "--dry-run"]) == 2
    told = capsys.readouterr().err
    assert "llama.cpp is not installed" in told and "pip install 'aprtui[llamacpp]'" in told
    choices = {choice.name: choice for choice in adapters.available()}
    assert choices["aprtui"].installed and not choices["hf"].installed
    assert choices["hf"].how_to_install == "pip install 'aprtui[hf]'"


# -- against what was recorded ---------------------------------------------------------------------


@needs_llamacpp
@needs_fixtures
@pytest.mark.parametrize("name", MODELS)
def test_the_capture_is_the_recorded_one(name: str, tmp_path: Path) -> None:
    found = trace(model_path(name), tmp_path, tokens=recorded_tokens(name))
    same_as(found, FIXTURES / "captures" / name / "llamacpp")


@needs_llamacpp
@needs_fixtures
def test_the_capture_with_a_float16_cache_is_the_recorded_one(tmp_path: Path, qwen2: Path) -> None:
    name = "qwen2-q4_k_m"
    found = trace(qwen2, tmp_path, tokens=recorded_tokens(name), engine_args={"kv": "f16"})
    same_as(found, FIXTURES / "captures" / name / "llamacpp-f16kv")
    assert found.manifest is not None and found.manifest["engine"]["settings"]["kv"] == "f16"


def same_as(found: TraceDir, recorded: Path) -> None:
    """Equal to 1e-6, but for what follows from one step of a rounding that fell otherwise (other
    kernels, of another processor or version, add otherwise): that is honest by its replay."""
    reference = open_trace(recorded)
    assert found.records.keys() >= reference.records.keys()
    apart = {}
    for key, record in reference.records.items():
        x = np.asarray(record.values(), dtype=np.float64)
        y = np.asarray(found.records[key].values(), dtype=np.float64)
        apart[key] = np.linalg.norm(y - x) / np.linalg.norm(x)
    assert max(apart.values()) < 1e-2
    if any(each > 1e-6 for each in apart.values()):
        replayed = api.bisect(found)
        assert not replayed.culprits and not replayed.unmeasured


@needs_llamacpp
def test_watching_fewer_stages_changes_no_value(tmp_path: Path, qwen2: Path) -> None:
    every = trace(qwen2, tmp_path / "all", tokens=(5, 6, 7, 8))
    few = trace(qwen2, tmp_path / "few", tokens=(5, 6, 7, 8), stages="attn_scores,lm_head")
    assert {key.stage for key in few.records} == {"attn_scores", "lm_head"}
    for key, record in few.records.items():
        assert record.path.read_bytes() == every.records[key].path.read_bytes(), key


@needs_llamacpp
def test_flash_attention_lists_what_it_fuses(tmp_path: Path, qwen2: Path) -> None:
    found = trace(qwen2, tmp_path, tokens=(5, 6), engine_args={"flash": "on", "threads": "1"})
    assert found.manifest is not None and found.status == "complete"
    engine = found.manifest["engine"]
    assert (engine["name"], engine["threads"]) == ("llama.cpp", 1)
    assert "llama-cpp-python" in engine["version"] and engine["settings"]["flash"] is True
    absent = {item["stage"]: item["reason"] for item in found.manifest["absent"]}
    assert "flash attention" in absent["attn_scores"] and "attn_softmax" in absent
    assert not {"attn_scores", "attn_softmax"} & {key.stage for key in found.records}


@needs_llamacpp
def test_logits_of_all_positions(tmp_path: Path, qwen2: Path) -> None:
    found = trace(qwen2, tmp_path / "all", tokens=(5, 6, 7), logits="all", stages="lm_head")
    last = trace(qwen2, tmp_path / "last", tokens=(5, 6, 7), stages="lm_head")
    key = StageKey(None, "lm_head")
    assert found.records[key].shape == (3, 2048)
    assert found.records[key].values()[-2048:].tolist() == last.records[key].values().tolist()


@needs_llamacpp
def test_a_file_it_refuses_is_told_in_its_own_words(tmp_path: Path, qwen2: Path) -> None:
    copy = tmp_path / "m.gguf"
    copy.write_bytes(qwen2.read_bytes())
    plan = make_plan(TraceJob(model=str(copy), engine="llamacpp", tokens=(1, 2)))
    copy.write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(BadFileError, match=r"llama.cpp refuses it: .*gguf"):
        run_trace(plan, lambda event: None)
    assert not (plan.directory / "trace.json").exists()


@needs_llamacpp
def test_what_a_writer_raises_ends_the_pass(tmp_path: Path, qwen2: Path) -> None:
    plan = make_plan(TraceJob(model=str(qwen2), engine="llamacpp", tokens=(1, 2)))
    seen: list[StageKey] = []

    def full(key: StageKey, value: torch.Tensor) -> None:
        seen.append(key)
        raise EngineError("the disk is full")

    with pytest.raises(EngineError, match="the disk is full"):
        adapters.run(plan, torch.device("cpu"), full)
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("job", "says"),
    [({"dtype": "bfloat16"}, "dtype"), ({"device": "cuda"}, "gpu_layers"),
     ({"overrides": {"rope_theta": "1"}}, "--set"), ({"tokens": (5000,)}, "vocabulary")],
)  # fmt: skip
@needs_llamacpp
def test_what_it_cannot_be_asked_is_refused_at_planning(
    qwen2: Path, job: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError) as raised:
        make_plan(TraceJob(**{"model": str(qwen2), "engine": "llamacpp", "tokens": (1,), **job}))
    assert says in str(raised.value)


@needs_fixtures
@needs_llamacpp
def test_a_batch_of_a_model_with_states_is_refused_at_planning() -> None:
    path = FIXTURES / "families" / "qwen3_next" / "model.gguf"
    with pytest.raises(UsageError, match="where layers have a state"):
        make_plan(TraceJob(str(path), engine="llamacpp", tokens=(1, 2), batch=("a", "bc")))


@needs_llamacpp
def test_models_of_other_formats_are_refused(qwen2_apr: Path) -> None:
    with pytest.raises(UsageError, match=r"reads GGUF files, and this model is apr"):
        make_plan(TraceJob(model=str(qwen2_apr), engine="llamacpp", tokens=(1,)))


def test_an_engine_that_does_not_load_says_why(
    qwen2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "llama_cpp.py").write_text("import no_such_module_of_its_own\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "llama_cpp", raising=False)
    folder = tmp_path / "t"
    asked = ["trace", str(qwen2), "--engine", "llamacpp", "--tokens", "1,2", "-o", str(folder)]
    assert main(asked) == 4
    told = capsys.readouterr().err
    assert "does not load: No module named 'no_such_module_of_its_own'" in told
    assert "pip install 'aprtui[llamacpp]'" in told


def test_rows_of_several_sequences_find_their_keys_in_a_shared_cache(qwen2: Path) -> None:
    """Cells are filled in order of coming: two sequences of 2 and 1 tokens, then a step of each."""
    model = open_model(qwen2)
    shown: dict[tuple[int, str], torch.Tensor] = {}

    def into(sequence: int) -> Any:
        return lambda key, value: shown.update({(sequence, key.stage): value.clone()})

    spans = (Span(into(0), slice(0, 1), 2, (0, 1, 3)), Span(into(1), slice(1, 2), 1, (2, 4)))
    wanted = [StageKey(0, stage) for stage in ("attn_scores", "attn_softmax", "ffn_norm")]
    collector = Collector(NodeMap(model.graph, model.weights), 2, wanted, into(9), spans)
    scores = np.arange(8 * 2 * 256, dtype=np.float32).reshape(8, 2, 256)
    for node, values in (
        (Node("kq-0", "MUL_MAT", ("k", "q"), (8, 2, 256)), scores),
        (Node("kq_soft_max-0", "SOFT_MAX", ("kq-0",), (8, 2, 256), 0.5), scores * np.float32(0.5)),
        (Node("ffn_norm-0", "MUL", ("norm", "blk.0.ffn_norm.weight"), (2, 256)), scores[0]),
    ):
        assert collector.wants(node)
        collector.take(node, values)
    for stage in ("attn_scores", "attn_softmax"):
        assert shown[0, stage].tolist() == (scores[:, :1, [0, 1, 3]] / 2).tolist()
        assert shown[1, stage].tolist() == (scores[:, 1:, [2, 4]] / 2).tolist()
    assert shown[1, "ffn_norm"].tolist() == scores[0, 1:].tolist()
    short = Node("kq-0", "MUL_MAT", ("k", "q"), (8, 2, 4))
    with pytest.raises(EngineError, match=r"\[8, 2, 5\] was expected"):
        collector.take(short, scores[:, :, :4])


def test_the_cache_of_llamacpp_is_its_own_setting(qwen2: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(adapters, "_version", lambda engine: "0.3.36")
    plan = make_plan(TraceJob(str(qwen2), engine="llamacpp", tokens=(1, 2), kv="bf16", steps=2))
    assert plan.job.engine_args == {"kv": "bf16"}
    assert [each.kind for each in plan.stretches] == ["prefill", "decode", "decode"]
    both = TraceJob(str(qwen2), engine="llamacpp", tokens=(1,), kv="f16", engine_args={"kv": "f32"})
    with pytest.raises(UsageError, match="--kv f16 and another --engine-arg kv"):
        make_plan(both)
    with pytest.raises(UsageError, match="only where its attention is fused"):
        make_plan(TraceJob(str(qwen2), engine="llamacpp", tokens=(1,), kv="q8_0"))


@needs_llamacpp
@needs_fixtures
@pytest.mark.parametrize("case", ["olmo2", "qwen2_moe", "exaone4_swa"])
def test_chunks_steps_and_batches_agree_with_our_own(case: str, tmp_path: Path) -> None:
    model = FIXTURES / "families" / case / "model.gguf"
    tokens = tuple((11 * place + 3) % 90 for place in range(23))
    job = {"tokens": tokens, "chunk": 7, "steps": 4, "logits": "all"}
    theirs = trace(model, tmp_path / "theirs", **job)
    run_trace(
        make_plan(TraceJob(model=str(model), directory=str(tmp_path / "ours"), **job)),  # type: ignore[arg-type]
        lambda event: None,
    )
    ours = open_trace(tmp_path / "ours")
    assert theirs.token_ids == ours.token_ids and theirs.rows == ours.rows
    for key, record in ours.records.items():
        x = np.asarray(record.values(), dtype=np.float64)
        y = np.asarray(theirs.records[key].values(), dtype=np.float64)
        assert np.linalg.norm(y - x) <= 1e-5 * np.linalg.norm(x), key
