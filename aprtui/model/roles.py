"""Names to roles: which tensor of a file plays which part, whatever naming scheme it uses.

Sources: specs/apr-format.md 2.2, Hugging Face checkpoints, llama.cpp's tensor names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from aprtui.formats.modelfile import TensorEntry
from aprtui.graph import Role

__all__ = ["RoleTable", "assign_roles", "role_of"]


@dataclass(frozen=True)
class RoleTable:
    """The tensors of one model by role, and what was noticed while sorting them."""

    entries: Mapping[Role, TensorEntry]
    gguf_names: bool  # the layers' tensors are named blk.N.*
    unknown: tuple[str, ...]  # tensors that play no part in the families' passes
    notes: tuple[str, ...]


_WHOLE = {
    "embed_tokens.weight": "embedding",
    "transformer.wte.weight": "embedding",
    "embeddings.word_embeddings.weight": "embedding",
    "tok_embeddings.weight": "embedding",
    "token_embd.weight": "embedding",
    "norm.weight": "final_norm",
    "transformer.ln_f.weight": "final_norm",
    "output_norm.weight": "final_norm",
    "lm_head.weight": "head",
    "output.weight": "head",
    "rope_freqs.weight": "rope_freqs",
}

# Suffixes behind "layers.N." or "blk.N."; both schemes may be mixed in one file.
_LAYER = {
    "input_layernorm.weight": "attn_norm",
    "attention_norm.weight": "attn_norm",
    "attn_norm.weight": "attn_norm",
    "self_attn.o_proj.weight": "o",
    "self_attn.o_proj.bias": "o_bias",
    "attention.wo.weight": "o",
    "attn_output.weight": "o",
    "attn_output.bias": "o_bias",
    "self_attn.qkv_proj.weight": "qkv",
    "self_attn.qkv_proj.bias": "qkv_bias",
    "attn_qkv.weight": "qkv",
    "attn_qkv.bias": "qkv_bias",
    "self_attn.q_norm.weight": "q_norm",
    "self_attn.k_norm.weight": "k_norm",
    "attn_q_norm.weight": "q_norm",
    "attn_k_norm.weight": "k_norm",
    "post_attention_layernorm.weight": "ffn_norm",
    "pre_feedforward_layernorm.weight": "ffn_norm",
    "ffn_norm.weight": "ffn_norm",
    "post_attention_norm.weight": "attn_post_norm",
    "post_feedforward_layernorm.weight": "ffn_post_norm",
    "post_ffw_norm.weight": "ffn_post_norm",
    "feed_forward.w1.weight": "gate",
    "feed_forward.w3.weight": "up",
    "feed_forward.w2.weight": "down",
    "mlp.gate.weight": "router",
    "block_sparse_moe.gate.weight": "router",
    "ffn_gate_inp.weight": "router",
    "ffn_gate_exps.weight": "expert_gate",
    "ffn_up_exps.weight": "expert_up",
    "ffn_down_exps.weight": "expert_down",
}
for _part in "qkv":
    for _kind, _role in (("weight", _part), ("bias", f"{_part}_bias")):
        _LAYER[f"self_attn.{_part}_proj.{_kind}"] = _role
        _LAYER[f"attn_{_part}.{_kind}"] = _role
    _LAYER[f"attention.w{_part}.weight"] = _part
for _part in ("gate", "up", "down"):
    _LAYER[f"mlp.{_part}_proj.weight"] = _part
    _LAYER[f"ffn_{_part}.weight"] = _part

_EXPERT: tuple[tuple[re.Pattern[str], dict[str, str]], ...] = (
    (re.compile(r"mlp\.experts\.(\d{1,5})\.(gate|up|down)_proj\.weight"), {}),
    (
        re.compile(r"block_sparse_moe\.experts\.(\d{1,5})\.(w1|w2|w3)\.weight"),
        {"w1": "gate", "w2": "down", "w3": "up"},
    ),
    (re.compile(r"ffn_()(gate|up|down)\.(\d{1,5})\.weight"), {}),
)
_BLOCK = re.compile(r"(?:(blk)|layers)\.(\d{1,5})\.(.+)")
_PREFIXES = ("language_model.model.", "model.language_model.", "language_model.", "model.")
_POST_NORM_FAMILIES = ("gemma2", "gemma3")
# Derived values that some checkpoints carry along; the pass computes them from the config.
_DERIVED = re.compile(r"rotary_emb\.inv_freq$|self_attn\.rotary_emb\.|attn_rot_embd")
_OTHER_TOWER = re.compile(
    r"^(vision_tower|model\.vision_tower|multi_modal_projector|visual)\.|^v\.|^mm\."
)


def _strip(name: str) -> str:
    for prefix in _PREFIXES:
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name


def role_of(name: str, architecture: str) -> Role | None:
    """The role that a tensor's name stands for, or None."""
    short = _strip(name)
    if short in _WHOLE:
        return Role(_WHOLE[short])
    block = _BLOCK.fullmatch(short)
    if block is None:
        return None
    layer, suffix = int(block[2]), block[3]
    if suffix == "post_attention_layernorm.weight" and architecture in _POST_NORM_FAMILIES:
        return Role("attn_post_norm", layer)
    if suffix in _LAYER:
        return Role(_LAYER[suffix], layer)
    for pattern, names in _EXPERT:
        if match := pattern.fullmatch(suffix):
            first, part, last = (*match.groups(), "")[:3]
            return Role(f"expert_{names.get(part, part)}", layer, int(first or last))
    return None


def assign_roles(tensors: Iterable[TensorEntry], architecture: str) -> RoleTable:
    """Sort a file's tensors by role.

    Of two heads the one in the naming scheme of the layers wins, and one with bytes over an empty
    placeholder (specs/apr-format.md 2.3). Raises nothing: doubles are noted, unknown ones listed.
    """
    entries: dict[Role, TensorEntry] = {}
    unknown: list[str] = []
    notes: list[str] = []
    listed = list(tensors)
    gguf_names = any(entry.name.startswith("blk.") for entry in listed)
    for entry in sorted(listed, key=lambda entry: _preference(entry, gguf_names)):
        role = role_of(entry.name, architecture)
        if role is None:
            if not _DERIVED.search(entry.name) and not _OTHER_TOWER.search(entry.name):
                unknown.append(entry.name)
        elif role in entries:
            notes.append(
                f"two tensors for {role}: {entries[role].name} is used, {entry.name} is not"
            )
        elif entry.size_bytes or role.name != "head":  # a head without bytes is the embedding
            entries[role] = entry
    return RoleTable(entries, gguf_names, tuple(sorted(unknown)), tuple(notes))


def _preference(entry: TensorEntry, gguf_names: bool) -> tuple[bool, bool, str]:
    """Sort key: tensors with bytes first, then those named as the layers are."""
    of_scheme = (entry.name == "output.weight") == gguf_names
    return (entry.size_bytes == 0, entry.name in ("output.weight", "lm_head.weight")
            and not of_scheme, entry.name)  # fmt: skip
