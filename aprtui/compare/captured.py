"""B's captured tensors as a model's stages: which are whole, and from what each can be replayed."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aprtui.compare.infer import with_shapes
from aprtui.errors import BadFileError, UsageError
from aprtui.formats.rows import Rows
from aprtui.formats.tracedir import StageKey, StageRecord, TraceDir
from aprtui.graph import Graph, Node
from aprtui.graph.heads import head_windows
from aprtui.graph.ops import Attend, Scores, Softmax
from aprtui.graph.rope import PAIRS
from aprtui.text import clean, count

__all__ = ["Captured", "Source", "common", "open_captured"]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

_KEPT_BYTES = 256_000_000  # float64 copies of inputs that several stages share


@dataclass(frozen=True)
class Source:
    """What a node can be replayed from: ``inputs`` are captured, ``between`` are not.

    ``between`` are the nodes to recompute first, in order. ``blocked`` says why it cannot be
    replayed, empty when it can. ``rows``: those that all of the inputs hold, where one does not
    hold all of the positions.
    """

    inputs: tuple[StageKey, ...] = ()
    between: tuple[Node, ...] = ()
    blocked: str = ""
    rows: tuple[int, ...] | None = None

    @property
    def last(self) -> bool:
        """Whether an input does not hold all of the positions."""
        return self.rows is not None


class Captured:
    """One capture seen through a model's graph. ``state`` of a key:

    "whole", "last" (the last position only), "some" (those that its record names), "size" (its
    count contradicts the model), "unreadable", "absent". ``rows``: where the positions stand, and
    which pass made each. ``whole_heads``: where B's q and k are in the other order of pairs, all
    channels are, turned or not, as llama.cpp's converter orders rows.
    """

    def __init__(
        self, trace: TraceDir, graph: Graph, tokens: int, logits: str, *, whole_heads: bool = False
    ) -> None:
        self.trace, self.graph, self.tokens, self.logits = trace, graph, tokens, logits
        self.whole_heads = whole_heads
        stated = trace.rows
        fits = stated is not None and len(stated) == tokens
        self.rows = stated if fits and stated is not None else Rows.plain(tokens)
        self.windows = head_windows(graph)
        self.errors: dict[StageKey, BadFileError] = {}
        self._states = {node.key: self._state(node.key) for node in self.graph}
        self._kept: OrderedDict[StageKey, Float64] = OrderedDict()
        self._kept_bytes = 0

    def state(self, key: StageKey) -> str:
        return self._states[key]

    def shape(self, key: StageKey) -> tuple[int, ...]:
        """The shape that the model gives the stage, of the positions that are held."""
        held = self.held(key)
        logits = "all" if self._states.get(key) == "some" else self.logits
        return self.graph[key].shape(self.tokens if held is None else len(held), logits)

    def held(self, key: StageKey) -> tuple[int, ...] | None:
        """The rows that are held of a stage, by number; None for all of them."""
        state = self._states.get(key)
        if state == "last":
            return (self.tokens - 1,)
        return self._some(self.trace.records[key]) if state == "some" else None

    def _some(self, record: StageRecord) -> tuple[int, ...]:
        """The rows that a record names. Raises KeyError for positions that the capture has not."""
        return self.rows.at(record.positions if isinstance(record.positions, tuple) else ())

    def values(self, key: StageKey) -> Float32:
        """The captured values, shaped; a memory map. Raises BadFileError."""
        return self.trace.records[key].values().reshape(self.shape(key))

    def wide(self, key: StageKey) -> Float64:
        """The same as float64; the last ones asked for are kept."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        made = self._reordered(key, self.values(key).astype(np.float64))
        self._kept[key] = made
        self._kept_bytes += made.nbytes
        while self._kept_bytes > _KEPT_BYTES and len(self._kept) > 1:
            self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes
        return made

    @property
    def reordered(self) -> str:
        """What is done about q and k rows that the manifest says are in another order."""
        said = self.trace.stated.get("rope_layout")
        right = self.graph.rope_layout
        if said not in PAIRS or not right or said == right:
            return ""
        return f"B rotates {said} pairs, this model {right}: q and k were reordered in each head"

    def _reordered(self, key: StageKey, values: Float64) -> Float64:
        """Channels of each head that is turned in the model's order, where B's is the other one (of
        ``whole_heads`` all channels of q and k); ``values`` are changed."""
        if not self.reordered:
            return values
        rows = values.reshape(len(values), -1)
        pair = (2, -1) if self.graph.rope_layout == "adjacent" else (-1, 2)
        for window in self.windows.get(key, ()):
            heads, turned = window.heads, 0 if window.table is None else window.table.dims
            dims = heads.size if self.whole_heads and window.ordered else turned
            order = np.arange(dims).reshape(pair).T.reshape(-1)
            cut = rows[:, heads.columns].reshape(len(rows), heads.count, heads.size)
            cut[..., :dims] = cut[..., order]
            rows[:, heads.columns] = cut.reshape(len(rows), heads.width)
        return rows.reshape(values.shape)

    def expectation(self, key: StageKey) -> str:
        """``2,304 values where 9 x 8 x 64 = 4,608 were expected``."""
        shape = self.graph[key].shape(self.tokens, self.logits)
        return (
            f"{count(self.trace.records[key].count)} values where "
            f"{' x '.join(map(str, shape))} = {count(math.prod(shape))} were expected"
        )

    def head_dim_of(self, key: StageKey) -> int | None:
        """The head size that a count of the wrong size means, where heads are an axis."""
        node = self.graph[key]
        shape = node.shape(self.tokens)
        if node.axis_names()[-1] != "channel":
            return None
        used, rest = divmod(self.trace.records[key].count, math.prod(shape[:-1]))
        return None if rest or not used else used

    def sources(self) -> dict[StageKey, Source]:
        """For every node what it can be replayed from, by one walk in order of computation."""
        found: dict[StageKey, Source] = {}
        for node in self.graph:
            inputs: dict[StageKey, None] = {}
            between: dict[StageKey, Node] = {}
            blocked = ""
            rows: tuple[int, ...] | None = None
            for key in node.inputs:
                state = self._states[key]
                if state in ("whole", "last", "some"):
                    inputs[key] = None
                    rows = common(rows, self.held(key))
                elif state == "absent":
                    earlier = found[key]
                    blocked = blocked or self._why_absent(key, earlier)
                    inputs |= dict.fromkeys(earlier.inputs)
                    between |= {each.key: each for each in earlier.between}
                    between[key] = self.graph[key]
                    rows = common(rows, earlier.rows)
                else:
                    blocked = blocked or self._why_wrong(key, state)
            chain = (*between.values(), node)
            if not blocked:
                blocked = self._why_rows(node, chain, rows)
            found[node.key] = Source(tuple(inputs), tuple(between.values()), blocked, rows)
        return found

    def _why_rows(self, node: Node, chain: tuple[Node, ...], rows: tuple[int, ...] | None) -> str:
        """Why the rows that are held do not tell a node's output; empty where they do."""
        if rows is not None and common(rows, self.held(node.key)) == ():
            return "it and its inputs hold no position in common"
        if rows is not None and not all(each.op.row_wise for each in chain):
            last = rows == (self.tokens - 1,)
            return f"an input holds {'the last position' if last else 'some positions'} only"
        looking = any(isinstance(each.op, Scores | Softmax | Attend) for each in chain)
        return self.rows.unseen if looking else ""

    def _why_absent(self, key: StageKey, source: Source) -> str:
        if not self.graph[key].inputs:
            return f"its input {key.stage} was not captured"
        if "not captured" in source.blocked:
            lost = (each for each in self.graph[key].inputs if self._states[each] == "absent")
            return (
                f"its input {key} was not captured, nor what that could be recomputed from "
                f"({', '.join(map(str, lost))})"
            )
        return source.blocked and f"its input {key} was not captured: {source.blocked}"

    def _why_wrong(self, key: StageKey, state: str) -> str:
        return f"its input {key} " + ("has the wrong size" if state == "size" else "cannot be read")

    def _state(self, key: StageKey) -> str:
        record = self.trace.records.get(key)
        if record is None:
            return "absent"
        try:
            held = record.values().size
        except BadFileError as error:
            self.errors[key] = error
            return "unreadable"
        node = self.graph[key]
        one = math.prod(node.shape(1))
        whole = held == math.prod(node.shape(self.tokens, self.logits))
        if isinstance(record.positions, tuple) and node.axis_names("all")[0] == "token":
            known = set(record.positions) <= set(self.rows.positions)
            fits = known and held == one * len(record.positions)
            every = whole and record.positions in (self.rows.positions, self.rows.positions[-1:])
            if not every and not fits:
                named = f"names {count(len(record.positions), 'position')} and holds"
                said = f"{named} {count(held)} values"
                said = said if known else "names positions that no row of the capture stands at"
                self.errors[key] = BadFileError(record.path, said)
                return "unreadable"
            return "whole" if every else "some"
        if whole:
            return "whole"
        return "last" if held == one and node.axis_names()[0] == "token" else "size"


def common(one: tuple[int, ...] | None, other: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """The rows that are in both; None stands for all."""
    if one is None or other is None:
        return one if other is None else other
    return tuple(sorted(set(one) & set(other)))


def open_captured(
    trace: TraceDir, graph: Graph, tokens: tuple[int, ...] | None, *, whole_heads: bool = False
) -> Captured:
    """The capture through the model's graph; the number of positions from ``tokens`` or the counts.

    Raises UsageError when the model does not fit the capture, or ``tokens`` do not.
    """
    trace = with_shapes(trace, graph)
    votes: Counter[int] = Counter()
    for key, record in trace.records.items():
        if key not in graph or graph[key].timeless:
            continue
        if not graph[key].last and (held := _tokens_in(record, graph[key])):
            votes[held] += 1
    head = next((trace.records[n.key] for n in graph if n.last and n.key in trace.records), None)
    if not votes and head is not None and head.count and head.count % graph.vocab_size == 0:
        votes[head.count // graph.vocab_size] = 1
    outside = max((key.layer or 0 for key in trace.records), default=0)
    where = clean(str(trace.root))
    if outside >= graph.num_layers or not votes:
        raise UsageError(
            f"{where}: this is not a capture of that model: "
            + (
                f"it has a layer {outside}, the model {graph.num_layers} layers"
                if votes
                else "no file's size fits the model"
            ),
            hint="--model names the model that B computed",
        )
    likeliest = max(votes, key=lambda held: (votes[held], held))
    if tokens is None:
        length = likeliest
    else:
        length = len(tokens)
        if likeliest not in (length, 1) and votes[length] < votes[likeliest]:
            raise UsageError(
                f"{where}: holds {likeliest} positions, and {length} tokens were given",
                hint="give the tokens that were traced, or none",
            )
    whole = head is not None and length > 1 and head.count == length * graph.vocab_size
    if head is not None and isinstance(head.positions, tuple):  # logits of some: as rows, too
        whole = True
    return Captured(trace, graph, length, "all" if whole else "last", whole_heads=whole_heads)


def _tokens_in(record: StageRecord, node: Node) -> int | None:
    """How many positions the file's count means; None when it cannot be."""
    one = math.prod(node.shape(1))
    if not one or not record.count or record.count % one:
        return None
    held = record.count // one
    if "key" not in node.axis_names():
        return held
    root = math.isqrt(held)
    return root if root * root == held else None
