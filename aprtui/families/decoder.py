"""What decoder families read alike: sizes, masks, heads, and the order of their layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from aprtui.families.settings import Settings
from aprtui.formats.tracedir import StageKey
from aprtui.graph import Graph
from aprtui.graph.blocks import Attention, Builder, Routing
from aprtui.graph.ops import Choose, Mask, Norm, Route

__all__ = [
    "FULL", "SLIDING", "Frame", "Mixer", "ReadFfn", "Sizes", "all_windows", "attention_of",
    "build_decoder", "check_heads", "layer_types", "mask_of", "query_scale", "read_bare_sizes",
    "read_biases", "read_causal", "read_experts", "read_ffn", "read_mixed_ffn",
    "read_sizes", "read_sizes_by_layer", "read_tied", "read_window", "say_windows",
    "sparse_layers", "windows_but_in_gguf", "windows_by_pattern",
]  # fmt: skip

Mixer = Callable[[Builder, StageKey], StageKey]
"""Places what mixes tokens: from a layer's normalised input to what is added to the stream."""
ReadFfn = Callable[[Settings, int], Mixer]
"""Reads the keys of the FFNs of so many layers."""
FULL, SLIDING = "full_attention", "sliding_attention"
_NULLS = ("head_dim", "num_kv_heads")
_GGUF_EXPERTS = ("num_experts", "num_experts_per_tok")
_MISSING: Any = object()


@dataclass(frozen=True)
class Sizes:
    """The dimensions that all layers share: symbols of docs/stages.md."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    eps: float

    def norm(self, offset: float = 0.0) -> Norm:
        """A norm over the last axis; its weight is set where it is placed."""
        return Norm(None, self.eps, offset)


def read_sizes(
    s: Settings, eps_key: str | float = "rms_norm_eps", nulls: tuple[str, ...] = _NULLS,
    kv_heads: int | None = None, head_dim: int | None = None, layers: int | None = None,
    even: bool = True,
) -> Sizes:  # fmt: skip
    """The dimensions, checked against each other; of an .apr the tensors fill what it lacks.

    ``eps_key``: what the norms' epsilon is called, or its value where it has no key; ``nulls``:
    which of ``head_dim`` and ``num_kv_heads`` may be null, for H/A and A. ``kv_heads``: those of a
    family whose files have no one key for them; 0: of config.json, as many as query heads.
    ``head_dim`` and ``layers``: where the family derives them, whatever its keys say. ``even``:
    values are as wide as keys; else the family has read their size.
    """
    s.say("max_positions", s.integer("max_positions", *_absent(s, "max_positions", 0)))
    layers, hidden = layers or read_layers(s), s.integer("hidden_size")
    heads = s.integer("num_heads")
    if head_dim is None:
        head_dim = _head_dim(s, hidden, heads, nulls)
    if kv_heads or (kv_heads == 0 and s.file.format == "safetensors"):
        s.take("num_kv_heads", None)
        kv_heads = s.say("num_kv_heads", kv_heads or heads)
    else:
        kv_heads = _kv_heads(s, heads, head_dim, nulls)
    check_heads(s, heads, kv_heads)
    if even and s.integer("value_dim", head_dim) != head_dim:
        raise s.fail(f"value_dim is not head_dim, {head_dim}, which {s.family} needs")
    eps = s.number(eps_key) if isinstance(eps_key, str) else s.say("eps", eps_key)
    return Sizes(layers, hidden, heads, kv_heads, head_dim, _vocab(s), eps)


def read_bare_sizes(s: Settings) -> Sizes:
    """The dimensions of a model without attention: 0 heads."""
    s.say("max_positions", s.integer("max_positions", *_absent(s, "max_positions", 0)))
    layers, hidden = s.integer("num_layers"), s.integer("hidden_size")
    vocab, eps = _vocab(s), s.number("rms_norm_eps")
    return Sizes(layers, hidden, 0, 0, 0, vocab, eps)


def read_sizes_by_layer(s: Settings) -> list[Sizes]:
    """``read_sizes`` of a family whose layers may have another number of heads each, and that says
    its head size; the value's size is for the family to read."""
    s.say("max_positions", s.integer("max_positions", *_absent(s, "max_positions", 0)))
    layers, hidden = read_layers(s), s.integer("hidden_size")
    heads, kv_heads = s.integers("num_heads", layers), s.integers("num_kv_heads", layers)
    head_dim = _head_dim(s, hidden, heads[0], ())
    vocab, eps = _vocab(s), s.number("rms_norm_eps")
    for of_query, of_key in zip(heads, kv_heads, strict=True):
        check_heads(s, of_query, of_key)
    return [
        Sizes(layers, hidden, of_query, of_key, head_dim, vocab, eps)
        for of_query, of_key in zip(heads, kv_heads, strict=True)
    ]


def read_layers(s: Settings) -> int:
    """The layers of the pass. GGUF counts those behind them that draft tokens too."""
    layers, name = s.integer("num_layers"), "nextn_predict_layers"
    drafts = s.integer(name, 0) if _is_gguf(s) and (s.known(name) or s.has(name)) else 0
    if drafts >= layers:
        raise s.fail(f"nextn_predict_layers is {drafts} of {layers} layers")
    return int(s.say("num_layers", layers - drafts))


def check_heads(s: Settings, heads: int, kv_heads: int) -> None:
    """Raises where so many query heads cannot share the key/value heads evenly."""
    if heads % kv_heads:
        raise s.fail(f"{heads} query heads cannot share {kv_heads} key/value heads (num_kv_heads)")


def _absent(s: Settings, name: str, otherwise: Any) -> tuple[Any, ...]:
    """A default to pass where the family has none."""
    return () if s.known(name) else (otherwise,)


def _null(name: str, value: int, nulls: tuple[str, ...]) -> dict[str, Any]:
    return {"null": value} if name in nulls else {}


def _head_dim(s: Settings, hidden: int, heads: int, nulls: tuple[str, ...]) -> int:
    derived = hidden // heads
    if s.file.format == "apr" and not s.has("head_dim"):
        derived = _head_dim_of_tensors(s, derived, heads)
        if derived * heads != hidden:
            s.note(f"head_dim {derived} is not stated; it follows from the q rows")
    if not s.known("head_dim"):
        stated = s.integer("head_dim", derived)
    else:
        stated = s.integer("head_dim", **_null("head_dim", derived, nulls))
    if stated % 2:
        raise s.fail(f"head_dim {stated} is odd: RoPE needs pairs")
    return int(s.say("head_dim", stated))


def _head_dim_of_tensors(s: Settings, derived: int, heads: int) -> int:
    norm, rows = s.shape("q_norm"), s.shape("q")
    if norm is not None:
        return norm[-1]
    return rows[0] // heads if rows is not None and rows[0] % heads == 0 else derived


def _kv_heads(s: Settings, heads: int, head_dim: int, nulls: tuple[str, ...]) -> int:
    derived = heads
    rows = s.shape("k")
    if s.file.format == "apr" and not s.has("num_kv_heads") and rows is not None:
        derived = rows[0] // head_dim
        if derived != heads:
            s.note(f"num_kv_heads {derived} is not stated; it follows from the k rows")
    name = "num_kv_heads"
    null = _null(name, derived, nulls)
    return int(s.integer(name, *_absent(s, name, derived), **null))


def _vocab(s: Settings) -> int:
    embedding = s.shape("embedding")
    rows = embedding[0] if embedding else None
    found = s.integer("vocab_size", *(() if s.known("vocab_size") or not rows else (rows,)))
    if rows is not None and found != rows:
        raise s.fail(f"vocab_size is {found:,} and the embedding has {rows:,} rows")
    return int(found)


def read_tied(s: Settings) -> None:
    """Whether the head is the embedding. Raises for an untied model without a head."""
    has_head = s.shape("head") is not None or not s.file.tensors
    if s.file.format == "safetensors":
        tied = s.flag("tie_word_embeddings")
        if not tied and not has_head:
            raise s.fail(
                "tie_word_embeddings is false and there is no lm_head.weight",
                hint="the file is incomplete: download or convert it again",
            )
        if tied and has_head:
            s.note("tie_word_embeddings is true, and the head has bytes of its own: they are used")
    else:
        s.must_be("tie_word_embeddings", (True, False), "")
        if has_head and s.file.metadata.get("tied_embeddings") is True:
            s.note("tied_embeddings is true, and the head has bytes of its own: they are used")
        if not has_head and s.known("tie_word_embeddings") and not s.take("tie_word_embeddings"):
            raise s.fail("the head (output.weight) is missing, and the family has no tied models")
    s.say("tied_head", not has_head)


def read_causal(s: Settings) -> bool:
    """Whether a token sees only itself and those before it: transformers takes it from any
    config.json, llama.cpp from ``attention.causal``."""
    return bool(s.say("is_causal", bool(s.take("is_causal", True))))


def mask_of(causal: bool, window: int | None) -> Mask:
    """A layer's mask; transformers' two-sided window counts the key that far away as seen."""
    return Mask(causal, window if causal or window is None else window + 1)


def layer_types(s: Settings, default: list[str]) -> list[str]:
    """``layer_types``: "full_attention" or "sliding_attention" of each layer."""
    found = s.per_layer("layer_types", (str,), None)
    found = default if found is None else found
    others = set(found) - {FULL, SLIDING}
    if others:
        raise s.fail(f"layer_types has {sorted(others)[0]!r}, which is not computed here")
    return list(found)


def read_window(s: Settings) -> int | None:
    """``sliding_window``; None where there is none. llama.cpp takes 0 for none too."""
    window = s.integer("sliding_window", *_absent(s, "sliding_window", None), null=None)
    none = window is None or (window == 0 and _is_gguf(s))
    return None if none else int(window)


def all_windows(s: Settings, layers: int, window: Any = _MISSING) -> list[int | None]:
    """The same window in every layer, ``sliding_window`` where none is given.

    transformers does not ask ``layer_types`` here: where it is stated it must say the same.
    """
    window = read_window(s) if window is _MISSING else window
    kind = FULL if window is None else SLIDING
    s.must_be("layer_types", (None, [kind] * layers), "its layers differ")
    return say_windows(s, window, [kind] * layers)


def windows_but_in_gguf(s: Settings, layers: int) -> list[int | None]:
    """The window of every layer, of families that llama.cpp computes without it."""
    if not _is_gguf(s):
        return all_windows(s, layers)
    if window := read_window(s):
        s.note(f"sliding_window {window} is not computed, as in llama.cpp")
    return all_windows(s, layers, None)


def windows_by_pattern(
    s: Settings, layers: int, period: int, *, stated: bool = True, dense_first: bool = False
) -> list[int | None]:
    """Windows in all but every ``period``-th layer, or as ``layer_types`` says.

    ``stated``: Hugging Face's ``sliding_window_pattern`` counts; llama.cpp's always does, as a
    period or as one flag a layer. ``dense_first``: not the last of a period but its first has none.
    """
    window = read_window(s)
    pattern = s.take("sliding_window_pattern", period) if stated or _is_gguf(s) else period
    if isinstance(pattern, list) and _is_gguf(s) and len(pattern) >= layers:
        default = [SLIDING if flag else FULL for flag in pattern[:layers]]
    elif type(pattern) is int and pattern > 0:
        at = range(layers) if dense_first else range(1, layers + 1)
        default = [SLIDING if place % pattern else FULL for place in at]
    else:
        raise s.fail(f"sliding_window_pattern is {pattern!r:.60}")
    if window is None and not s.has("layer_types") and s.file.format != "safetensors":
        default = [FULL] * layers
    return say_windows(s, window, layer_types(s, default))


def _is_gguf(s: Settings) -> bool:
    return s.file.format == "gguf"


def say_windows(s: Settings, window: int | None, types: list[str]) -> list[int | None]:
    """Each layer's window, recorded among the settings."""
    if window is None and SLIDING in types:
        raise s.fail("a layer slides (layer_types) and there is no sliding_window")
    if window == 0 and SLIDING in types:
        raise s.fail("sliding_window is 0: no token would see even itself")
    windows = [window if kind == SLIDING else None for kind in types]
    s.say("sliding_window", window if any(windows) else None)
    s.say("window_layers", tuple(each is not None for each in windows) if any(windows) else ())
    return windows


def read_biases(s: Settings) -> dict[str, bool]:
    """Which products of attention have a bias: Hugging Face's ``attention_bias`` speaks of all
    four; in the other formats the tensors tell."""
    if s.file.format == "safetensors":
        bias = s.known("attention_bias") and s.flag("attention_bias")
        return {"qkv_bias": bias, "output_bias": bias}
    s.must_be("attention_bias", (True, False), "")
    has_qkv = s.shape("q_bias") is not None or s.shape("qkv_bias") is not None
    return {"qkv_bias": has_qkv, "output_bias": s.shape("o_bias") is not None}


def read_mlp_bias(s: Settings) -> bool:
    """Whether the products of an FFN have biases: as config.json or the tensors say."""
    if s.file.format == "safetensors":
        return s.flag("mlp_bias")
    return bool(s.say("mlp_bias", s.shape("up_bias") is not None))


def query_scale(s: Settings, sizes: Sizes, by_heads: int) -> float:
    """The factor on q.k: 1/sqrt(``query_pre_attn_scalar``).

    GGUF and .apr do not hold it: there it is the head size, but H/A of the published model that
    has ``by_heads`` layers, as in llama.cpp.
    """
    whole = sizes.layers == by_heads
    derived = sizes.hidden / sizes.heads if whole else sizes.head_dim
    if s.file.format == "safetensors":
        scalar = s.number("query_pre_attn_scalar")
    else:
        scalar = s.number("query_pre_attn_scalar", derived)
    return float(pow(scalar, -0.5))


def sparse_layers(s: Settings, layers: int) -> list[bool]:
    """Which layers' FFN is made of experts; in GGUF all."""
    if _is_gguf(s):
        return [True] * layers
    step = s.integer("decoder_sparse_step", *_absent(s, "decoder_sparse_step", 1))
    dense = s.take("mlp_only_layers", *_absent(s, "mlp_only_layers", None)) or []
    if step < 1 or not isinstance(dense, list) or not all(type(n) is int for n in dense):
        raise s.fail("decoder_sparse_step or mlp_only_layers cannot be read")
    sparse = [layer not in dense and (layer + 1) % step == 0 for layer in range(layers)]
    s.say("sparse_layers", tuple(sparse))
    return sparse


def attention_of(s: Settings, sizes: Sizes, **how: Any) -> Attention:
    """Attention of the family's plain kind; ``how`` replaces its parts."""
    plain: dict[str, Any] = {
        "scale": sizes.head_dim**-0.5,
        "qkv_bias": False,
        "output_bias": False,
    }
    made = Attention(sizes.heads, sizes.kv_heads, sizes.head_dim, **{**plain, **how})
    if _is_gguf(s) and made.mask.window is not None:
        s.must_be("is_causal", (True,), "its windows then hide only what lies before a token")
    for name in ("qkv_bias", "output_bias"):
        s.say(name, getattr(made, name))
    s.say("score_softcap", made.cap)
    s.say("score_scale", made.scale)
    s.say("qk_norm", made.norms is not None)
    return made


def read_ffn(s: Settings) -> int:
    """F of a dense FFN; of an .apr that does not say it, the gate's rows."""
    gate = s.shape("gate")
    if s.file.format == "apr" and not s.has("intermediate_size") and gate is not None:
        return int(s.say("intermediate_size", gate[0]))
    return int(s.integer("intermediate_size"))


def read_mixed_ffn(s: Settings, routing: Routing, activation: str, sparse: list[bool]) -> Mixer:
    """Experts in the layers that are ``sparse``, in the others a dense FFN, whose size is read
    where there are such layers."""
    size = s.take("intermediate_size", None) if all(sparse) else read_ffn(s)
    return lambda b, x: (
        b.experts(x, routing) if sparse[b.layer or 0] else b.gated_mlp(x, size, activation)
    )


def read_experts(
    s: Settings,
    size_key: str,
    activation: str,
    *,
    renormalise: bool,
    names: tuple[str, str] = ("num_experts", "num_experts_per_tok"),
) -> Routing:
    """Softmax over all experts, of which the likeliest are chosen; F of one from ``size_key``.

    ``names``: what config.json calls the number of experts, and how many a token goes to.
    """
    router, gate = s.shape("router"), s.shape("expert_gate") or s.shape("experts_gate")
    count_key, top_key = names if s.file.format == "safetensors" else _GGUF_EXPERTS
    count = s.integer(count_key, *_absent_in(s, count_key, router))
    if router is not None and count != router[0]:
        raise s.fail(f"{count_key} is {count} and the router has {router[0]} rows")
    top = s.integer(top_key)
    if not 1 <= top <= count:
        raise s.fail(f"{top_key} is {top} of {count} experts")
    if s.file.format == "safetensors" or s.has(size_key):
        size = s.integer(size_key)
    elif gate is None:
        raise s.fail("the model has a router and no experts' gate tensors")
    else:
        size = gate[-2]
    s.say("norm_topk_prob", renormalise)
    s.say("moe_intermediate_size", size)
    return Routing(Choose(top, count), Route(renormalise=renormalise), size, activation)


def _absent_in(s: Settings, name: str, shape: tuple[int, ...] | None) -> tuple[int, ...]:
    return () if s.known(name) or shape is None else (shape[0],)


@dataclass(frozen=True)
class Frame:
    """What surrounds the branches: norms ``before`` and ``after`` them, ``offset`` of the norms'
    weights, or all of the ``norm`` where it is another than the sizes', the embedding's scale, that
    of the branches as they are added, the logits' scale, cap and whether they have a bias.

    ``parallel``: the one norm before the attention is the FFN's input too, or each has a norm of
    its own of the one hidden, whose weights are ``two_norms``. ``bare_norms``: they have no
    weights. ``positions``:
    the rows of a learned table, and which is position 0's. ``embedding_norm``: the embedding is
    normalised. ``behind``: each sum of stream and branch is normalised and is the stream;
    ``final``: there is a norm before the head; ``narrow``: the token table's width, 0 where that
    is the hidden's.
    """

    before: bool = True
    after: bool = False
    offset: float = 0.0
    embedding_scale: float = 1.0
    branch_scale: float = 1.0
    logit_scale: float = 1.0
    logit_cap: float | None = None
    parallel: bool = False
    two_norms: tuple[str, str] | None = None
    head_bias: bool = False
    norm: Norm | None = None
    bare_norms: bool = False
    positions: tuple[int, int] | None = None
    embedding_norm: bool = False
    behind: bool = False
    final: bool = True
    narrow: int = 0


def build_decoder(
    sizes: Sizes,
    attention: Callable[[int], Attention | Mixer],
    ffn: Callable[[Builder, StageKey], StageKey] | None,
    frame: Frame = Frame(),
) -> Graph:
    """hidden + attention(norm(hidden)), then hidden + ffn(norm(hidden)), layer by layer.

    ``attention``: of each layer its attention, or what mixes tokens in its place. ``ffn`` None:
    there is none.
    """
    build = Builder(sizes.hidden, bare_norms=frame.bare_norms)
    norm = frame.norm or sizes.norm(frame.offset)
    order: dict[str, Any] = {
        "before": frame.before,
        "after": frame.after,
        "scale": frame.branch_scale,
    }
    hidden = build.embedding(sizes.vocab, frame.embedding_scale, frame.narrow)
    if frame.positions is not None:
        hidden = build.positions(hidden, *frame.positions)
    if frame.embedding_norm:
        hidden = build.embedding_norm(hidden, norm)
    for layer in range(sizes.layers):
        build.layer = layer
        how = attention(layer)
        mix = partial(how, build) if callable(how) else partial(build.attention, how=how)
        if ffn is None:
            mixed = mix(build.norm("attn_norm", hidden, norm))
            hidden = build.residual("post_ffn_residual", hidden, mixed, frame.branch_scale)
            continue
        if frame.behind:
            hidden = build.normed_behind(hidden, norm, mix, partial(ffn, build))
            continue
        if frame.parallel:
            hidden = build.parallel(hidden, norm, mix, partial(ffn, build), frame.two_norms)
            continue
        hidden = build.branch(hidden, "attn", norm, mix, **order)
        hidden = build.branch(hidden, "ffn", norm, partial(ffn, build), **order)
    build.head(
        hidden, norm if frame.final else None, sizes.vocab, frame.logit_cap, frame.logit_scale,
        biased=frame.head_bias, narrow=frame.narrow,
    )  # fmt: skip
    return build.graph()
