"""Small random models as files: Hugging Face folders, and ``.apr`` files under GGUF names.

The GGUF side is made by llama.cpp's conversion rules (convert_hf_to_gguf.py): q and k rows of
llama-family models are permuted per head, gemma norms are stored as 1 + w, experts are packed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from aprtui.formats.apr_write import OutgoingTensor, write_apr

Float32 = npt.NDArray[np.float32]
HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FFN, VOCAB, LAYERS, EXPERTS = 64, 4, 2, 16, 96, 80, 2, 4

_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate.": "ffn_gate_inp.",
    "model.layers.": "blk.",
}
_HF_NAMES = {
    "qwen3moe": "qwen3_moe",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
}


@dataclass
class SmallModel:
    """Weights under Hugging Face names, in its row order, as float32."""

    family: str
    tensors: dict[str, Float32]
    config: dict[str, Any] = field(default_factory=dict)

    def folder(self, path: Path) -> Path:
        path.mkdir()
        said = {_HF_NAMES.get(key, key): value for key, value in self.config.items()}
        said |= {"model_type": _HF_NAMES.get(self.family, self.family)}
        said |= {"tie_word_embeddings": "lm_head.weight" not in self.tensors}
        (path / "config.json").write_text(json.dumps(said))
        save_file(self.tensors, path / "model.safetensors")
        return path

    def apr(self, path: Path, tensors: Mapping[str, Float32] | None = None) -> Path:
        """An ``.apr`` file with Hugging Face names, or of ``tensors`` as they are."""
        chosen = self.tensors if tensors is None else tensors
        metadata = {"model_type": self.family, "architecture": self.family, **self.config}
        outgoing = [
            OutgoingTensor(name, "F32", values.shape, lambda v=values: [v.tobytes()])  # type: ignore[misc]
            for name, values in chosen.items()
        ]
        write_apr(path, metadata, outgoing)
        return path

    def gguf_tensors(self) -> dict[str, Float32]:
        """The weights as llama.cpp's converter leaves them."""
        found: dict[str, Float32] = {}
        packed: dict[str, list[Float32]] = {}
        for name, values in self.tensors.items():
            for part, heads in (("q_proj", HEADS), ("k_proj", KV_HEADS)):
                if self.family == "llama" and part in name:
                    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, -1)
                    values = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))
            if self.family == "gemma" and "norm" in name:
                values = values + np.float32(1)
            if ".experts." in name:
                layer, part = name.split(".")[2], name.split(".")[-2].removesuffix("_proj")
                packed.setdefault(f"blk.{layer}.ffn_{part}_exps.weight", []).append(values)
                continue
            for old, new in _NAMES.items():
                name = name.replace(old, new)
            found[name] = values
        return found | {name: np.stack(parts) for name, parts in packed.items()}


def small_model(family: str = "llama", *, tied: bool = False, seed: int = 1) -> SmallModel:
    """A model of 2 layers with seeded normal weights."""
    random = np.random.default_rng(seed)

    def normal(*shape: int) -> Float32:
        return random.standard_normal(shape).astype(np.float32)

    tensors = {"model.embed_tokens.weight": normal(VOCAB, HIDDEN)}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        rows = {"q": HEADS * HEAD_DIM, "k": KV_HEADS * HEAD_DIM, "v": KV_HEADS * HEAD_DIM}
        for part, size in rows.items():
            tensors[f"{at}self_attn.{part}_proj.weight"] = normal(size, HIDDEN)
        tensors[f"{at}self_attn.o_proj.weight"] = normal(HIDDEN, HEADS * HEAD_DIM)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{at}{norm}.weight"] = normal(HIDDEN)
        if family == "qwen3moe":
            tensors[f"{at}self_attn.q_norm.weight"] = normal(HEAD_DIM)
            tensors[f"{at}self_attn.k_norm.weight"] = normal(HEAD_DIM)
            tensors[f"{at}mlp.gate.weight"] = normal(EXPERTS, HIDDEN)
        where = [f"experts.{e}." for e in range(EXPERTS)] if family == "qwen3moe" else [""]
        for place in where:
            tensors[f"{at}mlp.{place}gate_proj.weight"] = normal(FFN, HIDDEN)
            tensors[f"{at}mlp.{place}up_proj.weight"] = normal(FFN, HIDDEN)
            tensors[f"{at}mlp.{place}down_proj.weight"] = normal(HIDDEN, FFN)
    tensors["model.norm.weight"] = normal(HIDDEN)
    if not tied:
        tensors["lm_head.weight"] = normal(VOCAB, HIDDEN)
    config = {
        "hidden_size": HIDDEN, "num_layers": LAYERS, "num_heads": HEADS, "num_kv_heads": KV_HEADS,
        "vocab_size": VOCAB, "intermediate_size": FFN, "head_dim": HEAD_DIM,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    }  # fmt: skip
    if family == "qwen3moe":
        config |= {"num_experts": EXPERTS, "num_experts_per_tok": 2, "norm_topk_prob": True}
        config["moe_intermediate_size"] = FFN
    return SmallModel(family, tensors, config)
