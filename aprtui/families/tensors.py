"""Tensor tables: what each tensor of a family is for, and what the formats call it.

Sources: Hugging Face checkpoints, llama.cpp's tensor names, Mistral's own, docs/apr-format.md 2.2.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from aprtui.formats.modelfile import TensorEntry
from aprtui.graph import Role

__all__ = [
    "ATTENTION", "ATTENTION_GATE", "CORRECTION_BIAS", "DENSE", "EXPERTS", "NORM_BIASES",
    "OUTPUT_BIAS", "PACKED_EXPERTS", "POST_NORMS", "PRE_NORMS", "QKV_BIAS", "QK_NORM",
    "SANDWICH_NORMS", "SHARED_EXPERT", "SINKS", "WHOLE", "Sorted", "Table", "Tensor",
    "layer_tensor",
]  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """One role of a family and the names of its tensor, without the prefix of the whole model.

    A name may have ``{layer}`` and ``{expert}``. ``holds``: the roles whose rows lie one after the
    other in a fused tensor, of which the role's own name is only the label. ``packed``: all experts
    of the layer in one tensor [E,rows,columns]. ``in_turn``: the roles' rows take turns, one by
    one; ``by_head``: those of a key/value head's queries, of the head itself and of its values;
    ``by_query``: those of each query head;
    ``transposed``: each matrix lies as [columns,rows], ``either``: it does where only that fits.
    ``numbered``: the number in a name is that of one of several, as an expert's, and no layer's.
    ``constant``: a few numbers that are parameters of the graph's operations, not weights.
    """

    role: str
    names: tuple[str, ...]
    holds: tuple[str, ...] = ()
    packed: bool = False
    in_turn: bool = False
    by_head: bool = False
    by_query: bool = False
    transposed: bool = False
    either: bool = False
    constant: bool = False
    numbered: bool = False

    def shape(self, parts: Sequence[tuple[int, ...]], experts: int) -> tuple[int, ...]:
        """What it must be where it holds weights of these shapes, of so many experts."""
        total, rest = sum(part[0] for part in parts), parts[0][1:]
        shape = (*rest, total) if self.transposed else (total, *rest)
        return (experts, *shape) if self.packed else shape


def layer_tensor(role: str, *suffixes: str, holds: tuple[str, ...] = (), **how: bool) -> Tensor:
    """A layer's tensor: suffixes behind ``layers.N.`` (Hugging Face's and Mistral's; ``h.N.`` and
    ``blocks.N.`` of older models) and ``blk.N.`` (llama.cpp's); any may stand behind any, as some
    converters mix them. ``how``: the flags of ``Tensor``."""
    heads = ("layers.{layer}.", "h.{layer}.", "blocks.{layer}.", "blk.{layer}.")
    names = tuple(head + suffix for suffix in suffixes for head in heads)
    return Tensor(role, names, holds, **how)


_ENDS = ("ln_f", "norm_f", "final_layer_norm", "final_layernorm", "output_norm")
WHOLE = (
    Tensor("embedding", (
        "embed_tokens.weight", "wte.weight", "embeddings.word_embeddings.weight",
        "embed_in.weight", "word_embeddings.weight", "tok_embeddings.weight", "token_embd.weight",
    )),
    Tensor("final_norm", ("norm.weight", *(f"{name}.weight" for name in _ENDS))),
    Tensor("head", ("lm_head.weight", "embed_out.weight", "output.weight")),
    Tensor("rope_freqs", ("rope_freqs.weight",)),
    Tensor("rope_long", ("rope_factors_long.weight",)),
    Tensor("rope_short", ("rope_factors_short.weight",)),
)  # fmt: skip

ATTENTION = (
    *(
        layer_tensor(
            part,
            f"self_attn.{part}_proj.weight",
            f"attention.w{part}.weight",
            f"attn_{part}.weight",
        )
        for part in "qkv"
    ),
    layer_tensor("qkv", "self_attn.qkv_proj.weight", "attn_qkv.weight", holds=("q", "k", "v")),
    layer_tensor("o", "self_attn.o_proj.weight", "attention.wo.weight", "attn_output.weight"),
)

QKV_BIAS = (
    *(
        layer_tensor(f"{part}_bias", f"self_attn.{part}_proj.bias", f"attn_{part}.bias")
        for part in "qkv"
    ),
    layer_tensor(
        "qkv_bias", "self_attn.qkv_proj.bias", "attn_qkv.bias", holds=("q_bias", "k_bias", "v_bias")
    ),
)

OUTPUT_BIAS = (layer_tensor("o_bias", "self_attn.o_proj.bias", "attn_output.bias"),)

ATTENTION_GATE = (
    layer_tensor(
        "attn_gate", "self_attn.gate_proj.weight", "self_attn.g_proj.weight", "attn_gate.weight"
    ),
)
"""What weighs the attention's output before it is projected."""

SINKS = (
    layer_tensor("sinks", "self_attn.sinks", "self_attn.attention_sink_bias", "attn_sinks.weight"),
)
"""A logit of each head that takes its share of the softmax."""

QK_NORM = (
    layer_tensor("q_norm", "self_attn.q_norm.weight", "attn_q_norm.weight"),
    layer_tensor("k_norm", "self_attn.k_norm.weight", "attn_k_norm.weight"),
)

PRE_NORMS = (
    layer_tensor(
        "attn_norm", "input_layernorm.weight", "attention_norm.weight", "attn_norm.weight"
    ),
    layer_tensor("ffn_norm", "post_attention_layernorm.weight", "ffn_norm.weight"),
)
"""The norms before each branch; Hugging Face's second is named after its place."""

SANDWICH_NORMS = (
    PRE_NORMS[0],
    layer_tensor("ffn_norm", "pre_feedforward_layernorm.weight", "ffn_norm.weight"),
)
"""The norms before each branch where each has one after it too."""

NORM_BIASES = (
    layer_tensor("attn_norm_bias", "input_layernorm.bias", "attn_norm.bias"),
    layer_tensor("ffn_norm_bias", "post_attention_layernorm.bias", "ffn_norm.bias"),
    Tensor("final_norm_bias", ("norm.bias", *(f"{name}.bias" for name in _ENDS))),
)
"""The biases of LayerNorms before each branch and at the end."""

POST_NORMS = (
    layer_tensor("attn_post_norm", "post_attention_layernorm.weight", "post_attention_norm.weight"),
    layer_tensor("ffn_post_norm", "post_feedforward_layernorm.weight", "post_ffw_norm.weight"),
)
"""The norms of each branch before it is added."""

DENSE = (
    layer_tensor("gate", "mlp.gate_proj.weight", "feed_forward.w1.weight", "ffn_gate.weight"),
    layer_tensor("up", "mlp.up_proj.weight", "feed_forward.w3.weight", "ffn_up.weight"),
    layer_tensor("down", "mlp.down_proj.weight", "feed_forward.w2.weight", "ffn_down.weight"),
)

MLP_BIAS = tuple(
    layer_tensor(f"{part}_bias", f"mlp.{part}_proj.bias", f"ffn_{part}.bias")
    for part in ("gate", "up", "down")
)

_MIXTRAL_PARTS = {"gate": "w1", "up": "w3", "down": "w2"}
_MLX_ROOMS = (
    "mlp.switch_mlp",
    "block_sparse_moe.switch_mlp",
    "mlp.experts",
    "feed_forward.experts",
)
PACKED_EXPERTS = tuple(
    layer_tensor(
        f"experts_{part}",
        f"ffn_{part}_exps.weight",
        *(f"{room}.{part}_proj.weight" for room in _MLX_ROOMS),
        holds=(f"expert_{part}",),
        packed=True,
    )
    for part in _MIXTRAL_PARTS
)
"""All experts of a layer in one tensor: llama.cpp's names, and mlx-lm's (``sanitize``)."""

EXPERTS = (
    layer_tensor(
        "router",
        "mlp.gate.weight",
        "mlp.router.gate.weight",
        "block_sparse_moe.gate.weight",
        "ffn_gate_inp.weight",
    ),
    *(
        layer_tensor(
            f"expert_{part}",
            f"mlp.experts.{{expert}}.{part}_proj.weight",
            f"block_sparse_moe.experts.{{expert}}.{short}.weight",
            f"ffn_{part}.{{expert}}.weight",
        )
        for part, short in _MIXTRAL_PARTS.items()
    ),
    *PACKED_EXPERTS,
    layer_tensor(
        "experts_gate_up",
        "mlp.experts.gate_up_proj",
        "ffn_gate_up_exps.weight",
        holds=("expert_gate", "expert_up"),
        packed=True,
    ),
    layer_tensor("experts_down_hf", "mlp.experts.down_proj", holds=("expert_down",), packed=True),
)

SHARED_EXPERT = tuple(
    layer_tensor(
        f"shared_expert_{part}",
        f"mlp.shared_experts.{part}_proj.weight",
        f"mlp.shared_expert.{part}_proj.weight",
        f"mlp.shared_mlp.{part}_proj.weight",
        f"block_sparse_moe.shared_experts.{part}_proj.weight",
        f"ffn_{part}_shexp.weight",
    )
    for part in _MIXTRAL_PARTS
)
"""The expert that every token goes through; several stand side by side as one."""

CORRECTION_BIAS = (
    layer_tensor(
        "correction_bias",
        "mlp.gate.e_score_correction_bias",
        "mlp.e_score_correction_bias",
        "mlp.moe_statics.e_score_correction_bias",
        "mlp.experts.e_score_correction_bias",
        "block_sparse_moe.e_score_correction_bias",
        "block_sparse_moe.gate.e_score_correction_bias",
        "mlp.expert_bias",
        "exp_probs_b.bias",
    ),
)
"""The bias that takes part in the choice of experts alone."""

_PREFIXES = (
    "language_model.model.", "model.language_model.model.", "model.language_model.",
    "language_model.", "model.text_model.", "model.decoder.", "model.", "transformer.", "gpt_neox.",
    "decoder.", "backbone.",
)  # fmt: skip
# Derived values that some checkpoints carry along; the pass computes them from the configuration.
_DERIVED = re.compile(
    r"rotary_emb\.inv_freq$|self_attn\.rotary_emb\.|attn_rot_embd"
    r"|\.(attn|attention)\.(masked_)?bias$"  # a causal mask and what fills it
)
_DRAFTS = re.compile(
    r"(?:^|\.)mtp\.|(?<![^.])((?:layers|blk)\.\d{1,5}\.)"
    r"(?:nextn|eh_proj|enorm|hnorm|shared_head|embed_tokens)\."
)
"""Tensors of layers that guess the tokens behind the next one, as a second model does; the layer,
where it stands among the others."""
_LAYER = re.compile(r"(?<![^.])(?:layers|blk)\.\d{1,5}\.")
_OTHER_TOWER = re.compile(
    r"^(model\.)?(vision_tower|vision_model|vision_encoder|vision_language_adapter|visual"
    r"|multi_modal_projector|audio_tower|embed_audio|embed_vision|patch_merger|pre_mm_projector_norm)\."
    r"|^model\.(vision_tower|multi_modal_projector|visual)\.|^v\.|^mm\.|^a\.|^model\.image_newline"
)


@dataclass(frozen=True)
class Table:
    """The tensors of one family, to be asked what a name is for."""

    tensors: tuple[Tensor, ...]

    @cached_property
    def _patterns(self) -> Mapping[str, Tensor]:
        return {name: tensor for tensor in self.tensors for name in tensor.names}

    @cached_property
    def constants(self) -> frozenset[str]:
        """The roles whose values are read into the graph."""
        return frozenset(tensor.role for tensor in self.tensors if tensor.constant)

    @cached_property
    def holders(self) -> Mapping[str, tuple[Tensor, ...]]:
        """By role: the fused and packed tensors that may hold it."""
        found: dict[str, tuple[Tensor, ...]] = {}
        for tensor in self.tensors:
            for role in tensor.holds:
                found[role] = (*found.get(role, ()), tensor)
        return found

    def role_of(self, name: str) -> Role | None:
        """The role that a tensor's name stands for, or None."""
        for prefix in _PREFIXES:
            if name.startswith(prefix):
                name = name.removeprefix(prefix)
                break
        numbers: list[int] = []

        def numbered(match: re.Match[str]) -> str:
            numbers.append(int(match[1]))
            return (".{layer}" if len(numbers) == 1 else ".{expert}") + match[2]

        pattern = re.sub(r"\.(\d{1,5})(\.|$)", numbered, name)
        tensor = self._patterns.get(pattern)
        if tensor is None or len(numbers) > 2:
            return None
        if tensor.numbered and len(numbers) == 1:
            return Role(tensor.role, None, numbers[0])
        layer = numbers[0] if numbers else None
        return Role(tensor.role, layer, numbers[1] if len(numbers) > 1 else None)

    def sort(self, tensors: Iterable[TensorEntry]) -> Sorted:
        """A file's tensors by role.

        Of two heads the one in the naming scheme of the layers wins, and one with bytes over an
        empty placeholder (docs/apr-format.md 2.3). Raises nothing: doubles are noted, unknown ones
        listed.
        """
        listed, drafts = _without_drafts(list(tensors))
        gguf_names = any(entry.name.startswith("blk.") for entry in listed)
        found = Sorted({}, gguf_names, *_of_towers(listed), drafts)
        for entry in sorted(listed, key=lambda entry: _preference(entry, gguf_names)):
            found.add(self.role_of(entry.name), entry)
        return found


@dataclass(frozen=True)
class Sorted:
    """The tensors of one model by role, and what was noticed while sorting them.

    ``gguf_names``: the layers' tensors are named blk.N.*; ``others``: tensors of a vision or audio
    part; ``unknown``: tensors that play no part in the pass; ``drafts``: those of layers that draft
    tokens.
    """

    entries: dict[Role, TensorEntry]
    gguf_names: bool
    mistral_names: bool
    others: tuple[TensorEntry, ...]
    unknown: list[str]
    notes: list[str]
    drafts: tuple[TensorEntry, ...]

    def add(self, role: Role | None, entry: TensorEntry) -> None:
        if role is None:
            if not _DERIVED.search(entry.name) and entry not in self.others:
                self.unknown.append(entry.name)
        elif role in self.entries:
            used = self.entries[role].name
            self.notes.append(f"two tensors for {role}: {used} is used, {entry.name} is not")
        elif entry.size_bytes or role.name != "head":  # a head without bytes is the embedding
            self.entries[role] = entry


def _without_drafts(
    listed: Sequence[TensorEntry],
) -> tuple[list[TensorEntry], tuple[TensorEntry, ...]]:
    """The tensors of the model, and those of layers that draft tokens."""
    marks = {entry.name: match for entry in listed if (match := _DRAFTS.search(entry.name))}
    layers = {match[1] for match in marks.values()} - {None}

    def drafts(entry: TensorEntry) -> bool:
        layer = _LAYER.search(entry.name)
        return entry.name in marks or (layer is not None and layer[0] in layers)

    return [each for each in listed if not drafts(each)], tuple(filter(drafts, listed))


def _of_towers(
    listed: Sequence[TensorEntry],
) -> tuple[bool, tuple[TensorEntry, ...], list[str], list[str]]:
    mistral = any(re.match(r"layers\.\d+\.attention\.wq\.", entry.name) for entry in listed)
    others = tuple(entry for entry in listed if _OTHER_TOWER.search(entry.name))
    return mistral, others, [], []


def _preference(entry: TensorEntry, gguf_names: bool) -> tuple[bool, bool, str]:
    """Sort key: tensors with bytes first, then those named as the layers are."""
    of_scheme = (entry.name == "output.weight") == gguf_names
    return (entry.size_bytes == 0, entry.name in ("output.weight", "lm_head.weight")
            and not of_scheme, entry.name)  # fmt: skip
