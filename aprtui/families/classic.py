"""What the families before Llama share: LayerNorms, products with biases, an FFN without a gate,
positions that are learned or ALiBi's."""

from __future__ import annotations

import math
from dataclasses import replace

from aprtui.families.decoder import Sizes
from aprtui.families.rope import read_rope
from aprtui.families.settings import Settings
from aprtui.families.tensors import Tensor, layer_tensor
from aprtui.graph import Role
from aprtui.graph.ops import Alibi, Norm
from aprtui.graph.rope import RopeTable

__all__ = [
    "alibi", "both", "fused", "in_folder", "layer_norm", "pass_over", "read_ffn",
    "read_part_rope", "read_real",
]  # fmt: skip


def in_folder(s: Settings) -> bool:
    """Whether the keys are those of a config.json."""
    return s.file.format == "safetensors"


def both(role: str, *modules: str) -> tuple[Tensor, Tensor]:
    """A layer's weight and its bias, by the names of the modules that have them."""
    return (
        layer_tensor(role, *(f"{name}.weight" for name in modules)),
        layer_tensor(f"{role}_bias", *(f"{name}.bias" for name in modules)),
    )


def fused(module: str, *, by_head: bool = False, transposed: bool = False) -> tuple[Tensor, ...]:
    """Q, K and V and their biases in one tensor each: Hugging Face's module, where rows may stand
    head by head or the matrix transposed, and llama.cpp's, where they do not."""
    parts, biases = ("q", "k", "v"), ("q_bias", "k_bias", "v_bias")
    how = {"by_head": by_head, "transposed": transposed}
    return (
        layer_tensor("fused_qkv", f"{module}.weight", holds=parts, **how),
        layer_tensor("fused_qkv_bias", f"{module}.bias", holds=biases, by_head=by_head),
        layer_tensor("qkv", "attn_qkv.weight", holds=parts),
        layer_tensor("qkv_bias", "attn_qkv.bias", holds=biases),
    )


def pass_over(s: Settings, *names: str, null: bool = True) -> None:
    """Keys that published folders state and transformers' model reads nowhere; ``null``: whether
    its configuration takes that for a value of theirs."""
    for name in names:
        if s.take(name, None) is None and s.has(name) and not null:
            raise s.fail(f"{s.label(name)} is null, which is no value of it")


def read_real(s: Settings, name: str) -> float:
    """A number that transformers takes with a point alone, not a whole one."""
    if type(s.take(name)) is not float:
        raise s.fail(f"{s.label(name)} is {s.take(name)!r:.60}, not a number with a point")
    return float(s.number(name))


def layer_norm(sizes: Sizes, *, biased: bool = True) -> Norm:
    """A LayerNorm; weight and bias are set where it is placed."""
    return replace(sizes.norm(), centred=True, bias=Role("bias") if biased else None)


def read_ffn(s: Settings, name: str, hidden: int) -> int:
    """F from config.json's key ``name``, where null is 4 H; else from llama.cpp's."""
    if in_folder(s):
        return int(s.say("intermediate_size", s.integer(name, null=4 * hidden)))
    return int(s.integer("intermediate_size"))


def read_part_rope(s: Settings, head_dim: int) -> RopeTable:
    """The table of a family that turns a part of each head, a share that is never null."""
    if in_folder(s) and s.take("partial_rotary_factor") is None:
        raise s.fail("partial_rotary_factor is null, which is no value of it")
    return read_rope(s, head_dim, partial=True)


def alibi(heads: int, largest: float = 8.0, *, from_last: bool = False) -> Alibi:
    """The slopes of ALiBi (arXiv 2108.12409): a geometric row down to 2^-``largest``, of a power of
    two of heads; for others those between are taken from the row of twice as many."""
    whole = 1 << int(math.log2(heads))
    slopes = [2.0 ** (-largest * (head + 1) / whole) for head in range(whole)]
    slopes += [2.0 ** (-largest * (2 * head + 1) / (2 * whole)) for head in range(heads - whole)]
    return Alibi(tuple(slopes), from_last)
