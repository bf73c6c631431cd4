"""Opening a model: what a file leaves out is told, what contradicts itself is refused."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from aprtui.errors import AprtuiError, BadFileError, UsageError
from aprtui.families.rope_kinds import llama3_divisors
from aprtui.graph import Role
from aprtui.model.open import open_model, read_model_file
from tests.support import FIXTURES, needs_fixtures
from tests.tiny import HF_TENSORS, write_tiny


def test_a_whole_model_opens_with_every_weight_in_its_role(tmp_path: Path) -> None:
    model = open_model(write_tiny(tmp_path / "m.apr"))
    assert len(model.weights) == 3 + 2 * 9
    q = model.weights[Role("q", 1)]
    assert (q.entry.name, q.rows, q.columns) == ("model.layers.1.self_attn.q_proj.weight", 16, 16)
    assert model.settings["head_dim"] == 4
    assert model.settings["rope_layout"] == "halves"
    assert model.types()["embedding"] == ("F32",)


@pytest.mark.parametrize("name", sorted(HF_TENSORS))
def test_a_missing_tensor_is_named_by_its_role(name: str, tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.apr", without=(name,))
    if name == "lm_head.weight":
        assert open_model(path).settings["tied_head"], "no head means that it is the embedding"
        return
    with pytest.raises(BadFileError, match=r"missing|does not say|no experts"):
        open_model(path)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("num_layers", None, "num_layers.*--set num_layers"),
        ("hidden_size", None, "hidden_size"),
        ("num_heads", None, "num_heads"),
        ("num_heads", 8, r"is \[8, 16\] where the configuration needs \[4, 16\]"),
        ("num_heads", 3, "cannot share|needs"),
        ("num_layers", 3, "layer 2 .* missing"),
        ("hidden_size", 32, "hidden_size|needs|shape"),
        ("architecture", "rwkv7", "'rwkv7' cannot be traced.*qwen2, .*llama, mistral"),
        ("head_dim", 8, "where the configuration needs"),
        ("intermediate_size", 64, r"is \[32, 16\] where the configuration needs \[64, 16\]"),
    ],
)
def test_configuration_that_does_not_hold(
    key: str, value: object, says: str, tmp_path: Path
) -> None:
    with pytest.raises(BadFileError, match=says):
        open_model(write_tiny(tmp_path / "m.apr", metadata={key: value}))


def test_what_the_file_lacks_can_be_set(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.apr", metadata={"num_layers": None})
    assert open_model(path, {"num_layers": "2"}).settings["num_layers"] == 2


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_layer", "2"), ("num_layers", "two"), ("rope_layout", "sideways"), ("qk_norm", "3"),
     ("rope_scaling", "yarn:4"), ("activation", "tanh"), ("num_layers", "1.5")],
)  # fmt: skip
def test_overrides_that_make_no_sense(key: str, value: str, tmp_path: Path) -> None:
    with pytest.raises(AprtuiError):
        open_model(write_tiny(tmp_path / "m.apr"), {key: value})


def test_a_default_is_noted(tmp_path: Path) -> None:
    model = open_model(write_tiny(tmp_path / "m.apr", metadata={"rms_norm_eps": None}))
    assert model.settings["rms_norm_eps"] == 1e-5
    assert any("rms_norm_eps is not stated" in note for note in model.notes)


def test_a_rope_type_that_lies_is_noted_and_not_followed(tmp_path: Path) -> None:
    model = open_model(write_tiny(tmp_path / "m.apr", metadata={"rope_type": 0}))
    assert model.settings["rope_layout"] == "halves"
    assert any("rope_type says 0" in note for note in model.notes)
    forced = open_model(tmp_path / "m.apr", {"rope_layout": "adjacent"})
    assert forced.settings["rope_layout"] == "adjacent"


def test_gguf_rows_under_hugging_face_names(tmp_path: Path) -> None:
    """docs/stages.md 3, rule 3."""
    metadata = {"original_format": "gguf", "model.architecture": "llama"}
    model = open_model(write_tiny(tmp_path / "m.apr", metadata=metadata))
    assert model.settings["rope_layout"] == "adjacent"


def test_a_tensor_that_no_pass_uses_stops_the_opening(tmp_path: Path) -> None:
    extra = {"model.layers.0.self_attn.sinks": np.zeros(4, dtype=np.float32)}
    path = write_tiny(tmp_path / "m.apr", extra=extra)
    with pytest.raises(BadFileError, match="sinks"):
        open_model(path)
    model = open_model(path, {"unknown_tensors": "ignore"})
    assert any("ignored" in note for note in model.notes)


def test_of_two_heads_the_one_in_the_layers_scheme_wins(tmp_path: Path) -> None:
    extra = {"output.weight": np.zeros((24, 16), dtype=np.float32)}
    model = open_model(write_tiny(tmp_path / "m.apr", extra=extra))
    assert model.weights[Role("head")].entry.name == "lm_head.weight"
    assert any("two tensors for head" in note for note in model.notes)


def test_reversed_dims_are_turned_or_refused(tmp_path: Path) -> None:
    turned = {name: shape[::-1] for name, shape in HF_TENSORS.items()}
    model = open_model(write_tiny(tmp_path / "all.apr", shapes=turned))
    assert any("fastest first" in note for note in model.notes)
    assert model.weights[Role("gate", 0)].rows == 32
    some = {name: shape for name, shape in turned.items() if "mlp" not in name}
    with pytest.raises(BadFileError, match="needs"):
        open_model(write_tiny(tmp_path / "some.apr", shapes=some))


def test_experts_of_their_own_and_packed_are_the_same_windows(tmp_path: Path) -> None:
    dense = tuple(name for name in HF_TENSORS if ".mlp." in name)
    metadata = {"num_experts": 3, "num_experts_per_tok": 2, "architecture": "mixtral"}
    parts = {"gate": (32, 16), "up": (32, 16), "down": (16, 32)}
    single: dict[str, npt.NDArray[np.float32]] = {}
    packed: dict[str, npt.NDArray[np.float32]] = {}
    for layer in range(2):
        router = np.ones((3, 16), dtype=np.float32)
        single[f"model.layers.{layer}.mlp.gate.weight"] = router
        packed[f"blk.{layer}.ffn_gate_inp.weight"] = router
        for part, shape in parts.items():
            values = np.zeros((3, *shape), dtype=np.float32)
            packed[f"blk.{layer}.ffn_{part}_exps.weight"] = values
            for expert in range(3):
                name = f"model.layers.{layer}.mlp.experts.{expert}.{part}_proj.weight"
                single[name] = values[expert]
    for name, extra in (("single", single), ("packed", packed)):
        path = write_tiny(tmp_path / f"{name}.apr", metadata=metadata, without=dense, extra=extra)
        model = open_model(path)
        window = model.weights[Role("expert_down", 1, 2)]
        assert (window.rows, window.columns) == (16, 32)
        assert window.first_row == (32 if name == "packed" else 0)


def test_fused_qkv_is_three_windows(tmp_path: Path) -> None:
    separate = tuple(n for n in HF_TENSORS if any(f"{p}_proj" in n for p in "qkv"))
    extra = {
        f"model.layers.{layer}.self_attn.qkv_proj.weight": np.zeros((32, 16), dtype=np.float32)
        for layer in range(2)
    }
    model = open_model(write_tiny(tmp_path / "m.apr", without=separate, extra=extra))
    assert [model.weights[Role(part, 0)].first_row for part in "qkv"] == [0, 16, 24]


def test_llama3_scaling_as_text_is_what_a_config_says(tmp_path: Path) -> None:
    model = open_model(write_tiny(tmp_path / "m.apr"), {"rope_scaling": "llama3:8:1:4:16"})
    assert model.settings["rope_divisors"] == llama3_divisors(4, 1e4, 8, 1, 4, 16)
    assert model.settings["rope_divisors"][0] == 1.0 or model.settings["rope_divisors"][0] < 8


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "it is empty"),
        (b"PK\x03\x04zip", "a zip archive"),
        (b"APRT" + bytes(8), "stage"),
    ],
)
def test_other_files_are_refused_by_what_they_are(
    content: bytes, says: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(content)
    with pytest.raises(BadFileError, match=says):
        read_model_file(path)


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(BadFileError, match="No such file"):
        open_model(Path("/nowhere/model.gguf"))


@needs_fixtures
def test_a_bad_override_of_a_real_file_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="did you mean num_experts_per_tok"):
        open_model(FIXTURES / "models" / "qwen3moe-q4_k_m.gguf", {"num_expert_per_tok": "2"})


@needs_fixtures
@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("llama-convert", "2-D dims are listed fastest first"),
        ("pycode-f16", "has a shape but no bytes"),
        ("pycode-int8", "tied_embeddings is true, and the head has bytes"),
        ("qwen3-import", "rope_type says 0"),
        ("gemma3-preserve", "sliding_window is not stated"),
        ("llamaspm-preserve", "no checksum at its end"),
    ],
)
def test_what_is_odd_about_a_file_of_the_public_apr_is_said(name: str, note: str) -> None:
    model = open_model(FIXTURES / "apr" / "models" / f"{name}.apr")
    assert any(note in said for said in model.notes), model.notes


def test_rope_keys_that_a_gguf_does_not_have_are_no_settings_of_the_model() -> None:
    with resources.as_file(resources.files("aprtui") / "demo" / "pycode-5m.gguf") as path:
        settings = open_model(path).settings
    assert not [key for key in settings if key.startswith("rope.") or key == "rope.scale_linear"]
    assert settings["rope_scale"] == 1.0
