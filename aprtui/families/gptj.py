"""GPT-J: both branches read one LayerNorm; adjacent pairs of a part of each head turn; the
attention has no biases, the rest has."""

from __future__ import annotations

from aprtui.families import classic, decoder
from aprtui.families.decoder import Frame
from aprtui.families.family import Family
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import NORM_BIASES, WHOLE, Table, Tensor, layer_tensor
from aprtui.graph import Graph
from aprtui.graph.rope import RopeTable

__all__ = ["FAMILY"]

_HF = {
    "vocab_size": 50_400, "hidden_size": 4096, "num_layers": 28, "num_heads": 16,
    "max_positions": 2048, "n_inner": None, "activation_function": "gelu_new",
    "layer_norm_eps": 1e-5, "tie_word_embeddings": False, "rotary_dim": 64,
}  # fmt: skip
_ALIASES = {
    "n_embd": "hidden_size", "n_layer": "num_layers", "n_head": "num_heads",
    "n_positions": "max_positions", "layer_norm_epsilon": "layer_norm_eps",
}  # fmt: skip
_UNREAD = (
    "n_ctx", "intermediate_size", "gradient_checkpointing", "rotary", "scale_attn_weights",
)  # fmt: skip
_THETA = 1e4  # there is no key for it


def build(s: Settings) -> Graph:
    classic.pass_over(s, *_UNREAD)
    sizes = decoder.read_sizes(s, "layer_norm_eps", kv_heads=0)
    ffn = classic.read_ffn(s, "n_inner", sizes.hidden)
    activation, turned = s.activation("activation_function", "gelu_tanh"), s.integer("rotary_dim")
    if not 2 <= turned <= sizes.head_dim or turned % 2:
        raise s.fail(f"rotary_dim is {turned} of {sizes.head_dim} channels")
    if not s.values["max_positions"]:
        raise s.fail("max_positions is 0")
    table = RopeTable(turned, s.say("rope_theta", _THETA), s.say("rope_layout", "adjacent"))
    mask = decoder.mask_of(decoder.read_causal(s), None)
    decoder.read_tied(s)
    how = decoder.attention_of(s, sizes, table=table, mask=mask)
    return decoder.build_decoder(
        sizes,
        lambda layer: how,
        lambda b, x: b.plain_mlp(x, ffn, activation, biased=True),
        Frame(norm=classic.layer_norm(sizes), parallel=True, head_bias=True),
    )


FAMILY = Family(
    Table((
        *WHOLE, Tensor("head_bias", ("lm_head.bias",)), NORM_BIASES[-1],
        *classic.both("attn_norm", "ln_1"),
        *(layer_tensor(part, f"attn.{part}_proj.weight") for part in "qkv"),
        layer_tensor("o", "attn.out_proj.weight"), *classic.both("up", "mlp.fc_in"),
        *classic.both("down", "mlp.fc_out"),
    )),
    build,
    Defaults(hf=_HF),
    adjacent=True,
    aliases=_ALIASES,
)  # fmt: skip
