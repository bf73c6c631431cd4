"""Gemma 3n: four streams of which a layer computes one, a residual of low rank, embeddings of the
layers' own, gates of which few are kept, and layers that read keys and values of earlier ones."""

from __future__ import annotations

from statistics import NormalDist

from aprtui.families import decoder, gemma
from aprtui.families.classic import in_folder
from aprtui.families.decoder import FULL, SLIDING, Sizes
from aprtui.families.family import Family
from aprtui.families.per_layer import TENSORS as PER_LAYER
from aprtui.families.per_layer import read_per_layer, read_sources
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
    Tensor,
    layer_tensor,
)
from aprtui.graph import Graph
from aprtui.graph.altup import AltUp, Outliers, place_end, place_layer, place_start
from aprtui.graph.blocks import Attention, Builder
from aprtui.graph.per_layer import place_inputs

__all__ = ["FAMILY"]

_HF = {
    "vocab_size": 262_400, "hidden_size": 2048, "intermediate_size": 16_384, "num_layers": 35,
    "num_heads": 8, "num_kv_heads": 2, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
    "max_positions": 32_768, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
    "rope_theta": 1e6, "rope_theta_local": 1e4, "attention_bias": False, "sliding_window": 512,
    "logit_softcap": 30.0, "vocab_size_per_layer_input": 262_144,
    "hidden_size_per_layer_input": 256, "altup_active_idx": 0, "altup_correct_scale": True,
    "altup_coef_clip": 120.0, "altup_num_inputs": 4, "num_kv_shared_layers": 15, "laurel_rank": 64,
    "activation_sparsity_pattern": None,
}  # fmt: skip
_PERIOD = 5  # of layers, the last of which has no window
# What llama.cpp has in its code, whatever a file says.
_SPARSE_LAYERS, _SHARED_FROM, _TIMES = 10, 20, 1.6448533535003662
_SPARSE, _CAP = 0.95, 30.0
_LEAST = 1e-5  # of the mean square of a stream, in transformers


def _sparse(s: Settings, layers: int) -> list[Outliers | None]:
    """What each layer keeps of its gates."""
    if not in_folder(s):
        stated = s.take("activation_sparsity_scale", None)
        due = [_TIMES if layer < _SPARSE_LAYERS else None for layer in range(layers)]
        if stated is not None and not _near(stated, due):
            s.note(
                "activation_sparsity_scale is not read, as in llama.cpp: the first 10 layers keep "
                "what lies 1.645 deviations above the mean"
            )
        return [None if times is None else Outliers(times, unbiased=True) for times in due]
    plain = [_SPARSE if layers > _SPARSE_LAYERS and n < _SPARSE_LAYERS else 0.0
             for n in range(layers)]  # fmt: skip
    shares = s.per_layer("activation_sparsity_pattern", (int, float))
    shares = plain if shares is None else [float(share) for share in shares]
    if not all(0 <= share < 1 for share in shares):
        raise s.fail("activation_sparsity_pattern has a share outside 0..1")
    s.say("activation_sparsity_pattern", tuple(shares))
    return [Outliers(NormalDist().inv_cdf(share)) if share else None for share in shares]


def _near(stated: object, due: list[float | None]) -> bool:
    if not isinstance(stated, list) or len(stated) < len(due):
        return False
    return all(
        abs(said - times) < 1e-5 if times is not None else said < -1e30
        for said, times in zip(stated, due, strict=False)
    )


def _shared(s: Settings, layers: int) -> int:
    """How many of the last layers read the keys of others."""
    stated = int(s.integer("num_kv_shared_layers"))
    if in_folder(s):
        return stated
    shared = max(0, layers - _SHARED_FROM)
    if stated != shared:
        s.note(
            f"shared_kv_layers {stated} is not read, as in llama.cpp: those from layer "
            f"{_SHARED_FROM} on share"
        )
    return int(s.say("num_kv_shared_layers", shared))


def _altup(s: Settings, sizes: Sizes) -> AltUp:
    streams, active = s.integer("altup_num_inputs"), s.integer("altup_active_idx")
    if not in_folder(s) and (streams, active) != (4, 0):
        raise s.fail(f"altup has {streams} streams, {active} active: llama.cpp's has 4, the first")
    if active:
        raise s.fail(f"altup_active_idx is {active}, and only the first stream is computed here")
    if in_folder(s) and type(s.take("altup_coef_clip")) is not float:  # of training alone
        raise s.fail("altup_coef_clip is no number with a fraction, which transformers refuses")
    scaled = s.flag("altup_correct_scale")
    rows = s.shape("laurel_left")
    rank = s.integer("laurel_rank") if in_folder(s) else (rows[0] if rows else 64)
    floor = _LEAST if in_folder(s) else 0.0
    return AltUp(streams, active, floor, rank, scaled, sizes.norm())


def build(s: Settings) -> Graph:
    sizes = decoder.read_sizes(s, nulls=())
    layers = sizes.layers
    windows = decoder.windows_by_pattern(s, layers, _PERIOD, stated=False)
    types = [FULL if window is None else SLIDING for window in windows]
    sources = read_sources(s, types, _shared(s, layers))
    activation = s.activation("hidden_activation", "gelu_tanh")
    gemma.other_activation(s, "hidden_act", activation)
    s.must_be("use_bidirectional_attention", (None, False), "tokens see those that follow")
    tables, biases = read_rope_by_layer_type(s, sizes.head_dim, 1e4), decoder.read_biases(s)
    causal, how = decoder.read_causal(s), _altup(s, sizes)
    extra = read_per_layer(s, sizes, sizes.norm(), activation, beyond=True)
    widths, kept = s.integers("intermediate_size", layers), _sparse(s, layers)
    if extra is None:
        raise s.fail("hidden_size_per_layer_input is 0")
    if not in_folder(s):
        s.must_be("logit_softcap", (_CAP,), f"llama.cpp caps at {_CAP:g} whatever is said")
    cap = s.number("logit_softcap")
    decoder.read_tied(s)

    def attention(layer: int) -> Attention:
        return decoder.attention_of(
            s, sizes, table=tables[types[layer]], mask=decoder.mask_of(causal, windows[layer]),
            scale=1.0, norms=sizes.norm(), value_norm=sizes.norm(), shares=sources[layer], **biases,
        )  # fmt: skip

    b = Builder(sizes.hidden)
    embedding = b.embedding(sizes.vocab, gemma.embedding_scale(s, sizes))
    inputs = place_inputs(b, embedding, extra)
    streams = place_start(b, embedding, how)
    for layer in range(layers):
        b.layer = layer
        ffn = (widths[layer], activation, kept[layer])
        streams = place_layer(b, streams, inputs, how, extra, attention(layer), ffn)
    b.head(place_end(b, streams, how), sizes.norm(), sizes.vocab, cap)
    return b.graph()


_LAYERS = {
    "altup_scale": ("altup.correct_output_scale", "altup_correct_scale.weight"),
    "altup_correct": ("altup.correction_coefs.weight", "altup_correct_coef.weight"),
    "altup_predict": ("altup.prediction_coefs.weight", "altup_predict_coef.weight"),
    "altup_router": ("altup.modality_router.weight", "altup_router.weight"),
    "altup_norm": ("altup.router_norm.weight", "altup_router_norm.weight"),
    "laurel_left": ("laurel.linear_left.weight", "laurel_l.weight"),
    "laurel_right": ("laurel.linear_right.weight", "laurel_r.weight"),
    "laurel_norm": ("laurel.post_laurel_norm.weight", "laurel_post_norm.weight"),
}
_TENSORS = tuple(layer_tensor(role, *names) for role, names in _LAYERS.items())
_STREAMS = tuple(
    tensor
    for role, names in {
        "altup_projection": ("altup_projections", "altup_proj"),
        "altup_unprojection": ("altup_unembed_projections", "altup_unembd_proj"),
    }.items()
    for tensor in (
        Tensor(role, (f"{names[0]}.{{layer}}.weight",), numbered=True),
        Tensor(f"{role}s", (f"{names[1]}.weight",), holds=(role,), packed=True),
    )
)
FAMILY = Family(
    Table((
        *WHOLE, *SANDWICH_NORMS, *POST_NORMS, *ATTENTION, *QKV_BIAS, *OUTPUT_BIAS, *QK_NORM, *DENSE,
        *PER_LAYER, *_TENSORS, *_STREAMS,
    )),
    build,
    Defaults(
        hf=_HF,
        gguf={
            "rope_theta": 1e4, "rope_theta_local": 1e4, "logit_softcap": 30.0,
            "num_kv_shared_layers": 0, "altup_num_inputs": 4, "altup_active_idx": 0,
            "altup_correct_scale": True,
        },
    ),
)  # fmt: skip
