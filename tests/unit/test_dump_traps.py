"""Each trap of other tools' dumps, on what the tool itself wrote (docs/captures.md 2).

The right values are read by the tool's own library: torch, numpy, safetensors.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from aprtui.captures.assemble import Assembly
from aprtui.captures.dump import Array
from aprtui.captures.opening import is_dump
from aprtui.errors import BadFileError
from tests.support import FIXTURES, needs_fixtures
from tests.unit.test_captures import TOKENS, floats, imported, refusal

pytestmark = needs_fixtures
DUMPS = FIXTURES / "dumps"
LAYERS = range(6)
ROTATED = ("q_post_rope", "k_post_rope")


def layers_of(values: dict[str, Array], stage: str) -> set[int]:
    return {
        int(key.split("/")[0].removeprefix("layer-")) for key in values if key.endswith(f"/{stage}")
    }


def passes(folder: Path) -> list[dict[str, torch.Tensor]]:
    return [torch.load(file, weights_only=True) for file in sorted(folder.rglob("*.pt"))]


# -- transformers' model debugger ------------------------------------------------------------------


def test_the_debugger_has_no_layers_output_and_no_q_and_k_after_rope() -> None:
    folder = DUMPS / "hf-debugger"
    _, values = imported(folder)
    names = {file.stem for file in folder.glob("*.safetensors")}
    assert not any(name.endswith("model.layers.0_outputs") for name in names)
    for layer in LAYERS:
        after = f"layers.{layer + 1}_inputs_args_0" if layer < 5 else "norm_inputs_args_0"
        right = load_file(folder / f"Qwen2ForCausalLM.model.{after}.safetensors")["data"]
        assert right.shape[0] == 1  # a batch of one, which is dropped
        assert np.array_equal(values[f"layer-{layer}/post_ffn_residual"], right[0])
    assert not any(key.endswith(ROTATED) for key in values)


# -- vLLM ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vllm() -> tuple[Assembly, dict[str, Array], list[dict[str, torch.Tensor]]]:
    return *imported(DUMPS / "vllm" / "bf16"), passes(DUMPS / "vllm" / "bf16")


def test_vllms_one_rotary_module_holds_its_last_call(vllm: Any) -> None:
    found, values, held = vllm
    for place, stage, heads in ((0, "q_post_rope", 8), (1, "k_post_rope", 2)):
        named = torch.cat([one[f"model.layers.0.self_attn.rotary_emb.{place}"] for one in held])
        last = floats(named).reshape(18, heads, 32)
        assert np.array_equal(values[f"layer-5/{stage}"], last)
        for layer in LAYERS:
            own = [one[f"model.layers.{layer}.self_attn.attn:in{place}"] for one in held]
            right = floats(torch.cat(own)).reshape(18, heads, 32)
            assert np.array_equal(values[f"layer-{layer}/{stage}"], right)
        assert not np.array_equal(values[f"layer-0/{stage}"], last)
    assert any("rotary_emb" in note and "not trusted" in note for note in found.notes)


def test_vllms_norms_give_a_row_and_the_sum_and_the_first_gives_none(vllm: Any) -> None:
    _, values, held = vllm
    first = "model.layers.0.input_layernorm"
    assert f"{first}.1" not in held[0] and f"{first}.0" not in held[0]
    right = floats(torch.cat([one[first] for one in held]))
    assert np.array_equal(values["layer-0/attn_norm"], right)
    for layer in LAYERS:
        after = f"model.layers.{layer + 1}.input_layernorm" if layer < 5 else "model.norm"
        right = floats(torch.cat([one[f"{after}.1"] for one in held]))
        assert np.array_equal(values[f"layer-{layer}/post_ffn_residual"], right)
        both = "model.layers.{}.post_attention_layernorm.{}".format
        for place, stage in enumerate(("ffn_norm", "post_attn_residual")):
            right = floats(torch.cat([one[both(layer, place)] for one in held]))
            assert np.array_equal(values[f"layer-{layer}/{stage}"], right)


def test_vllms_passes_are_stacked_and_its_logits_are_those_of_a_module(vllm: Any) -> None:
    found, values, held = vllm
    assert found.rows.positions == tuple(range(18))
    assert found.rows.passes == (0,) * 16 + (1, 2)
    fused = floats(torch.cat([one["model.layers.3.self_attn.qkv_proj.0"] for one in held]))
    assert np.array_equal(values["layer-3/qkv_bias"], fused)  # flat: [sum of rows, n]
    assert not any(name.startswith("lm_head") for one in held for name in one)
    assert "logits_processor" not in held[0]  # it was hooked after the prefill
    right = floats(torch.cat([one["logits_processor"] for one in held[1:]]))
    assert np.array_equal(values["lm_head"], right)
    ((_, _, positions),) = [each for each in found.stages() if str(each[0]) == "lm_head"]
    assert positions == (16, 17)


# -- SGLang ----------------------------------------------------------------------------------------


def test_sglang_writes_its_models_output_one_file_late_and_an_embedding_as_lm_head() -> None:
    folder = DUMPS / "sglang-tensor-dump"
    found, values = imported(folder)
    held = passes(folder)
    assert len(held) == 4 and "logits_processor" not in held[0]
    assert set(held[3]) == {"model", "logits_processor"}  # what the third pass gave
    right = floats(torch.cat([one["logits_processor"] for one in held[1:]]))
    assert np.array_equal(values["lm_head"], right)
    ((_, _, positions),) = [each for each in found.stages() if str(each[0]) == "lm_head"]
    assert positions == (15, 16, 17)
    assert held[0]["lm_head"].shape == (16, 256)  # of a tied model: the embedding's output
    assert torch.equal(held[0]["lm_head"], held[0]["model.embed_tokens"])
    assert any("lm_head" in note and "not read" in note for note in found.notes)
    assert found.rows.passes == (0,) * 16 + (1, 2)


# -- msprobe ---------------------------------------------------------------------------------------


PROC = DUMPS / "msprobe" / "step0" / "proc2150"


def test_msprobes_second_call_and_parameters_are_no_stages(tmp_path: Path) -> None:
    right = imported(PROC)[1]
    copy = shutil.copytree(PROC, tmp_path / "proc2150") / "dump_tensor_data"
    for file in copy.glob("*.forward.0.output.0.pt"):
        other = torch.load(file, weights_only=True) + 1
        torch.save(other, file.with_name(file.name.replace("forward.0", "forward.1")))
    found, values = imported(tmp_path)
    assert values.keys() == right.keys()
    assert all(np.array_equal(values[key], right[key]) for key in right)
    assert any("forward.1" in note and "not read" in note for note in found.notes)
    assert len(list(copy.glob("*.parameters.*"))) == 5


def test_msprobes_statistics_hold_no_values(tmp_path: Path) -> None:
    folder = tmp_path / "step0" / "proc0"
    folder.mkdir(parents=True)
    said = json.loads((PROC / "dump.json").read_text())
    (folder / "dump.json").write_text(json.dumps({**said, "task": "statistics"}))
    assert not is_dump(tmp_path)
    with pytest.raises(BadFileError, match="msprobe's statistics, which hold no values") as error:
        imported(tmp_path)
    assert 'task="tensor"' in error.value.hint


# -- MLX -------------------------------------------------------------------------------------------


def test_mlx_calls_one_rope_for_q_then_for_k_with_heads_first() -> None:
    whole = np.load(DUMPS / "mlx" / "f32.npz")
    found, values = imported(DUMPS / "mlx" / "f32.npz")
    for layer in range(3):
        rope = f"model.layers.{layer}.self_attn.rope.output"
        for name, also, stage in (("", "q", ROTATED[0]), ("#1", "k", ROTATED[1])):
            right = whole[f"{rope}{name}"][0].swapaxes(0, 1)
            assert np.array_equal(whole[f"{rope}{name}"], whole[f"sdpa.{layer}.{also}"])
            assert np.array_equal(values[f"layer-{layer}/{stage}"], right)
    assert found.checked and not found.contradictions


@pytest.mark.parametrize(
    ("name", "dtype"), [("bf16", "bfloat16"), ("f16", "float16"), ("f32", "float32")]
)
def test_16_bits_that_are_stored_as_float32_are_found_out(name: str, dtype: str) -> None:
    found, _ = imported(DUMPS / "hf-hooks" / f"{name}-sdpa.npz")
    assert found.dtype == dtype
    stored = np.load(DUMPS / "hf-hooks" / f"{name}-sdpa.npz")["model.norm.output"].dtype
    assert stored == np.float32
    assert any(f"taken as {dtype}" in note for note in found.notes) == (name != "f32")


# -- ONNX Runtime and OpenVINO ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fp32", "int4"])
def test_onnx_runtime_turns_q_inside_and_optimises_the_last_sum_away(name: str) -> None:
    path = DUMPS / "ort" / f"{name}.npz"
    whole = np.load(path)
    _, values = imported(path, TOKENS)
    assert not layers_of(values, "q_post_rope")
    sums = [each for each in whole if each.endswith("output_3")]
    assert "|model|layers.6|final_norm_layernorm|output_0" in whole
    assert not any("final_norm" in each for each in sums)
    assert layers_of(values, "post_ffn_residual") == {0, 1, 2}  # of 0 to 3: the next norm's
    for layer in range(4):
        key = whole[f"present.{layer}.key"][0].swapaxes(0, 1)  # [1,K,T,d]
        assert np.array_equal(values[f"layer-{layer}/k_post_rope"], key)
        both = "|model|layers.{}|post_attention_layernorm|output_{}".format
        for place, stage in ((0, "ffn_norm"), (3, "post_attn_residual")):
            assert np.array_equal(values[f"layer-{layer}/{stage}"], whole[both(layer, place)][0])


def test_openvinos_heads_come_before_its_tokens() -> None:
    path = DUMPS / "openvino" / "pycode-q4km-f32.npz"
    whole = np.load(path)
    found, values = imported(path, TOKENS)
    assert found.convention.name == "openvino"
    for stage in (*ROTATED, "attention"):
        for layer in layers_of(values, stage):
            right = whole[f"{stage}.{layer}"][0].swapaxes(0, 1)
            held = values[f"layer-{layer}/{stage}"]
            assert np.array_equal(held.reshape(right.shape), right)
    nodes = json.loads(path.with_suffix(".json").read_text())["tensors"]
    unnamed = {name: node for name, (node, *_) in nodes.items() if node.startswith("MatMul_")}
    assert "attn_out.0" in unnamed  # a number is no name: who marks it names it


# -- what holds no numbers -------------------------------------------------------------------------


def test_the_text_of_llamacpps_callback_is_told_for_what_it_is(tmp_path: Path) -> None:
    log = tmp_path / "eval.log"
    log.write_text(
        "build: 6000 (abc)\n\nggml_debug:                 embd = (f32)   GET_ROWS(token_embd.weight"
        "{256, 2048, 1, 1}, inp_tokens{16, 1, 1, 1}}) = {256, 16, 1, 1}\n"
        "                                     [\n  [ 0.0100, -0.0203, 0.0040, ..., 0.0, 0.1, 0.2]"
    )
    assert "sums and the first and last values" in refusal(log)
