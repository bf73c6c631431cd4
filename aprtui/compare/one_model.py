"""Two files that should be one model: what they say otherwise, and where a pass shows it.

Keys, tensors and operations are compared first (``diff_models``). Then the pass of B is replayed by
A's graph and weights: a stage that comes out wrong is computed otherwise by B, and is put beside
what the files say of it. Each file keeps its own meaning: nothing here says which is right.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from aprtui.compare.bisection import Bisection, Culprit
from aprtui.compare.computation import NO_STAGE, Otherwise
from aprtui.compare.diff import Comparison
from aprtui.compare.weight_results import FAILED, ModelComparison
from aprtui.graph import Graph
from aprtui.text import clean

__all__ = ["OneModel", "Seen"]


@dataclass(frozen=True)
class Seen:
    """A stage that B's pass computes otherwise than A's file says, and what of the files is why:
    parameters of its operation, else tensors that it reads; none where neither differs."""

    culprit: Culprit
    parameters: tuple[Otherwise, ...]
    tensors: tuple[str, ...]

    @property
    def accounted(self) -> bool:
        return bool(self.parameters or self.tensors)

    @property
    def slight(self) -> bool:
        """Whether no more is behind it than what no file says, and programs do in their own way."""
        kinds = {each.kind for each in self.parameters}
        return kinds == {"slight"} and not self.tensors


@dataclass(frozen=True)
class OneModel:
    """``files``: A's and B's keys, tensors and operations; ``graph``: B's; ``passes``: both passes
    over one prompt; ``replayed``: B's pass by A's file, None where the weights are no more than
    alike."""

    files: ModelComparison
    graph: Graph
    passes: Comparison
    replayed: Bisection | None

    @cached_property
    def seen(self) -> tuple[Seen, ...]:
        """What the pass shows, in order of computation."""
        return tuple(each for each in self._all_seen if not each.slight)

    @cached_property
    def slight(self) -> tuple[Seen, ...]:
        """What it shows of what no file says."""
        return tuple(each for each in self._all_seen if each.slight)

    @cached_property
    def _all_seen(self) -> tuple[Seen, ...]:
        if self.replayed is None:
            return ()
        return tuple(
            Seen(
                culprit,
                tuple(each for each in self.files.computation if self._concerns(each, culprit)),
                self._tensors_of(culprit),
            )
            for culprit in self.replayed.culprits
        )

    def _tensors_of(self, culprit: Culprit) -> tuple[str, ...]:
        """A's tensors that differ in B and make what is wrong; where none is known to, those
        that the operation reads (a bias beside its matrix)."""
        wrong = {
            result.a.name: result.role
            for result in self.files.tensors
            if result.kind in FAILED and result.a is not None
        }
        made = dict.fromkeys(r.tensor for r in culprit.reads if r.tensor in wrong)
        if made or culprit.key not in self.graph:
            return tuple(made)
        own = self.graph[culprit.key].op.weights
        return tuple(n for n, r in wrong.items() if {r, r._replace(expert=None)} & {*own})

    @property
    def otherwise(self) -> tuple[Otherwise, ...]:
        """What decides numbers and is not the same in both files."""
        return tuple(each for each in self.files.computation if each.kind == "differs")

    @cached_property
    def unseen(self) -> tuple[Otherwise, ...]:
        """What the files say otherwise and no stage of this prompt shows."""
        if self.replayed is None:
            return ()
        shown = {each for seen in self.seen for each in seen.parameters}
        return tuple(each for each in self.otherwise if each not in shown)

    @property
    def verdict(self) -> str:
        """ "fail": not the same model; "unmeasured"; "pass"."""
        if self.files.verdict == "fail" or self.seen:
            return "fail"
        missing = self.replayed is not None and self.replayed.unmeasured
        return "unmeasured" if missing or self.files.verdict == "unmeasured" else "pass"

    @property
    def logits_apart(self) -> float | None:
        """Relative L2 of B's logits to A's."""
        last = self.passes.results[-1] if self.passes.results else None
        return None if last is None or last.metrics is None else last.metrics.rel_l2

    @property
    def sentence(self) -> str:
        """The verdict in one line: the first thing that a maintainer would change."""
        if self.verdict == "pass":
            return "one model: both files say the same, and one pass is the other's"
        if self.verdict == "unmeasured":
            return "not known to be one model: something is in one file only, or was not measured"
        unaccounted = [each.culprit for each in self.seen if not each.accounted]
        if unaccounted:
            first, text = unaccounted[0].key, unaccounted[0].text
            return clean(f"not one model, and no key or tensor says why: {first}: {text}", 300)
        found = [str(each) for each in self.otherwise]
        found = found or [f"{r.role} differs" for r in self.files.tensors if r.kind in FAILED]
        found = found or [
            f"{s.key} is {s.a} in A, {s.b} in B" for s in self.files.settings if s.kind == "differs"
        ]
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        return clean(f"not one model: {found[0]}{more}", 300)

    def _concerns(self, each: Otherwise, culprit: Culprit) -> bool:
        """Whether the parameter is of the culprit's operation, of one that its stage spans, or of
        a stage that it reads in B alone."""
        stages = {culprit.key.stage, *culprit.span}
        if culprit.key in self.graph and each.a == NO_STAGE:
            stages |= {key.stage for key in self.graph[culprit.key].inputs}
        of_layer = not each.layers or culprit.key.layer in each.layers
        return of_layer and bool(stages & set(each.stages))

    def to_json(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "sentence": self.sentence,
            "files": self.files.to_json(),
            "passes": {
                "verdict": self.passes.verdict,
                "counts": self.passes.counts,
                "logits_rel_l2": self.logits_apart,
                "notes": list(self.passes.notes),
            },
            "seen": None if self.replayed is None else [_seen_json(each) for each in self.seen],
            "slight": [str(each.culprit.key) for each in self.slight],
            "unseen": [str(each) for each in self.unseen],
        }


def _seen_json(seen: Seen) -> dict[str, Any]:
    key, mistake = seen.culprit.key, seen.culprit.mistake
    return {
        "layer": key.layer,
        "stage": key.stage,
        "mistake": None if mistake is None else mistake.id,
        "text": seen.culprit.text,
        "parameters": [each.parameter for each in seen.parameters],
        "tensors": list(seen.tensors),
    }
