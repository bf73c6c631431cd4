"""Experts as mlx-lm saves them: all of a layer in one tensor, plain or in codes.

The names are those of mlx-lm's ``sanitize`` (d78bf58); a trace of the renamed checkpoint is that of
transformers' own folder, which the families' tests hold against transformers.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from aprtui.engine.job import TraceJob
from aprtui.engine.plan import make_plan
from aprtui.engine.run import run_trace
from tests.families import TINY, save_tiny

TOKENS = (3, 17, 40, 9, 5, 61, 7, 8)
_ONE = re.compile(r"(.+)\.experts\.(\d+)\.(gate_proj|up_proj|down_proj|w1|w2|w3)\.weight")
_SHORT = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
ROOMS = {
    "qwen3moe": "switch_mlp", "qwen2moe": "switch_mlp", "mixtral": "switch_mlp",
    "olmoe": "switch_mlp", "glm4moe": "switch_mlp", "dots1": "experts",
    "ernie4_5_moe": "switch_mlp",
    "exaone_moe": "switch_mlp", "minimax_m2": "switch_mlp", "hunyuan_moe": "switch_mlp",
}  # fmt: skip
"""By family: the module that mlx-lm keeps a layer's experts in."""


def stacked(tensors: dict[str, Tensor], room: str) -> dict[str, Tensor]:
    """One tensor a layer and projection."""
    experts: dict[str, dict[int, Tensor]] = {}
    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        match = _ONE.fullmatch(name)
        if match is None:
            found[name] = value
            continue
        part = _SHORT.get(match[3], match[3])
        experts.setdefault(f"{match[1]}.{room}.{part}.weight", {})[int(match[2])] = value
    for name, each in experts.items():
        found[name] = torch.stack([each[number] for number in range(len(each))])
    return found


def apart(tensors: dict[str, Tensor], family: str) -> dict[str, Tensor]:
    """What mlx-lm makes of a fused gate and up, as the three models' ``sanitize`` do."""
    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        room, _, what = name.rpartition(".experts.")
        if name.endswith(("input_linear.weight", "output_linear.weight")):  # granitemoe, published
            room, what = name.rpartition(".")[0].rpartition(".")[0], name.split(".")[-2]
            what = {"input_linear": "gate_up_proj", "output_linear": "down_proj"}[what]
        if not room:
            found[name] = value
            continue
        end = ".bias" if what.endswith("_bias") else ".weight"
        what = what.removesuffix("_bias")
        if family != "granitemoe" and end == ".weight":
            value = value.mT
        axis = -1 if end == ".bias" else -2
        where = f"{room}.{'switch_mlp' if family == 'granitemoe' else 'experts'}"
        if what == "down_proj":
            found[f"{where}.down_proj{end}"] = value
        elif family == "gpt_oss":
            for part, start in (("gate", 0), ("up", 1)):
                places = torch.arange(start, value.shape[axis], 2)
                found[f"{where}.{part}_proj{end}"] = value.index_select(axis, places)
        else:
            gate, up = value.chunk(2, dim=axis)
            found |= {f"{where}.gate_proj{end}": gate, f"{where}.up_proj{end}": up}
    return {name: value.contiguous() for name, value in found.items()}


@pytest.mark.parametrize("family", ["gpt_oss", "granitemoe", "llama4"])
def test_a_fused_gate_and_up_is_taken_apart_by_mlx(family: str, tmp_path: Path) -> None:
    save_tiny(TINY[family], tmp_path / "hf")
    (tmp_path / "mlx").mkdir()
    shutil.copy(tmp_path / "hf" / "config.json", tmp_path / "mlx")
    tensors = apart(load_file(tmp_path / "hf" / "model.safetensors"), family)
    assert any(name.endswith(".gate_proj.weight") and t.dim() == 3 for name, t in tensors.items())
    save_file(tensors, tmp_path / "mlx" / "model.safetensors")
    assert traced(tmp_path / "mlx", tmp_path / "a") == traced(tmp_path / "hf", tmp_path / "b")


def traced(model: Path, out: Path) -> dict[str, bytes]:
    run_trace(
        make_plan(TraceJob(model=str(model), tokens=TOKENS, directory=str(out))), lambda event: None
    )
    return {str(file.relative_to(out)): file.read_bytes() for file in sorted(out.rglob("*.bin"))}


def renamed(folder: Path, there: Path, room: str) -> dict[str, Tensor]:
    there.mkdir()
    shutil.copy(folder / "config.json", there)
    return stacked(load_file(folder / "model.safetensors"), room)


@pytest.mark.parametrize("family", sorted(ROOMS))
def test_a_folder_of_mlx_is_the_same_model(family: str, tmp_path: Path) -> None:
    save_tiny(TINY[family], tmp_path / "hf")
    tensors = renamed(tmp_path / "hf", tmp_path / "mlx", ROOMS[family])
    packed = [name for name, value in tensors.items() if value.dim() == 3]
    assert packed and all(f".{ROOMS[family]}." in name for name in packed)
    save_file(tensors, tmp_path / "mlx" / "model.safetensors")
    assert traced(tmp_path / "mlx", tmp_path / "a") == traced(tmp_path / "hf", tmp_path / "b")


def coded(weight: Tensor, bits: int, group: int) -> tuple[dict[str, Tensor], Tensor]:
    """MLX's affine codes of packed experts, and the values they mean: scales are powers of two."""
    grouped = weight.reshape(*weight.shape[:-1], -1, group)
    low, high = grouped.amin(-1, keepdim=True), grouped.amax(-1, keepdim=True)
    scale = torch.exp2(torch.ceil(torch.log2((high - low) / (2**bits - 1))))
    bias = torch.floor(low / scale) * scale
    codes = ((grouped - bias) / scale).round().clamp(0, 2**bits - 1)
    values = (codes * scale + bias).reshape(weight.shape)
    per = 32 // bits
    words = codes.to(torch.int64).reshape(*weight.shape[:-1], -1, per) << torch.arange(0, 32, bits)
    stored = words.sum(-1).to(torch.uint32)
    parts = {"weight": stored, "scales": scale.squeeze(-1), "biases": bias.squeeze(-1)}
    return parts, values


@pytest.mark.parametrize("bits", [4, 8])
def test_codes_of_packed_experts_are_decoded_expert_by_expert(bits: int, tmp_path: Path) -> None:
    save_tiny(TINY["qwen3moe"], tmp_path / "hf")
    tensors = renamed(tmp_path / "hf", tmp_path / "mlx", "switch_mlp")
    plain = dict(tensors)
    for name in [name for name, value in tensors.items() if value.dim() == 3]:
        parts, plain[name] = coded(tensors.pop(name), bits, 16)
        tensors |= {f"{name.removesuffix('weight')}{part}": kept for part, kept in parts.items()}
    save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "mlx/model.safetensors")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    config["quantization"] = {"bits": bits, "group_size": 16}
    (tmp_path / "mlx" / "config.json").write_text(json.dumps(config))
    (tmp_path / "plain").mkdir()
    shutil.copy(tmp_path / "hf" / "config.json", tmp_path / "plain")
    save_file(plain, tmp_path / "plain" / "model.safetensors")
    assert traced(tmp_path / "mlx", tmp_path / "a") == traced(tmp_path / "plain", tmp_path / "b")
