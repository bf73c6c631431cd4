"""Blocks that families are built of: each places its nodes and returns the key of its output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from aprtui.formats.tracedir import StageKey
from aprtui.graph.node import Absent, Axis, Graph, Node
from aprtui.graph.ops import (
    Activate,
    Adapt,
    Add,
    Alibi,
    Attend,
    Bias,
    Choose,
    Clamp,
    Clip,
    Combine,
    Embed,
    Experts,
    Heads,
    Mask,
    Multiply,
    Norm,
    Op,
    Part,
    Positions,
    Product,
    Rope,
    Route,
    Scores,
    Sigmoid,
    Softmax,
    Softplus,
    Temperature,
)
from aprtui.graph.role import Role
from aprtui.graph.rope import RopeTable
from aprtui.graph.vocabulary import STAGES, axes_of

__all__ = ["Attention", "Branch", "Builder", "Routing"]

_PER_TOKEN = ("token", "query", "key")


Branch = Callable[[StageKey], StageKey]
"""Places a branch that reads a stage; returns its output's key."""


@dataclass(frozen=True)
class Attention:
    """One layer's attention. ``norms``: the QK norm's parameters (weight, or heads' own where it
    has some, and window are set where it is placed), None without one; ``table`` None: nothing is
    rotated; ``norm_after_rope``: heads are normalised once they are turned; ``value_dim``: of the
    values' heads, 0 for ``head_dim``, and ``value_scale`` the factor on them. ``gate``: what
    weighs the output, of each head where ``gate_heads``, else of each channel. ``clip``: the limit
    of q, k and v. ``value_norm``: of each value head; ``keys_as_values``: values are the keys
    before their norm; ``shares``: the layer whose turned keys and normalised values it reads,
    having none. ``scale_in``: the factor on what their products are given, ``scale_k``: that on K,
    ``scale_out``: on the output. ``rank``: that of what is added to their products by the layer's
    own adapters, 0 without them."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    mask: Mask
    table: RopeTable | None
    cap: float | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    norms: Norm | None = None
    norm_after_rope: bool = False
    norm_weights: bool = True
    sinks: bool = False
    temperature: Temperature | None = None
    value_dim: int = 0
    value_scale: float = 1.0
    gate: type[Sigmoid | Softplus] | None = None
    gate_heads: bool = False
    alibi: Alibi | None = None
    clip: float | None = None
    value_norm: Norm | None = None
    keys_as_values: bool = False
    shares: int | None = None
    scale_in: float = 1.0
    scale_k: float = 1.0
    scale_out: float = 1.0
    rank: int = 0


@dataclass(frozen=True)
class Routing:
    """How a layer's experts are chosen and what they compute; ``size`` is F of one.

    ``corrected``: a bias of the layer's own takes part in the choice. ``shared_size``: F of an
    expert that every token goes through, weighed by a sigmoid where ``shared_gate``; 0 without one.
    ``by_expert``: ``Route``'s numbers are a weight of the layer's own. ``biased``: the router and
    the experts' products have biases. ``on_input``: of ``Experts``; ``cap``: of the router's
    ``Product``. ``gated`` false: neither they nor the shared one have a
    gate. ``latent``: the channels of what they are given and make, 0 where those are the layer's.
    """

    choose: Choose
    route: Route
    size: int
    activation: str
    shared_size: int = 0
    shared_gate: bool = True
    corrected: bool = False
    by_expert: bool = False
    biased: bool = False
    clamp: Clamp | None = None
    on_input: bool = False
    cap: float | None = None
    gated: bool = True
    latent: int = 0


class Builder:
    """Places nodes in order of computation; ``layer`` None while whole-model stages are placed.

    ``bare_norms``: the norms of the layers and of the end have no weights.
    """

    def __init__(self, hidden_size: int, *, bare_norms: bool = False) -> None:
        self.hidden_size = hidden_size
        self.bare_norms = bare_norms
        self.layer: int | None = 0
        self._nodes: list[Node] = []

    def put(self, stage: str, op: Op, *inputs: StageKey, **extents: int) -> StageKey:
        """A node of the current layer; ``extents`` by the names of the stage's axes."""
        names = axes_of(stage) or ()
        known = {"hidden": self.hidden_size, **extents}
        axes = tuple(Axis(n, None if n in _PER_TOKEN else known[n]) for n in names)
        key = StageKey(self.layer, stage)
        self._nodes.append(Node(key, op, inputs, axes))
        return key

    def role(self, name: str) -> Role:
        return Role(name, self.layer)

    def graph(self) -> Graph:
        """What was placed, and the stages of the vocabulary that were not."""
        placed = {node.key.stage for node in self._nodes}
        absent = (
            Absent(stage.name, stage.why_absent) for stage in STAGES if stage.name not in placed
        )
        return Graph(tuple(self._nodes), tuple(absent))

    # -- whole-model stages --

    def embedding(self, vocab: int, scale: float = 1.0, narrow: int = 0) -> StageKey:
        """Rows of the token table; ``narrow``: its width, where a product makes them the hidden."""
        rows = Embed(Role("embedding"), vocab, scale)
        if not narrow:
            return self.put("embedding", rows)
        table = self.put("embedding_narrow", rows, width=narrow)
        part = Part("project_in", Role("project_in"), self.hidden_size)
        return self.put("embedding", Product((part,)), table)

    def positions(self, hidden: StageKey, rows: int, first: int = 0) -> StageKey:
        """hidden plus a learned table of ``rows`` positions, of which ``first`` is position 0's."""
        return self.put("pos_embedding", Positions(Role("positions"), rows, first), hidden)

    def embedding_norm(self, hidden: StageKey, norm: Norm) -> StageKey:
        """A norm of what enters the first layer, with a weight of the whole model's."""
        bias = Role("embedding_norm_bias") if norm.bias is not None else None
        op = replace(norm, weight=Role("embedding_norm"), bias=bias)
        return self.put("embedding_norm", op, hidden)

    def head(
        self,
        hidden: StageKey,
        norm: Norm | None,
        vocab: int,
        cap: float | None = None,
        scale: float = 1.0,
        *,
        biased: bool = False,
        narrow: int = 0,
    ) -> None:
        """Final norm, where there is one, and logits; ``norm``'s weight is set here. ``narrow``:
        of ``embedding``."""
        self.layer = None
        read = hidden if norm is None else self.norm("final_norm", hidden, norm)
        if narrow:
            out = Part("project_out", Role("project_out"), narrow)
            read = self.put("head_narrow", Product((out,)), read, width=narrow)
        part = Part("head", Role("head"), vocab, Role("head_bias") if biased else None)
        self.put("lm_head", Product((part,), scale, cap, last=True), read, vocab=vocab)

    # -- parts of a layer --

    def norm(self, stage: str, x: StageKey, norm: Norm, name: str = "") -> StageKey:
        """A norm of [T,H] with the weight, and where there is one the bias, of that ``name``, else
        of the stage's own."""
        name = name or stage
        bias = self.role(f"{name}_bias") if norm.bias is not None else None
        weight = None if self.bare_norms else self.role(name)
        return self.put(stage, replace(norm, weight=weight, bias=bias), x)

    def residual(
        self, stage: str, hidden: StageKey, branch: StageKey, scale: float = 1.0, total: float = 1.0
    ) -> StageKey:
        return self.put(stage, Add(scale, total), hidden, branch)

    def branch(
        self,
        hidden: StageKey,
        name: str,
        norm: Norm,
        compute: Branch,
        *,
        before: bool = True,
        after: bool = False,
        scale: float = 1.0,
        total: float = 1.0,
        stage: str = "",
    ) -> StageKey:
        """hidden + ``scale`` times compute(hidden), which is normalised ``before``, ``after``, or
        both; all of it times ``total``.

        ``name`` is "attn" or "ffn"; ``stage``: what the sum is called, where the layer goes on.
        """
        x = self.norm(f"{name}_norm", hidden, norm) if before else hidden
        made = compute(x)
        if after:
            made = self.norm(f"{name}_post_norm", made, norm)
        return self.residual(stage or f"post_{name}_residual", hidden, made, scale, total)

    def parallel(
        self, hidden: StageKey, norm: Norm, mix: Branch, ffn: Branch,
        two: tuple[str, str] | None = None,
    ) -> StageKey:  # fmt: skip
        """hidden + mix(x) + ffn(x), where x is the one norm of hidden, or each has a norm of its
        own, with the weights of ``two``."""
        x = self.norm("attn_norm", hidden, norm, two[0] if two else "")
        mixed = mix(x)
        made = ffn(self.norm("ffn_norm", hidden, norm, two[1]) if two else x)
        return self.residual(
            "post_ffn_residual", self.residual("post_attn_residual", hidden, mixed), made
        )

    def normed_behind(self, hidden: StageKey, norm: Norm, mix: Branch, ffn: Branch) -> StageKey:
        """norm(hidden + mix(hidden)), then the same with the FFN; the stream is what the norms
        make, whose weights are those of the norms before the branches elsewhere."""
        mixed = self.residual("post_attn_residual", hidden, mix(hidden))
        hidden = self.norm("ffn_norm", mixed, norm, "attn_norm")
        made = self.residual("ffn_residual", hidden, ffn(hidden))
        return self.norm("post_ffn_residual", made, norm, "ffn_norm")

    def attention(self, x: StageKey, how: Attention, last: str = "attn_out") -> StageKey:
        """From the normalised input to the output projection, whose stage is ``last``."""
        value_dim = how.value_dim or how.head_dim
        qkv, windows = self._projected(x, how)
        placed = self._turned(qkv, windows, how)
        (q, queries), (v, values) = placed["q"], placed["v"]
        k, keys = placed["k"]
        score = Scores(
            how.heads, how.kv_heads, how.scale, how.mask, how.cap,
            queries if q == qkv else None, keys if k == qkv else None, how.temperature,
            how.alibi,
        )  # fmt: skip
        scores = self.put("attn_scores", score, q, k, head=how.heads)
        sinks = self.role("sinks") if how.sinks else None
        softmax = Softmax(how.mask, sinks, how.heads if sinks else 0)
        weights = self.put("attn_softmax", softmax, scores, head=how.heads)
        extents = {"head": how.heads, "channel": value_dim}
        attend = Attend(how.heads, values, how.value_scale)
        mixed = self.put("attention", attend, weights, v, **extents)
        if how.gate is not None:
            rows = how.heads * (1 if how.gate_heads else value_dim)
            part = Part("attn_gate", self.role("attn_gate"), rows)
            gate = self.put("attn_gate", how.gate(part), x, gates=rows)
            mixed = self.put("attn_gated", Multiply(), mixed, gate, **extents)
        bias = self.role("o_bias") if how.output_bias else None
        out = Part("o", self.role("o"), self.hidden_size, bias, how.scale_out)
        return self.put(last, Product((out,)), mixed)

    def _projected(self, x: StageKey, how: Attention) -> tuple[StageKey, dict[str, Heads]]:
        """Q, K and V as they are projected, and the window of each; only Q where the layer shares
        another's keys."""
        value_dim = how.value_dim or how.head_dim
        windows = {"q": Heads(0, how.heads, how.head_dim)}
        if how.shares is None:
            windows["k"] = Heads(windows["q"].width, how.kv_heads, how.head_dim)
            own = Heads(windows["k"].first + windows["k"].width, how.kv_heads, value_dim)
            windows["v"] = windows["k"] if how.keys_as_values else own
        parts = tuple(
            Part(n, self.role(n), heads.width, self.role(f"{n}_bias") if how.qkv_bias else None,
                 how.scale_k if n == "k" else 1.0)
            for n, heads in windows.items()
            if not (n == "v" and how.keys_as_values)
        )  # fmt: skip
        width = sum(part.rows for part in parts)
        plain = tuple(replace(part, bias=None) for part in parts)
        qkv = self.put("qkv_matmul", Product(plain, given=how.scale_in), x, qkv=width)
        if how.rank:
            latents = tuple(self._part(f"{part.name}_low", how.rank) for part in parts)
            low = self.put("qkv_low", Product(latents), x, width=len(parts) * how.rank)
            raised = tuple(self._part(f"{part.name}_high", part.rows) for part in parts)
            qkv = self.put("qkv_adapted", Adapt(raised, how.rank), qkv, low, qkv=width)
        if how.qkv_bias:
            qkv = self.put("qkv_bias", Bias(parts), qkv, qkv=width)
        if how.clip is not None:
            qkv = self.put("qkv_clip", Clip(how.clip), qkv, qkv=width)
        return qkv, windows

    def _turned(
        self, qkv: StageKey, windows: dict[str, Heads], how: Attention
    ) -> dict[str, tuple[StageKey, Heads]]:
        """Where Q, K and V lie once Q and K are normalised, where there is a QK norm, and turned,
        where there is a table, and V is normalised, where it is."""
        axes = {"q": "head", "k": "kv_head"}
        placed = {which: (qkv, heads) for which, heads in windows.items()}
        steps: list[tuple[str, Callable[[str, Heads], Op]]] = []
        if (norm := how.norms) is not None:
            weighed = how.norm_weights and not norm.own
            steps.append(("norm", lambda which, heads: replace(
                norm, heads=heads, weight=self.role(f"{which}_norm") if weighed else None,
                bias=self.role(f"{which}_norm_bias") if norm.bias is not None else None,
                own=tuple(self.role(f"{which}_norm")._replace(expert=head)
                          for head in range(heads.count if norm.own else 0)),
            )))  # fmt: skip
        if (table := how.table) is not None:
            place = 0 if how.norm_after_rope else len(steps)
            steps.insert(place, ("post_rope", lambda which, heads: Rope(table, heads)))
        for step, op in steps:
            for which in [each for each in axes if each in placed]:
                x, heads = placed[which]
                extents = {axes[which]: heads.count, "channel": heads.size}
                x = self.put(f"{which}_{step}", op(which, heads), x, **extents)
                placed[which] = (x, replace(heads, first=0))
        if how.value_norm is not None and how.shares is None:
            x, heads = placed["v"]
            made = replace(how.value_norm, heads=heads)
            x = self.put("v_norm", made, x, kv_head=heads.count, channel=heads.size)
            placed["v"] = (x, replace(heads, first=0))
        if how.shares is not None:
            heads = Heads(0, how.kv_heads, how.head_dim)
            for which, stage in {"k": "k_post_rope", "v": "v_norm"}.items():
                placed[which] = (StageKey(how.shares, stage), heads)
        return placed

    def gated_mlp(
        self, x: StageKey, size: int, activation: str, stages: str = "ffn", roles: str = "",
        scales: tuple[float, float] = (1.0, 1.0), kept: Op | None = None, *, biased: bool = False,
    ) -> StageKey:  # fmt: skip
        """down(activation(gate(x)) * up(x)), gate and down times their ``scales``; ``stages`` and
        ``roles`` begin the names. ``kept``: what is kept of the gates before the activation;
        ``biased``: all three products have a bias."""
        of_gate, of_down = scales
        matrix = self._matrix(f"{roles}gate", size, biased, scale=of_gate)
        gate = self.put(f"{stages}_gate", matrix, x, ffn=size)
        up = self.put(f"{stages}_up", self._matrix(f"{roles}up", size, biased), x, ffn=size)
        if kept is not None:
            gate = self.put("ffn_sparse", kept, gate, ffn=size)
        act = self.put(f"{stages}_silu", Activate(activation), gate, ffn=size)
        inner = self.put(f"{stages}_swigl", Multiply(), act, up, ffn=size)
        matrix = self._matrix(f"{roles}down", self.hidden_size, biased, scale=of_down)
        return self.put(f"{stages}_out", matrix, inner)

    def plain_mlp(
        self, x: StageKey, size: int, activation: str | Op, stages: str = "ffn", roles: str = "",
        *, biased: bool = False,
    ) -> StageKey:  # fmt: skip
        """down(activation(up(x))), both products with a bias where ``biased``.

        ``activation``: by its name, or an operation of its own; ``stages`` and ``roles`` begin the
        names.
        """
        up = self.put(f"{stages}_up", self._matrix(f"{roles}up", size, biased), x, ffn=size)
        op = Activate(activation) if isinstance(activation, str) else activation
        act = self.put(f"{stages}_silu", op, up, ffn=size)
        matrix = self._matrix(f"{roles}down", self.hidden_size, biased)
        return self.put(f"{stages}_out", matrix, act)

    def _part(self, name: str, rows: int) -> Part:
        return Part(name, self.role(name), rows)

    def _matrix(self, name: str, rows: int, biased: bool = False, scale: float = 1.0) -> Product:
        bias = self.role(f"{name}_bias") if biased else None
        return Product((Part(name, self.role(name), rows, bias, scale),))

    def experts(self, x: StageKey, routing: Routing) -> StageKey:
        """Router, chosen experts and their sum, and the shared expert where there is one."""
        routed = self.routed(x, x, routing)
        if not routing.shared_size:
            return self.put("ffn_out", Combine(), routed)
        mlp = self.gated_mlp if routing.gated else self.plain_mlp
        shared = mlp(x, routing.shared_size, routing.activation, "shared_ffn", "shared_expert_")
        if not routing.shared_gate:
            return self.put("ffn_out", Combine(), routed, shared)
        part = Part("shared_gate", self.role("shared_gate"), 1)
        gate = self.put("shared_gate", Sigmoid(part), x, gate=1)
        return self.put("ffn_out", Combine(), routed, shared, gate)

    def routed(self, asked: StageKey, x: StageKey, routing: Routing) -> StageKey:
        """The sum of the experts that a router chooses by ``asked``, of x."""
        choose, count, top = routing.choose, routing.choose.experts, routing.choose.top
        if routing.corrected:
            choose = replace(choose, bias=self.role("correction_bias"))
        router = replace(self._matrix("router", count, routing.biased), cap=routing.cap)
        logits = self.put("router_logits", router, asked, expert=count)
        ids = self.put("moe_router_indices", choose, logits, rank=top)
        route = routing.route
        if routing.by_expert:
            route = replace(route, by_expert=self.role("expert_factor"))
        weights = self.put("moe_router", route, logits, ids, rank=top)
        sum_of = Experts(
            self.role("expert_gate") if routing.gated else None, self.role("expert_up"),
            self.role("expert_down"), count, routing.size, routing.activation, routing.biased,
            routing.clamp, routing.on_input,
        )  # fmt: skip
        given, width = x, routing.latent or self.hidden_size
        if routing.latent:
            given = self.put("moe_latent", self._matrix("latent_down", width), x, width=width)
        routed = self.put("moe_ffn_out", sum_of, given, weights, ids, hidden=width)
        if routing.latent:
            routed = self.put("moe_latent_out", self._matrix("latent_up", self.hidden_size), routed)
        return routed
