"""One cause, one line: culprits that one mistake explains, where they are, and what they share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aprtui.formats.tracedir import StageKey
from aprtui.text import count, number, ranges

if TYPE_CHECKING:
    from aprtui.compare.bisection import Culprit

__all__ = ["Cause", "Read", "causes_of", "shared_by"]

_FEW = 3  # products: fewer show no pattern


@dataclass(frozen=True)
class Read:
    """A weight that a stage reads: the part of the stage that it makes, what it is for, its tensor
    in the file and that one's type. ``product``: it is multiplied by; ``wrong``: that part is not
    what the weight makes."""

    key: StageKey
    part: str
    role: str
    tensor: str
    type: str
    product: bool
    wrong: bool


@dataclass(frozen=True)
class Cause:
    """Culprits of one mistake; of those without a name, of one stage.

    ``pattern``: what all of them share and no innocent stage has; empty where there is nothing.
    """

    id: str
    text: str
    culprits: tuple[Culprit, ...]
    pattern: str = ""

    @property
    def where(self) -> str:
        """``ffn_gate of layers 0-3, lm_head``; of one culprit its key and tensor."""
        if len(self.culprits) == 1:
            culprit = self.culprits[0]
            tensors = ", ".join(dict.fromkeys(read.tensor for read in culprit.reads))
            return f"{culprit.key} ({tensors})" if tensors else str(culprit.key)
        layers: dict[str, list[int | None]] = {}
        for culprit in self.culprits:
            layers.setdefault(culprit.key.stage, []).append(culprit.key.layer)
        return ", ".join(f"{stage}{_of_layers(held)}" for stage, held in layers.items())

    @property
    def proof(self) -> str:
        """How sure it is: what the mistake leaves of the largest error."""
        local = max((c.local_rel_l2 or 0.0 for c in self.culprits), default=0.0)
        left = [c.mistake.residual_rel_l2 for c in self.culprits if c.mistake is not None]
        if not self.id or not left or not local or self.id == "nonfinite":
            return ""
        return f"leaves {number(max(left), 2)} of {number(local, 2)}"

    def to_json(self) -> dict[str, Any]:
        left = [c.mistake.residual_rel_l2 for c in self.culprits if c.mistake is not None]
        reads = (read for culprit in self.culprits for read in culprit.reads)
        return {
            "id": self.id or None,
            "text": self.text,
            "pattern": self.pattern,
            "culprits": [{"layer": c.key.layer, "stage": c.key.stage} for c in self.culprits],
            "tensors": list(dict.fromkeys(read.tensor for read in reads)),
            "residual_rel_l2": max(left) if self.id and left else None,
        }


def _of_layers(layers: Sequence[int | None]) -> str:
    held = [layer for layer in layers if layer is not None]
    if not held:
        return ""
    return f" of layer{'s' * (len(held) > 1)} {ranges(held)}"


def causes_of(culprits: Sequence[Culprit], innocent: Iterable[Read]) -> tuple[Cause, ...]:
    """The causes of ``culprits``, in the order of the first of each; ``innocent`` are the weights
    that right stages, and right parts of wrong ones, read."""
    groups: dict[tuple[str, ...], list[Culprit]] = {}
    swapped = _swapped(culprits)
    for culprit in culprits:
        mistake = culprit.mistake
        if culprit.key in swapped:
            kind: tuple[str, ...] = swapped[culprit.key]
        elif mistake is None:
            kind = ("", culprit.key.stage, culprit.kind, *culprit.parts)
        elif mistake.id == "size":
            kind = (mistake.id, culprit.key.stage)
        else:
            kind = (mistake.id, mistake.text)
        groups.setdefault(kind, []).append(culprit)
    _split(groups)
    right = [read for read in innocent if not read.wrong]
    return tuple(_cause(kind, group, right) for kind, group in groups.items())


def _split(groups: dict[tuple[str, ...], list[Culprit]]) -> None:
    """A stage whose parts have mistakes of their own stands with each of these, where they are
    causes already."""
    for kind, group in list(groups.items()):
        if kind[0] == "":
            continue
        apart = [(kind[0], text) for text in kind[1].split("; ")] if len(kind) > 1 else []
        if len(apart) > 1 and all(each in groups for each in apart):
            del groups[kind]
            for each in apart:
                groups[each] += group


def _cause(kind: tuple[str, ...], group: list[Culprit], right: list[Read]) -> Cause:
    worst = max(group, key=lambda each: each.local_rel_l2 or 0.0)
    named = worst.mistake is not None
    text = kind[1] if named and kind[0] != "size" else worst.text
    wrong = [read for culprit in group for read in culprit.reads]
    return Cause(kind[0], text, tuple(group), _pattern(wrong, right))


def _pattern(wrong: list[Read], right: list[Read]) -> str:
    """What parts the products that are wrong from those that are right."""
    if not all(read.product for read in wrong):
        return ""
    of = [(read.role, read.type) for read in right if read.product]
    shared = shared_by([(read.role, read.type) for read in wrong], of)
    if not shared:
        return ""
    return f"every product with {shared} ({len(wrong)}), none of the {count(len(of))} others"


def shared_by(wrong: Sequence[tuple[str, str]], right: Sequence[tuple[str, str]]) -> str:
    """What weights, each told by (its role, its type), have in common that no right one has: their
    type, what they are for, or both; empty where nothing parts them, or too few are there."""
    if len(wrong) < _FEW or not right:
        return ""
    for parts, said in (
        ((1,), "weights of type {}"),
        ((0,), "{}"),
        ((0, 1), "{}"),
    ):
        kinds = {tuple(each[part] for part in parts) for each in wrong}
        others = {tuple(each[part] for part in parts) for each in right}
        if kinds.isdisjoint(others) and len(kinds) <= _FEW:
            return said.format(" and ".join(" of type ".join(kind) for kind in sorted(kinds)))
    return ""


def _swapped(culprits: Sequence[Culprit]) -> dict[StageKey, tuple[str, str]]:
    """The culprits that used each other's matrix: (id, text) of the exchange."""
    uses: dict[tuple[str, str], StageKey] = {}
    for culprit in culprits:
        mistake = culprit.mistake
        if mistake is not None and mistake.id in ("other_weight", "other_layer"):
            own, used = mistake.parameters.get("own"), mistake.parameters.get("weight")
            uses[str(own), str(used)] = culprit.key
    return dict(_exchanges(uses))


def _exchanges(
    uses: dict[tuple[str, str], StageKey],
) -> Iterator[tuple[StageKey, tuple[str, str]]]:
    for (own, used), key in uses.items():
        other = uses.get((used, own))
        if other is None:
            continue
        if other.layer == key.layer:
            names = sorted(each.rsplit(" ", 1)[-1] for each in (own, used))
            kind = "gate_up_swapped" if names == ["gate", "up"] else "swapped"
            yield key, (kind, f"{names[0]} and {names[1]} are in each other's place")
        else:
            layers = sorted(each.layer or 0 for each in (key, other))
            text = f"layers {layers[0]} and {layers[1]} are in each other's place"
            yield key, ("layers_swapped", text)
