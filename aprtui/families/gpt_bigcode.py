"""GPT-BigCode (StarCoder): GPT-2 whose heads share one key and value head, matrices as usual."""

from __future__ import annotations

from aprtui.families import classic, gpt2
from aprtui.families.family import Family
from aprtui.families.keys import anything
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import NORM_BIASES, WHOLE, Table
from aprtui.graph import Graph

__all__ = ["FAMILY"]

_HF = {
    **{key: gpt2.HF[key] for key in gpt2.HF if key != "scale_attn_by_inverse_layer_idx"},
    "activation_function": "gelu_pytorch_tanh", "multi_query": True,
}  # fmt: skip


def build(s: Settings) -> Graph:
    one = classic.in_folder(s) and s.flag("multi_query")
    return gpt2.build_gpt(s, 1 if one else 0)


_UNREAD = (
    "inference_runner", "max_batch_size", "max_sequence_length", "pad_key_length",
    "pre_allocate_kv_cache", "validate_runner_input",
)  # fmt: skip

FAMILY = Family(
    Table((
        *WHOLE, NORM_BIASES[-1], gpt2.POSITIONS, *classic.both("attn_norm", "ln_1", "attn_norm"),
        *classic.both("ffn_norm", "ln_2", "ffn_norm"), *classic.fused("attn.c_attn", by_head=True),
        *classic.both("o", "attn.c_proj", "attn_output"),
        *classic.both("up", "mlp.c_fc", "ffn_up"), *classic.both("down", "mlp.c_proj", "ffn_down"),
    )),
    build,
    Defaults(hf=_HF),
    aliases=gpt2.ALIASES,
    published=dict.fromkeys(_UNREAD, anything),
)  # fmt: skip
