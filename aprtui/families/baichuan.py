"""Baichuan and Baichuan 2: llama's layers, turned by RoPE where there are 32 of them (7B), and with
ALiBi where there are 40 (13B); of GGUFs alone, which say no more of it."""

from __future__ import annotations

from dataclasses import replace

from aprtui.families import classic, decoder, internlm2
from aprtui.families.rope import read_rope
from aprtui.families.settings import Settings
from aprtui.graph import Graph

__all__ = ["FAMILY"]

_TURNED, _SLOPED = 32, 40


def build(s: Settings) -> Graph:
    sizes = decoder.read_sizes(s)
    if sizes.layers not in (_TURNED, _SLOPED):
        raise s.fail(
            f"num_layers is {sizes.layers}: baichuan's positions are RoPE's with {_TURNED} layers, "
            f"ALiBi's with {_SLOPED}, and no key of a GGUF says which"
        )
    ffn, activation = decoder.read_ffn(s), s.activation("hidden_act", "silu")
    table, sloped = read_rope(s, sizes.head_dim), sizes.layers == _SLOPED
    mask, biases = decoder.mask_of(decoder.read_causal(s), None), decoder.read_biases(s)
    decoder.read_tied(s)
    how = decoder.attention_of(
        s, sizes, table=None if sloped else table, mask=mask,
        alibi=classic.alibi(sizes.heads, from_last=True) if sloped else None, **biases,
    )  # fmt: skip
    return decoder.build_decoder(
        sizes, lambda layer: how, lambda b, x: b.gated_mlp(x, ffn, activation)
    )


FAMILY = replace(internlm2.FAMILY, build=build)
