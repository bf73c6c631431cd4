"""LoRA adapters laid on a model: the weights that peft merges, the logits that its pass gives.

Recorded by ``tests.make_adapters`` (peft 0.21.2, transformers 5.24, llama.cpp of
llama-cpp-cffi 0.4.42).
"""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file

from aprtui import api
from aprtui.cli.main import main
from aprtui.engine.block_decoders import Workspace
from aprtui.engine.codecs import codec_of
from aprtui.errors import BadFileError, UsageError
from aprtui.formats.gguf import read_gguf
from aprtui.formats.modelfile import tensor_bytes
from aprtui.formats.tracedir import StageKey
from aprtui.graph import Role
from aprtui.model.open import Matrix, open_model
from tests.support import SMALL

FOLDER = SMALL / "adapters"
BASE, GGUF, LORA = FOLDER / "base", FOLDER / "base.gguf", FOLDER / "lora.gguf"
CASES = ("plain", "rslora", "dora", "embeddings", "whole")
TOKENS = (3, 17, 20, 9, 5, 31, 7, 8)
Float32 = npt.NDArray[np.float32]


def values(matrix: Matrix, step: int = 7) -> Float32:
    """All rows, ``step`` at a time."""
    codec = codec_of(matrix)
    out = torch.full((codec.rows, codec.columns), float("nan"))
    for first in range(0, codec.rows, step):
        block = out[first : first + step]
        codec.decode(codec.bytes_of(first, len(block)), first, block, Workspace())
    return out.numpy()


def far(found: Float32, due: npt.ArrayLike) -> float:
    """Relative L2."""
    right = np.asarray(due, dtype=np.float64)
    return float(np.linalg.norm(found.reshape(right.shape) - right) / np.linalg.norm(right))


@pytest.mark.parametrize("case", CASES)
def test_every_weight_is_the_one_that_peft_merges(case: str) -> None:
    merged = load_file(FOLDER / case / "merged.safetensors")
    plain = load_file(BASE / "model.safetensors")
    model = open_model(BASE, adapter=FOLDER / case)
    seen = set()
    for matrix in model.weights.values():
        name = matrix.entry.name
        assert far(values(matrix), merged.get(name, plain[name]).numpy()) < 3e-7, name
        seen.add(name)
    assert set(merged) - {"logits"} <= seen


@pytest.mark.parametrize("case", CASES)
def test_a_trace_has_the_logits_of_pefts_own_pass(case: str, tmp_path: Path) -> None:
    trace = api.trace(
        BASE, tokens=TOKENS, adapter=FOLDER / case, directory=tmp_path / "t", logits="all"
    )
    due = load_file(FOLDER / case / "merged.safetensors")["logits"].numpy()
    assert far(np.asarray(trace[StageKey(None, "lm_head")]), due) < 2e-6
    said = trace.stated["model"]["adapter"]
    assert said["path"] == str(FOLDER / case) and said["kind"] == "peft"
    assert said["digest"].startswith("sha256:")
    assert any("adapter" in note for note in (trace.manifest or {})["notes"])
    assert not api.bisect(tmp_path / "t").culprits  # its manifest names the adapter


def test_a_trace_without_its_adapter_is_of_another_model(tmp_path: Path) -> None:
    api.trace(BASE, tokens=TOKENS, adapter=FOLDER / "plain", directory=tmp_path / "t")
    found = api.bisect(tmp_path / "t", model=open_model(BASE))
    assert {culprit.key.stage for culprit in found.culprits} >= {"qkv_matmul", "ffn_out"}


def test_a_report_replays_with_the_adapter_that_the_manifest_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        api.trace(BASE, tokens=TOKENS, adapter=FOLDER / "dora", directory=tmp_path / name)
    pair = [str(tmp_path / "a"), str(tmp_path / "b")]
    out = str(tmp_path / "r.md")
    assert main(["report", *pair, "--model", str(BASE), "-o", out]) == 0
    assert main(["bisect", pair[1], "--model", str(tmp_path / "none")]) == 3
    moved = json.loads((tmp_path / "b" / "trace.json").read_text())
    moved["model"]["adapter"]["path"] = str(tmp_path / "gone")
    (tmp_path / "b" / "trace.json").write_text(json.dumps(moved))
    capsys.readouterr()
    assert main(["bisect", pair[1]]) == 2
    said = capsys.readouterr().err
    assert "that the trace was made with is gone" in said and "--adapter PATH" in said


@pytest.mark.skipif(find_spec("peft") is not None, reason="peft is here, and lays it on")
def test_transformers_needs_peft_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    lora = str(FOLDER / "plain")
    assert main(["verify", str(BASE), "--adapter", lora, "--tokens", "3,5"]) == 2
    assert "pip install peft" in capsys.readouterr().err


def test_rows_taken_out_or_moved_are_the_same() -> None:
    model = open_model(BASE, adapter=FOLDER / "dora")
    matrix = model.weights[Role("q", 0)]
    whole = values(matrix, 32)
    window = Matrix(matrix.entry, 9, 20, matrix.columns)
    assert far(values(window), whole[9:29]) < 1e-7
    moved = codec_of(window).moved(lambda raw: raw.clone())
    out = torch.empty(5, matrix.columns)
    moved.decode(moved.bytes_of(3, 5), 3, out, Workspace())
    assert far(out.numpy(), whole[12:17]) < 1e-7
    apart = Matrix(matrix.entry, 1, 16, matrix.columns, group=1, period=2)
    assert far(values(apart), whole[1::2]) < 1e-7


def of_gguf(path: Path) -> dict[str, npt.NDArray[np.float64]]:
    """The float32 tensors of a GGUF file in float64."""
    return {
        name: tensor_bytes(entry).view("<f4").reshape(entry.shape).astype(np.float64)
        for name, entry in read_gguf(path).tensors.items()
    }


def test_a_gguf_adapter_is_laid_as_llama_cpp_does() -> None:
    """``build_lora_mm``: alpha / rank * b(a(x)); of the token table its rows are a's."""
    base, own = of_gguf(GGUF), of_gguf(LORA)
    model = open_model(GGUF, adapter=LORA)
    by_name = {matrix.entry.name: matrix for matrix in model.weights.values()}
    for name in ("blk.0.attn_q.weight", "blk.0.ffn_down.weight", "output.weight"):
        a, b = own[f"{name}.lora_a"], own[f"{name}.lora_b"]
        assert far(values(by_name[name]), base[name] + 6.0 / len(a) * b @ a) < 3e-7, name
    a, b = own["token_embd.weight.lora_a"], own["token_embd.weight.lora_b"]
    table = base["token_embd.weight"] + 6.0 / 4 * a @ b.T
    assert far(values(by_name["token_embd.weight"]), table) < 3e-7
    untouched = values(by_name["blk.0.attn_k.weight"])
    assert np.array_equal(untouched, base["blk.0.attn_k.weight"])


def test_a_trace_with_a_gguf_adapter_has_llama_cpps_logits(tmp_path: Path) -> None:
    trace = api.trace(GGUF, tokens=TOKENS, adapter=LORA, directory=tmp_path / "t", logits="all")
    due = np.load(FOLDER / "lora.llamacpp.npy")
    assert far(np.asarray(trace[StageKey(None, "lm_head")]), due) < 2e-6
    without = api.trace(GGUF, tokens=TOKENS, directory=tmp_path / "w", logits="all")
    assert far(np.asarray(without[StageKey(None, "lm_head")]), due) > 0.1


def test_the_commands_take_an_adapter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    merged = dict(load_file(BASE / "model.safetensors"))
    merged |= load_file(FOLDER / "rslora" / "merged.safetensors")
    del merged["logits"]
    (tmp_path / "m").mkdir()
    save_file(merged, tmp_path / "m" / "model.safetensors")
    shutil.copy(BASE / "config.json", tmp_path / "m")
    lora = str(FOLDER / "rslora")
    pair = [str(BASE), str(tmp_path / "m")]
    assert main(["diff", *pair]) == 1
    assert main(["diff", *pair, "--adapter", lora]) == 0
    assert main(["diff", *pair[::-1], "--adapter-b", lora]) == 0
    capsys.readouterr()
    assert main(["inspect", str(BASE), "--adapter", lora, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["adapter"]["ranks"] == [2, 3, 4] and found["traceable"]
    types = {each["name"]: each["type"] for each in found["tensors"]}
    assert types["model.layers.0.self_attn.q_proj.weight"] == "F32+LoRA"
    out = str(tmp_path / "t")
    assert main(["trace", str(BASE), "--tokens", "3,5", "--adapter", lora, "-o", out]) == 0
    assert main(["bisect", out]) == 0
    assert main(["bisect", out, "--model", str(BASE), "--adapter", lora]) == 0
    assert main(["trace", str(BASE), "--tokens", "3", "--adapter", str(LORA), "-o", out + "2"]) == 2
    assert "convert_lora_to_gguf" in capsys.readouterr().err


def edited(tmp_path: Path, case: str, keys: dict[str, Any], **tensors: torch.Tensor | None) -> Path:
    """A copy of an adapter with other keys and other tensors (None: left out)."""
    there = tmp_path / case
    shutil.copytree(FOLDER / case, there)
    config = json.loads((there / "adapter_config.json").read_text()) | keys
    (there / "adapter_config.json").write_text(json.dumps(config))
    if tensors:
        held = load_file(there / "adapter_model.safetensors")
        held |= {name: value for name, value in tensors.items() if value is not None}
        left = {name: value for name, value in held.items() if tensors.get(name, value) is not None}
        save_file(left, there / "adapter_model.safetensors")
    return there


Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"peft_type": "LOHA"}, "method LOHA"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "target_parameters"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"use_dora": True}, "use_dora true"),
        ({"lora_bias": True}, "lora_bias"),
        ({"r": 8}, "is of rank 4, and adapter_config.json says 8"),
        ({"r": 0}, "r is 0"),
        ({"alpha_pattern": {"(a+)+$": 2}}, "regular expression"),
        ({"unheard_of": 1}, "unheard_of is 1"),
    ],
)
def test_a_key_that_changes_numbers_is_refused_by_name(
    tmp_path: Path, keys: dict[str, Any], said: str
) -> None:
    with pytest.raises(BadFileError, match=said.replace("(", r"\(").replace("[", r"\[")):
        open_model(BASE, adapter=edited(tmp_path, "plain", keys))


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({f"{Q}.lora_B.weight": None}, "lora_B is not there"),
        ({f"{Q}.lora_A.weight": torch.zeros(4, 31)}, r"is \[4, 31\]"),
        ({f"{Q}.lora_B.weight": torch.zeros(31, 4)}, r"is \[31, 4\]"),
        ({f"{Q}.lora_A.weight": torch.zeros(4, 32, dtype=torch.int32)}, "is I32"),
        ({f"{Q}.lora_B.bias": torch.zeros(32)}, "lora_bias"),
        (
            {f"{Q}x.lora_A.weight": torch.zeros(4, 32), f"{Q}x.lora_B.weight": torch.zeros(32, 4)},
            "q_projx.weight, which base does not hold",
        ),
    ],
)
def test_a_contradiction_is_named_with_its_tensor(
    tmp_path: Path, tensors: dict[str, torch.Tensor | None], said: str
) -> None:
    with pytest.raises(BadFileError, match=said):
        open_model(BASE, adapter=edited(tmp_path, "plain", {}, **tensors))


def test_an_adapter_of_a_tied_token_table_is_refused(tmp_path: Path) -> None:
    tied = tmp_path / "tied"
    tied.mkdir()
    tensors = load_file(BASE / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, tied / "model.safetensors")
    config = json.loads((BASE / "config.json").read_text()) | {"tie_word_embeddings": True}
    (tied / "config.json").write_text(json.dumps(config))
    gone = {
        name: None for name in load_file(FOLDER / "embeddings" / "adapter_model.safetensors")
        if "lm_head" in name
    }  # fmt: skip
    with pytest.raises(BadFileError, match="which is the head of this model as well"):
        open_model(tied, adapter=edited(tmp_path, "embeddings", {}, **gone))
    with pytest.raises(BadFileError, match="does not hold"):
        open_model(tied, adapter=FOLDER / "embeddings")


def test_what_is_no_adapter_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match="no adapter: no adapter_model"):
        open_model(BASE, adapter=BASE)
    with pytest.raises(BadFileError, match="no LoRA adapter: its general"):
        open_model(GGUF, adapter=GGUF)
    with pytest.raises(BadFileError, match="does not exist"):
        open_model(BASE, adapter=tmp_path / "none")
    with pytest.raises(UsageError, match="open already"):
        api.trace(open_model(BASE), tokens=[1], adapter=LORA, directory=tmp_path / "t")


@pytest.mark.parametrize("case", ["gptq-4-actorder", "bnb-nf4-nested", "fp8-block", "ct-int4-zero"])
def test_an_adapter_lies_on_a_quantised_weight_as_on_its_values(case: str, tmp_path: Path) -> None:
    base = SMALL / "quantised" / case
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(shape, generator=generator) for shape in ((4, 128), (128, 4)))
    lora = edited(tmp_path, "plain", {})
    save_file(
        {f"{Q}.lora_A.weight": a, f"{Q}.lora_B.weight": b}, lora / "adapter_model.safetensors"
    )
    plain = values(open_model(base).weights[Role("q", 0)]).astype(np.float64)
    due = plain + 4.0 * b.double().numpy() @ a.double().numpy()
    adapted = open_model(base, adapter=lora)
    matrix = adapted.weights[Role("q", 0)]
    assert matrix.entry.type.endswith("+LoRA")
    assert far(values(matrix, 32), due) < 3e-7
    trace = api.trace(base, tokens=[3, 5], adapter=lora, directory=tmp_path / "t")
    assert trace.stated["model"]["types"]["q"] == [matrix.entry.type]
