"""What Gemma 3n and 4 read alike: embeddings of the layers' own, and layers that have no keys and
values."""

from __future__ import annotations

from aprtui.families.classic import in_folder
from aprtui.families.decoder import SLIDING, Sizes
from aprtui.families.settings import Settings
from aprtui.families.tensors import Tensor, layer_tensor
from aprtui.graph import Role
from aprtui.graph.ops import Norm
from aprtui.graph.per_layer import PerLayer

__all__ = ["TENSORS", "read_per_layer", "read_sources"]

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


def read_sources(s: Settings, types: list[str], shared: int) -> list[int | None]:
    """Of each layer the one whose keys and values it reads, None for its own: so many of the last
    layers have none. Published files have tensors for them that nothing reads."""
    first = len(types) - shared
    if first < 1:
        raise s.fail(f"num_kv_shared_layers is {shared} of {len(types)} layers")
    found: list[int | None] = [None] * first
    for kind in types[first:]:
        if in_folder(s):
            near = [layer for layer in range(first) if types[layer] == kind]
        else:  # llama.cpp reads the last two, whatever they are
            near = [layer for layer in (first - (2 if kind == SLIDING else 1),)
                    if layer >= 0 and types[layer] == kind]  # fmt: skip
        if not near:
            raise s.fail(f"no layer has keys for the {kind} layers that share them")
        found.append(near[-1])
    without = range(first, len(types))
    s.unread_roles |= {Role(name, layer) for layer in without for name in _WITHOUT}
    s.say("kv_shared_layers", tuple(without))
    return found


def read_per_layer(
    s: Settings, sizes: Sizes, norm: Norm, activation: str, *, beyond: bool = False
) -> PerLayer | None:
    """None where the layers have no embedding of their own. ``beyond``: tokens may lie beyond its
    table, whose first row is theirs."""
    size = s.integer("hidden_size_per_layer_input", null=0)
    rows = s.shape("per_layer_embedding")
    if in_folder(s):
        stated = s.integer("vocab_size_per_layer_input")
    else:
        stated = rows[0] if rows is not None else sizes.vocab
    if not size:
        return None
    if stated < sizes.vocab and not beyond:
        raise s.fail(f"vocab_size_per_layer_input is {stated} of {sizes.vocab} tokens")
    return PerLayer(sizes.layers, size, stated, norm, activation)
