"""The vocabulary of stages: each name declared once, with its axes and the facts of its tensor.

Definitions: docs/stages.md 2. A capture may hold stages that are not here; they follow the known
ones of their layer.
"""

from __future__ import annotations

from dataclasses import dataclass

from aprtui.formats.tracedir import StageKey

__all__ = [
    "ALIASES", "STAGES", "WHOLE_MODEL_STAGES", "Stage", "axes_of", "facts_of", "order_of",
    "short_name", "stage_of",
]  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """One stage as declared. ``axes`` name its dimensions; ``why_absent`` says why a model may
    not have it, empty for what every model has.

    Facts: ``scope`` is "layer", "first" (only in layer 0) or "model"; ``integers``: compared as
    such; ``rotated``: channels of its query and key heads lie in the order that RoPE's pairs need;
    ``residual``: the stream that layers add to; ``shares``: each row sums to one; ``experts``: of
    the routing and the experts, which some tools show of the last position alone; ``wide``: an
    engine of 16 bits keeps and reads it in float32.
    """

    name: str
    short: str  # at most three letters, for grids
    axes: tuple[str, ...]
    doc: str
    why_absent: str = ""
    scope: str = "layer"
    integers: bool = False
    rotated: bool = False
    residual: bool = False
    shares: bool = False
    experts: bool = False
    wide: bool = False

    @property
    def logits(self) -> bool:
        """Whether it scores the vocabulary: tokens are read from it as it is."""
        return self.axes == ("vocab",)

    @property
    def lens(self) -> bool:
        """Whether tokens are read from it through the model's end: the residual stream, and what
        the final norm makes of it."""
        return self.residual or (self.scope == "model" and self.axes == _HIDDEN)

    @property
    def scores(self) -> bool:
        """Whether it holds a number for each head, query and key."""
        return self.axes == _SCORES


_HIDDEN = ("token", "hidden")
_FFN = ("token", "ffn")
_QKV = ("token", "qkv")
_QUERIES = ("token", "head", "channel")
_KEYS = ("token", "kv_head", "channel")
_SCORES = ("head", "query", "key")
_WIDE = ("token", "width")
_SLOTS = ("token", "slot", "channel")
_STREAMS = ("token", "stream", "hidden")
_NO_ALTUP = "the model has one stream"
_NO_NARROW = "the token table is as wide as the hidden"
_NO_LAUREL = "the model has no residual of low rank"
_NO_LATENT = "the attention has no latent of low rank"
_STATES = ("token", "state_head", "channel")
_NO_SCAN = "no layer is a scan"
_NO_CHANNELS = "no layer is a scan of single channels, or has this norm"
_NO_CONV = "no layer is a short convolution"
_NO_BLOCK = "the layers share no block"
_NO_ADAPTERS = "no layer adapts what it shares with others"
_NO_DELTA = "no layer has a delta rule"
_NO_LOW_GATES = "no layer has a delta rule, or its gates have no latent"
_NO_INDEXER = "the attention looks at all keys, or at those that another layer chose"
_NO_PER_LAYER = "the layers have no embedding of their own"
_NO_ROPE = "the layer turns nothing by its position"
_NO_PRE_NORM = "the family normalises only after its branches"
_NO_FFN_NORM = "the family normalises only after its branches, or once for both"
_NO_POST_NORM = "the family has no norm after this branch"
_NO_QK_NORM = "the family has no QK norm"
_NO_ATTN_GATE = "the attention's output has no gate"
_NO_DENSE = "the FFN is made of experts"
_NO_GATE = "the FFN has no gate, or is made of experts"
_NO_BESIDE = "the FFN and its experts have no norms of their own"
_NO_SHARED = "the model has no shared expert"
_NO_MOE_LATENT = "the experts work on what the layer is given"
_NO_EXPERTS = "the FFN is dense: the model has no experts"

STAGES: tuple[Stage, ...] = (
    Stage("embedding_narrow", "emw", _WIDE, "rows of a table that is narrower than the hidden",
          _NO_NARROW, scope="first"),
    Stage("embedding", "emb", _HIDDEN, "rows of the token table, scaled where the family scales",
          scope="first", residual=True),
    Stage("pos_embedding", "pos", _HIDDEN, "plus the rows of a learned table of positions",
          "positions are not learned", scope="first", residual=True),
    Stage("embedding_norm", "emn", _HIDDEN, "the embedding normalised", "the embedding has no norm",
          scope="first", residual=True),
    Stage("per_layer_embedding", "ple", _WIDE, "rows of a table that holds an embedding a layer",
          _NO_PER_LAYER, scope="first"),
    Stage("per_layer_projection", "plp", _WIDE, "a product of the embedding, a part a layer",
          _NO_PER_LAYER, scope="first"),
    Stage("per_layer_norm", "pln", _SLOTS, "each layer's part of it, normalised", _NO_PER_LAYER,
          scope="first"),
    Stage("per_layer_input", "pli", _SLOTS, "both, added: what each layer is given",
          _NO_PER_LAYER, scope="first"),
    Stage("altup_projected", "alp", _WIDE, "the other streams, not yet of the embedding's size",
          _NO_ALTUP, scope="first"),
    Stage("altup_streams", "als", _STREAMS, "the streams that the first layer is given", _NO_ALTUP,
          scope="first"),
    Stage("altup_modes", "alm", ("token", "stream"), "modes by which the streams are predicted",
          _NO_ALTUP),
    Stage("altup_predicted", "alp", _STREAMS, "the streams as they are predicted", _NO_ALTUP),
    Stage("altup_active", "ala", _HIDDEN, "the stream that the layer computes", _NO_ALTUP),
    Stage("block_in", "bin", _WIDE, "the layer's input and the embedding, side by side", _NO_BLOCK),
    Stage("block_norm", "bnm", _WIDE, "both normalised: what a shared block is given", _NO_BLOCK),
    Stage("attn_norm", "nrm", _HIDDEN, "normalised layer input", _NO_PRE_NORM),
    Stage("laurel_in", "lri", _WIDE, "the layer's input in a low rank", _NO_LAUREL),
    Stage("laurel_out", "lro", _HIDDEN, "and back", _NO_LAUREL),
    Stage("laurel_norm", "lrn", _HIDDEN, "normalised", _NO_LAUREL),
    Stage("laurel", "lrl", _HIDDEN, "plus the layer's input", _NO_LAUREL),
    Stage("qkv_matmul", "qkv", _QKV, "Q, then K, then V of each token, before bias",
          "queries, keys and values are made of latents", rotated=True),
    Stage("qkv_low", "ql", _WIDE, "of Q, K and V the latent of the layer's own adapter",
          _NO_ADAPTERS),
    Stage("qkv_adapted", "+ad", _QKV, "Q, K and V plus what the adapters make", _NO_ADAPTERS,
          rotated=True),
    Stage("qkv_bias", "+b", _QKV, "Q, K and V after bias", "the layers have no q/k/v bias",
          rotated=True),
    Stage("qkv_clip", "clp", _QKV, "Q, K and V kept within a limit",
          "Q, K and V have no limit", rotated=True),
    Stage("q_a", "qa", _WIDE, "latent of the queries", _NO_LATENT),
    Stage("q_a_norm", "qan", _WIDE, "latent of the queries, normalised", _NO_LATENT),
    Stage("q_b", "qb", _WIDE, "Q of each head, of its latent or of the layer's input", _NO_LATENT),
    Stage("kv_a", "kva", _WIDE, "latent of keys and values, then the key that all heads share",
          _NO_LATENT),
    Stage("kv_a_norm", "kvn", _KEYS, "latent of keys and values, normalised", _NO_LATENT),
    Stage("kv_b", "kvb", _WIDE, "of each head the part of K that is not turned, then V",
          _NO_LATENT),
    Stage("q_norm", "qn", _QUERIES, "RMSNorm of each query head", _NO_QK_NORM, rotated=True),
    Stage("k_norm", "kn", _KEYS, "RMSNorm of each key head", _NO_QK_NORM, rotated=True),
    Stage("q_post_rope", "q", _QUERIES, "Q after RoPE", _NO_ROPE, rotated=True),
    Stage("k_post_rope", "k", _KEYS, "K after RoPE, heads not repeated", _NO_ROPE,
          rotated=True),
    Stage("k_joined", "k", _KEYS, "K of each head: its own channels, then those that all share",
          "the layer turns its keys, or has no latent"),
    Stage("v_norm", "vn", _KEYS, "RMSNorm of each value head", "the family has no norm of values"),
    Stage("index_q", "iq", _WIDE, "queries of the indexer, of the queries' latent", _NO_INDEXER),
    Stage("index_q_rope", "iqr", _QUERIES, "the same after RoPE", _NO_INDEXER),
    Stage("index_k", "ik", _WIDE, "keys of the indexer, one head", _NO_INDEXER),
    Stage("index_k_norm", "ikn", _KEYS, "the same, normalised", _NO_INDEXER),
    Stage("index_k_rope", "ikr", _KEYS, "the same after RoPE", _NO_INDEXER),
    Stage("index_weights", "iw", _WIDE, "what each head of the indexer counts", _NO_INDEXER),
    Stage("index_scores", "isc", _SCORES, "by what keys are chosen, of all heads; 0 where masked",
          _NO_INDEXER, wide=True),
    Stage("index_keys", "idk", _SCORES, "1 for each key that is looked at, else 0", _NO_INDEXER,
          integers=True),
    Stage("attn_scores", "sco", _SCORES, "q.k scaled (soft-capped, ALiBi added), 0 where masked"),
    Stage("attn_softmax", "smx", _SCORES, "softmax over the visible keys, 0 elsewhere",
          shares=True),
    Stage("attention", "att", _QUERIES, "softmax times V"),
    Stage("attn_gate", "agt", ("token", "gates"), "what weighs the attention, by head or channel",
          _NO_ATTN_GATE),
    Stage("attn_gated", "a*g", _QUERIES, "attention times its gate", _NO_ATTN_GATE),
    Stage("block_attn_out", "bao", _HIDDEN, "the shared block's attention after its projection",
          _NO_BLOCK),
    Stage("block_ffn_norm", "bfn", _HIDDEN, "the same normalised, for the block's FFN", _NO_BLOCK),
    Stage("block_gate", "bga", _FFN, "its gate projection", _NO_BLOCK),
    Stage("block_up", "bup", _FFN, "its up projection", _NO_BLOCK),
    Stage("block_low", "blo", _WIDE, "the latent of the layer's own adapter of both", _NO_BLOCK),
    Stage("block_gate_adapted", "bg+", _FFN, "gate plus what the adapter makes", _NO_BLOCK),
    Stage("block_up_adapted", "bu+", _FFN, "up plus what the adapter makes", _NO_BLOCK),
    Stage("block_silu", "bac", _FFN, "the activation of the gate", _NO_BLOCK),
    Stage("block_swigl", "bgu", _FFN, "activation times up", _NO_BLOCK),
    Stage("block_out", "bou", _HIDDEN, "what the shared block makes", _NO_BLOCK),
    Stage("block_linear", "bli", _HIDDEN, "times a matrix of the layer's own", _NO_BLOCK),
    Stage("scan_in", "sci", _HIDDEN, "the layer's input plus what the block made", _NO_BLOCK),
    Stage("scan_norm", "scn", _HIDDEN, "normalised input of the scan, where some layers have a "
          "block before it", _NO_BLOCK),
    Stage("conv_in", "cin", _WIDE, "two gates and what they gate of a short convolution", _NO_CONV),
    Stage("conv_x", "cx", _WIDE, "the first gate times what it gates", _NO_CONV),
    Stage("conv", "cnv", _WIDE, "the causal convolution", _NO_CONV),
    Stage("conv_out", "cou", _WIDE, "the convolution times the second gate", _NO_CONV),
    Stage("delta_qkv", "dqk", _WIDE, "Q, K and V of a delta rule, before the convolution",
          _NO_DELTA),
    Stage("delta_gate_low", "dgl", _WIDE, "latent of what gates its output", _NO_LOW_GATES),
    Stage("delta_gate", "dgt", _WIDE, "what gates its output, before the activation", _NO_DELTA),
    Stage("delta_beta", "bet", ("token", "state_head"), "how much of each token is written",
          _NO_DELTA),
    Stage("delta_decay", "dec", ("token", "state_head"),
          "logarithm of what is kept at each token", _NO_DELTA),
    Stage("delta_decay_low", "del", _WIDE, "latent of the decay", _NO_LOW_GATES),
    Stage("delta_row_decay", "der", ("token", "state_head", "row"),
          "logarithm of what each row of the state keeps at each token", _NO_LOW_GATES),
    Stage("delta_conv", "cnv", _WIDE, "Q, K and V after the causal convolution", _NO_DELTA),
    Stage("delta_out", "dou", _STATES, "what the rule reads of its state", _NO_DELTA),
    Stage("delta_state", "dst", ("state_head", "row", "channel"),
          "the state behind the last token", _NO_DELTA),
    Stage("delta_norm", "dnm", _STATES, "the rule's output, normalised and gated", _NO_DELTA),
    Stage("ssm_in", "sin", _WIDE, "gate, what is scanned, its keys, and steps", _NO_SCAN),
    Stage("ssm_conv", "scv", _WIDE, "what is scanned after the causal convolution", _NO_SCAN),
    Stage("ssm_low", "slo", _WIDE, "latent of the steps", _NO_CHANNELS),
    Stage("ssm_low_norm", "sln", _WIDE, "latent of the steps, normalised", _NO_CHANNELS),
    Stage("ssm_b", "sb", _WIDE, "by what each token is written into the states", _NO_CHANNELS),
    Stage("ssm_b_norm", "sbn", _WIDE, "the same, normalised", _NO_CHANNELS),
    Stage("ssm_c", "sc", _WIDE, "by what each token reads the states", _NO_CHANNELS),
    Stage("ssm_c_norm", "scn", _WIDE, "the same, normalised", _NO_CHANNELS),
    Stage("ssm_dt", "sdt", ("token", "state_head"), "how far the state goes at each token",
          _NO_SCAN),
    Stage("ssm_scan", "ssc", _STATES, "what the scan reads of its state, and what it skips",
          _NO_SCAN, wide=True),
    Stage("ssm_state", "sst", ("state_head", "row", "channel"), "the state behind the last token",
          _NO_SCAN),
    Stage("ssm_gated", "s*g", _WIDE, "the scan's output times its gate",
          "the scan's gate is part of its norm, or no layer is a scan"),
    Stage("ssm_norm", "snm", _WIDE, "the scan's output, gated and normalised", _NO_SCAN),
    Stage("ssm_out", "so", _HIDDEN, "the scan's output projection, where attention stands beside",
          "no layer has both a scan and attention"),
    Stage("attn_out", "out", _HIDDEN, "after the output projection and its bias"),
    Stage("mixer_out", "mix", _HIDDEN, "attention's output plus the scan's",
          "no layer has both a scan and attention"),
    Stage("attn_post_norm", "apn", _HIDDEN, "the attention branch normalised before it is added",
          _NO_POST_NORM),
    Stage("post_attn_residual", "+re", _HIDDEN, "hidden after adding the attention branch",
          residual=True),
    Stage("laurel_residual", "+re", _HIDDEN, "plus the residual of low rank, over sqrt(2)",
          _NO_LAUREL, residual=True),
    Stage("ffn_norm", "nrm", _HIDDEN, "normalised FFN input", _NO_FFN_NORM),
    Stage("ffn_gate", "gat", _FFN, "gate projection", _NO_GATE),
    Stage("ffn_sparse", "spa", _FFN, "what is kept of the gates, by how far they stand out",
          "all gates are kept"),
    Stage("ffn_up", "up", _FFN, "up projection", _NO_DENSE),
    Stage("ffn_silu", "act", _FFN, "the activation of the gate, or of up without one",
          _NO_DENSE),
    Stage("ffn_swigl", "gxu", _FFN, "activation times up", _NO_GATE),
    Stage("router_norm", "rnm", _HIDDEN, "the router's own norm of the hidden", _NO_BESIDE,
          experts=True),
    Stage("router_logits", "rlg", ("token", "expert"),
          "the router's product and its bias, before any softmax", _NO_EXPERTS, experts=True),
    Stage("moe_router_indices", "ids", ("token", "rank"), "ids of the chosen experts", _NO_EXPERTS,
          integers=True, experts=True),
    Stage("moe_router", "rtr", ("token", "rank"), "weights of the chosen ids, in their order",
          _NO_EXPERTS, experts=True),
    Stage("moe_norm", "mnm", _HIDDEN, "the hidden normalised for the experts", _NO_BESIDE,
          experts=True),
    Stage("moe_latent", "mla", _WIDE, "what the experts are given, in a low rank", _NO_MOE_LATENT,
          experts=True),
    Stage("moe_ffn_out", "moe", _HIDDEN, "weighted sum of the experts", _NO_EXPERTS,
          experts=True),
    Stage("moe_latent_out", "mlo", _HIDDEN, "and back", _NO_MOE_LATENT, experts=True),
    Stage("moe_post_norm", "mpn", _HIDDEN, "their sum normalised", _NO_BESIDE, experts=True),
    Stage("shared_ffn_gate", "sga", _FFN, "gate projection of the shared expert", _NO_SHARED),
    Stage("shared_ffn_up", "sup", _FFN, "up projection of the shared expert", _NO_SHARED),
    Stage("shared_ffn_silu", "sac", _FFN, "the activation of its gate", _NO_SHARED),
    Stage("shared_ffn_swigl", "sgu", _FFN, "its activation times up", _NO_SHARED),
    Stage("shared_ffn_out", "sou", _HIDDEN, "the shared expert's output", _NO_SHARED),
    Stage("shared_post_norm", "spn", _HIDDEN, "the same, normalised", _NO_BESIDE),
    Stage("shared_gate", "sgt", ("token", "gate"), "sigmoid that weighs the shared expert",
          _NO_SHARED),
    Stage("ffn_out", "out", _HIDDEN, "after the down projection; for experts their sum"),
    Stage("ffn_post_norm", "fpn", _HIDDEN, "the FFN branch normalised before it is added",
          _NO_POST_NORM),
    Stage("ffn_residual", "+re", _HIDDEN, "hidden after adding the FFN branch",
          "the layer ends with the FFN", residual=True),
    Stage("altup_correct_modes", "acm", ("token", "stream"), "modes by which they are corrected",
          _NO_ALTUP),
    Stage("altup_corrected", "alc", _STREAMS, "the streams corrected by what the layer made",
          _NO_ALTUP),
    Stage("altup_first", "alf", _HIDDEN, "the computed one of them, weighed", _NO_ALTUP),
    Stage("per_layer_gate", "plg", _WIDE, "what gates the layer's own embedding", _NO_PER_LAYER),
    Stage("per_layer_act", "pla", _WIDE, "the activation of that gate", _NO_PER_LAYER),
    Stage("per_layer_gated", "plx", _WIDE, "the gate times the layer's own embedding",
          _NO_PER_LAYER),
    Stage("per_layer_out", "plo", _HIDDEN, "after its projection", _NO_PER_LAYER),
    Stage("per_layer_post_norm", "ppn", _HIDDEN, "normalised before it is added", _NO_PER_LAYER),
    Stage("altup_out", "alo", _STREAMS, "the streams behind the layer", _NO_ALTUP),
    Stage("post_ffn_residual", "+re", _HIDDEN, "the layer's output", residual=True),
    Stage("altup_unprojected", "alu", _WIDE, "the other streams, before their size is the first's",
          _NO_ALTUP, scope="model"),
    Stage("altup_merged", "alg", _HIDDEN, "the mean of the streams", _NO_ALTUP, scope="model",
          residual=True),
    Stage("final_norm", "fin", _HIDDEN, "normalised output of the last layer",
          "the layers end with a norm", scope="model"),
    Stage("head_narrow", "hdw", _WIDE, "what the head reads, as narrow as the token table",
          _NO_NARROW, scope="model"),
    Stage("lm_head", "log", ("vocab",), "logits of the last position", scope="model"),
)  # fmt: skip
"""In order of computation."""

ALIASES = {"layer_output": "post_ffn_residual"}
WHOLE_MODEL_STAGES = frozenset(stage.name for stage in STAGES if stage.scope == "model")
_BY_NAME = {stage.name: stage for stage in STAGES}
_RANK = {stage.name: rank for rank, stage in enumerate(STAGES)}


def stage_of(name: str) -> Stage | None:
    """What is declared of a stage; None for one that the vocabulary does not know."""
    return _BY_NAME.get(name)


def facts_of(name: str) -> Stage:
    """What is declared of a stage; of one that is unknown no axes and no facts."""
    return _BY_NAME.get(name) or Stage(name, name[:3], (), "")


def axes_of(name: str) -> tuple[str, ...] | None:
    """The names of a known stage's dimensions."""
    stage = _BY_NAME.get(name)
    return None if stage is None else stage.axes


def order_of(key: StageKey) -> tuple[int, int, str]:
    """A sort key: order of computation; unknown stages after the known ones of their layer."""
    rank = _RANK.get(key.stage, len(_RANK))
    layer = key.layer if key.layer is not None else 1 << 32
    return (layer, rank, key.stage)


def short_name(stage: str) -> str:
    """At most three letters for the head of a grid's column. An unknown stage's name is whole:
    letters that nobody chose may stand for several."""
    known = _BY_NAME.get(stage)
    return known.short if known else stage
