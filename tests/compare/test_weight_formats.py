"""One model in many formats: any two of them are the same weights but for rounding, and one wrong
row is named whichever two they are.

The encoders are plain rounding in torch; that aprtui decodes each format as its library does stands
in tests/engine/test_quantised.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from aprtui.cli.main import main
from aprtui.compare.weights import diff_models
from tests.compare.model_files import (
    FFN,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    KV_HEADS,
    LAYERS,
    VOCAB,
    small_model,
)
from tests.make_quantised import dense_words, rounded

Parts = dict[str, Tensor]
GROUP = 32


def fp8(weight: Tensor) -> Parts:
    scale = weight.abs().amax(1, keepdim=True) / 448
    return {"weight": (weight / scale).to(torch.float8_e4m3fn), "weight_scale": scale}


def int8(weight: Tensor) -> Parts:
    scale = weight.abs().amax(1, keepdim=True) / 127
    return {"weight": (weight / scale).round().to(torch.int8), "weight_scale": scale}


def bnb_int8(weight: Tensor) -> Parts:
    most = weight.abs().amax(1)
    codes = (weight * (127 / most)[:, None]).round().to(torch.int8)
    return {"weight": codes, "SCB": most, "weight_format": torch.tensor(0, dtype=torch.uint8)}


def packed(weight: Tensor, bits: int = 4) -> Parts:
    codes, scale, _ = rounded(weight, GROUP, bits, True)
    return {"weight_packed": dense_words(codes, bits), "weight_scale": scale,
            "weight_shape": torch.tensor(weight.shape)}  # fmt: skip


def gptq(weight: Tensor) -> Parts:
    codes, scale, zero = rounded(weight, GROUP, 4, False)
    listed = torch.arange(weight.shape[1]) // GROUP
    return {"qweight": dense_words(codes.T.contiguous().T, 4).T.contiguous(),
            "qzeros": dense_words(zero.T - 1, 4), "scales": scale.T.contiguous(),
            "g_idx": listed.to(torch.int32)}  # fmt: skip


def mlx(weight: Tensor) -> Parts:
    grouped = weight.reshape(len(weight), -1, GROUP)
    low, high = grouped.amin(-1), grouped.amax(-1)
    scale = (high - low) / 15
    codes = ((grouped - low[..., None]) / scale[..., None]).round().clamp(0, 15).to(torch.int64)
    words = dense_words(codes.reshape(weight.shape), 4).view(torch.uint32)
    return {"weight": words, "scales": scale, "biases": low}


E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])


def mxfp4(weight: Tensor) -> Parts:
    grouped = weight.reshape(len(weight), -1, GROUP)
    exponent = torch.floor(torch.log2(grouped.abs().amax(-1))) - 2
    spread = grouped / exponent.exp2()[..., None]
    codes = (spread[..., None] - E2M1).abs().argmin(-1).reshape(weight.shape)
    return {"weight_packed": (codes[:, ::2] | codes[:, 1::2] << 4).to(torch.uint8),
            "weight_scale": (exponent + 127).to(torch.uint8)}  # fmt: skip


def plain(kind: torch.dtype) -> Callable[[Tensor], Parts]:
    return lambda weight: {"weight": weight.to(kind)}


COMPRESSED = {"quant_method": "compressed-tensors"}
FORMATS: dict[str, tuple[Callable[[Tensor], Parts], dict[str, object]]] = {
    "float32": (plain(torch.float32), {}),
    "bfloat16": (plain(torch.bfloat16), {}),
    "fp8": (fp8, {"quantization_config": {"quant_method": "fp8"}}),
    "int8": (int8, {"quantization_config": COMPRESSED}),
    "bnb-int8": (bnb_int8, {"quantization_config": {
        "quant_method": "bitsandbytes", "load_in_8bit": True}}),
    "packed": (packed, {"quantization_config": COMPRESSED}),
    "gptq": (gptq, {"quantization_config": {
        "quant_method": "gptq", "bits": 4, "group_size": GROUP, "checkpoint_format": "gptq"}}),
    "mlx": (mlx, {"quantization": {"bits": 4, "group_size": GROUP}}),
    "mxfp4": (mxfp4, {"quantization_config": COMPRESSED}),
}  # fmt: skip
GGUF_TYPES = ("Q8_0", "Q4_0")


def folder(name: str, there: Path, tensors: dict[str, Tensor]) -> Path:
    encode, said = FORMATS[name]
    small_model().folder(there)
    config = json.loads((there / "config.json").read_text()) | said
    (there / "config.json").write_text(json.dumps(config))
    found: dict[str, Tensor] = {}
    for tensor, value in tensors.items():
        if "_proj." not in tensor:
            found[tensor] = value
            continue
        module = tensor.removesuffix(".weight")
        found |= {f"{module}.{part}": kept.contiguous() for part, kept in encode(value).items()}
    save_file(found, there / "model.safetensors")
    return there


def gguf_file(kind: str, there: Path, wrong: bool) -> Path:
    model = small_model()
    if wrong:
        _break(model.tensors[WRONG])
    writer = gguf.GGUFWriter(there, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCAB)
    code = gguf.GGMLQuantizationType[kind]
    for name, value in model.gguf_tensors().items():
        if value.ndim == 2 and name.startswith("blk."):
            raw = gguf.quants.quantize(value, code)
            writer.add_tensor(name, raw, raw_dtype=code)
        else:
            writer.add_tensor(name, np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return there


WRONG = "model.layers.1.mlp.up_proj.weight"


def _break(weight: np.ndarray) -> None:
    weight[7] *= -1


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Each format's model, and the same with one row negated."""
    root = tmp_path_factory.mktemp("formats")
    right = {name: torch.from_numpy(v) for name, v in small_model().tensors.items()}
    wrong = small_model().tensors
    _break(wrong[WRONG])
    broken = {name: torch.from_numpy(value) for name, value in wrong.items()}
    found = {
        name: (folder(name, root / name, right), folder(name, root / f"{name}-x", broken))
        for name in FORMATS
    }
    for kind in GGUF_TYPES:
        pair = [gguf_file(kind, root / f"{kind}{bad}.gguf", bool(bad)) for bad in ("", "x")]
        found[kind] = (pair[0], pair[1])
    return found


NAMES = (*FORMATS, *GGUF_TYPES)


@pytest.mark.parametrize(("a", "b"), list(combinations(NAMES, 2)))
def test_any_two_formats_of_one_model_are_compared(
    a: str, b: str, written: dict[str, tuple[Path, Path]]
) -> None:
    found = diff_models(written[a][0], written[b][0])
    kinds = {result.kind for result in found.tensors}
    assert kinds <= {"same-bytes", "equal", "rounding"}, kinds
    silent = any(setting.kind.startswith("missing") for setting in found.settings)
    assert found.verdict == ("unmeasured" if silent else "pass")
    wrong = diff_models(written[a][0], written[b][1])
    assert wrong.verdict == "fail"
    named = [str(each.role) for each in wrong.tensors if each.kind == "differs"]
    assert named == ["layer 1 up"], [(str(t.role), t.kind) for t in wrong.tensors][:4]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_imported_into_apr_is_compared_with_what_it_came_from(
    name: str, written: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    right, wrong = written[name]
    out = tmp_path / "m.apr"
    assert main(["import", str(right), "-o", str(out), "--other", "f32"]) == 0
    found = diff_models(right, out)
    assert {result.kind for result in found.tensors} <= {"same-bytes", "equal"}
    named = [str(each.role) for each in diff_models(wrong, out).tensors if each.kind == "differs"]
    assert named == ["layer 1 up"]
