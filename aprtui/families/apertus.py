"""Apertus: llama with a norm of each query and key head, and an FFN without a gate. Its activation,
xIELU, has learned numbers in each layer."""

from __future__ import annotations

import math
from functools import partial

from aprtui.families import decoder
from aprtui.families.family import Family
from aprtui.families.keys import only
from aprtui.families.rope import read_rope
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import (
    ATTENTION,
    DENSE,
    OUTPUT_BIAS,
    QK_NORM,
    QKV_BIAS,
    WHOLE,
    Table,
    Tensor,
    layer_tensor,
)
from aprtui.formats.tracedir import StageKey
from aprtui.graph import Graph, Role
from aprtui.graph.blocks import Builder
from aprtui.graph.ops import Xielu

__all__ = ["FAMILY"]

_HF = {
    "vocab_size": 131_072, "hidden_size": 4096, "intermediate_size": 14_336, "num_layers": 32,
    "num_heads": 32, "num_kv_heads": None, "hidden_act": "xielu", "max_positions": 65_536,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "rope_theta": 1.2e7,
    "attention_bias": False,
}  # fmt: skip
_NUMBERS = ("alpha_p", "alpha_n", "beta", "eps")
_TENSORS = (
    layer_tensor("attn_norm", "attention_layernorm.weight", "attn_norm.weight"),
    layer_tensor("ffn_norm", "feedforward_layernorm.weight", "ffn_norm.weight"),
    *(
        Tensor(f"xielu_{name}", (f"layers.{{layer}}.mlp.act_fn.{name}",), constant=True)
        for name in _NUMBERS
    ),
)


def _stored(s: Settings, name: str, layer: int) -> float:
    """One number of a layer's activation: GGUF has lists of them, the folder tensors."""
    if s.file.format == "gguf":
        stated = s.file.metadata.get(f"xielu.{name}", ())
        values = [stated] * (layer + 1) if isinstance(stated, float) else stated  # one for all
        found = [float(values[layer])] if len(values) > layer else []
    else:
        found = list(s.constants.get(Role(f"xielu_{name}", layer), ()))
    if len(found) != 1 or not math.isfinite(found[0]) or abs(found[0]) > 1e3:
        raise s.fail(f"layer {layer} has no {name} of its xIELU, or not one number")
    return found[0]


def _activations(s: Settings, layers: int) -> list[Xielu]:
    """Each layer's: the slopes are stored before their softplus."""
    made = []
    for layer in range(layers):
        positive, negative, beta, eps = (_stored(s, name, layer) for name in _NUMBERS)
        soft = [max(x, 0.0) + math.log1p(math.exp(-abs(x))) for x in (positive, negative)]
        made.append(Xielu(soft[0], beta + soft[1], beta, eps))
    for name in ("positive", "negative", "beta", "eps"):
        s.say(f"xielu_{name}", tuple(getattr(each, name) for each in made))
    return made


def build(s: Settings) -> Graph:
    sizes = decoder.read_sizes(s)
    ffn = decoder.read_ffn(s)
    s.must_be("hidden_act", ("xielu",), "another activation")
    acts = _activations(s, sizes.layers)
    if s.file.format == "safetensors" and not (
        s.take("rope_parameters", None) or s.take("rope_scaling", None)
    ):  # transformers then has a table of its own, whatever rope_theta says
        raise s.fail("the file has neither rope_parameters nor rope_scaling")
    table, mask = read_rope(s, sizes.head_dim), decoder.mask_of(decoder.read_causal(s), None)
    biases = decoder.read_biases(s)
    decoder.read_tied(s)
    how = decoder.attention_of(s, sizes, table=table, mask=mask, norms=sizes.norm(), **biases)
    return decoder.build_decoder(sizes, lambda layer: how, partial(_ffn, size=ffn, acts=acts))


def _ffn(b: Builder, x: StageKey, size: int, acts: list[Xielu]) -> StageKey:
    return b.plain_mlp(x, size, acts[b.layer or 0])


FAMILY = Family(
    Table((*WHOLE, *_TENSORS, *ATTENTION, *QKV_BIAS, *OUTPUT_BIAS, *QK_NORM, *DENSE[1:])),
    build,
    Defaults(hf=_HF, gguf={"rope_theta": 1e4}, apr={"rope_theta": 1.2e7, "rms_norm_eps": 1e-5}),
    published={"post_norm": only(False), "qk_norm": only(True)},
)
