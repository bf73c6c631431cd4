"""Composite folders around a known text model: the text part is traced, the rest is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from aprtui.model.open import open_model
from tests.engine.mutations import BAR, TOKENS, our_logits
from tests.families import TINY, save_tiny

transformers = pytest.importorskip("transformers", reason="transformers is a dev dependency")

TEXT: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12,
    "max_position_embeddings": 128, "initializer_range": 0.2, "pad_token_id": 0,
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 8, "patch_size": 4, "head_dim": 8,
}  # fmt: skip
_AXES: dict[str, Any] = {"rope_parameters": {
    "rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2],
    "mrope_interleaved": True,
}}  # fmt: skip
_TOWER: dict[str, Any] = {
    "depth": 1, "num_heads": 2, "out_hidden_size": 48, "deepstack_visual_indexes": [0],
    "num_position_embeddings": 16,
}  # fmt: skip

CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llava": ("Llava", {"model_type": "llama", **TEXT}, {"model_type": "clip_vision_model"}),
    "mistral3": ("Mistral3", {"model_type": "mistral", **TEXT}, {"model_type": "pixtral"}),
    "gemma3": (
        "Gemma3", {"model_type": "gemma3_text", "sliding_window": 4, **TEXT},
        {"model_type": "siglip_vision_model"},
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VL",
        {"model_type": "qwen2_5_vl_text", **TEXT, "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 2]}},
        {"model_type": "qwen2_5_vl_vision", "depth": 1, "num_heads": 2, "out_hidden_size": 48},
    ),
    "qwen3_vl": ("Qwen3VL", {**TEXT, "head_dim": 16, **_AXES}, _TOWER),
    "qwen3_vl_moe": (
        "Qwen3VLMoe", {**TEXT, **_AXES, "num_experts": 6, "num_experts_per_tok": 2,
                       "moe_intermediate_size": 32, "mlp_only_layers": [1]}, _TOWER,
    ),
}  # fmt: skip


def save_composite(case: str, folder: Path) -> Any:
    """A whole model with seeded random weights, saved as safetensors; returns it."""
    name, text, vision = CASES[case]
    config = getattr(transformers, f"{name}Config")(
        text_config=text, vision_config=VISION | vision, image_token_index=95,
        mm_tokens_per_image=4,
    )  # fmt: skip
    torch.manual_seed(3)
    kind = getattr(transformers, f"{name}ForConditionalGeneration")
    model = kind._from_config(config, attn_implementation="eager").float().eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("case", sorted(CASES))
def test_the_text_part_has_the_whole_models_numbers(case: str, tmp_path: Path) -> None:
    model = save_composite(case, tmp_path)
    with torch.no_grad():
        theirs = model(torch.tensor([[token % 90 for token in TOKENS]])).logits[0]
    ours = our_logits(tmp_path, tuple(token % 90 for token in TOKENS))
    assert float((ours - theirs).norm() / theirs.norm()) <= BAR
    notes = open_model(tmp_path).notes
    assert any("text part" in note and "left out: " in note for note in notes), notes


def test_experts_may_lie_either_way(tmp_path: Path) -> None:
    """Qwen3-VL-MoE's are published as [columns,rows], which transformers tells by the shape."""
    kind = type(save_composite("qwen3_vl_moe", tmp_path))
    saved, path = our_logits(tmp_path), tmp_path / "model.safetensors"
    turned = {
        key: value.transpose(1, 2).contiguous() if ".experts." in key else value
        for key, value in load_file(path).items()
    }
    save_file(turned, path, {"format": "pt"})
    theirs = kind.from_pretrained(tmp_path, attn_implementation="eager").eval()
    with torch.no_grad():
        logits = theirs(torch.tensor([TOKENS])).logits[0]
    assert torch.equal(our_logits(tmp_path), saved)
    assert float((saved - logits).norm() / logits.norm()) <= BAR


def test_an_embedding_model_lets_tokens_see_those_that_follow(tmp_path: Path) -> None:
    """EmbeddingGemma: gemma3 without a head, both ways, its window halved."""
    config = transformers.Gemma3TextConfig(
        **TEXT, use_bidirectional_attention=True, sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    torch.manual_seed(3)
    model = transformers.Gemma3TextModel._from_config(config, attn_implementation="eager")
    model = model.float().eval()
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        hidden = model(torch.tensor([TOKENS])).last_hidden_state[0]
        theirs = hidden @ model.embed_tokens.weight.T
    ours = our_logits(tmp_path)
    assert float((ours - theirs).norm() / theirs.norm()) <= BAR
    assert json.loads((tmp_path / "config.json").read_text())["use_bidirectional_attention"]


DRAFTS = {
    # GLM-4.5's lie behind the layers, MiMo's beside them.
    "glm4moe": ("model.layers.3.eh_proj.weight", "model.layers.3.self_attn.q_proj.weight",
                "model.layers.3.mlp.experts.0.up_proj.weight"),
    "mimo": ("model.mtp.layers.0.eh_proj.weight", "model.mtp.layers.0.self_attn.q_proj.weight"),
}  # fmt: skip


@pytest.mark.parametrize("family", sorted(DRAFTS))
def test_layers_that_draft_tokens_are_left_out_and_told(family: str, tmp_path: Path) -> None:
    names = DRAFTS[family]
    model = save_tiny(TINY[family], tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({**load_file(file), **{name: torch.ones(4, 4) for name in names}}, file)
    with torch.no_grad():
        theirs = model(torch.tensor([TOKENS])).logits[0]
    assert float((our_logits(tmp_path) - theirs).norm() / theirs.norm()) <= BAR
    told = f"left out: {len(names)} tensors of layers that draft tokens"
    assert [note for note in open_model(tmp_path).notes if told in note and names[0] in note]
