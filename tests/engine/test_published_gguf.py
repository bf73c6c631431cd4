"""GGUFs as people download them: keys of published files over the tensors of small ones.

tests/fixtures/published_gguf.json: the architecture's keys of a published file, ``seen`` in the
listing of an issue thread (llama_model_loader: - kv), else those that llama.cpp's converter of
v0.5.0 writes (checked against its source), but of ollama, TheBloke and first conversions, whose
converters were others: from memory. Lists cut. ``of``: the small file whose sizes and tensors it
gets here, a family's of shared/fixtures or one that numpy draws; ``tensors``: what the published
one has besides.
tests/fixtures/llamacpp/published.npz: libllama v0.5.0's logits of the last position on those files
(CPU, F32 cache, one batch; what it does not load otherwise: without towers, the experts of a layer
as one tensor).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from aprtui.errors import BadFileError
from aprtui.model.open import open_model
from tests.engine.mutations import our_logits
from tests.engine.written import write_drawn
from tests.gguf_keys import with_keys
from tests.support import FIXTURES, SMALL, needs_fixtures

Array = npt.NDArray[Any]

BAR = 1e-5  # docs/numerics.md 1
GELU_BAR = 2e-3  # ggml reads GELU from a table of 16-bit floats
GELU = re.compile(r"gemma|phi$|gpt2|gpt_|falcon$|bloom|mpt")
NO_EPSILON = "qwen2vl"  # whose epsilon libllama v0.5.0 does not read: it has 0 (print_info)
PUBLISHED: dict[str, dict[str, Any]] = json.loads((SMALL / "published_gguf.json").read_text())
_SIZES = re.compile(
    r"block_count|embedding_length.*|feed_forward_length|vocab_size|full_attention_interval"
    r"|attention\.(head_count.*|(key|value)_length.*|sliding_window.*|.*_lora_rank|shared_kv_layers)"
    r"|attention\.recurrent_layers"
    r"|expert_(.*count|.*feed_forward_length)|leading_dense_block_count|rope\.dimension_.*"
    r"|ssm\.(?!dt).*|shortconv\.l_cache|altup\..*|activation_sparsity_scale|nextn_predict_layers"
    r"|interleave_moe_layer_step"
)


HIDDEN, INNER, HEADS, KEYS, TOKENS_KNOWN, EXPERTS = 32, 48, 4, 2, 96, 8
DRAWN = {
    "llama": (8, 3), "qwen2": (8, 3), "qwen2vl": (8, 3), "qwen3": (16, 3), "qwen3moe": (16, 3),
    "gemma3": (16, 7),
}  # fmt: skip
"""Channels of a head and layers of what numpy draws."""


def _shapes(arch: str) -> dict[str, tuple[int, ...]]:
    """The tensors of a layer, without their ending."""
    size = DRAWN[arch][0]
    queries, keys = HEADS * size, KEYS * size
    found: dict[str, tuple[int, ...]] = {
        "attn_norm": (HIDDEN,), "ffn_norm": (HIDDEN,), "attn_output": (HIDDEN, queries),
        "attn_q": (queries, HIDDEN), "attn_k": (keys, HIDDEN), "attn_v": (keys, HIDDEN),
    }  # fmt: skip
    experts, ending = ((EXPERTS,), "_exps") if arch == "qwen3moe" else ((), "")
    for part in ("gate", "up"):
        found[f"ffn_{part}{ending}"] = (*experts, INNER, HIDDEN)
    found[f"ffn_down{ending}"] = (*experts, HIDDEN, INNER)
    if experts:
        found["ffn_gate_inp"] = (EXPERTS, HIDDEN)
    if arch in ("qwen3", "qwen3moe", "gemma3"):
        found |= {"attn_q_norm": (size,), "attn_k_norm": (size,)}
    if arch == "gemma3":
        found |= {"post_attention_norm": (HIDDEN,), "post_ffw_norm": (HIDDEN,)}
    return found


@cache
def _drawn(arch: str, folder: Path) -> Path:
    """A file of an architecture of which the shared fixtures hold none so small."""
    size, layers = DRAWN[arch]
    keys: dict[str, Any] = {
        "block_count": layers, "embedding_length": HIDDEN, "feed_forward_length": INNER,
        "attention.head_count": HEADS, "attention.head_count_kv": KEYS,
        "attention.sliding_window": 4, "expert_count": EXPERTS, "expert_used_count": 2,
        "expert_feed_forward_length": INNER, "vocab_size": TOKENS_KNOWN,
        "rope.dimension_count": size, "attention.key_length": size, "attention.value_length": size,
        "rope.dimension_sections": [2, 1, 1, 0],
    }  # fmt: skip
    table = (TOKENS_KNOWN, HIDDEN)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": table, "output.weight": table, "output_norm.weight": (HIDDEN,),
    }  # fmt: skip
    for layer in range(layers):
        shapes |= {f"blk.{layer}.{name}.weight": shape for name, shape in _shapes(arch).items()}
        if arch.startswith("qwen2"):
            biases = {f"blk.{layer}.attn_{p}.bias": (HEADS * size,) for p in "q"}
            shapes |= biases | {f"blk.{layer}.attn_{p}.bias": (KEYS * size,) for p in "kv"}
    return write_drawn(folder / f"{arch}.gguf", arch, keys, shapes)


class _Small:
    """The small file that a published one is made of: its keys, its tensors as numpy has them."""

    def __init__(self, path: Path) -> None:
        reader = gguf.GGUFReader(path)
        prefix = f"{reader.fields['general.architecture'].contents()}."
        self.keys: dict[str, Any] = {
            key.removeprefix(prefix): field.contents()
            for key, field in reader.fields.items()
            if key.startswith(prefix)
        }
        self.tensors: dict[str, Array] = {
            each.name: each.data for each in reader.tensors if each.tensor_type == 0
        }
        heads = self.keys.get("attention.head_count", 0)
        self.heads = heads[0] if isinstance(heads, list) else heads
        hidden = self.keys["embedding_length"]
        key = self.keys.get("attention.key_length") or (hidden // self.heads if self.heads else 0)
        self.derived = {
            "vocab_size": next(int(t.shape[1]) for t in reader.tensors if "token_embd" in t.name),
            "rope.dimension_count": key,
            "attention.key_length": key,
            "attention.value_length": key,
            "attention.head_count_kv": self.heads,
        }
        self.odd = bool(self.heads) and key * self.heads != hidden
        self.bare = "tokenizer.ggml.tokens" not in reader.fields

    def keys_of(self, published: Mapping[str, Any]) -> dict[str, Any]:
        """Published keys at this file's sizes."""
        found = {
            key: self.keys.get(key, self.derived.get(key, value))
            if _SIZES.fullmatch(key)
            else value
            for key, value in published.items()
        }
        if self.odd:  # the published heads divide the width
            widths = ("attention.key_length", "attention.value_length")
            found |= {key: self.keys[key] for key in widths if key in self.keys}
        if self.bare:  # llama.cpp counts the tokens' texts
            found["vocab_size"] = self.keys["vocab_size"]
        if any("position_embd" in name for name in self.tensors):
            found["context_length"] = self.keys["context_length"]
        return found


@cache
def _small(path: Path) -> _Small:
    return _Small(path)


def _freqs(small: _Small, keys: dict[str, Any]) -> dict[str, Array]:
    pairs = keys.get("rope.dimension_count", small.derived["rope.dimension_count"]) // 2
    return {"rope_freqs.weight": np.linspace(1, 8, pairs, dtype=np.float32)}


def _factors(small: _Small, keys: dict[str, Any]) -> dict[str, Array]:
    pairs = keys["rope.dimension_count"] // 2
    return {
        f"rope_factors_{name}.weight": np.linspace(1, most, pairs, dtype=np.float32)
        for name, most in (("short", 1.3), ("long", 9))
    }


def _towers(small: _Small, keys: dict[str, Any]) -> dict[str, Array]:
    names = ("v.blk.0.attn_q", "mm.input_projection", "a.blk.0.attn_q")
    return {f"{name}.weight": np.ones((4, 4), np.float32) for name in names}


def _narrow(small: _Small, keys: dict[str, Any]) -> dict[str, Array]:
    """Latents of another width than keys, as published ones are."""
    old, new = small.keys["attention.kv_lora_rank"], small.keys["attention.kv_lora_rank"] - 4
    turned = small.keys["rope.dimension_count"]
    keys |= {"attention.kv_lora_rank": new, "attention.key_length": new + turned,
             "attention.value_length": new}  # fmt: skip
    made: dict[str, Array] = {}
    for name, values in small.tensors.items():
        if "attn_kv_a_mqa" in name:
            made[name] = np.concatenate([values[:new], values[old:]])
        elif "attn_kv_a_norm" in name:
            made[name] = values[:new]
        elif "attn_k_b" in name:
            made[name] = np.ascontiguousarray(values[:, :new])
        elif "attn_v_b" in name:
            made[name] = np.ascontiguousarray(values[..., :new])
    return made


def _unsplit(small: _Small, keys: dict[str, Any]) -> dict[str, Array]:
    """Keys and values of a latent as one tensor, as files were before llama.cpp's MLA."""
    keys |= {
        "attention.head_count_kv": small.heads,
        "attention.key_length": small.keys["attention.key_length_mla"],
        "attention.value_length": small.keys["attention.value_length_mla"],
    }
    made: dict[str, Array] = {}
    for name, values in small.tensors.items():
        if "attn_k_b" in name:
            of_values = small.tensors[name.replace("attn_k_b", "attn_v_b")]
            both = np.concatenate([values.swapaxes(1, 2), of_values], 1)
            made[name.replace("attn_k_b", "attn_kv_b")] = both.reshape(-1, both.shape[-1]).copy()
    return made


def _draft(small: _Small, keys: dict[str, Any]) -> dict[str, Array]:
    """A layer behind the others that drafts tokens, made of the last one's tensors."""
    layers, hidden = small.keys["block_count"], small.keys["embedding_length"]
    keys |= {"block_count": layers + 1, "nextn_predict_layers": 1}
    linear = "attention.recurrent_layers"
    if linear in keys:
        keys[linear] = [*small.keys[linear], False]
    last, own = f"blk.{layers - 1}.", f"blk.{layers}."
    made = {name.replace(last, own): v for name, v in small.tensors.items() if last in name}
    ones = np.ones((hidden, 2 * hidden), np.float32)
    norms = dict.fromkeys((f"{own}nextn.{n}norm.weight" for n in "eh"), ones[0, :hidden])
    return {**made, **norms, f"{own}nextn.eh_proj.weight": ones}


def _experts(small: _Small, keys: dict[str, Any]) -> dict[str, Array]:
    """Each expert's matrices as tensors of their own, as Mixtral's were at first."""
    hidden = small.keys["embedding_length"]
    made: dict[str, Array] = {}
    for layer in range(small.keys["block_count"]):
        turned = np.arange(EXPERTS * hidden).reshape(EXPERTS, hidden)
        made[f"blk.{layer}.ffn_gate_inp.weight"] = np.cos(turned).astype(np.float32)
        for part in ("gate", "up", "down"):
            values = small.tensors[f"blk.{layer}.ffn_{part}.weight"]
            for expert in range(EXPERTS):
                rolled = np.roll(values, expert, axis=0)
                made[f"blk.{layer}.ffn_{part}.{expert}.weight"] = rolled
    return made


_MADE = {
    "freqs": _freqs, "factors": _factors, "towers": _towers, "narrow": _narrow,
    "unsplit": _unsplit, "draft": _draft, "experts": _experts,
}  # fmt: skip
_GONE = {"unsplit": r"attn_[kv]_b\.", "experts": r"ffn_(gate|up|down)\.weight"}


def made(name: str, folder: Path, *, towers: bool = True) -> Path:
    """The published file at the small one's sizes."""
    published = PUBLISHED[name]
    of = published["of"]
    source = _drawn(of, folder.parent) if of in DRAWN else FIXTURES / f"families/{of}/model.gguf"
    small = _small(source)
    keys = small.keys_of(published["keys"])
    tensors: dict[str, Array] = {}
    besides = [kind for kind in published.get("tensors", ()) if towers or kind != "towers"]
    for kind in besides:
        tensors |= _MADE[kind](small, keys)
    gone = "|".join(_GONE[kind] for kind in besides if kind in _GONE)
    absent = {key: None for key in small.keys if key not in keys}
    path = folder / "model.gguf"
    return with_keys(source, path, {**absent, **keys}, tensors, without=gone or None)


@needs_fixtures
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_file_is_computed_as_llama_cpp_does(name: str, tmp_path: Path) -> None:
    ours = our_logits(made(name, tmp_path))[-1].double().numpy()
    with np.load(SMALL / "llamacpp" / "published.npz") as recorded:
        theirs = recorded[name].astype(np.float64)
    of = PUBLISHED[name]["of"]
    bar = GELU_BAR if GELU.search(of) else 10 * BAR if of == NO_EPSILON else BAR
    assert np.linalg.norm(ours - theirs) / np.linalg.norm(theirs) <= bar


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "a reranker": ("unsloth Qwen3-0.6B", {"pooling_type": 4}, "_type = 4 .* makes one score"),
    "shared experts of a family without": (
        "Qwen3-Coder-480B-A35B-Instruct", {"expert_shared_feed_forward_length": 64},
        "expert_shared_feed_forward_length = 64",
    ),
    "chunks that llama.cpp does not read": (
        "ollama llama4:scout", {"attention.chunk_size": 4}, "chunks are of another size",
    ),
    "ollama's bases of Gemma 3": (
        "ollama gemma3:27b-it-qat", {"rope.global.freq_base": 1e6}, "rope.global.freq_base",
    ),
    "Falcon-H1 of its makers' own llama.cpp": (
        "Falcon-H1-7B-Instruct", {"mlp_gate_multiplier": 0.176777, "mamba_rms_norm": True},
        "mlp_gate_multiplier",
    ),
    "draft layers that are not there": (
        "Qwen2.5-1.5B-Instruct", {"nextn_predict_layers": 1}, "plays no part",
    ),
}  # fmt: skip


@needs_fixtures
@pytest.mark.parametrize("case", REFUSED)
def test_a_key_that_says_something_else_than_is_computed_is_refused(
    case: str, tmp_path: Path
) -> None:
    name, keys, told = REFUSED[case]
    path = made(name, tmp_path)
    with pytest.raises(BadFileError, match=told):
        open_model(with_keys(path, tmp_path / "other.gguf", keys))


@needs_fixtures
def test_factors_of_longrope_are_refused_where_llama_cpp_loads_none(tmp_path: Path) -> None:
    path = made("Qwen2.5-1.5B-Instruct", tmp_path)
    factors = _factors(_Small(path), {"rope.dimension_count": 8})
    with pytest.raises(BadFileError, match=r"llama\.cpp does not load such a file"):
        open_model(with_keys(path, tmp_path / "other.gguf", {}, factors))
