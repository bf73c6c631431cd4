"""The operations of the stage graph, one function each; every one works in the dtype of its input.

Shapes use the symbols of specs/stages.md: T tokens, H hidden, A query heads, K key/value heads,
d head size, F ffn, V vocabulary, k experts per token. Families: specs/numerics.md 3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as functional

from aprtui.engine.stages import Node
from aprtui.engine.staging import send
from aprtui.engine.weights import WeightStream
from aprtui.model.config import ModelConfig
from aprtui.model.roles import Role

__all__ = ["OPERATIONS", "Operands", "attention_blocks", "visible"]

Tensor = torch.Tensor

# Values of one block of attention scores. Blocks depend on the prompt's length alone, so that
# watching the scores changes no number.
SCORE_BLOCK_VALUES = 1 << 23


@dataclass(frozen=True)
class Operands:
    """What every operation may need beside its inputs."""

    config: ModelConfig
    weights: WeightStream
    tokens: tuple[int, ...]
    logits: str = "last"
    _angles: dict[tuple[object, ...], tuple[Tensor, Tensor]] = field(
        default_factory=dict, compare=False, repr=False
    )

    def angles(self, layer: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """``rotation`` of a layer for x [T,heads,d], in x's wide dtype and on its device.

        Kept: most layers turn by the same angles.
        """
        theta, divisor = self.config.theta(layer), self.config.position_divisor(layer)
        key = (theta, divisor, x.shape[0], x.dtype, x.device)
        if key not in self._angles:
            dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
            cos, sin = rotation(self.config, layer, x.shape[0])
            self._angles[key] = send(cos.to(dtype), x.device), send(sin.to(dtype), x.device)
        return self._angles[key]


Operation = Callable[[Operands, Node, tuple[Tensor, ...]], Tensor]


def _wide(x: Tensor) -> Tensor:
    """x in at least float32: norms, angles and softmax are computed so whatever the dtype."""
    return x if x.dtype == torch.float64 else x.float()


def _role(node: Node, index: int = 0) -> Role:
    return Role(node.kind.weights[index], node.key.layer)


def embed(op: Operands, node: Node, inputs: tuple[Tensor, ...]) -> Tensor:
    """Rows of the token table [T,H], scaled."""
    rows = op.weights.rows(Role("embedding"), op.tokens)
    return rows * op.config.embedding_scale if op.config.embedding_scale != 1.0 else rows


def normalise(x: Tensor, weight: Tensor, config: ModelConfig) -> Tensor:
    """RMSNorm over the last dimension: x / sqrt(mean(x^2) + eps) * (offset + w)."""
    wide = _wide(x)
    inverse = torch.rsqrt(wide.square().mean(-1, keepdim=True) + config.rms_norm_eps)
    return (wide * inverse * (_wide(weight) + config.norm_offset)).to(x.dtype)


def rms_norm(op: Operands, node: Node, inputs: tuple[Tensor, ...]) -> Tensor:
    """[T,H] normalised."""
    return normalise(inputs[0], op.weights.vector(_role(node)), op.config)


def qkv(op: Operands, node: Node, inputs: tuple[Tensor, ...]) -> Tensor:
    """Q, then K, then V of each token [T, A*d + 2*K*d]."""
    layer = node.key.layer
    return torch.cat([op.weights.linear(inputs[0], Role(part, layer)) for part in "qkv"], dim=1)


def qkv_bias(op: Operands, node: Node, inputs: tuple[Tensor, ...]) -> Tensor:
    """The same plus the three biases."""
    layer = node.key.layer
    return inputs[0] + torch.cat([op.weights.vector(Role(f"{p}_bias", layer)) for p in "qkv"])


def query_heads(x: Tensor, config: ModelConfig) -> Tensor:
    """Q [T,A,d], cut out of [T, A*d + 2*K*d] where it is not separate already."""
    part = x if x.dim() == 3 else x[:, : config.q_size]
    return part.reshape(x.shape[0], config.num_heads, config.head_dim)


def key_heads(x: Tensor, config: ModelConfig) -> Tensor:
    """K [T,K,d], likewise."""
    part = x if x.dim() == 3 else x[:, config.q_size : config.q_size + config.kv_size]
    return part.reshape(x.shape[0], config.num_kv_heads, config.head_dim)


def value_heads(x: Tensor, config: ModelConfig) -> Tensor:
    """V [T,K,d] out of [T, A*d + 2*K*d]."""
    part = x[:, config.q_size + config.kv_size :]
    return part.reshape(x.shape[0], config.num_kv_heads, config.head_dim)


def q_norm(op: Operands, node: Node, inputs: tuple[Tensor, ...]) -> Tensor:
    """RMSNorm of each query head [T,A,d]."""
    return normalise(query_heads(inputs[0], op.config), op.weights.vector(_role(node)), op.config)


def k_norm(op: Operands, node: Node, inputs: tuple[Tensor, ...]) -> Tensor:
    """RMSNorm of each key head [T,K,d]."""
    return normalise(key_heads(inputs[0], op.config), op.weights.vector(_role(node)), op.config)


def rotation(config: ModelConfig, layer: int, tokens: int) -> tuple[Tensor, Tensor]:
    """cos and sin [T, d/2] float64, on the CPU, of the angles position * theta^(-2i/d) / divisor_i.

    Angles are float64 whatever the dtype: float32 angles lose 1e-5 beyond 1,000 positions.
    """
    half = config.head_dim // 2
    pairs = torch.arange(half, dtype=torch.float64)
    frequency = config.theta(layer) ** (-2.0 * pairs / config.head_dim)
    if config.rope_divisors:
        frequency = frequency / torch.tensor(config.rope_divisors, dtype=torch.float64)
    positions = torch.arange(tokens, dtype=torch.float64) / config.position_divisor(layer)
    angles = torch.outer(positions, frequency)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor, layout: str) -> Tensor:
    """x [T,heads,d] with its pairs rotated: (i, i+d/2) for ``halves``, (2i, 2i+1) otherwise."""
    wide = _wide(x)
    cos, sin = cos[:, None, :].to(wide), sin[:, None, :].to(wide)
    if layout == "halves":
        first, second = wide.chunk(2, dim=-1)
        turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    else:
        first, second = wide[..., 0::2], wide[..., 1::2]
        turned = torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return turned.reshape(x.shape).to(x.dtype)


def _rope(op: Operands, node: Node, heads: Tensor) -> Tensor:
    layer = node.key.layer or 0
    cos, sin = op.angles(layer, heads)
    return rotate(heads, cos, sin, op.config.rope_layout)


def q_rope(op: Operands, node: Node, inputs: tuple[Tensor, ...]) -> Tensor:
    """Q after RoPE [T,A,d]."""
    return _rope(op, node, query_heads(inputs[0], op.config))


def k_rope(op: Operands, node: Node, inputs: tuple[Tensor, ...]) -> Tensor:
    """K after RoPE [T,K,d]."""
    return _rope(op, node, key_heads(inputs[0], op.config))


def visible(
    config: ModelConfig, layer: int, first: int, last: int, keys: int, device: torch.device
) -> Tensor:
    """Which keys the queries first..last see [last-first, keys] bool: causal, inside the window."""
    queries = torch.arange(first, last, device=device)[:, None]
    key = torch.arange(keys, device=device)[None, :]
    seen = key <= queries
    window = config.window(layer)
    return seen if window is None else seen & (queries - key < window)


def score_block(config: ModelConfig, q: Tensor, k: Tensor, seen: Tensor) -> Tensor:
    """Scores [A,t,S] of queries [t,A,d] and keys [S,K,d]: scaled, capped, 0 where not seen."""
    queries, keys = q.shape[0], k.shape[0]
    groups = config.num_heads // config.num_kv_heads
    grouped = q.reshape(queries, config.num_kv_heads, groups, config.head_dim)
    grouped = grouped.permute(1, 2, 0, 3).reshape(config.num_kv_heads, -1, config.head_dim)
    scores = torch.bmm(grouped, k.permute(1, 2, 0)) * config.scale
    if config.score_softcap is not None:
        scores = torch.tanh(scores / config.score_softcap) * config.score_softcap
    return scores.reshape(config.num_heads, queries, keys).masked_fill(~seen, 0.0)


def softmax_block(scores: Tensor, seen: Tensor) -> Tensor:
    """Softmax [A,t,S] over the keys that are seen, 0 elsewhere."""
    masked = _wide(scores).masked_fill(~seen, float("-inf"))
    return torch.softmax(masked, dim=-1).to(scores.dtype)


def attend_block(config: ModelConfig, weights: Tensor, v: Tensor) -> Tensor:
    """Attention [t,A,d] of softmax weights [A,t,S] over values [S,K,d]."""
    queries = weights.shape[1]
    grouped = weights.reshape(config.num_kv_heads, -1, weights.shape[2])
    mixed = torch.bmm(grouped, v.permute(1, 0, 2))
    return mixed.reshape(config.num_heads, queries, config.head_dim).permute(1, 0, 2).contiguous()


def attention_blocks(config: ModelConfig, tokens: int) -> list[tuple[int, int]]:
    """The blocks of queries (first, last) in which attention is computed."""
    step = max(1, SCORE_BLOCK_VALUES // (config.num_heads * tokens))
    return [(first, min(first + step, tokens)) for first in range(0, tokens, step)]


def scores(op: Operands, node: Node, inputs: tuple[Tensor, ...]) -> Tensor:
    """All scores at once [A,T,T]; for replay. The pass itself goes block by block."""
    q, k = inputs
    seen = visible(op.config, node.key.layer or 0, 0, q.shape[0], k.shape[0], q.device)
    return score_block(op.config, q, k, seen)


def softmax(op: Operands, node: Node, inputs: tuple[Tensor, ...]) -> Tensor:
    """All softmax rows at once [A,T,T]; for replay."""
    size = inputs[0].shape[-1]
    seen = visible(op.config, node.key.layer or 0, 0, size, size, inputs[0].device)
    return softmax_block(inputs[0], seen)


def attend(op: Operands, node: Node, inputs: tuple[Tensor, ...]) -> Tensor:
    """Softmax times V [T,A,d]; for replay."""
    return attend_block(op.config, inputs[0], value_heads(inputs[1], op.config))


def linear(op: Operands, node: Node, inputs: tuple[Tensor, ...]) -> Tensor:
    """x times the matrix transposed, plus the bias where the model has one."""
    x = inputs[0].reshape(inputs[0].shape[0], -1)
    out = op.weights.linear(x, _role(node))
    if len(node.kind.weights) > 1 and op.config.output_bias:
        out += op.weights.vector(_role(node, 1))
    return out


def add(op: Operands, node: Node, inputs: tuple[Tensor, ...]) -> Tensor:
    return inputs[0] + inputs[1]


def multiply(op: Operands, node: Node, inputs: tuple[Tensor, ...]) -> Tensor:
    return inputs[0] * inputs[1]


def activate(x: Tensor, name: str) -> Tensor:
    """silu(x), or gelu(x) by its tanh formula."""
    return functional.silu(x) if name == "silu" else functional.gelu(x, approximate="tanh")


def activation(op: Operands, node: Node, inputs: tuple[Tensor, ...]) -> Tensor:
    return activate(inputs[0], op.config.activation)


def route(op: Operands, node: Node, x: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and ids [T,k] of the chosen experts: softmax over all, the top k, renormalised.

    Equal probabilities go to the lower id, as a stable sort leaves them.
    """
    gate = op.weights.linear(x, Role("router", node.key.layer))
    probabilities = torch.softmax(_wide(gate), dim=-1)
    ordered, ids = torch.sort(probabilities, dim=-1, descending=True, stable=True)
    chosen, ids = (
        ordered[:, : op.config.num_experts_per_tok],
        ids[:, : op.config.num_experts_per_tok],
    )
    if op.config.norm_topk_prob:
        chosen = chosen / chosen.sum(-1, keepdim=True)
    return chosen.to(x.dtype), ids


def router(op: Operands, node: Node, inputs: tuple[Tensor, ...]) -> Tensor:
    return route(op, node, inputs[0])[0]


def router_indices(op: Operands, node: Node, inputs: tuple[Tensor, ...]) -> Tensor:
    return route(op, node, inputs[0])[1]


def experts(op: Operands, node: Node, inputs: tuple[Tensor, ...]) -> Tensor:
    """The weighted sum [T,H] of each token's experts; only those that some token chose are read."""
    x, weights, ids = inputs
    layer = node.key.layer
    out = torch.zeros_like(x)
    places: dict[int, list[tuple[int, int]]] = {}
    for token, row in enumerate(ids.tolist()):  # a device is waited for here, and not again
        for rank, expert in enumerate(row):
            places.setdefault(int(expert), []).append((token, rank))
    for expert, chosen_at in sorted(places.items()):
        tokens, ranks = send(torch.tensor(chosen_at).T.contiguous(), x.device)
        chosen = x[tokens]
        gate = activate(
            op.weights.linear(chosen, Role("expert_gate", layer, expert)), op.config.activation
        )
        up = op.weights.linear(chosen, Role("expert_up", layer, expert))
        down = op.weights.linear(gate * up, Role("expert_down", layer, expert))
        out[tokens] += down * weights[tokens, ranks, None]
    return out


def ffn_out(op: Operands, node: Node, inputs: tuple[Tensor, ...]) -> Tensor:
    """The down projection [T,H]; for experts their sum as it is."""
    if op.config.num_experts:
        return inputs[0]
    return op.weights.linear(inputs[0], _role(node))


def head(op: Operands, node: Node, inputs: tuple[Tensor, ...]) -> Tensor:
    """Logits [V] of the last position, or [T,V] of all."""
    x = inputs[0] if op.logits == "all" else inputs[0][-1:]
    out = op.weights.linear(x, Role("head"))
    if op.config.logit_softcap is not None:
        out = torch.tanh(out / op.config.logit_softcap) * op.config.logit_softcap
    return out if op.logits == "all" else out[0]


OPERATIONS: dict[str, Operation] = {
    "embed": embed,
    "rms_norm": rms_norm,
    "qkv": qkv,
    "qkv_bias": qkv_bias,
    "q_norm": q_norm,
    "k_norm": k_norm,
    "q_rope": q_rope,
    "k_rope": k_rope,
    "scores": scores,
    "softmax": softmax,
    "attend": attend,
    "linear": linear,
    "add": add,
    "activation": activation,
    "multiply": multiply,
    "router": router,
    "router_indices": router_indices,
    "experts": experts,
    "ffn_out": ffn_out,
    "head": head,
}
