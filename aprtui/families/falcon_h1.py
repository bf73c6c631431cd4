"""Falcon-H1: in every layer attention and a Mamba 2 scan of one normalised input, whose outputs are
added; factors on inputs, keys, the scan's parts, both branches, the FFN and the logits. In a GGUF
they are multiplied into the weights."""

from __future__ import annotations

from dataclasses import replace

from aprtui.families import decoder
from aprtui.families.classic import both, in_folder, pass_over, read_real
from aprtui.families.family import Family
from aprtui.families.granitemoehybrid import MAMBA, read_inner_scan
from aprtui.families.keys import anything, only
from aprtui.families.mamba2 import read_gguf_scan, scan_tensors
from aprtui.families.rope import read_rope
from aprtui.families.settings import Defaults, Settings
from aprtui.families.tensors import (
    ATTENTION,
    OUTPUT_BIAS,
    PRE_NORMS,
    QKV_BIAS,
    WHOLE,
    Table,
    layer_tensor,
)
from aprtui.formats.tracedir import StageKey
from aprtui.graph import Graph
from aprtui.graph.blocks import Attention, Builder
from aprtui.graph.mamba2 import PARTS, Mamba2, place_mamba2
from aprtui.graph.ops import Combine

__all__ = ["FAMILY"]

_HF = {
    **MAMBA, "vocab_size": 128_000, "hidden_size": 4096, "intermediate_size": 14_336,
    "num_layers": 32, "num_heads": 32, "num_kv_heads": 8, "hidden_act": "silu",
    "max_positions": 8192, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "rope_theta": 1e4,
    "attention_bias": False, "mamba_d_ssm": 1024, "mamba_norm_before_gate": True,
    "mamba_rms_norm": False, "projectors_bias": False, "lm_head_multiplier": 1.0,
    "embedding_multiplier": 1.0, "mlp_multipliers": None, "key_multiplier": 1.0,
    "attention_out_multiplier": 1.0, "attention_in_multiplier": 1.0, "ssm_multipliers": None,
    "ssm_in_multiplier": 1.0, "ssm_out_multiplier": 1.0,
}  # fmt: skip


def _factor(s: Settings, name: str) -> float:
    return read_real(s, name) if in_folder(s) else 1.0


def _factors(s: Settings, name: str, count: int) -> tuple[float, ...]:
    """So many factors; ones where they are null, or in a GGUF."""
    stated = s.take(name) if in_folder(s) else None
    found = [1.0] * count if stated is None else stated
    numbers = isinstance(found, list) and all(type(each) in (int, float) for each in found)
    if not numbers or len(found) != count:
        raise s.fail(f"{name} is {stated!r:.60}, not {count} numbers")
    return tuple(float(each) for each in s.say(name, found))


def _only_unbiased(s: Settings, factor: str, bias: str) -> float:
    """A factor on what a product is given: of one with a bias it would be another's too."""
    found = _factor(s, factor)
    if found != 1.0 and s.flag(bias):
        raise s.fail(f"{factor} is {found:g} and {bias} is true, which is not computed here")
    return found


def _read_scan(s: Settings, hidden: int, eps: float) -> Mamba2:
    if not in_folder(s):
        how = read_gguf_scan(s, eps)
        normed = s.shape("ssm_norm") is not None
        return replace(how, normed=normed, out_biased=False, scales=(1.0,) * len(PARTS))
    if s.take("mamba_d_ssm") is None:
        inner = s.integer("mamba_expand") * hidden
    else:
        pass_over(s, "mamba_expand")
        inner = s.integer("mamba_d_ssm")
    how = read_inner_scan(s, inner, eps, s.activation("hidden_act", "silu"))
    return replace(
        how, out_biased=s.flag("projectors_bias"), normed=s.flag("mamba_rms_norm"),
        gate_first=not s.flag("mamba_norm_before_gate"),
        scales=_factors(s, "ssm_multipliers", len(PARTS)),
        scale_in=_only_unbiased(s, "ssm_in_multiplier", "mamba_proj_bias"),
        scale_out=_factor(s, "ssm_out_multiplier"),
    )  # fmt: skip


def _read_attention(s: Settings, sizes: decoder.Sizes) -> Attention:
    return decoder.attention_of(
        s, sizes, table=read_rope(s, sizes.head_dim),
        mask=decoder.mask_of(decoder.read_causal(s), None), **decoder.read_biases(s),
        scale_in=_only_unbiased(s, "attention_in_multiplier", "attention_bias"),
        scale_k=_factor(s, "key_multiplier"), scale_out=_factor(s, "attention_out_multiplier"),
    )  # fmt: skip


def build(s: Settings) -> Graph:
    sizes = decoder.read_sizes(s, nulls=("num_kv_heads",))
    if in_folder(s):
        pass_over(s, "num_logits_to_keep")
        s.must_be("mlp_bias", (False,), "the FFN's products have biases")
    size, activation = decoder.read_ffn(s), s.activation("hidden_act", "silu")
    scan, how = _read_scan(s, sizes.hidden, sizes.eps), _read_attention(s, sizes)
    scales = _factors(s, "mlp_multipliers", 2)
    decoder.read_tied(s)

    def mix(b: Builder, x: StageKey) -> StageKey:
        attended = b.attention(x, how)
        scanned = place_mamba2(b, x, scan, "ssm_out")
        return b.put("mixer_out", Combine(), attended, scanned)

    return decoder.build_decoder(
        sizes,
        lambda layer: mix,
        lambda b, x: b.gated_mlp(x, size, activation, scales=(scales[0], scales[1])),
        decoder.Frame(
            embedding_scale=_factor(s, "embedding_multiplier"),
            logit_scale=_factor(s, "lm_head_multiplier"),
        ),
    )


_BIASES = tuple(f"{part}_bias" for part in PARTS)
FAMILY = Family(
    Table((
        *WHOLE, PRE_NORMS[0], *ATTENTION, *QKV_BIAS, *OUTPUT_BIAS, *scan_tensors("mamba")[2:],
        layer_tensor("ffn_norm", "pre_ff_layernorm.weight", "ffn_norm", "ffn_norm.weight"),
        layer_tensor("ssm_in", "mamba.in_proj.weight", "ssm_in.weight", holds=PARTS),
        layer_tensor("ssm_in_bias", "mamba.in_proj.bias", "ssm_in.bias", holds=_BIASES),
        *(
            tensor for part in ("gate", "up", "down")
            for tensor in both(part, f"feed_forward.{part}_proj", f"ffn_{part}")
        ),
    )),
    build,
    Defaults(hf=_HF, gguf={"rope_theta": 1e4}),
    published={
        "attn_layer_indices": only(None), "mamba_use_mlp": only(True),
        "mlp_expansion_factor": anything,
    },
)  # fmt: skip
