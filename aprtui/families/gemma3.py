"""Gemma 3 (and EmbeddingGemma): gemma2 with QK norms, without its caps; of six layers five have a
window and their own RoPE base."""

from __future__ import annotations

from aprtui.families import decoder, gemma
from aprtui.families.decoder import FULL, SLIDING, Frame
from aprtui.families.family import Family
from aprtui.families.rope import read_rope_by_layer_type
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import (
    ATTENTION,
    DENSE,
    OUTPUT_BIAS,
    POST_NORMS,
    QK_NORM,
    QKV_BIAS,
    SANDWICH_NORMS,
    WHOLE,
    Table,
)
from aprtui.graph import Graph
from aprtui.graph.ops import Mask

__all__ = ["FAMILY"]

_HF = {
    "vocab_size": 262_208, "hidden_size": 2304, "intermediate_size": 9216, "num_layers": 26,
    "num_heads": 8, "num_kv_heads": 4, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
    "max_positions": 131_072, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
    "rope_theta": 1e6, "rope_theta_local": 1e4, "attention_bias": False,
    "query_pre_attn_scalar": 256, "sliding_window": 4096, "logit_softcap": None,
    "use_bidirectional_attention": False,
}  # fmt: skip
_27B_LAYERS = 62  # of the model whose queries are scaled by H/A instead of the head size
_SMALL_LAYERS = 26  # of the largest model whose published window is 512, not 1024


def _published_window(s: Settings, layers: int) -> None:
    """An .apr that holds no window: that of the published model with so many layers."""
    if s.file.format == "apr" and not s.has("sliding_window"):
        window = 512 if layers <= _SMALL_LAYERS else 1024
        s.assume("sliding_window", window)


def _masks(s: Settings, layers: int) -> list[Mask]:
    """Each layer's mask. Of one to both sides transformers halves the window first."""
    _published_window(s, layers)
    two_sided = s.file.format == "safetensors" and s.flag("use_bidirectional_attention", null=False)
    windows = decoder.windows_by_pattern(s, layers, 6)
    causal = decoder.read_causal(s)
    if two_sided:
        windows = [None if window is None else window // 2 + 1 for window in windows]
    if two_sided and causal:
        return [Mask(causal=False, window=window) for window in windows]
    return [decoder.mask_of(causal, window) for window in windows]


def build(s: Settings) -> Graph:
    sizes = decoder.read_sizes(s)
    ffn, activation = decoder.read_ffn(s), s.activation("hidden_activation", "gelu_tanh")
    gemma.other_activation(s, "hidden_act", activation)
    tables, biases = read_rope_by_layer_type(s, sizes.head_dim, 1e4), decoder.read_biases(s)
    masks = _masks(s, sizes.layers)
    scale = decoder.query_scale(s, sizes, _27B_LAYERS)
    s.must_be("score_softcap", (None,), "the scores are capped")
    frame = Frame(
        after=True,
        offset=gemma.norm_offset(s),
        embedding_scale=gemma.embedding_scale(s, sizes),
        logit_cap=s.number("logit_softcap", None, null=None),
    )
    decoder.read_tied(s)
    return decoder.build_decoder(
        sizes,
        lambda layer: decoder.attention_of(
            s, sizes, table=tables[FULL if masks[layer].window is None else SLIDING],
            mask=masks[layer], scale=scale, norms=sizes.norm(frame.offset), **biases,
        ),
        lambda b, x: b.gated_mlp(x, ffn, activation),
        frame,
    )  # fmt: skip


FAMILY = Family(
    Table((
        *WHOLE, *SANDWICH_NORMS, *POST_NORMS, *ATTENTION, *QKV_BIAS, *OUTPUT_BIAS, *QK_NORM, *DENSE
    )),
    build,
    Defaults(
        hf=_HF,
        gguf={"rope_theta": 1e4, "rope_theta_local": 1e4, "sliding_window": 0},
        apr={"rope_theta": 1e6, "rope_theta_local": 1e4, "rms_norm_eps": 1e-6},
    ),
)  # fmt: skip
