"""GPT-NeoX (Pythia): two LayerNorms of one hidden, both branches added at once; q, k and v of each
head stand together; a quarter of each head turns."""

from __future__ import annotations

from aprtui.families import classic, decoder
from aprtui.families.decoder import Frame
from aprtui.families.family import Family
from aprtui.families.rope import read_rope
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import NORM_BIASES, PRE_NORMS, WHOLE, Table
from aprtui.graph import Graph

__all__ = ["FAMILY"]

_HF = {
    "vocab_size": 50_432, "hidden_size": 6144, "intermediate_size": 24_576, "num_layers": 44,
    "num_heads": 64, "hidden_act": "gelu", "max_positions": 2048, "layer_norm_eps": 1e-5,
    "tie_word_embeddings": False, "rope_theta": 1e4, "partial_rotary_factor": 0.25,
    "use_parallel_residual": True, "attention_bias": True,
}  # fmt: skip
_ALIASES = {
    "rotary_pct": "partial_rotary_factor", "rotary_emb_base": "rope_theta",
    "rope_theta": "other.rope_theta", "partial_rotary_factor": "other.partial_rotary_factor",
}  # fmt: skip
_NOT_READ = {"other.rope_theta": 1e4, "other.partial_rotary_factor": 0.25}
"""What transformers reads under the family's own names or in rope_parameters alone."""


def build(s: Settings) -> Graph:
    sizes = decoder.read_sizes(s, "layer_norm_eps", kv_heads=0)
    ffn, activation = decoder.read_ffn(s), s.activation("hidden_act", "gelu_tanh")
    for key, value in _NOT_READ.items():
        s.must_be(key, (value, int(value)), "transformers takes no heed of it")
    table = read_rope(s, sizes.head_dim, partial=True)
    if classic.in_folder(s):
        parallel = s.flag("use_parallel_residual")
    else:
        parallel = s.flag(f"{s.file.metadata['general.architecture']}.use_parallel_residual", True)
    mask, biases = decoder.mask_of(decoder.read_causal(s), None), decoder.read_biases(s)
    decoder.read_tied(s)
    how = decoder.attention_of(s, sizes, table=table, mask=mask, **biases)
    return decoder.build_decoder(
        sizes,
        lambda layer: how,
        lambda b, x: b.plain_mlp(x, ffn, activation, biased=True),
        Frame(
            norm=classic.layer_norm(sizes),
            parallel=parallel,
            two_norms=("attn_norm", "ffn_norm"),
        ),
    )


FAMILY = Family(
    Table((
        *WHOLE, *PRE_NORMS, *NORM_BIASES, *classic.fused("attention.query_key_value", by_head=True),
        *classic.both("o", "attention.dense", "attn_output"),
        *classic.both("up", "mlp.dense_h_to_4h", "ffn_up"),
        *classic.both("down", "mlp.dense_4h_to_h", "ffn_down"),
    )),
    build,
    Defaults(hf=_HF, gguf={"rope_theta": 1e4}),
    aliases=_ALIASES,
)  # fmt: skip
