"""GLM-4-0414: glm with a norm after each branch too."""

from __future__ import annotations

from aprtui.families import glm
from aprtui.families.decoder import Frame
from aprtui.families.family import Family
from aprtui.families.rope import turns_by_axes
from aprtui.families.settings import Settings
from aprtui.families.tensors import Table, layer_tensor
from aprtui.graph import Graph

__all__ = ["FAMILY"]

_POST_NORMS = (
    layer_tensor("attn_post_norm", "post_self_attn_layernorm.weight", "post_attention_norm.weight"),
    layer_tensor("ffn_post_norm", "post_mlp_layernorm.weight", "post_ffw_norm.weight"),
)


def build(s: Settings) -> Graph:
    if turns_by_axes(s):  # llama.cpp's converter then makes halves of the neighbours that turn
        s.adjacent_rows = False
    return glm.build_framed(s, Frame(after=True))


FAMILY = Family(Table((*glm.TENSORS, *_POST_NORMS)), build, glm.DEFAULTS, adjacent=True)
