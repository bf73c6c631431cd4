"""One prefill of a GGUF that llama.cpp runs, node by node: under llama.cpp's own names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from fnmatch import fnmatchcase
from typing import Any

import torch

from aprtui.engine.adapters import LlamaSettings
from aprtui.engine.adapters.collected import Collector
from aprtui.engine.adapters.ggml import Node, Values
from aprtui.engine.adapters.llamacpp import engine_of, loaded
from aprtui.engine.adapters.nodes import UNNAMED, NodeMap
from aprtui.engine.module_job import ModulePlan
from aprtui.engine.modules import Target
from aprtui.errors import UsageError
from aprtui.formats.tracedir import StageKey
from aprtui.graph.vocabulary import ALIASES, STAGES, stage_of
from aprtui.model.open import Model

__all__ = ["NodeRun", "NodeWatch"]

# What holds another node's values, or writes into the cache.
_NOT_MADE = frozenset({"NONE", "VIEW", "RESHAPE", "PERMUTE", "TRANSPOSE", "SET_ROWS", "CPY", "DUP"})
_OF_WEIGHT = re.compile(r"blk\.(\d+)\.([\w.-]+?)(?:\.weight|\.bias)?")
_SIZES = ("block_count", "embedding_length")
_LOGITS = next(StageKey(None, stage.name) for stage in STAGES if stage.logits)


class NodeWatch:
    """Takes every node that computes something and has a name, or reads a weight of a layer; of a
    ``model`` that a family file describes its stages as stages, and the other nodes so.

    ``nodes``: where each went, in order of computation, for the manifest.
    """

    def __init__(
        self,
        target: Target,
        tokens: int,
        stages: str = "all",
        layers: Collection[int] | None = None,
        model: Model | None = None,
    ) -> None:
        self._target, self._tokens, self._layers = target, tokens, layers
        self._patterns = [part.strip() for part in stages.split(",")]
        self._stages: tuple[NodeMap, Collector] | None = None
        if model is not None:
            known = NodeMap(model.graph, model.weights)
            wanted = [node.key for node in model.graph if self.wants_stage(node.key)]
            self._stages = known, Collector(known, tokens, wanted, self._put)
        self._times: Counter[StageKey] = Counter()
        self.nodes: list[dict[str, Any]] = []
        self.unread = 0

    def wants(self, node: Node) -> bool:
        if (collector := self._stage(node)) is not None:
            return collector.wants(node)
        key = self._named(node)
        if key is None or not self.wants_stage(key):
            return False
        self.unread += not node.readable
        return node.readable

    def take(self, node: Node, values: Values) -> None:
        if (collector := self._stage(node)) is not None:
            collector.take(node, values)
            return
        key = self._named(node)
        assert key is not None
        self._times[key] += 1
        name, again = key.stage, self._times[key]
        if again > 1:
            key = StageKey(key.layer, f"{name}.{node.op.lower()}")
            self._times[key] += 1
            again = self._times[key]
        if again > 1:
            key = StageKey(key.layer, f"{key.stage}-{again}")
        value = torch.from_numpy(values)
        value = value.reshape(1) if value.dim() == 0 else value
        self._target.put(key.stage, value, layer=key.layer, axes=self._axes(value))
        made_of = [source[:80] for source in node.sources]
        where = {"layer": key.layer, "stage": key.stage}
        self.nodes.append({**where, "name": node.name[:80], "op": node.op, "from": made_of})

    def _stage(self, node: Node) -> Collector | None:
        """What takes the node, where it is of a stage."""
        if self._stages is None or not self._stages[0].slots(node):
            return None
        return self._stages[1]

    def _put(self, key: StageKey, value: torch.Tensor) -> None:
        self._target.put(key.stage, value, layer=key.layer)
        self.nodes.append({"layer": key.layer, "stage": key.stage})

    def wants_stage(self, key: StageKey) -> bool:
        """Whether a stage is asked for, by its name and layer."""
        if self._layers is not None and key.layer is not None and key.layer not in self._layers:
            return False
        patterns = self._patterns
        return patterns == ["all"] or any(fnmatchcase(key.stage, each) for each in patterns)

    def _named(self, node: Node) -> StageKey | None:
        """Where a node goes: by its name, without one by the weight that it reads."""
        if node.op in _NOT_MADE:
            return None
        if UNNAMED.fullmatch(node.name) or " (" in node.name:  # which ggml calls after another
            found = filter(None, (_OF_WEIGHT.fullmatch(each) for each in node.sources[:2]))
            weight = next(found, None)
            return None if weight is None else StageKey(int(weight[1]), _as_stage(weight[2]))
        return StageKey(node.layer, _as_stage(node.label if node.layer is not None else node.name))

    def _axes(self, value: torch.Tensor) -> tuple[str, ...]:
        """Names of the dimensions: rows are tokens where there are as many."""
        if value.dim() == 1:
            return ("channel",)
        first = "token" if value.shape[0] == self._tokens else "dim0"
        return (first, *(f"dim{place}" for place in range(1, value.dim() - 1)), "channel")


def _as_stage(name: str) -> str:
    """The name as a stage's: one of ours means something else, most often."""
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", name)[:80].strip(".") or "node"
    ours = ALIASES.get(plain.lower(), plain.lower())
    return f"{plain}.node" if stage_of(ours) is not None else plain


class NodeRun:
    """A plan that llama.cpp runs. ``engine`` is the manifest's, whole when ``run`` has returned;
    ``described`` the model's."""

    def __init__(self, plan: ModulePlan) -> None:
        import llama_cpp

        self._plan = plan
        arguments = {key: text for key, text in plan.job.engine_args.items() if key != "nodes"}
        self._settings = LlamaSettings.parse(arguments)
        self._nodes: list[dict[str, Any]] = []
        self.engine = engine_of(self._settings, str(llama_cpp.__version__))
        self.engine["settings"]["nodes"] = self._nodes
        said = plan.file.metadata
        sizes = (said.get(f"{plan.architecture}.{key}") for key in _SIZES)
        self._layers, hidden = (each if isinstance(each, int) else 0 for each in sizes)
        vocabulary = said.get("tokenizer.ggml.tokens")
        count = len(vocabulary) if isinstance(vocabulary, list | tuple) else 0
        self.described = plan.described(self._layers, hidden, count)

    def run(self, target: Target) -> None:
        """One prefill, every node put into ``target``. Raises as llama.cpp's adapter does."""
        plan, job, tokens = self._plan, self._plan.job, self._plan.tokens
        layers = plan.chosen(self._layers)
        watch = NodeWatch(target, len(tokens), job.stages, layers, plan.opened)
        with loaded(plan.model, [tokens], len(tokens), self._settings) as llama:
            fed = [(0, position, token) for position, token in enumerate(tokens)]
            logits = llama.decode(fed, watch)
        if watch.wants_stage(_LOGITS):
            target.put(_LOGITS.stage, logits if job.logits == "all" else logits[-1])
        elif not watch.nodes:
            raise UsageError("no node has a name like that", hint="--stages 'ffn_*'")
        self._nodes += watch.nodes
        if watch.unread:
            target.note(f"{watch.unread} nodes are of another type than float32 and were left out")
