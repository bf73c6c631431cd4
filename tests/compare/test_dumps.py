"""Every real dump of another runtime is judged: what is honest is cleared, what is not is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file, save_file

from aprtui import api
from aprtui.compare.bisection import Bisection
from aprtui.model.open import open_model
from tests.support import FIXTURES, SMALL, needs_fixtures

Float32 = npt.NDArray[np.float32]
Tensors = dict[str, npt.NDArray[Any]]

DUMPS, MODELS = FIXTURES / "dumps", FIXTURES / "models"
FOLDER, Q4_K_M = MODELS / "pycode-5m", MODELS / "pycode-5m-q4_k_m.gguf"
pytestmark = needs_fixtures


def bisected(dump: Path, model: Path, root: Path, layers: str = "all") -> Bisection:
    api.import_trace(dump, model=model, output=root / "trace")
    return api.bisect(root / "trace", model=model, layers=layers)


OF_OWN_WEIGHTS = (
    "hf-debugger", "hf-hooks/bf16-sdpa.npz", "hf-hooks/f16-sdpa.npz", "hf-hooks/f32-sdpa.npz",
    "mlx/f32.npz", "mlx/f16.npz", "msprobe/step0/proc2150", "ort/fp32.npz", "sglang-tensor-dump",
    "vllm/bf16",
)  # fmt: skip
OPENVINO = ("f32", "f32-dq", "bf16")


@pytest.mark.parametrize("name", OF_OWN_WEIGHTS)
def test_a_runtime_of_the_models_own_weights_is_cleared(name: str, tmp_path: Path) -> None:
    found = bisected(DUMPS / name, FOLDER, tmp_path)
    assert found.culprits == ()
    assert len(found.explained) > 25
    others = {str(each.key) for each in found.unmeasured}
    assert others <= {"lm_head", "layer-5/post_ffn_residual"}  # what the dump does not hold


def test_torchlens_two_layers_are_cleared(tmp_path: Path) -> None:
    found = bisected(DUMPS / "torchlens", FOLDER, tmp_path)
    assert (found.culprits, len(found.explained)) == ((), 19)
    assert {each.why for each in found.unmeasured} <= {"not captured"}


@pytest.mark.parametrize("name", OPENVINO)
def test_openvinos_q4_k_weights_are_others_and_its_q6_k_are_not(name: str, tmp_path: Path) -> None:
    """Its reader gives Q4_K an integer zero point: every product of such a matrix, and no other."""
    layers = "all" if name == "f32" else "2"  # it has products of both types
    found = bisected(DUMPS / f"openvino/pycode-q4km-{name}.npz", Q4_K_M, tmp_path, layers)
    model = open_model(Q4_K_M)
    wrong = {each.key for each in found.culprits}
    assert {"attn_out", "ffn_up"} < {each.stage for each in wrong}
    for node in model.graph:
        types = {model.weights[role].entry.type for role in node.op.matrices}
        measured = node.key in wrong | {each.key for each in found.explained}
        assert not measured or (node.key in wrong) == ("Q4_K" in types), node.key
    if name == "f32":
        (cause,) = found.causes
        assert (cause.id, "integer zero points" in cause.text) == ("other_matrix", True)
        assert cause.pattern == (
            "every product with weights of type Q4_K (33), none of the 3 others"
        )


def test_openvinos_rope_frequencies_of_an_f16_gguf_are_explained(tmp_path: Path) -> None:
    """Of its 2026.4.1 and the same weights in F16: layer 1, bias to rotation."""
    dump = SMALL / "dumps/openvino-f16.npz"
    api.import_trace(dump, model=Q4_K_M, output=tmp_path / "trace")
    found = api.bisect(tmp_path / "trace", model=Q4_K_M, stages="q_post_rope,k_post_rope")
    by = {str(each.key): each.by for each in found.explained}
    assert found.culprits == ()
    assert by == {f"layer-1/{q}_post_rope": "RoPE's frequencies in float16" for q in "qk"}


# -- checkpoints that the runtimes made of it ------------------------------------------------------


def quantised(folder: Path, made: Tensors, **config: Any) -> Path:
    """pycode-5m with other weights and settings."""
    folder.mkdir()
    for path in FOLDER.iterdir():
        if path.suffix != ".safetensors" and path.name != "config.json":
            (folder / path.name).write_bytes(path.read_bytes())
    stated = json.loads((FOLDER / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**stated, **config}))
    save_file(made, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def whole() -> Tensors:
    return load_file(next(FOLDER.glob("*.safetensors")))


def by_mlx(weight: npt.NDArray[np.float16]) -> tuple[npt.NDArray[Any], ...]:
    """Codes of four bits, scales and biases of 64 columns, as mx.quantize makes them: the end of
    larger size is a multiple of the scale."""
    blocks = weight.astype(np.float32).reshape(len(weight), -1, 64)
    low, high = blocks.min(-1, keepdims=True), blocks.max(-1, keepdims=True)
    below = np.abs(low) > np.abs(high)
    scale = np.maximum((high - low) / np.float32(15), np.float32(1e-7))
    scale, edge = np.where(below, scale, -scale), np.where(below, low, high)
    first = np.rint(edge / scale)
    scale = np.where(first != 0, edge / np.where(first != 0, first, 1), scale)
    bias = np.where(first != 0, edge, np.float32(0))
    codes = np.clip(np.rint((blocks - bias) / scale), 0, 15).astype(np.uint32)
    words = codes.reshape(len(weight), -1, 8) << (4 * np.arange(8, dtype=np.uint32))
    packed = np.bitwise_or.reduce(words, axis=-1)
    return packed, *(each[..., 0].astype(np.float16) for each in (scale, bias))


def mlx_4bit(folder: Path) -> Path:
    made: Tensors = {}
    for name, value in whole().items():
        base = name.removesuffix(".weight")
        if value.ndim == 2:
            made[name], made[f"{base}.scales"], made[f"{base}.biases"] = by_mlx(value)
        else:
            made[name] = value
    return quantised(folder, made, quantization={"group_size": 64, "bits": 4})


def by_onnxruntime(weight: npt.NDArray[np.float16]) -> Float32:
    """Blocks of 32 of four bits without a zero point, as its builder makes them, decoded."""
    blocks = weight.astype(np.float32).reshape(len(weight), -1, 32)
    low, high = blocks.min(-1, keepdims=True), blocks.max(-1, keepdims=True)
    scale = np.where(np.abs(high) > np.abs(low), high, low) / np.float32(-8)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
    codes = np.clip(np.floor(blocks * inverse + np.float32(8.5)), 0, 15) - 8
    return np.asarray((codes * scale).reshape(weight.shape), dtype=np.float32)


def onnxruntime_int4(folder: Path) -> Path:
    made: Tensors = {
        name: by_onnxruntime(value) if value.ndim == 2 else value.astype(np.float32)
        for name, value in whole().items()
    }
    made["lm_head.weight"] = made["model.embed_tokens.weight"].copy()
    return quantised(folder, made, tie_word_embeddings=False)


QUANTISED: list[tuple[str, Callable[[Path], Path], str]] = [
    ("mlx/q4.npz", mlx_4bit, "terms summed one by one in float16"),
    ("ort/int4.npz", onnxruntime_int4, "activations rounded to int8 in blocks of 32"),
]


@pytest.mark.parametrize(("name", "made", "by"), QUANTISED)
def test_a_quantised_checkpoint_is_cleared(
    name: str, made: Callable[[Path], Path], by: str, tmp_path: Path
) -> None:
    found = bisected(DUMPS / name, made(tmp_path / "model"), tmp_path)
    assert found.culprits == ()
    assert {str(each.key) for each in found.unmeasured} <= {"final_norm"}
    assert sum(by in each.by for each in found.explained) > 20


# -- the runtime's own weights ---------------------------------------------------------------------

OWN = "Module.model.layers.1.input_layernorm.Qwen2RMSNorm.forward.0"


def msprobe(root: Path, change: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]) -> Path:
    """A copy of msprobe's dump, one norm of which has weights of its own and computes with them."""
    torch = pytest.importorskip("torch")
    folder = shutil.copytree(DUMPS / "msprobe" / "step0", root / "step0")
    (values,) = folder.glob("proc*/dump_tensor_data")
    whole = torch.load(values / f"{OWN}.parameters.weight.pt")
    other = torch.from_numpy(change(whole.detach().float().numpy())).to(whole.dtype)
    torch.save(other, values / f"{OWN}.parameters.weight.pt")
    attention = "Module.model.layers.1.self_attn"
    readers = [
        f"{OWN}.output.0.pt",
        f"{attention}.Qwen2Attention.forward.0.kwargs.hidden_states.pt",
        *(f"{attention}.{name}_proj.Linear.forward.0.input.0.pt" for name in "qkv"),
    ]
    for name in readers:
        if (values / name).exists():
            held = torch.load(values / name)
            torch.save((held.float() / whole.float() * other.float()).to(held.dtype), values / name)
    return Path(values.parent)


def test_a_runtimes_own_weights_are_compared_first(tmp_path: Path) -> None:
    done = api.import_trace(
        DUMPS / "msprobe/step0/proc2150", model=FOLDER, output=tmp_path / "honest"
    )
    assert not done.findings
    assert any("5 of 5 parameters in the dump are the model's" in note for note in done.notes)
    source = msprobe(tmp_path, lambda weight: np.where(np.arange(256) == 7, 1.5 * weight, weight))
    done = api.import_trace(source, model=FOLDER, output=tmp_path / "other")
    (finding,) = done.findings
    assert finding.startswith("model.layers.1.input_layernorm.weight: the runtime's own is another")
    assert "1 of 256 values, the first at channel 7" in finding
    (culprit,) = api.bisect(tmp_path / "other", model=FOLDER).culprits
    assert str(culprit.key) == "layer-1/attn_norm"
    assert "the runtime's own model.layers.1.input_layernorm.weight is another" in (
        culprit.looks_like
    )


def test_parameters_are_not_compared_with_another_format(tmp_path: Path) -> None:
    done = api.import_trace(
        DUMPS / "msprobe/step0/proc2150", model=Q4_K_M, output=tmp_path / "trace"
    )
    assert any("5 parameters in the dump: not compared" in note for note in done.notes)
