"""GPT-2: LayerNorms and products with biases, learned positions, matrices stored transposed."""

from __future__ import annotations

from dataclasses import replace

from aprtui.families import classic, decoder
from aprtui.families.decoder import Frame
from aprtui.families.family import Family
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import NORM_BIASES, WHOLE, Table, Tensor, layer_tensor
from aprtui.graph import Graph

__all__ = ["ALIASES", "FAMILY", "HF", "POSITIONS", "build_gpt"]

HF = {
    "vocab_size": 50_257, "hidden_size": 768, "num_layers": 12, "num_heads": 12,
    "max_positions": 1024, "n_inner": None, "activation_function": "gelu_new",
    "layer_norm_eps": 1e-5, "scale_attn_weights": True, "tie_word_embeddings": True,
    "scale_attn_by_inverse_layer_idx": False,
}  # fmt: skip
ALIASES = {
    "n_embd": "hidden_size", "n_layer": "num_layers", "n_head": "num_heads",
    "n_positions": "max_positions", "layer_norm_epsilon": "layer_norm_eps",
}  # fmt: skip
_PRECISION = (
    "reorder_and_upcast_attn", "attention_softmax_in_fp32", "scale_attention_softmax_in_fp32",
)  # fmt: skip
"""Of a half precision: in float32 they change nothing."""
POSITIONS = Tensor("positions", ("wpe.weight", "embed_positions.weight", "position_embd.weight"))


def _turned(role: str, module: str, gguf: str) -> tuple[Tensor, ...]:
    """A matrix that Hugging Face stores as [in,out], and its bias."""
    return (
        layer_tensor(f"turned_{role}", f"{module}.weight", holds=(role,), transposed=True),
        layer_tensor(role, f"{gguf}.weight"),
        layer_tensor(f"{role}_bias", f"{module}.bias", f"{gguf}.bias"),
    )


def build_gpt(s: Settings, kv_heads: int) -> Graph:
    """``kv_heads``: 0 for as many as query heads."""
    if classic.in_folder(s):
        classic.pass_over(s, "n_ctx", "intermediate_size")
        for name in _PRECISION:
            s.flag(name, True)
    sizes = decoder.read_sizes(s, "layer_norm_eps", kv_heads=kv_heads)
    ffn = classic.read_ffn(s, "n_inner", sizes.hidden)
    activation = s.activation("activation_function", "gelu_tanh")
    scaled = s.flag("scale_attn_weights", True)
    by_layer = s.known("scale_attn_by_inverse_layer_idx") and s.flag(
        "scale_attn_by_inverse_layer_idx"
    )
    mask = decoder.mask_of(decoder.read_causal(s), None)
    decoder.read_tied(s)
    how = decoder.attention_of(
        s, sizes, table=None, mask=mask, qkv_bias=True, output_bias=True,
        scale=sizes.head_dim**-0.5 if scaled else 1.0,
    )  # fmt: skip
    return decoder.build_decoder(
        sizes,
        lambda layer: replace(how, scale=how.scale / (layer + 1)) if by_layer else how,
        lambda b, x: b.plain_mlp(x, ffn, activation, biased=True),
        Frame(norm=classic.layer_norm(sizes), positions=(s.values["max_positions"], 0)),
    )


FAMILY = Family(
    Table((
        *WHOLE, NORM_BIASES[-1], POSITIONS, *classic.both("attn_norm", "ln_1", "attn_norm"),
        *classic.both("ffn_norm", "ln_2", "ffn_norm"),
        *classic.fused("attn.c_attn", transposed=True),
        *_turned("o", "attn.c_proj", "attn_output"), *_turned("up", "mlp.c_fc", "ffn_up"),
        *_turned("down", "mlp.c_proj", "ffn_down"),
    )),
    lambda s: build_gpt(s, 0),
    Defaults(hf=HF),
    aliases=ALIASES,
)  # fmt: skip
