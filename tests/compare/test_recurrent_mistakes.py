"""Mistakes of layers with a state, of latents and of what bounds and scales them: each planted in
three places by numpy, located, and named."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from aprtui.graph import Role
from tests.compare.family_planting import Planted, cases, located, same
from tests.compare.planting import Plant, Scene

pytest.importorskip("transformers", reason="transformers is a dev dependency")

Array = npt.NDArray[np.float64]
TOKENS = tuple((11 * place + 3) % 96 for place in range(40))


def silu(x: Array) -> Array:
    return np.asarray(x / (1 + np.exp(-x)))


# -- the rules, token by token ---------------------------------------------------------------------


def delta(s: Scene, *, lost: int = 0, dealt: bool = False, **instead: float) -> Array:
    """The gated delta rule; ``g`` and ``beta`` may be another number, the state ``lost`` every so
    many tokens, value heads ``dealt``."""
    op, (x, g, beta) = s.own, s.inputs
    g, beta = (np.full_like(each, instead[name]) if name in instead else each
               for name, each in (("g", g), ("beta", beta)))  # fmt: skip
    width = op.key_heads * op.key
    q, k = (x[:, first : first + width].reshape(len(x), op.key_heads, op.key)
            for first in (0, width))  # fmt: skip
    q, k = (each / np.sqrt((each**2).sum(-1, keepdims=True) + op.eps) for each in (q, k))
    v = x[:, 2 * width :].reshape(len(x), op.heads, op.value)
    state, out = np.zeros((op.heads, op.key, op.value)), np.zeros((len(x), op.heads, op.value))
    for t in range(len(x)):
        state = np.zeros_like(state) if lost and t % lost == 0 else state
        for h in range(op.heads):
            of = h % op.key_heads if dealt else h // (op.heads // op.key_heads)
            state[h] = np.exp(g[t, h]).reshape(-1, 1) * state[h]
            state[h] += np.outer(k[t, of], beta[t, h] * (v[t, h] - k[t, of] @ state[h]))
            out[t, h] = q[t, of] @ state[h] / np.sqrt(op.key)
    return state if op.state else out


def scan(s: Scene, *, lost: int = 0, dealt: bool = False, plain: str = "",
         a: Callable[[Array], Array] | None = None) -> Array:  # fmt: skip
    """Mamba 2's scan; ``plain``: "decay", "steps" or "skip" is left out; ``a``: of its weight."""
    op, (x, dt) = s.own, s.inputs
    rate = (a or (lambda w: -np.exp(w)))(s.vector("ssm_a"))
    inner = op.heads * op.size
    values = x[:, :inner].reshape(len(x), op.heads, op.size)
    b, c = x[:, inner:].reshape(len(x), 2, op.groups, op.state).swapaxes(0, 1)
    state, out = np.zeros((op.heads, op.state, op.size)), np.zeros_like(values)
    for t in range(len(x)):
        state = np.zeros_like(state) if lost and t % lost == 0 else state
        for h in range(op.heads):
            of = h % op.groups if dealt else h // (op.heads // op.groups)
            step = 1.0 if plain == "steps" else dt[t, h]
            state[h] = (1.0 if plain == "decay" else np.exp(rate[h] * dt[t, h])) * state[h]
            state[h] += np.outer(b[t, of], step * values[t, h])
            out[t, h] = c[t, of] @ state[h]
            out[t, h] += 0.0 if plain == "skip" else s.vector("ssm_d")[h] * values[t, h]
    return state if op.last else out


def channels(s: Scene, *, lost: int = 0, plain: str = "",
             a: Callable[[Array], Array] | None = None) -> Array:  # fmt: skip
    """Mamba's scan of channels; parameters as ``scan``'s."""
    op, (x, dt, b, c) = s.own, s.inputs
    rate = (a or (lambda w: -np.exp(w)))(s.vector("ssm_a").reshape(op.channels, op.state))
    state, out = np.zeros((op.channels, op.state)), np.zeros_like(x)
    for t in range(len(x)):
        state = np.zeros_like(state) if lost and t % lost == 0 else state
        step = np.ones_like(dt[t]) if plain == "steps" else dt[t]
        state = (1.0 if plain == "decay" else np.exp(rate * dt[t, :, None])) * state
        state = state + np.outer(step * x[t], b[t])
        out[t] = state @ c[t] + (0.0 if plain == "skip" else s.vector("ssm_d") * x[t])
    return np.asarray((state if op.last else out)[:, :, None])


def shifted(s: Scene, by: int) -> Array:
    """The convolution of tokens ``by`` too late."""
    return convolved(s, by, s.own.activation)


def convolved(s: Scene, by: int, activation: str) -> Array:
    op, x = s.own, s.inputs[0][:, s.own.first : s.own.first + s.own.channels]
    weight = s.replay.vector(op.weight).reshape(op.channels, op.taps)
    late = np.concatenate([np.zeros((op.taps - 1 + by, op.channels)), x])
    out = np.zeros_like(x) if op.bias is None else 0 * x + s.replay.vector(op.bias)
    for tap in range(op.taps):
        out = out + late[tap : tap + len(x)] * weight[:, tap]
    return silu(out) if activation == "silu" else out


def gated_norm(s: Scene, *, first: bool, gated: bool = True) -> Array:
    """A gated norm; ``first``: the gate multiplies what is normalised."""
    op, (x, gate) = s.own, s.inputs
    x = x.reshape(len(x), -1, op.size)
    factor = silu(gate.reshape(len(x), -1)[:, : x.shape[1] * op.size]).reshape(x.shape)
    factor = factor if gated else np.ones_like(factor)
    x = x * factor if first else x
    apart = x.reshape(len(x), -1, op.size // op.groups)
    apart = apart / np.sqrt((apart**2).mean(-1, keepdims=True) + op.eps)
    made = apart.reshape(x.shape) * s.replay.vector(op.weight)
    return np.asarray(made if first else made * factor).reshape(s.right.shape)


def first_turned(s: Scene) -> Array:
    """RoPE over the first channels of each head where the last ones turn."""
    op, x = s.own, s.inputs[0]
    heads = x.reshape(len(x), -1)[:, op.heads.columns].reshape(len(x), op.heads.count, -1)
    dims, out = op.table.dims, heads.copy()
    angle = np.arange(len(x))[:, None, None] * op.table.theta ** (-np.arange(0, dims, 2) / dims)
    halves = slice(0, dims // 2), slice(dims // 2, dims)
    pairs = (slice(0, dims, 2), slice(1, dims, 2)) if op.table.pairs == "adjacent" else halves
    one, two = (heads[..., each] for each in pairs)
    out[..., pairs[0]] = one * np.cos(angle) - two * np.sin(angle)
    out[..., pairs[1]] = two * np.cos(angle) + one * np.sin(angle)
    return out


def plain_decay(s: Scene) -> Array:
    """A delta rule's decay whose weight is taken as it is stored."""
    raw = s.inputs[0] @ s.matrix("delta_a").T + s.vector("delta_dt")
    return np.asarray(s.vector("delta_log") * np.logaddexp(0.0, raw))


def unbounded(s: Scene) -> Array:
    op, (x,) = s.own, s.inputs
    raw = x[:, op.first : op.first + op.heads] + s.replay.vector(op.dt)
    return np.logaddexp(0.0, raw)


def unscaled(s: Scene, name: str) -> Array:
    """A part of a product without its factor."""
    out = s.right.copy()
    part = next(part for part in s.own.parts if part.name == name)
    out[:, s.own.columns(part)] /= part.scale * s.own.scale
    return out


def raised(s: Scene, *, layer: int) -> Array:
    """What is adapted, by the adapters of another layer."""
    x, low = s.inputs
    latents = np.split(low, len(s.own.parts), axis=1)
    made = [latent @ matrix(s, part.weight.name, layer).T
            for latent, part in zip(latents, s.own.parts, strict=True)]  # fmt: skip
    return np.asarray(x + np.concatenate(made, axis=1))


def lowered(s: Scene, *, layer: int) -> Array:
    """The latents of another layer's adapters."""
    made = [s.inputs[0] @ matrix(s, part.weight.name, layer).T for part in s.own.parts]
    return np.concatenate(made, axis=1)


def alibi_twice(s: Scene) -> Array:
    """ALiBi once more, on the keys that a query sees; bfloat16 by the bits of a float32."""
    alibi, keys = s.own.alibi, s.right.shape[2]
    placed = np.arange(keys) - (keys - 1 if alibi.from_last else 0)
    slopes = np.array(alibi.slopes)
    made = np.outer(in_bf16(slopes) if alibi.narrow else slopes, placed)
    made = (in_bf16(made) if alibi.narrow else made) * alibi.scale
    return np.asarray(s.right + np.tril(np.ones((keys, keys))) * made[:, None])


def in_bf16(x: Array) -> Array:
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    kept = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16
    return kept.astype(np.uint32).view(np.float32).astype(np.float64)


def unweighed(s: Scene) -> Array:
    """LayerNorm of each head, without the head's own weight."""
    window = s.own.heads
    heads = s.inputs[0].reshape(len(s.right), -1)[:, window.columns].reshape(s.right.shape)
    apart = heads - heads.mean(-1, keepdims=True)
    return np.asarray(apart / np.sqrt((apart**2).mean(-1, keepdims=True) + s.own.eps))


def matrix(s: Scene, name: str, layer: int) -> Array:
    role = Role(name, layer)
    return s.replay.rows(role, range(s.replay.shape(role)[0]))


# -- where they are planted ------------------------------------------------------------------------


SCANS = (("mamba2", "layer-1/ssm_scan"), ("granitemoehybrid", "layer-2/ssm_state"),
         ("falcon_h1", "layer-0/ssm_scan"))  # fmt: skip
OF_CHANNELS = (("mamba", "layer-0/ssm_scan"), ("falcon_mamba", "layer-2/ssm_state"),
               ("jamba", "layer-2/ssm_scan"))  # fmt: skip
RULES = (("qwen3_next", "layer-0/delta_out"), ("qwen3_5", "layer-2/delta_state"),
         ("qwen3_5_moe", "layer-2/delta_out"))  # fmt: skip
BY_ROWS = (("kimi_linear", "layer-0/delta_out"), ("kimi_linear", "layer-2/delta_state"))
SKIPS = (("mamba2", "layer-0/ssm_scan"), ("bamba", "layer-0/ssm_scan"),
         ("nemotron_h", "layer-4/ssm_scan"))  # fmt: skip
PLANTED = (
    Planted("decay_missing", (
        *same(partial(delta, g=0.0), *RULES, *BY_ROWS), *same(partial(scan, plain="decay"), *SCANS),
        *same(partial(channels, plain="decay"), *OF_CHANNELS))),
    Planted("beta_missing", same(partial(delta, beta=1.0), *RULES, *BY_ROWS)),
    Planted("steps_missing", (
        *same(partial(scan, plain="steps"), *SCANS),
        *same(partial(channels, plain="steps"), *OF_CHANNELS))),
    Planted("value_heads_dealt", (
        *same(partial(delta, dealt=True), *RULES), *same(partial(scan, dealt=True), *SCANS))),
    Planted("state_lost", (
        *same(partial(delta, lost=16), *RULES[::2], ("qwen3_5", "layer-0/delta_out"), *BY_ROWS),
        *same(partial(scan, lost=16), *SKIPS),
        *same(partial(channels, lost=16), *OF_CHANNELS)), {"chunk": 16}),
    Planted("scan_skip_missing", (
        *same(partial(scan, plain="skip"), *SKIPS),
        *same(partial(channels, plain="skip"), *OF_CHANNELS[::2]))),
    Planted("decay_weight", (
        ("mamba2", "layer-1/ssm_scan", partial(scan, a=lambda w: w)),
        ("qwen3_5", "layer-2/delta_decay", plain_decay),
        *same(partial(channels, a=lambda w: w), ("mamba", "layer-1/ssm_state")))),
    Planted("conv_shifted", same(
        partial(shifted, by=1), ("lfm2", "layer-0/conv"), ("qwen3_5", "layer-2/delta_conv"),
        ("jamba", "layer-0/ssm_conv")), {"by": 1}),
    Planted("conv_activation_missing", same(
        partial(convolved, by=0, activation="none"), ("qwen3_next", "layer-0/delta_conv"),
        ("mamba", "layer-1/ssm_conv"), ("nemotron_h", "layer-0/ssm_conv"))),
    Planted("steps_unbounded", same(
        unbounded, ("mamba2", "layer-0/ssm_dt"), ("falcon_h1", "layer-2/ssm_dt"),
        ("nemotron_h", "layer-0/ssm_dt"))),
    Planted("gate_missing", (
        *same(lambda s: s.inputs[0].reshape(s.right.shape), ("mamba", "layer-0/ssm_gated"),
              ("falcon_mamba", "layer-1/ssm_gated"), ("jamba", "layer-2/ssm_gated")),
        *same(partial(gated_norm, first=True, gated=False), ("mamba2", "layer-2/ssm_norm"),
              ("falcon_h1", "layer-1/ssm_norm"), ("nemotron_h", "layer-0/ssm_norm")))),
    Planted("gate_order", same(
        partial(gated_norm, first=False), ("mamba2", "layer-1/ssm_norm"),
        ("bamba", "layer-2/ssm_norm"), ("falcon_h1", "layer-0/ssm_norm"))),
    Planted("norm_missing", same(
        lambda s: s.inputs[0].reshape(s.right.shape), ("minicpm3", "layer-1/q_a_norm"),
        ("deepseek_v3", "layer-0/q_a_norm"), ("jamba", "layer-0/ssm_low_norm"))),
    Planted("rope_other_part", same(
        first_turned, ("deepseek_v2", "layer-0/q_post_rope"),
        ("glm4_moe_lite", "layer-1/q_post_rope"), ("minicpm3", "layer-2/q_post_rope"))),
    Planted("clip_missing", same(
        lambda s: s.inputs[0], ("mpt", "layer-0/qkv_clip"), ("mpt", "layer-2/qkv_clip"),
        ("olmo", "layer-1/qkv_clip"))),
    Planted("branch_missing", (
        ("falcon_h1", "layer-0/mixer_out", lambda s: s.inputs[0]),
        ("falcon_h1", "layer-1/mixer_out", lambda s: s.inputs[1]),
        ("falcon_h1", "layer-2/mixer_out", lambda s: s.inputs[0]))),
    Planted("branch_missing", same(
        lambda s: s.inputs[0], ("zamba2", "layer-1/qkv_adapted"),
        ("zamba2", "layer-3/block_gate_adapted"), ("zamba2", "layer-4/block_up_adapted"))),
    Planted("alibi_scaled", same(
        alibi_twice, ("bloom", "layer-1/attn_scores"), ("mpt", "layer-0/attn_scores"),
        ("falcon-alibi", "layer-2/attn_scores")), {"factor": 2.0}),
    Planted("norm_no_weight", same(
        unweighed, ("stablelm-heads", "layer-0/q_norm"), ("stablelm-heads", "layer-1/k_norm"),
        ("stablelm-heads", "layer-2/q_norm"))),
    Planted("other_layer", (
        ("zamba2", "layer-1/qkv_adapted", partial(raised, layer=4)),
        ("zamba2", "layer-4/block_gate_adapted", partial(raised, layer=3)),
        ("zamba2", "layer-3/block_low", partial(lowered, layer=1)))),
    Planted("multiplier_missing", (
        ("falcon_h1", "layer-1/ffn_gate", partial(unscaled, name="gate")),
        ("falcon_h1", "layer-2/ssm_out", partial(unscaled, name="ssm_out")),
        ("falcon_h1", "layer-0/attn_out", partial(unscaled, name="o"))), {"used": 1.0}),
)  # fmt: skip


@pytest.mark.parametrize(("planted", "family", "stage", "plant"), cases(PLANTED))
def test_a_mistake_is_located_and_named(
    planted: Planted, family: str, stage: str, plant: Plant,
    folder: Callable[[str], Path], tmp_path: Path,
) -> None:  # fmt: skip
    mistake = located(planted, folder(family), stage, plant, TOKENS, tmp_path)
    for name, value in planted.parameters.items():
        assert mistake.parameters[name] == value


def test_every_mistake_is_planted_in_three_places() -> None:
    assert all(len(planted.places) >= 3 for planted in PLANTED)
