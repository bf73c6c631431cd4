"""The text part of Qwen3-VL: qwen3 without windows; its RoPE by sections has one position a token
where there is only text, and what pictures add to the stream (deepstack) text has not."""

from __future__ import annotations

from dataclasses import replace

from aprtui.families import decoder
from aprtui.families.classic import in_folder
from aprtui.families.family import Family
from aprtui.families.rope import read_rope, rope_object
from aprtui.families.rope_kinds import STILL
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import (
    ATTENTION,
    DENSE,
    OUTPUT_BIAS,
    PRE_NORMS,
    QK_NORM,
    QKV_BIAS,
    WHOLE,
    Table,
)
from aprtui.graph import Graph
from aprtui.graph.blocks import Attention
from aprtui.graph.rope import RopeTable

__all__ = ["FAMILY", "TENSORS", "read_attention"]

_HF = {
    "vocab_size": 151_936, "hidden_size": 4096, "intermediate_size": 22_016, "num_layers": 32,
    "num_heads": 32, "num_kv_heads": 32, "head_dim": 128, "hidden_act": "silu",
    "max_positions": 128_000, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
    "rope_theta": 5e5, "attention_bias": False,
}  # fmt: skip
_AXES = 3  # of a picture's positions: time, height and width


def _whole(found: object, least: int) -> bool:
    return isinstance(found, list) and len(found) >= least and all(type(n) is int for n in found)


def _by_sections(s: Settings, table: RopeTable) -> RopeTable:
    """As llama.cpp turns text: pairs take the axes in turn, as many as each axis has of them, and
    what is left goes by a fourth position, which of text is 0. transformers turns those too."""
    sections = s.take("rope.dimension_sections")
    pairs = table.dims // 2
    if not _whole(sections, _AXES + 1) or len(sections) > _AXES + 1 or min(sections) < 0:
        raise s.fail(f"rope.dimension_sections is {sections!r:.60}, not 4 numbers of pairs")
    if not any(sections[:_AXES]) or sum(sections) > table.dims:
        raise s.fail(f"rope.dimension_sections is {sections} for {pairs} pairs of channels")
    places = [pair % sum(sections) for pair in range(pairs)]
    still = [place >= _AXES * sections[place % _AXES] for place in places]
    if not any(still):
        return table
    s.note(
        f"rope.dimension_sections leaves {sum(still)} of {pairs} pairs of channels without an "
        "axis: they do not turn, as in llama.cpp; transformers turns them"
    )
    divisors = zip(table.divisors or (1.0,) * pairs, still, strict=True)
    return replace(table, divisors=tuple(STILL if rests else each for each, rests in divisors))


def read_attention(s: Settings, sizes: decoder.Sizes) -> Attention:
    """Attention of all layers alike."""
    if in_folder(s):
        sections = rope_object(s).get("mrope_section", [1] * _AXES)
        if not _whole(sections, _AXES):
            raise s.fail(f"mrope_section is {sections!r:.60}, not 3 numbers of pairs")
        table = read_rope(s, sizes.head_dim, beside=("mrope_section", "mrope_interleaved"))
    else:
        s.integer("n_deepstack_layers", 0)
        table = _by_sections(s, read_rope(s, sizes.head_dim))
    mask, biases = decoder.mask_of(decoder.read_causal(s), None), decoder.read_biases(s)
    return decoder.attention_of(s, sizes, table=table, mask=mask, norms=sizes.norm(), **biases)


def build(s: Settings) -> Graph:
    sizes = decoder.read_sizes(s, nulls=("num_kv_heads",))
    ffn, activation = decoder.read_ffn(s), s.activation("hidden_act", "silu")
    how = read_attention(s, sizes)
    decoder.read_tied(s)
    return decoder.build_decoder(
        sizes, lambda layer: how, lambda b, x: b.gated_mlp(x, ffn, activation)
    )


TENSORS = (*WHOLE, *PRE_NORMS, *ATTENTION, *QKV_BIAS, *OUTPUT_BIAS, *QK_NORM)
FAMILY = Family(Table((*TENSORS, *DENSE)), build, Defaults(hf=_HF, gguf={"rope_theta": 1e4}))
