"""What Gemma 3n and 4 read alike: embeddings of the layers' own, and layers that have no keys and
values."""

from __future__ import annotations

from collections.abc import Sequence

from aprtui.families.classic import in_folder
from aprtui.families.decoder import Sizes
from aprtui.families.settings import Settings
from aprtui.families.tensors import Tensor, layer_tensor
from aprtui.graph import Role
from aprtui.graph.ops import Norm
from aprtui.graph.per_layer import PerLayer

__all__ = ["TENSORS", "leave_shared", "read_per_layer"]

TENSORS = (
    Tensor("per_layer_embedding", (
        "embed_tokens_per_layer.weight", "per_layer_token_embd.weight",
    )),
    Tensor("per_layer_projection", (
        "per_layer_model_projection.weight", "per_layer_model_proj.weight",
    )),
    Tensor("per_layer_norm", (
        "per_layer_projection_norm.weight", "per_layer_proj_norm.weight",
    )),
    layer_tensor("per_layer_gate", "per_layer_input_gate.weight", "inp_gate.weight"),
    layer_tensor("per_layer_out", "per_layer_projection.weight", "proj.weight"),
    layer_tensor("per_layer_post_norm", "post_per_layer_input_norm.weight", "post_norm.weight"),
)  # fmt: skip
_WITHOUT = ("k", "v", "k_norm", "k_bias", "v_bias")


def leave_shared(s: Settings, sources: Sequence[int | None]) -> None:
    """Published files have tensors for keys and values that nothing reads."""
    shared = [layer for layer, source in enumerate(sources) if source is not None]
    s.unread_roles |= {Role(name, layer) for layer in shared for name in _WITHOUT}
    s.say("kv_shared_layers", tuple(shared))


def read_per_layer(s: Settings, sizes: Sizes, norm: Norm, activation: str) -> PerLayer | None:
    """None where the layers have no embedding of their own."""
    size = s.integer("hidden_size_per_layer_input", null=0)
    rows = s.shape("per_layer_embedding")
    if in_folder(s):
        stated = s.integer("vocab_size_per_layer_input")
    else:
        stated = rows[0] if rows is not None else sizes.vocab
    if not size:
        return None
    if stated < sizes.vocab:
        raise s.fail(f"vocab_size_per_layer_input is {stated} of {sizes.vocab} tokens")
    return PerLayer(sizes.layers, size, stated, norm, activation)
