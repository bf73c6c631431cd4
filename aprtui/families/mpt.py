"""MPT: ALiBi, LayerNorms and products without biases, a limit of q, k and v."""

from __future__ import annotations

from typing import Any

from aprtui.families import classic, decoder
from aprtui.families.decoder import Frame
from aprtui.families.family import Family
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import WHOLE, Table, layer_tensor
from aprtui.graph import Graph

__all__ = ["FAMILY"]

_HF = {
    "vocab_size": 50_368, "hidden_size": 2048, "num_layers": 24, "num_heads": 16,
    "max_positions": 2048, "layer_norm_eps": 1e-5, "tie_word_embeddings": True,
    "attn_config": None,
}  # fmt: skip
_ALIASES = {
    "d_model": "hidden_size", "n_layers": "num_layers", "n_heads": "num_heads",
    "max_seq_len": "max_positions", "layer_norm_epsilon": "layer_norm_eps",
    "max_position_embeddings": "unread_positions",
}  # fmt: skip
_UNREAD = (
    "intermediate_size", "unread_positions", "emb_pdrop", "init_device", "verbose",
    "init_config", "tokenizer_name",
)  # fmt: skip
_LARGEST = 8  # of ALiBi's slopes, the power of two that divides the last head's
_ONLY: dict[str, tuple[Any, ...]] = {
    "expansion_ratio": (4,), "logit_scale": (None,), "no_bias": (True,),
    "embedding_fraction": (1, 1.0), "norm_type": ("low_precision_layernorm", "layernorm"),
}  # fmt: skip
_ATTENTION_ONLY: dict[str, tuple[Any, ...]] = {
    "attn_type": ("multihead_attention",), "alibi": (True,), "prefix_lm": (False,),
    "attn_impl": ("torch", "triton", "flash"), "attn_pdrop": (0,), "qk_ln": (False,),
    "attn_uses_sequence_id": (False,), "alibi_bias_max": (_LARGEST, 8.0),
}  # fmt: skip
"""What transformers computes whatever these keys say: it reads none of them."""
_NUMBERS = {"clip_qkv", "softmax_scale"}


def _attention_keys(s: Settings) -> dict[str, float | None]:
    """clip_qkv, softmax_scale and alibi_bias_max; the rest of the object is accounted for."""
    if not classic.in_folder(s):
        return {
            "clip_qkv": s.number("attention.clamp_kqv", 0.0) or None,
            "alibi_bias_max": s.number("attention.max_alibi_bias", 0.0),
        }
    stated = s.take("attn_config")
    if stated is not None and not isinstance(stated, dict):
        raise s.fail(f"attn_config is {stated!r:.60}")
    found: dict[str, Any] = dict(stated or {})
    for key, values in _ATTENTION_ONLY.items():
        if key in found and found[key] not in values:
            raise s.fail(f"{key} of attn_config is {found[key]!r:.40}, which is not computed here")
    for key in _NUMBERS & set(found):
        number = type(found[key]) in (int, float) and 0 < found[key] < 1e9
        if not number and found[key] is not None:
            raise s.fail(f"{key} of attn_config is {found[key]!r:.40}")
    return {"alibi_bias_max": _LARGEST, **{key: found.get(key) for key in _NUMBERS}}


def build(s: Settings) -> Graph:
    if classic.in_folder(s):
        classic.pass_over(s, *_UNREAD)
        s.flag("learned_pos_emb", True)  # read nowhere: positions are ALiBi's
    for key, values in _ONLY.items():
        s.must_be(key, values, "no published model has it")
    s.must_be("is_causal", (True,), "transformers has no such pass")
    sizes = decoder.read_sizes(s, "layer_norm_eps", kv_heads=0)
    ffn = 4 * sizes.hidden if classic.in_folder(s) else decoder.read_ffn(s)
    keys, causal = _attention_keys(s), decoder.read_causal(s)
    if not s.values["max_positions"]:
        raise s.fail("max_positions is 0")
    decoder.read_tied(s)
    largest = keys["alibi_bias_max"]
    how = decoder.attention_of(
        s, sizes, table=None, mask=decoder.mask_of(causal, None), clip=keys["clip_qkv"],
        scale=keys.get("softmax_scale") or sizes.head_dim**-0.5,
        alibi=classic.alibi(sizes.heads, largest, from_last=True) if largest else None,
    )  # fmt: skip
    activation = "gelu" if classic.in_folder(s) else "gelu_tanh"
    return decoder.build_decoder(
        sizes,
        lambda layer: how,
        lambda b, x: b.plain_mlp(x, ffn, activation),
        Frame(norm=classic.layer_norm(sizes, biased=False)),
    )


FAMILY = Family(
    Table((
        *WHOLE, layer_tensor("attn_norm", "norm_1.weight", "attn_norm.weight"),
        layer_tensor("ffn_norm", "norm_2.weight", "ffn_norm.weight"),
        layer_tensor("qkv", "attn.Wqkv.weight", "attn_qkv.weight", holds=("q", "k", "v")),
        layer_tensor("o", "attn.out_proj.weight", "attn_output.weight"),
        layer_tensor("up", "ffn.up_proj.weight", "ffn_up.weight"),
        layer_tensor("down", "ffn.down_proj.weight", "ffn_down.weight"),
    )),
    build,
    Defaults(hf=_HF),
    aliases=_ALIASES,
)  # fmt: skip
