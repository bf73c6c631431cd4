"""llama.cpp's graph nodes to stages: told apart by operation, source weight and name.

The table is docs/numerics.md 4. Names alone do not do: ``Qcur-N`` is a product, a sum, a view and
a rotation, and some products have no name at all. A node that reads a weight is the stage of our
graph that reads it; the others go by llama.cpp's names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from aprtui.engine import ops
from aprtui.engine.adapters.ggml import Node, Values
from aprtui.errors import EngineError
from aprtui.formats.tracedir import StageKey
from aprtui.graph import Graph, Role
from aprtui.graph import Node as Stage
from aprtui.graph.altup import Correct, Pick, Predict, Spread, Streams
from aprtui.graph.ops import (
    Activate,
    Add,
    Alibi,
    Attend,
    Bias,
    Choose,
    Clip,
    Combine,
    Embed,
    Multiply,
    Norm,
    Op,
    Product,
    Rope,
    Scores,
    Softmax,
)
from aprtui.graph.recurrent import CausalConv, Columns, DeltaRule, GatedNorm
from aprtui.model.open import Matrix

__all__ = ["UNNAMED", "Collector", "NodeMap", "Slot", "Span", "fused", "parallel_sums"]

_TURNED = ("", "_rope", "_pos", "-post-rope")  # behind the name of what is turned

# (operation, "" for any, and name) -> the stages that the node may be: the first that the layer
# has. Experts that all tokens share are computed under the names of a dense FFN.
_BY_NAME: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("SCALE", "inp_scaled"): ("embedding",),
    ("SCALE", "inp_embd_scaled"): ("embedding",),
    ("SCALE", "embd"): ("embedding",),
    ("RMS_NORM", "Qcur_normed"): ("q_norm",),  # without a weight
    ("RMS_NORM", "Kcur_normed"): ("k_norm",),
    ("RMS_NORM", "Vcur_normed"): ("v_norm",),
    ("SCALE", "inp_per_layer_selected"): ("per_layer_embedding",),
    ("SCALE", "inp_per_layer"): ("per_layer_input",),
    **{("ROPE", f"Qcur{ending}"): ("q_post_rope",) for ending in _TURNED},
    **{("ROPE", f"Kcur{ending}"): ("k_post_rope",) for ending in _TURNED},
    ("ROPE", "q_states"): ("q_post_rope",),
    ("CONCAT", "k_states"): ("k_post_rope",),  # each head's own channels, then the turned ones
    ("ADD", "inpL"): ("pos_embedding",),
    ("MUL_MAT", "kq"): ("attn_scores",),
    ("SCALE", "kq_scaled_2"): ("attn_scores",),
    ("SOFT_MAX", "kq_soft_max"): ("attn_softmax",),
    ("", "kqv_out"): ("attention",),
    ("CONT", "attn_out"): ("attention",),  # where a gate comes before the output projection
    ("RESHAPE", "attn_out"): ("attention",),  # the same of flash attention
    ("ADD", "attn_out"): ("post_attn_residual",),
    ("UNARY", "attn_gate_sig"): ("attn_gate",),
    ("UNARY", "attn_gate_softplus"): ("attn_gate",),
    ("MUL", "attn_gated"): ("attn_gated",),
    ("RESHAPE", "attn_gated"): ("attn_gated",),
    ("SCALE", "attn_out_scaled"): ("attn_out",),  # of values that our graph scales
    ("ADD", "layer_out"): ("mixer_out",),
    ("ADD", "ffn_inp"): ("post_attn_residual",),
    ("ADD", "sa_out"): ("post_attn_residual",),
    ("UNARY", "ffn_xielu"): ("ffn_silu",),
    ("UNARY", "ffn_gelu"): ("ffn_silu",),  # where no gate is multiplied: else fused with that
    ("ADD", "attn_residual"): ("post_attn_residual",),
    ("CONT", "attn_pregate"): ("attention",),
    ("UNARY", "gate_sigmoid"): ("attn_gate",),
    ("ADD", "mamba2_y_add_d"): ("ssm_scan",),
    ("UNARY", "beta_sigmoid"): ("delta_beta",),
    ("UNARY", "b"): ("delta_beta",),  # unnamed itself
    ("MUL", "gate"): ("delta_decay",),
    ("UNARY", "conv_output_silu"): ("delta_conv",),
    ("VIEW", "attn_output"): ("delta_out",),
    ("RESHAPE", "final_output"): ("delta_norm",),
    ("VIEW", "new_state"): ("delta_state",),
    ("GLU", "ffn_swiglu"): ("ffn_swigl", "shared_ffn_swigl"),
    ("GLU", "ffn_geglu"): ("ffn_swigl", "shared_ffn_swigl"),
    ("ARGSORT", "ffn_moe_argsort"): ("moe_router_indices",),
    ("GET_ROWS", "ffn_moe_weights"): ("moe_router",),
    ("DIV", "ffn_moe_weights_norm"): ("moe_router",),
    ("SCALE", "ffn_moe_weights_scaled"): ("moe_router",),
    ("", "ffn_moe_out"): ("moe_ffn_out",),
    ("", "ffn_shexp_gate"): ("shared_gate",),
    ("", "shared_expert_gate_sigmoid"): ("shared_gate",),
    ("RESHAPE", "ffn_moe_weights_softmax"): ("moe_router",),
    ("ADD", "ffn_out"): ("ffn_out",),
    ("ADD", "ffn_moe_out_merged"): ("ffn_out",),
    ("ADD", "pe_in"): ("ffn_residual",),
    ("CONCAT", "inp_stacked"): ("altup_streams",),
    ("ADD", "predictions"): ("altup_predicted",),
    ("ADD", "laurel_out"): ("laurel",),
    ("ADD", "attn_gated"): ("post_attn_residual",),
    ("SCALE", "attn_laurel"): ("laurel_residual",),
    ("ADD", "attn_ffw_laurel_gated"): ("ffn_residual",),
    ("ADD", "corrected"): ("altup_corrected",),
    ("MUL", "first_prediction_scaled"): ("per_layer_gated",),
    ("CONCAT", "l_out"): ("altup_out",),
    ("SCALE", "unembd_merged"): ("altup_merged",),
    ("ADD", "l_out"): ("post_ffn_residual",),
    ("ADD", "nemotron_h_block_out"): ("post_ffn_residual",),
    ("MUL", "l_out"): ("post_ffn_residual",),  # times a factor of the layer's
    ("ADD", "h_nextn"): ("post_ffn_residual",),  # the last layer's, before those that draft
}

# Where several nodes stand for one stage, by the name of each: whether it is the last one, of
# which the stage is made, for this operation of ours.
_LAST: Mapping[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("inp_scaled", "inp_embd_scaled", "embd"), lambda op: op.scale != 1.0),
    "kq": lambda op: op.cap is None,
    "kq_scaled_2": lambda op: op.cap is not None,
    "ffn_moe_weights": lambda op: not op.renormalise and op.scale == 1.0,
    "ffn_moe_weights_norm": lambda op: op.renormalise and op.scale == 1.0,
    "ffn_moe_weights_scaled": lambda op: op.scale != 1.0,
    "ffn_moe_weights_softmax": lambda op: op.scale == 1.0,
    "ffn_out": lambda op: isinstance(op, Combine),
    "MUL l_out": lambda op: op.total != 1.0,
}

_TWICE = "ssm_in"  # the layer's norm, computed once more for the scan beside its attention
_GELU = "gelu_tanh"  # the one that ggml has under the name
_ONE_BRANCH = "l_out"  # of a layer that is experts alone: what its branch makes
UNNAMED = re.compile(r"node_\d+")
_CUT = " (view)"
_LAST_LAYERS = "h_nextn"
_TABLE = (
    "embd",
    "model.embed_tokens",
    "model.input_embed",
)  # other nodes take rows of the token table too, for what is no text
_COPIED = re.compile(r"[^#]+#(.+)#\d+")  # a weight that the scheduler copied to another device


@dataclass(frozen=True)
class Slot:
    """What a node is: ``part`` of so many ``parts`` of a stage, side by side. ``columns``, of
    ``width`` that the node has, are those that count: runs (first, count); None: all of them."""

    key: StageKey
    part: int = 0
    parts: int = 1
    columns: tuple[tuple[int, int], ...] | None = None
    width: int = 0


class NodeMap:
    """Which stage each node of llama.cpp's graph is, for one model."""

    def __init__(self, graph: Graph, weights: Mapping[Role, Matrix]) -> None:
        self.graph = graph
        self._ends: dict[str, StageKey] = {}  # the stage that a node was the end of, by its name
        self._sums = dict(_named_sums(graph))
        self._gated: dict[StageKey, StageKey] = {}
        self._products: dict[frozenset[StageKey | None], StageKey] = {
            frozenset(stage.inputs): stage.key for stage in graph if isinstance(stage.op, Columns)
        }
        self._turned = {
            stage.inputs[0]: stage.key
            for stage in graph
            if isinstance(stage.op, Rope) and isinstance(graph[stage.inputs[0]].op, Norm)
        }
        for stage in graph:
            act = graph[stage.inputs[0]] if isinstance(stage.op, Multiply) else None
            if act is not None and isinstance(act.op, Activate):
                windowed = isinstance(stage.op, Multiply) and stage.op.window is not None
                self._gated[act.inputs[0] if windowed else stage.inputs[1]] = stage.key
        self._windows: dict[str, list[tuple[Role, Matrix]]] = {}
        for role, matrix in weights.items():
            if role.expert is None and not matrix.transposed:  # packed experts' is MUL_MAT_ID
                self._windows.setdefault(matrix.entry.name, []).append((role, matrix))

    def slots(self, node: Node) -> tuple[Slot, ...]:
        """The slots that a node fills; none where it is no stage."""
        if (node.op, node.label) == ("MUL", _TWICE):
            return ()
        for source in reversed(node.sources[:2]):  # a bias or a norm's weight is the second
            copied = _COPIED.fullmatch(source)
            windows = self._windows.get(copied[1] if copied else source, ())
            found = [slot for window in windows if (slot := self._of_weight(node, *window))]
            if len(found) == 1:
                self._ends[node.name] = found[0].key
            if found:
                return tuple(found)
        named = self._of_name(node) or self._of_sum(node)
        if named is None:
            return ()
        self._ends[node.name] = named.key
        return (named,)

    def _of_sum(self, node: Node) -> Slot | None:
        """What a node without a name of its own makes, told by what it is given: the residual by
        the branch it adds, what a gate lets through by the gate, turned heads by their norm."""
        ends = [self._ends[source] for source in node.sources if source in self._ends]
        if node.op in ("GET_ROWS", "RESHAPE") and ends:  # the rows of those whose logits are wanted
            self._ends[node.name] = ends[0]
        if not UNNAMED.fullmatch(node.name):
            return None
        if node.op == "UNARY" and ends:  # the activation of a gate, which is derived
            self._ends[node.name] = ends[0]
        after = {"ADD": self._sums, "MUL": self._gated, "ROPE": self._turned}.get(node.op, {})
        keys = [after[end] for end in ends if end in after]
        if node.op == "MUL":  # columns of a stage by those of another, or by others of its own
            cut = frozenset(self._ends.get(each.removesuffix(_CUT)) for each in node.sources)
            keys += [self._products[cut]] if cut in self._products else []
        return Slot(keys[0]) if keys else None

    def _of_weight(self, node: Node, role: Role, matrix: Matrix) -> Slot | None:
        """The stage, or the part of one, that a node with this weight is the end of."""
        stage, ggml = self.graph.reader(role), node.op
        if stage is None or stage.last:  # logits come out of the library as they are
            return None
        before = self.graph[stage.inputs[0]].op if stage.inputs else None
        if isinstance(before, Attend) and before.scale != 1.0:  # which comes behind its product
            return None
        op = stage.op
        if isinstance(op, Product | Bias):
            for place, part in enumerate(op.parts):
                plain = ggml == "MUL_MAT" and part.weight == role and part.bias is None
                if plain or (ggml == "ADD" and part.bias == role):
                    runs, width = tuple(matrix.runs(0, part.rows)), matrix.entry.shape[0]
                    return Slot(stage.key, place, len(op.parts), runs, width)
        ends = (
            (node.label in _TABLE and isinstance(op, Embed) and op.scale == 1.0)
            or (ggml == "MUL" and isinstance(op, Norm) and op.bias is None)
            or (ggml == "ADD" and isinstance(op, Norm) and op.bias == role)
            or (ggml == "MUL" and isinstance(op, GatedNorm) and op.before)
            or (ggml == "MUL" and isinstance(op, Pick))
            or (ggml == "SSM_CONV" and isinstance(op, CausalConv) and op.plain)
        )
        return Slot(stage.key) if ends else None

    def _of_name(self, node: Node) -> Slot | None:
        if node.op in ("ROPE", "UNARY") and UNNAMED.fullmatch(node.name):
            node = replace(node, name=node.sources[0].partition(" ")[0])
        if node.layer is None and "-" in node.name:  # a view of a node that has a layer
            return None
        layer = self.graph.num_layers - 1 if node.name == _LAST_LAYERS else node.layer or 0
        names = _BY_NAME.get((node.op, node.label)) or _BY_NAME.get(("", node.label)) or ()
        if node.label == _ONE_BRANCH and StageKey(layer, "ffn_norm") not in self.graph:
            made = self.graph.by_key.get(StageKey(layer, "ffn_out"))
            if made is not None and isinstance(made.op, Combine):
                names = ("ffn_out",)
        for name in names:
            key = StageKey(layer, name)
            key = key if key in self.graph else StageKey(None, name)
            if key in self.graph:
                is_last = _LAST.get(node.label) or _LAST.get(f"{node.op} {node.label}")
                return Slot(key) if is_last is None or is_last(self.graph[key].op) else None
        return None


@dataclass(frozen=True)
class Span:
    """One sequence's rows of a pass: ``rows`` there, from position ``first`` on. ``cells`` are
    those of the cache that hold its keys, from position 0 to its last row's."""

    put: Callable[[StageKey, torch.Tensor], None]
    rows: slice
    first: int
    cells: Sequence[int]


class Collector:
    """Makes stages out of the nodes of one pass as they come; holds at most one layer's parts.

    ``tokens``: the rows of the pass; ``spans``: whose they are, where not all one sequence's, from
    position 0 on, that ``put`` takes.
    """

    def __init__(
        self,
        nodes: NodeMap,
        tokens: int,
        wanted: Collection[StageKey],
        put: Callable[[StageKey, torch.Tensor], None],
        spans: Sequence[Span] = (),
    ) -> None:
        self._nodes, self._graph = nodes, nodes.graph
        self._tokens = tokens
        self._wanted = frozenset(wanted)
        self._spans = tuple(spans) or (Span(put, slice(0, tokens), 0, range(tokens)),)
        self._held: dict[tuple[StageKey, int], torch.Tensor] = {}
        self._derived = _derived(nodes.graph)
        self._between = parallel_sums(nodes.graph)
        self._streams: dict[StageKey, torch.Tensor] = {}

    def wants(self, node: Node) -> bool:
        """Whether a stage that was asked for is made of this node."""
        return any(self._makes(slot.key) for slot in self._nodes.slots(node))

    def _makes(self, key: StageKey) -> bool:
        """Whether a wanted stage is made of this one: itself, what follows from it, or scores,
        whose scale is the softmax's parameter."""
        made = [key, *(stage.key for stage in self._derived.get(key, ()))]
        made += [stage.key for stage in self._between if key in stage.inputs]
        if isinstance(self._graph[key].op, Softmax):
            made.append(self._graph[key].inputs[0])
        return any(each in self._wanted for each in made)

    def take(self, node: Node, values: Values) -> None:
        """Use the values of a wanted node. Raises EngineError when their shape is another."""
        tensor = torch.from_numpy(np.asarray(values))
        slots = self._nodes.slots(node)
        width = max((slot.width for slot in slots), default=0)
        if width and tensor.numel() != self._tokens * width:
            raise _other_shape(node, (self._tokens, width))
        for slot in slots:
            op = self._graph[slot.key].op
            if isinstance(op, Scores):
                self._held[slot.key, 0] = self._keys_cut(node, op, tensor)
            elif isinstance(op, Softmax):
                self._softmax(node, self._graph[slot.key], op, tensor)
            elif isinstance(op, DeltaRule) and op.state:  # ggml has it [N,value,key]
                turned = tensor.reshape(op.heads, op.value, op.key).transpose(1, 2)
                self._give(slot.key, turned.contiguous(), node)
            elif isinstance(op, Streams | Predict | Correct | Spread):  # ggml has streams first
                streams = self._graph[slot.key].axes[1].extent or 1
                turned = tensor.reshape(streams, self._tokens, -1).transpose(0, 1)
                self._give(slot.key, turned.contiguous(), node)
            elif isinstance(op, Choose):
                self._give(slot.key, tensor.reshape(self._tokens, -1)[:, : op.top], node)
            elif isinstance(op, Attend) and op.scale != 1.0:  # which llama.cpp does later
                self._give(slot.key, tensor * op.scale, node)
            else:
                self._part(node, slot, tensor)

    def _part(self, node: Node, slot: Slot, tensor: torch.Tensor) -> None:
        """A part of a stage: joined when all are there."""
        if slot.columns is not None:
            rows = tensor.reshape(self._tokens, -1)
            tensor = torch.cat([rows[:, at : at + count] for at, count in slot.columns], dim=1)
        if slot.parts == 1:
            self._give(slot.key, tensor, node)
            return
        self._held[slot.key, slot.part] = tensor.reshape(self._tokens, -1)
        places = [(slot.key, part) for part in range(slot.parts)]
        if all(place in self._held for place in places):
            joined = torch.cat([self._held.pop(place) for place in places], dim=1)
            self._give(slot.key, joined, node)

    def _keys_cut(self, node: Node, op: Scores, tensor: torch.Tensor) -> torch.Tensor:
        """[A,T,cells] without the cells that only pad the cache."""
        heads, tokens = op.heads, self._tokens
        cells = 1 + max(max(span.cells) for span in self._spans)
        if tensor.numel() % (heads * tokens) or tensor.numel() < heads * tokens * cells:
            raise _other_shape(node, (heads, tokens, cells))
        return tensor.reshape(heads, tokens, -1)[:, :, :cells].contiguous()

    def _softmax(self, node: Node, stage: Stage, op: Softmax, tensor: torch.Tensor) -> None:
        """Both [A,T,T] stages: scores are scaled here, by the softmax's own parameter."""
        before = self._graph[stage.inputs[0]]
        assert isinstance(before.op, Scores)
        scores = self._held.pop((before.key, 0), None)
        if scores is not None:
            scaled = scores * torch.tensor(node.first_param, dtype=torch.float32)
            self._give_scores(before.key, scaled, op, before.op.alibi)
        self._give_scores(stage.key, self._keys_cut(node, before.op, tensor), op)

    def _give_scores(
        self, key: StageKey, cells: torch.Tensor, op: Softmax, alibi: Alibi | None = None
    ) -> None:
        """Of [A,T,cells] each sequence's rows, with the keys at their positions; ``alibi``: what
        ggml adds to them with the mask."""
        if key not in self._wanted:
            return
        for span in self._spans:
            keys = cells[:, span.rows][:, :, torch.as_tensor(span.cells)]
            last = span.first + keys.shape[1]
            added = ops.key_biases(alibi, keys.movedim(2, 0))
            keys = keys if added is None else keys + added
            seen = ops.visible(op.mask, span.first, last, last, keys.device)
            span.put(key, keys.masked_fill(~seen, 0.0))

    def _give(self, key: StageKey, value: torch.Tensor, node: Node) -> None:
        """A whole stage, and what follows from it without a node of llama.cpp's own."""
        shape = self._graph[key].shape(self._tokens)
        if value.numel() != int(np.prod(shape)):
            raise _other_shape(node, shape)
        value = value.reshape(shape)
        if key in self._wanted:
            self._put(key, value)
        self._sum(key, value)
        for stage in self._derived.get(key, ()):
            if stage.key in self._wanted:
                self._put(stage.key, _followed(value, stage.op))

    def _sum(self, key: StageKey, value: torch.Tensor) -> None:
        """The stream plus one branch, where llama.cpp adds the other one first."""
        for stage in self._between:
            hidden, branch = stage.inputs
            if key == hidden:
                self._streams[key] = value
            elif key == branch and stage.key in self._wanted:
                self._put(stage.key, self._streams.pop(hidden) + value)

    def _put(self, key: StageKey, value: torch.Tensor) -> None:
        """Each sequence's rows."""
        for span in self._spans:
            span.put(key, value[span.rows])


def parallel_sums(graph: Graph) -> tuple[Stage, ...]:
    """The sums of stream and branch that nothing reads but the next sum: both branches of the layer
    start from one norm, and an engine may add them in any order."""
    readers: dict[StageKey, list[Stage]] = {}
    for stage in graph:
        for key in stage.inputs:
            readers.setdefault(key, []).append(stage)
    return tuple(
        stage
        for stage in graph
        if isinstance(stage.op, Add)
        and all(
            isinstance(reader.op, Add) and reader.op.total == 1.0
            for reader in readers.get(stage.key, ())
        )
        and readers.get(stage.key)
    )


def _named_sums(graph: Graph) -> Iterator[tuple[StageKey, StageKey]]:
    """Each branch and the sum that it ends, where llama.cpp makes the sums that we do."""
    between = {stage.key for stage in parallel_sums(graph)}
    for stage in graph:
        whole = isinstance(stage.op, Add) and stage.op.total == 1.0
        if whole and not between & {stage.key, stage.inputs[0]}:
            yield stage.inputs[1], stage.key


def fused(graph: Graph) -> Iterator[Stage]:
    """The activations that llama.cpp computes with what is multiplied by them, or in two nodes."""
    gates = {stage.inputs[0] for stage in graph if isinstance(stage.op, Multiply)}
    for stage in graph:
        if isinstance(stage.op, Activate) and (stage.op.name != _GELU or stage.key in gates):
            yield stage


def _derived(graph: Graph) -> dict[StageKey, list[Stage]]:
    """Stages that follow from another one alone, which llama.cpp fuses or does not compute: the
    activation, and the FFN's output where nothing is added to the experts'."""
    found: dict[StageKey, list[Stage]] = {}
    acts = {stage.key for stage in fused(graph)}
    for stage in graph:
        alone = len(stage.inputs) == 1 and not stage.op.weights
        clipped = isinstance(stage.op, Clip) or stage.key in acts
        if clipped or (isinstance(stage.op, Combine | Pick) and alone):
            found.setdefault(stage.inputs[0], []).append(stage)
    return found


def _followed(value: torch.Tensor, op: Op) -> torch.Tensor:
    """What follows from ``value`` alone. An activation, which llama.cpp fuses with the product, is
    the exact one of its gate: on the CPU its GELU is a float16 table; that shows in ffn_swigl,
    which it does compute."""
    if isinstance(op, Clip):
        return value.clamp(-op.limit, op.limit)
    if isinstance(op, Pick):
        return value[:, op.stream]
    return ops.ACTIVATIONS[op.name](value.double()).float() if isinstance(op, Activate) else value


def _other_shape(node: Node, expected: tuple[int, ...]) -> EngineError:
    return EngineError(
        f"llama.cpp's node {node.name} is {list(node.shape)} where {list(expected)} was expected"
    )
