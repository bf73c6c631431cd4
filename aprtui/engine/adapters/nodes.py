"""llama.cpp's graph nodes to stages: told apart by operation, source weight and name.

The table is docs/numerics.md 4. Names alone do not do: ``Qcur-N`` is a product, a sum, a view and
a rotation, and some products have no name at all. A node that reads a weight is the stage of our
graph that reads it; the others go by llama.cpp's names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from aprtui.engine.adapters.ggml import Node
from aprtui.formats.tracedir import StageKey
from aprtui.graph import Graph, Role
from aprtui.graph.altup import Pick
from aprtui.graph.ops import (
    Activate,
    Add,
    Attend,
    Bias,
    Combine,
    Embed,
    Multiply,
    Norm,
    Product,
    Rope,
)
from aprtui.graph.recurrent import CausalConv, ChannelScan, Columns, Gated, GatedNorm, Scan
from aprtui.model.open import Matrix

__all__ = ["UNNAMED", "NodeMap", "Slot"]

_TURNED = ("", "_rope", "_pos", "-post-rope")  # behind the name of what is turned

# (operation, "" for any, and name) -> the stages that the node may be: the first that the layer
# has. Experts that all tokens share are computed under the names of a dense FFN.
_BY_NAME: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("SCALE", "inp_scaled"): ("embedding",),
    ("SCALE", "inp_embd_scaled"): ("embedding",),
    ("SCALE", "embd"): ("embedding",),
    ("NORM", "attn_norm"): ("attn_norm",),  # without a weight, as those that follow
    ("NORM", "ffn_norm"): ("ffn_norm",),
    ("NORM", "result_norm"): ("final_norm",),
    ("RMS_NORM", "Qcur_normed"): ("q_norm",),
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
    ("CONT", "attn_output"): ("delta_out",),
    ("UNARY", "kda_beta"): ("delta_beta",),  # unnamed itself
    ("MUL", "kda_g1"): ("delta_row_decay",),
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
_ONE_BRANCH = "l_out"  # of a layer that is experts alone: what its branch makes
UNNAMED = re.compile(r"node_\d+")
_CUT, _RESHAPED = " (view)", " (reshaped)"
_LAST_LAYERS = "h_nextn"
_TABLE = (
    "embd",
    "model.embed_tokens",
    "model.input_embed",
)  # other nodes take rows of the token table too, for what is no text
_TEXT = "inp_tokens"  # whose rows have no name where pictures' layers lie behind them
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
        self._states: dict[Role, StageKey] = {}  # by the weight of what a state keeps
        self._convolved: dict[str, Slot] = {}  # of the sums that a node is, by its name
        scans = {
            stage.inputs: stage.key
            for stage in graph
            if isinstance(stage.op, Scan | ChannelScan) and not stage.op.last
        }
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
            if isinstance(stage.op, GatedNorm) and not stage.op.before:
                self._gated[stage.inputs[1]] = stage.key
            if isinstance(stage.op, Gated):
                self._gated[stage.inputs[0]] = stage.key
            if isinstance(stage.op, Scan | ChannelScan) and stage.op.last:
                self._states[stage.op.a] = stage.key
                self._sums[stage.key] = scans[stage.inputs]
        self._windows: dict[str, list[tuple[Role, Matrix]]] = {}
        for role, matrix in weights.items():
            if role.expert is None and not matrix.transposed:  # packed experts' is MUL_MAT_ID
                self._windows.setdefault(matrix.entry.name, []).append((role, matrix))

    def begin(self) -> None:
        """A pass begins: its graph gives the names of the last one's nodes to others."""
        self._ends.clear()
        self._convolved.clear()

    def slots(self, node: Node) -> tuple[Slot, ...]:
        """The slots that a node fills; none where it is no stage."""
        if (node.op, node.label) == ("MUL", _TWICE):
            return ()
        if node.op == "SSM_SCAN":
            return self._of_scan(node)
        for source in reversed(node.sources[:2]):  # a bias or a norm's weight is the second
            windows = self._held(source)
            found = [slot for window in windows if (slot := self._of_weight(node, *window))]
            if len(found) == 1:
                self._ends[node.name] = found[0].key
            if found:
                return tuple(found)
        named = self._of_name(node) or self._of_conv(node) or self._of_sum(node)
        if named is None:
            return ()
        self._ends[node.name] = named.key
        return (named,)

    def _held(self, source: str) -> Sequence[tuple[Role, Matrix]]:
        """The weights in a tensor of the file."""
        copied = _COPIED.fullmatch(source)
        return self._windows.get(copied[1] if copied else source, ())

    def _of_scan(self, node: Node) -> tuple[Slot, ...]:
        """The state, which lies behind what comes out. That is a stage once the skip is added."""
        roles = (role for source in node.sources for role, _ in self._held(source))
        state = next((self._states[role] for role in roles if role in self._states), None)
        if state is None:
            return ()
        self._ends[f"{node.name}{_CUT}"] = state
        return (Slot(state),)

    def _of_conv(self, node: Node) -> Slot | None:
        """What a convolution makes: the activation of its sums, to which a bias may be added."""
        before = self._convolved.get(node.sources[0]) if node.sources else None
        if node.op == "UNARY":
            return before
        if node.op == "RESHAPE":  # many bear one name
            self._convolved.pop(node.name, None)
        if node.op in ("SSM_CONV", "ADD") and len(node.sources) > 1:
            for role, _ in self._held(node.sources[1].removesuffix(_RESHAPED)):
                stage = self.graph.reader(role)
                if stage is not None and isinstance(stage.op, CausalConv):
                    place = stage.op.weights.index(role) % len(stage.op.filters)
                    before = Slot(stage.key, place, len(stage.op.filters))
        if before is not None and node.op in ("RESHAPE", "SSM_CONV", "ADD"):
            self._convolved[node.name] = before
        return None

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
        after = {
            "ADD": self._sums, "MUL": self._gated, "GLU": self._gated, "ROPE": self._turned,
        }.get(node.op, {})  # fmt: skip
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
            (
                (node.label in _TABLE or _TEXT in node.sources)
                and isinstance(op, Embed)
                and op.scale == 1.0
            )
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


def _named_sums(graph: Graph) -> Iterator[tuple[StageKey, StageKey]]:
    """Each branch and the sum that it ends, where llama.cpp makes the sums that we do."""
    between = {stage.key for stage in graph.parallel_sums}
    for stage in graph:
        whole = isinstance(stage.op, Add) and stage.op.total == 1.0
        if whole and not between & {stage.key, stage.inputs[0]}:
            yield stage.inputs[1], stage.key
