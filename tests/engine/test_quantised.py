"""A quantised checkpoint is the same model as its weights dequantised by the quantiser's library.

Recorded by ``tests.make_quantised``, which says each library and its version; transformers, which
the tests have, is asked directly.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file

from aprtui.cli.main import main
from aprtui.engine.block_decoders import Workspace
from aprtui.engine.codecs import Codec, codec_of
from aprtui.engine.job import TraceJob
from aprtui.engine.placement import layer_bytes
from aprtui.engine.plan import make_plan
from aprtui.engine.run import run_trace
from aprtui.engine.weights import largest_block_bytes
from aprtui.errors import BadFileError
from aprtui.formats.modelfile import TensorEntry
from aprtui.formats.quantised import assembled
from aprtui.formats.safetensors import read_safetensors
from aprtui.graph import Role
from aprtui.model.open import Matrix, Model, open_model
from tests.support import SMALL

FOLDERS = SMALL / "quantised"
CASES = sorted(path.name for path in FOLDERS.iterdir())
TOKENS = (3, 17, 40, 9, 5, 61, 7, 8)
Float32 = npt.NDArray[np.float32]


def values(codec: Codec, step: int) -> Float32:
    """All rows, ``step`` at a time."""
    out = torch.full((codec.rows, codec.columns), float("nan"))
    for first in range(0, codec.rows, step):
        block = out[first : first + step]
        codec.decode(codec.bytes_of(first, len(block)), first, block, Workspace())
    return out.numpy()


def quantised(model: Model) -> dict[Role, str]:
    """The weights that a quantiser wrote, and their tensors' names."""
    return {
        role: matrix.entry.name
        for role, matrix in model.weights.items()
        if matrix.entry.coding is not None
    }


@pytest.mark.parametrize("case", CASES)
def test_every_weight_has_the_very_bits_that_its_library_decodes(case: str) -> None:
    recorded = json.loads((FOLDERS / case / "decoded.json").read_text())["weights"]
    model = open_model(FOLDERS / case)
    names = quantised(model)
    assert set(names.values()) == set(recorded)
    for role, name in names.items():
        found = values(codec_of(model.weights[role]), 32)
        assert found.reshape(-1)[:8].tolist() == recorded[name]["first"], name
        assert hashlib.sha256(found.tobytes()).hexdigest() == recorded[name]["sha256"], name


@pytest.mark.parametrize("case", CASES)
def test_any_rows_are_read_without_the_rest_wherever_they_are_kept(case: str) -> None:
    model = open_model(FOLDERS / case)
    for role in (Role("q", 0), Role("down", 0)):
        matrix = model.weights[role]
        whole = values(codec_of(matrix), matrix.rows)
        assert np.array_equal(values(codec_of(matrix), 7), whole)
        kept = codec_of(matrix).moved(lambda raw: raw.clone())
        assert np.array_equal(values(kept, 5), whole)
        window = Matrix(matrix.entry, 9, 24, matrix.columns)
        assert np.array_equal(values(codec_of(window), 10), whole[9:33])
        moved = codec_of(window).moved(lambda raw: raw.clone())
        assert np.array_equal(values(moved, 10), whole[9:33])


def traced(model: Path, out: Path) -> dict[str, bytes]:
    """Every stage file's bytes."""
    job = TraceJob(model=str(model), tokens=TOKENS, directory=str(out))
    run_trace(make_plan(job), lambda event: None)
    return {str(file.relative_to(out)): file.read_bytes() for file in sorted(out.rglob("*.bin"))}


def dequantised(case: str, plain: Path) -> Path:
    """The same model with plain float32 weights, as another program would write it."""
    model = open_model(FOLDERS / case)
    names = quantised(model)
    stored = load_file(FOLDERS / case / "model.safetensors")
    modules = {name.removesuffix("weight") for name in names.values()}
    tensors = {
        name: kept.float() for name, kept in stored.items() if not name.startswith(tuple(modules))
    } | {
        name: torch.from_numpy(values(codec_of(model.weights[role]), 64))
        for role, name in names.items()
    }
    plain.mkdir()
    save_file(tensors, plain / "model.safetensors")
    config = json.loads((FOLDERS / case / "config.json").read_text())
    config = {key: value for key, value in config.items() if not key.startswith("quantization")}
    (plain / "config.json").write_text(json.dumps(config))
    return plain


@pytest.mark.parametrize("case", CASES)
def test_a_trace_is_that_of_the_model_dequantised_to_the_last_bit(
    case: str, tmp_path: Path
) -> None:
    plain = dequantised(case, tmp_path / "plain")
    assert traced(FOLDERS / case, tmp_path / "a") == traced(plain, tmp_path / "b")


def test_a_manifest_says_the_quantisation_and_what_its_own_runtime_rounds(tmp_path: Path) -> None:
    traced(FOLDERS / "ct-w8a8", tmp_path / "t")
    model = json.loads((tmp_path / "t" / "trace.json").read_text())["model"]
    said = model["config"]["quantisation"]
    assert said["method"] == "compressed-tensors"
    assert said["activations"] == "int8, dynamic, one scale a token"
    assert model["types"]["q"] == ["INT8"]


ONE_OF_EACH = ("fp8-block", "ct-int4-zero", "gptq-4-actorder", "bnb-nf4-nested", "modelopt-nvfp4")


@pytest.mark.parametrize("case", ONE_OF_EACH)
def test_two_formats_of_one_model_are_the_same_weights(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = dequantised(case, tmp_path / "plain")
    assert main(["diff", str(FOLDERS / case), str(plain), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {each["class"] for each in found["tensors"]} == {"equal"}
    weights = load_file(plain / "model.safetensors")
    weights[f"{Q}.weight"][7] *= 1.5
    save_file(weights, plain / "model.safetensors")
    assert main(["diff", str(FOLDERS / case), str(plain)]) == 1
    assert "layer 0 q" in capsys.readouterr().out
    assert main(["diff", str(FOLDERS / case), str(FOLDERS / case)]) == 0
    assert "same-bytes" in capsys.readouterr().out


@pytest.mark.parametrize("case", ONE_OF_EACH)
def test_an_apr_of_its_values_is_the_same_model(case: str, tmp_path: Path) -> None:
    out = tmp_path / "m.apr"
    assert main(["import", str(FOLDERS / case), "-o", str(out), "--other", "f32"]) == 0
    assert traced(out, tmp_path / "a") == traced(FOLDERS / case, tmp_path / "b")


@pytest.mark.parametrize("case", CASES)
def test_every_format_is_imported_into_apr_with_its_values(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "m.apr"
    assert main(["import", str(FOLDERS / case), "-o", str(out), "--other", "f32"]) == 0
    assert "written anew" in capsys.readouterr().out
    assert main(["diff", str(FOLDERS / case), str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {each["class"] for each in found["tensors"]} <= {"equal", "same-bytes"}


def test_sizes_count_every_part() -> None:
    model = open_model(FOLDERS / "gptq-4-actorder")
    stored = read_safetensors(FOLDERS / "gptq-4-actorder")
    total = sum(entry.size_bytes for entry in stored.tensors.values())
    assert sum(entry.size_bytes for entry in model.file.tensors.values()) == total
    embedding = model.weights[Role("embedding")].entry.size_bytes
    assert sum(layer_bytes(model).values()) == total - embedding


@pytest.mark.parametrize("case", CASES)
def test_no_block_takes_more_than_the_room_that_is_made_for_it(case: str) -> None:
    model, cpu = open_model(FOLDERS / case), torch.device("cpu")
    room = largest_block_bytes(model, cpu)
    for role in quantised(model):
        matrix = model.weights[role]
        assert codec_of(matrix).bytes_of(0, matrix.rows).numel() <= room


# -- packed experts of gpt_oss, against transformers -----------------------------------------------


@pytest.fixture
def experts(tmp_path: Path) -> tuple[TensorEntry, Float32]:
    """MXFP4 experts [3 experts, 10 rows, 64] as gpt_oss stores them, and their values."""
    mxfp4 = pytest.importorskip("transformers.integrations.mxfp4")
    generator = torch.Generator().manual_seed(8)
    blocks = torch.randint(0, 256, (3, 10, 2, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(110, 140, (3, 10, 2), generator=generator, dtype=torch.uint8)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    save_file({f"{name}_blocks": blocks, f"{name}_scales": scales}, tmp_path / "model.safetensors")
    config = {"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    expected = mxfp4.convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    entry = assembled(read_safetensors(tmp_path)).tensors[f"{name}.weight"]
    return entry, expected.transpose(1, 2).numpy()


def test_mxfp4_experts_have_the_values_that_transformers_gives_them(
    experts: tuple[TensorEntry, Float32],
) -> None:
    entry, expected = experts
    assert (entry.type, entry.shape) == ("MXFP4_HF", (3, 10, 64))
    for expert in range(3):
        codec = codec_of(Matrix(entry, 10 * expert, 10, 64))
        assert np.array_equal(values(codec, 4), expected[expert])


def test_gate_and_up_in_turn_are_taken_apart(experts: tuple[TensorEntry, Float32]) -> None:
    entry, expected = experts
    for part in (0, 1):
        codec = codec_of(Matrix(entry, 10 + part, 5, 64, group=1, period=2))
        assert np.array_equal(values(codec, 2), expected[1, part::2])
        assert np.array_equal(values(codec.moved(lambda raw: raw.clone()), 2), expected[1, part::2])


# -- what no recorded checkpoint has, against its definition ---------------------------------------


def coded(
    folder: Path, tensors: dict[str, torch.Tensor], quantisation: dict[str, object]
) -> TensorEntry:
    """The weight ``w`` of a folder with these tensors."""
    save_file(tensors, folder / "model.safetensors")
    config = {"model_type": "llama", "quantization_config": quantisation}
    (folder / "config.json").write_text(json.dumps(config))
    return assembled(read_safetensors(folder)).tensors["w.weight"]


def all_of(entry: TensorEntry) -> Float32:
    rows, columns = int(np.prod(entry.shape[:-1])), entry.shape[-1]
    return values(codec_of(Matrix(entry, 0, rows, columns)), rows)


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_every_fp8_code_has_the_value_that_torch_gives_it(
    kind: torch.dtype, tmp_path: Path
) -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(2, 128).view(kind)
    tensors = {"w.weight": codes, "w.weight_scale": torch.ones(())}
    found = all_of(coded(tmp_path, tensors, {"quant_method": "fp8"}))
    expected = codes.float().numpy()
    assert np.array_equal(np.isnan(found), np.isnan(expected))
    there = ~np.isnan(expected)
    assert np.array_equal(found.view(np.uint32)[there], expected.view(np.uint32)[there])


def test_fp8_experts_packed_in_one_tensor_have_scales_of_their_own_blocks(tmp_path: Path) -> None:
    """And scales that are exponents alone, as DeepSeek-V3.1 has them."""
    generator = torch.Generator().manual_seed(4)
    codes = torch.randn(3, 8, 12, generator=generator).to(torch.float8_e4m3fn)
    exponents = torch.randint(118, 136, (3, 2, 3), generator=generator, dtype=torch.uint8)
    entry = coded(
        tmp_path,
        {"w.weight": codes, "w.weight_scale_inv": exponents.view(torch.float8_e8m0fnu)},
        {"quant_method": "fp8", "weight_block_size": [4, 4]},
    )
    scale = np.exp2(exponents.numpy().astype(np.float32) - 127)
    spread = scale.repeat(4, axis=1).repeat(4, axis=2)
    assert entry.shape == (3, 8, 12)
    assert np.array_equal(all_of(entry), (codes.float().numpy() * spread).reshape(24, 12))


def test_packed_integers_in_the_order_of_their_activations(tmp_path: Path) -> None:
    """compressed-tensors up to 0.9: column i is of group weight_g_idx[i]."""
    generator = torch.Generator().manual_seed(6)
    codes = torch.randint(0, 16, (5, 32), generator=generator)
    groups = torch.randperm(32, generator=generator).remainder(4).to(torch.int32)
    scale = torch.rand(5, 4, generator=generator) + 0.5
    packed = (codes.view(5, 4, 8) << 4 * torch.arange(8)).sum(-1)
    words = torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)
    entry = coded(
        tmp_path,
        {"w.weight_packed": words, "w.weight_scale": scale, "w.weight_g_idx": groups,
         "w.weight_shape": torch.tensor([5, 32])},
        {"quant_method": "compressed-tensors"},
    )  # fmt: skip
    expected = (codes - 8).float() * scale[:, groups.long()]
    assert np.array_equal(all_of(entry), expected.numpy())


def test_a_module_of_its_own_bits_is_read_so(tmp_path: Path) -> None:
    """As MLX writes mixed checkpoints."""
    own = load_file(FOLDERS / "mlx-8" / "model.safetensors")
    given: dict[str, torch.Tensor | None] = {
        name: kept for name, kept in own.items() if name.startswith(f"{Q}.")
    }
    folder = changed("mlx-4", tmp_path / "m", given, **{Q: {"bits": 8, "group_size": 64}})
    config = json.loads((folder / "config.json").read_text())
    config["quantization"] = config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    model = open_model(folder)
    assert model.types()["q"] == ("MLX_8",)
    assert model.types()["k"] == ("MLX_4",)
    recorded = json.loads((FOLDERS / "mlx-8" / "decoded.json").read_text())["weights"]
    found = values(codec_of(model.weights[Role("q", 0)]), 32)
    assert hashlib.sha256(found.tobytes()).hexdigest() == recorded[f"{Q}.weight"]["sha256"]


def test_autogptqs_own_file_says_what_the_config_does_not(tmp_path: Path) -> None:
    folder = changed("gptq-4", tmp_path / "m", {})
    config = json.loads((folder / "config.json").read_text())
    said = config.pop("quantization_config")
    (folder / "config.json").write_text(json.dumps(config))
    del said["quant_method"]
    (folder / "quantize_config.json").write_text(json.dumps(said))
    model = open_model(folder)
    assert model.types()["q"] == ("GPTQ_4",)
    assert model.file.quantisation is not None
    assert model.file.quantisation.source == "quantize_config.json"


def test_a_checkpoint_that_was_dequantised_says_so(tmp_path: Path) -> None:
    plain = dequantised("fp8-block", tmp_path / "plain")
    config = json.loads((plain / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (plain / "config.json").write_text(json.dumps(config))
    note = "config.json quantization_config says fp8, and every weight is stored plain"
    assert note in open_model(plain).notes


# -- contradictions --------------------------------------------------------------------------------


def changed(case: str, out: Path, tensors: dict[str, torch.Tensor | None], **keys: object) -> Path:
    """A copy of a folder with tensors replaced or (None) left out, and other keys in its config."""
    stored = load_file(FOLDERS / case / "model.safetensors")
    given = {name: kept for name, kept in {**stored, **tensors}.items() if kept is not None}
    out.mkdir()
    save_file(given, out / "model.safetensors")
    config = json.loads((FOLDERS / case / "config.json").read_text())
    for said in ("quantization", "quantization_config"):
        if said in config or said == "quantization_config":
            config[said] = config.get(said, {}) | keys
    (out / "config.json").write_text(json.dumps(config))
    return out


Q = "model.layers.0.self_attn.q_proj"
BAD: dict[str, tuple[str, dict[str, torch.Tensor | None], dict[str, object], tuple[str, ...]]] = {
    "codes without scales": (
        "fp8-block", {f"{Q}.weight_scale_inv": None}, {}, (f"{Q}.weight", "none of"),
    ),
    "scales of another shape": (
        "fp8-block", {f"{Q}.weight_scale_inv": torch.ones(2, 3)}, {},
        (f"{Q}.weight_scale_inv", "[2, 3]", "[2, 2]"),
    ),
    "scales without codes": (
        "fp8-block", {f"{Q}.weight": torch.ones(128, 128)}, {},
        (f"{Q}.weight_scale_inv", "F32 values, no codes"),
    ),
    "a group size that does not divide": (
        "awq-4", {}, {"group_size": 80}, ("qweight", "its group size of 80 does not divide"),
    ),
    "a group size of GPTQ that its scales contradict": (
        "gptq-4", {}, {"group_size": 48}, (".scales", "[3, 128]", "[4, 128]"),
    ),
    "a group size of MLX that does not divide": (
        "mlx-4", {}, {"group_size": 80}, (".weight", "its group size of 80 does not divide"),
    ),
    "a group size of MLX that its scales contradict": (
        "mlx-4", {}, {"group_size": 32}, (".scales", "[128, 3]", "[128, 6]"),
    ),
    "packed integers whose scales do not divide": (
        "ct-int4", {f"{Q}.weight_scale": torch.ones(128, 3)}, {},
        (f"{Q}.weight_scale", "3 scales a row, which do not divide 128"),
    ),
    "NVFP4 scales of another shape": (
        "modelopt-nvfp4", {f"{Q}.weight_scale": torch.ones(128, 5).to(torch.float8_e4m3fn)}, {},
        (f"{Q}.weight_scale", "[128, 5]", "[128, 8]"),
    ),
    "MXFP4 codes without scales": (
        "ct-mxfp4", {f"{Q}.weight_scale": None}, {}, (f"{Q}.weight_packed", "weight_scale"),
    ),
    "AWQ without scales": (
        "awq-4", {f"{Q}.scales": None}, {}, (f"{Q}.qweight", f"{Q}.scales is not there"),
    ),
    "nf4 codes without absmax": (
        "bnb-nf4", {f"{Q}.weight.absmax": None}, {}, (f"{Q}.weight", "absmax"),
    ),
    "FP8 weights in a folder of GPTQ": (
        "gptq-4",
        {f"{Q}.qweight": None, f"{Q}.qzeros": None, f"{Q}.scales": None, f"{Q}.g_idx": None,
         f"{Q}.weight": torch.ones(128, 128).to(torch.float8_e4m3fn),
         f"{Q}.weight_scale": torch.ones(())}, {},
        (f"{Q}.weight", "FP8_E4M3", "gptq", "two quantisations in one folder"),
    ),
    "a method that is not the tensors'": (
        "gptq-4", {}, {"quant_method": "bitsandbytes"}, ("_proj.qweight", "bitsandbytes"),
    ),
    "GPTQ without zero points": (
        "gptq-4", {f"{Q}.qzeros": None}, {}, (f"{Q}.qweight", f"{Q}.qzeros is not there"),
    ),
    "a group that does not exist": (
        "gptq-4", {f"{Q}.g_idx": torch.full((128,), 9, dtype=torch.int32)}, {},
        (f"{Q}.g_idx", "group 9", "there are 2"),
    ),
    "bitsandbytes without its state": (
        "bnb-nf4", {f"{Q}.weight.quant_state.bitsandbytes__nf4": None}, {},
        (f"{Q}.weight", "quant_state"),
    ),
    "an absmax of another size": (
        "bnb-nf4", {f"{Q}.weight.absmax": torch.ones(3)}, {}, (f"{Q}.weight.absmax", "[256]"),
    ),
    "a packed shape that lies": (
        "ct-int4", {f"{Q}.weight_shape": torch.tensor([128, 999])}, {},
        (f"{Q}.weight_packed", "999"),
    ),
    "a global scale that is missing": (
        "ct-nvfp4", {f"{Q}.weight_global_scale": None}, {}, (f"{Q}.weight_packed", "global"),
    ),
    "MLX without biases": (
        "mlx-4", {f"{Q}.biases": None}, {}, (f"{Q}.weight", f"{Q}.biases is not there"),
    ),
    "codes of no weight": (
        "fp8-tensor", {f"{Q}.weight": torch.empty(0, 128, dtype=torch.float8_e4m3fn)}, {},
        (f"{Q}.weight", "codes of no weight"),
    ),
    "AWQ of another layout": ("awq-4", {}, {"version": "gemv"}, ("gemv", "version=GEMM")),
    "int8 whose scales nothing mentions": (
        "bnb-int8", {f"{Q}.SCB": None, f"{Q}.weight_format": None}, {}, (f"{Q}.weight", "I8"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_contradiction_is_named_with_its_tensor(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case, tensors, keys, told = BAD[name]
    folder = changed(case, tmp_path / "bad", tensors, **keys)
    assert main(["trace", str(folder), "--tokens", "1,2", "-o", str(tmp_path / "t")]) == 3
    said = capsys.readouterr().err
    assert all(words in said for words in told), said
    assert main(["inspect", str(folder)]) == 0  # and all that is stored is listed
    assert "cannot be traced" in capsys.readouterr().out


def test_two_words_of_one_config_that_disagree_are_refused(tmp_path: Path) -> None:
    folder = changed("mlx-4", tmp_path / "two", {})
    config = json.loads((folder / "config.json").read_text())
    config["quantization"]["group_size"] = 32
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadFileError, match=r"group_size is 64 in .* and 32 in .*quantization"):
        open_model(folder)


def test_two_quantisations_in_one_folder_are_refused(tmp_path: Path) -> None:
    folder = changed("gptq-4", tmp_path / "two", {})
    (folder / "quant_config.json").write_text('{"w_bit": 4, "q_group_size": 64}')
    with pytest.raises(BadFileError, match="two quantisations in one folder"):
        open_model(folder)


def test_int8_without_scales_is_never_multiplied(tmp_path: Path) -> None:
    """Not by following the hint to ignore what is unknown either."""
    folder = changed("bnb-int8", tmp_path / "raw", {f"{Q}.SCB": None, f"{Q}.weight_format": None})
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadFileError, match=r"q_proj\.weight is I8: codes of a quantiser"):
        open_model(folder, {"unknown_tensors": "ignore"})


def test_a_type_that_nothing_decodes_is_listed_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    norm = torch.ones(128, dtype=torch.float64)
    folder = changed("bnb-int8", tmp_path / "odd", {"model.norm.weight": norm})
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b'"dtype":"F64"', b'"dtype":"C64"'))
    assert main(["inspect", str(folder)]) == 0
    assert "C64" in capsys.readouterr().out
    assert main(["trace", str(folder), "--tokens", "1,2", "-o", str(tmp_path / "t")]) == 3
    said = capsys.readouterr().err
    assert "model.norm.weight is of the type C64" in said
    assert "save it as bfloat16" in said


def test_an_unread_method_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "hqq"
    changed("bnb-int8", folder, {})
    plain = {name: kept.float() for name, kept in load_file(folder / "model.safetensors").items()
             if "SCB" not in name and "format" not in name}  # fmt: skip
    save_file(plain, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "hqq"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadFileError, match="quantised by HQQ, which aprtui does not read"):
        open_model(folder)


@pytest.mark.parametrize(
    ("parts", "what", "hint"),
    [
        (("W_q", "scale", "zero"), "HQQ", "HQQLinear.dequantize"),
        (("_weight_qdata", "_weight_scale"), "torchao's tensor classes", "dequantises each"),
    ],
)
@pytest.mark.parametrize("told", [True, False])
def test_hqq_and_torchao_are_named_with_what_reads_them(
    parts: tuple[str, ...], what: str, hint: str, told: bool, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = tmp_path / "m"
    changed("bnb-int8", folder, {})
    tensors = {name: kept for name, kept in load_file(folder / "model.safetensors").items()
               if not name.startswith(Q)}  # fmt: skip
    tensors |= {f"{Q}.{part}": torch.zeros(128, 128, dtype=torch.uint8) for part in parts}
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    if told:
        config["quantization_config"] = {"quant_method": "hqq" if what == "HQQ" else "torchao"}
    (folder / "config.json").write_text(json.dumps(config))
    assert main(["inspect", str(folder)]) == 0
    listed = capsys.readouterr().out
    assert f"quantised by {what}" in listed and f"{Q}.{parts[0]}" in listed
    assert main(["trace", str(folder), "--tokens", "1,2"]) == 3
    said = capsys.readouterr().err
    assert f"quantised by {what}, which aprtui does not read" in said and hint in said
