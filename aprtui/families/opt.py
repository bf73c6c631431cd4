"""OPT: LayerNorms before the branches, biases, ReLU, learned positions from the third row of their
table on. OPT-350m normalises behind its branches, and its token table is narrower than the
hidden."""

from __future__ import annotations

from dataclasses import replace

from aprtui.families import classic, decoder, gpt2
from aprtui.families.decoder import Frame
from aprtui.families.family import Family
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import NORM_BIASES, WHOLE, Table, Tensor, layer_tensor
from aprtui.graph import Graph, Role

__all__ = ["FAMILY"]

_HF = {
    "vocab_size": 50_272, "hidden_size": 768, "num_layers": 12, "num_heads": 12, "ffn_dim": 3072,
    "max_positions": 2048, "activation_function": "relu", "tie_word_embeddings": True,
    "do_layer_norm_before": True, "_remove_final_layer_norm": False, "enable_bias": True,
    "layer_norm_elementwise_affine": True, "word_embed_proj_dim": None,
}  # fmt: skip
_EPS = 1e-5  # there is no key for it
_FIRST = 2  # the row of position 0


def build(s: Settings) -> Graph:
    classic.pass_over(s, "intermediate_size")
    sizes = decoder.read_sizes(s, _EPS, kv_heads=0)
    width = s.integer("word_embed_proj_dim", null=sizes.hidden)
    ffn, activation = s.integer("ffn_dim"), s.activation("activation_function", "relu")
    mask = decoder.mask_of(decoder.read_causal(s), None)
    decoder.read_tied(s)
    biased, weighed = s.flag("enable_bias"), s.flag("layer_norm_elementwise_affine")
    how = decoder.attention_of(s, sizes, table=None, mask=mask, qkv_bias=biased, output_bias=biased)
    rows = s.values["max_positions"] + _FIRST
    return decoder.build_decoder(
        sizes,
        lambda layer: how,
        lambda b, x: b.plain_mlp(x, ffn, activation, biased=biased),
        _frame(s, Frame(
            norm=classic.layer_norm(sizes, biased=weighed), bare_norms=not weighed,
            positions=(rows, _FIRST), narrow=0 if width == sizes.hidden else width,
        )),
    )  # fmt: skip


def _frame(s: Settings, frame: Frame) -> Frame:
    """Where the norms stand. A final one that is not read may lie in the folder all the same."""
    before = s.flag("do_layer_norm_before")
    final = before and not s.flag("_remove_final_layer_norm")
    s.unread_roles |= set() if final else {Role("final_norm"), Role("final_norm_bias")}
    return replace(frame, behind=not before, final=final)


FAMILY = Family(
    Table((
        *WHOLE, NORM_BIASES[-1], gpt2.POSITIONS,
        *(Tensor(f"project_{end}", (f"project_{end}.weight",)) for end in ("in", "out")),
        *classic.both("attn_norm", "self_attn_layer_norm"),
        *classic.both("ffn_norm", "final_layer_norm"),
        *(layer_tensor(part, f"self_attn.{part}_proj.weight") for part in "qkv"),
        *(layer_tensor(f"{part}_bias", f"self_attn.{part}_proj.bias") for part in "qkv"),
        *classic.both("o", "self_attn.out_proj"), *classic.both("up", "fc1"),
        *classic.both("down", "fc2"),
    )),
    build,
    Defaults(hf=_HF),
)  # fmt: skip
