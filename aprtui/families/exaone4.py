"""EXAONE 4: norms after the branches alone, a norm of each query and key head; where some layers
have a window, the others are not turned by their positions."""

from __future__ import annotations

from aprtui.families import decoder
from aprtui.families.decoder import FULL, Frame
from aprtui.families.family import Family
from aprtui.families.rope import read_rope
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import ATTENTION, DENSE, POST_NORMS, QK_NORM, WHOLE, Table
from aprtui.graph import Graph

__all__ = ["FAMILY"]

_HF = {
    "vocab_size": 102_400, "hidden_size": 4096, "intermediate_size": 16_384, "num_layers": 32,
    "num_heads": 32, "num_kv_heads": 32, "hidden_act": "silu", "max_positions": 2048,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "rope_theta": 1e4,
    "sliding_window": 4096,
}  # fmt: skip
_PERIOD = 4  # the last of so many layers has no window
_32B_LAYERS = 64  # llama.cpp has the windows, and the layers without RoPE, of that model alone


def _gguf_windows(s: Settings, layers: int, window: int | None) -> list[int | None]:
    """As llama.cpp has them: by the number of layers, whatever the keys say."""
    if layers == _32B_LAYERS:
        return decoder.windows_by_pattern(s, layers, _PERIOD)
    s.take("sliding_window_pattern", None)
    if s.has("sliding_window"):
        s.note(
            f"sliding_window {window} is not computed, as in llama.cpp: it asks for "
            f"{_32B_LAYERS} layers"
        )
    return decoder.say_windows(s, None, [FULL] * layers)


def _windows(s: Settings, layers: int, window: int | None) -> list[int | None]:
    if s.file.format == "gguf":
        return _gguf_windows(s, layers, window)
    if s.take("layer_types", None) is not None:
        s.take("sliding_window_pattern", None)
        return decoder.say_windows(s, window, decoder.layer_types(s, []))
    return decoder.windows_by_pattern(s, layers, _PERIOD)


def build(s: Settings) -> Graph:
    sizes = decoder.read_sizes(s, nulls=())
    ffn, activation = decoder.read_ffn(s), s.activation("hidden_act", "silu")
    table, causal = read_rope(s, sizes.head_dim), decoder.read_causal(s)
    window = decoder.read_window(s)
    windows = _windows(s, sizes.layers, window)
    mixed = window is not None and (s.file.format != "gguf" or sizes.layers == _32B_LAYERS)
    turned = [not mixed or each is not None for each in windows]
    s.say("rope_layers", tuple(turned))
    decoder.read_tied(s)
    return decoder.build_decoder(
        sizes,
        lambda layer: decoder.attention_of(
            s,
            sizes,
            table=table if turned[layer] else None,
            mask=decoder.mask_of(causal, windows[layer]),
            norms=sizes.norm(),
        ),
        lambda b, x: b.gated_mlp(x, ffn, activation),
        Frame(before=False, after=True),
    )


FAMILY = Family(
    Table((*WHOLE, *POST_NORMS, *ATTENTION, *QK_NORM, *DENSE)),
    build,
    Defaults(
        hf=_HF,
        gguf={"rope_theta": 1e4, "sliding_window": 4096},
        apr={"rope_theta": 1e6, "rms_norm_eps": 1e-5},
    ),
)
