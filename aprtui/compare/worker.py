"""One stage after another replayed from the capture's own inputs, and what is found of each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aprtui.compare.accused import accuse, accuse_output
from aprtui.compare.bars import LONG_BAR, Override, local_bars
from aprtui.compare.bisection import (
    OTHER_MODEL,
    Bisection,
    Culprit,
    Explained,
    Mistake,
    Unmeasured,
    Within,
)
from aprtui.compare.blamed import broken_weight, misplaced, reads_of
from aprtui.compare.captured import Captured, Source
from aprtui.compare.case import Case, open_case
from aprtui.compare.causes import Read, causes_of
from aprtui.compare.explain import Explanation, explain
from aprtui.compare.floor import Judged, judge_finely
from aprtui.compare.infer import with_shapes
from aprtui.compare.localerror import local_error
from aprtui.compare.noise import TYPES, Noise, as_noise
from aprtui.compare.numerics import Numerics
from aprtui.compare.padding import without_padding
from aprtui.compare.spans import ExactTypes, may_be_rounding
from aprtui.compare.tied_keys import why_untold
from aprtui.engine.replay import Replay, representable
from aprtui.errors import BadFileError
from aprtui.formats.tracedir import StageKey, TraceDir
from aprtui.graph import Node
from aprtui.graph.ops import Embed, Op, Rope
from aprtui.model.health import empty_note
from aprtui.model.open import Model
from aprtui.text import clean

__all__ = ["Options", "Worker"]

_NEIGHBOURS = 8  # whose arithmetic is tried first
_NAMED = 3  # of other names that a note says

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Options:
    """What of the capture is replayed; None means all. ``overrides`` move the bars.

    ``reference``: A is replayed too where B has no culprit and they differ all the same.
    ``whole_heads``: B is the pass of another file of the model, whose converter ordered all rows of
    q and k (``Captured``).
    """

    stages: tuple[str, ...] | None = None
    layers: tuple[int, ...] | None = None
    overrides: tuple[Override, ...] = ()
    reference: bool = True
    whole_heads: bool = False


class Worker:
    """Measures one node after another and keeps what was found."""

    def __init__(
        self,
        model: Model,
        captured: Captured,
        ids: tuple[int, ...] | None,
        a: TraceDir | None,
        options: Options,
        name: str = "B",
    ) -> None:
        self.captured, self.options = captured, options
        self.replay = Replay(model, ids or (), captured.logits, captured.rows)
        self.sources = captured.sources()
        self.reference = None if a is None else _reference(a, captured)
        self.token_source = "given" if ids is not None else "unknown"
        self.bars = local_bars(captured.tokens, options.overrides)
        self.culprits: list[Culprit] = []
        self.explained: list[Explained] = []
        self.within: list[Within] = []
        self.unmeasured: list[Unmeasured] = []
        self.pending: list[tuple[Node, Source, Unmeasured]] = []
        self.exact = ExactTypes(self.bars.rel_l2)
        self.covered: set[StageKey] = set()
        self.missing: list[StageKey] = []
        self.numerics: dict[type[Op], Numerics] = {}
        self.learnt: dict[str, Numerics] = {}  # what explained the last stage of that name
        self.honest: float | None = None  # the most that honest numerics left of a stage
        self.likely: tuple[Numerics, ...] | None = None  # what was tried first of the last stage
        self.naming, self.unnamed = True, False  # whether culprits are named, and one was not
        self.innocent: list[Read] = []
        self.notes: list[str] = [captured.reordered] if captured.reordered else []
        if empty := empty_note(model):
            self.notes.append(f"the model: {empty}")
        said = captured.trace.stated.get("model")
        digest = said.get("digest") if isinstance(said, dict) else None
        if digest is not None and digest != f"sha256:{model.file.digest}":
            named = str(said.get("path", "")) if isinstance(said, dict) else ""
            self.notes.append(f"{name} {OTHER_MODEL}: {clean(named)}")

    @property
    def nodes(self) -> list[Node]:
        """What is to be measured, in order of computation."""
        return [node for node in self.captured.graph if self.chosen(node.key)]

    def chosen(self, key: StageKey) -> bool:
        stages, layers = self.options.stages, self.options.layers
        return (stages is None or key.stage in stages) and (
            layers is None or key.layer is None or key.layer in layers
        )

    def measure(self, node: Node) -> None:
        key, state = node.key, self.captured.state(node.key)
        source = self.sources[key]
        if state == "absent":
            self.missing.append(key)
        elif state == "unreadable":
            self._skip(key, clean(str(self.captured.errors[key]), 300), damaged=True)
        elif state == "size":
            self._size(node, source)
        elif isinstance(node.op, Embed):
            self._embedding(node, node.op, source)
        elif source.blocked:
            self._skip(key, source.blocked, damaged="cannot be read" in source.blocked)
        else:
            self._replay(node, source)

    def settle(self) -> None:
        """Judge the spans that rounding may explain again, with what the whole capture shows."""
        for node, source, skipped in self.pending:
            if self.exact.cover(self.replay, (*source.between, node)):
                self._replay(node, source, shown_exact=True)
            else:
                self.unmeasured.append(skipped)

    def _skip(self, key: StageKey, why: str, *, damaged: bool = False) -> None:
        self.unmeasured.append(Unmeasured(key, why, damaged))

    def _size(self, node: Node, source: Source) -> None:
        expected = self.captured.expectation(node.key)
        if source.blocked:
            self._skip(node.key, f"{expected}; {source.blocked}")
            return
        doubt = self._doubt(*source.between, node)
        if doubt:
            self._skip(node.key, f"{expected}; {doubt}")
            return
        used = self.captured.head_dim_of(node.key)
        expected += f": as if head_dim {used} were used" if used else ""
        span = tuple(each.key.stage for each in source.between)
        self.covered |= {each.key for each in source.between}
        mistake = Mistake("size", expected, {"values": self._count(node.key)}, 0.0)
        self.culprits.append(
            Culprit(node.key, "shape", span, None, None, {}, (), expected, mistake)
        )

    def _count(self, key: StageKey) -> int:
        return self.captured.trace.records[key].count

    def _embedding(self, node: Node, op: Embed, source: Source) -> None:
        if self.token_source == "unknown":
            rows = self.captured.wide(node.key)
            found = self._tokens_in(node.key, op, rows)
            ids = tuple(each for each in found if each is not None)
            if len(ids) < len(found):
                lost = found.index(None)
                self._skip(
                    node.key,
                    f"the token ids are unknown and row {lost} is no row of the table "
                    "(--tokens or --prompt tells them)",
                )
                return
            self.replay.tokens = ids
            self.token_source = "found"
            self.notes.append(
                "token ids were found as the table's rows that the capture holds: "
                + ",".join(map(str, ids[:64]))
            )
        self._replay(node, source)

    def _tokens_in(self, key: StageKey, op: Embed, rows: Float64) -> list[int | None]:
        """The table's row that each captured row is, scaled as the family does, or wrongly so."""
        kind = representable(self.captured.values(key).reshape(-1))
        found: list[int | None] = []
        for scale in dict.fromkeys((op.scale, 1.0, rows.shape[-1] ** 0.5)):
            found = self.replay.find_rows(op.table, rows, scale, kind)
            if any(each is not None for each in found):
                break
        return found

    def _replay(self, node: Node, source: Source, *, shown_exact: bool = False) -> None:
        try:
            limits = self.bars.limits(node.key)
            bars = (limits.get("rel_l2", 0.0), limits.get("worst_row_rel_l2", 0.0))
            case = open_case(self.replay, self.captured, node, source, bars)
        except BadFileError as error:
            self._skip(node.key, clean(str(error), 300), damaged=True)
            return
        wrong = case.wrong_experts
        if wrong:
            self._skip(node.key, wrong)
            return
        with np.errstate(all="ignore"):
            self.likely = self.likely_of(node)
            found = explain(case, self.likely)
            noise = None if found.explained else as_noise(case, found)
            judged = judge_finely(case, found) if self._finely(found, bars) else Judged()
            inherited = self._inherited(case)
        self.covered |= {each.key for each in source.between}
        broken = broken_weight(case, found.residual) if found.residual.inherited else None
        if broken is not None:
            self.culprits.append(broken)
        elif found.residual.measured == 0 and found.residual.born == 0:
            self._skip(node.key, "every value inherits NaN or Inf from its inputs")
        elif judged.outlier is not None and not self._doubt(*case.chain):
            self.culprits.append(accuse_output(case, found, judged.outlier, inherited))
        elif found.explained:
            self._explained(case, found, inherited, judged.hidden)
        elif noise is not None and not noise.against:
            self._within(case, found, noise, inherited)
        elif may_be_rounding(case, found, shown_exact=shown_exact):
            why = (
                f"local error {found.plain.rel_l2:.1e} over a span whose products were not "
                "captured: rounding of activations may explain it"
            )
            skipped = Unmeasured(node.key, why)
            if shown_exact:
                self.unmeasured.append(skipped)
            else:
                self.pending.append((node, source, skipped))
        elif doubt := self._doubt(*case.chain):
            away = found.residual if found.residual.born else found.plain
            self._skip(node.key, f"local error {away.rel_l2:.1e}, but {doubt}")
        elif untold := why_untold(case, found):
            self._skip(node.key, untold)
        else:
            self._culprit(case, found, inherited, "" if noise is None else noise.against)

    def _doubt(self, *chain: Node) -> str:
        """Why no stage of the chain may be accused: what was ignored or overridden may be what B
        computed with. Empty where nothing was that touches them."""
        stages = {node.key.stage for node in chain}
        doubts = (
            str(each)
            for each in self.replay.model.doubts
            if each.stages is None or not stages.isdisjoint(each.stages)
        )
        told = ", ".join(doubts)
        return told and f"what was ignored or overridden may be the reason: {told}"

    def likely_of(self, node: Node) -> tuple[Numerics, ...]:
        """What explained the stage one layer before, and what its neighbours, the nearest first."""
        stage = node.key.stage
        same = (self.learnt[stage],) if stage in self.learnt else ()
        return (*same, *list(reversed(self.learnt.values()))[:_NEIGHBOURS])

    def _finely(self, found: Explanation, bars: tuple[float, float]) -> bool:
        """Whether single outputs are judged too: not where a person moved the bar."""
        return found.explained and bars[0] == self.bars.rel_l2 <= LONG_BAR

    def _explained(
        self, case: Case, found: Explanation, inherited: float | None, hidden: float | None
    ) -> None:
        self.numerics[type(case.op)] = found.numerics
        self.learnt.pop(case.key.stage, None)
        self.learnt[case.key.stage] = found.numerics
        self.exact.learn(case, found)
        self.honest = max(self.honest or 0.0, found.residual.rel_l2)
        self.innocent += reads_of(case)
        self.explained.append(
            Explained(
                case.key,
                found.by,
                found.parts,
                found.residual.rel_l2,
                found.plain.rel_l2,
                tuple(each.key.stage for each in case.between),
                inherited,
                hidden,
            )
        )

    def _within(
        self, case: Case, found: Explanation, noise: Noise, inherited: float | None
    ) -> None:
        span = tuple(each.key.stage for each in case.between)
        self.innocent += reads_of(case)
        self.within.append(
            Within(
                case.key,
                TYPES[case.rounded],
                noise.units,
                noise.bar,
                found.plain.rel_l2,
                span,
                inherited,
            )
        )

    def _culprit(
        self, case: Case, found: Explanation, inherited: float | None, beyond: str
    ) -> None:
        """``beyond``: why it is more than the rounding of a fused kernel."""
        if not self.naming:
            self.unnamed = True
            return
        reads = reads_of(case, found.unexplained)
        self.innocent += [read for read in reads if not read.wrong]
        known = self.numerics, self.honest
        self.culprits.append(accuse(case, found, reads, known, inherited, beyond))

    def _inherited(self, case: Case) -> float | None:
        """What A's inputs would have made of the stage, against what B's make of it."""
        side = self.reference
        keys = tuple(case.given)
        if side is None or any(side.state(key) != "whole" for key in keys) or not keys:
            return None
        given = {key: side.wide(key) for key in keys}
        if case.last:
            given = {key: value[list(case.rows or ())] for key, value in given.items()}
        other = Case(
            self.replay, self.captured, case.node, case.between, given, case.y, case.limits
        )
        return local_error(case.run(), other.run(), case.axis).rel_l2

    def result(self) -> Bisection:
        for key in self.missing:
            if key not in self.covered:
                self._skip(key, "not captured")
        order = {node.key: place for place, node in enumerate(self.captured.graph)}
        trace = self.captured.trace
        others = [clean(str(key)) for key in trace.records if key not in order]
        if others:
            named = ", ".join(others[:_NAMED]) + f" and {len(others) - _NAMED} more" * (
                len(others) > _NAMED
            )
            are = "is no stage" if len(others) == 1 else "are no stages"
            self.notes.append(f"{named} {are} of this model: not replayed")
        self.notes += misplaced(self.culprits, self.captured.graph)
        rotated = [node.key for node in self.captured.graph if isinstance(node.op, Rope)]
        rotated = [key for key in rotated if key in trace.records]
        self.culprits, padded = without_padding(self.culprits, len(rotated))
        self.unmeasured += padded
        culprits = tuple(sorted(self.culprits, key=lambda item: order[item.key]))
        return Bisection(
            culprits,
            tuple(self.explained),
            tuple(sorted(self.unmeasured, key=lambda item: order[item.key])),
            None,
            (self.bars.rel_l2, self.bars.worst_row_rel_l2),
            self.captured.tokens,
            self.token_source,
            (*trace.notes, *self.notes),
            within=tuple(self.within),
            weighted=frozenset(node.key.stage for node in self.captured.graph if node.op.weights),
            causes=causes_of(culprits, self.innocent),
        )


def _reference(a: TraceDir, b: Captured) -> Captured:
    return Captured(with_shapes(a, b.graph), b.graph, b.tokens, b.logits)
