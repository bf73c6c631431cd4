"""Ministral 3: mistral with YaRN, and queries that are multiplied by a temperature of their
position."""

from __future__ import annotations

from aprtui.families import decoder
from aprtui.families.family import Family
from aprtui.families.rope import (
    YARN_BETAS,
    YARN_SHARE,
    original_positions,
    read_rope,
    rope_object,
)
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import ATTENTION, DENSE, PRE_NORMS, WHOLE, Table
from aprtui.graph import Graph
from aprtui.graph.ops import Temperature

__all__ = ["FAMILY"]

_HF = {
    "vocab_size": 131_072, "hidden_size": 4096, "intermediate_size": 14_336, "num_layers": 34,
    "num_heads": 32, "num_kv_heads": 8, "head_dim": 128, "hidden_act": "silu",
    "max_positions": 262_144, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    "rope_theta": 1e4, "sliding_window": None,
}  # fmt: skip
_ROPE = {
    "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "beta_fast": 32.0, "beta_slow": 1.0,
    "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 16_384,
    "llama_4_scaling_beta": 0.1,
}  # fmt: skip
_STRENGTH = "llama_4_scaling_beta"
_BESIDE = (_STRENGTH, "max_position_embeddings")  # of the object; the second is read by nothing


def _temperature(s: Settings) -> Temperature | None:
    """It grows at each multiple of the positions of the first training."""
    if s.file.format == "safetensors":
        keys = rope_object(s, _ROPE)
        strength = keys.get(_STRENGTH)
        if isinstance(strength, bool) or not isinstance(strength, int | float):
            raise s.fail(f"{_STRENGTH} of rope_parameters is {strength!r:.60}, not a number")
        span = original_positions(s, keys)
    else:
        strength = s.number("attention.temperature_scale", 0.0)
        span = s.integer("rope.scaling.original_context_length", s.values["max_positions"])
    if strength and not span:
        raise s.fail("rope.scaling.original_context_length is 0: the temperature grows by it")
    s.say("query_temperature", float(strength))
    return Temperature(float(strength), float(span)) if strength else None


def build(s: Settings) -> Graph:
    sizes = decoder.read_sizes(s)
    ffn, activation = decoder.read_ffn(s), s.activation("hidden_act", "silu")
    table = read_rope(s, sizes.head_dim, absent=_ROPE, beside=_BESIDE)
    windows, causal = decoder.all_windows(s, sizes.layers), decoder.read_causal(s)
    temperature = _temperature(s)
    decoder.read_tied(s)
    return decoder.build_decoder(
        sizes,
        lambda layer: decoder.attention_of(
            s, sizes, table=table, mask=decoder.mask_of(causal, windows[layer]),
            temperature=temperature,
        ),
        lambda b, x: b.gated_mlp(x, ffn, activation),
    )  # fmt: skip


FAMILY = Family(
    Table((*WHOLE, *PRE_NORMS, *ATTENTION, *DENSE)),
    build,
    Defaults(
        hf=_HF,
        gguf={"rope_theta": 1e4, YARN_SHARE: 0.0, **YARN_BETAS},
        apr={"rope_theta": 1e6, "rms_norm_eps": 1e-5},
    ),
    adjacent_in_gguf=True,
)
